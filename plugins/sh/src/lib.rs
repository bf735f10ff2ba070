//! The sh plugin: a plugin written as a script or any other program, which is started for each
//! method.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::secrets::without_userinfo;
use rbdkit_plugin_api::{ConfigError, OtherKeys, Param, PluginInfo, ThreadModel, stdin};
use rbdkit_script_protocol::{Answer, Configure, Script, ScriptPlugin, Scripts, is_running_script};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "sh",
    longname: "rbdkit sh plugin",
    description: "Runs a shell script or another program as a plugin",
    params,
    other_keys: Some(OtherKeys { form: "KEY=VALUE", help: "Goes to the script's config method" }),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(ScriptPlugin::<Sh>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::path("script").magic().required().help("The script to run; - reads it from standard input")]
}

/// The longest script that is taken from standard input.
const MAX_INLINE: u64 = 64 << 20;

#[derive(Default)]
struct Sh {
    scripts: Option<Scripts>,
    /// For messages.
    name: String,
    /// The key that a bare word after the script's name stands for.
    magic_config_key: Option<OsString>,
}

impl Sh {
    fn load(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        if param.key != "script" {
            return Err(ConfigError::new("sh: the first parameter must be script=/path/to/script"));
        }
        let mut scripts = Scripts::new("sh")?;
        let script = match param.value.as_encoded_bytes() {
            b"-" => {
                stdin::check().map_err(|error| param.error(error))?;
                inline(&scripts, std::io::stdin())?
            }
            _ => named(param)?,
        };
        if let Script::Program { path, .. } = &script {
            self.name = path.display().to_string();
        }
        scripts.set_otherwise(script);
        if scripts.call("load", &[])? == Answer::False {
            return Err(self.unexpected_false("load"));
        }
        self.magic_config_key = scripts.read("magic_config_key", &[])?.map(|mut key| {
            if key.last() == Some(&b'\n') {
                key.pop();
            }
            OsString::from_vec(key)
        });
        self.scripts = Some(scripts);
        Ok(())
    }

    fn unexpected_false(&self, method: &str) -> ConfigError {
        ConfigError::new(format!("{}: {method} method returned unexpected code (3/false)", self.name))
    }
}

/// A script by its name. It is started from wherever the server is then, so the name is made
/// absolute.
fn named(param: Param<'_>) -> Result<Script, ConfigError> {
    let path = param.path().canonicalize().map_err(|error| param.error(error))?;
    if is_running_script(&path) {
        return Err(ConfigError::new(format!(
            "{}: the script starts this program with itself as script",
            path.display()
        )));
    }
    let mut start = Vec::new();
    // Without the right to read it, the kernel may still run it.
    let read = File::open(&path).and_then(|file| file.take(LONGEST_FIRST_LINE).read_to_end(&mut start));
    Ok(match read.is_ok() && names_this_program(&start) {
        true => Script::for_shell(path),
        false => Script::program(path),
    })
}

/// The kernel reads no more of a `#!` line.
const LONGEST_FIRST_LINE: u64 = 256;

/// Whether the first line makes a script start this program (`#!/usr/sbin/nbdkit sh`). The shell
/// has to run such a script here, because the kernel would start this program instead.
fn names_this_program(start: &[u8]) -> bool {
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!") else { return false };
    let line = String::from_utf8_lossy(line);
    let name = |word: &str| word.rsplit('/').next().unwrap_or_default().to_string();
    let is_ours = |word: &str| matches!(name(word).as_str(), "nbdkit" | "rbdkit");
    let mut words = line.split_whitespace();
    match words.next() {
        // Options of env and variables come before the program.
        Some(env) if name(env) == "env" => {
            words.find(|word| !word.starts_with('-') && !word.contains('=')).is_some_and(is_ours)
        }
        Some(interpreter) => is_ours(interpreter),
        None => false,
    }
}

/// A script from standard input.
fn inline(scripts: &Scripts, stdin: impl Read) -> Result<Script, ConfigError> {
    let mut text = Vec::new();
    let failed = |what: &str| ConfigError::new(format!("script=-: {what}"));
    stdin
        .take(MAX_INLINE + 1)
        .read_to_end(&mut text)
        .map_err(|error| failed(&format!("cannot read the script from standard input: {error}")))?;
    if text.len() as u64 > MAX_INLINE {
        return Err(failed("the script on standard input is longer than 64 MiB"));
    }
    scripts.write("inline-script.sh", &text)
}

impl Configure for Sh {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        let Some(scripts) = &self.scripts else { return self.load(param) };
        let key = match (&self.magic_config_key, param.key) {
            (Some(magic), "script") => magic.as_os_str(),
            (None, "script") => {
                return Err(ConfigError::new(format!(
                    "{}: expecting key=value on the command line but got: {}",
                    self.name,
                    without_userinfo(&param.value.to_string_lossy())
                )));
            }
            (_, key) => key.as_ref(),
        };
        match scripts.call("config", &[key, param.value])? {
            Answer::Done => Ok(()),
            Answer::Missing => {
                Err(ConfigError::new(format!("{}: this plugin does not need command line configuration", self.name)))
            }
            Answer::False => Err(self.unexpected_false("config")),
        }
    }

    fn scripts(&self) -> Option<&Scripts> {
        self.scripts.as_ref()
    }

    fn complete(self) -> Result<Scripts, ConfigError> {
        self.scripts.ok_or_else(|| ConfigError::new("sh: missing script parameter: give the script to run"))
    }
}

#[cfg(test)]
mod tests;
