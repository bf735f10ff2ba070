//! The words of the command line that give a layer a parameter.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A word after the plugin's name, or a parameter that an option gives the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// `key=value`.
    Keyed(String, OsString),
    /// Anything else: the value of the plugin's magic key.
    Bare(OsString),
    /// `key=value` for the plugin, even if a filter declares the key too.
    ForPlugin(String, OsString),
}

impl Parameter {
    /// Splits a word at its first `=`. It is bare if the part before `=` cannot be a key.
    pub fn new(word: OsString) -> Parameter {
        match split_parameter(&word) {
            Some((key, value)) => Parameter::Keyed(key, value),
            None => Parameter::Bare(word),
        }
    }

    /// Splits the `key=value` of an option that addresses the plugin. None if it has another form.
    pub fn for_plugin(word: &OsStr) -> Option<Parameter> {
        split_parameter(word).map(|(key, value)| Parameter::ForPlugin(key, value))
    }
}

/// Names one filter: by its name, and by its number among the filters of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The filter's name.
    pub name: String,
    /// 1 for the one nearest the client.
    pub instance: usize,
}

impl Target {
    /// Reads `NAME`, or `NAME#2` for the second filter of that name. None if it is neither.
    pub fn parse(text: &str) -> Option<Target> {
        let (name, instance) = match text.rsplit_once('#') {
            Some((name, number)) => (name, number.parse().ok().filter(|n| *n > 0)?),
            None => (text, 1),
        };
        (!name.is_empty()).then(|| Target { name: name.to_string(), instance })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.instance {
            1 => f.write_str(&self.name),
            instance => write!(f, "{}#{instance}", self.name),
        }
    }
}

/// A parameter for one filter, even if another layer declares the key too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetedParameter {
    /// The filter.
    pub target: Target,
    /// The key.
    pub key: String,
    /// The value.
    pub value: OsString,
}

impl TargetedParameter {
    /// Splits `FILTER:KEY=VALUE` into filter, key and value. None if it has another form.
    pub fn split(word: &OsStr) -> Option<(String, String, OsString)> {
        let (target, rest) = split_once(word, b':')?;
        let (key, value) = split_parameter(&rest)?;
        Some((target.into_string().ok()?, key, value))
    }
}

/// nbdkit's rule for a key: a letter, then letters, digits, `.`, `_` and `-`.
fn is_key(key: &[u8]) -> bool {
    key.first().is_some_and(u8::is_ascii_alphabetic)
        && key.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Splits `key=value` at the first `=`. None if the part before it is not a key.
fn split_parameter(word: &OsStr) -> Option<(String, OsString)> {
    let (key, value) = split_once(word, b'=')?;
    let key = is_key(key.as_bytes()).then(|| key.to_str())??;
    Some((key.to_string(), value))
}

/// Splits at the first `separator`.
fn split_once(word: &OsStr, separator: u8) -> Option<(OsString, OsString)> {
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_recognised_as_nbdkit_does() {
        for (word, key) in
            [("a=b", Some("a")), ("cow-on.read_2=1", Some("cow-on.read_2")), ("a==b", Some("a")), ("a=", Some("a"))]
        {
            assert_eq!(split_parameter(OsStr::new(word)).map(|(key, _)| key).as_deref(), key, "{word}");
        }
        for word in ["", "a", "=b", "1a=b", "a b=c", "./a=b", "-a=b", "_a=b", "é=b"] {
            assert_eq!(split_parameter(OsStr::new(word)), None, "{word}");
        }
    }

    #[test]
    fn values_need_not_be_text() {
        let word = OsStr::from_bytes(b"file=\xff=x");
        assert_eq!(split_parameter(word).unwrap().1.as_bytes(), b"\xff=x");
    }

    #[test]
    fn targets_are_names_with_or_without_a_number() {
        for (text, name, instance) in [("cow", "cow", 1), ("cow#2", "cow", 2), ("a#b#3", "a#b", 3)] {
            assert_eq!(Target::parse(text), Some(Target { name: name.into(), instance }), "{text}");
        }
        for text in ["", "#1", "cow#0", "cow#", "cow#x"] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
        assert_eq!(Target::parse("cow#2").unwrap().to_string(), "cow#2");
    }
}
