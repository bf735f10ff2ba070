//! The longest chain that a server allows, on a small stack. The frames of its layers lie on one
//! stack wherever no guest runs in between, so the length of a chain is bounded.

use std::sync::Arc;

use rbdkit_chain::{Layer, MAX_FILTERS};
use rbdkit_plugin_api::{Capabilities, Flags, Support};

use super::support::{Disk, Guest, READS, Stack, WRITES, read, write};
use crate::{FilterLimits, Host, Options};

/// A server's threads have 2 MiB, and its own frames are below those of the chain.
const STACK_BYTES: usize = 1280 << 10;

/// A guest that takes part in each phase of a connection, and does each operation itself.
fn busy() -> Guest {
    let body = format!(
        r#"{READS}{WRITES}
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "flush" (func $flush (param i32)))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param $readonly i32) (param $name i32) (param $length i32)
            (param $tls i32) (param $replayed i32) (result i32)
        (call $open (local.get $readonly) (local.get $name) (local.get $length) (i32.const 2048))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32) (call $flush (i32.const 2048)) (i32.const 2048))
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))
"#
    );
    Guest::new(&["connection", "reads", "writes", "flushes", "lifecycle"], &body).transparent()
}

/// A guest that exports nothing, so that all calls pass by it on one stack.
fn idle() -> Guest {
    Guest::new(&[], "").transparent()
}

/// Runs through all phases of a chain, given the filter at each position.
async fn every_phase(host: Arc<Host>, filter: fn(usize) -> Guest, disk: Disk) {
    let layers: Vec<Arc<dyn Layer>> = (0..MAX_FILTERS)
        .map(|nth| {
            let component = filter(nth).component();
            host.load("guest.wasm", &component).unwrap().configure(vec![], FilterLimits::default()).unwrap()
        })
        .collect();
    let stack = Stack::of(Arc::clone(&host), layers, disk).await;
    let top = stack.chain.top(stack.client());
    top.preconnect(false).await.unwrap();
    top.list_exports(false).await.unwrap();
    for _ in 0..2 {
        let hop = stack.open().await;
        hop.disk().await.unwrap();
        read(&hop, 512, 512).await.unwrap();
        write(&hop, 512, &[1; 512], Flags { fua: true, ..Flags::NONE }).await.unwrap();
        hop.flush().await.unwrap();
        hop.zero(0, 512, Flags::NONE).await.unwrap();
        hop.trim(0, 512, Flags::NONE).await.unwrap();
        hop.cache(0, 512).await.unwrap();
        hop.extents(0, 4096, Flags::NONE).await.unwrap();
        hop.finalize().await.unwrap();
        hop.close().await;
    }
    stack.chain.cleanup(super::support::soon()).await;
}

#[test]
fn every_phase_of_the_longest_chain_fits_on_a_small_stack() {
    let emulated =
        Capabilities { zero: Support::Emulate, fua: Support::Emulate, cache: Support::Emulate, ..Disk::default().can };
    let cache = tempfile::tempdir().unwrap();
    let host = Host::new(Options { cache_dir: Some(cache.path().into()), ..Options::default() }).unwrap();
    let chains: [fn(usize) -> Guest; 4] = [
        |_| busy(),
        |_| idle(),
        |nth| if nth % 2 == 0 { busy() } else { idle() },
        // All other layers are on the stack of the first one's guest.
        |nth| if nth == 0 { busy() } else { idle() },
    ];
    for filter in chains {
        for can in [Disk::default().can, emulated] {
            let (host, disk) = (Arc::clone(&host), Disk { can, ..Disk::default() });
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { Box::pin(every_phase(host, filter, disk)).await });
            });
            thread.unwrap().join().unwrap();
        }
    }
}
