//! Declarations of parameters: what a plugin or a filter takes, and how a value is checked before
//! the layer sees it.
//!
//! Plugins declare with the constructors below ([`ParamSpec::size`] and so on). Filters declare
//! through the contract, and the sandbox converts that to the same [`ParamSpec`]. Everything that
//! the program knows of parameters comes from declarations: `--help`, which layer takes which key,
//! which values are refused, `--dump-plugin`, and the tests that compare the documents with the
//! program.
//!
//! A filter gets each value in one canonical form ([`ParamSpec::read`]), so that no guest needs a
//! parser of its own. A plugin gets the value as the user wrote it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;

use crate::error::ConfigError;
use crate::{secrets, stdin, units};

/// What a parameter's value is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParamKind {
    /// Any UTF-8 text.
    #[default]
    String,
    /// nbdkit's truth values; canonical `true` or `false`.
    Bool,
    /// A whole number from 0 to 2^64 - 1 in decimal.
    Int,
    /// Bytes ([`units::parse_size`]); canonical decimal.
    Size,
    /// [`units::parse_duration`]; canonical nanoseconds.
    Duration,
    /// 0 to 100; canonical decimal. A `%` may follow.
    Percent,
    /// [`units::parse_probability`]; canonical parts of 10^9.
    Probability,
    /// One of a list of words.
    Choice,
    /// A file that the host opens for reading. The guest names the parameter, and sees the value
    /// `set`.
    PathRead,
    /// A file that the host opens whenever it is read. It may be missing. The guest sees `set`.
    PathNow,
    /// A file that the host opens for appending. The guest sees `set`.
    PathAppend,
    /// A file that the host opens for appending, and that the guest may empty. The guest sees
    /// `set`.
    PathWrite,
    /// A file that the host makes if it is missing, and that is read and written at any offset. One
    /// server at a time has it open. The guest sees `set`.
    PathReadWrite,
    /// A path whose existence the guest may ask for. The guest sees `set`.
    Watch,
    /// The number of a descriptor that the operator passed: a pipe or a socket. The guest may ask
    /// whether its other end is open. The guest sees `set`.
    Descriptor,
    /// The number of a process. The guest may ask whether it runs. The guest sees `set`.
    Process,
    /// A truth value, or an absolute path whose existence is the value: canonical `true`, `false`
    /// or `watch`.
    BoolOrWatch,
    /// A password: the text itself, `+FILE`, `-FD` or `-` ([`passwords::read`](crate::passwords)).
    /// The host reads it. The guest names the parameter, and sees the value `set`.
    Secret,
    /// A disk beside the layer below: a file, or [`CHAIN_PREFIX`] and a plugin with its filters and
    /// parameters. The host opens it. The guest sees `set`.
    Disk,
    /// A shell command that the host runs. The guest sees `set`.
    Script,
    /// Text, or `script:` and a shell command that the host runs. Of a command the guest sees
    /// `script:`.
    StringOrScript,
    /// A path at which the host makes a Unix socket for commands. The guest sees `set`.
    Control,
    /// For plugins only: any bytes, which need not be UTF-8.
    Bytes,
    /// For plugins only: the name of a file that the plugin opens itself.
    Path,
}

impl ParamKind {
    /// The kinds that a filter may declare, each with the word of WIT's `param.kind`.
    const CONTRACT: [(ParamKind, &'static str); 22] = [
        (ParamKind::String, "string"),
        (ParamKind::Bool, "bool"),
        (ParamKind::Int, "int"),
        (ParamKind::Size, "size"),
        (ParamKind::Duration, "duration"),
        (ParamKind::Percent, "percent"),
        (ParamKind::Probability, "probability"),
        (ParamKind::Choice, "choice"),
        (ParamKind::PathRead, "path-read"),
        (ParamKind::PathNow, "path-now"),
        (ParamKind::PathAppend, "path-append"),
        (ParamKind::PathWrite, "path-write"),
        (ParamKind::PathReadWrite, "path-readwrite"),
        (ParamKind::Watch, "watch"),
        (ParamKind::BoolOrWatch, "bool-or-watch"),
        (ParamKind::Secret, "secret"),
        (ParamKind::Disk, "disk"),
        (ParamKind::Script, "script"),
        (ParamKind::StringOrScript, "string-or-script"),
        (ParamKind::Descriptor, "descriptor"),
        (ParamKind::Process, "process"),
        (ParamKind::Control, "control"),
    ];

    /// The word that WIT's `param.kind` uses, or for a plugin's kind a word for messages.
    pub fn name(self) -> &'static str {
        match self {
            ParamKind::Bytes => "bytes",
            ParamKind::Path => "path",
            _ => Self::CONTRACT.iter().find(|(kind, _)| *kind == self).map_or("string", |(_, name)| name),
        }
    }

