//! The types of a parameter's value, one or more for each kind of the contract.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::Errno;
use crate::describe::Param;
use crate::host::{files, scripts, storage};
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
/// | [`ReadFile`], [`CurrentFile`], [`AppendFile`] | path-read, path-now, path-append | a path |
/// | [`WriteFile`], [`StorageFile`] | path-write, path-readwrite | a path |
/// | [`Script`] | script | a shell command |
/// | [`StringOrScript`] | string-or-script | any text, or `script:` and a shell command |
/// | [`Watch`] | watch | a path |
/// | [`BoolOrWatch`] | bool-or-watch | a boolean, or an absolute path |
/// | [`Secret`] | secret | a password, `+FILE`, `-FD` or `-` |
/// | [`Control`] | control | the path of a Unix socket that the host makes |
/// | [`Descriptor`] | descriptor | the number of a descriptor that the server inherits |
/// | [`Process`] | process | the number of a process |
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
            `ReadFile`, `CurrentFile`, `AppendFile`, `WriteFile`, `StorageFile`, `Script`, `StringOrScript`, `Watch`, \
            `BoolOrWatch`, `Control`, `Descriptor`, `Process`, `Secret`, or an enum that implements `Choice`",
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

macro_rules! files {
    ($(#[$doc:meta])* $name:ident: $kind:ident) => {
        $(#[$doc])*
        ///
        /// The filter never sees the path. The host opens the file.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            param: String,
            nth: u32,
        }

        impl Value for $name {
            fn param(name: &str) -> Param {
                Param::$kind(name)
            }

            fn read(name: &str, nth: u32, _text: &str) -> Result<$name, String> {
                Ok($name { param: name.to_string(), nth })
            }
        }

        impl $name {
            /// The parameter that names it.
            pub fn param(&self) -> &str {
                &self.param
            }
        }
    };
}

files! {
    /// A file that the filter reads. It must be there when the server starts.
    ReadFile: path_read
}

files! {
    /// A file that the filter reads. It may be missing, and may be replaced while the server runs.
    CurrentFile: path_now
}

files! {
    /// A file that the filter appends to.
    AppendFile: path_append
}

files! {
    /// A file that the filter appends to, and that it may empty.
    WriteFile: path_write
}

files! {
    /// A file that is kept after the server has ended.
    StorageFile: path_readwrite
}

files! {
    /// A shell command of the operator. (The host runs it; there is no file.)
    Script: script
}

files! {
    /// A Unix socket for commands, which [`OnControl`](crate::OnControl) receives.
    Control: control
}

files! {
    /// A path that exists or does not.
    Watch: watch
}

/// A password. The filter never sees it: the functions of [`crypto`](crate::crypto) take its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    param: String,
    nth: u32,
}

impl Value for Secret {
    fn param(name: &str) -> Param {
        Param::secret(name)
    }

    fn read(name: &str, nth: u32, _text: &str) -> Result<Secret, String> {
        Ok(Secret { param: name.to_string(), nth })
    }
}

impl Secret {
    /// The parameter's name.
    pub fn param(&self) -> &str {
        &self.param
    }

    /// Which of a repeated parameter it is, from 0.
    pub fn nth(&self) -> u32 {
        self.nth
    }
}

files! {
    /// A pipe or a socket that the operator passed to the server.
    Descriptor: descriptor
}

files! {
    /// A process.
    Process: process
}

macro_rules! readable {
    ($($name:ident),*) => {
        $(
            impl $name {
                /// The size in bytes.
                ///
                /// # Errors
                /// `Enoent` if there is no file, `Einval` if it is not a regular one.
                pub fn size(&self) -> Result<u64, Errno> {
                    files::size(&self.param, self.nth)
                }

                /// At most `length` bytes, and at most 1 MiB, from `offset` on. It returns fewer
                /// only at the end of the file.
                ///
                /// # Errors
                /// Those of [`size`](Self::size), and those of reading.
                pub fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
                    files::read(&self.param, self.nth, offset, length)
                }
            }
        )*
    };
}

readable!(ReadFile, CurrentFile);

macro_rules! writable {
    ($($name:ident),*) => {
        $(
            impl $name {
                /// Appends all of `data` in one write.
                ///
                /// # Errors
                /// Those of writing.
                pub fn append(&self, data: &[u8]) -> Result<(), Errno> {
                    files::append(&self.param, self.nth, data)
                }

                /// Makes durable what was appended.
                ///
                /// # Errors
                /// Those of the file system.
                pub fn sync(&self) -> Result<(), Errno> {
                    files::sync(&self.param, self.nth)
                }
            }
        )*
    };
}

