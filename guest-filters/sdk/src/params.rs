//! The parameters that were given.

use crate::Description;

/// The parameters that were given on the command line, checked by the host and in canonical form.
///
/// The readers answer `None` for a parameter that was not given, and the last value of one that was given more than once.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// For tests: parameters as the host would hand them over.
    pub fn new(given: &[(&str, &str)]) -> Params {
        Params(given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    /// Takes them over, with every alias replaced by the name it stands for.
    pub(crate) fn from_host(mut given: Vec<(String, String)>, description: &Description) -> Params {
        for (name, _) in &mut given {
            match description.main_name(name) {
                Some(main) if main != name => *name = main.to_string(),
                _ => {}
            }
        }
        Params(given)
    }

    /// All of them, in the order of the command line.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether it was given. All that there is to know of a path.
    pub fn given(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// The text itself.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.iter().filter(|(given, _)| *given == name).last().map(|(_, value)| value)
    }

    /// A truth value.
    ///
    /// # Errors
    /// As for the other typed readers: if the parameter was declared with another kind.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, String> {
        self.parsed(name)
    }

    /// A whole number.
    pub fn int(&self, name: &str) -> Result<Option<u64>, String> {
        self.parsed(name)
    }

    /// Bytes.
    pub fn size(&self, name: &str) -> Result<Option<u64>, String> {
        self.parsed(name)
    }

    /// Nanoseconds.
    pub fn duration(&self, name: &str) -> Result<Option<u64>, String> {
        self.parsed(name)
    }

    /// 0 to 100.
    pub fn percent(&self, name: &str) -> Result<Option<u8>, String> {
        self.parsed(name)
    }

    /// Parts of 10^9.
    pub fn probability(&self, name: &str) -> Result<Option<u32>, String> {
        self.parsed(name)
    }

    /// Of a `bool-or-watch`: `Ok(None)` means that the answer has to be asked for, each time, with
    /// [`files::holds`](crate::files::holds); `Ok(Some(..))` that it never changes (`unset` if it was not given).
    pub fn bool_or_watch(&self, name: &str, unset: bool) -> Result<Option<bool>, String> {
        match self.text(name) {
            None => Ok(Some(unset)),
            Some("watch") => Ok(None),
            Some(_) => self.bool(name),
        }
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("{name}={text}: not of the kind that was declared")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Param;

    #[test]
    fn the_last_value_counts_and_what_was_not_given_is_none() {
        let params = Params::new(&[("size", "1"), ("size", "2"), ("flag", "true")]);
        assert_eq!(params.size("size"), Ok(Some(2)));
        assert_eq!(params.bool("flag"), Ok(Some(true)));
        assert_eq!(params.size("other"), Ok(None));
        assert!(params.size("flag").is_err());
    }

    #[test]
    fn an_alias_is_read_under_the_main_name() {
        let description =
            Description::new("x", "1", "").param(Param::duration("delay-read").alias("rdelay")).param(Param::int("n"));
        let given = vec![("rdelay".to_string(), "5".to_string()), ("n".to_string(), "1".to_string())];
        let params = Params::from_host(given, &description);
        assert_eq!(params.duration("delay-read"), Ok(Some(5)));
        assert_eq!(params.int("n"), Ok(Some(1)));
    }

    #[test]
    fn a_watched_path_has_to_be_asked_for() {
        assert_eq!(Params::new(&[]).bool_or_watch("on", false), Ok(Some(false)));
        assert_eq!(Params::new(&[("on", "true")]).bool_or_watch("on", false), Ok(Some(true)));
        assert_eq!(Params::new(&[("on", "watch")]).bool_or_watch("on", false), Ok(None));
    }
}
