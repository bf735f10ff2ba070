//! The eval plugin: a plugin written as shell fragments on the command line, one for each method.
//!
//! Unlike with the sh plugin, it is known which methods are missing. No process is started for
//! them, and the answers of `can_write` and similar methods follow from whether there is a `pwrite`
//! and so on.
#![forbid(unsafe_code)]

use std::os::unix::ffi::OsStrExt;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, OtherKeys, Param, PluginInfo, ThreadModel};
use rbdkit_script_protocol::{Answer, Configure, Script, ScriptPlugin, Scripts};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "eval",
    longname: "rbdkit eval plugin",
    description: "Runs shell scripts given on the command line as a plugin",
    params,
    other_keys: Some(OtherKeys { form: "KEY=VALUE", help: "Goes to the config script" }),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(ScriptPlugin::<Eval>::default()),
};

fn params() -> Vec<ParamSpec> {
    METHODS.iter().map(|(name, help)| ParamSpec::bytes(name).placeholder("SCRIPT").help(help)).collect()
}

/// The keys that are methods, each with its help. Every other key is for the `config` script.
const METHODS: [(&str, &str); 33] = [
    ("after_fork", "Runs before the first client, in the process that serves"),
    ("block_size", "Prints the smallest, preferred and largest block size"),
    ("cache", "Prefetches $3 bytes from offset $4"),
    ("can_cache", "Prints none, emulate or native"),
    ("can_extents", "Whether extents works: status 0 for yes, 3 for no"),
    ("can_fast_zero", "Whether a fast zero request is possible"),
    ("can_flush", "Whether flush works"),
    ("can_fua", "Prints none, emulate or native"),
    ("can_multi_conn", "Whether a client may have several connections"),
    ("can_trim", "Whether trim works"),
    ("can_write", "Whether clients may write"),
    ("can_zero", "Whether zero works"),
    ("close", "Ends a connection"),
    ("config", "Takes a parameter that is no method: the key is $2, the value $3"),
    ("config_complete", "Checks the parameters"),
    ("default_export", "Prints the name that the empty export name stands for"),
    ("dump_plugin", "Prints lines for --dump-plugin"),
    ("export_description", "Prints a description of the export"),
    ("extents", "Prints lines OFFSET LENGTH [hole,zero] for $3 bytes from offset $4"),
    ("flush", "Makes what was written durable"),
    ("get_ready", "Runs before the server listens"),
    ("get_size", "Prints the size; connections need it"),
    ("is_rotational", "Whether the disk rotates"),
    ("list_exports", "Prints the exports"),
    ("missing", "Runs for the methods that are not given; without it, they exit with status 2"),
    ("open", "Begins a connection and prints its handle"),
    ("pread", "Prints $3 bytes from offset $4; reads need it"),
    ("preconnect", "Runs when a client connects"),
    ("pwrite", "Reads $3 bytes from standard input and writes them at offset $4"),
    ("thread_model", "Prints the thread model"),
    ("trim", "Discards $3 bytes from offset $4"),
    ("unload", "Runs when the server ends"),
    ("zero", "Zeroes $3 bytes from offset $4"),
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
        if METHODS.iter().any(|(method, _)| *method == param.key) {
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
        let has_missing = self.has_missing;
        let scripts = self.scripts_mut()?;
        if !has_missing && !scripts.has("get_size") {
            return Err(ConfigError::new("eval: get_size=SCRIPT has to be given: no client could connect without it"));
        }
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
