//! Several writers of one disk, disks of other programs, and what stores do not have.

use super::*;

fn line(result: rbdkit_plugin_api::Result<()>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn the_older_of_two_writers_is_told_who_the_newer_is_and_changes_nothing_of_its() {
    let store = TestStore::default();
    let (old, new) = (disk(&store, 4), disk(&store, 4));
    old.write(0, &[1; 2 * BLOCK as usize]).await.unwrap();
    new.write(0, &[2; BLOCK as usize]).await.unwrap();
    let said = line(old.write(0, &[3; BLOCK as usize]).await);
    let newer = format!("generation 2 of host {}", rustix::system::uname().nodename().to_string_lossy());
    assert!(said.starts_with(&format!("object: s3://b/disk: a newer writer has taken it: {newer} process ")), "{said}");
    assert!(said.contains("this one, generation 1, writes nothing more") && !said.contains('\n'), "{said}");
    // From then on nothing is tried.
    let before = store.requests();
    for result in [old.write(BLOCK, &[3]).await, old.zero(0, BLOCK).await, old.zero(BLOCK, 1).await, old.flush().await]
    {
        assert_eq!(line(result), said);
    }
    assert_eq!(store.requests(), before);
    assert_eq!(read(&new, 0, 2 * BLOCK).await, [[2; BLOCK as usize], [1; BLOCK as usize]].concat());
    new.flush().await.unwrap();
}

#[tokio::test]
async fn what_the_older_writer_does_not_know_it_does_not_write_over_either() {
    for seed in 0..40_u64 {
        let store = TestStore::new(seed, Faults::default());
        let (old, new) = (disk(&store, 4), disk(&store, 4));
        old.write(0, &[1; BLOCK as usize]).await.unwrap();
        new.write(BLOCK, &[2; BLOCK as usize]).await.unwrap();
        // The old one has never seen this block.
        let result = match seed % 4 {
            0 => old.write(BLOCK, &[3; BLOCK as usize]).await,
            1 => old.write(BLOCK + 7, &[3; 9]).await,
            2 => old.zero(BLOCK, BLOCK).await,
            _ => old.zero(BLOCK + 5, 1).await,
        };
        assert!(line(result).contains("a newer writer"), "{seed}");
        assert_eq!(read(&new, BLOCK, BLOCK).await, [2; BLOCK as usize], "{seed}");
    }
}

#[tokio::test]
async fn a_flush_of_the_older_writer_fails_although_its_blocks_are_its_own() {
    let store = TestStore::default();
    let (old, new) = (disk(&store, 4), disk(&store, 4));
    old.write(0, &[1; BLOCK as usize]).await.unwrap();
    old.flush().await.unwrap();
    new.write(BLOCK, &[2; BLOCK as usize]).await.unwrap();
    assert!(line(old.flush().await).contains("a newer writer"));
}

#[tokio::test]
async fn writers_that_begin_at_once_have_different_generations_and_the_last_one_goes_on() {
    for seed in 0..20 {
        let store = TestStore::new(seed, Faults { answer_lost: 30, ..Faults::default() });
        let disks: Vec<_> = (0..6).map(|_| disk(&store, 8)).collect();
        let writes = disks.iter().enumerate().map(|(number, disk)| async move {
            disk.write(number as u64 * BLOCK, &[number as u8 + 1; BLOCK as usize]).await.is_ok()
        });
        futures_util::future::join_all(writes).await;
        let flushes = futures_util::future::join_all(disks.iter().map(|disk| disk.flush())).await;
        let alive = disks.iter().zip(&flushes).filter(|(disk, flush)| disk.generation.is_taken() && flush.is_ok());
        assert_eq!(alive.count(), 1, "seed {seed}");
    }
}

#[tokio::test]
async fn a_store_whose_deletes_have_no_conditions_gets_empty_objects() {
    let store = TestStore::ignoring_conditions_of_deletes();
    let disk = disk(&store, 4);
    disk.write(0, &[1; 3 * BLOCK as usize]).await.unwrap();
    disk.zero(0, BLOCK).await.unwrap();
    disk.trim(BLOCK, BLOCK).await.unwrap();
    let name = |block: u64| format!("disk/{block:016x}");
    assert_eq!((store.object(&name(0)).unwrap().len(), store.object(&name(1)).unwrap().len()), (0, 0));
    assert_eq!(read(&disk, 0, 2 * BLOCK).await, vec![0; 2 * BLOCK as usize]);
    let extents = disk.extents(0, 4 * BLOCK).await.unwrap();
    let holes: Vec<_> = extents.as_slice().iter().map(|extent| (extent.offset / BLOCK, extent.hole)).collect();
    assert_eq!(holes, [(0, true), (2, false), (3, true)]);
    disk.write(7, &[9]).await.unwrap();
    let mut first = vec![0; BLOCK as usize];
    first[7] = 9;
    assert_eq!(read(&disk, 0, BLOCK).await, first);
}

#[tokio::test]
async fn deleted_blocks_have_no_object() {
    let store = TestStore::default();
    let disk = disk(&store, 4);
    disk.write(0, &[1; 4 * BLOCK as usize]).await.unwrap();
    disk.zero(BLOCK, BLOCK).await.unwrap();
    disk.trim(2 * BLOCK + 1, 2 * BLOCK - 1).await.unwrap();
    let present: Vec<bool> = (0..4).map(|block| store.object(&format!("disk/{block:016x}")).is_some()).collect();
    assert_eq!(present, [true, false, true, false]);
    assert_eq!(store.object("disk/generation-probe"), None);
}

#[tokio::test]
async fn objects_of_another_size_are_refused_when_the_disk_is_opened() {
    let store = TestStore::default();
    store.set("disk/0000000000000002", &[1; 1024]);
    let said = line(disk(&store, 4).check().await);
    assert_eq!(said, "object: s3://b/disk: its objects have 1024 bytes, which object-size=512 does not fit (EINVAL)");
    let said = line(disk(&store, 4).write(2 * BLOCK + 5, &[1]).await);
    assert_eq!(said, "object: reading block 2 of s3://b/disk: the object has 1024 bytes instead of 512 (EIO)");
}

#[tokio::test]
async fn other_names_among_the_blocks_are_no_blocks() {
    let store = TestStore::default();
    for name in ["0000000000000001", "0000000000000001.old", "00000000000000AA", "000000000000000a", "x", "0"] {
        store.set(&format!("disk/{name}"), &[1; BLOCK as usize]);
    }
    let disk = disk(&store, 16);
    for length in 1..=16 {
        let extents = disk.extents(0, length * BLOCK).await.unwrap();
        for extent in extents.as_slice() {
            for block in extent.offset / BLOCK..extent.end() / BLOCK {
                assert_eq!(extent.hole, block != 1 && block != 10, "{length}: {block}");
            }
        }
        assert!(extents.next_offset() >= length * BLOCK);
    }
}
