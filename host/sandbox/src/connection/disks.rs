//! Disks that the operator gave to a filter beside next (parameters of the kind `disk`).
//!
//! A disk is a chain of its own. It is opened at its first use, read-only, for a client that stands
//! for all connections of the filter ([`SharedNexts`]). It stays open until the server ends. If it
//! cannot be opened, the next use tries again.

use std::sync::Arc;

use rbdkit_chain::Chain;
use rbdkit_plugin_api::{Client, Errno, Result};

use super::log::Faults;
use super::next::Next;
use super::shared_next::SharedNexts;

/// A disk for [`Module::give_disks`](crate::Module::give_disks).
pub struct GivenDisk {
    /// The parameter's own name.
    pub param: String,
    /// The parameter and its value, as messages show it.
    pub shown: String,
    /// The disk's layers.
    pub chain: Arc<Chain>,
}

/// The disks of one filter, in the order of the command line.
#[derive(Default)]
pub(crate) struct GivenDisks(Vec<Arc<Disk>>);

/// One of them.
pub(crate) struct Disk {
    /// The filter's name, for messages.
    filter: String,
    given: GivenDisk,
    /// The disk, once it is open.
    nexts: SharedNexts,
    /// Opens that failed.
    failures: Faults,
}

/// Clients of the filter do not choose a name: a disk is its default export.
const NAME: &str = "";

impl GivenDisks {
    pub(crate) fn new(filter: &str, given: Vec<GivenDisk>) -> GivenDisks {
        let disk = |given| {
            let filter = filter.to_string();
            Arc::new(Disk { filter, given, nexts: SharedNexts::default(), failures: Faults::default() })
        };
        GivenDisks(given.into_iter().map(disk).collect())
    }

    /// The `nth` value of a parameter.
    pub(crate) fn get(&self, param: &str, nth: u32) -> Option<&Arc<Disk>> {
        self.0.iter().filter(|disk| disk.given.param == param).nth(nth as usize)
    }

    /// Closes all disks, and opens none any more. Until then a stop of the server does to requests
    /// of a disk what it does to those of next: the plugin ends them if they take too long.
    pub(crate) async fn end(&self) {
        for disk in &self.0 {
            disk.nexts.end(&disk.filter).await;
        }
    }
}

impl Disk {
    /// The disk if it is open.
    pub(crate) fn open_now(&self) -> Option<Arc<Next>> {
        self.nexts.find(true, NAME)
    }

    /// The disk. It is opened for `asker` if it is not open.
    ///
    /// # Errors
    /// Those of opening, which the log has as well. ESHUTDOWN if the asker leaves while it waits,
    /// or the server stops.
    pub(crate) async fn open(&self, asker: &Arc<Client>) -> Result<Arc<Next>> {
        if let Some(open) = self.open_now() {
            return Ok(open);
        }
        let shown = &self.given.shown;
        let below = self.given.chain.top(Arc::clone(asker));
        match self.nexts.get(&below, true, NAME, 0).await {
            Ok(next) => {
                tracing::debug!("{}: {shown}: read-only, {} bytes", self.filter, next.hop.size());
                Ok(next)
            }
            Err(error) => {
                // Each client may cause it.
                let text = error.to_string();
                if error.errno() != Errno::Eshutdown
                    && let Some(count) = self.failures.count(&text)
                {
                    let times = if count > 1 { format!(" ({count} times so far)") } else { String::new() };
                    tracing::error!("{}: {shown}: cannot be opened: {text}{times}", self.filter);
                }
                Err(error)
            }
        }
    }
}
