//! Prints help, versions and configuration, instead of serving.

use std::fmt::Write as _;
use std::io::Write as _;

use rbdkit_parameters::{Missing, assign};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::text::plain;
use rbdkit_plugin_api::{ConfigError, Param, Plugin, PluginInfo, ThreadModel};
use rbdkit_sandbox::Module;
use rbdkit_server::ServerLimits;

use super::filters::Ends;
use super::layers;
use crate::cli::{Action, FilterSource, Plan, help};
use crate::registry::{self, Found};

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of nbdkit whose command line, parameters and messages this program follows. Scripts
/// that test nbdkit's version get this one.
pub const NBDKIT_VERSION: (u32, u32, u32) = (1, 46, 0);

/// The version of nbdkit's interface for plugins that the plugins correspond to.
const API_VERSION: &str = "2";

/// The size in bytes of nbdkit's structure with the functions of a plugin, on 64-bit machines. A
/// plugin with an older structure lacks the functions at its end; the built-in ones lack none.
const STRUCT_SIZE: &str = "384";

/// nbdkit's functions that every plugin has.
const FUNCTIONS: &[&str] =
    &["longname", "description", "config", "config_complete", "config_help", "open", "get_size", "pread"];

/// Prints what the plan asks for.
///
/// # Errors
/// One line if the plugin or a filter that is named cannot be loaded, or a parameter is wrong
/// (`--dump-plugin`).
pub fn print(program: &str, plan: &Plan) -> Result<(), ConfigError> {
    let text = match plan.action {
        Action::Help => help_text(plan)?,
        Action::Version => version(program, plan)?,
        Action::DumpConfig => dump_config(program),
        Action::DumpPlugin => dump_plugin(program, plan)?,
        Action::ShortOptions => help::short_options(),
        Action::LongOptions => help::long_options(),
        Action::Serve => return Ok(()),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that stops early (`| head`) is no error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(ConfigError::new(format!("cannot write to standard output: {}", plain(&error))))
        }
        _ => Ok(()),
    }
}

fn found(plan: &Plan) -> Result<Option<Found>, ConfigError> {
    plan.plugin.as_deref().map(|name| layers::find_plugin(plan, name)).transpose()
}

fn help_text(plan: &Plan) -> Result<String, ConfigError> {
    let plugin = found(plan)?;
    let filters = layers::load(plan, &Ends::default())?;
    if plugin.is_none() && filters.is_empty() {
        return Ok(help::usage(&ServerLimits::default().table(), registry::plugins(), registry::filters()));
    }
    let mut text = String::from(
        "Usage: rbdkit [OPTIONS] [--filter=NAME ...] PLUGIN [[KEY=]VALUE ...]    (rbdkit --help lists the options)\n",
    );
    for filter in &filters {
        let told = filter.description();
        text.push_str(&help::filter(&help::FilterHelp {
            name: &told.name,
            longname: &told.longname,
            help: &told.help,
            powers: filter.powers().names().collect(),
            specs: &told.params,
        }));
    }
    text.extend(plugin.map(|found| found.foreign.map_or_else(|| help::plugin(found.info), |foreign| foreign.help())));
    Ok(text)
}

/// The program's name and version. A program that is called `nbdkit`, perhaps with a `--name`, has
/// nbdkit's.
pub fn versions(program: &str) -> String {
    match program.split('[').next() {
        Some("nbdkit") => format!("nbdkit {} (rbdkit {VERSION})", nbdkit_version()),
        _ => format!("rbdkit {VERSION}"),
    }
}

fn nbdkit_version() -> String {
    let (major, minor, patch) = NBDKIT_VERSION;
    format!("{major}.{minor}.{patch}")
}

/// The version of the built-in plugins. nbdkit's own plugins have nbdkit's version, and scripts
/// compare it.
fn plugin_version(program: &str) -> String {
    if program == "nbdkit" { nbdkit_version() } else { VERSION.to_string() }
}

/// Scripts ask `--version` whether a plugin or filter can be loaded.
fn version(program: &str, plan: &Plan) -> Result<String, ConfigError> {
    let mut text = format!("{}\n", versions(program));
    let plugin = found(plan)?;
    for filter in layers::load(plan, &Ends::default())? {
        let told = filter.description();
        let _ = writeln!(text, "{} {}", told.name, told.version);
    }
    if let Some(Found { info, foreign }) = plugin {
        let version = match foreign {
            Some(foreign) => foreign.version().map(str::to_string),
            None => Some(plugin_version(program)),
        };
        let words = [Some(info.name.to_string()), version];
        let _ = writeln!(text, "{}", words.into_iter().flatten().collect::<Vec<_>>().join(" "));
    }
    Ok(text)
}

fn binary() -> String {
    std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default()
}

