//! Replacing a filter's code while it serves.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{ConfigError, Errno};
use tokio::sync::Semaphore;

use super::support::{Disk, Guest, Stack, ended, host, read};
use crate::{FilterLimits, Precompiled, Reloader, Replaced};

/// A guest whose reads begin with its version, the handle that its open returned, and how many
/// opens its instance has seen. A read at 512 asks the layer below first.
fn version(version: u64) -> Guest {
    let body = r#"
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "flush" (func $flush (param i32)))
    (import "rbdkit:filter/request@0.1.0" "handle" (func $handle (result i64)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (global $opens (mut i64) (i64.const 0))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32) (param $replayed i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2048))
        (if (i32.and (local.get $replayed) (i32.const $REFUSES)) (then
            (i32.store (i32.const 2064) (i32.const 1))
            (return (i32.const 2064))))
        (global.set $opens (i64.add (global.get $opens) (i64.const 1)))
        (i64.store (i32.const 2072) (i64.add (i64.const $HANDLE) (global.get $opens)))
        (i32.store8 (i32.const 2064) (i32.load8_u (i32.const 2048)))
        (i32.const 2064))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32)
        (if (i32.const $FLUSHES) (then (call $flush (i32.const 2048))))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.eq (local.get 0) (i64.const 512)) (then
            (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))))
        (i64.store (i32.const 3000) (i64.const $VERSION))
        (i64.store (i32.const 3008) (call $handle))
        (i64.store (i32.const 3016) (global.get $opens))
        (call $write (i32.const 0) (i32.const 0) (i32.const 3000) (i32.const 24))
        (i32.const 1200))
"#;
    let body = body.replace("$VERSION", &version.to_string()).replace("$HANDLE", &(version * 100).to_string());
    Guest::new(&["connection", "reads"], &body.replace("$REFUSES", "0").replace("$FLUSHES", "0"))
}

/// A version that refuses to replay an open.
fn refuses(number: u64) -> Guest {
    let mut guest = version(number);
    guest.body = guest.body.replace("(local.get $replayed) (i32.const 0)", "(local.get $replayed) (i32.const 1)");
    guest
}

/// A version with further exports.
fn with(guest: Guest, exports: &'static [&'static str], body: &str) -> Guest {
    Guest { exports, body: format!("{}{body}", guest.body), ..guest }
}

struct Reloaded {
    stack: Stack,
    reloader: Arc<Reloader>,
}

impl Reloaded {
    async fn new(guest: &Guest, disk: Disk) -> Reloaded {
        let host = host();
        let module = host.load("guest.wasm", &guest.component()).unwrap();
        let (layer, reloader) = module.configure_to_reload(vec![], FilterLimits::default()).unwrap();
        Reloaded { stack: Stack::of(host, vec![layer], disk).await, reloader: Arc::new(reloader) }
    }

    async fn reload(&self, guest: &Guest) -> Result<Replaced, ConfigError> {
        let component = guest.component();
        let code = self.stack.host.precompile(&component).unwrap();
        self.reloader.until_replaced().await;
        #[allow(unsafe_code, reason = "the code comes from the line above")]
        // SAFETY: `precompile` of this process returned the code.
        let component = unsafe { Precompiled::new(component, code) };
        self.reloader.reload(component).await
    }

    /// Reloads, and returns how many connections moved and how many stayed, and why.
    async fn counts(&self, guest: &Guest) -> (usize, usize, Option<String>) {
        let Replaced { moved, draining, why } = self.reload(guest).await.unwrap();
        (moved, draining, why)
    }

    fn users(&self) -> Option<String> {
        self.reloader.users_of_replaced()
    }

    fn versions(&self) -> u32 {
        self.stack.counters().versions.load(SeqCst)
    }

    /// Bytes of memory that instances take.
    fn memory(&self) -> u64 {
        self.stack.chain.usage().iter().find(|usage| usage.account == "memory-all").unwrap().used
    }
}

/// The version, the handle and the number of opens.
async fn ask(hop: &Arc<Hop>) -> Result<(u64, u64, u64), Errno> {
    let bytes = read(hop, 0, 512).await.map_err(|e| e.errno())?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    Ok((word(0), word(8), word(16)))
}

async fn close(hop: &Arc<Hop>) {
    hop.finalize().await.unwrap();
    hop.close().await;
}

