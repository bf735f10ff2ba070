//! The disk below the filter that is measured: memory that is full of data.

use std::sync::{Arc, OnceLock, RwLock};

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, ConfigError, Done, Errno, Extents, Flags, Handle, Op, OpenArgs, Param, Plugin,
    PluginInfo, Result, Span, ThreadModel, read_lock, write_lock,
};

/// The parameters of the disk.
pub const INFO: PluginInfo = PluginInfo {
    name: "disk",
    longname: "disk of rbdkit-filter bench",
    description: "A disk in memory",
    params: || vec![ParamSpec::size("size").help("Size of the disk")],
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(MemoryDiskPlugin { size: 0, pieces: OnceLock::new() }),
};

/// The bytes of a piece. Requests to different pieces do not wait for each other.
const PIECE: u64 = 1 << 20;

/// The largest disk, which is all in memory.
const MAX_SIZE: u64 = 1 << 30;

type Pieces = Arc<Vec<RwLock<Vec<u8>>>>;

struct MemoryDiskPlugin {
    size: u64,
    pieces: OnceLock<Pieces>,
}

impl Plugin for MemoryDiskPlugin {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = param.size()?,
            _ => return Err(param.unknown("disk")),
        }
        match self.size {
            PIECE..=MAX_SIZE => Ok(()),
            _ => Err(param.error("the disk below the filter has 1M to 1G")),
        }
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        self.pieces.get_or_init(|| {
            let piece = || (0..PIECE).map(|at| (at % 251) as u8 + 1).collect();
            Arc::new((0..self.size.div_ceil(PIECE)).map(|_| RwLock::new(piece())).collect())
        });
        Ok(())
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let pieces = self.pieces.get().cloned();
        let (size, write) = (self.size, !args.readonly);
        Box::pin(async move {
            let pieces = pieces.ok_or(Errno::Enxio)?;
            Ok(Arc::new(MemoryDiskHandle { size, pieces, write }) as Arc<dyn Handle>)
        })
    }
}

struct MemoryDiskHandle {
    size: u64,
    pieces: Pieces,
    write: bool,
}

/// The parts of a range: piece, where it begins there, where it begins in the range, and its
/// length.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let end = offset + length;
    (offset / PIECE..end.div_ceil(PIECE)).map(move |number| {
        let begin = (number * PIECE).max(offset);
        let to = ((number + 1) * PIECE).min(end);
        (number as usize, (begin - number * PIECE) as usize, (begin - offset) as usize, (to - begin) as usize)
    })
}

impl MemoryDiskHandle {
    fn fill(&self, offset: u64, length: u64) {
        for (number, at, _, count) in parts(offset, length) {
            write_lock(&self.pieces[number])[at..at + count].fill(0);
        }
    }
}

impl Handle for MemoryDiskHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities { write: self.write, fast_zero: false, ..Capabilities::NATIVE }))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        for (number, at, place, count) in parts(offset, span.len.into()) {
            let piece = read_lock(&self.pieces[number]);
            buffer.put(span.at + place as u32, &piece[at..at + count]);
        }
        Op::Ready((buffer, Ok(())))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _: Flags) -> Op<Done> {
        let bytes = buffer.data(span);
        for (number, at, place, count) in parts(offset, span.len.into()) {
            write_lock(&self.pieces[number])[at..at + count].copy_from_slice(&bytes[place..place + count]);
        }
        Op::Ready((buffer, Ok(())))
    }

    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn trim(&self, _: u64, _: u64, _: Flags) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn zero(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        self.fill(offset, length);
        Op::Ready(Ok(()))
    }

    fn cache(&self, _: u64, _: u64) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64, _: Flags) -> Op<Result<Extents>> {
        let mut extents = Extents::new(offset, length);
        extents.push(length, false, false);
        Op::Ready(Ok(extents))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_pieces() {
        let all = |offset, length| parts(offset, length).collect::<Vec<_>>();
        assert_eq!(all(0, 1), [(0, 0, 0, 1)]);
        assert_eq!(all(PIECE - 2, 5), [(0, PIECE as usize - 2, 0, 2), (1, 0, 2, 3)]);
        assert_eq!(all(PIECE, PIECE), [(1, 0, 0, PIECE as usize)]);
    }
}