writable!(AppendFile, WriteFile);

impl WriteFile {
    /// Empties the file. Only in the methods of [`Lifecycle`](crate::Lifecycle).
    ///
    /// # Errors
    /// Those of the file system.
    pub fn truncate(&self) -> Result<(), Errno> {
        files::truncate(&self.param, self.nth)
    }
}

/// The functions of the contract's interface `storage`, which has their errors.
impl StorageFile {
    /// The size in bytes.
    pub fn size(&self) -> Result<u64, Errno> {
        storage::size(&self.param, self.nth)
    }

    /// Sets the size. What is added reads as zero.
    pub fn resize(&self, size: u64) -> Result<(), Errno> {
        storage::resize(&self.param, self.nth, size)
    }

    /// How many bytes the file takes on the disk.
    pub fn allocated(&self) -> Result<u64, Errno> {
        storage::allocated(&self.param, self.nth)
    }

    /// Reads `length` bytes at `offset` into buffer `buf` from position `at` on.
    pub fn pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        storage::pread(&self.param, self.nth, offset, length, buf, at)
    }

    /// Writes `length` bytes of buffer `buf` from position `at` on to `offset`.
    pub fn pwrite(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        storage::pwrite(&self.param, self.nth, offset, length, buf, at)
    }

    /// At most `length` bytes from `offset` on, and at most 64 KiB.
    pub fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
        storage::read(&self.param, self.nth, offset, length)
    }

    /// Writes at most 64 KiB.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        storage::write(&self.param, self.nth, offset, data)
    }

    /// Frees a range, which then reads as zero.
    pub fn punch(&self, offset: u64, length: u64) -> Result<(), Errno> {
        storage::punch(&self.param, self.nth, offset, length)
    }

    /// Makes durable what was written before.
    pub fn flush(&self) -> Result<(), Errno> {
        storage::flush(&self.param, self.nth)
    }
}

impl Script {
    /// Runs the command with these variables, and waits for its end. Returns its exit status and
    /// its output.
    ///
    /// # Errors
    /// Those of the contract's `scripts.run`.
    pub fn run(&self, variables: &[(&str, &str)]) -> Result<(i32, Vec<u8>), Errno> {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        scripts::run(&self.param, self.nth, &variables.iter().map(owned).collect::<Vec<_>>())
    }
}

/// Any text, or a shell command of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringOrScript {
    /// The user wrote a text.
    Text(String),
    /// The user wrote `script:` and a command.
    Script(Script),
}

impl Value for StringOrScript {
    fn param(name: &str) -> Param {
        Param::string_or_script(name)
    }

    fn read(name: &str, nth: u32, text: &str) -> Result<StringOrScript, String> {
        match text {
            "script:" => Script::read(name, nth, text).map(StringOrScript::Script),
            _ => Ok(StringOrScript::Text(text.to_string())),
        }
    }
}

macro_rules! watched {
    ($($name:ident: $what:literal),*) => {
        $(
            impl $name {
                #[doc = $what]
                /// False if that cannot be found out.
                pub fn holds(&self) -> bool {
                    files::holds(&self.param, self.nth).unwrap_or(false)
                }

                /// Whether `OnWatch::changed` tells of this one.
                pub fn is(&self, param: &str, nth: u32) -> bool {
                    self.param == param && self.nth == nth
                }
            }
        )*
    };
}

watched!(
    Watch: "Whether the path exists now.",
    CurrentFile: "Whether a file is there now.",
    Descriptor: "Whether the other end is open.",
    Process: "Whether it runs."
);

/// True, false, or whether a path exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoolOrWatch {
    /// The user wrote a boolean.
    Fixed(bool),
    /// The user wrote a path.
    Watch(Watch),
}

impl BoolOrWatch {
    /// The value now.
    pub fn holds(&self) -> bool {
        match self {
            BoolOrWatch::Fixed(value) => *value,
            BoolOrWatch::Watch(watch) => watch.holds(),
        }
    }
}

impl Value for BoolOrWatch {
    fn param(name: &str) -> Param {
        Param::bool_or_watch(name)
    }

    fn read(name: &str, nth: u32, text: &str) -> Result<BoolOrWatch, String> {
        match text {
            "watch" => Watch::read(name, nth, text).map(BoolOrWatch::Watch),
            _ => bool::read(name, nth, text).map(BoolOrWatch::Fixed),
        }
    }
}

/// As the user would write it. A path is not known.
impl Shown for BoolOrWatch {
    fn shown(&self) -> String {
        match self {
            BoolOrWatch::Fixed(value) => value.to_string(),
            BoolOrWatch::Watch(_) => "a path".to_string(),
        }
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
