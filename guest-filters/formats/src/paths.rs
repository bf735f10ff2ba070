//! Finds a file in a tree of directories by its path.

use std::cell::Cell;

use rbdkit_filter_sdk::image::{Error, FileChoice, quoted};

/// Symbolic links that are followed on the way to one file, as Linux has it.
const MOST_LINKS: u32 = 40;

/// Names that are looked up on the way to one file, those of links included.
const MOST_NAMES: u32 = 1000;

/// A longer path is refused.
const LONGEST: usize = 4096;

/// Bytes of directories that are read to find one file.
const MOST_DIRECTORY_BYTES: u64 = 128 << 20;

/// What an entry of a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and the path in it.
    Link(Vec<u8>),
    /// Something else, and what it is called: `a socket`.
    Other(&'static str),
}

/// Directories and files.
pub trait Tree {
    /// What names a file or directory.
    type Node: Clone;

    /// The directory `/`.
    fn root(&self) -> Self::Node;

    /// # Errors
    /// Those of the source, and a line if the file system is wrong.
    fn kind(&self, node: &Self::Node) -> Result<Kind, Error>;

    /// The entry of a directory with this name, which is not `.` or `..`.
    ///
    /// # Errors
    /// Those of the source, and a line if the file system is wrong.
    fn lookup(&self, directory: &Self::Node, name: &[u8]) -> Result<Option<Self::Node>, Error>;
}

/// Counts the bytes of directories that were read.
#[derive(Debug, Default)]
pub struct DirectoryBudget(Cell<u64>);

impl DirectoryBudget {
    /// Takes `bytes` from it.
    ///
    /// # Errors
    /// A line if nothing is left.
    pub fn take(&self, bytes: u64) -> Result<(), Error> {
        self.0.set(self.0.get().saturating_add(bytes));
        if self.0.get() <= MOST_DIRECTORY_BYTES {
            return Ok(());
        }
        Err(Error::image("more than 128 MiB of directories would have to be read to find the file"))
    }
}

/// Whether a path can be looked up: it begins with `/`.
///
/// # Errors
/// What would be right, for a line that names the path.
pub fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err("is not a path: it has to begin with /, for example /disks/disk.img".to_string());
    }
    if path.len() > LONGEST {
        return Err(format!("has more than {LONGEST} bytes"));
    }
    Ok(())
}

/// Checks the value of a parameter that is a path, or leaves the choice to the client.
///
/// # Errors
/// As [`check_path`].
pub fn check_choice(given: &String) -> Result<(), String> {
    if given == FileChoice::BY_EXPORT_NAME { Ok(()) } else { check_path(given) }
}

/// The file with this path. Symbolic links are followed within the tree: `/` in them is its root,
/// and `..` does not leave it.
///
/// # Errors
/// A line if there is no such file, or if it is not a regular file. Those of the tree.
pub fn find<T: Tree>(tree: &T, path: &str) -> Result<T::Node, Error> {
    let shown = quoted(path.as_bytes());
    if let Err(why) = check_path(path) {
        return Err(Error::image(format!("the file {shown} {why}")));
    }
    let mut way: Vec<(Vec<u8>, T::Node)> = Vec::new();
    let mut kind = Kind::Directory;
    let mut names = names_reversed(path.as_bytes());
    let (mut links, mut looked_up) = (0, 0);
    while let Some(name) = names.pop() {
        let here = || quoted(&path_of(&way));
        match kind {
            Kind::Directory => {}
            Kind::Other(what) => return Err(Error::image(format!("{shown}: {} is {what}, and no directory", here()))),
            _ => return Err(Error::image(format!("{shown}: {} is a file, and no directory", here()))),
        }
        if name == b".." {
            way.pop();
            continue;
        }
        looked_up += 1;
        if looked_up > MOST_NAMES {
            let line = format!("{shown}: more than {MOST_NAMES} names would have to be looked up; links multiply them");
            return Err(Error::image(line));
        }
        let directory = way.last().map_or_else(|| tree.root(), |(_, node)| node.clone());
        let Some(node) = tree.lookup(&directory, &name)? else {
            return Err(Error::image(format!("there is no file {shown}: {} has no {}", here(), quoted(&name))));
        };
        kind = tree.kind(&node)?;
        if let Kind::Link(target) = &kind {
            links += 1;
            if links > MOST_LINKS {
                return Err(Error::image(format!("{shown}: more than {MOST_LINKS} symbolic links lead to it")));
            }
            if target.is_empty() {
                return Err(Error::image(format!("{shown}: the symbolic link {} is empty", quoted(&name))));
            }
            if target[0] == b'/' {
                way.clear();
            }
            names.extend(names_reversed(&target[..target.len().min(LONGEST)]));
            // A link is looked up in a directory.
            kind = Kind::Directory;
        } else {
            way.push((name, node));
        }
    }
    match (kind, way.pop()) {
        (Kind::File, Some((_, node))) => Ok(node),
        (Kind::Other(what), _) => Err(Error::image(format!("{shown} is {what}, and no file"))),
        _ => Err(Error::image(format!("{shown} is a directory, and no file"))),
    }
}

