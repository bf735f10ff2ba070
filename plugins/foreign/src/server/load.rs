//! Loads a plugin: starts its process, and describes the plugin to the program.

use std::path::Path;
use std::sync::{Mutex, OnceLock};

use rbdkit_launcher::{Launcher, Order};
use rbdkit_plugin_api::text::plain;
use rbdkit_plugin_api::{ConfigError, OtherKeys, Plugin, PluginInfo, stdin};

use super::module::{Module, how_it_ended, log};
use super::plugin::ForeignPlugin;
use super::start::{NAME, Words, start_only};
use crate::setup::{Failure, Hello, Setup, Switches, model};
use crate::wire::shown;

/// The plugin of this process. A server has one.
static MODULE: OnceLock<Module> = OnceLock::new();

/// How the program uses a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Whether debug messages are wanted.
    pub verbose: bool,
    /// The most requests of one connection that the plugin serves at a time.
    pub threads: u32,
    /// Whether the server goes into the background.
    pub background: bool,
    /// Debug flags: the plugin's name, the flag's, and the value.
    pub debug_flags: Vec<(String, String, i32)>,
}

/// Loads the plugin in a file, and describes it.
///
/// # Errors
/// One line: it cannot be loaded.
pub fn load(file: &Path, options: LoadOptions) -> Result<(PluginInfo, &'static Module), ConfigError> {
    let shown_file = file.display();
    let failed = |why: String| ConfigError::new(format!("cannot open plugin '{shown_file}': {why}"));
    if let Some(module) = MODULE.get() {
        return Err(failed(format!("a server has one plugin of nbdkit, and this one has {} already", module.name)));
    }
    let directory = std::env::current_dir().map_err(|error| failed(plain(&error)))?;
    // The dynamic linker looks for a name without a slash in the system's directories.
    let file = directory.join(file);
    if let Err(error) = std::fs::File::open(&file) {
        return Err(failed(plain(&error)));
    }
    let LoadOptions { verbose, threads, background, debug_flags } = options;
    let switches = Switches { verbose, stdio_safe: stdin::check().is_ok(), threads, background, debug_flags };
    let words = Words {
        file: file.into(),
        directory: directory.into(),
        switches: switches.clone(),
        thread_model: String::new(),
        parameters: Vec::new(),
    };
    let launcher = Launcher::new(NAME, start_only, words.to_vec());
    let (mut ends, program) =
        launcher.launch("the plugin", &Order::default()).map_err(|error| failed(plain(&error)))?;
    let control = ends.pop().ok_or_else(|| failed("it has no socket".into()))?;
    let input = stdin::check().ok().and_then(|()| rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok());
    let setup = match Setup::begin(control, switches, input, &mut log) {
        Ok(setup) => setup,
        Err(Failure::Refused(why)) => return Err(ConfigError::new(why)),
        Err(Failure::Ended) => return Err(failed(format!("the plugin's process {}", how_it_ended(program)))),
    };
    let hello = setup.hello.clone();
    let max_thread_model = model(hello.max_thread_model).ok_or_else(|| failed("it has no thread model".into()))?;
    let name: &'static str = String::leak(shown(hello.name.as_bytes()));
    let conversation = Mutex::new(Some((setup, program)));
    let module = MODULE.get_or_init(|| Module { name, words, hello, max_thread_model, conversation });
    Ok((info(module), module))
}

fn info(module: &'static Module) -> PluginInfo {
    let Hello { longname, description, .. } = &module.hello;
    PluginInfo {
        name: module.name,
        longname: longname.as_deref().unwrap_or(module.name),
        description: description.as_deref().unwrap_or_default(),
        params: || MODULE.get().map(Module::params).unwrap_or_default(),
        other_keys: Some(OtherKeys { form: "", help: "" }),
        max_thread_model: module.max_thread_model,
        make: || Box::new(ForeignPlugin::new(MODULE.get())) as Box<dyn Plugin>,
    }
}
