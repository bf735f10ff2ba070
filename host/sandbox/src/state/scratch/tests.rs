use rbdkit_plugin_api::Fill;

use super::super::random::Random;
use super::*;
use crate::state::disk::{named_and_removed, nameless, write_all};

fn scratch(quota: u64) -> Arc<Scratch> {
    Arc::new(Scratch::new(
        scratch_directory(),
        quota,
        Arc::new(Quota::new(u64::MAX)),
        Arc::new(Quota::new(64 << 20)),
        DescriptorSource::Shared,
    ))
}

async fn write(scratch: &Arc<Scratch>, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    let buffer = Buffer::from_vec(bytes.to_vec());
    let span = buffer.span();
    let (_, result) = scratch.pwrite(buffer, span, offset).await;
    result.map_err(|error| error.errno())
}

async fn read(scratch: &Arc<Scratch>, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = Buffer::from_vec(vec![0xee; length]);
    let span = buffer.span();
    buffer.mark(span, Fill::Unfilled);
    let (mut buffer, result) = scratch.pread(buffer, span, offset).await;
    result.unwrap();
    assert!(buffer.fills().all(|(_, fill)| fill != Fill::Unfilled));
    buffer.bytes(span).to_vec()
}

async fn punch(scratch: &Arc<Scratch>, offset: u64, length: u64) {
    scratch.punch(offset, length).await.unwrap();
}

#[tokio::test]
async fn what_was_never_written_is_zero_without_a_file() {
    let scratch = scratch(1 << 20);
    let buffer = Buffer::new(5000);
    let span = buffer.span();
    let Op::Ready((buffer, Ok(()))) = scratch.pread(buffer, span, 1 << 50) else { panic!("it waits") };
    assert_eq!(buffer.fills().collect::<Vec<_>>(), [(span, Fill::Zero)]);
    punch(&scratch, 0, 1 << 60).await;
    assert!(scratch.file.get().is_none());
    assert_eq!(scratch.allocated(), 0);
}

#[tokio::test]
async fn a_read_knows_its_zeroes_and_reads_the_rest() {
    let scratch = scratch(1 << 20);
    write(&scratch, 4096, &[7; 4096]).await.unwrap();
    let buffer = Buffer::new(3 * 4096);
    let span = buffer.span();
    let (mut buffer, result) = scratch.pread(buffer, span, 0).await;
    result.unwrap();
    let fills: Vec<_> = buffer.fills().collect();
    assert_eq!(
        fills,
        [(Span::new(0, 4096), Fill::Zero), (Span::new(4096, 4096), Fill::Data), (Span::new(8192, 4096), Fill::Zero)]
    );
    assert!(buffer.bytes(Span::new(4096, 4096)).iter().all(|byte| *byte == 7));
    assert_eq!(scratch.allocated(), 4096);
}

#[tokio::test]
async fn small_input_and_output_does_not_wait() {
    let scratch = scratch(1 << 20);
    write(&scratch, 0, &[1; 8192]).await.unwrap();
    let buffer = Buffer::from_vec(vec![2; 4096]);
    let span = buffer.span();
    assert!(matches!(scratch.pwrite(buffer, span, 100), Op::Ready((_, Ok(())))));
    scratch.direct_writes.pause();
    let buffer = Buffer::from_vec(vec![3; 10]);
    let indirect = scratch.pwrite(buffer, Span::new(0, 10), 0);
    assert!(matches!(indirect, Op::Later(_)));
    indirect.await.1.unwrap();
    let mut expected = vec![1; 8192];
    expected[100..4196].fill(2);
    expected[..10].fill(3);
    assert_eq!(read(&scratch, 0, 8192).await, expected);
}