    /// Reads the word that WIT's `param.kind` uses.
    pub fn parse(name: &str) -> Option<ParamKind> {
        Self::CONTRACT.iter().find(|(_, word)| *word == name).map(|(kind, _)| *kind)
    }

    /// All words that [`ParamKind::parse`] reads, for messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::CONTRACT.iter().map(|(_, name)| *name)
    }
}

/// One parameter.
#[derive(Clone, Debug, Default)]
pub struct ParamSpec {
    /// The key.
    pub name: String,
    /// Other keys that mean the same.
    pub aliases: Vec<String>,
    /// How the value is read.
    pub kind: ParamKind,
    /// The words of [`ParamKind::Choice`].
    pub choices: Vec<String>,
    /// The placeholder for the value in `--help`, for example `FILENAME`. Empty: a word for the
    /// kind.
    pub placeholder: String,
    /// The value that applies if the parameter is not given, as the user would write it.
    pub default: Option<String>,
    /// Has to be given.
    pub required: bool,
    /// May be given more than once, and every value counts.
    pub repeat: bool,
    /// Whether the layers below get it too.
    pub pass_on: bool,
    /// A word without a key is the value of this parameter (nbdkit's magic config key). One at
    /// most.
    pub magic: bool,
    /// The value must not appear in any message or log.
    pub secret: bool,
    /// No help lists it. The plugin takes the key only to refuse it with its own message, or to
    /// accept a value without an effect.
    pub hidden: bool,
    /// One sentence without a full stop.
    pub help: String,
}

/// A value as the guest sees it and, for kinds that name a file or a script and for secrets, what
/// only the host sees. It prints as the guest sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct ParamValue {
    /// The canonical text.
    pub text: String,
    /// The path of the kinds that name one, or the shell command of [`ParamKind::Script`] and
    /// [`ParamKind::StringOrScript`]. For [`ParamKind::Secret`] what the user wrote, which may be
    /// the secret itself. For [`ParamKind::Descriptor`] and [`ParamKind::Process`] the number in
    /// decimal.
    pub path: Option<OsString>,
}

impl fmt::Debug for ParamValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ParamValue").field(&self.text).finish()
    }
}

/// What a value of [`ParamKind::StringOrScript`] begins with that is a shell command.
const SCRIPT_PREFIX: &str = "script:";

/// What a value of [`ParamKind::Disk`] begins with that is a plugin with its filters and
/// parameters, in words quoted as in a shell.
pub const CHAIN_PREFIX: &str = "chain:";

/// Declaring a parameter.
impl ParamSpec {
    /// A parameter of this kind.
    pub fn new(name: &str, kind: ParamKind) -> ParamSpec {
        ParamSpec { name: name.into(), kind, ..ParamSpec::default() }
    }

    /// UTF-8 text, which the plugin reads itself.
    pub fn string(name: &str) -> ParamSpec {
        ParamSpec::new(name, ParamKind::String)
    }

    /// Bytes, which the plugin reads itself.
    pub fn bytes(name: &str) -> ParamSpec {
        ParamSpec::new(name, ParamKind::Bytes)
    }

    /// The name of a file, which the plugin opens itself.
    pub fn path(name: &str) -> ParamSpec {
        ParamSpec::new(name, ParamKind::Path)
    }

    /// True or false.
    pub fn bool(name: &str) -> ParamSpec {
        ParamSpec::new(name, ParamKind::Bool)
    }

    /// A size in bytes.
    pub fn size(name: &str) -> ParamSpec {
        ParamSpec::new(name, ParamKind::Size)
    }

    /// One of these words.
    pub fn choice(name: &str, choices: &[&str]) -> ParamSpec {
        let choices = choices.iter().map(|choice| (*choice).to_string()).collect();
        ParamSpec { choices, ..ParamSpec::new(name, ParamKind::Choice) }
    }

    /// A key that no help lists ([`ParamSpec::hidden`]).
    pub fn hidden(name: &str) -> ParamSpec {
        ParamSpec { hidden: true, ..ParamSpec::bytes(name) }
    }

    /// Another key that means the same.
    #[must_use]
    pub fn alias(mut self, name: &str) -> ParamSpec {
        self.aliases.push(name.into());
        self
    }

    /// What stands for the value in `--help`.
    #[must_use]
    pub fn placeholder(mut self, placeholder: &str) -> ParamSpec {
        self.placeholder = placeholder.into();
        self
    }

    /// The value that applies if the parameter is not given.
    #[must_use]
    pub fn default_value(mut self, default: &str) -> ParamSpec {
        self.default = Some(default.into());
        self
    }

