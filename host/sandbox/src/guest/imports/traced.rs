//! The imports of the contract with a record of each call, for tools. The server's linker has none
//! of this: it binds the functions themselves.
//!
//! [`Traced`] implements the interfaces by calling those of [`Context`]. The compiler reports a
//! function of the contract that is missing here.

use std::sync::Arc;
use std::time::Instant;

use rbdkit_plugin_api::Errno;
use wasmtime::component::{HasData, HasSelf, Linker, WasmList};
use wasmtime::{Result, StoreContextMut};

use super::lend::ImportFuture;
use super::shown::{Failure as _, Shown as _, answer, argument, flags, payload};
use super::{buffer, disks, locks, next, scratch, storage};
use crate::connection::bindings::host;
use crate::connection::bindings::host::types as wit;
use crate::connection::import_error::ImportError;
use crate::guest::context::Context;

/// A context whose imports are recorded.
pub(super) struct Traced<'a>(&'a mut Context);

/// Tells the linker that the imports act on a [`Traced`].
struct Tracing;

impl HasData for Tracing {
    type Data<'a> = Traced<'a>;
}

impl Traced<'_> {
    /// Records a call that has ended.
    fn record(&self, name: &str, arguments: &[String], result: &str, began: Instant) {
        if let Some(recorder) = &self.0.recorder {
            recorder.host_call(&name.replace('_', "-"), &arguments.join(", "), result, began);
        }
    }
}

/// Implements one interface. `waits`: the function is asynchronous. `at_once`: it is not.
/// `unshown`: it is not, and its arguments are secret.
macro_rules! traced {
    ($interface:literal, $trait:path {
        $($kind:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*
    }) => {
        impl $trait for Traced<'_> {
            $(traced!(@$kind $interface, $trait, $name($($argument: $type),*) -> $answer);)*
        }
    };
    (@waits $interface:literal, $trait:path, $name:ident($($argument:ident: $type:ty),*) -> $answer:ty) => {
        async fn $name(&mut self, $($argument: $type),*) -> $answer {
            let arguments = [$(argument(stringify!($argument), &$argument)),*];
            let began = Instant::now();
            let result = <Context as $trait>::$name(self.0, $($argument),*).await;
            self.record(concat!($interface, ".", stringify!($name)), &arguments, &answer(&result), began);
            result
        }
    };
    (@unshown $interface:literal, $trait:path, $name:ident($($argument:ident: $type:ty),*) -> $answer:ty) => {
        fn $name(&mut self, $($argument: $type),*) -> $answer {
            let began = Instant::now();
            let result = <Context as $trait>::$name(self.0, $($argument),*);
            self.record(concat!($interface, ".", stringify!($name)), &["...".to_string()], &answer(&result), began);
            result
        }
    };
    (@at_once $interface:literal, $trait:path, $name:ident($($argument:ident: $type:ty),*) -> $answer:ty) => {
        fn $name(&mut self, $($argument: $type),*) -> $answer {
            let arguments = [$(argument(stringify!($argument), &$argument)),*];
            let began = Instant::now();
            let result = <Context as $trait>::$name(self.0, $($argument),*);
            self.record(concat!($interface, ".", stringify!($name)), &arguments, &answer(&result), began);
            result
        }
    };
}

/// The answer of an import that can answer an errno.
type OrErrno<T> = Result<T, ImportError>;

impl wit::Host for Traced<'_> {
    fn convert_errno(&mut self, error: ImportError) -> Result<wit::Errno> {
        self.0.convert_errno(error)
    }
}

traced!("log", host::log::Host {
    at_once error(message: String) -> Result<()>;
    at_once warn(message: String) -> Result<()>;
    at_once info(message: String) -> Result<()>;
    at_once debug(message: String) -> Result<()>;
});

traced!("request", host::request::Host {
    at_once connection() -> Result<u64>;
    at_once exportname() -> Result<String>;
    at_once readonly() -> Result<bool>;
    at_once handle() -> Result<u64>;
    at_once cancelled() -> Result<bool>;
});

