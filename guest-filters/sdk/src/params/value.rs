//! The types of a parameter's value, one or more for each kind of the contract.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::describe::Param;
use crate::units;

/// A type that a parameter's value can have. The kind of the parameter follows from it:
///
/// | type | kind | the user writes |
/// |---|---|---|
/// | `String` | string | any text |
/// | `bool` | bool | `true`, `no`, `1` |
/// | `u8`, `u16`, `u32`, `u64` | int | a whole number that the type can hold |
/// | [`Size`] | size | bytes: `512`, `64k`, `1G` |
/// | [`Duration`] | duration | `2`, `50ms` |
/// | [`Percent`] | percent | 0 to 100 |
/// | [`Probability`] | probability | `10%`, `0.1`, `1:1000` |
/// | an enum that implements [`Choice`] | choice | one of its words |
/// | [`ReadFile`](super::ReadFile) | path-read | a path |
/// | [`CurrentFile`](super::CurrentFile) | path-now | a path |
/// | [`AppendFile`](super::AppendFile) | path-append | a path |
/// | [`WriteFile`](super::WriteFile) | path-write | a path |
/// | [`StorageFile`](super::StorageFile) | path-readwrite | a path |
/// | [`Disk`](super::Disk) | disk | a path, or `chain:` and the words of a chain |
/// | [`Script`](super::Script) | script | a shell command |
/// | [`StringOrScript`](super::StringOrScript) | string-or-script | text, or `script:COMMAND` |
/// | [`Watch`](super::Watch) | watch | a path |
/// | [`BoolOrWatch`](super::BoolOrWatch) | bool-or-watch | a boolean, or an absolute path |
/// | [`Secret`](super::Secret) | secret | a password, `+FILE`, `-FD` or `-` |
/// | [`Control`](super::Control) | control | the path of a Unix socket that the host makes |
/// | [`Descriptor`](super::Descriptor) | descriptor | a descriptor that the server inherits |
/// | [`Process`](super::Process) | process | the number of a process |
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the value of a parameter, or cannot have a default",
    note = "`Value` lists the types of values",
    note = "a field may also be an `Option` or a `Vec` of them, and then it has no default"
)]
pub trait Value: Sized {
    /// The declaration of a parameter with this kind.
    fn param(name: &str) -> Param;

    /// Reads the canonical text of the value that was given as the `nth` of this parameter.
    ///
    /// # Errors
    /// What is wrong, as the end of `name=value: ...`.
    fn read(name: &str, nth: u32, text: &str) -> Result<Self, String>;
}

/// A value that can be a default.
pub trait Shown {
    /// The value as the user would write it.
    fn shown(&self) -> String;
}

/// The text does not fit the kind. The host checks that before, so this is a fault of the host or
/// of a test.
fn not_of_this_kind<E>(_: E) -> String {
    "the value is not of the declared kind".to_string()
}

impl Value for String {
    fn param(name: &str) -> Param {
        Param::string(name)
    }

    fn read(_name: &str, _nth: u32, text: &str) -> Result<String, String> {
        Ok(text.to_string())
    }
}

impl Shown for String {
    fn shown(&self) -> String {
        self.clone()
    }
}

impl Value for bool {
    fn param(name: &str) -> Param {
        Param::bool(name)
    }

    fn read(_name: &str, _nth: u32, text: &str) -> Result<bool, String> {
        text.parse().map_err(not_of_this_kind)
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {
        $(
            impl Value for $number {
                fn param(name: &str) -> Param {
                    Param::int(name)
                }

                fn read(_name: &str, _nth: u32, text: &str) -> Result<$number, String> {
                    text.parse().map_err(|_| format!("is not from 0 to {}", <$number>::MAX))
                }
            }

            impl Shown for $number {
                fn shown(&self) -> String {
                    self.to_string()
                }
            }
        )*
    };
}

whole_numbers!(u8, u16, u32, u64);

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Value for Size {
    fn param(name: &str) -> Param {
        Param::size(name)
    }

    fn read(_name: &str, _nth: u32, text: &str) -> Result<Size, String> {
        text.parse().map(Size).map_err(not_of_this_kind)
    }
}

/// With the largest unit that needs no fraction: `64k`.
impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::format_size(self.0))
    }
}

impl Shown for Size {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Value for Duration {
    fn param(name: &str) -> Param {
        Param::duration(name)
    }

