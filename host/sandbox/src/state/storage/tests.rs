//! Tests of a file that is kept.

use super::*;

fn block<T>(op: Op<T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match op {
            Op::Ready(answer) => answer,
            Op::Later(operation) => operation.await,
            Op::Taken => panic!("polled to its end"),
        }
    })
}

/// Runs an operation inside of a runtime, which those on threads need when they begin.
fn run<T>(begin: impl FnOnce() -> Op<T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let op = {
        let _entered = runtime.enter();
        begin()
    };
    block(op)
}

fn opened(size: u64) -> (tempfile::TempDir, Arc<Storage>) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(&dir.path().join("kept")).unwrap();
    storage.raise_limit(size);
    (dir, Arc::new(storage))
}

fn buffer(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::new(bytes.len() as u32);
    buffer.put(0, bytes);
    buffer
}

fn read(storage: &Arc<Storage>, offset: u64, length: u32) -> Vec<u8> {
    let span = Span::new(0, length);
    let (mut buffer, result) = run(|| storage.pread(Buffer::new(length), span, offset));
    result.unwrap();
    buffer.bytes(span).to_vec()
}

fn write(storage: &Arc<Storage>, offset: u64, bytes: &[u8]) -> Result<()> {
    run(|| storage.pwrite(buffer(bytes), Span::new(0, bytes.len() as u32), offset)).1
}

#[test]
fn what_was_written_is_there_for_the_next_opener() {
    let (dir, storage) = opened(8 << 20);
    write(&storage, 5000, b"short").unwrap();
    let long: Vec<u8> = (0..3 << 20).map(|n| (n % 251) as u8).collect();
    write(&storage, 1 << 20, &long).unwrap();
    run(|| storage.write(0, b"header".to_vec())).unwrap();
    run(|| storage.flush()).unwrap();
    drop(storage);
    let again = Arc::new(Storage::open(&dir.path().join("kept")).unwrap());
    assert_eq!(again.size().unwrap(), 4 << 20);
    assert_eq!(read(&again, 4999, 7), b"\0short\0");
    assert!(read(&again, 1 << 20, 3 << 20) == long);
    assert_eq!(run(|| again.read(0, 6)).unwrap(), b"header");
    assert_eq!(run(|| again.read((4 << 20) - 2, 100)).unwrap().len(), 2);
    assert_eq!(read(&again, (4 << 20) - 1, 3), [long[(3 << 20) - 1], 0, 0], "zero after the end");
}

#[test]
fn the_file_grows_to_its_limit_and_no_further() {
    let (_dir, storage) = opened(1 << 20);
    let errno = |result: Result<()>| result.map_err(|error| error.errno());
    assert_eq!(errno(write(&storage, (1 << 20) - 3, b"fits")), Err(Errno::Enospc));
    assert_eq!(errno(write(&storage, (1 << 20) - 4, b"fits")), Ok(()));
    assert_eq!(errno(run(|| storage.write(1 << 20, vec![1]))), Err(Errno::Enospc));
    assert_eq!(errno(run(|| storage.resize((1 << 20) + 1))), Err(Errno::Enospc));
    assert_eq!(errno(run(|| storage.resize(10))), Ok(()));
    assert_eq!(storage.size().unwrap(), 10);
    storage.raise_limit(2 << 20);
    assert_eq!(errno(run(|| storage.resize(2 << 20))), Ok(()));
    assert_eq!(read(&storage, (1 << 20) - 4, 4), [0; 4], "what was cut off does not come back");
}

#[test]
fn ranges_beyond_the_largest_file_are_refused() {
    let (_dir, storage) = opened(u64::MAX);
    let einval = Some(Errno::Einval);
    let span = Span::new(0, 4);
    for offset in [i64::MAX as u64 - 3, u64::MAX - 3, u64::MAX] {
        let read = run(|| storage.pread(Buffer::new(4), span, offset)).1;
        assert_eq!(read.err().map(|error| error.errno()), einval, "{offset}");
        assert_eq!(write(&storage, offset, b"four").err().map(|error| error.errno()), einval, "{offset}");
        assert_eq!(run(|| storage.punch(offset, 4)).err().map(|error| error.errno()), einval, "{offset}");
        assert_eq!(run(|| storage.read(offset, 4)).err().map(|error| error.errno()), einval, "{offset}");
    }
    assert_eq!(run(|| storage.read(0, MAX_SMALL + 1)).err().map(|error| error.errno()), einval);
    assert_eq!(run(|| storage.write(0, vec![0; MAX_SMALL as usize + 1])).err().map(|error| error.errno()), einval);
    assert_eq!(run(|| storage.pread(Buffer::new(3), span, 0)).1.err().map(|error| error.errno()), einval);
}

#[test]
fn a_punched_range_is_zero_and_the_size_stays() {
    let (_dir, storage) = opened(1 << 20);
    write(&storage, 0, &[7; 64 << 10]).unwrap();
    run(|| storage.punch(1000, 60_000)).unwrap();
    run(|| storage.punch(60_000, u64::from(u32::MAX))).unwrap();
    run(|| storage.punch(1 << 30, 5)).unwrap();
    assert_eq!(storage.size().unwrap(), 64 << 10);
    assert_eq!(read(&storage, 998, 4), [7, 7, 0, 0]);
    assert_eq!(read(&storage, 59_000, 6_536), vec![0; 6_536]);
    assert!(storage.allocated().unwrap() <= 64 << 10);
}
