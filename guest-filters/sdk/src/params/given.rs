//! The trait of a filter's parameters, and the parameters that were given.

use crate::describe::Param;

/// The parameters of a filter: their declaration, and how they are read.
/// [`params!`](crate::params!) implements it. `()` stands for no parameters. Implement it by hand
/// if the names are computed, or if the order of different parameters counts.
pub trait Parameters: Sized {
    /// The declarations. It must always return the same.
    fn declare() -> Vec<Param>;

    /// Reads the parameters that were given.
    ///
    /// # Errors
    /// One line for the user, `name=value: ...`, that says what would be right.
    fn read(given: &Params) -> Result<Self, String>;
}

impl Parameters for () {
    fn declare() -> Vec<Param> {
        Vec::new()
    }

    fn read(_given: &Params) -> Result<Self, String> {
        Ok(())
    }
}

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

    /// The kind with which a parameter is declared. None if it is not declared.
    pub(super) fn declared_kind(&self, name: &str) -> Option<String> {
        (self.declare)().iter().find(|param| param.name() == name).map(|param| param.kind().to_string())
    }

    /// The texts that were given for a parameter.
    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        self.iter().filter(|(given, _)| *given == name).map(|(_, value)| value).collect()
    }
}
