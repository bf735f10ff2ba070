//! The eval plugin: a plugin written as shell fragments on the command line, one for each method.
//!
//! Unlike a script that answers all methods, what is missing here is known without running anything: no process is started for
//! it, and `can_write` and its kin follow from whether there is a `pwrite` and so on.
#![forbid(unsafe_code)]

use std::os::unix::ffi::OsStrExt;

use rbdkit_plugin_api::{ConfigError, Param, PluginInfo, ThreadModel};
use rbdkit_script_protocol::{Answer, Configure, Script, ScriptPlugin, Scripts};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "eval",
    longname: "rbdkit eval plugin",
    description: "A plugin as shell scripts on the command line",
    help: "get_size=SCRIPT      (required by most uses) Prints the size
pread=SCRIPT         Prints $3 bytes from offset $4
METHOD=SCRIPT        Any other method of a script plugin
missing=SCRIPT       What is run for methods that are not given (exit 2)
KEY=VALUE            Other parameters go to the config script",
    magic_config_key: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(ScriptPlugin::<Eval>::default()),
};

/// The keys that are methods. Every other key is for the `config` script.
const METHODS: [&str; 33] = [
    "after_fork",
    "block_size",
    "cache",
    "can_cache",
    "can_extents",
    "can_fast_zero",
    "can_flush",
    "can_fua",
    "can_multi_conn",
    "can_trim",
    "can_write",
    "can_zero",
    "close",
    "config",
    "config_complete",
    "default_export",
    "dump_plugin",
    "export_description",
    "extents",
    "flush",
    "get_ready",
    "get_size",
    "is_rotational",
    "list_exports",
    "missing",
    "open",
    "pread",
    "preconnect",
    "pwrite",
    "thread_model",
    "trim",
    "unload",
    "zero",
];

/// What follows from having a method: another one, and what it answers.
const IMPLIED: [(&str, &str, &str); 6] = [
    ("pwrite", "can_write", ""),
    ("flush", "can_flush", ""),
    ("trim", "can_trim", ""),
    ("zero", "can_zero", ""),
    ("extents", "can_extents", ""),
    ("cache", "can_cache", "native\n"),
];

#[derive(Default)]
struct Eval {
    scripts: Option<Scripts>,
    has_missing: bool,
}

impl Eval {
    fn scripts_mut(&mut self) -> Result<&mut Scripts, ConfigError> {
        let scripts = match self.scripts.take() {
            Some(scripts) => scripts,
            None => Scripts::new("eval")?,
        };
        Ok(self.scripts.insert(scripts))
    }

    fn add_method(&mut self, method: &str, text: &[u8]) -> Result<(), ConfigError> {
        let is_missing = method == "missing";
        let twice = is_missing && self.has_missing;
        let scripts = self.scripts_mut()?;
        if twice || scripts.has(method) {
            return Err(ConfigError::new(format!("eval: method {method} defined more than once on the command line")));
        }
        let script = scripts.write(method, text)?;
        if is_missing {
            scripts.set_otherwise(script);
            self.has_missing = true;
        } else {
            scripts.set(method, script);
        }
        Ok(())
    }
}

impl Configure for Eval {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        if METHODS.contains(&param.key) {
            return self.add_method(param.key, param.value.as_bytes());
        }
        match self.scripts_mut()?.call("config", &[param.key.as_ref(), param.value])? {
            Answer::Done => Ok(()),
            Answer::Missing => Err(ConfigError::new(format!(
                "eval: callback '{}' is unknown, and there is no 'config' callback to handle it",
                param.key
            ))),
            Answer::False => Err(ConfigError::new("eval: config method returned unexpected code (3/false)")),
        }
    }

    fn scripts(&self) -> Option<&Scripts> {
        self.scripts.as_ref()
    }

    fn complete(mut self) -> Result<Scripts, ConfigError> {
        let scripts = self.scripts_mut()?;
        for (method, implied, prints) in IMPLIED {
            if scripts.has(method) && !scripts.has(implied) {
                scripts.set(implied, Script::Prints(prints));
            }
        }
        match self.scripts {
            Some(scripts) => Ok(scripts),
            None => Scripts::new("eval"),
        }
    }
}

#[cfg(test)]
mod tests;
