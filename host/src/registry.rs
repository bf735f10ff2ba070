//! The built-in plugins and filters. No other file names them.
//!
//! A plugin is a crate `plugins/NAME` with a `pub const INFO`. Add it to [`PLUGINS`] and to the
//! dependencies in `host/Cargo.toml`. The build script embeds every component in `target/filters`
//! as a filter.
#![forbid(unsafe_code)]

use rbdkit_parameters::nearest;
use rbdkit_plugin_api::secrets::without_userinfo;
use rbdkit_plugin_api::{ConfigError, PluginInfo};
use rbdkit_sandbox::{Power, Powers};

/// The plugins, in alphabetical order.
const PLUGINS: &[PluginInfo] = &[
    rbdkit_plugin_cdi::INFO,
    rbdkit_plugin_curl::INFO,
    rbdkit_plugin_data::INFO,
    rbdkit_plugin_eval::INFO,
    rbdkit_plugin_example1::INFO,
    rbdkit_plugin_example2::INFO,
    rbdkit_plugin_example3::INFO,
    rbdkit_plugin_example4::INFO,
    rbdkit_plugin_file::INFO,
    rbdkit_plugin_floppy::INFO,
    rbdkit_plugin_full::INFO,
    rbdkit_plugin_info::INFO,
    rbdkit_plugin_iso::INFO,
    rbdkit_plugin_linuxdisk::INFO,
    rbdkit_plugin_memory::INFO,
    rbdkit_plugin_nbd::INFO,
    rbdkit_plugin_null::INFO,
    rbdkit_plugin_ondemand::INFO,
    rbdkit_plugin_ones::INFO,
    rbdkit_plugin_partitioning::INFO,
    rbdkit_plugin_pattern::INFO,
    rbdkit_plugin_random::INFO,
    rbdkit_plugin_sh::INFO,
    rbdkit_plugin_sparse_random::INFO,
    rbdkit_plugin_split::INFO,
    rbdkit_plugin_ssh::INFO,
    rbdkit_plugin_tmpdisk::INFO,
    rbdkit_plugin_zero::INFO,
];

/// How a helper process starts programs for plugins and filters, because a confined server cannot.
pub const STARTS: &[(&str, rbdkit_launcher::Start)] = &[
    rbdkit_launcher::SHELL,
    (rbdkit_plugin_curl::INFO.name, rbdkit_plugin_curl::START),
    (rbdkit_plugin_nbd::INFO.name, rbdkit_plugin_nbd::START),
    (rbdkit_plugin_ondemand::INFO.name, rbdkit_plugin_ondemand::START),
    (rbdkit_plugin_ssh::INFO.name, rbdkit_plugin_ssh::START),
    (rbdkit_plugin_tmpdisk::INFO.name, rbdkit_plugin_tmpdisk::START),
];

/// How a helper process opens files for plugins, because a confined server may open only what it
/// knew when it started.
pub const OPENS: &[(&str, rbdkit_launcher::Open)] =
    &[rbdkit_plugin_example3::OPEN, rbdkit_plugin_file::OPEN, rbdkit_plugin_ondemand::OPEN];

/// Name and component of each embedded filter, in alphabetical order.
const FILTERS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// The powers of embedded filters that exist to use them. A filter from a file has none, whatever
/// it calls itself.
const POWERS: &[(&str, Power)] = &[
    ("blocksize-policy", Power::Disconnect),
    ("exitlast", Power::Shutdown),
    ("exitwhen", Power::Shutdown),
    ("time-limit", Power::Disconnect),
];

/// All plugins.
pub fn plugins() -> impl Iterator<Item = &'static PluginInfo> {
    PLUGINS.iter()
}

/// The names of all embedded filters.
pub fn filters() -> impl Iterator<Item = &'static str> {
    FILTERS.iter().map(|(name, _)| *name)
}

/// The powers of the embedded filter of this name.
pub fn powers(name: &str) -> Powers {
    let own = POWERS.iter().filter(|(filter, _)| *filter == name);
    own.fold(Powers::default(), |powers, (_, power)| powers.with(*power))
}

/// The plugin of this name.
///
/// # Errors
/// One line that lists the plugins.
pub fn plugin(name: &str) -> Result<&'static PluginInfo, ConfigError> {
    PLUGINS.iter().find(|info| info.name == name).ok_or_else(|| {
        let names: Vec<&str> = plugins().map(|info| info.name).collect();
        let near = nearest(name, names.iter().copied());
        let name = without_userinfo(name);
        ConfigError::new(match near {
            Some(near) => format!("cannot open plugin '{name}': did you mean {near}? There are {}", names.join(", ")),
            None => format!("cannot open plugin '{name}': there are {}", names.join(", ")),
        })
    })
}

/// The component of the embedded filter of this name.
///
/// # Errors
/// One line that lists the filters.
pub fn filter(name: &str) -> Result<&'static [u8], ConfigError> {
    FILTERS.iter().find(|(known, _)| *known == name).map(|(_, component)| *component).ok_or_else(|| {
        let there_are = match FILTERS.is_empty() {
            true => "none is embedded in this program".to_string(),
            false => format!("there are {}", filters().collect::<Vec<_>>().join(", ")),
        };
        let near = nearest(name, filters()).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
        ConfigError::new(format!(
            "cannot open filter '{name}': {near}{there_are} (--wasm-filter FILE takes one of your own)"
        ))
    })
}

#[cfg(test)]
mod tests;
