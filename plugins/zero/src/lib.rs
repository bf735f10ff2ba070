//! The zero plugin: a disk of 0 bytes.
#![forbid(unsafe_code)]

use rbdkit_plugin_api::{Buffer, ConfigError, Param, PluginInfo, Span, ThreadModel};
use rbdkit_synthetic::{Content, Plan, Synthetic};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "zero",
    longname: "rbdkit zero plugin",
    description: "A disk of 0 bytes",
    params: Vec::new,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Synthetic::<Zero>::default()),
};

#[derive(Default)]
struct Zero;

impl Plan for Zero {
    type Content = Empty;

    const FUNCTIONS: &'static [&'static str] = &["can_multi_conn", "can_cache"];

    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        Err(param.unknown("zero"))
    }

    fn content(&self) -> Result<Empty, ConfigError> {
        Ok(Empty)
    }
}

struct Empty;

impl Content for Empty {
    fn size(&self) -> u64 {
        0
    }

    // The gate lets no read pass, because none lies within the disk.
    fn read(&self, buffer: &mut Buffer, span: Span, _: u64) {
        buffer.set_zero(span);
    }
}
