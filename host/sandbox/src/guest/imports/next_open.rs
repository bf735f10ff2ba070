//! `rbdkit:filter/next-open`.

use std::sync::Arc;

use rbdkit_chain::NextLayer;
use rbdkit_plugin_api::{Errno, Op};
use wasmtime::Result;

use crate::connection::attended::attended;
use crate::connection::bindings::host::next_open::Host;
use crate::connection::bindings::host::types::ExportEntry;
use crate::connection::conn::Connection;
use crate::connection::import_error::ImportError;
use crate::guest::call::{CallKind, Phase};
use crate::guest::context::Context;
use crate::guest::text::protocol_string;

/// The answer of the layers below.
type BelowAnswer<T> = rbdkit_plugin_api::Result<T>;

/// Checks that a text can be the name of an export.
fn check_name(text: &str) -> Result<(), Errno> {
    protocol_string(text).map(|_| ()).map_err(|_| Errno::Einval)
}

impl Context {
    /// The connection that the call serves.
    fn own_connection(&self) -> Result<Arc<Connection>, Errno> {
        self.call.conn.clone().ok_or(Errno::Enxio)
    }

    /// The layers below. They are known even before a connection has opened an export.
    fn below(&self) -> Result<NextLayer, Errno> {
        let of_conn = || self.call.conn.as_ref().map(|conn| conn.below.clone());
        self.call.below.clone().or_else(of_conn).ok_or(Errno::Enxio)
    }

    /// Waits for an answer of the layers below. ESHUTDOWN if the client leaves first.
    async fn ask_below<T: Send + 'static>(
        &mut self,
        below: &NextLayer,
        question: impl Future<Output = BelowAnswer<T>> + Send + 'static,
    ) -> BelowAnswer<T> {
        let shared = Arc::clone(&self.shared);
        let policy = self.call.wait_policy();
        let wait = attended(&shared, below.client(), policy, Box::pin(question), |_| async {});
        self.clock.waiting(|| wait).await.unwrap_or_else(|| Err(Errno::Eshutdown.into()))
    }

    /// Opens next in the way that `open` does.
    async fn open_by<F>(
        &mut self,
        exportname: String,
        open: impl FnOnce(Arc<Connection>, String) -> F,
    ) -> Result<(), ImportError>
    where
        F: Future<Output = BelowAnswer<()>> + Send + 'static,
    {
        self.allow(Phase::OPEN)?;
        if self.call.kind == CallKind::Replay {
            return Ok(());
        }
        let conn = self.own_connection()?;
        // Other calls of this phase come after `open` (prepare, finalize, close). There it is too
        // late to open next.
        if conn.is_live() || self.call.kind == CallKind::Ending {
            return Err(Errno::Enxio.into());
        }
        check_name(&exportname)?;
        let open = open(Arc::clone(&conn), exportname);
        let (late, shared) = (Arc::clone(&conn), Arc::clone(&self.shared));
        let close = move |_| async move { late.close_next().await };
        let policy = self.call.wait_policy();
        let wait = attended(&shared, conn.client(), policy, Box::pin(open), close);
        let result = self.clock.waiting(|| wait).await.unwrap_or_else(|| Err(Errno::Eshutdown.into()));
        self.call.next = conn.replaceable_next();
        Ok(self.answer(result)?)
    }
}

impl Host for Context {
    async fn open(&mut self, readonly: bool, exportname: String) -> Result<(), ImportError> {
        self.open_by(exportname, move |conn, name| async move { conn.open_next(readonly, &name).await }).await
    }

    async fn open_shared(&mut self, readonly: bool, exportname: String) -> Result<(), ImportError> {
        self.open_by(exportname, move |conn, name| async move { conn.open_next_shared(readonly, &name).await }).await
    }

    fn generation(&mut self) -> Result<u64> {
        Ok(self.conn("next-open.generation")?.generation())
    }

    async fn reopen(&mut self, generation: u64, readonly: bool, exportname: String) -> Result<u64, ImportError> {
        self.allow(Phase::DATA)?;
        let conn = self.own_connection()?;
        check_name(&exportname)?;
        let reopening = Arc::clone(&conn);
        let reopen = async move { reopening.reopen(generation, readonly, &exportname).await };
        let result = self.wait_for(0, || Op::later(reopen)).await?;
        // This call continues with the layer that it has just opened, because retry repeats the
        // request there.
        self.call.next = conn.replaceable_next();
        Ok(self.answer(result)?)
    }

    async fn preconnect(&mut self, readonly: bool) -> Result<(), ImportError> {
        self.allow(Phase::BEFORE)?;
        let below = self.call.below.clone().ok_or(Errno::Enxio)?;
        let result = self.ask_below(&below.clone(), async move { below.preconnect(readonly).await }).await;
        Ok(self.answer(result)?)
    }

    async fn list_exports(&mut self, readonly: bool) -> Result<Vec<ExportEntry>, ImportError> {
        self.allow(Phase::BEFORE.or(Phase::OPEN))?;
        let below = self.below()?;
        let result = self.ask_below(&below.clone(), async move { below.list_exports(readonly).await }).await;
        Ok(self.answer(result)?.into_iter().map(Into::into).collect())
    }

    async fn default_export(&mut self, readonly: bool) -> Result<String, ImportError> {
        self.allow(Phase::BEFORE.or(Phase::OPEN))?;
        let below = self.below()?;
        let result = self.ask_below(&below.clone(), async move { below.default_export(readonly).await }).await;
        Ok(self.answer(result)?)
    }
}
