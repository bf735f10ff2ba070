//! The disk below the filter: every 8-byte word holds its own offset, or a file is read.
//!
//! It records the operations that reach it. What is written is kept in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, ConfigError, Done, Errno, Extents, Flags, Handle, Op, OpenArgs, Param, Plugin,
    PluginInfo, Result, Span, ThreadModel, lock,
};

use crate::error::Error;
use crate::file_disk::open_regular;

/// The parameters of the disk. The disk itself is made by [`OffsetDisk::plugin`].
pub const INFO: PluginInfo = PluginInfo {
    name: "disk",
    longname: "disk of rbdkit-filter call",
    description: "A disk on which every word holds its offset",
    params: || vec![ParamSpec::size("size").help("Size of the disk")],
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(OffsetDiskPlugin(Arc::new(OffsetDisk::new(None)))),
};

/// The bytes of a page, which is the unit in which writes are kept.
const PAGE: u64 = 4096;

/// How many operations are kept. The rest is counted.
const MAX_SEEN: usize = 1000;

/// The operations that reached the disk.
#[derive(Clone, Debug, Default)]
pub struct DiskLog {
    pub operations: Vec<String>,
    /// How many more there were.
    pub left_out: u64,
}

#[derive(Default)]
struct WrittenPages {
    size: u64,
    /// The pages that were written, by number.
    written: BTreeMap<u64, Vec<u8>>,
}

/// The disk.
pub struct OffsetDisk {
    file: Option<File>,
    content: Mutex<WrittenPages>,
    seen: Mutex<DiskLog>,
}

impl OffsetDisk {
    fn new(file: Option<File>) -> OffsetDisk {
        OffsetDisk { file, content: Mutex::default(), seen: Mutex::default() }
    }

    /// A disk of words that hold their offsets.
    pub fn of_offsets() -> Arc<OffsetDisk> {
        Arc::new(OffsetDisk::new(None))
    }

    /// A disk with the content of a file, which is only read. Returns its size too.
    ///
    /// # Errors
    /// The file cannot be opened, or is no regular file.
    pub fn of_file(path: &Path) -> Result<(Arc<OffsetDisk>, u64), Error> {
        let (file, size) = open_regular(path).map_err(Error::file("cannot open", path))?;
        Ok((Arc::new(OffsetDisk::new(Some(file))), size))
    }

    /// The plugin that serves the disk.
    pub fn plugin(self: &Arc<OffsetDisk>) -> Box<dyn Plugin> {
        Box::new(OffsetDiskPlugin(Arc::clone(self)))
    }

    /// What reached it since the last time.
    pub fn take_seen(&self) -> DiskLog {
        std::mem::take(&mut lock(&self.seen))
    }

    fn saw(&self, operation: String) {
        let mut seen = lock(&self.seen);
        match seen.operations.len() < MAX_SEEN {
            true => seen.operations.push(operation),
            false => seen.left_out += 1,
        }
    }

    /// Makes the bytes of a page.
    fn page(&self, content: &WrittenPages, number: u64) -> Result<Vec<u8>> {
        if let Some(page) = content.written.get(&number) {
            return Ok(page.clone());
        }
        let begin = number * PAGE;
        let Some(file) = &self.file else {
            return Ok((begin..begin + PAGE).step_by(8).flat_map(u64::to_be_bytes).collect());
        };
        let mut page = vec![0; PAGE as usize];
        let mut filled = 0;
        while filled < page.len() {
            match file.read_at(&mut page[filled..], begin + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Errno::Eio.into()),
            }
        }
        Ok(page)
    }

    fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>> {
        let content = lock(&self.content);
        let end = offset + u64::from(length);
        let mut bytes = Vec::with_capacity(length as usize);
        for number in offset / PAGE..end.div_ceil(PAGE) {
            let (page, begin) = (self.page(&content, number)?, number * PAGE);
            let from = offset.saturating_sub(begin) as usize;
            bytes.extend_from_slice(&page[from..(end - begin).min(PAGE) as usize]);
        }
        Ok(bytes)
    }

    /// Calls `change` with each part of a range and its position in the range.
    fn write(&self, offset: u64, length: u64, mut change: impl FnMut(&mut [u8], usize)) -> Result<()> {
        let mut content = lock(&self.content);
        let end = offset + length;
        for number in offset / PAGE..end.div_ceil(PAGE) {
            let (mut page, begin) = (self.page(&content, number)?, number * PAGE);
            let from = offset.saturating_sub(begin);
            let to = (end - begin).min(PAGE);
            change(&mut page[from as usize..to as usize], (begin + from - offset) as usize);
            content.written.insert(number, page);
        }
        Ok(())
    }
}

