//! What the connections of one filter have in common: next that they share, and flushes of all.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{Errno, Flags};
use tokio::sync::Semaphore;

use super::support::{Disk, Guest, Stack, ended, read, soon, until, write};
use crate::FilterLimits;

/// A guest whose flush flushes next of all connections that a scope names: 0 the connection, 1 the
/// export, 2 the server.
fn flushes_all(scope: u32) -> Guest {
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "flush-all" (func $flush_all (param i32 i32)))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (call $flush_all (i32.const {scope}) (i32.const 2048))
        (i32.const 2048))
"#
    );
    Guest::new(&["flushes"], &body).transparent()
}

/// A guest whose connections share next.
fn shares() -> Guest {
    Guest::new(
        &["connection"],
        r#"
    (import "rbdkit:filter/next-open@0.1.0" "open-shared" (func $open (param i32 i32 i32 i32)))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2048))
        (i32.store8 (i32.const 2064) (i32.load8_u (i32.const 2048)))
        (i32.store8 (i32.const 2072) (i32.load8_u (i32.const 2049)))
        (i32.const 2064))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
"#,
    )
    .transparent()
}

async fn end(hop: Arc<Hop>) {
    hop.finalize().await.unwrap();
    hop.close().await;
}

#[tokio::test]
async fn a_flush_of_all_reaches_the_connections_of_its_scope_that_were_written_to() {
    for (scope, expected) in [(0, 1), (1, 3), (2, 3)] {
        let stack = Stack::new(&[flushes_all(scope)]).await;
        let (asker, one, two, idle) = (stack.open().await, stack.open().await, stack.open().await, stack.open().await);
        let gone = stack.open().await;
        for hop in [&one, &two, &gone] {
            write(hop, 0, b"x", Flags::NONE).await.unwrap();
        }
        end(gone).await;
        stack.disk.seen();
        asker.flush().await.unwrap();
        assert_eq!(stack.disk.seen(), vec!["flush"; expected], "scope {scope}");
        for hop in [asker, one, two, idle] {
            end(hop).await;
        }
    }
}

#[tokio::test]
async fn a_connection_ends_after_the_flush_that_another_one_began_on_it() {
    let hold = Arc::new(Semaphore::new(1));
    let disk = Disk { hold: Some(Arc::clone(&hold)), ..Disk::default() };
    let stack = Stack::over(&[flushes_all(2)], disk, FilterLimits::default()).await;
    let (asker, written) = (stack.open().await, stack.open().await);
    write(&written, 0, b"x", Flags::NONE).await.unwrap();
    stack.disk.seen();
    let asking = tokio::spawn(async move {
        asker.flush().await.unwrap();
        asker
    });
    stack.disk.reached(2).await;
    let ending = tokio::spawn(end(written));
    hold.add_permits(100);
    let asker = ended(asking).await;
    ended(ending).await;
    until("the close", || stack.disk.log.lock().unwrap().iter().any(|line| line == "close")).await;
    assert_eq!(stack.disk.seen(), ["flush", "flush", "finalize", "close"]);
    end(asker).await;
}

#[tokio::test]
async fn connections_share_next_until_the_server_ends() {
    let stack = Stack::new(&[shares()]).await;
    let mut open = Vec::new();
    for round in 0..3 {
        for _ in 0..3 {
            open.push(stack.open().await);
        }
        for hop in open.drain(..) {
            assert_eq!(read(&hop, 0, 16).await.unwrap().len(), 16);
            end(hop).await;
        }
        assert_eq!(stack.disk.opened.load(SeqCst), 1, "round {round}");
        assert!(stack.disk.seen().iter().all(|line| line == "pread 0 16"));
    }
    let readonly = stack.open_as(true, "").await.unwrap();
    assert_eq!(stack.disk.opened.load(SeqCst), 2, "one that may be written to is not one that is read-only");
    assert!(!readonly.can().write);
    end(readonly).await;
    stack.chain.begin_stop();
    stack.chain.cleanup(soon()).await;
    assert_eq!(stack.disk.seen(), ["finalize", "close", "finalize", "close"]);
}

#[tokio::test]
async fn a_shared_next_that_does_not_open_is_tried_again_by_the_next_connection() {
    let stack = Stack::new(&[shares()]).await;
    assert_eq!(stack.open_as(false, "none").await.err().unwrap().errno(), Errno::Enoent);
    end(stack.open_as(false, "none2").await.unwrap()).await;
    assert_eq!(stack.open_as(false, "none").await.err().unwrap().errno(), Errno::Enoent);
    stack.chain.begin_stop();
    assert_eq!(stack.open_as(false, "other").await.err().unwrap().errno(), Errno::Eshutdown);
}

#[tokio::test]
async fn names_that_clients_invent_do_not_keep_disks_open() {
    let stack = Stack::new(&[shares()]).await;
    for name in 0..50 {
        end(stack.open_as(false, &format!("name{name}")).await.unwrap()).await;
    }
    let closed = stack.disk.seen().iter().filter(|line| *line == "close").count();
    assert_eq!((stack.disk.opened.load(SeqCst), closed), (50, 49), "all but the first are closed: it is one disk");
}
