//! The layer that the chain sees.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::{Layer, NextLayer};
use rbdkit_plugin_api::{BoxFuture, ConfigError, ExportEntry, Handle, OpenArgs, Result, ThreadModel};

use super::calls::CallServer;
use super::filter::{FaultReport, Filter};
use super::handle::FilterHandle;
use crate::guest::export_calls::{
    AfterForkCall, CleanupCall, DefaultExportCall, GetReadyCall, ListExportsCall, PreconnectCall,
};

/// How long a stopping server waits for layers that still have to end, and then for an instance
/// that runs `cleanup`.
const END_TIMEOUT: Duration = Duration::from_secs(10);

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

    fn get_ready(&self, below: ThreadModel) -> BoxFuture<'_, Result<(), ConfigError>> {
        let _ = self.0.shared.model_below.set(below);
        Box::pin(self.0.ready(GetReadyCall))
    }

    fn after_fork(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(self.0.ready(AfterForkCall))
    }

    fn preconnect(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !self.0.exported().admission {
                return next.preconnect(readonly).await;
            }
            self.0.ask(Some(next), PreconnectCall { readonly }).await
        })
    }

    fn list_exports(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            if !self.0.exported().names {
                return next.list_exports(readonly).await;
            }
            let call = ListExportsCall { readonly, tls: next.client().tls };
            // The chain checks the names, as it does those of a plugin.
            Ok(self.0.ask(Some(next), call).await?.into_iter().map(Into::into).collect())
        })
    }

    fn default_export(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move {
            if !self.0.exported().names {
                return next.default_export(readonly).await;
            }
            let call = DefaultExportCall { readonly, tls: next.client().tls };
            self.0.ask(Some(next), call).await
        })
    }

    fn open(&self, args: OpenArgs, next: NextLayer) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let filter = Arc::clone(&self.0);
        Box::pin(async move {
            let server = CallServer::open(filter, args, next).await?;
            Ok(Arc::new(FilterHandle(server)) as Arc<dyn Handle>)
        })
    }

    fn free_spare(&self) {
        self.0.pool().free_spare();
    }

    fn cleanup(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if tokio::time::timeout(END_TIMEOUT, self.0.shared.detached_tasks.idle()).await.is_err() {
                tracing::error!("{}: layers below it have not ended in {END_TIMEOUT:?}", self.0.name());
            }
            if self.0.exported().lifecycle {
                match tokio::time::timeout(END_TIMEOUT, self.0.pool().take(None)).await {
                    // A fault is logged where it happens; nothing else is needed here.
                    Ok(Ok(lease)) => drop(self.0.ask_in(lease, None, CleanupCall, FaultReport::Log).await),
                    _ => tracing::error!("{}: no cleanup: its instances are busy after {END_TIMEOUT:?}", self.0.name()),
                }
            }
            self.0.shared.state.shutdown();
            self.0.shared.counters.log(self.0.name(), "at the end");
        })
    }
}
