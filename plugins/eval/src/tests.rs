use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_plugin_api::{
    Buffer, Capabilities, Client, Errno, Error, Extent, Flags, Handle, OpenArgs, Peer, Plugin, Result, Support,
};

use super::*;

mod endless;

/// A plugin of these parameters, up to the point where clients come. Without a size it gets one.
fn start(params: &[(&str, &str)]) -> Result<Box<dyn Plugin>, ConfigError> {
    let has_size = params.iter().any(|(key, _)| *key == "get_size");
    let size = (!has_size).then_some(("get_size", "echo 10M"));
    start_as_given(&size.into_iter().chain(params.iter().copied()).collect::<Vec<_>>())
}

fn start_as_given(params: &[(&str, &str)]) -> Result<Box<dyn Plugin>, ConfigError> {
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

fn client() -> Arc<Client> {
    Arc::new(Client::new(1, Peer::Unknown, None, false))
}

fn open_args(readonly: bool, exportname: &str) -> OpenArgs {
    OpenArgs { readonly, exportname: exportname.to_string(), client: client() }
}

/// A plugin with a size and these methods, opened.
async fn open(methods: &[(&str, &str)]) -> (Box<dyn Plugin>, Arc<dyn Handle>) {
    let size = ("get_size", "echo 10M");
    let params: Vec<_> = [size].into_iter().chain(methods.iter().copied()).collect();
    let plugin = start(&params).unwrap();
    let handle = plugin.open(open_args(false, "")).await.unwrap();
    (plugin, handle)
}

async fn can(methods: &[(&str, &str)]) -> Result<Capabilities> {
    let (_plugin, handle) = open(methods).await;
    handle.can().await
}

async fn pread(handle: &dyn Handle, length: u32, offset: u64) -> Result<Vec<u8>> {
    let buffer = Buffer::new(length);
    let span = buffer.span();
    let (mut buffer, result) = handle.pread(buffer, span, offset).await;
    result.map(|()| buffer.bytes(span).to_vec())
}

async fn pwrite(handle: &dyn Handle, bytes: Vec<u8>, offset: u64, flags: Flags) -> Result<()> {
    let buffer = Buffer::from_vec(bytes);
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, flags).await.1
}

/// What a script wrote into a file, and the file emptied.
fn taken(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let _ = std::fs::remove_file(path);
    text
}

fn said(error: &Error) -> (Errno, String) {
    let text = error.context().unwrap_or_default();
    // The directory's name is random.
    let text = text.split_once("/rbdkit").and_then(|(_, rest)| rest.split_once('/')).map_or(text, |(_, rest)| rest);
    (error.errno(), text.to_string())
}

const READ_ZEROES: (&str, &str) = ("pread", "head -c $3 /dev/zero");

#[tokio::test]
async fn a_disk_in_a_file_works_as_in_the_manual() {
    let (plugin, handle) = open(&[
        ("config", "head -c 1M /dev/zero > $tmpdir/file"),
        ("get_ready", "test -e $tmpdir/file"),
        ("pread", "dd if=$tmpdir/file skip=$4 count=$3 iflag=count_bytes,skip_bytes"),
        ("pwrite", "dd of=$tmpdir/file seek=$4 conv=notrunc oflag=seek_bytes"),
        ("file", "x"),
    ])
    .await;
    assert_eq!(handle.get_size().await.unwrap(), 10 << 20);
    // Longer than any pipe.
    let bytes: Vec<u8> = (0..500_000u32).map(|i| (i / 7) as u8).collect();
    pwrite(&*handle, bytes.clone(), 1000, Flags::NONE).await.unwrap();
    assert_eq!(pread(&*handle, 500_000, 1000).await.unwrap(), bytes);
    assert_eq!(pread(&*handle, 10, 0).await.unwrap(), [0; 10]);
    handle.close().await;
    plugin.cleanup();
}

#[tokio::test]
async fn input_and_output_at_once_do_not_block_each_other() {
    let megabytes = 4 << 20;
    let (_plugin, handle) = open(&[
        // Prints before it reads, and on both pipes.
        ("pwrite", "head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero; test $(wc -c) = $3"),
        ("pread", "cat; head -c 1000000 /dev/zero >&2; head -c $3 /dev/zero"),
    ])
    .await;
    pwrite(&*handle, vec![1; megabytes], 0, Flags::NONE).await.unwrap();
    assert_eq!(pread(&*handle, megabytes as u32, 0).await.unwrap().len(), megabytes);
}

