//! The pattern plugin: a read-only disk in which every 8 bytes hold their own offset, as a 64 bit
//! big endian number.
//!
//! Any 16 bytes tell where they came from, so a test can find a client or a filter that mixes up
//! offsets.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::sync::Arc;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Buffer, Capabilities, ConfigError, Done, Handle, Op, OpenArgs, Param, Plugin, PluginInfo,
    Result, Span, Support, ThreadModel,
};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "pattern",
    longname: "rbdkit pattern plugin",
    description: "A read-only disk in which every 8 bytes hold their own offset",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Pattern { size: None }),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::size("size").magic().required().help("Size of the disk")]
}

struct Pattern {
    size: Option<u64>,
}

impl Plugin for Pattern {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = Some(param.size()?),
            _ => return Err(param.unknown("pattern")),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        match self.size {
            Some(_) => Ok(()),
            None => Err(ConfigError::new("pattern: size=SIZE has to be given, for example size=1G or just 1G")),
        }
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        vec!["can_multi_conn", "can_cache"]
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle: Arc<dyn Handle> = Arc::new(PatternHandle { size: self.size.unwrap_or(0) });
        Box::pin(async move { Ok(handle) })
    }
}

struct PatternHandle {
    size: u64,
}

impl Handle for PatternHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        // There is nothing to prefetch, so the default of cache, which succeeds and does nothing,
        // is native.
        Op::Ready(Ok(Capabilities { multi_conn: true, cache: Support::Native, ..Capabilities::READ_ONLY }))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let Ok(()) = buffer.fill_with(span, |bytes| {
            fill(bytes, offset);
            Ok::<_, Infallible>(())
        });
        Op::Ready((buffer, Ok(())))
    }
}

/// Writes the pattern at `offset`. The bytes lie within 2^63.
fn fill(bytes: &mut [u8], offset: u64) {
    // Of a word that begins before `offset`, only the last bytes are wanted.
    let within = (offset % 8) as usize;
    let head = if within == 0 { 0 } else { (8 - within).min(bytes.len()) };
    let (first, rest) = bytes.split_at_mut(head);
    first.copy_from_slice(&(offset - within as u64).to_be_bytes()[within..within + head]);

    let mut word = offset + head as u64;
    let (words, last) = rest.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = word.to_be_bytes();
        word += 8;
    }
    last.copy_from_slice(&word.to_be_bytes()[..last.len()]);
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use rbdkit_plugin_api::{Errno, Flags};

    use super::*;

    fn ready<T>(op: Op<T>) -> T {
        match op {
            Op::Ready(answer) => answer,
            _ => panic!("the pattern plugin never waits"),
        }
    }

    /// The pattern's definition, byte by byte.
    fn expected(offset: u64) -> u8 {
        (offset & !7).to_be_bytes()[(offset % 8) as usize]
    }

    #[test]
    fn every_8_bytes_hold_their_offset() {
        for base in [0, 8, 0x1234_5678, i64::MAX as u64 - 100] {
            for shift in 0..9 {
                for length in 1..40 {
                    let offset = base + shift;
                    let handle = PatternHandle { size: i64::MAX as u64 };
                    let span = Span::new(3, length);
                    let (mut buffer, result) = ready(handle.pread(Buffer::new(length + 5), span, offset));
                    result.unwrap();
                    let wanted: Vec<u8> = (offset..offset + u64::from(length)).map(expected).collect();
                    assert_eq!(buffer.bytes(span), wanted, "offset {offset} length {length}");
                }
            }
        }
    }

    #[test]
    fn it_is_read_only() {
        let handle = PatternHandle { size: 16 };
        assert!(!ready(handle.can()).unwrap().write);
        let buffer = Buffer::from_vec(vec![0; 8]);
        let span = buffer.span();
        let (_, result) = ready(handle.pwrite(buffer, span, 0, Flags::NONE));
        assert_eq!(result.unwrap_err().errno(), Errno::Erofs);
    }

    #[test]
    fn the_size_is_required() {
        let mut plugin = Pattern { size: None };
        assert!(plugin.config_complete().unwrap_err().to_string().contains("size=SIZE"));
        plugin.config(Param { key: "size", value: OsStr::new("9223372036854775807") }).unwrap();
        plugin.config_complete().unwrap();
        assert_eq!(plugin.size, Some(i64::MAX as u64));
        let unknown = plugin.config(Param { key: "foo", value: OsStr::new("1") }).unwrap_err();
        assert!(unknown.to_string().contains("unknown parameter 'foo'"));
    }
}
