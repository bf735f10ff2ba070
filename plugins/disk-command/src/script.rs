//! The script that makes a disk: variables, and the command.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rbdkit_plugin_api::shell::shell_quoted;

use crate::config::FIRST_VARIABLE;

/// Makes a file system, if the user gives no command. Each kind has its own options for "without
/// questions" and for the label.
const DEFAULT: &str = r#"
set -e
type="${type:-ext4}"
label_option=-L
unset extra
case "$type" in
    ext?) extra=-F ;;
    *fat|msdos) extra=-I; label_option=-n ;;
    ntfs) extra='-Q -F' ;;
    xfs) extra=-f ;;
esac
truncate -s "$size" "$disk"
if [ -z "${label-}" ]; then
    mkfs -t "$type" $extra "$disk"
else
    mkfs -t "$type" $extra "$label_option" "$label" "$disk"
fi
"#;

/// The file beside the disk that says that the command succeeded. No disk has this name.
pub(crate) const SUCCESS: &str = ".success";

/// The script for these words of a launcher, and a disk of this name. It makes [`SUCCESS`] in the
/// disk's directory if the command succeeds.
///
/// # Errors
/// The words are not those of [`crate::CommandConfig::words`].
pub(crate) fn script(words: &[OsString], disk: &Path) -> io::Result<OsString> {
    let [size, command, variables @ ..] = words else { return Err(io::ErrorKind::InvalidInput.into()) };
    debug_assert_eq!(words.len() - variables.len(), FIRST_VARIABLE);
    // What it prints must not go to a client on standard output. The programs of the administrator
    // are not on the path of every user.
    let mut script = b"exec >/dev/null\nPATH=\"$PATH:/usr/sbin:/sbin\"\n".to_vec();
    let mut assign = |name: &OsStr, value: &OsStr| {
        script.extend(name.as_bytes());
        script.push(b'=');
        script.extend(shell_quoted(value).as_bytes());
        script.push(b'\n');
    };
    assign("disk".as_ref(), disk.as_os_str());
    assign("size".as_ref(), size);
    for pair in variables.chunks_exact(2) {
        assign(&pair[0], &pair[1]);
    }
    let command = if command.is_empty() { OsStr::new(DEFAULT) } else { command };
    // In a subshell, so that an `exit` of the command does not leave the script.
    script.extend(b"( eval ");
    script.extend(shell_quoted(command).as_bytes());
    script.extend(b" )\nstatus=$?\n[ $status -ne 0 ] || : >");
    script.extend(shell_quoted(disk.with_file_name(SUCCESS).as_os_str()).as_bytes());
    script.extend(b"\nexit $status\n");
    Ok(OsString::from_vec(script))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn words(texts: &[&str]) -> Vec<OsString> {
        texts.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_shell_sees_every_value_as_it_was_given() {
        let hostile = "a'b \"$(touch /tmp/x)\" `id` \\ \n*;&| é";
        let command = r#"printf '%s|%s|%s|%s' "$disk" "$size" "$os" "$type" >&2"#;
        let words = words(&["123", command, "os", hostile, "type", ""]);
        let directory = tempfile::tempdir().unwrap();
        let disk = &directory.path().join("it's $HOME");
        let script = script(&words, disk).unwrap();
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("{}|123|{hostile}|", disk.display()));
        assert!(output.stdout.is_empty() && directory.path().join(SUCCESS).exists());
    }

    #[test]
    fn a_command_that_fails_or_exits_leaves_no_sign_of_success() {
        for (command, code) in [("exit 3", 3), ("false", 1), ("set -e; false; true", 1), (") (", 2), ("if", 2)] {
            let directory = tempfile::tempdir().unwrap();
            let script = script(&words(&["1", command]), &directory.path().join("disk")).unwrap();
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
            assert!(!directory.path().join(SUCCESS).exists(), "{command}");
        }
    }

    #[test]
    fn without_a_command_mkfs_makes_a_file_system() {
        let directory = tempfile::tempdir().unwrap();
        for (kind, at, magic) in [("ext4", 1080, [0x53, 0xef]), ("ext2", 1080, [0x53, 0xef])] {
            let disk = directory.path().join(kind);
            let words = words(&["1048576", "", "type", kind, "label", "it's me"]);
            let status = Command::new("sh").arg("-c").arg(script(&words, &disk).unwrap()).output().unwrap();
            assert!(status.status.success(), "{status:?}");
            let bytes = std::fs::read(&disk).unwrap();
            assert_eq!((bytes.len(), &bytes[at..at + 2]), (1 << 20, &magic[..]));
            assert!(bytes[1144..].starts_with(b"it's me"));
        }
    }

    #[test]
    fn words_of_something_else_are_refused() {
        assert!(script(&words(&["1"]), Path::new("x")).is_err());
    }
}