#[tokio::test]
async fn a_script_need_not_read_its_input() {
    let (_plugin, handle) = open(&[("pwrite", "exit 0")]).await;
    pwrite(&*handle, vec![1; 1 << 20], 0, Flags::NONE).await.unwrap();
}

#[tokio::test]
async fn output_of_the_wrong_length_is_an_error_that_counts() {
    let (_plugin, handle) =
        open(&[("pread", "case $4 in 0) printf ab;; 1) head -c 1000 /dev/zero;; *) yes;; esac")]).await;
    for (offset, received) in [(0, "2 bytes"), (1, "1000 bytes"), (2, "more than ")] {
        let (errno, text) = said(&pread(&*handle, 512, offset).await.unwrap_err());
        assert_eq!(errno, Errno::Eio);
        let begin = format!("pread: incorrect amount of data read: expecting 512 bytes but received {received}");
        assert!(text.starts_with(&begin), "{text}");
    }
}

#[tokio::test]
async fn failures_carry_the_scripts_errno_and_message() {
    for (script, errno, message) in [
        ("echo ENOSPC Out of space >&2; exit 1", Errno::Enospc, "pread: Out of space"),
        ("echo EPERM >&2; echo more >&2; exit 8", Errno::Eperm, "pread: more"),
        ("echo EROFS >&2; exit 1", Errno::Erofs, "pread: the pread method failed"),
        ("echo what is this >&2; exit 127", Errno::Eio, "pread: what is this"),
        ("exit 9", Errno::Eio, "pread: script exited with error, but did not print an error message on stderr"),
        ("exit 5", Errno::Eshutdown, "pread: script exited with error, but did not print an error message on stderr"),
        ("echo what is this >&2; exit 8", Errno::Eshutdown, "pread: what is this"),
        ("echo ENOSPC full >&2; exit 5", Errno::Enospc, "pread: full"),
        ("exit 3", Errno::Eio, "pread: pread method returned unexpected code (3/false)"),
        ("exit 2", Errno::Eio, "pread: the pread method is required"),
        ("kill -9 $$", Errno::Eio, "pread: script terminated by signal 9"),
    ] {
        let (_plugin, handle) = open(&[("pread", script)]).await;
        let error = pread(&*handle, 1, 0).await.unwrap_err();
        assert_eq!(said(&error), (errno, message.to_string()), "{script}");
    }
    let (_plugin, handle) = open(&[]).await;
    let error = pread(&*handle, 1, 0).await.unwrap_err();
    assert_eq!(said(&error), (Errno::Eio, "eval: the pread method is required".to_string()));
}

#[tokio::test]
async fn exit_statuses_end_the_server_or_the_connection_and_answer() {
    // Status, whether pread succeeds, whether the server ends, and whether the connection ends: at
    // once, after the answers.
    for (status, succeeds, ends_server, ends_client) in [
        (1, false, false, None),
        (4, true, true, None),
        (5, false, true, None),
        (6, false, false, Some((true, false))),
        (7, true, false, Some((false, true))),
        (8, false, false, Some((false, true))),
        (9, false, false, None),
    ] {
        let notify = Arc::new(tokio::sync::Notify::new());
        let mut plugin = (INFO.make)();
        plugin.set_shutdown(Arc::clone(&notify));
        let script = format!("head -c $3 /dev/zero; exit {status}");
        for (key, value) in [("get_size", "echo 1M"), ("pread", &script)] {
            plugin.config(Param { key, value: OsStr::new(value) }).unwrap();
        }
        plugin.config_complete().unwrap();
        let args = open_args(false, "");
        let client = Arc::clone(&args.client);
        let handle = plugin.open(args).await.unwrap();
        assert_eq!(pread(&*handle, 512, 0).await.is_ok(), succeeds, "{status}");
        let notified = tokio::time::timeout(std::time::Duration::ZERO, notify.notified()).await;
        assert_eq!(notified.is_ok(), ends_server, "{status}");
        let ended = client.is_disconnect_requested().then(|| (client.is_cut(), client.ends_after_answers()));
        assert_eq!(ended, ends_client, "{status}");
    }
}

#[tokio::test]
async fn a_script_that_ends_the_server_while_it_is_configured_ends_it_once_it_runs() {
    let notify = Arc::new(tokio::sync::Notify::new());
    let mut plugin = (INFO.make)();
    plugin.set_shutdown(Arc::clone(&notify));
    for (key, value) in [("get_size", "echo 1M"), ("config", "exit 4"), ("some", "thing")] {
        plugin.config(Param { key, value: OsStr::new(value) }).unwrap();
    }
    plugin.config_complete().unwrap();
    tokio::time::timeout(std::time::Duration::ZERO, notify.notified()).await.unwrap();
}

