//! `wasi:io`: the standard streams, and waiting.
//!
//! **Waiting** is that of `server.sleep` of the contract: as long as the client is there, in open and in requests, on no account of the guest's but
//! counted. Where that may not wait, what is waited for is ready at once: a runtime that yields while it starts goes on, one that waits on
//! computes, and pays for that.

use std::future::Future;

use wasmtime::Result;
use wasmtime::component::{ComponentType, Lower, Resource};

use super::{Functions, Store, mistake, resource, unreachable};
use crate::guest::console::Stream;
use crate::guest::context::Context;
use crate::guest::handles::Handle;

pub(super) struct Pollable;
pub(super) struct InputStream;
pub(super) struct OutputStream;
struct IoError;

#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    /// Nothing fails.
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "the type has it")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

type Answer<T> = Result<(std::result::Result<T, StreamError>,)>;
type Promise<'a, T> = Box<dyn Future<Output = Result<T>> + Send + 'a>;

/// Ready for as long as it is there.
const ALWAYS: Handle = Handle::Until(0);

/// The most that is written at once, which WASI lets a stream say. It is also what a call into the host can make it log before anything can end it.
const WRITE: u64 = 4096;

pub(super) fn error(functions: &mut Functions<'_>) -> Result<()> {
    resource::<IoError>(functions, "error")?;
    unreachable(functions, &["[method]error.to-debug-string"])
}

impl Context {
    /// When it is ready.
    fn until(&self, pollable: &Resource<Pollable>) -> Result<u64> {
        match self.handles.get(pollable)? {
            Handle::Until(when) => Ok(when),
            // Not reached: the engine knows which handle is of which type.
            _ => Err(mistake("it waits for what is no pollable")),
        }
    }

    /// Waits until one of these times has come. Those whose time has, by their places.
    async fn wait_until(&mut self, until: &[u64]) -> Vec<u32> {
        let earliest = until.iter().copied().min().unwrap_or(0);
        let now = self.now();
        if let Some(left) = earliest.checked_sub(now).filter(|left| *left > 0) {
            // Cut short or not allowed: its time has come all the same.
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

fn block(mut store: Store<'_>, (pollable,): (Resource<Pollable>,)) -> Promise<'_, ()> {
    Box::new(async move {
        let context = store.data_mut();
        let until = context.until(&pollable)?;
        context.wait_until(&[until]).await;
        Ok(())
    })
}

fn poll_all(mut store: Store<'_>, (pollables,): (Vec<Resource<Pollable>>,)) -> Promise<'_, (Vec<u32>,)> {
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
        Ok((store.data_mut().handles.add::<Pollable>(ALWAYS)?,))
    })?;

    resource::<OutputStream>(functions, "output-stream")?;
    functions
        .func_wrap("[method]output-stream.check-write", |_: Store<'_>, (_,): (Resource<OutputStream>,)| done(WRITE))?;
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
    // A line is said when it ends.
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        functions.func_wrap(name, |_: Store<'_>, (_,): (Resource<OutputStream>,)| done(()))?;
    }
    functions.func_wrap(
        "[method]output-stream.subscribe",
        |mut store: Store<'_>, (_,): (Resource<OutputStream>,)| {
            Ok((store.data_mut().handles.add::<Pollable>(ALWAYS)?,))
        },
    )?;
    // The only source is standard input.
    for name in ["[method]output-stream.splice", "[method]output-stream.blocking-splice"] {
        functions
            .func_wrap(name, |_: Store<'_>, (_, _, _): (Resource<OutputStream>, Resource<InputStream>, u64)| {
                closed::<u64>()
            })?;
    }
    Ok(())
}

fn done<T>(value: T) -> Answer<T> {
    Ok((Ok(value),))
}

fn closed<T>() -> Answer<T> {
    Ok((Err(StreamError::Closed),))
}

/// Writes what `bytes` makes once the length is known to be one that may be.
fn write(
    mut store: Store<'_>,
    stream: &Resource<OutputStream>,
    length: u64,
    bytes: impl FnOnce(usize) -> Vec<u8>,
) -> Answer<()> {
    if length > WRITE {
        return Err(mistake(format!("it wrote {length} bytes to a stream at once (at most {WRITE})")));
    }
    let context = store.data_mut();
    let stream: Stream = match context.handles.get(stream)? {
        Handle::Output(stream) => stream,
        // Not reached: the engine knows which handle is of which type.
        _ => return Err(mistake("it writes to what is no output")),
    };
    context.call.console.write(stream, &bytes(length as usize), &context.shared.log);
    done(())
}
