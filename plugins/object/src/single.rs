//! A disk that is one object, which is only read.
//!
//! Size and tag are those of the time at which the client connected. Every request names the tag,
//! so an object that was replaced since is an error and not a mixture of both.

use std::ops::Range;
use std::sync::Arc;

use object_store::path::Path;
use rbdkit_plugin_api::{Errno, Error, Result};

use crate::store::{Failure, Object, Purpose, Store};

/// The longest part that one request asks for. A longer read becomes several, which run side by
/// side.
pub(crate) const PIECE: u64 = 1 << 20;

/// One object, as it was when a client connected.
pub(crate) struct Single {
    store: Arc<Store>,
    key: Path,
    /// The disk, for messages.
    disk: String,
    object: Object,
}

impl Single {
    pub(crate) async fn open(store: Arc<Store>, key: Path, disk: String) -> Result<Single> {
        let object = store.head(Purpose::Read, &key).await;
        let object = object.map_err(|failure| failure.into_error(&format!("opening {disk}")))?;
        if object.size > i64::MAX as u64 {
            return Err(Error::new(Errno::Eoverflow, format!("object: {disk}: the store says {} bytes", object.size)));
        }
        Ok(Single { store, key, disk, object })
    }

    pub(crate) fn size(&self) -> u64 {
        self.object.size
    }

    /// Reads a range. `take` gets the bytes with their place in it.
    pub(crate) async fn read(&self, range: Range<u64>, take: &(dyn Fn(u64, &[u8]) + Send + Sync)) -> Result<()> {
        let expected = ([self.object.size; 2], Some(&self.object.tag));
        match self.store.read(Purpose::Read, &self.key, range, expected, take).await {
            Ok(_) => Ok(()),
            Err(Failure::Changed | Failure::NoSuchRange) => {
                let text = "it has changed at the store since the client connected".to_owned();
                Err(Failure::Final(Errno::Eio, text).into_error(&self.disk))
            }
            Err(failure) => Err(failure.into_error(&format!("reading {}", self.disk))),
        }
    }
}
