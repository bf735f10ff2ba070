//! The name under which the program was installed.

use std::ffi::OsStr;
use std::path::Path;

/// How messages begin: `nbdkit` if the program was installed under that name, because scripts look
/// for it.
pub fn program_name(argv0: Option<&OsStr>) -> &'static str {
    match argv0.and_then(|path| Path::new(path).file_name()) {
        Some(name) if name == "nbdkit" => "nbdkit",
        _ => "rbdkit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_nbdkit_changes_how_messages_begin() {
        assert_eq!(program_name(Some(OsStr::new("/usr/bin/nbdkit"))), "nbdkit");
        assert_eq!(program_name(Some(OsStr::new("rbdkit"))), "rbdkit");
        assert_eq!(program_name(Some(OsStr::new("x y"))), "rbdkit");
        assert_eq!(program_name(None), "rbdkit");
    }
}