#[tokio::test]
async fn capabilities_follow_from_the_methods_that_are_there() {
    assert_eq!(can(&[READ_ZEROES]).await.unwrap(), Capabilities::READ_ONLY);

    let emulated = Capabilities { write: true, fast_zero: true, zero: Support::Emulate, ..Capabilities::READ_ONLY };
    assert_eq!(can(&[("pwrite", "")]).await.unwrap(), emulated);

    let methods = ["pwrite", "flush", "trim", "zero", "extents", "cache"].map(|method| (method, "exit 0"));
    let all = Capabilities {
        write: true,
        flush: true,
        rotational: false,
        trim: true,
        fast_zero: false,
        extents: true,
        multi_conn: false,
        zero: Support::Native,
        fua: Support::Emulate,
        cache: Support::Native,
    };
    assert_eq!(can(&methods).await.unwrap(), all);
}

#[tokio::test]
async fn capabilities_that_are_given_count() {
    let given = [
        ("pwrite", ""),
        ("can_write", "exit 0"),
        ("can_zero", "exit 3"),
        ("can_fast_zero", "exit 3"),
        ("can_fua", "echo NATIVE"),
        ("can_cache", "echo emulate"),
        ("is_rotational", "exit 0"),
        ("can_multi_conn", "exit 0"),
    ];
    let expected = Capabilities {
        write: true,
        rotational: true,
        multi_conn: true,
        zero: Support::Emulate,
        fua: Support::Native,
        // The plugin itself reads, so that nothing is kept in memory.
        cache: Support::Native,
        ..Capabilities::READ_ONLY
    };
    assert_eq!(can(&given).await.unwrap(), expected);
    assert!(!can(&[("pwrite", ""), ("can_write", "exit 3")]).await.unwrap().write);
    for wrong in [("can_write", "exit 1"), ("can_fua", "echo x"), ("can_fua", "exit 3"), ("can_cache", "exit 0")] {
        assert!(can(&[("pwrite", ""), wrong]).await.is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_connection_that_cannot_write_asks_nothing_about_writing() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let missing = format!("echo $1 >> {}; exit 2", log.display());
    let plugin = start(&[("get_size", "echo 1M"), READ_ZEROES, ("pwrite", ""), ("missing", &missing)]).unwrap();
    assert_eq!(taken(&log), "config_complete\nthread_model\nget_ready\nafter_fork\n");
    plugin.preconnect(&client(), true).await.unwrap();
    let handle = plugin.open(open_args(true, "")).await.unwrap();
    handle.can().await.unwrap();
    handle.close().await;
    plugin.cleanup();
    assert_eq!(
        taken(&log),
        "preconnect\nopen\ncan_flush\nis_rotational\ncan_multi_conn\ncan_cache\ncan_extents\nclose\nunload\n"
    );
}

#[tokio::test]
async fn requests_reach_the_script_with_handle_count_offset_and_flags() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let script = format!("echo \"$1|$2|$3|$4|$5\" >> {}", log.display());
    let (_plugin, handle) = open(&[
        ("open", "echo \"h of $3 $2 $4\""),
        ("pwrite", &script),
        ("trim", &script),
        ("zero", &script),
        ("flush", &script),
        ("cache", &script),
        ("extents", &format!("{script}; echo 0 10M")),
        ("close", &script),
    ])
    .await;
    pwrite(&*handle, vec![0; 3], 5, Flags::FUA).await.unwrap();
    handle.trim(1, 2, Flags::NONE).await.unwrap();
    let flags = Flags { fua: true, may_trim: true, fast_zero: true, req_one: false };
    handle.zero(1 << 20, 1 << 10, flags).await.unwrap();
    handle.flush().await.unwrap();
    handle.cache(7, 8).await.unwrap();
    handle.extents(0, 9, Flags { req_one: true, ..Flags::NONE }).await.unwrap();
    handle.close().await;
    let expected = "pwrite|h of  false false|3|5|fua
trim|h of  false false|2|1|
zero|h of  false false|1024|1048576|fua,may_trim,fast
flush|h of  false false|||
cache|h of  false false|8|7|
extents|h of  false false|9|0|req_one
close|h of  false false|||
";
    assert_eq!(taken(&log), expected);
}

#[tokio::test]
async fn zero_that_is_missing_or_refused_falls_back_to_pwrite() {
    for script in ["exit 2", "echo EOPNOTSUPP not now >&2; exit 1", "echo enotsup >&2; exit 1"] {
        let (_plugin, handle) = open(&[("pwrite", ""), ("zero", script)]).await;
        assert_eq!(handle.zero(0, 1, Flags::NONE).await.unwrap_err().errno(), Errno::Enotsup, "{script}");
    }
}

#[tokio::test]
async fn extents_are_checked_and_the_last_one_runs_on() {
    let (_plugin, handle) = open(&[("extents", "echo 0 1M; echo 1M 9M hole,zero")]).await;
    let answer = handle.extents(4096, 2 << 20, Flags::NONE).await.unwrap();
    let data = Extent { offset: 4096, length: (1 << 20) - 4096, hole: false, zero: false };
    let hole = Extent { offset: 1 << 20, length: 9 << 20, hole: true, zero: true };
    assert_eq!(answer.as_slice(), [data, hole]);
    for script in ["exit 0", "echo 5M 5M", "echo 0 1M; echo 2M 8M", "echo nonsense", "exit 2"] {
        let (_plugin, handle) = open(&[("extents", script)]).await;
        assert_eq!(handle.extents(0, 10 << 20, Flags::NONE).await.unwrap_err().errno(), Errno::Eio, "{script}");
    }
}

#[tokio::test]
async fn sizes_descriptions_and_block_sizes_are_read() {
    let (_plugin, handle) =
        open(&[("export_description", "printf 'a\\nb\\n\\n'"), ("block_size", "echo 512 4K 1M")]).await;
    assert_eq!(handle.export_description().await.unwrap().unwrap(), "a\nb\n");
    let sizes = handle.block_size().await.unwrap().unwrap();
    assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (512, 4096, 1 << 20));
    for script in ["echo", "echo 2M foo", "echo -1", "printf '1M\\n\\n'"] {
        let plugin = start(&[("get_size", script)]).unwrap();
        let handle = plugin.open(open_args(false, "")).await.unwrap();
        assert!(handle.get_size().await.is_err(), "{script}");
    }
}

