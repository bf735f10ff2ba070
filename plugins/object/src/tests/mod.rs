//! Tests of the plugin against a store in memory that fails by seed.

mod model;
mod store;
mod writers;

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;

use crate::blocks::Blocks;
use crate::store::backend::{Backend, Kind, Maker};
use crate::store::{Patience, Store};
use store::{Faults, TestStore};

/// The size of a block.
const BLOCK: u64 = 512;

struct Made(TestStore);

impl Maker for Made {
    fn make(&self, _: Option<String>) -> Result<Backend, String> {
        Ok(Backend::new(Arc::new(self.0.clone()), Kind::S3))
    }
}

/// A disk of `blocks` blocks in a store.
fn disk(store: &TestStore, blocks: u64) -> Arc<Blocks> {
    let patience = Patience { first: Duration::ZERO, all: Duration::from_secs(60) };
    let store = Arc::new(Store::new(Box::new(Made(store.clone())), patience).unwrap());
    Arc::new(Blocks::new(store, "s3://b/disk".into(), Path::from("disk"), blocks * BLOCK, BLOCK))
}

/// What the disk has from `offset` on.
async fn read(disk: &Blocks, offset: u64, length: u64) -> Vec<u8> {
    let bytes = std::sync::Mutex::new(vec![0xee; length as usize]);
    for piece in crate::pieces::pieces(offset, length, BLOCK) {
        let at = piece.at as usize;
        let take = |within: u64, part: &[u8]| {
            bytes.lock().unwrap()[at + within as usize..][..part.len()].copy_from_slice(part);
        };
        let read = disk.read_block(crate::store::Purpose::Read, piece.block, piece.within.clone(), &take).await;
        if read.unwrap().is_none() {
            bytes.lock().unwrap()[at..][..piece.length() as usize].fill(0);
        }
    }
    bytes.into_inner().unwrap()
}
