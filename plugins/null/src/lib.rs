//! The null plugin: a disk that discards all writes and reads as zero.
//!
//! The plugin does no work, so it serves to measure what the server and the filters cost.
#![forbid(unsafe_code)]

use std::sync::Arc;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Buffer, Capabilities, ConfigError, DISK_FUNCTIONS, Done, Extents, Flags, Handle, Op,
    OpenArgs, Param, Plugin, PluginInfo, RangeCommand, Result, Span, ThreadModel,
};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "null",
    longname: "rbdkit null plugin",
    description: "A disk that discards what is written and reads as zeroes",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Null { size: 0 }),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::size("size").magic().default_value("0").help("Size of the disk")]
}

struct Null {
    size: u64,
}

impl Plugin for Null {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = param.size()?,
            _ => return Err(param.unknown("null")),
        }
        Ok(())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own = ["can_write", "can_flush"];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle: Arc<dyn Handle> = Arc::new(NullHandle { size: self.size });
        Box::pin(async move { Ok(handle) })
    }
}

struct NullHandle {
    size: u64,
}

impl Handle for NullHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities::NATIVE))
    }

    fn takes_long(&self, _: RangeCommand) -> bool {
        true
    }

    fn pread(&self, mut buffer: Buffer, span: Span, _: u64) -> Op<Done> {
        buffer.set_zero(span);
        Op::Ready((buffer, Ok(())))
    }

    fn pwrite(&self, buffer: Buffer, _: Span, _: u64, _: Flags) -> Op<Done> {
        Op::Ready((buffer, Ok(())))
    }

    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn trim(&self, _: u64, _: u64, _: Flags) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn zero(&self, _: u64, _: u64, _: Flags) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64, _: Flags) -> Op<Result<Extents>> {
        let mut extents = Extents::new(offset, length);
        extents.push(self.size - offset, true, true);
        Op::Ready(Ok(extents))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use rbdkit_plugin_api::Fill;

    use super::*;

    fn ready<T>(op: Op<T>) -> T {
        match op {
            Op::Ready(answer) => answer,
            _ => panic!("the null plugin never waits"),
        }
    }

    fn config(plugin: &mut dyn Plugin, key: &str, value: &str) -> Result<(), ConfigError> {
        plugin.config(Param { key, value: OsStr::new(value) })
    }

    #[test]
    fn what_is_written_reads_as_zero() {
        let handle = NullHandle { size: 1 << 20 };
        let written = Buffer::from_vec(vec![7; 512]);
        let span = written.span();
        let (mut buffer, result) = ready(handle.pwrite(written, span, 4096, Flags::FUA));
        result.unwrap();
        buffer.put(0, &[1]);
        let (buffer, result) = ready(handle.pread(buffer, span, 4096));
        result.unwrap();
        assert_eq!(buffer.fills().collect::<Vec<_>>(), [(span, Fill::Zero)]);
    }

    #[test]
    fn the_whole_disk_is_one_hole() {
        let handle = NullHandle { size: i64::MAX as u64 };
        let extents = ready(handle.extents(10, i64::MAX as u64 - 10, Flags::NONE)).unwrap();
        let [extent] = extents.as_slice() else { panic!("{extents:?}") };
        assert!(extent.hole && extent.zero && extent.offset == 10 && extent.end() == i64::MAX as u64);
    }

    #[test]
    fn the_size_is_optional_and_0() {
        let mut plugin = Null { size: 0 };
        plugin.config_complete().unwrap();
        assert_eq!(plugin.size, 0);
        config(&mut plugin, "size", "1G").unwrap();
        assert_eq!(plugin.size, 1 << 30);
        assert!(config(&mut plugin, "size", "-1").unwrap_err().to_string().starts_with("size=-1: "));
        assert!(config(&mut plugin, "foo", "1").unwrap_err().to_string().contains("unknown parameter 'foo'"));
    }
}