#[tokio::test]
async fn exports_are_listed_and_the_first_is_the_default() {
    let list = "printf 'INTERLEAVED\\na\\nfirst\\nb\\nsecond\\n'";
    let plugin = start(&[("list_exports", list), ("default_export", list)]).unwrap();
    let exports = plugin.list_exports(&client(), false).await.unwrap().unwrap();
    assert_eq!(exports.len(), 2);
    assert_eq!((exports[1].name.as_str(), exports[1].description.as_deref()), ("b", Some("second")));
    assert_eq!(plugin.default_export(&client(), false).await.unwrap(), "a");

    let plugin = start(&[("default_export", "echo $1-$2-$3")]).unwrap();
    assert_eq!(plugin.default_export(&client(), true).await.unwrap(), "default_export-true-false");
    // The host asks for the default export then.
    assert_eq!(plugin.list_exports(&client(), true).await.unwrap(), None);
    let plugin = start(&[]).unwrap();
    assert_eq!(plugin.default_export(&client(), false).await.unwrap(), "");
    assert_eq!(plugin.list_exports(&client(), false).await.unwrap(), None);
}

#[tokio::test]
async fn an_empty_line_is_the_export_with_the_empty_name() {
    let plugin = start(&[("list_exports", "echo"), ("default_export", "echo")]).unwrap();
    let exports = plugin.list_exports(&client(), false).await.unwrap();
    assert_eq!(exports, Some(vec![Default::default()]));
    assert_eq!(plugin.default_export(&client(), false).await.unwrap(), "");
    let plugin = start(&[("list_exports", ":"), ("default_export", ":")]).unwrap();
    assert_eq!(plugin.list_exports(&client(), false).await.unwrap(), Some(vec![]));
    assert_eq!(plugin.default_export(&client(), false).await.unwrap(), "");
}

#[tokio::test]
async fn names_that_are_not_utf_8_are_refused_with_their_line() {
    let script = "printf 'a\\n\\377\\n'";
    let plugin = start(&[("list_exports", script), ("default_export", script)]).unwrap();
    let list = plugin.list_exports(&client(), false).await.unwrap_err().to_string();
    let name = plugin.default_export(&client(), false).await.unwrap_err().to_string();
    for error in [list, name] {
        assert!(error.contains("line 2 of the exports is not UTF-8"), "{error}");
    }
}

#[test]
fn a_plugin_without_a_size_is_refused_at_the_start() {
    let message = "eval: get_size=SCRIPT has to be given: no client could connect without it";
    for params in [&[][..], &[("pread", "exit 1")]] {
        assert_eq!(start_as_given(params).err().unwrap().to_string(), message);
    }
    for method in ["get_size", "missing"] {
        assert!(start_as_given(&[(method, "echo 1M")]).is_ok(), "{method}");
    }
}