traced!("client", host::client::Host {
    at_once peer_name() -> Result<host::client::Peer>;
    at_once peer_credentials() -> OrErrno<(i64, i64, i64)>;
    at_once is_tls() -> Result<bool>;
    at_once tls_subject() -> OrErrno<String>;
    at_once tls_issuer() -> OrErrno<String>;
    at_once security_context() -> OrErrno<String>;
    at_once disconnect(ending: host::client::Ending) -> OrErrno<()>;
});

traced!("next", host::next::Host {
    at_once get_size() -> OrErrno<u64>;
    at_once can() -> OrErrno<wit::Capabilities>;
    waits block_size() -> OrErrno<wit::BlockSizes>;
    waits export_description() -> Result<Option<String>>;
    waits pread(offset: u64, length: u32, buf: u32, at: u32) -> OrErrno<()>;
    waits pwrite(offset: u64, length: u32, buf: u32, at: u32, flags: wit::CommandFlags) -> OrErrno<()>;
    waits flush() -> OrErrno<()>;
    waits flush_all(s: wit::Scope) -> OrErrno<()>;
    waits trim(offset: u64, length: u64, flags: wit::CommandFlags) -> OrErrno<()>;
    waits zero(offset: u64, length: u64, flags: wit::CommandFlags) -> OrErrno<()>;
    waits cache(offset: u64, length: u64) -> OrErrno<()>;
    waits extents(offset: u64, length: u64, flags: wit::CommandFlags) -> OrErrno<Vec<wit::Extent>>;
    waits extents_forward(offset: u64, length: u64, to: u64, flags: wit::CommandFlags) -> OrErrno<()>;
    waits extents_until(
        offset: u64, length: u64, limit: u64, flags: wit::CommandFlags
    ) -> OrErrno<Vec<wit::Extent>>;
    waits extents_forward_until(
        offset: u64, length: u64, limit: u64, to: u64, flags: wit::CommandFlags
    ) -> OrErrno<()>;
    at_once prefetch(offset: u64, length: u64) -> Result<bool>;
});

traced!("next-open", host::next_open::Host {
    waits open(readonly: bool, exportname: String) -> OrErrno<()>;
    waits open_shared(readonly: bool, exportname: String) -> OrErrno<()>;
    at_once generation() -> Result<u64>;
    waits reopen(generation: u64, readonly: bool, exportname: String) -> OrErrno<u64>;
    waits preconnect(readonly: bool) -> OrErrno<()>;
    waits list_exports(readonly: bool) -> OrErrno<Vec<wit::ExportEntry>>;
    waits default_export(readonly: bool) -> OrErrno<String>;
});