#[tokio::test]
async fn the_quota_is_never_exceeded_and_a_refused_write_changes_nothing() {
    let scratch = scratch(3 * PAGE);
    write(&scratch, 0, &[1; 2 * 4096]).await.unwrap();
    assert_eq!(write(&scratch, 4096, &[2; 3 * 4096]).await, Err(Errno::Enospc));
    assert_eq!(read(&scratch, 4096, 4096).await, [1; 4096]);
    assert_eq!((scratch.allocated(), scratch.quota()), (2 * PAGE, 3 * PAGE));
    // One byte costs a page; an existing page costs nothing.
    write(&scratch, 1 << 40, &[3]).await.unwrap();
    write(&scratch, 10, &[2; 8000]).await.unwrap();
    assert_eq!(write(&scratch, 1 << 41, &[3]).await, Err(Errno::Enospc));
    punch(&scratch, 0, PAGE).await;
    assert_eq!(scratch.allocated(), 2 * PAGE);
    write(&scratch, 1 << 41, &[3]).await.unwrap();
    assert_eq!(scratch.allocated(), 3 * PAGE);
}

#[tokio::test]
async fn all_scratch_files_of_a_filter_share_one_total() {
    let total = Arc::new(Quota::new(3 * PAGE));
    let memory = Arc::new(Quota::new(1 << 20));
    let one = Arc::new(Scratch::new(
        scratch_directory(),
        u64::MAX,
        Arc::clone(&total),
        Arc::clone(&memory),
        DescriptorSource::Shared,
    ));
    let two = Arc::new(Scratch::new(
        scratch_directory(),
        u64::MAX,
        Arc::clone(&total),
        Arc::clone(&memory),
        DescriptorSource::Shared,
    ));
    write(&one, 0, &[1; 4096]).await.unwrap();
    write(&two, 0, &[1; 8192]).await.unwrap();
    assert_eq!(write(&one, 4096, &[1]).await, Err(Errno::Enospc));
    assert_eq!((one.quota(), two.quota()), (PAGE, 2 * PAGE));
    drop(two);
    write(&one, 4096, &[1]).await.unwrap();
    drop(one);
    assert_eq!((total.used(), memory.used()), (0, 0));
}

#[tokio::test]
async fn ranges_that_cannot_be_are_refused() {
    let scratch = scratch(1 << 20);
    assert_eq!(write(&scratch, i64::MAX as u64, &[1]).await, Err(Errno::Einval));
    assert_eq!(write(&scratch, u64::MAX, &[1]).await, Err(Errno::Einval));
    assert_eq!(scratch.punch(1, u64::MAX).await.unwrap_err().errno(), Errno::Einval);
    let outside = Span::new(u32::MAX, 2);
    let (_, result) = scratch.pread(Buffer::new(10), outside, 0).await;
    assert_eq!(result.unwrap_err().errno(), Errno::Einval);
    assert_eq!(write(&scratch, 5, &[]).await, Ok(()));
}

#[tokio::test]
async fn a_directory_that_is_not_there_fails_the_write_and_says_which() {
    let total = Arc::new(Quota::new(u64::MAX));
    let memory = Arc::new(Quota::new(1 << 20));
    let scratch = Arc::new(Scratch::new("/nonexistent/dir".into(), u64::MAX, total, memory, DescriptorSource::Shared));
    let (_, result) = scratch.pwrite(Buffer::from_vec(vec![1]), Span::new(0, 1), 0).await;
    let error = result.unwrap_err();
    assert_eq!(error.errno(), Errno::Enoent);
    assert!(error.context().unwrap().contains("/nonexistent/dir"), "{error}");
    assert_eq!(read(&scratch, 0, 1).await, [0]);
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_write_leaves_zeroes_where_there_were_zeroes() {
    // A file that is sealed against growing simulates a full disk: a write across its end writes
    // only the first part.
    use rustix::fs::{MemfdFlags, SealFlags};
    let scratch = scratch(1 << 30);
    let file = rustix::fs::memfd_create("full", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, 2 * PAGE).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    scratch.file.set(File::from(file)).unwrap();
    write(&scratch, 0, &[1; 100]).await.unwrap();
    assert!(write(&scratch, 50, &[2; 3 * 4096]).await.is_err());
    assert_eq!(read(&scratch, 0, 50).await, [1; 50]);
    assert_eq!(read(&scratch, PAGE, 3 * 4096).await, [0; 3 * 4096]);
    // Also under a later write that covers only a part of such a page.
    write(&scratch, PAGE + 10, &[3; 10]).await.unwrap();
    let mut expected = [0; 4096];
    expected[10..20].fill(3);
    assert_eq!(read(&scratch, PAGE, 4096).await, expected);
    assert_eq!(scratch.allocated(), 4 * PAGE, "they stay marked: another write to the same page may count on it");
    punch(&scratch, 0, 4 * PAGE).await;
    assert_eq!(scratch.allocated(), 0);
}

#[test]
fn the_file_has_no_name_even_where_the_kernel_cannot_make_it_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = nameless(dir.path()).unwrap();
    let other = named_and_removed(dir.path()).unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    for file in [file, other] {
        write_all(&file, b"x", 0).unwrap();
    }
    assert_eq!(named_and_removed(&dir.path().join("missing")).unwrap_err(), rustix::io::Errno::NOENT);
}

