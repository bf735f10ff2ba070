//! `rbdkit:filter/locks`.

use std::sync::Arc;

use rbdkit_plugin_api::{Errno, Op};
use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};

use super::lend::{ImportFuture, at_once, bound_by_hand, lower};
use super::phases::OPEN_DATA;
use crate::connection::bindings::host::locks::{Host, Mode};
use crate::connection::bindings::host::types::Scope;
use crate::connection::import_error::ImportError;
use crate::connection::waiting::WaitPolicy;
use crate::guest::context::Context;
use crate::state::{HeldLock, LockMode, Locks, OnShutdown};

/// Binds `lock`. A free lock then needs no future; the generated binding would always make one.
pub(super) fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    linker.instance("rbdkit:filter/locks@0.1.0")?.func_wrap_async("lock", lock)
}

#[inline(always)]
pub(super) fn lock(
    mut store: StoreContextMut<'_, Context>,
    (scope, offset, length, mode): (Scope, u64, u64, Mode),
) -> ImportFuture<'_> {
    let context = store.data_mut();
    let policy = context.call.wait_policy();
    let held = match lockable(context, scope) {
        Ok(locks) => locks.lock_now(offset, length, mode.into(), policy.into()),
        Err(error) => return at_once(Err(error)),
    };
    let waiting = match held {
        Op::Ready(held) => return at_once(context.hold(held)),
        waiting => waiting,
    };
    let Some(conn) = context.call.conn.clone() else { return at_once(Err(Errno::Enxio.into())) };
    Box::new(async move {
        let context = store.data_mut();
        let held = context.clock.waiting(|| policy.wait(conn.client(), &conn.shared.stopping, waiting)).await;
        lower(context.hold(held.unwrap_or(Err(Errno::Eshutdown))))
    })
}

/// The locks of a scope, if the call may take a lock.
fn lockable(context: &Context, scope: Scope) -> Result<&Arc<Locks>, ImportError> {
    context.allow(OPEN_DATA)?;
    if context.call.lock.is_some() {
        return Err(Errno::Edeadlk.into());
    }
    Ok(context.scope(scope, "locks.lock")?.locks())
}

impl From<Mode> for LockMode {
    fn from(mode: Mode) -> LockMode {
        match mode {
            Mode::Shared => LockMode::Shared,
            Mode::Exclusive => LockMode::Exclusive,
        }
    }
}

impl From<WaitPolicy> for OnShutdown {
    fn from(policy: WaitPolicy) -> OnShutdown {
        match policy {
            WaitPolicy::UntilDone => OnShutdown::KeepWaiting,
            WaitPolicy::WhileClientIsThere => OnShutdown::GiveUp,
        }
    }
}

impl Context {
    /// A lock was granted to the call, or refused.
    fn hold(&mut self, held: Result<HeldLock, Errno>) -> Result<(), ImportError> {
        self.call.lock = Some(held?);
        Ok(())
    }
}

impl Host for Context {
    async fn lock(&mut self, _: Scope, _: u64, _: u64, _: Mode) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    fn unlock(&mut self) -> Result<()> {
        self.require(OPEN_DATA, "locks.unlock")?;
        self.call.changes.publish();
        self.call.lock = None;
        Ok(())
    }
}
