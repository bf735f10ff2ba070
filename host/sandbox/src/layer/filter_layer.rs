//! The layer that the chain sees.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::{Below, Layer};
use rbdkit_plugin_api::{BoxFuture, ConfigError, Errno, ExportEntry, Handle, OpenArgs, Result, ThreadModel};

use super::calls::CallServer;
use super::filter::Filter;
use super::handle::FilterHandle;
use crate::guest::call::Phase;
use crate::guest::instance::{Ask, Reply};
use crate::guest::text::{checked_exports, protocol_string};

/// How long a stopping server waits for layers that end on their own, and then for an instance to
/// clean up with.
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
        Box::pin(self.0.ready(Ask::GetReady))
    }

    fn after_fork(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(self.0.ready(Ask::AfterFork))
    }

    fn preconnect(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !self.0.exported().admission {
                return next.preconnect(readonly).await;
            }
            self.0.ask(Phase::BEFORE, Some(next), Ask::Preconnect { readonly }).await?.done()
        })
    }

    fn list_exports(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            if !self.0.exported().names {
                return next.list_exports(readonly).await;
            }
            let ask = Ask::ListExports { readonly, tls: next.client().tls };
            match self.0.ask(Phase::BEFORE, Some(next), ask).await? {
                Reply::Exports(list) => checked_exports(list?),
                _ => Err(Errno::Eio.into()),
            }
        })
    }

    fn default_export(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move {
            if !self.0.exported().names {
                return next.default_export(readonly).await;
            }
            let ask = Ask::DefaultExport { readonly, tls: next.client().tls };
            match self.0.ask(Phase::BEFORE, Some(next), ask).await? {
                Reply::Name(name) => Ok(protocol_string(&name?)?.to_string()),
                _ => Err(Errno::Eio.into()),
            }
        })
    }

    fn open(&self, args: OpenArgs, next: Below) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
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
                    // A fault is logged where it happens, and nothing else can be done about it.
                    Ok(Ok(lease)) => drop(self.0.ask_in(lease, Phase::READY, None, Ask::Cleanup).await),
                    _ => tracing::error!("{}: no cleanup: its instances are busy after {END_TIMEOUT:?}", self.0.name()),
                }
            }
            self.0.shared.state.shutdown();
            self.0.shared.counters.log(self.0.name(), "at the end");
        })
    }
}