#[tokio::test]
async fn a_stateless_filter_moves_at_once_and_a_call_that_runs_ends_on_the_old_version() {
    let hold = Arc::new(Semaphore::new(0));
    let reloaded = Reloaded::new(&version(1), Disk { hold: Some(Arc::clone(&hold)), ..Disk::default() }).await;
    let hop = reloaded.stack.open().await;
    let before = reloaded.memory();
    let running = tokio::spawn({
        let hop = Arc::clone(&hop);
        async move { read(&hop, 512, 512).await.map(|bytes| bytes[0]) }
    });
    reloaded.stack.disk.reached(1).await;
    assert_eq!(reloaded.counts(&version(2)).await, (1, 0, None));
    assert_eq!(ask(&hop).await, Ok((2, 101, 0)), "the handle stays");
    assert_eq!(reloaded.versions(), 2);
    // A third version has to wait for the call that runs on the first one.
    let third = version(3);
    let mut waiting = std::pin::pin!(reloaded.counts(&third));
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), &mut waiting).await.is_err());
    assert_eq!(reloaded.users(), Some("connection 1".to_string()), "a call that hangs below is named");
    hold.add_permits(1);
    assert_eq!(ended(running).await.unwrap(), 1);
    assert_eq!(waiting.await, (1, 0, None));
    assert_eq!(ask(&hop).await.unwrap().0, 3);
    reloaded.reloader.until_replaced().await;
    assert_eq!(reloaded.users(), None);
    let counters = reloaded.stack.counters();
    assert_eq!((reloaded.versions(), counters.most_versions.load(SeqCst)), (1, 2));
    assert_eq!(reloaded.memory(), before, "all memory of earlier versions was given back");
}

#[tokio::test]
async fn a_connection_of_its_own_instance_is_replayed_on_the_new_version() {
    // 1 serialize-all-requests, 2 serialize-requests.
    for model in [1, 2] {
        let guest = |number| version(number).model(model).recovery(1);
        let reloaded = Reloaded::new(&guest(1), Disk::default()).await;
        let (one, other) = (reloaded.stack.open().await, reloaded.stack.open().await);
        assert_eq!(ask(&one).await.unwrap().1, 101);
        assert_eq!(reloaded.counts(&guest(2)).await, (2, 0, None));
        let (one, other) = (ask(&one).await.unwrap(), ask(&other).await.unwrap());
        let expected = if model == 1 { ((2, 201, 2), (2, 202, 2)) } else { ((2, 201, 1), (2, 201, 1)) };
        assert_eq!((one, other), expected, "model {model}");
        reloaded.reloader.until_replaced().await;
        assert_eq!(reloaded.versions(), 1);
    }
}

#[tokio::test]
async fn a_connection_that_the_new_version_refuses_to_replay_stays_with_the_old_one() {
    let guest = |guest: Guest| guest.model(1).recovery(1);
    let reloaded = Reloaded::new(&guest(version(1)), Disk::default()).await;
    let old = reloaded.stack.open().await;
    let why = Some("open of a live connection was refused".to_string());
    assert_eq!(reloaded.counts(&guest(refuses(2))).await, (0, 1, why));
    let new = reloaded.stack.open().await;
    assert_eq!((ask(&old).await, ask(&new).await), (Ok((1, 101, 1)), Ok((2, 201, 1))));
    assert_eq!(reloaded.versions(), 2);
    close(&old).await;
    drop(old);
    reloaded.reloader.until_replaced().await;
    assert_eq!(reloaded.versions(), 1);
}

#[tokio::test]
async fn a_version_that_does_not_end_its_replay_leaves_the_connections_with_the_old_one() {
    let guest = |number| version(number).model(1).recovery(1);
    let mut hangs = guest(2);
    hangs.body = hangs.body.replace("(if (i32.const 0) (then (call $flush", "(if (i32.const 1) (then (call $flush");
    let disk = Disk { hold: Some(Arc::new(Semaphore::new(0))), ..Disk::default() };
    let reloaded = Reloaded::new(&guest(1), disk).await;
    let hop = reloaded.stack.open().await;
    let why = Some("the new version does not answer in time".to_string());
    assert_eq!(reloaded.counts(&hangs).await, (0, 1, why));
    assert_eq!(ask(&hop).await, Ok((1, 101, 1)));
}

