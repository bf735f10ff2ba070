//! What an entry has of a client and of a list of exports.

use std::borrow::Cow;

use rbdkit_plugin_api::{Client, ExportEntry};

use crate::entry::{ClientFacts, ListedExport};

/// What a filter can learn of a client.
pub(crate) fn facts(client: &Client) -> ClientFacts<'_> {
    ClientFacts {
        peer: client.peer.clone(),
        credentials: client.credentials,
        security_context: client.security_context.as_deref().map(Cow::Borrowed),
        tls: client.is_tls(),
    }
}

/// An export of a list.
pub(crate) fn listed(entry: &ExportEntry) -> ListedExport<'_> {
    ListedExport { name: Cow::Borrowed(&entry.name), description: entry.description.as_deref().map(Cow::Borrowed) }
}

/// The bytes of a list in an entry: its texts, and 5 bytes for each export. The chain allows
/// 16 MiB.
pub(crate) fn list_size(list: &[ExportEntry]) -> u32 {
    let each = |entry: &ExportEntry| 5 + entry.name.len() + entry.description.as_ref().map_or(0, String::len);
    list.iter().map(each).sum::<usize>() as u32
}
