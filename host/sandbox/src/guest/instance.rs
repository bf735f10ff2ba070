//! One instance: a store, and the functions that its component exports.
//!
//! [`Instance::serve`] installs a call, runs the guest on its fiber and takes the call out again.
//! It returns the guest's answer, or a fault, after which the instance must not be used again.
//!
//! Most calls are reads and writes. They do the same in three steps ([`Instance::begin`],
//! [`Instance::run`], [`Instance::finish`]). Only the second one is a future, and none of them
//! allocates.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rbdkit_plugin_api::{Buffer, Errno, Result, Span};
use wasmtime::component::InstancePre;
use wasmtime::{Store, WasmBacktrace};

use super::buffers::Access;
use super::call::{Phase, Setup};
use super::context::Context;
use super::export_calls::{ExportCall, Returned};
use super::exports::{ExportIndices, ExportedFunctions, interface};
use super::fault::{Fault, name_of};
use super::imports::flags;
use crate::connection::bindings::host::types as wit;
use crate::connection::conn::Connection;
use crate::connection::shared::{FilterShared, Reuse};

/// How a call ended: with the guest's answer, which may be an error, or with a fault.
pub(crate) type Outcome<T> = std::result::Result<Result<T>, Box<Fault>>;

/// The two calls with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferKind {
    Read,
    Write,
}

/// A call of `reads.pread` or `writes.pwrite`.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) kind: TransferKind,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) flags: wit::CommandFlags,
}

impl Transfer {
    /// The function's name, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            TransferKind::Read => "pread",
            TransferKind::Write => "pwrite",
        }
    }
}

/// One instance of a filter.
pub(crate) struct Instance {
    store: Store<Context>,
    functions: ExportedFunctions,
    /// With more bytes than this it is not used again if another one can take its place.
    most_bytes: u64,
}

/// What is needed to create instances.
pub(crate) struct Recipe {
    pub(crate) pre: InstancePre<Context>,
    pub(crate) exports: ExportIndices,
    /// Bytes that an instance takes in the host besides its memories and tables.
    pub(crate) footprint: u64,
}

impl Recipe {
    /// A fresh instance, not configured.
    pub(crate) async fn instantiate(&self, shared: &Arc<FilterShared>) -> std::result::Result<Instance, Fault> {
        let mut context = Context::new(Arc::clone(shared));
        context.hears_alarms = self.exports.has_on_alarm();
        context.memory.charge(self.footprint).map_err(|limit| Fault::beyond(limit, shared))?;
        let mut store = Store::new(self.pre.engine(), context);
        store.limiter(|context| &mut context.memory);
        store.set_hostcall_fuel(usize::try_from(shared.limits.transfer).unwrap_or(usize::MAX));
        store.epoch_deadline_callback(|context| {
            if let Some(profile) = &context.data().shared.profile {
                let stack = WasmBacktrace::force_capture(&context);
                profile.add(stack.frames().iter().rev().map(name_of));
            }
            context.data().still_wanted()?;
            Ok(context.data().clock.tick()?)
        });
        if store.data().recorder.is_some() {
            // As good as endless. Only code that counts instructions takes fuel.
            let _ = store.set_fuel(u64::MAX);
        }
        enter(&mut store, Phase::CONFIGURE);
        begin_record(&store, "instantiate", String::new);
        shared.counters.instances.fetch_add(1, Relaxed);
        let made = async {
            let instance = self.pre.instantiate_async(&mut store).await?;
            self.exports.load(&mut store, &instance)
        };
        let functions = match made.await {
            Ok(functions) => functions,
            Err(error) => return Err(Fault::within(&error, &store.data().memory, shared)),
        };
        end_record(&store, || "ok".to_string());
        Ok(Instance { store, functions, most_bytes: u64::MAX })
    }
}

/// Begins the record of a call, if there is one.
#[inline]
fn begin_record(store: &Store<Context>, name: &'static str, arguments: impl FnOnce() -> String) {
    // The rest is a function of its own, because a server never calls it.
    #[cold]
    #[inline(never)]
    fn begin(store: &Store<Context>, name: &'static str, arguments: impl FnOnce() -> String) {
        if let Some(recorder) = &store.data().recorder {
            recorder.begin(name, arguments(), store.get_fuel().ok());
        }
    }
    if store.data().recorder.is_some() {
        begin(store, name, arguments);
    }
}

/// Ends the record of a call, if there is one.
#[inline]
fn end_record(store: &Store<Context>, outcome: impl FnOnce() -> String) {
    #[cold]
    #[inline(never)]
    fn end(store: &Store<Context>, outcome: impl FnOnce() -> String) {
        if let Some(recorder) = &store.data().recorder {
            recorder.end(outcome(), store.get_fuel().ok(), store.data().memory.used());
        }
    }
    if store.data().recorder.is_some() {
        end(store, outcome);
    }
}

/// How a call ended, for the record.
fn in_words<T>(outcome: &Outcome<T>) -> String {
    match outcome {
        Ok(Ok(_)) => "ok".to_string(),
        Ok(Err(error)) => error.errno().name().to_string(),
        Err(fault) => {
            let within = fault.backtrace.as_ref().map(|frames| format!("; in {frames}")).unwrap_or_default();
            format!("fault: {}{within}", fault.cause)
        }
    }
}

