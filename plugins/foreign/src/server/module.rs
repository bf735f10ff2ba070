//! A plugin that is loaded in its process and not configured yet: what the program can ask it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Mutex;

use rbdkit_launcher::Program;
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, ThreadModel, lock};

use super::running::described;
use super::start::Words;
use crate::setup::{Failure, Hello, Setup};
use crate::wire::kind;

/// See the module.
pub struct Module {
    pub(crate) name: &'static str,
    pub(crate) words: Words,
    pub(crate) hello: Hello,
    pub(crate) max_thread_model: ThreadModel,
    /// The conversation with the process. None once the plugin runs.
    pub(crate) conversation: Mutex<Option<(Setup, Program)>>,
}

pub(crate) fn log(which: u8, text: &str) {
    match which {
        kind::ERROR => tracing::error!("{text}"),
        _ => tracing::debug!("{text}"),
    }
}

pub(crate) fn how_it_ended(program: Program) -> String {
    program.end().map_or_else(|error| error.to_string(), described)
}

impl Module {
    /// The parameter that a word without a key is for, if there is one.
    pub(crate) fn params(&self) -> Vec<ParamSpec> {
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
                Some((setup, program)) => {
                    drop(setup);
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