    /// Has to be given.
    #[must_use]
    pub fn required(mut self) -> ParamSpec {
        self.required = true;
        self
    }

    /// May be given more than once, and every value counts.
    #[must_use]
    pub fn repeat(mut self) -> ParamSpec {
        self.repeat = true;
        self
    }

    /// A word without a key is the value of this parameter.
    #[must_use]
    pub fn magic(mut self) -> ParamSpec {
        self.magic = true;
        self
    }

    /// The value must not be printed.
    #[must_use]
    pub fn secret(mut self) -> ParamSpec {
        self.secret = true;
        self
    }

    /// One sentence without a full stop.
    #[must_use]
    pub fn help(mut self, help: &str) -> ParamSpec {
        self.help = help.into();
        self
    }
}

/// Using a declaration.
impl ParamSpec {
    /// Whether `key` is its name or an alias.
    pub fn answers_to(&self, key: &str) -> bool {
        self.name == key || self.aliases.iter().any(|alias| alias == key)
    }

    /// Checks a value that the plugin reads later.
    ///
    /// # Errors
    /// One line `key=value: ...` that says what would be right. The value of a secret is not shown.
    pub fn check(&self, key: &str, value: &OsStr) -> Result<(), ConfigError> {
        match self.kind {
            ParamKind::Bytes => Ok(()),
            ParamKind::Path => self.check_path(key, value),
            _ => self.read(key, value).map(drop),
        }
    }

    /// Refuses the name of standard input if that belongs to the client.
    fn check_path(&self, key: &str, value: &OsStr) -> Result<(), ConfigError> {
        stdin::check_path(Path::new(value)).map_err(|error| self.wrong(key, value, &error.to_string()))
    }

    /// The error about a value of this parameter: `wrong` is the rest of "key=value: ...".
    fn wrong(&self, key: &str, value: &OsStr, wrong: &str) -> ConfigError {
        match self.secret || self.kind == ParamKind::Secret {
            true => ConfigError::new(format!("{key}: {wrong}")),
            false => {
                let value = secrets::without_userinfo(&value.to_string_lossy());
                ConfigError::new(format!("{key}={value}: {wrong}"))
            }
        }
    }

