//! The parameters that were given.

use crate::describe::Param;

use super::{Field, Parameters, Setting, Value};

/// The parameters that were given on the command line. The host has checked them, put them into
/// canonical form, and replaced each alias by the parameter's own name.
///
/// A filter with [`params!`](crate::params!) need not know this type.
#[derive(Clone)]
pub struct Params {
    declare: fn() -> Vec<Param>,
    given: Vec<(String, String)>,
}

impl Params {
    /// Parameters as the host would pass them to a filter with the declarations of `P`: names and
    /// canonical values.
    pub fn new<P: Parameters>(given: &[(&str, &str)]) -> Params {
        Params::from_host::<P>(given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[doc(hidden)]
    pub fn from_host<P: Parameters>(given: Vec<(String, String)>) -> Params {
        Params { declare: P::declare, given }
    }

    /// All names and values, in the order of the command line.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.given.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Reads a parameter: a value, an `Option` of it, or a `Vec` of all of them.
    ///
    /// # Errors
    /// One line for the user. Also if the filter does not declare a parameter of this name and
    /// kind, so that a misspelt name is found the first time the filter runs.
    pub fn get<T: Setting>(&self, name: &str) -> Result<T, String> {
        let read_as = T::Value::param(name);
        let kind = read_as.kind();
        match (self.declare)().iter().find(|param| param.name() == name).map(Param::kind) {
            None => Err(format!("the filter reads a parameter {name}, and does not declare it")),
            Some(declared) if declared != kind => {
                Err(format!("the filter reads its parameter {name} as {kind}, and declares it as {declared}"))
            }
            Some(_) => Field::<T>::new(name, &[]).name(name).read(self),
        }
    }

    /// The texts that were given for a parameter.
    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        self.iter().filter(|(given, _)| *given == name).map(|(_, value)| value).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::describe::Param;
    use crate::params::{BoolOrWatch, Parameters, Params, Size};

    struct Declared;

    impl Parameters for Declared {
        fn declare() -> Vec<Param> {
            vec![Param::size("size"), Param::bool("flag"), Param::bool_or_watch("on"), Param::int("no_dash")]
        }

        fn read(_given: &Params) -> Result<Self, String> {
            Ok(Declared)
        }
    }

    #[test]
    fn the_last_value_counts_and_a_parameter_that_was_not_given_is_none() {
        let params = Params::new::<Declared>(&[("size", "1"), ("size", "2"), ("flag", "true"), ("no_dash", "3")]);
        assert_eq!(params.get("size"), Ok(Size(2)));
        assert_eq!(params.get("size"), Ok(vec![Size(1), Size(2)]));
        assert_eq!(params.get("flag"), Ok(Some(true)));
        assert_eq!(params.get("no_dash"), Ok(3_u32));
        assert_eq!(Params::new::<Declared>(&[]).get::<Option<Size>>("size"), Ok(None));
        let missing = Params::new::<Declared>(&[]).get::<Size>("size");
        assert_eq!(missing, Err("size=: the parameter is required".into()));
    }

    #[test]
    fn a_misspelt_name_is_an_error_and_not_none() {
        let misspelt = Params::new::<Declared>(&[]).get::<Option<Size>>("szie");
        assert_eq!(misspelt, Err("the filter reads a parameter szie, and does not declare it".into()));
    }

    #[test]
    fn a_parameter_of_another_kind_is_an_error() {
        let wrong = Params::new::<Declared>(&[("size", "1")]).get::<Option<u64>>("size");
        assert_eq!(wrong, Err("the filter reads its parameter size as int, and declares it as size".into()));
    }

    #[test]
    fn a_watched_path_has_to_be_asked_for() {
        let on = |given: &[(&str, &str)]| Params::new::<Declared>(given).get::<Option<BoolOrWatch>>("on").unwrap();
        assert!(on(&[]).is_none());
        assert!(matches!(on(&[("on", "true")]), Some(BoolOrWatch::Fixed(true))));
        assert!(matches!(on(&[("on", "watch")]), Some(BoolOrWatch::Watch(_))));
    }
}
