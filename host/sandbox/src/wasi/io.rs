//! `wasi:io`: the standard streams, and waiting.
//!
//! **Waiting** works like `server.sleep` of the contract: in open and in requests, as long as the
//! client is connected. Waiting does not use up the guest's time, but each wait is counted. In a
//! call that may not wait, every pollable is ready at once. So a runtime that only yields while it
//! starts can continue, and one that waits in a loop uses up its computing time.

use wasmtime::Result;
use wasmtime::component::{ComponentType, Lower, Resource};

use super::define::{Functions, Store, WaitFuture, resource, unreachable};
use crate::guest::console::ConsoleStream;
use crate::guest::context::Context;
use crate::guest::fault::mistake;
use crate::guest::wasi_handles::WasiHandle;

pub(super) struct Pollable;
pub(super) struct InputStream;
pub(super) struct OutputStream;
struct IoError;

#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    /// Never returned, because no operation fails.
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "the engine compares the whole type")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

/// The answer of a function of a stream.
type StreamResult<T> = Result<(std::result::Result<T, StreamError>,)>;

/// A pollable that is always ready.
const ALWAYS_READY: WasiHandle = WasiHandle::Until(0);

/// The most bytes that a guest may write to a stream at once; `check-write` returns it. It limits
/// how much one call into the host can log before the call can be ended.
const MAX_WRITE: u64 = 4096;

pub(super) fn error(functions: &mut Functions<'_>) -> Result<()> {
    resource::<IoError>(functions, "error")?;
    unreachable(functions, &["[method]error.to-debug-string"])
}

impl Context {
    /// The time at which a pollable is ready, in nanoseconds of the monotonic clock.
    fn until(&self, pollable: &Resource<Pollable>) -> Result<u64> {
        match self.handles.get(pollable)? {
            WasiHandle::Until(when) => Ok(when),
            // Not reached: the engine checks the type of each handle.
            _ => Err(mistake("it waits for a handle that is not a pollable")),
        }
    }

    /// Waits until one of these times is reached. Returns the indices of all times that are
    /// reached.
    async fn wait_until(&mut self, until: &[u64]) -> Vec<u32> {
        let earliest = until.iter().copied().min().unwrap_or(0);
        let now = self.now();
        if let Some(left) = earliest.checked_sub(now).filter(|left| *left > 0) {
            // If sleeping is not allowed or ended early, the time counts as reached.
            let _ = self.sleep_for(left).await;
        }
        let now = self.now().max(earliest);
        (0..).zip(until).filter(|(_, when)| **when <= now).map(|(place, _)| place).collect()
    }
}

pub(super) fn poll(functions: &mut Functions<'_>) -> Result<()> {
    resource::<Pollable>(functions, "pollable")?;
    functions.func_wrap("[method]pollable.ready", |mut store: Store<'_>, (pollable,): (Resource<Pollable>,)| {
        let context = store.data_mut();
        Ok((context.until(&pollable)? <= context.now(),))
    })?;
    functions.func_wrap_async("[method]pollable.block", block)?;
    functions.func_wrap_async("poll", poll_all)
}

fn block(mut store: Store<'_>, (pollable,): (Resource<Pollable>,)) -> WaitFuture<'_, ()> {
    Box::new(async move {
        let context = store.data_mut();
        let until = context.until(&pollable)?;
        context.wait_until(&[until]).await;
        Ok(())
    })
}

fn poll_all(mut store: Store<'_>, (pollables,): (Vec<Resource<Pollable>>,)) -> WaitFuture<'_, (Vec<u32>,)> {
    Box::new(async move {
        let context = store.data_mut();
        if pollables.is_empty() {
            return Err(mistake("it waits for nothing (wasi:io/poll)"));
        }
        let until = pollables.iter().map(|pollable| context.until(pollable)).collect::<Result<Vec<u64>>>()?;
        Ok((context.wait_until(&until).await,))
    })
}

pub(super) fn streams(functions: &mut Functions<'_>) -> Result<()> {
    resource::<InputStream>(functions, "input-stream")?;
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        functions.func_wrap(name, |_: Store<'_>, (_, _): (Resource<InputStream>, u64)| closed::<Vec<u8>>())?;
    }
    for name in ["[method]input-stream.skip", "[method]input-stream.blocking-skip"] {
        functions.func_wrap(name, |_: Store<'_>, (_, _): (Resource<InputStream>, u64)| closed::<u64>())?;
    }
    functions.func_wrap("[method]input-stream.subscribe", |mut store: Store<'_>, (_,): (Resource<InputStream>,)| {
        Ok((store.data_mut().handles.add::<Pollable>(ALWAYS_READY)?,))
    })?;

    resource::<OutputStream>(functions, "output-stream")?;
    functions.func_wrap("[method]output-stream.check-write", |_: Store<'_>, (_,): (Resource<OutputStream>,)| {
        done(MAX_WRITE)
    })?;
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        functions.func_wrap(name, |store: Store<'_>, (stream, bytes): (Resource<OutputStream>, Vec<u8>)| {
            write(store, &stream, bytes.len() as u64, |_| bytes)
        })?;
    }
    for name in ["[method]output-stream.write-zeroes", "[method]output-stream.blocking-write-zeroes-and-flush"] {
        functions.func_wrap(name, |store: Store<'_>, (stream, length): (Resource<OutputStream>, u64)| {
            write(store, &stream, length, |length| vec![0; length])
        })?;
    }
    // Nothing to do, because a line is logged when it ends.
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        functions.func_wrap(name, |_: Store<'_>, (_,): (Resource<OutputStream>,)| done(()))?;
    }
    functions.func_wrap(
        "[method]output-stream.subscribe",
        |mut store: Store<'_>, (_,): (Resource<OutputStream>,)| {
            Ok((store.data_mut().handles.add::<Pollable>(ALWAYS_READY)?,))
        },
    )?;
    // The only input stream is standard input, which is closed.
    for name in ["[method]output-stream.splice", "[method]output-stream.blocking-splice"] {
        functions
            .func_wrap(name, |_: Store<'_>, (_, _, _): (Resource<OutputStream>, Resource<InputStream>, u64)| {
                closed::<u64>()
            })?;
    }
    Ok(())
}

fn done<T>(value: T) -> StreamResult<T> {
    Ok((Ok(value),))
}

fn closed<T>() -> StreamResult<T> {
    Ok((Err(StreamError::Closed),))
}

/// Writes the bytes that `bytes` makes, after `length` was checked.
fn write(
    mut store: Store<'_>,
    stream: &Resource<OutputStream>,
    length: u64,
    bytes: impl FnOnce(usize) -> Vec<u8>,
) -> StreamResult<()> {
    if length > MAX_WRITE {
        return Err(mistake(format!("it wrote {length} bytes to a stream at once (at most {MAX_WRITE})")));
    }
    let context = store.data_mut();
    let stream: ConsoleStream = match context.handles.get(stream)? {
        WasiHandle::Output(stream) => stream,
        // Not reached: the engine knows which handle is of which type.
        _ => return Err(mistake("it writes to a handle that is not an output stream")),
    };
    context.call.console.write(stream, &bytes(length as usize), &context.shared.log);
    done(())
}