traced!("buffer", host::buffer::Host {
    at_once len(buf: u32) -> Result<u32>;
    at_once alloc(length: u32) -> OrErrno<u32>;
    at_once free(buf: u32) -> Result<()>;
    at_once read(buf: u32, at: u32, length: u32) -> Result<Vec<u8>>;
    at_once write(buf: u32, at: u32, data: Vec<u8>) -> Result<()>;
    at_once fill(buf: u32, at: u32, length: u32, byte: u8) -> Result<()>;
    at_once copy(to: u32, to_at: u32, from: u32, from_at: u32, length: u32) -> Result<()>;
    at_once is_zero(buf: u32, at: u32, length: u32) -> Result<bool>;
    at_once equal(a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> Result<bool>;
    waits mismatch(a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> Result<Option<u32>>;
    waits xor(buf: u32, at: u32, length: u32, key: Vec<u8>, skip: u64) -> Result<()>;
    waits translate(buf: u32, at: u32, length: u32, table: Vec<u8>) -> Result<()>;
    waits swap(buf: u32, at: u32, length: u32, width: u32) -> Result<()>;
    waits find(buf: u32, at: u32, length: u32, pattern: Vec<u8>) -> Result<Option<u32>>;
    waits sha256(buf: u32, at: u32, length: u32) -> Result<Vec<u8>>;
    waits crc32c(buf: u32, at: u32, length: u32, seed: u32) -> Result<u32>;
});

traced!("locks", host::locks::Host {
    waits lock(scope: wit::Scope, offset: u64, length: u64, mode: host::locks::Mode) -> OrErrno<()>;
    at_once unlock() -> Result<()>;
});

traced!("slots", host::slots::Host {
    at_once get(scope: wit::Scope, slot: u32) -> Result<host::slots::Words>;
    at_once replace(scope: wit::Scope, slot: u32, version: u64, a: u64, b: u64, c: u64, d: u64) -> Result<bool>;
    at_once add(scope: wit::Scope, slot: u32, delta: i64) -> Result<u64>;
    at_once add_until_close(scope: wit::Scope, slot: u32, delta: i64) -> Result<u64>;
});

traced!("maps", host::maps::Host {
    at_once resize(scope: wit::Scope, id: u32, block: u32, bytes: u64) -> OrErrno<()>;
    at_once get_run(scope: wit::Scope, id: u32, first: u64, limit: u64) -> Result<host::maps::Run>;
    at_once find(scope: wit::Scope, id: u32, first: u64, states: u8) -> Result<Option<u64>>;
    at_once set(
        scope: wit::Scope, id: u32, first: u64, count: u64, if_states: u8, to: u8, when: host::maps::When
    ) -> Result<u64>;
    at_once count(scope: wit::Scope, id: u32, state: u8) -> Result<u64>;
});

traced!("scratch", host::scratch::Host {
    waits pread(scope: wit::Scope, offset: u64, length: u32, buf: u32, at: u32) -> OrErrno<()>;
    waits pwrite(scope: wit::Scope, offset: u64, length: u32, buf: u32, at: u32) -> OrErrno<()>;
    waits punch(scope: wit::Scope, offset: u64, length: u64) -> OrErrno<()>;
    at_once allocated(scope: wit::Scope) -> Result<u64>;
    at_once quota(scope: wit::Scope) -> Result<u64>;
});

traced!("files", host::files::Host {
    at_once size(param: String, nth: u32) -> OrErrno<u64>;
    at_once read(param: String, nth: u32, offset: u64, length: u32) -> OrErrno<Vec<u8>>;
    at_once append(param: String, nth: u32, data: Vec<u8>) -> OrErrno<()>;
    at_once truncate(param: String, nth: u32) -> OrErrno<()>;
    waits sync(param: String, nth: u32) -> OrErrno<()>;
    at_once holds(param: String, nth: u32) -> OrErrno<bool>;
});

traced!("crypto", host::crypto::Host {
    waits derive_pbkdf2(
        scope: wit::Scope, cipher: String, length: u32, param: String, nth: u32, hash: String, salt: Vec<u8>,
        iterations: u32
    ) -> OrErrno<u32>;
    waits derive_argon2(
        scope: wit::Scope, cipher: String, length: u32, param: String, nth: u32, kind: String, salt: Vec<u8>,
        iterations: u32, memory: u32, lanes: u32
    ) -> OrErrno<u32>;
    waits unwrap(
        scope: wit::Scope, cipher: String, length: u32, wrapping_key: u32, buf: u32, at: u32, stripes: u32, hash: String
    ) -> OrErrno<u32>;
    waits matches(
        scope: wit::Scope, key: u32, hash: String, salt: Vec<u8>, iterations: u32, digest: Vec<u8>
    ) -> OrErrno<bool>;
    unshown make_key(scope: wit::Scope, cipher: String, bytes: Vec<u8>) -> OrErrno<u32>;
    at_once free_key(scope: wit::Scope, key: u32) -> Result<()>;
    waits encrypt(
        scope: wit::Scope, key: u32, buf: u32, at: u32, length: u32, sector: u32, first: u64, step: u32
    ) -> OrErrno<()>;
    waits decrypt(
        scope: wit::Scope, key: u32, buf: u32, at: u32, length: u32, sector: u32, first: u64, step: u32
    ) -> OrErrno<()>;
});

traced!("storage", host::storage::Host {
    at_once size(param: String, nth: u32) -> OrErrno<u64>;
    waits resize(param: String, nth: u32, size: u64) -> OrErrno<()>;
    at_once allocated(param: String, nth: u32) -> OrErrno<u64>;
    waits pread(param: String, nth: u32, offset: u64, length: u32, buf: u32, at: u32) -> OrErrno<()>;
    waits pwrite(param: String, nth: u32, offset: u64, length: u32, buf: u32, at: u32) -> OrErrno<()>;
    waits read(param: String, nth: u32, offset: u64, length: u32) -> OrErrno<Vec<u8>>;
    waits write(param: String, nth: u32, offset: u64, data: Vec<u8>) -> OrErrno<()>;
    waits punch(param: String, nth: u32, offset: u64, length: u64) -> OrErrno<()>;
    waits flush(param: String, nth: u32) -> OrErrno<()>;
});

traced!("disks", host::disks::Host {
    waits size(param: String, nth: u32) -> OrErrno<u64>;
    waits pread(param: String, nth: u32, offset: u64, length: u32, buf: u32, at: u32) -> OrErrno<()>;
    waits extents(
        param: String, nth: u32, offset: u64, length: u64, flags: wit::CommandFlags
    ) -> OrErrno<Vec<wit::Extent>>;
    waits cache(param: String, nth: u32, offset: u64, length: u64) -> OrErrno<()>;
});

traced!("scripts", host::scripts::Host {
    waits run(param: String, nth: u32, variables: Vec<(String, String)>) -> OrErrno<(i32, Vec<u8>)>;
});

traced!("counters", host::counters::Host {
    at_once add(key: u64, delta: u64) -> OrErrno<()>;
    at_once add_all(additions: Vec<(u64, u64)>) -> OrErrno<()>;
    at_once get(key: u64) -> Result<u64>;
    at_once list() -> Result<Vec<(u64, u64)>>;
});

traced!("clock", host::clock::Host {
    at_once monotonic() -> Result<u64>;
    at_once realtime() -> Result<u64>;
    at_once random() -> Result<u64>;
});

traced!("server", host::server::Host {
    waits sleep(ns: u64) -> OrErrno<()>;
    at_once thread_model_below() -> Result<wit::ThreadModel>;
    at_once connections() -> Result<u32>;
    at_once shutdown() -> OrErrno<()>;
});

traced!("alarms", host::alarms::Host {
    at_once set(scope: wit::Scope, id: u32, at: u64) -> OrErrno<()>;
    at_once cancel(scope: wit::Scope, id: u32) -> OrErrno<()>;
});

traced!("gate", host::gate::Host {
    waits close() -> OrErrno<()>;
    at_once open() -> Result<()>;
});

/// Adds all interfaces of the contract, with a record of each call.
pub(super) fn add_to_linker(linker: &mut Linker<Context>) -> Result<()> {
    macro_rules! add {
        ($($interface:ident),*) => {
            $(host::$interface::add_to_linker::<Context, Tracing>(linker, |context| Traced(context))?;)*
        };
    }
    host::types::add_to_linker::<Context, HasSelf<Context>>(linker, |context| context)?;
    add!(log, request, client, next, next_open, buffer, locks, slots, maps, scratch, files, crypto);
    add!(storage, disks, scripts, counters, clock, server, alarms, gate);
    linker.allow_shadowing(true);
    bind_by_hand(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Binds the functions that the server binds by hand as well, with a record of each call.
fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    let mut below = linker.instance("rbdkit:filter/next@0.1.0")?;
    below.func_wrap_async("pread", |store, arguments: (u64, u32, u32, u32)| {
        let (offset, length, buf, at) = arguments;
        let shown = format!("offset={offset}, length={length}, buf={buf}, at={at}");
        recorded(store, "next.pread", shown, |store| next::pread(store, arguments))
    })?;
    below.func_wrap_async("pwrite", |store, arguments: (u64, u32, u32, u32, wit::CommandFlags)| {
        let (offset, length, buf, at, set) = arguments;
        let shown = format!("offset={offset}, length={length}, buf={buf}, at={at}, flags={}", flags(set));
        recorded(store, "next.pwrite", shown, |store| next::pwrite(store, arguments))
    })?;
    let mut files = linker.instance("rbdkit:filter/scratch@0.1.0")?;
    files.func_wrap_async("pread", |store, arguments: (wit::Scope, u64, u32, u32, u32)| {
        recorded(store, "scratch.pread", scratch_part(arguments), |store| scratch::pread(store, arguments))
    })?;
    files.func_wrap_async("pwrite", |store, arguments: (wit::Scope, u64, u32, u32, u32)| {
        recorded(store, "scratch.pwrite", scratch_part(arguments), |store| scratch::pwrite(store, arguments))
    })?;
    let mut kept = linker.instance("rbdkit:filter/storage@0.1.0")?;
    kept.func_wrap_async("pread", |store, part: storage::StoragePart| {
        recorded(store, "storage.pread", storage_part(&part), |store| storage::pread(store, part))
    })?;
    kept.func_wrap_async("pwrite", |store, part: storage::StoragePart| {
        recorded(store, "storage.pwrite", storage_part(&part), |store| storage::pwrite(store, part))
    })?;
    let mut beside = linker.instance("rbdkit:filter/disks@0.1.0")?;
    beside.func_wrap_async("pread", |store, part: disks::DiskPart| {
        recorded(store, "disks.pread", storage_part(&part), |store| disks::pread(store, part))
    })?;
    let mut ranges = linker.instance("rbdkit:filter/locks@0.1.0")?;
    ranges.func_wrap_async("lock", |store, arguments: (wit::Scope, u64, u64, host::locks::Mode)| {
        let (scope, offset, length, mode) = arguments;
        let shown = format!("scope={}, offset={offset}, length={length}, mode={}", scope.shown(), mode.shown());
        recorded(store, "locks.lock", shown, |store| locks::lock(store, arguments))
    })?;
    linker.instance("rbdkit:filter/buffer@0.1.0")?.func_wrap("write", write)
}

fn scratch_part((scope, offset, length, buf, at): (wit::Scope, u64, u32, u32, u32)) -> String {
    format!("scope={}, offset={offset}, length={length}, buf={buf}, at={at}", scope.shown())
}

fn storage_part((param, nth, offset, length, buf, at): &storage::StoragePart) -> String {
    format!("param={param:?}, nth={nth}, offset={offset}, length={length}, buf={buf}, at={at}")
}

fn write(mut store: StoreContextMut<'_, Context>, (buf, at, data): (u32, u32, WasmList<u8>)) -> Result<()> {
    let shown = format!("buf={buf}, at={at}, data={}", payload(data.as_le_slice(&store)));
    let began = Instant::now();
    let recorder = store.data_mut().recorder.clone();
    let written = buffer::write(store, (buf, at, data));
    if let Some(recorder) = recorder {
        recorder.host_call("buffer.write", &shown, &answer(&written), began);
    }
    written
}

/// Runs an import that is bound by hand, and records it.
fn recorded<'a>(
    store: StoreContextMut<'a, Context>,
    name: &'static str,
    arguments: String,
    import: impl FnOnce(StoreContextMut<'a, Context>) -> ImportFuture<'a>,
) -> ImportFuture<'a> {
    let recorder = store.data().recorder.as_ref().map(Arc::clone);
    let began = Instant::now();
    let future = import(store);
    Box::new(async move {
        let result = Box::into_pin(future).await;
        if let Some(recorder) = recorder {
            let shown = match &result {
                Ok((Ok(()),)) => "ok".to_string(),
                Ok((Err(errno),)) => Errno::from(*errno).name().to_string(),
                Err(error) => error.shown(),
            };
            recorder.host_call(name, &arguments, &shown, began);
        }
        result
    })
}
