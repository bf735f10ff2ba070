//! Names of exports: which lists and names the protocol can carry, and what a connection was told
//! about its default exports.

use std::sync::Arc;

use rbdkit_plugin_api::text::quoted;
use rbdkit_plugin_api::{Errno, Error, ExportEntry, Result};
use tokio::sync::OnceCell;

/// The longest name or description of the protocol, in bytes.
const MAX_STRING: usize = 4096;

/// The most that a list of exports may take in memory, in bytes, as [`list_bytes`] counts: 16 MiB.
/// That is room for 10,000 exports (nbdkit's most) with texts of 1,600 bytes each.
pub const MAX_LIST: usize = 16 << 20;

/// What an entry takes besides its texts: itself, and what the allocator adds to two texts.
const ENTRY: usize = size_of::<ExportEntry>() + 2 * 16;

/// What a list of exports takes in memory, in bytes.
pub fn list_bytes(list: &[ExportEntry]) -> usize {
    let texts = |entry: &ExportEntry| entry.name.len() + entry.description.as_ref().map_or(0, String::len);
    list.iter().map(|entry| ENTRY + texts(entry)).sum()
}

/// Checks a layer's list of exports. A name with a zero byte, which no client can send, is left
/// out; the log says so.
///
/// # Errors
/// EIO, with the export that cannot be listed.
pub(super) fn checked(layer: &str, mut list: Vec<ExportEntry>) -> Result<Vec<ExportEntry>> {
    list.retain(|entry| {
        let possible = !entry.name.contains('\0');
        if !possible {
            tracing::warn!("{layer}: the export {} is not listed: its name has a zero byte", shown(&entry.name));
        }
        possible
    });
    for ExportEntry { name, description } in &list {
        check_length(layer, "the name of an export", name, name)?;
        if let Some(text) = description {
            check_length(layer, "the description of an export", text, name)?;
        }
    }
    let bytes = list_bytes(&list);
    if bytes > MAX_LIST {
        let what = format!("{} exports take {bytes} bytes of memory, which is more than {MAX_LIST}", list.len());
        return Err(refused(layer, &what));
    }
    list.shrink_to_fit();
    Ok(list)
}

/// Checks that the protocol can carry the name of the default export.
///
/// # Errors
/// EIO, with the name.
pub(super) fn check_default(layer: &str, name: &str) -> Result<()> {
    check_length(layer, "the name of the default export", name, name)?;
    match name.contains('\0') {
        true => Err(refused(layer, &format!("the name of the default export has a zero byte: {}", shown(name)))),
        false => Ok(()),
    }
}

fn check_length(layer: &str, what: &str, text: &str, export: &str) -> Result<()> {
    match text.len() {
        0..=MAX_STRING => Ok(()),
        length => {
            let name = shown(export);
            Err(refused(layer, &format!("{what} has {length} bytes, which is more than {MAX_STRING}: {name}")))
        }
    }
}

fn refused(layer: &str, what: &str) -> Error {
    Error::new(Errno::Eio, format!("{layer}: {what}"))
}

/// A name in a message, cut to its beginning.
fn shown(name: &str) -> String {
    match name.floor_char_boundary(60) {
        end if end < name.len() => format!("{}...", quoted(&name[..end])),
        _ => quoted(name),
    }
}

/// What one connection was told about the default export of each layer. The layers share it, so
/// that the name that a client is told is the name that is opened.
#[derive(Clone)]
pub(super) struct DefaultNames(Arc<[OnceCell<String>]>);

impl DefaultNames {
    /// For this many layers. Nothing is known yet.
    pub fn new(layers: usize) -> DefaultNames {
        DefaultNames((0..layers).map(|_| OnceCell::new()).collect())
    }

    /// The name of a layer, which is asked for it if it did not tell it yet.
    pub async fn get(&self, layer: usize, ask: impl Future<Output = Result<String>>) -> Result<String> {
        match self.0.get(layer) {
            Some(name) => name.get_or_try_init(|| ask).await.cloned(),
            None => ask.await,
        }
    }
}
