//! Parameters that a filter declares, and how the host reads them before any guest sees a value.
//!
//! A guest gets each value in one canonical form ([`ParamKind::canonical`]), so that no guest needs a parser of its own.

use std::ffi::{OsStr, OsString};

use crate::{ConfigError, units};

/// What a parameter's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Any UTF-8 text.
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
    /// A file that the host opens for reading. The guest names the parameter, and sees `set` for a value.
    PathRead,
    /// A file that the host opens whenever it is read. It may be missing. The guest sees `set`.
    PathNow,
    /// A file that the host opens for appending. The guest sees `set`.
    PathAppend,
    /// A path whose existence the guest may ask for. The guest sees `set`.
    Watch,
    /// A truth value, or an absolute path whose existence is the value: canonical `true`, `false` or `watch`.
    BoolOrWatch,
}

impl ParamKind {
    const ALL: [(ParamKind, &'static str); 13] = [
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
        (ParamKind::Watch, "watch"),
        (ParamKind::BoolOrWatch, "bool-or-watch"),
    ];

    /// The word that WIT's `param.kind` uses.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("string", |(_, name)| name)
    }

    /// Reads the word that WIT's `param.kind` uses.
    pub fn parse(name: &str) -> Option<ParamKind> {
        Self::ALL.iter().find(|(_, word)| *word == name).map(|(kind, _)| *kind)
    }

    /// All words, for messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|(_, name)| *name)
    }
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// The key.
    pub name: String,
    /// Other keys that mean the same.
    pub aliases: Vec<String>,
    /// How the value is read.
    pub kind: ParamKind,
    /// The words of [`ParamKind::Choice`].
    pub choices: Vec<String>,
    /// What holds when it is not given, as the user would write it; for `--help`.
    pub default: Option<String>,
    /// Has to be given.
    pub required: bool,
    /// May be given more than once.
    pub repeat: bool,
    /// The layers below get it too.
    pub pass_on: bool,
    /// One sentence.
    pub help: String,
}

/// A value as the guest sees it and, for kinds that name a file, the path that only the host sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamValue {
    /// The canonical text.
    pub text: String,
    /// For [`ParamKind::PathRead`], [`ParamKind::PathNow`], [`ParamKind::PathAppend`], [`ParamKind::Watch`] and the path form of [`ParamKind::BoolOrWatch`].
    pub path: Option<OsString>,
}

impl ParamSpec {
    /// Whether `key` is its name or an alias.
    pub fn answers_to(&self, key: &str) -> bool {
        self.name == key || self.aliases.iter().any(|alias| alias == key)
    }

    /// Reads a value.
    ///
    /// # Errors
    /// One line `key=value: ...` that says what would be right.
    pub fn read(&self, key: &str, value: &OsStr) -> Result<ParamValue, ConfigError> {
        let wrong = |what: String| ConfigError::new(format!("{key}={}: {what}", value.to_string_lossy()));
        let path = |word: &str| {
            if value.is_empty() {
                return Err(wrong("is not the name of a file".into()));
            }
            Ok(ParamValue { text: word.to_string(), path: Some(value.to_os_string()) })
        };
        match self.kind {
            ParamKind::PathRead | ParamKind::PathNow | ParamKind::PathAppend | ParamKind::Watch => {
                return path("set");
            }
            ParamKind::BoolOrWatch if value.as_encoded_bytes().first() == Some(&b'/') => return path("watch"),
            _ => {}
        }
        let text = value.to_str().ok_or_else(|| wrong("is not UTF-8 text".into()))?;
        let text = match self.kind {
            ParamKind::Bool => units::parse_bool(text).map(|b| b.to_string()),
            ParamKind::BoolOrWatch => units::parse_bool(text)
                .map(|b| b.to_string())
                .map_err(|_| "is neither true, false nor an absolute path".to_string()),
            ParamKind::Int => text
                .parse::<u64>()
                .ok()
                .filter(|_| !text.starts_with('+'))
                .map(|n| n.to_string())
                .ok_or_else(|| "is not a whole number from 0 to 18446744073709551615".to_string()),
            ParamKind::Size => units::parse_size(text).map(|n| n.to_string()),
            ParamKind::Duration => units::parse_duration(text).map(|n| n.to_string()),
            ParamKind::Percent => text
                .strip_suffix('%')
                .unwrap_or(text)
                .parse::<u8>()
                .ok()
                .filter(|n| *n <= 100 && !text.starts_with('+'))
                .map(|n| n.to_string())
                .ok_or_else(|| "is not a percentage from 0 to 100".to_string()),
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
        ParamSpec {
            name: "key".into(),
            aliases: vec![],
            kind,
            choices: vec!["one".into(), "two".into()],
            default: None,
            required: false,
            repeat: false,
            pass_on: false,
            help: String::new(),
        }
    }

    #[test]
    fn every_kind_has_a_canonical_form() {
        for (kind, value, canonical) in [
            (ParamKind::Bool, "YES", "true"),
            (ParamKind::Int, "007", "7"),
            (ParamKind::Size, "2k", "2048"),
            (ParamKind::Duration, "2ms", "2000000"),
            (ParamKind::Percent, "95%", "95"),
            (ParamKind::Probability, "50%", "500000000"),
            (ParamKind::Choice, "two", "two"),
            (ParamKind::BoolOrWatch, "/tmp/x", "watch"),
            (ParamKind::BoolOrWatch, "off", "false"),
            (ParamKind::PathRead, "x", "set"),
        ] {
            assert_eq!(spec(kind).read("key", OsStr::new(value)).unwrap().text, canonical, "{kind:?}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        let error = spec(ParamKind::Choice).read("key", OsStr::new("three")).unwrap_err();
        assert_eq!(error.to_string(), "key=three: is not one of one, two");
        for (kind, value) in
            [(ParamKind::Int, "-1"), (ParamKind::Percent, "101"), (ParamKind::PathRead, ""), (ParamKind::Bool, "maybe")]
        {
            assert!(spec(kind).read("key", OsStr::new(value)).is_err(), "{kind:?} {value}");
        }
    }

    #[test]
    fn kind_names_are_read_back() {
        for name in ParamKind::names() {
            assert_eq!(ParamKind::parse(name).unwrap().name(), name);
        }
        assert_eq!(ParamKind::parse("password"), None);
    }
}
