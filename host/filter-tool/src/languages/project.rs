//! A filter's directory, and the file in it that says what it is.

use std::path::{Path, PathBuf};

use super::language::Language;
use crate::error::{Error, Result};

/// The file that makes a directory a project.
pub const FILE: &str = "rbdkit-filter.toml";

/// The longest such file that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// A directory that `new` made.
pub struct Project {
    pub dir: PathBuf,
    /// The filter's name. The directory's may be another.
    pub name: String,
    pub language: Language,
}

impl Project {
    /// Reads what a directory says of itself.
    ///
    /// # Errors
    /// It has no such file, or the file says something else.
    pub fn open(dir: &Path) -> Result<Project> {
        let path = dir.join(FILE);
        let length = std::fs::metadata(&path).map_err(|_| Error::NothingToBuild(dir.to_path_buf()))?.len();
        let wrong = |why: String| Error::Project { path: path.clone(), why };
        if length > LONGEST {
            return Err(wrong(format!("it has {length} bytes, and at most {LONGEST} make sense")));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::file("cannot read", &path))?;
        let (name, language) = parse(&text).map_err(wrong)?;
        Ok(Project { dir: dir.to_path_buf(), name, language })
    }

    /// The text of the file.
    pub fn file(name: &str, language: Language) -> String {
        format!(
            "# This file tells rbdkit-filter what is built here.\nname = \"{name}\"\nlanguage = \"{}\"\n",
            language.name()
        )
    }

    /// A path in the project.
    pub fn path(&self, rest: &str) -> PathBuf {
        self.dir.join(rest)
    }

    /// The directory for what a build makes. It exists afterwards.
    pub fn made(&self) -> Result<PathBuf> {
        let made = self.path("target");
        std::fs::create_dir_all(&made).map_err(Error::file("cannot make", &made))?;
        Ok(made)
    }
}

/// Whether a filter can have this name.
pub fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// The name and the language. The file is TOML, of which it needs only lines `key = "value"` and
/// comments.
fn parse(text: &str) -> std::result::Result<(String, Language), String> {
    let (mut name, mut language) = (None, None);
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let value = line.split_once('=').and_then(|(key, value)| {
            let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
            Some((key.trim(), value))
        });
        match value {
            Some(("name", value)) if is_name(value) => name = Some(value.to_owned()),
            Some(("name", value)) => return Err(format!("line {number}: '{value}' cannot be a filter's name")),
            Some(("language", value)) => {
                language = Some(Language::named(value).ok_or_else(|| format!("line {number}: no language '{value}'"))?);
            }
            Some((key, _)) => return Err(format!("line {number}: there is no '{key}', only name and language")),
            None => return Err(format!("line {number} is not key = \"value\"")),
        }
    }
    Ok((name.ok_or("it has no name")?, language.ok_or("it has no language")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_new_writes_is_read_again() {
        let text = Project::file("mask-2", Language::Cpp);
        assert_eq!(parse(&text), Ok(("mask-2".to_owned(), Language::Cpp)));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, why) in [
            ("name = \"a\"", "it has no language"),
            ("language = \"c\"", "it has no name"),
            ("name = a", "line 1 is not key = \"value\""),
            ("\nname = \"A\"", "line 2: 'A' cannot be a filter's name"),
            ("language = \"cobol\"", "line 1: no language 'cobol'"),
            ("colour = \"red\"", "line 1: there is no 'colour', only name and language"),
        ] {
            assert_eq!(parse(text), Err(why.to_owned()));
        }
    }
}
