//! `wasi:clocks`: the same clocks as those of `rbdkit:filter/clock`.

use wasmtime::Result;
use wasmtime::component::{ComponentType, Lower};

use super::define::{Functions, Store};
use super::io::Pollable;
use crate::guest::wasi_handles::WasiHandle;

#[derive(ComponentType, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

pub(super) fn wall(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("now", |mut store: Store<'_>, ()| {
        let since = store.data_mut().inputs.realtime();
        Ok((Datetime { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() },))
    })?;
    functions.func_wrap("resolution", |_: Store<'_>, ()| Ok((Datetime { seconds: 0, nanoseconds: 1 },)))
}

pub(super) fn monotonic(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("now", |mut store: Store<'_>, ()| Ok((store.data_mut().now(),)))?;
    functions.func_wrap("resolution", |_: Store<'_>, ()| Ok((1u64,)))?;
    functions.func_wrap("subscribe-instant", |mut store: Store<'_>, (when,): (u64,)| {
        Ok((store.data_mut().handles.add::<Pollable>(WasiHandle::Until(when))?,))
    })?;
    functions.func_wrap("subscribe-duration", |mut store: Store<'_>, (duration,): (u64,)| {
        let context = store.data_mut();
        // A time that overflows is 584 years after the start.
        let when = context.now().saturating_add(duration);
        Ok((context.handles.add::<Pollable>(WasiHandle::Until(when))?,))
    })
}
