//! A plugin that is loaded in its process and not configured yet: what the program can ask it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rbdkit_launcher::{Launcher, Order, Program};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, OtherKeys, Plugin, PluginInfo, ThreadModel, lock, stdin};

use super::plugin::ForeignPlugin;
use super::running::described;
use super::start::{NAME, Words, start_only};
use crate::setup::{Failure, Hello, Setup, Switches, model};
use crate::wire::{kind, shown};

/// The plugin of this process. A server has one.
static MODULE: OnceLock<Module> = OnceLock::new();

/// See the module.
pub struct Module {
    pub(crate) name: &'static str,
    pub(crate) words: Words,
    pub(crate) hello: Hello,
    pub(crate) max_thread_model: ThreadModel,
    /// The conversation with the process. None once the plugin runs.
    conversation: Mutex<Option<(Setup, Program)>>,
}

/// How the program uses a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Whether debug messages are wanted.
    pub verbose: bool,
    /// The most requests of one connection that the plugin serves at a time.
    pub threads: u32,
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
    let directory = std::env::current_dir().map_err(|error| failed(error.to_string()))?;
    // The dynamic linker looks for a name without a slash in the system's directories.
    let file = directory.join(file);
    if let Err(error) = std::fs::File::open(&file) {
        return Err(failed(error.to_string()));
    }
    let LoadOptions { verbose, threads, debug_flags } = options;
    let switches = Switches { verbose, stdio_safe: stdin::check().is_ok(), threads, debug_flags };
    let words = Words {
        file: file.into(),
        directory: directory.into(),
        switches: switches.clone(),
        thread_model: String::new(),
        parameters: Vec::new(),
    };
    let launcher = Launcher::new(NAME, start_only, words.to_vec());
    let (mut ends, program) =
        launcher.launch("the plugin", &Order::default()).map_err(|error| failed(error.to_string()))?;
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
    Ok((module.info(), module))
}

fn log(which: u8, text: &str) {
    match which {
        kind::ERROR => tracing::error!("{text}"),
        _ => tracing::debug!("{text}"),
    }
}

fn how_it_ended(program: Program) -> String {
    program.end().map_or_else(|error| error.to_string(), described)
}

impl Module {
    fn info(&'static self) -> PluginInfo {
        let Hello { longname, description, .. } = &self.hello;
        PluginInfo {
            name: self.name,
            longname: longname.as_deref().unwrap_or(self.name),
            description: description.as_deref().unwrap_or_default(),
            params: || MODULE.get().map(Module::params).unwrap_or_default(),
            other_keys: Some(OtherKeys { form: "", help: "" }),
            max_thread_model: self.max_thread_model,
            make: || Box::new(ForeignPlugin::new(MODULE.get())) as Box<dyn Plugin>,
        }
    }

    fn params(&self) -> Vec<ParamSpec> {
        self.hello.magic_config_key.iter().map(|key| ParamSpec::bytes(key).magic()).collect()
    }

    /// The key of the first word if it has none.
    pub fn first_key(&self) -> Option<&str> {
        self.hello.magic_config_key.is_none().then_some("script")
    }

    /// What `--help` shows of the plugin.
    pub fn help(&self) -> String {
        let Hello { longname, description, config_help, .. } = &self.hello;
        let mut text = format!("\nplugin: {} ({})\n", self.name, longname.as_deref().unwrap_or(self.name));
        text.push_str(&format!("({})\n", self.path().display()));
        for part in [description, config_help].into_iter().flatten() {
            text.push_str(part.trim_end());
            text.push('\n');
        }
        text
    }

    /// The plugin's file.
    pub fn path(&self) -> PathBuf {
        self.words.file.clone().into()
    }

    /// The plugin's own version, which may be none.
    pub fn version(&self) -> Option<&str> {
        self.hello.version.as_deref()
    }

    /// What `--dump-plugin` prints, after the plugin has got its parameters.
    ///
    /// # Errors
    /// The plugin's process has ended.
    pub fn dump(&self) -> Result<String, ConfigError> {
        let model = self.with(|setup| setup.thread_model(&mut log))?;
        let hello = &self.hello;
        let mut lines = vec![format!("path={}", self.path().display()), format!("name={}", self.name)];
        lines.extend(hello.version.iter().map(|version| format!("version={version}")));
        lines.push(format!("api_version={}", hello.api_version));
        lines.push(format!("struct_size={}", hello.struct_size));
        lines.push(format!("max_thread_model={}", self.max_thread_model));
        lines.push(format!("thread_model={model}"));
        lines.push(format!("errno_is_preserved={}", u8::from(hello.errno_is_preserved)));
        lines.extend(hello.magic_config_key.iter().map(|key| format!("magic_config_key={key}")));
        lines.extend(hello.functions.iter().map(|function| format!("has_{function}=1")));
        let mut text = lines.join("\n") + "\n";
        text.push_str(&String::from_utf8_lossy(&self.with(|setup| setup.dump(&mut log))?));
        Ok(text)
    }

    /// Continues the conversation.
    ///
    /// # Errors
    /// One line: the plugin's last message, or how its process ended.
    pub(crate) fn with<T>(&self, step: impl FnOnce(&mut Setup) -> Result<T, Failure>) -> Result<T, ConfigError> {
        let mut conversation = lock(&self.conversation);
        let ended = || ConfigError::new(format!("{}: the plugin's process has ended", self.name));
        let (setup, _) = conversation.as_mut().ok_or_else(ended)?;
        match step(setup) {
            Ok(value) => Ok(value),
            // As nbdkit: the plugin's words alone.
            Err(Failure::Refused(why)) => Err(ConfigError::new(why)),
            Err(Failure::Ended) => Err(match conversation.take() {
                Some((_, program)) => {
                    ConfigError::new(format!("{}: the plugin's process {}", self.name, how_it_ended(program)))
                }
                None => ended(),
            }),
        }
    }

    pub(crate) fn config(&self, key: &str, value: &std::ffi::OsStr) -> Result<(), ConfigError> {
        self.with(|setup| setup.config(key.as_bytes(), value.as_bytes(), &mut log))
    }

    pub(crate) fn call(&self, kind: u8) -> Result<i64, ConfigError> {
        self.with(|setup| setup.call_plain(kind, &mut log))
    }

    pub(crate) fn thread_model(&self) -> Result<ThreadModel, ConfigError> {
        self.with(|setup| setup.thread_model(&mut log))
    }

    /// Ends the conversation: the process is ready.
    pub(crate) fn after_fork(&self) -> Result<(OwnedFd, Program), ConfigError> {
        self.with(|setup| setup.after_fork(&mut log))?;
        let conversation = lock(&self.conversation).take();
        let (setup, program) = conversation.ok_or_else(|| ConfigError::new("the plugin was started twice"))?;
        Ok((setup.into_control(), program))
    }
}

/// The bytes of a value, for a launcher's words.
pub(crate) fn owned(value: &std::ffi::OsStr) -> OsString {
    OsString::from_vec(value.as_bytes().to_vec())
}
