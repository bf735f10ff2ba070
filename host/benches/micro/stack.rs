//! Built-in filters over the null plugin, which is always ready and touches no byte. So the result
//! is the cost of the layers.

use std::cell::Cell;
use std::ffi::OsStr;
use std::sync::Arc;
use std::task::{Context, Waker};

use divan::Bencher;
use rbdkit_chain::{Chain, Hop};
use rbdkit_plugin_api::{Buffer, Client, Done, Flags, Op, Param, Peer, Pool};
use rbdkit_sandbox::{FilterLimits, Host, Options};
use tokio::runtime::{Builder, Runtime};

/// Requests go through a range of this many bytes, one block of 64 KiB after the other.
const RANGE: u64 = 64 << 20;

/// A built-in filter that `make filters` has built.
fn component(name: &str) -> Vec<u8> {
    let path = format!("{}/../target/filters/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|why| panic!("{path}: {why} (run make filters first)"))
}

/// An open chain.
pub struct Stack {
    runtime: Runtime,
    top: Arc<Hop>,
    offset: Cell<u64>,
}

impl Stack {
    /// A chain of these filters, the first nearest the client.
    pub fn of(filters: &[&str]) -> Stack {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let host = Host::new(Options::default()).expect("a host");
        let layers = filters.iter().map(|name| {
            let module = host.load(name, &component(name)).expect("a filter");
            module.configure(Vec::new(), FilterLimits::default()).expect("a filter without parameters")
        });
        let mut plugin = (rbdkit_plugin_null::INFO.make)();
        plugin.config(Param { key: "size", value: OsStr::new("1G") }).expect("a size");
        let chain = Chain::new(layers.collect(), "null", plugin, Pool::new());
        let top = runtime.block_on(async {
            chain.get_ready().await.expect("ready");
            chain.after_fork().await.expect("running");
            let client = Arc::new(Client::new(1, Peer::Unix, None, false));
            chain.top(client).open(false, "").await.expect("an open chain")
        });
        Stack { runtime, top, offset: Cell::new(0) }
    }

    fn offset(&self) -> u64 {
        let offset = self.offset.get();
        self.offset.set((offset + (64 << 10)) % RANGE);
        offset
    }

    /// Polls once, as the server does, and then to the end.
    fn finish(&self, op: Op<Done>) -> Buffer {
        let mut context = Context::from_waker(Waker::noop());
        let (buffer, result) = match op.poll_now(&mut context) {
            Op::Ready(done) => done,
            later => self.runtime.block_on(later),
        };
        result.expect("success");
        buffer
    }

    fn bench(&self, bencher: Bencher<'_, '_>, buffer: Buffer, operation: impl Fn(Buffer, u64) -> Op<Done>) {
        let _entered = self.runtime.enter();
        let mut place = Some(buffer);
        bencher.bench_local(|| {
            if let Some(buffer) = place.take() {
                place = Some(self.finish(operation(buffer, self.offset())));
            }
        });
    }

    /// Measures reads of this many bytes.
    pub fn bench_reads(&self, bencher: Bencher<'_, '_>, length: u32) {
        self.bench(bencher, Buffer::new(length), |buffer, offset| {
            let span = buffer.span();
            self.top.pread(buffer, span, offset)
        });
    }

    /// Measures writes of this many bytes.
    pub fn bench_writes(&self, bencher: Bencher<'_, '_>, length: u32) {
        let bytes = vec![1; usize::try_from(length).expect("a length")];
        self.bench(bencher, Buffer::from_vec(bytes), |buffer, offset| {
            let span = buffer.span();
            self.top.pwrite(buffer, span, offset, Flags::NONE)
        });
    }
}