#[test]
fn the_thread_model_is_the_scripts() {
    let model = |script| start(&[("thread_model", script)]).map(|plugin| plugin.thread_model());
    assert_eq!(start(&[]).unwrap().thread_model(), ThreadModel::SerializeAllRequests);
    assert_eq!(model("echo parallel").unwrap(), ThreadModel::Parallel);
    assert_eq!(model("echo SERIALIZE-requests").unwrap(), ThreadModel::SerializeRequests);
    assert_eq!(model("echo foo").unwrap(), ThreadModel::SerializeAllRequests);
    assert_eq!(model("exit 2").unwrap(), ThreadModel::SerializeAllRequests);
    assert!(model("exit 1").is_err());
    assert!(model("exit 3").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_scripts_never_run_at_once_unless_they_say_they_may() {
    // mkdir is atomic: it fails if another script is between it and rmdir.
    let script = "mkdir $tmpdir/busy || exit 1; printf x; rmdir $tmpdir/busy";
    let (_plugin, handle) = open(&[("pread", script), ("can_write", script)]).await;
    let other = Arc::clone(&handle);
    let task = tokio::spawn(async move {
        for _ in 0..20 {
            other.can().await.unwrap();
        }
    });
    for _ in 0..20 {
        pread(&*handle, 1, 0).await.unwrap();
    }
    task.await.unwrap();
}

#[tokio::test]
async fn parallel_scripts_run_at_once() {
    // Each waits for the other.
    let script = "echo > $tmpdir/fifo$4 & cat $tmpdir/fifo$((1 - $4)) >/dev/null; wait; printf x";
    let (_plugin, handle) = open(&[
        ("thread_model", "echo parallel"),
        ("get_ready", "mkfifo $tmpdir/fifo0 $tmpdir/fifo1"),
        ("pread", script),
    ])
    .await;
    let other = Arc::clone(&handle);
    let task = tokio::spawn(async move { pread(&*other, 1, 1).await });
    pread(&*handle, 1, 0).await.unwrap();
    task.await.unwrap().unwrap();
}

#[test]
fn configuration_errors_are_one_line() {
    assert_eq!(
        config_error(&[("foo", "bar")]),
        "eval: callback 'foo' is unknown, and there is no 'config' callback to handle it"
    );
    for method in ["get_size", "missing"] {
        let expected = format!("eval: method {method} defined more than once on the command line");
        assert_eq!(config_error(&[(method, "exit 2"), (method, "exit 2")]), expected);
    }
    for method in ["config_complete", "get_ready", "after_fork", "thread_model"] {
        let error = config_error(&[(method, "echo EINVAL $1 is wrong >&2; echo second line >&2; exit 1")]);
        assert!(error.ends_with(&format!("/{method}: {method} is wrong")), "{error}");
    }
    assert!(config_error(&[("config", "exit 3"), ("x", "y")]).contains("unexpected code (3/false)"));
    // As in nbdkit: the config script has to come first.
    assert!(start(&[("x", "y"), ("config", "exit 0")]).is_err());
}

#[test]
fn the_temporary_directory_goes_with_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let plugin = start(&[("get_ready", &format!("echo $tmpdir >> {}; touch $tmpdir/x", log.display()))]).unwrap();
    let tmpdir = PathBuf::from(taken(&log).trim_end());
    assert!(tmpdir.join("x").exists());
    plugin.cleanup();
    assert!(!tmpdir.exists());

    let failed = format!("echo $tmpdir >> {}; exit 1", log.display());
    config_error(&[("get_ready", &failed)]);
    assert!(!PathBuf::from(taken(&log).trim_end()).exists());
}

#[tokio::test]
async fn scripts_may_name_their_interpreter() {
    let plugin = start(&[("default_export", "#!/bin/echo")]).unwrap();
    let name = plugin.default_export(&client(), true).await.unwrap();
    assert!(name.ends_with("/default_export default_export true false"), "{name}");
}

#[test]
fn dump_plugin_takes_the_scripts_lines() {
    let plugin = start(&[("dump_plugin", "echo a=b; echo no pair; echo c=d=e")]).unwrap();
    let pair = |key: &str, value: &str| (key.to_string(), value.to_string());
    assert_eq!(plugin.dump_plugin(), [pair("max_known_status", "8"), pair("a", "b"), pair("c", "d=e")]);
}
