//! Which member of an archive is the disk, if nobody has said it.

use rbdkit_filter_sdk::image::{Error, quoted};

/// At most this many files of an archive are remembered when nobody has named one.
pub const MOST_FILES: usize = 1000;

/// Error lines name at most this many members.
const MOST_NAMED: usize = 10;

/// Files of at most this many bytes count as text that accompanies a disk, if their names say so.
const MOST_TEXT: u64 = 64 << 10;

/// The ends of names of texts that accompany disks: descriptions, manifests, checksums, signatures.
const TEXTS: [&str; 14] = [
    ".ovf", ".mf", ".cert", ".txt", ".md", ".xml", ".json", ".nfo", ".md5", ".sha1", ".sha256", ".sha512", ".sig",
    ".asc",
];

/// The files of an archive, as far as they are remembered.
#[derive(Default)]
pub struct Files {
    files: Vec<(Vec<u8>, u64)>,
    /// How many there are, with those that are not remembered.
    count: u64,
}

impl Files {
    /// Adds a file: its name and its size. Files are counted from 0 in this order.
    pub fn push(&mut self, name: &[u8], size: u64) {
        self.count += 1;
        if self.files.len() < MOST_FILES {
            self.files.push((name.to_vec(), size));
        }
    }

    /// How many files there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The name of a file.
    pub fn name(&self, number: usize) -> &[u8] {
        self.files.get(number).map_or(b"", |(name, _)| name)
    }

    /// The number of the file that is the disk: the only one beside short texts, or the only
    /// `.vmdk` beside an `.ovf`.
    ///
    /// # Errors
    /// A line with the names of the files if there is no such file, or more than one. `parameter`
    /// is the one that chooses.
    pub fn only(&self, parameter: &str) -> Result<usize, Error> {
        let all_known = self.count == self.files.len() as u64;
        let ends = |name: &[u8], end: &str| {
            name.len() >= end.len() && name[name.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
        };
        let is_text = |name: &[u8], size: u64| size <= MOST_TEXT && TEXTS.iter().any(|end| ends(name, end));
        let single = |wanted: &dyn Fn(&[u8], u64) -> bool| {
            let mut found = self.files.iter().enumerate().filter(|(_, (name, size))| wanted(name, *size));
            let first = found.next().map(|(number, _)| number);
            first.filter(|_| all_known && found.next().is_none())
        };
        let has_ovf = self.files.iter().any(|(name, _)| ends(name, ".ovf"));
        let disk = single(&|name, size| !is_text(name, size));
        let disk = disk.or_else(|| single(&|name, _| has_ovf && ends(name, ".vmdk")));
        disk.ok_or_else(|| match self.count {
            0 => Error::image("the archive has no regular file"),
            count => Error::image(format!(
                "the archive has {count} file{}, and none is the only disk: choose with {parameter}=: {}",
                if count == 1 { "" } else { "s" },
                self.names()
            )),
        })
    }

    /// The first names, for a line.
    pub fn names(&self) -> String {
        let mut names: Vec<String> = self.files.iter().take(MOST_NAMED).map(|(name, _)| quoted(name)).collect();
        if self.count > names.len() as u64 {
            names.push("...".into());
        }
        names.join(", ")
    }
}

/// Whether a program that unpacks this name could write outside of its directory.
pub fn leaves_directory(name: &[u8]) -> bool {
    name.first() == Some(&b'/')
        || name.first() == Some(&b'\\')
        || name.get(1) == Some(&b':')
        || name.split(|byte| matches!(byte, b'/' | b'\\')).any(|part| part == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(files: &[(&str, u64)]) -> Result<usize, String> {
        let mut list = Files::default();
        for (name, size) in files {
            list.push(name.as_bytes(), *size);
        }
        list.only("tar-entry").map_err(|error| error.to_string())
    }

    #[test]
    fn the_only_file_beside_short_texts_is_the_disk() {
        assert_eq!(only(&[("disk.raw", 5)]), Ok(0));
        assert_eq!(only(&[("README.TXT", 100), ("disk", 5), ("disk.sha256", 70)]), Ok(1));
        assert_eq!(only(&[("a.ovf", 1), ("a.mf", 1), ("a.vmdk", 9), ("b.iso", 9)]), Ok(2));
        assert_eq!(only(&[]), Err("the archive has no regular file".into()));
        let line = "the archive has 2 files, and none is the only disk: choose with tar-entry=: 'a', 'b.txt'";
        assert_eq!(only(&[("a", 1), ("b.txt", 100_000)]), Err(line.into()));
        let line = "the archive has 1 file, and none is the only disk: choose with tar-entry=: 'b.txt'";
        assert_eq!(only(&[("b.txt", 1)]), Err(line.into()));
        let many: Vec<_> = (0..20).map(|_| ("x", 1)).collect();
        assert!(only(&many).unwrap_err().ends_with("'x', 'x', 'x', ..."));
    }

    #[test]
    fn names_that_leave_the_directory_are_known() {
        for name in ["/etc/passwd", "../x", "a/../../b", "a\\..\\b", "C:\\x", "\\x", "a/.."] {
            assert!(leaves_directory(name.as_bytes()), "{name}");
        }
        for name in ["a", "./a", "a..b/c", "...", ""] {
            assert!(!leaves_directory(name.as_bytes()), "{name}");
        }
    }
}
