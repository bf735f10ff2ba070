//! One field of a struct of parameters.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::describe::Param;

use super::given::Params;
use super::value::{Shown, Value};

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

/// Lets the compiler point at a field whose type cannot be a parameter.
#[doc(hidden)]
pub const fn is_setting<T: Setting>() {}

/// A limit that the host does not know.
type Check<V> = Box<dyn Fn(&V) -> Result<(), String>>;

/// The name of a field's parameter. (`str::replace` would make each filter longer.)
fn name_of(field: &str) -> String {
    field.chars().map(|c| if c == '_' { '-' } else { c }).collect()
}

/// Adds the help text, which the compiler splits into lines that begin with a blank.
fn described(param: Param, help: &[&str]) -> Param {
    let mut text = String::new();
    for line in help {
        text += if text.is_empty() { line.strip_prefix(' ').unwrap_or(line) } else { line };
    }
    param.help(&text)
}

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
        let param = described(T::Value::param(&name_of(field)), help);
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

    /// The value of a parameter that was not given. The help text shows it.
    pub fn default(mut self, default: T) -> Self
    where
        T: Value + Shown,
    {
        self.param = self.param.optional().default(&default.shown());
        self.default = Some(default);
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

impl Params {
    /// Reads a parameter: a value, an `Option` of it, or a `Vec` of all of them.
    ///
    /// # Errors
    /// One line for the user. Also if the filter does not declare a parameter of this name and
    /// kind, so that a misspelt name is found the first time the filter runs.
    pub fn get<T: Setting>(&self, name: &str) -> Result<T, String> {
        let read_as = T::Value::param(name);
        let kind = read_as.kind();
        match self.declared_kind(name) {
            None => Err(format!("the filter reads a parameter {name}, and does not declare it")),
            Some(declared) if declared != kind => {
                Err(format!("the filter reads its parameter {name} as {kind}, and declares it as {declared}"))
            }
            Some(_) => Field::<T>::new(name, &[]).name(name).read(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Field;
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

    #[test]
    fn a_field_declares_what_its_type_and_its_options_say() {
        let plain = Field::<Size>::new("block_size", &[" Bytes of", " a block."]).declare().contract().clone();
        assert_eq!((&*plain.name, &*plain.help, &*plain.kind), ("block-size", "Bytes of a block.", "size"));
        assert_eq!((plain.required, plain.repeat, plain.default), (true, false, None));
        let default = Field::<Size>::new("size", &[]).default(Size(65536)).declare().contract().clone();
        assert_eq!((default.required, default.default.as_deref()), (false, Some("64k")));
        let option = Field::<Option<Size>>::new("size", &[]).alias("other").pass_on().declare().contract().clone();
        assert_eq!((option.required, option.repeat, option.pass_on), (false, false, true));
        assert_eq!(option.aliases, ["other"]);
        let many = Field::<Vec<u8>>::new("n", &[]).name("no_dash").declare().contract().clone();
        assert_eq!((&*many.name, many.required, many.repeat), ("no_dash", false, true));
    }
}
