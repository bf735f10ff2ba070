//! Finds the file of one of nbdkit's plugins.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where distributions put nbdkit's plugins if `pkg-config` does not say: Debian's directories for
/// each architecture, and those of others.
const DIRECTORIES: &[&str] = &["/usr/lib64/nbdkit/plugins", "/usr/lib/nbdkit/plugins", "/usr/local/lib/nbdkit/plugins"];

/// Whether a word on the command line is the name of a file and not of a plugin.
pub fn is_file(word: &str) -> bool {
    word.contains('/') || word.ends_with(".so")
}

/// The file of the plugin of this name, if there is one. `directory` is where to look; none for
/// nbdkit's own.
pub fn by_name(name: &str, directory: Option<&Path>) -> Option<PathBuf> {
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if name.is_empty() || !plain(name) {
        return None;
    }
    let file = format!("nbdkit-{name}-plugin.so");
    match directory {
        Some(directory) => Some(directory.join(&file)).filter(|file| file.exists()),
        None => directories().iter().map(|directory| directory.join(&file)).find(|file| file.exists()),
    }
}

/// nbdkit's directory of plugins, if there is one.
pub fn directory() -> Option<PathBuf> {
    directories().iter().find(|directory| directory.is_dir()).cloned()
}

/// Where nbdkit's plugins may be, the likeliest first. The first call asks `pkg-config`.
pub fn directories() -> &'static [PathBuf] {
    static FOUND: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let multiarch = format!("/usr/lib/{}-linux-gnu/nbdkit/plugins", std::env::consts::ARCH);
        let usual = std::iter::once(multiarch).chain(DIRECTORIES.iter().map(|path| (*path).to_string()));
        from_pkg_config().into_iter().chain(usual.map(PathBuf::from)).collect()
    })
}

/// What `pkg-config` says, if it is installed and knows nbdkit.
fn from_pkg_config() -> Option<PathBuf> {
    let mut command = Command::new("pkg-config");
    command.args(["nbdkit", "--variable=plugindir"]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(path.trim())).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_slash_or_the_ending_of_a_library_is_a_file() {
        assert!(is_file("./plugin") && is_file("plugin.so") && !is_file("python"));
        assert_eq!(by_name("../x", None), None);
        assert_eq!(by_name("", None), None);
    }
}