#[tokio::test]
async fn a_scratch_file_does_what_an_array_does() {
    let mut random = Random::seeded("a_scratch_file_does_what_an_array_does");
    const SIZE: u64 = 600_000;
    let scratch = scratch(300_000);
    let mut model = vec![0u8; SIZE as usize];
    let mut pages = vec![false; SIZE.div_ceil(PAGE) as usize];
    for step in 0..3000 {
        let mut offset = random.below(SIZE);
        if random.below(2) == 0 {
            offset = offset / PAGE * PAGE;
        }
        let most = if random.below(3) == 0 { SIZE } else { 3 * PAGE };
        let length = random.below(most.min(SIZE - offset)) + 1;
        let range = offset as usize..(offset + length) as usize;
        let (first, end) = (offset / PAGE, (offset + length).div_ceil(PAGE));
        match random.below(3) {
            0 => {
                let byte = random.below(255) as u8 + 1;
                let new = pages[first as usize..end as usize].iter().filter(|page| !**page).count() as u64;
                let result = write(&scratch, offset, &vec![byte; length as usize]).await;
                let fits = scratch.allocated() + if result.is_ok() { 0 } else { new * PAGE } <= 300_000;
                assert_eq!(result.is_ok(), fits, "step {step}");
                if result.is_ok() {
                    model[range].fill(byte);
                    pages[first as usize..end as usize].fill(true);
                }
            }
            1 => {
                punch(&scratch, offset, length).await;
                model[range].fill(0);
                let (first, end) = (offset.div_ceil(PAGE) as usize, ((offset + length) / PAGE) as usize);
                if first < end {
                    pages[first..end].fill(false);
                }
            }
            _ => assert_eq!(read(&scratch, offset, length as usize).await, model[range], "step {step}"),
        }
        assert_eq!(scratch.allocated(), pages.iter().filter(|page| **page).count() as u64 * PAGE, "step {step}");
    }
    assert_eq!(read(&scratch, 0, SIZE as usize).await, model);
    // The file system agrees, except for its own structures.
    let blocks = std::os::unix::fs::MetadataExt::blocks(&scratch.file.get().unwrap().metadata().unwrap()) * 512;
    assert!(blocks <= scratch.allocated() + 64 * PAGE, "{blocks} on the disk, {} counted", scratch.allocated());
}

#[tokio::test]
async fn files_leave_descriptors_to_others() {
    let files = Arc::new(Quota::new(1));
    let scratch = |descriptor| {
        let memory = Arc::new(Quota::new(64 << 20));
        let mut scratch =
            Scratch::new(scratch_directory(), u64::MAX, Arc::new(Quota::new(u64::MAX)), memory, descriptor);
        scratch.descriptors = Arc::clone(&files);
        Arc::new(scratch)
    };
    let (one, two) = (scratch(DescriptorSource::Shared), scratch(DescriptorSource::Shared));
    write(&one, 0, b"one").await.unwrap();
    assert_eq!(write(&two, 0, b"two").await, Err(Errno::Enospc));
    assert_eq!((two.allocated(), read(&two, 0, 3).await), (0, vec![0; 3]));
    write(&one, 9000, b"more").await.unwrap();
    let default = scratch(DescriptorSource::Reserved);
    write(&default, 0, b"the default export's").await.unwrap();
    drop((one, default));
    write(&two, 0, b"two").await.unwrap();
    assert_eq!(read(&two, 0, 3).await, b"two");
    drop(two);
    assert_eq!(files.used(), 0);
}
