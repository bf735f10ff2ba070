//! The parameters that were given.

use std::str::FromStr;

/// The parameters that were given on the command line. The host has checked them, put them into
/// canonical form, and replaced each alias by the parameter's own name.
///
/// The methods that read a value return `None` for a parameter that was not given, and the last
/// value of one that was given more than once.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// For tests: parameters as the host would pass them.
    pub fn new(given: &[(&str, &str)]) -> Params {
        Params(given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[doc(hidden)]
    pub fn from_host(given: Vec<(String, String)>) -> Params {
        Params(given)
    }

    /// All names and values, in the order of the command line.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether the parameter was given. For a path this is all that a filter can know.
    pub fn given(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// The text in canonical form.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.iter().filter(|(given, _)| *given == name).last().map(|(_, value)| value)
    }

    /// A boolean.
    ///
    /// # Errors
    /// This and the other typed methods fail if the parameter was declared with another kind.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, String> {
        self.parsed(name)
    }

    /// A whole number.
    pub fn int(&self, name: &str) -> Result<Option<u64>, String> {
        self.parsed(name)
    }

    /// A size in bytes.
    pub fn size(&self, name: &str) -> Result<Option<u64>, String> {
        self.parsed(name)
    }

    /// A duration in nanoseconds.
    pub fn duration(&self, name: &str) -> Result<Option<u64>, String> {
        self.parsed(name)
    }

    /// A percentage, 0 to 100.
    pub fn percent(&self, name: &str) -> Result<Option<u8>, String> {
        self.parsed(name)
    }

    /// A probability in parts of 10^9.
    pub fn probability(&self, name: &str) -> Result<Option<u32>, String> {
        self.parsed(name)
    }

    /// The value of a `bool-or-watch`. `Ok(Some(..))` never changes; it is `default` if the
    /// parameter was not given. `Ok(None)` means that the user named a path: ask
    /// [`files::holds`](crate::files::holds) each time.
    pub fn bool_or_watch(&self, name: &str, default: bool) -> Result<Option<bool>, String> {
        match self.text(name) {
            None => Ok(Some(default)),
            Some("watch") => Ok(None),
            Some(_) => self.bool(name),
        }
    }

    fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("{name}={text}: the value is not of the declared kind")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_and_a_parameter_that_was_not_given_is_none() {
        let params = Params::new(&[("size", "1"), ("size", "2"), ("flag", "true")]);
        assert_eq!(params.size("size"), Ok(Some(2)));
        assert_eq!(params.bool("flag"), Ok(Some(true)));
        assert_eq!(params.size("other"), Ok(None));
        assert!(params.size("flag").is_err());
    }

    #[test]
    fn a_watched_path_has_to_be_asked_for() {
        assert_eq!(Params::new(&[]).bool_or_watch("on", false), Ok(Some(false)));
        assert_eq!(Params::new(&[("on", "true")]).bool_or_watch("on", false), Ok(Some(true)));
        assert_eq!(Params::new(&[("on", "watch")]).bool_or_watch("on", false), Ok(None));
    }
}
