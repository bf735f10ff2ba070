//! Which files of a project have changed.
//!
//! It compares the times and sizes of the files, because that works on every file system. Network
//! and container file systems often report no changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Directories that hold what tools make.
const MADE: [&str; 4] = ["target", "node_modules", "__pycache__", "dist"];

/// The most files that are watched. A project has a few hundred at most.
const MAX_FILES: usize = 10_000;

/// The directories below a project that are entered at most, one within the other.
const MAX_DEPTH: usize = 16;

type Files = BTreeMap<PathBuf, (SystemTime, u64)>;

/// The files of a project as they were.
pub(super) struct Watched {
    dir: PathBuf,
    files: Files,
    /// Files that changed during the last build. Only a build that did not change them again shows
    /// that the author had changed them.
    suspects: BTreeSet<PathBuf>,
    /// Files that builds write.
    made: BTreeSet<PathBuf>,
}

impl Watched {
    /// The files as they are now.
    pub(super) fn new(dir: &Path) -> Watched {
        let files = files_of(dir);
        Watched { dir: dir.to_path_buf(), files, suspects: BTreeSet::new(), made: BTreeSet::new() }
    }

    /// Whether files have changed since the last call.
    pub(super) fn has_changed(&mut self) -> bool {
        let changed = self.update();
        self.suspects.clear();
        changed.iter().any(|path| !self.made.contains(path))
    }

    /// [`Watched::has_changed`] after a build. Files that change during two builds in a row are
    /// files that the build writes, and do not count from then on.
    pub(super) fn has_changed_during_a_build(&mut self) -> bool {
        let mut changed = self.update();
        changed.retain(|path| !self.made.contains(path));
        self.made.extend(changed.intersection(&self.suspects).cloned());
        changed.retain(|path| !self.made.contains(path));
        self.suspects = changed;
        !self.suspects.is_empty()
    }

    /// The files that have changed since the last time.
    fn update(&mut self) -> BTreeSet<PathBuf> {
        let now = files_of(&self.dir);
        let differs = |one: &Files, other: &Files| {
            let changed = one.iter().filter(|(path, state)| other.get(*path) != Some(*state));
            changed.map(|(path, _)| path.clone()).collect::<BTreeSet<_>>()
        };
        let mut changed = differs(&self.files, &now);
        changed.extend(differs(&now, &self.files));
        self.files = now;
        changed
    }
}

/// The files of a project without what tools make: hidden files, [`MADE`] and components.
fn files_of(dir: &Path) -> Files {
    let mut files = Files::new();
    let mut directories = vec![(dir.to_path_buf(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        // It may have been removed meanwhile.
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if name.starts_with('.') || MADE.contains(&&*name) || name.ends_with(".wasm") || name.ends_with('~') {
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && depth < MAX_DEPTH {
                directories.push((path, depth + 1));
            } else if metadata.is_file() && files.len() < MAX_FILES {
                let time = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.insert(path, (time, metadata.len()));
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        std::fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn changed_new_and_removed_files_count_and_what_tools_make_does_not() {
        let dir = tempfile::TempDir::new().unwrap();
        let dir = dir.path();
        for made in MADE.iter().chain(&["src"]) {
            std::fs::create_dir(dir.join(made)).unwrap();
        }
        write(dir, "src/lib.rs", "one");
        let mut watched = Watched::new(dir);
        assert!(!watched.has_changed());
        for made in ["target/x", "node_modules/x", ".git", "mine.wasm", "lib.rs~"] {
            write(dir, made, "made");
            assert!(!watched.has_changed(), "{made}");
        }
        write(dir, "src/lib.rs", "another");
        assert!(watched.has_changed() && !watched.has_changed());
        write(dir, "src/new.rs", "");
        assert!(watched.has_changed() && !watched.has_changed());
        std::fs::remove_file(dir.join("src/new.rs")).unwrap();
        assert!(watched.has_changed() && !watched.has_changed());
    }

    #[test]
    fn what_each_build_writes_does_not_cause_another_build() {
        let dir = tempfile::TempDir::new().unwrap();
        let dir = dir.path();
        write(dir, "lib.rs", "");
        let mut watched = Watched::new(dir);
        let mut round = 0;
        let mut build = |dir: &Path| {
            round += 1;
            write(dir, "bindings.rs", &"x".repeat(round));
        };
        build(dir);
        assert!(watched.has_changed_during_a_build(), "it could be the author's");
        build(dir);
        assert!(!watched.has_changed_during_a_build());
        build(dir);
        assert!(!watched.has_changed_during_a_build());
        // What the author changes during a build is built.
        write(dir, "lib.rs", "changed");
        build(dir);
        assert!(watched.has_changed_during_a_build());
        build(dir);
        assert!(!watched.has_changed_during_a_build());
        write(dir, "lib.rs", "changed again");
        assert!(watched.has_changed());
    }
}
