use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbdkit_plugin_api::{Buffer, Client, OpenArgs, Peer, Plugin};
use tempfile::TempDir;

use super::*;

/// A script in a directory of its own, which is removed at the end.
struct ScriptFile {
    directory: TempDir,
    path: PathBuf,
}

impl ScriptFile {
    fn new(text: &str, mode: u32) -> ScriptFile {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        ScriptFile { directory, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    fn dir(&self) -> &Path {
        self.directory.path()
    }
}

fn start(params: &[(&str, &str)]) -> Result<Box<dyn Plugin>, ConfigError> {
    let mut plugin = (INFO.make)();
    for (key, value) in params {
        plugin.config(Param { key, value: OsStr::new(value) })?;
    }
    plugin.config_complete()?;
    plugin.get_ready()?;
    plugin.after_fork()?;
    Ok(plugin)
}

fn config_error(params: &[(&str, &str)]) -> String {
    start(params).err().expect("a configuration error").to_string()
}

const DISK: &str = r#"
case "$1" in
    thread_model) echo parallel ;;
    get_size) echo 1M ;;
    pread) head -c $3 /dev/zero | tr '\0' "${2:-x}" ;;
    open) echo "$3" ;;
    config) echo "$2=$3" >> $(dirname "$0")/config ;;
    load|unload) echo "$1" >> $(dirname "$0")/config ;;
    magic_config_key) echo disk ;;
    *) exit 2 ;;
esac
"#;

#[tokio::test]
async fn one_script_answers_all_methods() {
    // With and without the line that names the shell.
    for first in ["#!/bin/sh\n", ""] {
        let script = ScriptFile::new(&format!("{first}{DISK}"), 0o755);
        let plugin = start(&[("script", script.path()), ("script", "a b"), ("k", "v")]).unwrap();
        assert_eq!(plugin.thread_model(), ThreadModel::Parallel);
        let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
        let handle = plugin.open(OpenArgs { readonly: false, exportname: "q".into(), client }).await.unwrap();
        assert_eq!(handle.get_size().await.unwrap(), 1 << 20);
        // Unlike with eval, what the script can do is what its can_ methods say, and it has none.
        assert!(!handle.can().await.unwrap().write);
        let buffer = Buffer::new(100_000);
        let span = buffer.span();
        let (mut buffer, result) = handle.pread(buffer, span, 0).await;
        result.unwrap();
        assert!(buffer.bytes(span).iter().all(|byte| *byte == b'q'));
        handle.close().await;
        plugin.cleanup();
        let config = fs::read_to_string(script.dir().join("config")).unwrap();
        assert_eq!(config, "load\ndisk=a b\nk=v\nunload\n");
    }
}

#[test]
fn what_is_wrong_with_the_script_is_said() {
    assert_eq!(config_error(&[]), "sh: missing script parameter: give the script to run");
    assert_eq!(config_error(&[("foo", "bar")]), "sh: the first parameter must be script=/path/to/script");
    assert_eq!(
        config_error(&[("script", "/does/not/exist")]),
        "script=/does/not/exist: No such file or directory (os error 2)"
    );
    let script = ScriptFile::new("exit 2", 0o644);
    let error = config_error(&[("script", script.path())]);
    assert_eq!(error, format!("{}: Permission denied (os error 13)", script.path()));

    let script = ScriptFile::new("exit 2", 0o755);
    let error = config_error(&[("script", script.path()), ("script", "x")]);
    assert_eq!(error, format!("{}: expecting key=value on the command line but got: x", script.path()));
    let error = config_error(&[("script", script.path()), ("key", "x")]);
    assert_eq!(error, format!("{}: this plugin does not need command line configuration", script.path()));

    let script = ScriptFile::new("echo EINVAL not today >&2; exit 1", 0o755);
    assert_eq!(config_error(&[("script", script.path())]), format!("{}: not today", script.path()));
}

#[test]
fn without_a_script_any_thread_model_is_possible() {
    assert_eq!((INFO.make)().thread_model(), ThreadModel::Parallel);
    let script = ScriptFile::new("exit 2", 0o755);
    let mut plugin = (INFO.make)();
    plugin.config(Param { key: "script", value: OsStr::new(script.path()) }).unwrap();
    assert_eq!(plugin.thread_model(), ThreadModel::SerializeAllRequests);
}

#[test]
fn a_script_from_standard_input_is_kept_in_the_temporary_directory() {
    let mut scripts = Scripts::new("sh").unwrap();
    let text = "#!/bin/sh\ncase $1 in get_size) echo $tmpdir $0 ;; *) exit 2 ;; esac\n";
    let script = inline(&scripts, text.as_bytes()).unwrap();
    scripts.set_otherwise(script);
    let said = String::from_utf8(scripts.read("get_size", &[]).unwrap().unwrap()).unwrap();
    let (tmpdir, name) = said.trim_end().split_once(' ').unwrap();
    assert_eq!(name, format!("{tmpdir}/inline-script.sh"));
    assert_eq!(scripts.call("other", &[]).unwrap(), Answer::Missing);
    assert!(inline(&scripts, std::io::repeat(b'#')).unwrap_err().to_string().contains("longer than 64 MiB"));
}

#[test]
fn a_first_line_that_starts_this_program_is_known() {
    for line in [
        "#!/usr/sbin/nbdkit sh\n",
        "#! rbdkit sh",
        "#!/usr/bin/env -S rbdkit sh\nx",
        "#!/usr/bin/env -S A=1 /opt/nbdkit -U - sh\n",
    ] {
        assert!(names_this_program(line.as_bytes()), "{line}");
    }
    for line in
        ["", "#!", "#!/bin/sh\n# nbdkit", "#!/usr/bin/env bash\nnbdkit", "#!/usr/bin/env", "nbdkit", "#!/bin/sh nbdkit"]
    {
        assert!(!names_this_program(line.as_bytes()), "{line}");
    }
}