    fn read(_name: &str, _nth: u32, text: &str) -> Result<Duration, String> {
        text.parse().map(Duration::from_nanos).map_err(not_of_this_kind)
    }
}

/// In seconds without a unit, else with the largest unit that needs no fraction.
impl Shown for Duration {
    fn shown(&self) -> String {
        // At most 2^64 - 1: the contract has no longer durations, and u128 is slow in WebAssembly.
        let ns = self.as_nanos() as u64;
        let units = [("", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
        match units.into_iter().find(|(_, scale)| ns.is_multiple_of(*scale)) {
            Some((unit, scale)) => format!("{}{unit}", ns / scale),
            None => format!("{ns}ns"),
        }
    }
}

/// A percentage, 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u8);

impl Value for Percent {
    fn param(name: &str) -> Param {
        Param::percent(name)
    }

    fn read(_name: &str, _nth: u32, text: &str) -> Result<Percent, String> {
        text.parse().map(Percent).map_err(not_of_this_kind)
    }
}

impl Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Shown for Percent {
    fn shown(&self) -> String {
        self.to_string()
    }
}

/// A probability in parts of 10^9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probability(pub u32);

impl Value for Probability {
    fn param(name: &str) -> Param {
        Param::probability(name)
    }

    fn read(_name: &str, _nth: u32, text: &str) -> Result<Probability, String> {
        text.parse().map(Probability).map_err(not_of_this_kind)
    }
}

/// As a percentage.
impl Shown for Probability {
    fn shown(&self) -> String {
        format!("{}%", f64::from(self.0) / 1e7)
    }
}

/// An enum whose values are the words of a choice.
///
/// ```
/// use rbdkit_filter_sdk::prelude::*;
///
/// #[derive(Clone, Copy, PartialEq)]
/// enum Policy {
///     Writeback,
///     Unsafe,
/// }
///
/// impl Choice for Policy {
///     const CHOICES: &'static [(&'static str, Policy)] =
///         &[("writeback", Policy::Writeback), ("unsafe", Policy::Unsafe)];
/// }
///
/// params! {
///     struct Settings {
///         /// When writes reach the layer below.
///         cache: Policy = Policy::Writeback,
///     }
/// }
///
/// let settings = Settings::read(&Params::new::<Settings>(&[("cache", "unsafe")])).unwrap();
/// assert!(settings.cache == Policy::Unsafe);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the value of a parameter",
    note = "a value is a `String`, `bool`, `u8`, `u16`, `u32`, `u64`, `Size`, `Duration`, `Percent`, `Probability`, \
            `ReadFile`, `CurrentFile`, `AppendFile`, `WriteFile`, `StorageFile`, `Disk`, `Script`, `StringOrScript`, \
            `Watch`, `BoolOrWatch`, `Control`, `Descriptor`, `Process`, `Secret`, or an enum that implements `Choice`",
    note = "a field may also be an `Option` or a `Vec` of them, and then it has no default"
)]
pub trait Choice: Copy + PartialEq + 'static {
    /// Each word, and what it stands for.
    const CHOICES: &'static [(&'static str, Self)];
}

impl<T: Choice> Value for T {
    fn param(name: &str) -> Param {
        let words: Vec<&str> = T::CHOICES.iter().map(|(word, _)| *word).collect();
        Param::choice(name, &words)
    }

    fn read(_name: &str, _nth: u32, text: &str) -> Result<T, String> {
        T::CHOICES.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = T::CHOICES.iter().map(|(word, _)| *word).collect();
            format!("is not one of {}", words.join(", "))
        })
    }
}

impl<T: Choice> Shown for T {
    fn shown(&self) -> String {
        T::CHOICES.iter().find(|(_, value)| value == self).map_or(String::new(), |(word, _)| word.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_shown_as_the_user_would_write_it() {
        for (size, text) in [(0, "0"), (512, "512"), (65536, "64k"), (2 << 20, "2M"), (1025, "1025")] {
            assert_eq!(Size(size).shown(), text);
        }
        for (ns, text) in [(0, "0"), (2_000_000_000, "2"), (50_000_000, "50ms"), (1_500_000, "1500us"), (999, "999ns")]
        {
            assert_eq!(Duration::from_nanos(ns).shown(), text);
        }
        for (parts, text) in [(0, "0%"), (100_000_000, "10%"), (1_000_000_000, "100%"), (1_000_000, "0.1%")] {
            assert_eq!(Probability(parts).shown(), text);
        }
    }

    #[test]
    fn a_number_that_its_type_cannot_hold_is_refused() {
        assert_eq!(u8::read("key", 0, "256"), Err("is not from 0 to 255".into()));
        assert_eq!(u8::read("key", 0, "255"), Ok(255));
        assert_eq!(u64::read("key", 0, "18446744073709551615"), Ok(u64::MAX));
    }
}