    /// Reads a value and returns its canonical form.
    ///
    /// # Errors
    /// One line `key=value: ...` that says what would be right. The value of a secret is not shown.
    pub fn read(&self, key: &str, value: &OsStr) -> Result<ParamValue, ConfigError> {
        let wrong = |what: String| self.wrong(key, value, &what);
        let path = |word: &str| {
            if value.is_empty() {
                return Err(wrong("is not the name of a file".into()));
            }
            self.check_path(key, value)?;
            Ok(ParamValue { text: word.to_string(), path: Some(value.to_os_string()) })
        };
        let script = |command: OsString, word: &str| match command.is_empty() {
            true => Err(wrong("is not a shell command".into())),
            false => Ok(ParamValue { text: word.to_string(), path: Some(command) }),
        };
        match self.kind {
            ParamKind::PathRead
            | ParamKind::PathNow
            | ParamKind::PathAppend
            | ParamKind::PathWrite
            | ParamKind::PathReadWrite
            | ParamKind::Watch
            | ParamKind::Control
            | ParamKind::Path => return path("set"),
            ParamKind::Disk if value.is_empty() => return Err(wrong("is not a disk".into())),
            // The words of a chain are read where it is made.
            ParamKind::Disk if value.as_encoded_bytes().starts_with(CHAIN_PREFIX.as_bytes()) => {
                return Ok(ParamValue { text: "set".into(), path: Some(value.to_os_string()) });
            }
            ParamKind::Disk => return path("set"),
            ParamKind::Script => return script(value.to_os_string(), "set"),
            ParamKind::Secret => return Ok(ParamValue { text: "set".into(), path: Some(value.to_os_string()) }),
            ParamKind::Descriptor | ParamKind::Process => {
                let (least, what) = if self.kind == ParamKind::Process { (1, "process") } else { (0, "descriptor") };
                let number = value.to_str().and_then(|text| units::parse_whole(text, i32::MAX as u64).ok());
                let number = number.filter(|number| *number >= least);
                let number = number.ok_or_else(|| wrong(format!("is not the number of a {what}")))?;
                return Ok(ParamValue { text: "set".into(), path: Some(number.to_string().into()) });
            }
            ParamKind::BoolOrWatch if value.as_encoded_bytes().first() == Some(&b'/') => return path("watch"),
            _ => {}
        }
        let text = value.to_str().ok_or_else(|| wrong("is not UTF-8 text".into()))?;
        if let Some(command) = text.strip_prefix(SCRIPT_PREFIX)
            && self.kind == ParamKind::StringOrScript
        {
            return script(command.into(), SCRIPT_PREFIX);
        }
        let text = match self.kind {
            ParamKind::Bool => units::parse_bool(text).map(|b| b.to_string()),
            ParamKind::BoolOrWatch => units::parse_bool(text)
                .map(|b| b.to_string())
                .map_err(|_| "is neither true, false nor an absolute path".to_string()),
            ParamKind::Int => units::parse_whole(text, u64::MAX).map(|n| n.to_string()),
            ParamKind::Size => units::parse_size(text).map(|n| n.to_string()),
            ParamKind::Duration => units::parse_duration(text).map(|n| n.to_string()),
            ParamKind::Percent => units::parse_whole(text.strip_suffix('%').unwrap_or(text), 100)
                .map(|n| n.to_string())
                .map_err(|_| "is not a percentage from 0 to 100".to_string()),
            ParamKind::Probability => units::parse_probability(text).map(|n| n.to_string()),
            ParamKind::Choice if !self.choices.iter().any(|choice| choice == text) => {
                Err(format!("is not one of {}", self.choices.join(", ")))
            }
            _ => Ok(text.to_string()),
        };
        Ok(ParamValue { text: text.map_err(wrong)?, path: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: ParamKind) -> ParamSpec {
        ParamSpec { choices: vec!["one".into(), "two".into()], ..ParamSpec::new("key", kind) }
    }

    #[test]
    fn every_kind_has_a_canonical_form() {
        for (kind, value, canonical) in [
            (ParamKind::Bool, "YES", "true"),
            (ParamKind::Int, "007", "7"),
            (ParamKind::Int, "010", "8"),
            (ParamKind::Int, "0x1f", "31"),
            (ParamKind::Percent, "0x5f", "95"),
            (ParamKind::Size, "2k", "2048"),
            (ParamKind::Duration, "2ms", "2000000"),
            (ParamKind::Percent, "95%", "95"),
            (ParamKind::Probability, "50%", "500000000"),
            (ParamKind::Choice, "two", "two"),
            (ParamKind::BoolOrWatch, "/tmp/x", "watch"),
            (ParamKind::BoolOrWatch, "off", "false"),
            (ParamKind::PathRead, "x", "set"),
            (ParamKind::Secret, "hush", "set"),
            (ParamKind::Control, "x", "set"),
            (ParamKind::PathWrite, "x", "set"),
            (ParamKind::PathReadWrite, "x", "set"),
            (ParamKind::Disk, "base.img", "set"),
            (ParamKind::Disk, "chain:memory 1M", "set"),
            (ParamKind::Script, "echo x", "set"),
            (ParamKind::StringOrScript, "fixed:x", "fixed:x"),
            (ParamKind::StringOrScript, "script:echo x", "script:"),
        ] {
            assert_eq!(spec(kind).read("key", OsStr::new(value)).unwrap().text, canonical, "{kind:?}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        let error = spec(ParamKind::Choice).read("key", OsStr::new("three")).unwrap_err();
        assert_eq!(error.to_string(), "key=three: is not one of one, two");
        for (kind, value) in [
            (ParamKind::Int, "-1"),
            (ParamKind::Percent, "101"),
            (ParamKind::PathRead, ""),
            (ParamKind::Bool, "maybe"),
            (ParamKind::Disk, ""),
            (ParamKind::Script, ""),
            (ParamKind::StringOrScript, "script:"),
        ] {
            assert!(spec(kind).read("key", OsStr::new(value)).is_err(), "{kind:?} {value}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = spec(ParamKind::Int).secret();
        let error = secret.read("key", OsStr::new("hush")).unwrap_err();
        assert_eq!(error.to_string(), "key: is not a whole number from 0 to 18446744073709551615");
        let value = spec(ParamKind::Secret).read("key", OsStr::new("hush")).unwrap();
        assert_eq!(format!("{value:?}"), r#"ParamValue("set")"#);
    }

    #[test]
    fn what_a_plugin_reads_itself_need_not_be_text() {
        let bytes = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
        assert!(spec(ParamKind::Bytes).check("key", bytes).is_ok());
        assert!(spec(ParamKind::Path).check("key", bytes).is_ok());
        let error = spec(ParamKind::String).check("key", bytes).unwrap_err();
        assert_eq!(error.to_string(), "key=\u{fffd}: is not UTF-8 text");
    }

    #[test]
    fn kind_names_are_read_back() {
        for name in ParamKind::names() {
            assert_eq!(ParamKind::parse(name).unwrap().name(), name);
        }
        for name in ["password", ParamKind::Bytes.name(), ParamKind::Path.name()] {
            assert_eq!(ParamKind::parse(name), None, "{name}");
        }
    }
}
