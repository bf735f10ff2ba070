//! One field of a struct of parameters.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::describe::Param;

use super::{Params, Shown, Value};

/// The type of a field: how often its parameter may be given. [`Value`] says of which kind it is.
pub trait Setting: Sized {
    /// The type of one value.
    type Value: Value;
    /// Declares how often the parameter may be given.
    fn declare(param: Param) -> Param;
    /// Makes the field from the values that were given, in their order. None if one is missing.
    fn collect(values: Vec<Self::Value>) -> Option<Self>;
}

/// The parameter is required unless the field has a default. The last value counts.
impl<T: Value> Setting for T {
    type Value = T;

    fn declare(param: Param) -> Param {
        param.required()
    }

    fn collect(values: Vec<T>) -> Option<T> {
        values.into_iter().next_back()
    }
}

/// The parameter may be left out. The last value counts.
impl<T: Value> Setting for Option<T> {
    type Value = T;

    fn declare(param: Param) -> Param {
        param
    }

    fn collect(values: Vec<T>) -> Option<Option<T>> {
        Some(values.into_iter().next_back())
    }
}

/// The parameter may be given any number of times, and all values count.
impl<T: Value> Setting for Vec<T> {
    type Value = T;

    fn declare(param: Param) -> Param {
        param.repeat()
    }

    fn collect(values: Vec<T>) -> Option<Vec<T>> {
        Some(values)
    }
}

/// A limit that the host does not know.
type Check<V> = Box<dyn Fn(&V) -> Result<(), String>>;

/// The line for the user.
fn refused(name: &str, text: &str, wrong: &str) -> String {
    format!("{name}={text}: {wrong}")
}

/// A parameter with its name, its limits and its default. [`params!`](crate::params!) makes one for
/// each field.
pub struct Field<T: Setting> {
    param: Param,
    default: Option<T>,
    checks: Vec<Check<T::Value>>,
}

impl<T: Setting> Field<T> {
    /// A parameter of the field's name, in which `-` stands for `_`. The lines of `help` make one
    /// text.
    pub fn new(field: &str, help: &[&str]) -> Field<T> {
        let help: Vec<&str> = help.iter().map(|line| line.trim()).collect();
        let param = T::Value::param(&field.replace('_', "-")).help(&help.join(" "));
        Field { param: T::declare(param), default: None, checks: Vec::new() }
    }

    /// Another name than the field's.
    pub fn name(mut self, name: &str) -> Self {
        self.param = self.param.rename(name);
        self
    }

    /// Another key with the same meaning.
    pub fn alias(mut self, name: &str) -> Self {
        self.param = self.param.alias(name);
        self
    }

    /// The layers below receive the parameter as well.
    pub fn pass_on(mut self) -> Self {
        self.param = self.param.pass_on();
        self
    }

    /// A limit. The error completes `name=value: `.
    pub fn check(mut self, check: impl Fn(&T::Value) -> Result<(), String> + 'static) -> Self {
        self.checks.push(Box::new(check));
        self
    }

    /// The declaration.
    pub fn declare(self) -> Param {
        self.param
    }

    /// Reads the values that were given.
    ///
    /// # Errors
    /// One line for the user.
    pub fn read(self, given: &Params) -> Result<T, String> {
        let name = self.param.name();
        let mut values = Vec::new();
        for (nth, text) in (0..).zip(given.texts(name)) {
            let value = T::Value::read(name, nth, text).map_err(|wrong| refused(name, text, &wrong))?;
            self.checks.iter().try_for_each(|check| check(&value)).map_err(|wrong| refused(name, text, &wrong))?;
            values.push(value);
        }
        match (values.is_empty(), self.default) {
            (true, Some(default)) => Ok(default),
            _ => T::collect(values).ok_or_else(|| format!("{name}=: the parameter is required")),
        }
    }
}

impl<T: Setting> Field<T>
where
    T::Value: PartialOrd + Display + 'static,
{
    /// The least and the greatest value.
    pub fn range(self, range: RangeInclusive<T::Value>) -> Self {
        self.check(move |value| match range.contains(value) {
            true => Ok(()),
            false => Err(format!("is not from {} to {}", range.start(), range.end())),
        })
    }
}

impl<T: Value + Shown> Field<T> {
    /// The value of a parameter that was not given. The help text shows it.
    pub fn default(mut self, default: T) -> Self {
        self.param = self.param.default(&default.shown());
        self.default = Some(default);
        self
    }
}
