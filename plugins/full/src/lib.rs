//! The full plugin: a disk that reads as zero, and on which there is no space left to write.
#![forbid(unsafe_code)]

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    Buffer, Capabilities, ConfigError, Errno, Extents, Flags, Param, PluginInfo, Result, Span, Support, ThreadModel,
};
use rbdkit_synthetic::{Content, Plan, Synthetic, required_size};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "full",
    longname: "rbdkit full plugin",
    description: "A disk that has no space left: every write fails with ENOSPC",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Synthetic::<Full>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::size("size").magic().required().help("Size of the disk")]
}

#[derive(Default)]
struct Full {
    size: Option<u64>,
}

impl Plan for Full {
    type Content = FullDisk;

    const FUNCTIONS: &'static [&'static str] = &[
        "can_write",
        "can_multi_conn",
        "can_cache",
        "can_trim",
        "can_zero",
        "can_fast_zero",
        "can_extents",
        "pwrite",
        "trim",
        "zero",
        "extents",
    ];

    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = Some(param.size()?),
            _ => return Err(param.unknown("full")),
        }
        Ok(())
    }

    fn content(&self) -> Result<FullDisk, ConfigError> {
        Ok(FullDisk { size: required_size(self.size, "full")? })
    }
}

struct FullDisk {
    size: u64,
}

impl Content for FullDisk {
    fn size(&self) -> u64 {
        self.size
    }

    /// A write fails, so nothing ever has to be made durable.
    fn capabilities(&self) -> Capabilities {
        Capabilities { flush: false, fua: Support::None, zero: Support::Emulate, ..Capabilities::NATIVE }
    }

    fn read(&self, buffer: &mut Buffer, span: Span, _: u64) {
        buffer.set_zero(span);
    }

    fn write(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Errno::Enospc.into())
    }

    fn trim(&self, _: u64, _: u64) -> Result<()> {
        Err(Errno::Enospc.into())
    }

    fn extents(&self, offset: u64, length: u64, _: Flags) -> Extents {
        let mut extents = Extents::new(offset, length);
        extents.push(self.size - offset, true, true);
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_written() {
        let disk = FullDisk { size: 1 << 20 };
        assert_eq!(disk.write(&[0; 512], 0).unwrap_err().errno(), Errno::Enospc);
        assert_eq!(disk.trim(0, 512).unwrap_err().errno(), Errno::Enospc);
        // The gate writes the zeroes then, and a fast zero fails as nbdkit's does.
        assert_eq!(disk.zero(0, 512).unwrap_err().errno(), Errno::Enotsup);
    }

    #[test]
    fn the_size_is_required() {
        let error = Full::default().content().err().unwrap().to_string();
        assert_eq!(error, "full: size=SIZE has to be given, for example size=1G or just 1G");
    }
}
