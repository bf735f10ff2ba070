//! The layer that the chain sees.

use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_chain::{Layer, NextLayer};
use rbdkit_plugin_api::{
    BoxFuture, ConfigError, Errno, Error, ExportEntry, Handle, OpenArgs, Result, ThreadModel, Usage,
};
use tokio::time::{Instant, timeout_at};

use super::calls::CallServer;
use super::filter::{FaultReport, Filter};
use super::gated::GatedHandle;
use super::handle::FilterHandle;
use crate::guest::export_calls::{
    AfterForkCall, CleanupCall, DefaultExportCall, GetReadyCall, ListExportsCall, PreconnectCall,
};

/// [`Filter`] behind the `Arc` that its connections share.
pub(crate) struct FilterLayer(pub(crate) Arc<Filter>);

impl Layer for FilterLayer {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn thread_model(&self) -> ThreadModel {
        self.0.model()
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.0.shared.files.opened_anew()
    }

    fn removes(&self) -> Vec<PathBuf> {
        self.0.shared.files.controls().map(|(.., socket)| socket.directory().to_path_buf()).collect()
    }

    fn get_ready(&self, below: ThreadModel) -> BoxFuture<'_, Result<(), ConfigError>> {
        let _ = self.0.shared.model_below.set(below);
        Box::pin(self.0.ready(GetReadyCall))
    }

    fn after_fork(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(async {
            // As the server's user, and while the process may still start programs.
            self.0.shared.scripts.move_out().map_err(|error| {
                ConfigError::new(format!("{}: cannot start the helper process for scripts: {error}", self.0.name()))
            })?;
            self.0.ready(AfterForkCall).await?;
            self.0.start_events();
            Ok(())
        })
    }

    fn preconnect(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !self.0.exported().admission {
                return next.preconnect(readonly).await;
            }
            self.0.ask(next, PreconnectCall { readonly }).await
        })
    }

    fn list_exports(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            if !self.0.exported().names {
                return next.list_exports(readonly).await;
            }
            let call = ListExportsCall { readonly, tls: next.client().is_tls() };
            // The chain checks the names, as it does those of a plugin.
            Ok(self.0.ask(next, call).await?.into_iter().map(Into::into).collect())
        })
    }

    fn default_export(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move {
            if !self.0.exported().names {
                return next.default_export(readonly).await;
            }
            let call = DefaultExportCall { readonly, tls: next.client().is_tls() };
            self.0.ask(next, call).await
        })
    }

    fn open(&self, args: OpenArgs, next: NextLayer) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let filter = Arc::clone(&self.0);
        Box::pin(async move {
            let server = CallServer::open(filter, args, next).await?;
            let has_gate = server.connection().has_gate;
            let handle = Arc::new(FilterHandle(server));
            Ok(if has_gate { Arc::new(GatedHandle(handle)) } else { handle as Arc<dyn Handle> })
        })
    }

    fn usage(&self) -> Vec<Usage> {
        let shared = &self.0.shared;
        shared
            .state
            .usage()
            .into_iter()
            .chain([shared.buffers.usage("buffers-total"), shared.key_memory.usage("key-memory")])
            .collect()
    }

    fn shared_usage(&self) -> Vec<Usage> {
        vec![self.0.shared.memory_all.usage("memory-all")]
    }

    fn free_spare(&self) {
        self.0.free_spare();
    }

    fn stop(&self) {
        self.0.shared.stopping.set();
        self.0.shared.state.shutdown();
        self.0.siblings.nexts.stop();
    }

    fn cleanup(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // A start that failed cleans up without a stop.
            self.0.shared.stopping.set();
            self.0.shared.files.controls().for_each(|(.., socket)| socket.remove());
            // Layers below that hang must leave time for the cleanup.
            let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
            if timeout_at(half, self.0.shared.detached_tasks.idle()).await.is_err() {
                tracing::error!("{}: layers below it have not ended in time", self.0.name());
            }
            if timeout_at(deadline, self.0.siblings.nexts.end(self.0.name())).await.is_err() {
                tracing::error!("{}: the layer below that its connections share does not close in time", self.0.name());
            }
            if timeout_at(deadline, self.0.siblings.disks.end()).await.is_err() {
                tracing::error!("{}: the disks of its parameters do not close in time", self.0.name());
            }
            if self.0.exported().lifecycle {
                let cleanup = async {
                    let (pool, _) = self.0.current()?;
                    let lease = timeout_at(deadline, pool.take(None)).await.map_err(|_| Errno::Etimedout)??;
                    // A fault is logged where it happens; nothing else is needed here.
                    let _ = self.0.ask_in(&pool, lease, None, CleanupCall, FaultReport::Log).await;
                    Ok::<(), Error>(())
                };
                if cleanup.await.is_err() {
                    tracing::error!("{}: no cleanup: its instances are busy", self.0.name());
                }
            }
            self.0.shared.counters.log(self.0.name(), "at the end");
        })
    }
}
