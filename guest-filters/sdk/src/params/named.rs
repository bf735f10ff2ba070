//! The types of the parameters that name files, paths and scripts.

use crate::describe::Param;
use crate::host::{disks, files, scripts, storage};
use crate::{CommandFlags, Errno, Extent};

use super::value::{Shown, Value};

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
    /// A disk beside next.
    Disk: disk
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

files! {
    /// A pipe or a socket that the operator passed to the server.
    Descriptor: descriptor
}

files! {
    /// A process.
    Process: process
}

files! {
    /// A password. The functions of [`crypto`](crate::crypto) take its name.
    Secret: secret
}

impl Secret {
    /// Which of a repeated parameter it is, from 0.
    pub fn nth(&self) -> u32 {
        self.nth
    }
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

/// The functions of the contract's interface `disks`, which has their errors.
impl Disk {
    /// Which of a repeated parameter it is, from 0.
    pub fn nth(&self) -> u32 {
        self.nth
    }

    /// In bytes.
    pub fn size(&self) -> Result<u64, Errno> {
        disks::size(&self.param, self.nth)
    }

    /// Reads `length` bytes at `offset` into buffer `buf` from position `at` on.
    pub fn pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        disks::pread(&self.param, self.nth, offset, length, buf, at)
    }

    /// The extents of a range: contiguous from `offset` on, and cut to the range.
    pub fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        disks::extents(&self.param, self.nth, offset, length, flags)
    }

    /// Asks the disk to cache a range.
    pub fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        disks::cache(&self.param, self.nth, offset, length)
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

/// A default is a text: the filter cannot know a command of the operator.
impl Shown for StringOrScript {
    fn shown(&self) -> String {
        match self {
            StringOrScript::Text(text) => text.clone(),
            StringOrScript::Script(_) => "script:".to_string(),
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