#[tokio::test]
async fn connections_whose_state_would_be_lost_drain() {
    for model in [1, 2] {
        let guest = |number| version(number).model(model).recovery(2);
        let reloaded = Reloaded::new(&guest(1), Disk::default()).await;
        let old = reloaded.stack.open().await;
        let why = Some("their state is in an instance's memory (recovery: lost)".to_string());
        assert_eq!(reloaded.counts(&guest(2)).await, (0, 1, why), "model {model}");
        let new = reloaded.stack.open().await;
        assert_eq!((ask(&old).await, ask(&new).await), (Ok((1, 101, 1)), Ok((2, 201, 1))));
        assert_eq!(reloaded.users(), Some("connection 1".to_string()), "model {model}");
        close(&old).await;
        drop(old);
        // The connection that is left holds state as well, but of the version that goes on.
        reloaded.reloader.until_replaced().await;
        assert_eq!((reloaded.versions(), ask(&new).await.unwrap().0), (1, 2));
        close(&new).await;
        drop(new);
        assert_eq!(reloaded.counts(&guest(3)).await, (0, 0, None), "without connections nothing drains");
        reloaded.reloader.until_replaced().await;
        assert_eq!(reloaded.versions(), 1);
    }
}

/// A serialized version whose reads add 1 to a slot of all connections, and begin with the version
/// and the sum. A read at 512 asks the layer below before it adds.
fn counts(number: u64) -> Guest {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/slots@0.1.0" "add" (func $add (param i32 i32 i64) (result i64)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (local $before i64)
        ;; Adds to what it read before the layer below answered, which only is right in turns.
        (local.set $before (call $add (i32.const 2) (i32.const 0) (i64.const 0)))
        (if (i64.eq (local.get 0) (i64.const 512)) (then
            (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))))
        (drop (call $add (i32.const 2) (i32.const 0)
            (i64.sub (i64.add (local.get $before) (i64.const 1))
                (call $add (i32.const 2) (i32.const 0) (i64.const 0)))))
        (i64.store (i32.const 3000) (i64.const $VERSION))
        (i64.store (i32.const 3008) (call $add (i32.const 2) (i32.const 0) (i64.const 0)))
        (call $write (i32.const 0) (i32.const 0) (i32.const 3000) (i32.const 16))
        (i32.const 1200))
"#;
    Guest::new(&["reads"], &body.replace("$VERSION", &number.to_string())).model(1).recovery(2)
}

/// The version and the sum that a read answers.
async fn sum(hop: &Arc<Hop>, offset: u64) -> (u64, u64) {
    let bytes = read(hop, offset, 512).await.unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

#[tokio::test]
async fn two_versions_of_a_serialized_filter_take_turns_while_one_drains() {
    let hold = Arc::new(Semaphore::new(0));
    let reloaded = Reloaded::new(&counts(1), Disk { hold: Some(Arc::clone(&hold)), ..Disk::default() }).await;
    let asked = |hop: &Arc<Hop>| {
        let hop = Arc::clone(hop);
        tokio::spawn(async move { sum(&hop, 512).await })
    };
    let (old, disk) = (reloaded.stack.open().await, &reloaded.stack.disk);
    // A call that runs when the new version comes ends first.
    let running = asked(&old);
    disk.reached(1).await;
    let second = counts(2);
    let mut reload = std::pin::pin!(reloaded.counts(&second));
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), &mut reload).await.is_err());
    hold.add_permits(1);
    let why = Some("their state is in an instance's memory (recovery: lost)".to_string());
    assert_eq!((reload.await, ended(running).await), ((0, 1, why), (1, 1)));
    let new = reloaded.stack.open().await;
    // While a call of one version waits for the layer below, calls of the other one do not begin.
    let mut expected = 2;
    for (first, then) in [((&old, 1), (&new, 2)), ((&new, 2), (&old, 1))] {
        disk.seen();
        let holds = asked(first.0);
        disk.reached(1).await;
        let waits = asked(then.0);
        let mut rest = std::pin::pin!(disk.reached(2));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), &mut rest).await.is_err());
        hold.add_permits(2);
        assert_eq!((ended(holds).await, ended(waits).await), ((first.1, expected), (then.1, expected + 1)));
        expected += 2;
    }
    // A call that is given up while it waits for its turn leaves its instance, and the state in it.
    disk.seen();
    let holds = asked(&new);
    disk.reached(1).await;
    let gives_up = tokio::time::timeout(std::time::Duration::from_millis(50), sum(&old, 0));
    assert!(gives_up.await.is_err());
    hold.add_permits(1);
    assert_eq!((ended(holds).await, sum(&old, 0).await), ((2, expected), (1, expected + 1)));
    assert_eq!(reloaded.stack.counters().instances.load(SeqCst), 2);
    close(&old).await;
    drop(old);
    reloaded.reloader.until_replaced().await;
    assert_eq!(sum(&new, 0).await, (2, expected + 2));
    assert_eq!((reloaded.versions(), reloaded.users()), (1, None));
}