/// Starts the clock of a call.
fn enter(store: &mut Store<Context>, phase: Phase) {
    store.data_mut().memory.begin();
    let context = store.data();
    let shared = &context.shared;
    shared.pulse.enter(store.engine());
    let limits = &shared.limits;
    context.clock.begin(if matches!(phase, Phase::DATA | Phase::EVENT) {
        limits.of_a_request()
    } else {
        limits.of_a_setup()
    });
    store.set_epoch_deadline(1);
}

/// Settles a call's changes: publishes them if the guest succeeded, and forgets or undoes them
/// otherwise. If the guest passes on an errno of the layer below, the error keeps that layer's
/// text.
#[inline]
fn settle<T>(context: &mut Context, returned: wasmtime::Result<Returned<T>>) -> Outcome<T> {
    let call = &mut context.call;
    match returned {
        Ok(Ok(answer)) => {
            if !call.changes.is_empty() {
                call.changes.succeed();
            }
            Ok(Ok(answer))
        }
        Ok(Err(errno)) => {
            call.changes.fail();
            let errno = Errno::from(errno);
            Ok(Err(call.words_for(errno).unwrap_or_else(|| errno.into())))
        }
        Err(error) => {
            call.changes.fail();
            Err(Box::new(Fault::within(&error, &context.memory, &context.shared)))
        }
    }
}

impl Instance {
    /// Runs one call, of a connection or of none. If it succeeds, its held-back changes are
    /// published, then its lock is released, and then it answers.
    pub(crate) async fn serve<E: ExportCall>(
        &mut self,
        setup: Setup,
        conn: Option<&Arc<Connection>>,
        call: &E,
    ) -> Outcome<E::Answer> {
        let phase = setup.phase;
        self.store.data_mut().call.begin(setup, conn);
        enter(&mut self.store, phase);
        // A payload of an earlier call may have raised the limit.
        self.limit_lists(0);
        self.store.data().shared.counters.calls.fetch_add(1, Relaxed);
        begin_record(&self.store, E::NAME, || call.arguments());
        let returned = call.run(&self.functions, &mut self.store).await;
        self.store.data().clock.over();
        let context = self.store.data_mut();
        let outcome = settle(context, returned);
        context.call.end();
        end_record(&self.store, || in_words(&outcome));
        outcome
    }

    /// Installs a read or a write and its payload. [`Instance::run`] and [`Instance::finish`] have
    /// to follow.
    pub(crate) fn begin(&mut self, conn: &Arc<Connection>, transfer: &Transfer, buffer: Buffer, span: Span) {
        let access = match transfer.kind {
            TransferKind::Read => Access::Write,
            TransferKind::Write => Access::Read,
        };
        self.store.data_mut().call.begin_transfer(conn, buffer, span, access);
        enter(&mut self.store, Phase::DATA);
        self.limit_lists(span.len);
        self.store.data().shared.counters.calls.fetch_add(1, Relaxed);
        if self.store.data().recorder.is_some() {
            self.record_transfer(transfer);
        }
    }

    /// Limits the bytes of lists that the guest passes in one call. The limit is never below the
    /// size of the payload, because filters often write a whole payload with one `buffer.write`.
    fn limit_lists(&mut self, payload: u32) {
        let bytes = self.store.data().shared.limits.transfer.max(payload.into());
        let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
        if self.store.hostcall_fuel() != limit {
            self.store.set_hostcall_fuel(limit);
        }
    }

    /// Runs the guest on the installed call.
    pub(crate) async fn run(&mut self, transfer: Transfer) -> wasmtime::Result<Returned<()>> {
        let function = interface(match transfer.kind {
            TransferKind::Read => &self.functions.reads,
            TransferKind::Write => &self.functions.writes,
        })?;
        let (answer,) =
            function.call_async(&mut self.store, (transfer.offset, transfer.length, transfer.flags)).await?;
        Ok(answer)
    }

    /// Takes a read or a write out again and settles it. The payload comes back unless a detached
    /// operation of the layer below still has it ([`crate::connection::detached`]).
    pub(crate) fn finish(&mut self, returned: wasmtime::Result<Returned<()>>) -> (Option<Buffer>, Outcome<()>) {
        self.store.data().clock.over();
        let context = self.store.data_mut();
        let outcome = settle(context, returned);
        let buffer = context.call.end_transfer();
        if context.recorder.is_some() {
            self.record_outcome(&outcome);
        }
        (buffer, outcome)
    }

    /// Begins the record of a transfer. This and the next are functions of their own, so that those
    /// above are as short as they were without records.
    #[cold]
    #[inline(never)]
    fn record_transfer(&self, transfer: &Transfer) {
        begin_record(&self.store, transfer.name(), || {
            format!("offset={}, length={}, flags={}", transfer.offset, transfer.length, flags(transfer.flags))
        });
    }

    /// Ends the record of a transfer.
    #[cold]
    #[inline(never)]
    fn record_outcome(&self, outcome: &Outcome<()>) {
        end_record(&self.store, || in_words(outcome));
    }

    /// It was configured. Notes how far its memory may grow: by half of what is left. The runtimes
    /// of some languages never free memory.
    pub(crate) fn set_configured(&mut self) {
        let context = self.store.data();
        let (used, limit) = (context.memory.used(), context.shared.limits.memory);
        self.most_bytes = match context.shared.reuse {
            Reuse::Instances => used + limit.saturating_sub(used) / 2,
            Reuse::Nothing => 0,
        };
    }

    /// Whether another instance should take its place after a call.
    pub(crate) fn is_used_up(&self) -> bool {
        self.store.data().memory.used() > self.most_bytes
    }
}
