//! [`Charge`]: what memory takes of a filter's `buffers-total` for as long as it is used.

use std::sync::Arc;

use crate::state::Quota;

/// The charge for memory of a call, or of an operation that has outlived its call. It counts
/// towards the filter's `buffers-total`.
pub(crate) struct Charge {
    quota: Arc<Quota>,
    bytes: u64,
}

/// Up to this many bytes a request is small.
const SMALL: u64 = 64 << 10;

/// Takes bytes of `buffers-total`. The last sixteenth of it is for small requests, so that a
/// client's large requests do not make the small ones of others fail.
pub(crate) fn take(quota: &Quota, bytes: u64) -> bool {
    let limit = quota.limit();
    quota.take_below(bytes, if bytes > SMALL { limit - limit / 16 } else { limit })
}

impl Charge {
    /// Takes over bytes that are charged already.
    pub(crate) fn taken_over(quota: &Arc<Quota>, bytes: u64) -> Charge {
        Charge { quota: Arc::clone(quota), bytes }
    }

    /// Charges bytes. None: that would exceed the limit.
    pub(crate) fn new(quota: &Arc<Quota>, bytes: u64) -> Option<Charge> {
        take(quota, bytes).then(|| Charge::taken_over(quota, bytes))
    }

    /// Charges more bytes. Returns false, and charges nothing, if that would exceed the limit.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let taken = take(&self.quota, bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Gives bytes back that are not needed.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.bytes);
        self.bytes -= bytes;
        self.quota.give(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.quota.give(self.bytes);
    }
}