#[tokio::test]
async fn a_client_keeps_what_it_was_told() {
    let info = |size: u64| {
        format!(
            r#"
    (func (export "rbdkit:filter/info@0.1.0#get-size") (result i32)
        (i64.store (i32.const 3208) (i64.const {size})) (i32.const 3200))
    (func (export "rbdkit:filter/info@0.1.0#block-size") (result i32)
        (i32.store (i32.const 3300) (i32.const 1)) (i32.store (i32.const 3304) (i32.const 7)) (i32.const 3300))
    (func (export "rbdkit:filter/info@0.1.0#export-description") (result i32) (i32.const 1200))"#
        )
    };
    let exports = &["connection", "reads", "info"];
    let reloaded = Reloaded::new(&with(version(1), exports, &info(4096)), Disk::default()).await;
    let old = reloaded.stack.open().await;
    assert_eq!(reloaded.counts(&with(version(2), exports, &info(4096))).await, (1, 0, None));
    let why = Some("the new version answers another size".to_string());
    assert_eq!(reloaded.counts(&with(version(3), exports, &info(8192))).await, (0, 1, why));
    let new = reloaded.stack.open().await;
    assert_eq!((old.size(), ask(&old).await.unwrap().0), (4096, 2));
    assert_eq!((new.size(), ask(&new).await.unwrap().0), (8192, 3));
    close(&old).await;
    drop(old);
    // Other interfaces: an operation may have been offered that there is no more.
    let why = Some("the new version exports other interfaces".to_string());
    assert_eq!(reloaded.counts(&version(4)).await, (0, 1, why));
    assert_eq!(ask(&new).await.unwrap().0, 3);
    assert_eq!(ask(&reloaded.stack.open().await).await.unwrap().0, 4);
}

#[tokio::test]
async fn a_version_that_does_not_work_changes_nothing() {
    let reloaded = Reloaded::new(&version(1), Disk::default()).await;
    let hop = reloaded.stack.open().await;
    let memory = reloaded.memory();
    let mut traps = version(2);
    traps.configure = "(unreachable)";
    for (guest, why) in [
        (traps, "guest.wasm: guest: configure: "),
        (version(2).model(1), "guest.wasm: guest: its thread model is serialize_all_requests, and that of the running"),
        (Guest { name: "other", ..version(2) }, "guest.wasm: it is the filter other, and guest is running"),
    ] {
        let said = reloaded.reload(&guest).await.unwrap_err().to_string();
        assert!(said.starts_with(why), "{said}");
        assert_eq!(ask(&hop).await.unwrap().0, 1);
        assert_eq!((reloaded.versions(), reloaded.memory()), (1, memory));
    }
}

#[tokio::test]
async fn a_new_version_is_not_suspended_for_the_faults_of_the_old_one() {
    let mut traps = version(1);
    traps.body = traps.body.replace("(i64.store (i32.const 3000)", "(unreachable) (i64.store (i32.const 3000)");
    let reloaded = Reloaded::new(&traps, Disk::default()).await;
    let hop = reloaded.stack.open().await;
    let counters = reloaded.stack.counters();
    let suspended = async || {
        let before = counters.faults.load(SeqCst);
        ask(&hop).await == Err(Errno::Eio) && counters.faults.load(SeqCst) == before
    };
    // Until the suspension is long enough for the reload.
    while !suspended().await || counters.faults.load(SeqCst) < 13 {
        tokio::task::yield_now().await;
    }
    assert_eq!(reloaded.counts(&version(2)).await, (1, 0, None));
    assert_eq!(ask(&hop).await.unwrap().0, 2);
}

#[tokio::test]
async fn the_new_version_gets_ready_and_the_old_one_cleans_up_after_its_last_connection() {
    let body = r#"
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))"#;
    let guest = |number, recovery| {
        with(version(number), &["connection", "reads", "lifecycle"], body).model(1).recovery(recovery)
    };
    let reloaded = Reloaded::new(&guest(1, 2), Disk::default()).await;
    let old = reloaded.stack.open().await;
    let counters = reloaded.stack.counters();
    let calls = || counters.calls.load(SeqCst);
    let before = calls();
    assert_eq!(reloaded.reload(&guest(2, 2)).await.unwrap().draining, 1);
    assert_eq!(calls() - before, 3, "configure, get-ready, after-fork");
    close(&old).await;
    let before = calls();
    drop(old);
    reloaded.reloader.until_replaced().await;
    assert_eq!(calls() - before, 1, "cleanup, on the instance that served");
    assert_eq!(reloaded.versions(), 1);
    assert_eq!(counters.instances.load(SeqCst), 2, "one of each version");
}
