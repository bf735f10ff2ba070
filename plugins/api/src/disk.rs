//! Which disk a handle serves. Filters keep overlays and caches for each disk, and a client may
//! call one disk by many names.

use std::fmt::Write as _;
use std::sync::Arc;

/// A disk of a layer. Two handles with equal ids serve the same bytes, whatever names their clients
/// used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DiskId(Option<Arc<str>>);

impl DiskId {
    /// The only disk, or the one of the default export.
    pub const DEFAULT: DiskId = DiskId(None);

    /// A disk that has a name of its own. The layer has checked that the disk exists.
    pub fn named(name: &str) -> DiskId {
        DiskId(Some(name.into()))
    }

    /// Whether it is the disk of the default export.
    pub fn is_default(&self) -> bool {
        self.0.is_none()
    }

    /// Its name. None for the disk of the default export.
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The disk that a layer makes out of this one under a name of the layer's own.
    #[must_use]
    pub fn part(&self, name: &str) -> DiskId {
        // With the length in front, no two pairs of names give the same text.
        let mut text = format!("{}:{name}", name.len());
        if let Some(whole) = &self.0 {
            let _ = write!(text, "@{whole}");
        }
        DiskId::named(&text)
    }
}

/// How a handle's disk is found ([`Handle::disk`](crate::Handle::disk)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// It is this one, whatever the name is.
    Is(DiskId),
    /// The name decides. Each name that the layer lists is a disk of its own, and no other name can
    /// be opened below a filter that keeps state. So a client cannot make disks by inventing names.
    /// A layer that lists no names has one disk under every name. The id is that of the disk below;
    /// for a plugin [`DiskId::DEFAULT`].
    ByListedName(DiskId),
    /// Each name is a disk of its own, also if it is not listed: another server has accepted it.
    ByName(DiskId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_different_disks_have_different_ids() {
        let disks = [DiskId::DEFAULT, DiskId::named("a"), DiskId::named("1:a"), DiskId::named("1:b@a")];
        let parts = disks.iter().flat_map(|disk| ["", "a", "b", "1:b@a"].map(|name| disk.part(name)));
        let mut all: Vec<DiskId> = parts.collect();
        assert!(all.iter().all(|id| !id.is_default()));
        let count = all.len();
        all.sort_by_key(|id| format!("{id:?}"));
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
