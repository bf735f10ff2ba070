//! `@FILE` among the parameters of the plugin: the file has one parameter on each line.
//!
//! A line is a parameter as on the command line, without quotes: all bytes up to the end of the
//! line count. Empty lines and lines that begin with `#` are skipped. A line `@FILE` stands for the
//! parameters of another file. A relative name in a file is relative to that file's directory.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::text::plain;

use super::values::error;

/// Reads a file. It may stop after [`MAX_BYTES`] and one byte.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// The most bytes of all files together. Parameters have some hundred bytes, and a file that names
/// others twice must not double what is read without end.
pub const MAX_BYTES: usize = 1 << 20;

/// How deep files may name other files. A file that names itself ends here.
const MAX_DEPTH: usize = 16;

/// Puts the parameters of the files where their names stand.
///
/// # Errors
/// One line that names the file.
pub(super) fn expand(words: Vec<OsString>, read: ReadFile<'_>) -> Result<Vec<OsString>, ConfigError> {
    let mut expansion = Expansion { read, left: MAX_BYTES, expanded: Vec::new() };
    for word in words {
        expansion.take(word, Path::new(""), 0)?;
    }
    Ok(expansion.expanded)
}

struct Expansion<'a> {
    read: ReadFile<'a>,
    /// How many bytes the next files may have.
    left: usize,
    expanded: Vec<OsString>,
}

impl Expansion<'_> {
    /// Takes a parameter that stands in a file of this directory, `depth` files deep.
    fn take(&mut self, word: OsString, directory: &Path, depth: usize) -> Result<(), ConfigError> {
        match word.as_bytes().strip_prefix(b"@") {
            Some(name) => self.take_file(&directory.join(OsStr::from_bytes(name)), depth),
            None => {
                self.expanded.push(word);
                Ok(())
            }
        }
    }

    fn take_file(&mut self, file: &Path, depth: usize) -> Result<(), ConfigError> {
        let failed = |what: &dyn std::fmt::Display| error(format!("@{}: {what}", file.display()));
        if depth == MAX_DEPTH {
            return Err(failed(&format_args!("files with parameters name each other more than {MAX_DEPTH} deep")));
        }
        let text = (self.read)(file).map_err(|wrong| {
            failed(&format_args!(
                "cannot read the file with parameters: {} (a value that begins with @ is KEY=@...)",
                plain(&wrong)
            ))
        })?;
        let Some(left) = self.left.checked_sub(text.len()) else {
            return Err(failed(&format_args!("the files with parameters have more than {MAX_BYTES} bytes")));
        };
        self.left = left;
        let directory = file.parent().unwrap_or(Path::new(""));
        for line in text.split(|byte| *byte == b'\n') {
            if line.contains(&0) {
                return Err(failed(&"a line has a zero byte: this is no file with parameters"));
            }
            if line.starts_with(b"#") || line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            self.take(OsString::from_vec(line.to_vec()), directory, depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters, if these files exist.
    fn expanded(words: &[&str], files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| text.as_bytes().to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        let words = words.iter().map(OsString::from).collect();
        match expand(words, &read) {
            Ok(words) => Ok(words.into_iter().map(|word| word.into_string().unwrap()).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn lines_are_parameters_in_their_place() {
        let text = "# first\n\nb=with spaces \n  \nbare\nc=#d\nk=@v";
        assert_eq!(
            expanded(&["a=1", "@p", "z=2"], &[("p", text)]).unwrap(),
            ["a=1", "b=with spaces ", "bare", "c=#d", "k=@v", "z=2"]
        );
        assert_eq!(expanded(&["@p"], &[("p", "")]).unwrap(), [""; 0]);
    }

    #[test]
    fn files_name_files_beside_them() {
        let files = [("/etc/d/one", "@two\n@sub/three\n@/abs\n"), ("/etc/d/two", "t=2"), ("/abs", "a=1")];
        let with_sub = [&files[..], &[("/etc/d/sub/three", "@four"), ("/etc/d/sub/four", "f=4")]].concat();
        assert_eq!(expanded(&["@/etc/d/one"], &with_sub).unwrap(), ["t=2", "f=4", "a=1"]);
    }

    #[test]
    fn what_cannot_be_taken_is_one_line() {
        for (files, message) in [
            (
                &[][..],
                "@p: cannot read the file with parameters: entity not found (a value that begins with @ is KEY=@...)",
            ),
            (&[("p", "@p")], "@p: files with parameters name each other more than 16 deep"),
            (&[("p", "a=\0")], "@p: a line has a zero byte: this is no file with parameters"),
        ] {
            assert_eq!(expanded(&["@p"], files).unwrap_err(), message);
        }
        let long = "x".repeat(MAX_BYTES + 1);
        let message = expanded(&["@p"], &[("p", &long)]).unwrap_err();
        assert_eq!(message, "@p: the files with parameters have more than 1048576 bytes");
        // Each file names the next one twice.
        let padding = "#".repeat(100);
        let files: Vec<(String, String)> =
            (0..15).map(|n| (format!("f{n}"), format!("{padding}\n@f{}\n@f{}\n", n + 1, n + 1))).collect();
        let mut files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&name[..], &text[..])).collect();
        files.push(("f15", "a=1"));
        assert!(expanded(&["@f0"], &files).unwrap_err().ends_with("have more than 1048576 bytes"));
    }
}