/// The largest range that is trimmed or zeroed: all of it is kept in memory.
const MAX_CHANGE: u64 = 1 << 30;

struct OffsetDiskPlugin(Arc<OffsetDisk>);

impl Plugin for OffsetDiskPlugin {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => lock(&self.0.content).size = param.size()?,
            _ => return Err(param.unknown("disk")),
        }
        Ok(())
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let write = self.0.file.is_none() && !args.readonly;
        let handle = OffsetDiskHandle { disk: Arc::clone(&self.0), write };
        Box::pin(async move { Ok(Arc::new(handle) as Arc<dyn Handle>) })
    }
}

struct OffsetDiskHandle {
    disk: Arc<OffsetDisk>,
    write: bool,
}

impl Handle for OffsetDiskHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(lock(&self.disk.content).size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities { write: self.write, ..Capabilities::NATIVE }))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.disk.saw(format!("pread {offset} {}", span.len));
        let result = self.disk.read(offset, span.len).map(|bytes| buffer.put(span.at, &bytes));
        Op::Ready((buffer, result))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        self.disk.saw(format!("pwrite {offset} {}{}", span.len, words(flags)));
        let bytes = buffer.data(span);
        let result =
            self.disk.write(offset, span.len.into(), |part, at| part.copy_from_slice(&bytes[at..at + part.len()]));
        Op::Ready((buffer, result))
    }

    fn flush(&self) -> Op<Result<()>> {
        self.disk.saw("flush".to_string());
        Op::Ready(Ok(()))
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.disk.saw(format!("trim {offset} {length}{}", words(flags)));
        Op::Ready(self.disk.clear(offset, length))
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.disk.saw(format!("zero {offset} {length}{}", words(flags)));
        Op::Ready(self.disk.clear(offset, length))
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.disk.saw(format!("cache {offset} {length}"));
        Op::Ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        self.disk.saw(format!("extents {offset} {length}{}", words(flags)));
        let mut extents = Extents::new(offset, length);
        extents.push(length, false, false);
        Op::Ready(Ok(extents))
    }
}

impl OffsetDisk {
    fn clear(&self, offset: u64, length: u64) -> Result<()> {
        if length > MAX_CHANGE {
            return Err(Errno::Einval.into());
        }
        self.write(offset, length, |part, _| part.fill(0))
    }
}

fn words(flags: Flags) -> String {
    let all = [
        (flags.fua, " fua"),
        (flags.may_trim, " may-trim"),
        (flags.fast_zero, " fast-zero"),
        (flags.req_one, " req-one"),
    ];
    all.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_its_offset_until_it_is_written() {
        let disk = OffsetDisk::of_offsets();
        assert_eq!(disk.read(4088, 16).unwrap(), [0, 0, 0, 0, 0, 0, 0x0f, 0xf8, 0, 0, 0, 0, 0, 0, 0x10, 0]);
        assert_eq!(disk.read(4103, 2).unwrap(), [0, 0]);
        let bytes: Vec<u8> = (1..=10).collect();
        disk.write(4090, 10, |part, at| part.copy_from_slice(&bytes[at..at + part.len()])).unwrap();
        assert_eq!(disk.read(4088, 13).unwrap(), [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]);
        assert_eq!(disk.read(0x123_4560, 8).unwrap(), 0x123_4560u64.to_be_bytes());
    }
}
