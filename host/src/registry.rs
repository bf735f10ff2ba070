//! The built-in plugins and filters. No other file names them.
//!
//! A plugin is a crate `plugins/NAME` with a `pub const INFO`. Add it to [`PLUGINS`] and to the
//! dependencies in `host/Cargo.toml`. The build script embeds every component in `target/filters`
//! as a filter.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use rbdkit_parameters::nearest;
use rbdkit_plugin_api::secrets::without_userinfo;
use rbdkit_plugin_api::{ConfigError, PluginInfo};
use rbdkit_plugin_foreign::{LoadOptions, Module, find};
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
    rbdkit_plugin_object::INFO,
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
    rbdkit_plugin_foreign::START,
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

/// Other names of plugins: what nbdkit calls them.
const PLUGIN_ALIASES: &[(&str, &str)] = &[("S3", "object")];

/// Other names of embedded filters: what nbdkit calls the filter, or qemu the format.
const FILTER_ALIASES: &[(&str, &str)] = &[("qcow2dec", "qcow2"), ("vpc", "vhd")];

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

/// What the program needs to load a plugin of nbdkit.
#[derive(Clone, Debug, Default)]
pub struct ForeignOptions {
    /// Where such plugins are (`--plugindir`); none for nbdkit's directory.
    pub directory: Option<PathBuf>,
    /// Whether debug messages are wanted.
    pub verbose: bool,
    /// The most requests of one connection that the plugin serves at a time; none for the default.
    pub threads: Option<u32>,
    /// Whether the server goes into the background.
    pub background: bool,
    /// Debug flags: the plugin's name, the flag's, and the value.
    pub debug_flags: Vec<(String, String, i32)>,
}

/// nbdkit's default of `--threads`, which its plugins expect.
const FOREIGN_THREADS: u32 = 16;

/// A plugin that the command line names.
#[derive(Clone, Copy)]
pub struct Found {
    /// What is known of it.
    pub info: &'static PluginInfo,
    /// Not none for a plugin of nbdkit.
    pub foreign: Option<&'static Module>,
}

/// Whether a word names a built-in plugin. They win over nbdkit's plugins of the same name.
pub fn is_built_in(word: &str) -> bool {
    let word = own_plugin_name(word);
    PLUGINS.iter().any(|info| info.name == word)
}

/// The own name of a plugin that has another one.
fn own_plugin_name(name: &str) -> &str {
    PLUGIN_ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, own)| own)
}

/// The plugin that a word of the command line stands for: a built-in one, one of nbdkit's by its
/// name, or one in a file. A plugin of nbdkit is loaded, in a process of its own.
///
/// # Errors
/// One line: there is no such plugin, or it cannot be loaded.
pub fn find_plugin(word: &str, options: &ForeignOptions) -> Result<Found, ConfigError> {
    let file = match find::is_file(word) {
        true => PathBuf::from(word),
        false if is_built_in(word) => return Ok(Found { info: plugin(word)?, foreign: None }),
        false => match find::by_name(word, options.directory.as_deref()) {
            Some(file) => file,
            None => return Err(plugin(word).err().unwrap_or_else(|| ConfigError::new("no such plugin"))),
        },
    };
    let load_options = LoadOptions {
        verbose: options.verbose,
        threads: options.threads.unwrap_or(FOREIGN_THREADS),
        background: options.background,
        debug_flags: options.debug_flags.clone(),
    };
    let (info, module) = rbdkit_plugin_foreign::load(&file, load_options)?;
    // Once in the life of the program.
    Ok(Found { info: Box::leak(Box::new(info)), foreign: Some(module) })
}

/// Runs a plugin of nbdkit, if this process was started for it; the process ends with the returned
/// status then.
pub fn serve_foreign_plugin_if_asked() -> Option<std::process::ExitCode> {
    rbdkit_plugin_foreign::serve_if_asked()
}

/// The directories in which nbdkit's plugins may be, the likeliest first.
pub fn foreign_directories() -> &'static [PathBuf] {
    find::directories()
}

/// The directory of nbdkit's plugins, if there is one.
pub fn foreign_directory() -> Option<PathBuf> {
    find::directory()
}

/// The embedded filter of the same name as the filter of nbdkit in this file.
pub fn filter_like(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_str()?.strip_suffix(".so")?;
    let name = name.strip_prefix("nbdkit-").unwrap_or(name);
    let name = name.strip_suffix("-filter").unwrap_or(name);
    let name = canonical(name);
    filters().find(|filter| *filter == name)
}

/// The own name of an embedded filter that has another one.
fn canonical(name: &str) -> &str {
    FILTER_ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, own)| own)
}

/// The built-in plugin of this name.
///
/// # Errors
/// One line that lists the plugins.
pub fn plugin(name: &str) -> Result<&'static PluginInfo, ConfigError> {
    let own = own_plugin_name(name);
    PLUGINS.iter().find(|info| info.name == own).ok_or_else(|| {
        if name.contains('/') || name.ends_with(".so") {
            // Perhaps a URL without the name of a plugin before it.
            let name = without_userinfo(name);
            return ConfigError::new(format!(
                "cannot open plugin '{name}': plugins are built into this program, native .so plugins cannot be loaded"
            ));
        }
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
    let own = canonical(name);
    FILTERS.iter().find(|(known, _)| *known == own).map(|(_, component)| *component).ok_or_else(|| {
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
