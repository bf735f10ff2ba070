//! Which disk a hop serves: the layer's own answer, or the name that it was opened with.
//!
//! A client may invent names, and most plugins serve one disk under any name. Filters above keep
//! overlays and caches for each disk, so they must not go by the name.

use rbdkit_plugin_api::text::quoted;
use rbdkit_plugin_api::{BoxFuture, Disk, DiskId, Errno, Error, ExportEntry, Handle, Result};
use tokio::sync::OnceCell;

/// The exports of a layer, by their names.
pub(super) trait LayerExports: Send + Sync {
    /// The export that the empty name means.
    fn default_name(&self, readonly: bool) -> BoxFuture<'_, Result<String>>;

    /// The exports that a client may list.
    fn list(&self, readonly: bool) -> BoxFuture<'_, Result<Vec<ExportEntry>>>;
}

/// The canonical name under which a layer is opened.
pub(super) struct ExportName {
    text: String,
    /// The layer above asked for the default export.
    was_empty: bool,
}

impl ExportName {
    /// The empty name is replaced by the default export's.
    pub(super) async fn asked(layer: &impl LayerExports, readonly: bool, name: &str) -> Result<ExportName> {
        let was_empty = name.is_empty();
        let text = if was_empty { layer.default_name(readonly).await? } else { name.to_string() };
        Ok(ExportName { text, was_empty })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// Finds out which disk a hop serves, at most once.
pub(super) struct DiskLookup {
    layer: Box<dyn LayerExports>,
    readonly: bool,
    name: ExportName,
    found: OnceCell<DiskId>,
}

impl DiskLookup {
    /// For a hop to `layer` that is opened under `name`.
    pub(super) fn new(layer: impl LayerExports + 'static, readonly: bool, name: ExportName) -> DiskLookup {
        DiskLookup { layer: Box::new(layer), readonly, name, found: OnceCell::new() }
    }

    pub(super) fn is_readonly(&self) -> bool {
        self.readonly
    }

    /// The disk of this handle.
    pub(super) async fn find(&self, handle: &dyn Handle) -> Result<DiskId> {
        let found = self.found.get_or_try_init(|| async {
            let (whole, has_its_own) = match handle.disk().await? {
                Disk::Is(id) => (id, false),
                Disk::ByName(whole) => (whole, !self.is_default().await?),
                Disk::ByListedName(whole) => (whole, !self.is_default().await? && self.is_listed().await?),
            };
            Ok(if has_its_own { whole.part(&self.name.text) } else { whole })
        });
        found.await.cloned()
    }

    async fn is_default(&self) -> Result<bool> {
        let name = &self.name;
        Ok(name.was_empty || name.text.is_empty() || self.layer.default_name(self.readonly).await? == name.text)
    }

    /// Whether the name is on the list. A layer that lists no names has one disk.
    ///
    /// # Errors
    /// ENOENT for a name that a list of names does not have. The layer may serve another disk under
    /// it than under the listed ones, and state that is kept for each disk would mix them.
    async fn is_listed(&self) -> Result<bool> {
        let list = self.layer.list(self.readonly).await?;
        let name = &self.name.text;
        if list.iter().any(|entry| entry.name == *name) {
            return Ok(true);
        }
        match list.iter().all(|entry| entry.name.is_empty()) {
            true => Ok(false),
            false => Err(Error::new(
                Errno::Enoent,
                format!("export {} is not listed, and a filter that keeps state needs that", quoted(name)),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
