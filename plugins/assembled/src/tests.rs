//! A disk of files, bytes and zeroes against a list of bytes.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rbdkit_plugin_api::{Buffer, Errno, Flags, Handle, Op, Result, Span};
use tokio::runtime::{Builder, Runtime};

use super::*;

/// A file with a hole in the middle, between two runs of data.
const FILE: usize = 3 * 65536;

struct Bench {
    runtime: Runtime,
    handle: AssembledHandle,
    files: [std::fs::File; 2],
    model: Vec<u8>,
}

/// A table of 1000 bytes, a file, padding, and another file.
fn bench() -> Bench {
    let data: Vec<u8> = (0..1000).map(|at| (at % 251) as u8 | 1).collect();
    let file = |byte| {
        let file = temporary_file().unwrap();
        file.write_all_at(&[byte; 65536], 0).unwrap();
        file.write_all_at(&[byte; 65536], 2 * 65536).unwrap();
        file
    };
    let files = [file(7), file(8)];
    let mut regions = Regions::default();
    regions.push_data(data.clone().into()).unwrap();
    regions.push_file(0, FILE as u64).unwrap();
    regions.pad_to_multiple_of(4096).unwrap();
    regions.push_file(1, FILE as u64).unwrap();
    let mut model = data;
    let with = |byte| [vec![byte; 65536], vec![0; 65536], vec![byte; 65536]].concat();
    model.extend(with(7));
    model.resize(model.len().next_multiple_of(4096), 0);
    model.extend(with(8));
    let backing = files.iter().map(|file| Backing::Open(DiskFile::from_fd(file.try_clone().unwrap().into()).unwrap()));
    let disk = AssembledDisk::new(regions, backing.collect());
    assert_eq!(disk.size(), model.len() as u64);
    let runtime = Builder::new_current_thread().build().unwrap();
    Bench { runtime, handle: AssembledHandle::new(Arc::new(disk)), files, model }
}

impl Bench {
    fn run<T: Unpin>(&self, op: impl FnOnce(&AssembledHandle) -> Op<T>) -> T {
        self.runtime.block_on(async { op(&self.handle).await })
    }

    fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        let span = Span::new(3, length);
        let (mut buffer, result) = self.run(|handle| handle.pread(Buffer::new(length + 7), span, offset));
        result.unwrap();
        buffer.bytes(span).to_vec()
    }

    fn write(&self, offset: u64, bytes: &[u8], flags: Flags) -> Result<()> {
        let buffer = Buffer::from_vec(bytes.to_vec());
        let span = buffer.span();
        self.run(|handle| handle.pwrite(buffer, span, offset, flags)).1
    }
}

#[test]
fn every_read_is_what_the_parts_hold() {
    let bench = bench();
    for (offset, length) in [(0, 1), (990, 20), (999, 1), (1000, 65536), (60_000, 100_000), (196_000, 5000)] {
        let expected = &bench.model[offset..][..length];
        assert!(bench.read(offset as u64, length as u32) == expected, "{offset} {length}");
    }
    assert!(bench.read(0, bench.model.len() as u32) == bench.model);
}

#[test]
fn writes_go_to_the_files_and_change_nothing_else() {
    let mut bench = bench();
    let second = bench.model.len() - FILE;
    for (at, length) in [(1000, 10), (1000 + FILE - 5, 5), (second, 4096)] {
        bench.write(at as u64, &vec![0x55; length], Flags::FUA).unwrap();
        bench.model[at..at + length].fill(0x55);
    }
    // What is there may be written again, also across the parts.
    let across = bench.model[500..2000].to_vec();
    bench.write(500, &across, Flags::NONE).unwrap();
    for (at, byte) in [(0, 0), (999, 0), (second as u64 - 1, 1)] {
        assert_eq!(bench.write(at, &[byte], Flags::NONE).unwrap_err().errno(), Errno::Eio, "{at}");
    }
    assert!(bench.read(0, bench.model.len() as u32) == bench.model);
    let mut byte = [0];
    bench.files[1].read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [0x55]);
    bench.run(|handle| handle.flush()).unwrap();
    bench.run(|handle| handle.cache(0, 4096)).unwrap();
}

#[test]
fn zeroes_are_made_in_files_and_refused_in_a_table() {
    let mut bench = bench();
    let flags = Flags { may_trim: true, ..Flags::NONE };
    let zero = |bench: &Bench, offset, length| bench.run(|handle| handle.zero(offset, length, flags));
    match zero(&bench, 2000, 8192) {
        Ok(()) => bench.model[2000..2000 + 8192].fill(0),
        Err(error) => assert_eq!(error.errno(), Errno::Enotsup),
    }
    assert_eq!(zero(&bench, 0, 1000).unwrap_err().errno(), Errno::Eio);
    bench.run(|handle| handle.trim(0, 1000, Flags::NONE)).unwrap();
    assert!(bench.read(0, bench.model.len() as u32) == bench.model);
}

#[test]
fn extents_tell_the_holes_of_files_and_the_padding() {
    let bench = bench();
    let size = bench.model.len() as u64;
    for (offset, length) in [(0, size), (500, 1000), (70_000, 1), (size - 1, 1)] {
        let extents = bench.run(|handle| handle.extents(offset, length, Flags::NONE)).unwrap();
        assert_eq!(extents.as_slice()[0].offset, offset);
        assert_eq!(extents.next_offset(), offset + length);
        for extent in extents.as_slice() {
            let bytes = &bench.model[extent.offset as usize..extent.end() as usize];
            assert!(!extent.zero || bytes.iter().all(|byte| *byte == 0), "{extent:?}");
        }
    }
    let all = bench.run(|handle| handle.extents(0, size, Flags::NONE)).unwrap();
    assert!(all.as_slice().iter().filter(|extent| extent.hole).count() >= 2, "{all:?}");
}

#[test]
fn a_disk_of_one_file_that_may_not_be_written_is_read_only() {
    let file = DiskFile::open(&std::env::current_exe().unwrap(), Access::WriteIfPermitted).unwrap();
    let handle = AssembledHandle::new(Arc::new(AssembledDisk::of_file(file).unwrap()));
    let Op::Ready(Ok(can)) = handle.can() else { panic!("it does not wait") };
    assert!(!can.write && !can.trim && can.multi_conn);
}