/// The names of a path, the last one first. `.` and empty names are left out.
fn names_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.rsplit(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(<[u8]>::to_vec).collect()
}

fn path_of<N>(way: &[(Vec<u8>, N)]) -> Vec<u8> {
    let mut path = Vec::new();
    for (name, _) in way {
        path.push(b'/');
        path.extend(name);
    }
    if path.is_empty() { b"/".to_vec() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of a few paths. A node is a path.
    struct Paths(&'static [(&'static str, &'static str)]);

    impl Tree for Paths {
        type Node = String;

        fn root(&self) -> String {
            String::new()
        }
        fn kind(&self, node: &String) -> Result<Kind, Error> {
            let (_, kind) = self.0.iter().find(|(path, _)| path == node).expect("a node that was looked up");
            Ok(match *kind {
                "dir" => Kind::Directory,
                "file" => Kind::File,
                "socket" => Kind::Other("a socket"),
                link => Kind::Link(link.as_bytes().to_vec()),
            })
        }
        fn lookup(&self, directory: &String, name: &[u8]) -> Result<Option<String>, Error> {
            let path = format!("{directory}/{}", String::from_utf8_lossy(name));
            Ok(self.0.iter().any(|(there, _)| *there == path).then_some(path))
        }
    }

    const TREE: Paths = Paths(&[
        ("/a", "dir"),
        ("/a/b", "dir"),
        ("/a/b/file", "file"),
        ("/a/up", "../a/b/file"),
        ("/a/root", "/a/up"),
        ("/out", "../../../a/b"),
        ("/loop", "loop"),
        ("/many", "/many/./many"),
        ("/nothing", "/gone"),
        ("/s", "socket"),
    ]);

    #[test]
    fn a_path_is_found_through_links_that_stay_within_the_tree() {
        for path in ["/a/b/file", "//a/./b/../b/file", "/a/up", "/a/root", "/out/file", "/../a/up"] {
            assert_eq!(find(&TREE, path), Ok("/a/b/file".to_string()), "{path}");
        }
    }

    #[test]
    fn a_path_that_leads_to_no_file_gives_a_line_that_says_where_it_ends() {
        let many = "/x".repeat(2049);
        for (path, line) in [
            ("/a/c/d", "there is no file '/a/c/d': '/a' has no 'c'"),
            ("/nothing", "there is no file '/nothing': '/' has no 'gone'"),
            ("/a/b", "'/a/b' is a directory, and no file"),
            ("/", "'/' is a directory, and no file"),
            ("/s", "'/s' is a socket, and no file"),
            ("/s/x", "'/s/x': '/s' is a socket, and no directory"),
            ("/a/b/file/x", "'/a/b/file/x': '/a/b/file' is a file, and no directory"),
            ("/loop", "'/loop': more than 40 symbolic links lead to it"),
            ("/many", "'/many': more than 40 symbolic links lead to it"),
            ("a", "the file 'a' is not a path: it has to begin with /, for example /disks/disk.img"),
            ("", "the file '' is not a path: it has to begin with /, for example /disks/disk.img"),
        ] {
            assert_eq!(find(&TREE, path), Err(Error::image(line)), "{path}");
        }
        let Err(Error::Image(line)) = find(&TREE, &many) else { panic!("it was found") };
        assert!(line.ends_with("has more than 4096 bytes"), "{line}");
    }
}
