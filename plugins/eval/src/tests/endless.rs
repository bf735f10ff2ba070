//! Scripts that do not end: they are killed when nobody waits for them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rbdkit_plugin_api::StopScope;
use tempfile::TempDir;

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

/// A pipe with a name that a script and all its children hold open.
struct Held {
    path: std::path::PathBuf,
    _directory: TempDir,
}

impl Held {
    fn new() -> Held {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("held");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        Held { path, _directory: directory }
    }

    /// A script that hangs, that SIGTERM does not end, and whose child hangs too. It writes a line
    /// into the pipe first.
    fn script(&self) -> String {
        format!("exec 3>{}; trap '' TERM; echo here >&3; sleep 3600 & sleep 3600", self.path.display())
    }

    /// Sends an event when the script has begun, and another one when it and its child have gone.
    fn watch(&self) -> Receiver<()> {
        let (tell, events) = channel();
        let path = self.path.clone();
        std::thread::spawn(move || watch(&path, &tell));
        events
    }
}

fn watch(path: &Path, tell: &std::sync::mpsc::Sender<()>) {
    let mut pipe = File::open(path).unwrap();
    pipe.read_exact(&mut [0; 5]).unwrap();
    let _ = tell.send(());
    let _ = pipe.read_to_end(&mut Vec::new());
    let _ = tell.send(());
}

async fn next(events: Receiver<()>) -> Receiver<()> {
    tokio::task::spawn_blocking(move || {
        events.recv_timeout(DEADLINE).expect("the script begins, or ends, before the deadline");
        events
    })
    .await
    .unwrap()
}

/// A plugin of these methods, opened.
async fn opened(methods: &[(&str, &str)]) -> (Box<dyn Plugin>, Arc<dyn Handle>) {
    let plugin = start(methods).unwrap();
    let handle = plugin.open(open_args(false, "")).await.unwrap();
    (plugin, handle)
}

async fn call(method: &str, handle: &dyn Handle) -> Result<()> {
    match method {
        "get_size" => handle.get_size().await.map(drop),
        "block_size" => handle.block_size().await.map(drop),
        "can_write" => handle.can().await.map(drop),
        "pread" => pread(handle, 512, 0).await.map(drop),
        "pwrite" => pwrite(handle, vec![1; 1 << 20], 0, Flags::NONE).await,
        "flush" => handle.flush().await,
        "trim" => handle.trim(0, 512, Flags::NONE).await,
        "zero" => handle.zero(0, 512, Flags::NONE).await,
        "cache" => handle.cache(0, 512).await,
        "extents" => handle.extents(0, 512, Flags::NONE).await.map(drop),
        _ => {
            handle.close().await;
            Ok(())
        }
    }
}

const OPERATIONS: [&str; 11] =
    ["get_size", "block_size", "can_write", "pread", "pwrite", "flush", "trim", "zero", "cache", "extents", "close"];

#[tokio::test]
async fn a_script_and_its_children_are_killed_when_their_operation_is_dropped() {
    for method in OPERATIONS {
        let held = Held::new();
        let script = held.script();
        let (plugin, handle) = opened(&[(method, &script)]).await;
        let events = held.watch();
        let running = tokio::spawn({
            let handle = Arc::clone(&handle);
            async move { call(method, &*handle).await }
        });
        let events = next(events).await;
        assert!(matches!(events.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout)), "{method}");
        running.abort();
        next(events).await;
        drop((plugin, handle));
    }
}

#[tokio::test]
async fn a_stop_kills_scripts_that_read_and_only_the_last_stop_those_that_write() {
    for method in OPERATIONS {
        let held = Held::new();
        let script = held.script();
        let (plugin, handle) = opened(&[(method, &script)]).await;
        let events = held.watch();
        let running = tokio::spawn({
            let handle = Arc::clone(&handle);
            async move { call(method, &*handle).await }
        });
        let events = next(events).await;
        plugin.stop(StopScope::Reads);
        let writes = matches!(method, "pwrite" | "flush" | "trim" | "zero" | "close");
        if writes {
            // It goes on: the killed ones of the other methods end this test if it does not.
            assert!(matches!(events.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout)), "{method}");
            plugin.stop(StopScope::Everything);
        }
        next(events).await;
        let result = running.await.unwrap();
        if method != "close" {
            assert_eq!(result.unwrap_err().errno(), Errno::Eshutdown, "{method}");
            // Nor does another one start.
            assert_eq!(call(method, &*handle).await.unwrap_err().errno(), Errno::Eshutdown, "{method}");
        }
    }
}

#[tokio::test]
async fn an_open_that_is_dropped_or_stopped_ends_its_script() {
    for stop in [false, true] {
        let held = Held::new();
        let plugin: Arc<dyn Plugin> = Arc::from(start(&[("get_size", "echo 1"), ("open", &held.script())]).unwrap());
        let events = held.watch();
        let running = tokio::spawn({
            let plugin = Arc::clone(&plugin);
            async move { plugin.open(open_args(false, "")).await.map(drop) }
        });
        let events = next(events).await;
        match stop {
            true => plugin.stop(StopScope::Reads),
            false => running.abort(),
        }
        next(events).await;
    }
}

#[tokio::test]
async fn a_script_that_prints_without_end_and_ignores_that_nobody_reads_is_killed() {
    let forever = "trap '' PIPE; while :; do echo 0123456789012345678901234567890123456789; done 2>/dev/null";
    let (_plugin, handle) = open(&[("pread", forever)]).await;
    let error = tokio::time::timeout(DEADLINE, pread(&*handle, 512, 0)).await.expect("it ends").unwrap_err();
    assert!(error.to_string().contains("expecting 512 bytes but received more than"), "{error}");
}

#[tokio::test]
async fn a_program_in_the_background_that_keeps_the_output_open_is_not_waited_for() {
    let held = Held::new();
    let script = format!("cat {} & exit 0", held.path.display());
    let (_plugin, handle) = open(&[("flush", &script)]).await;
    tokio::time::timeout(DEADLINE, handle.flush()).await.expect("it ends").unwrap();
    // Ends the program in the background.
    drop(std::fs::OpenOptions::new().write(true).open(&held.path).unwrap());
}

#[tokio::test]
async fn emulated_cache_reads_long_pieces_and_keeps_nothing() {
    let (_plugin, handle) = opened(&[
        ("can_cache", "echo emulate"),
        ("pread", "echo $3 $4 >>$tmpdir/log; head -c $3 /dev/zero"),
        ("export_description", "cat $tmpdir/log"),
    ])
    .await;
    assert_eq!(handle.can().await.unwrap().cache, Support::Native);
    handle.cache(4096, 128 << 20).await.unwrap();
    let log = handle.export_description().await.unwrap().unwrap();
    assert_eq!(log, "67108864 4096\n67108864 67112960");
}

#[tokio::test]
async fn emulated_cache_keeps_to_the_block_sizes() {
    let (_plugin, handle) = open(&[
        ("can_cache", "echo emulate"),
        ("block_size", "echo 512 4096 1M"),
        ("pread", "echo $3 $4 >>$tmpdir/log; head -c $3 /dev/zero"),
        ("export_description", "cat $tmpdir/log"),
    ])
    .await;
    handle.can().await.unwrap();
    handle.cache(0, 2 << 20).await.unwrap();
    assert_eq!(handle.export_description().await.unwrap().unwrap(), "1048576 0\n1048576 1048576");
}