/// The keys are nbdkit's, and a few more. Scripts look for files in the directories, so each is one
/// where such files would be.
fn dump_config(program: &str) -> String {
    let binary = binary();
    let directory = binary.rsplit_once('/').map_or("/", |(directory, _)| directory);
    // `make install` puts the program into PREFIX/bin, and the filters below PREFIX/lib.
    let prefix = directory.strip_suffix("/bin").unwrap_or("/usr/local");
    let (libdir, mandir) = (format!("{prefix}/lib"), format!("{prefix}/share/man"));
    let (major, minor, _) = NBDKIT_VERSION;
    let plugindir = registry::foreign_directory().map_or(directory.into(), |path| path.display().to_string());
    let plugins: Vec<&str> = registry::plugins().map(|info| info.name).collect();
    let filters: Vec<&str> = registry::filters().collect();
    let lines: [(&str, &str); 30] = [
        ("binary", &binary),
        ("bindir", directory),
        ("exit_with_parent", "yes"),
        // Plugins and filters are part of the program.
        ("filterdir", directory),
        ("filters", &filters.join(" ")),
        ("host_cpu", std::env::consts::ARCH),
        ("host_os", "linux-gnu"),
        ("libdir", &libdir),
        ("mandir", &mandir),
        // Of nbdkit's interface between server and plugins.
        ("max_api_version", API_VERSION),
        ("name", program),
        // Where plugins of nbdkit are looked for.
        ("plugindir", &plugindir),
        ("plugins", &plugins.join(" ")),
        ("rbdkit_version", VERSION),
        ("root_tls_certificates_dir", "/etc/pki/nbdkit"),
        // --run without an option that says where to listen.
        ("run_default_socket", "unix"),
        ("sbindir", directory),
        ("selinux", "yes"),
        ("soext", "so"),
        ("sysconfdir", "/etc"),
        ("timeout_option", "yes"),
        ("tls", "yes"),
        ("version", &nbdkit_version()),
        ("version_extra", &format!("rbdkit {VERSION}")),
        ("version_major", &major.to_string()),
        ("version_minor", &minor.to_string()),
        ("vsock", "yes"),
        ("wasm_filter_interface", "rbdkit:filter@0.1.0"),
        ("wasm_filters", "yes"),
        ("zstd", "yes"),
    ];
    lines.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}

fn dump_plugin(program: &str, plan: &Plan) -> Result<String, ConfigError> {
    let Some(found) = found(plan)? else {
        return Ok(String::new());
    };
    let info = found.info;
    let filters = layers::load(plan, &Ends::default())?;
    // As in nbdkit the plugin gets its parameters, but does not have to be complete.
    let assignment = assign(&layers::declared(&filters, found), &plan.params, &plan.filter_params, Missing::Allowed)?;
    let mut plugin = (info.make)();
    for (key, value) in &assignment.plugin {
        plugin.config(Param { key, value })?;
    }
    let mut text = match found.foreign {
        Some(foreign) => foreign.dump()?,
        None => of_built_in(program, info, &*plugin, &filters),
    };
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key}={value}");
    };
    for (filter, source) in filters.iter().zip(&plan.filters) {
        let told = filter.description();
        let path = match source {
            FilterSource::File { path, .. } => {
                std::path::absolute(path).map_or_else(|_| path.display().to_string(), |path| path.display().to_string())
            }
            FilterSource::Registry(reference) => reference.to_string(),
            FilterSource::Named(_) => binary(),
        };
        line(&format!("{}_name", told.name), &told.name);
        line(&format!("{}_path", told.name), &path);
        line("filter", &told.name);
        line("filter_version", &told.version);
        line("filter_thread_model", told.thread_model.name());
        line("filter_transparent", if told.transparent { "yes" } else { "no" });
        line("filter_recovery", told.recovery);
        line("filter_exports", &told.exports.join(" "));
        line("filter_imports", &told.imports.join(" "));
        line("filter_params", &names(&told.params));
    }
    Ok(text)
}

/// The lines of a built-in plugin.
fn of_built_in(program: &str, info: &PluginInfo, plugin: &dyn Plugin, filters: &[Module]) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key}={value}");
    };
    line("path", &binary());
    line("name", info.name);
    line("version", &plugin_version(program));
    line("api_version", API_VERSION);
    line("struct_size", STRUCT_SIZE);
    line("max_thread_model", info.max_thread_model.name());
    let models = filters.iter().map(|filter| filter.description().thread_model);
    line("thread_model", models.fold(plugin.thread_model(), ThreadModel::min).name());
    line("errno_is_preserved", "1");
    if let Some(key) = info.magic_config_key() {
        line("magic_config_key", &key);
    }
    line("params", &names(&(info.params)()));
    for function in FUNCTIONS.iter().copied().chain(plugin.optional_functions()) {
        line(&format!("has_{function}"), "1");
    }
    for (key, value) in plugin.dump_plugin() {
        line(&key, &value);
    }
    text
}

fn names(specs: &[ParamSpec]) -> String {
    let names: Vec<&str> = specs.iter().filter(|spec| !spec.hidden).map(|spec| spec.name.as_str()).collect();
    names.join(" ")
}
