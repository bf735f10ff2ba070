//! `rbdkit:filter/server`.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rbdkit_plugin_api::{Errno, ThreadModel};
use wasmtime::Result;

use super::phases::{NOT_CONFIGURE, OPEN_DATA};
use crate::connection::bindings::host::server::Host;
use crate::connection::bindings::host::types as wit;
use crate::connection::import_error::ImportError;
use crate::connection::powers::Power;
use crate::connection::waiting::WaitPolicy;
use crate::guest::call::CallKind;
use crate::guest::context::Context;

impl Context {
    /// Suspends the guest for `ns` nanoseconds.
    ///
    /// # Errors
    /// ENXIO in a phase in which a guest may not sleep. ESHUTDOWN as soon as the client has gone or
    /// the server stops. Finalize and close, which go on without a client, also get ESHUTDOWN when
    /// all their sleeps together have taken the limit `setup`.
    ///
    /// An operation that a layer above began in finalize or close may write back data that would
    /// be lost. When the server stops, its sleep ends at once without an error.
    pub(crate) async fn sleep_for(&mut self, ns: u64) -> Result<(), ImportError> {
        self.allow(OPEN_DATA)?;
        let conn = self.call.conn.clone().ok_or(Errno::Enxio)?;
        let policy = self.call.wait_policy();
        let asked = Duration::from_nanos(ns);
        let mut time = asked;
        if self.call.kind == CallKind::Ending {
            time = asked.min(self.shared.limits.setup.saturating_sub(self.call.slept));
            self.call.slept += time;
        }
        let over = async move {
            match tokio::time::Instant::now().checked_add(time) {
                Some(end) => tokio::time::sleep_until(end).await,
                // The end of the sleep is beyond the clock's range.
                None => std::future::pending().await,
            }
        };
        let shared = Arc::clone(&self.shared);
        let goes_on = policy == WaitPolicy::UntilDone && self.call.kind != CallKind::Ending;
        // The server's stop ends the sleep of finalize and close as well.
        let wait = async {
            tokio::select! {
                biased;
                () = shared.stopping.wait() => goes_on.then_some(()),
                slept = policy.wait(conn.client(), &shared.stopping, over) => slept,
            }
        };
        self.clock.waiting(|| wait).await.ok_or(Errno::Eshutdown)?;
        if time < asked { Err(Errno::Eshutdown.into()) } else { Ok(()) }
    }
}

impl Host for Context {
    async fn sleep(&mut self, ns: u64) -> Result<(), ImportError> {
        self.sleep_for(ns).await
    }

    fn thread_model_below(&mut self) -> Result<wit::ThreadModel> {
        self.require(NOT_CONFIGURE, "server.thread-model-below")?;
        // Before get-ready the model is not known. This is the strictest one.
        let model = self.shared.model_below.get().copied();
        Ok(model.unwrap_or(ThreadModel::SerializeConnections).into())
    }

    fn connections(&mut self) -> Result<u32> {
        self.require(NOT_CONFIGURE, "server.connections")?;
        Ok(self.shared.connections.load(Relaxed))
    }

    fn shutdown(&mut self) -> Result<(), ImportError> {
        self.allow(NOT_CONFIGURE)?;
        self.may(Power::Shutdown)?;
        if let Some(shutdown) = &self.shared.shutdown {
            shutdown.notify_one();
        }
        Ok(())
    }
}
