//! Compressed clusters.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Source, TableCache};

use super::header::Compression;
use super::layout::{Layout, Packed};
use crate::codec::{self, Deflated};

/// How many bytes of decompressed clusters are kept: a read of a part of a cluster is often
/// followed by one of the next part. Two clusters are kept at least.
const KEPT: u64 = 2 << 20;

/// Decompresses clusters, and keeps the last ones.
///
/// The first read of a cluster decompresses it up to where the read ends: a random reader wants no
/// more. If another read wants more, it is decompressed as a whole.
pub struct PackedClusters {
    compression: Compression,
    cluster_size: u64,
    kept: TableCache<Packed, Vec<u8>>,
}

impl PackedClusters {
    pub(super) fn new(layout: Layout, compression: Compression) -> PackedClusters {
        let cluster_size = layout.cluster_size();
        PackedClusters { compression, cluster_size, kept: TableCache::new(KEPT.max(2 * cluster_size) as usize) }
    }

    /// The first bytes of a cluster, at least `needed`, which is at most a cluster. `offset` is the
    /// disk's, for a message.
    ///
    /// # Errors
    /// Those of the source, and a line if the data is wrong.
    pub fn get(&self, source: &dyn Source, packed: Packed, needed: u64, offset: u64) -> Result<Rc<Vec<u8>>, Error> {
        let length = match self.kept.get(&packed) {
            Some(kept) if kept.len() as u64 >= needed => return Ok(kept),
            Some(_) => {
                self.kept.forget(&packed);
                self.cluster_size
            }
            None => needed,
        };
        self.kept.get_or(packed, || {
            let mut out = vec![0; length as usize];
            self.unpack(source, packed, &mut out).map_err(|error| match error {
                Error::Image(line) => Error::Image(format!("the compressed cluster for {offset} is wrong: {line}")),
                failed => failed,
            })?;
            let weight = out.len();
            Ok((out, weight))
        })
    }

    fn unpack(&self, source: &dyn Source, packed: Packed, out: &mut [u8]) -> Result<(), Error> {
        // The length is that of whole blocks of 512 bytes. The last one may not be there whole.
        let there = source.size().saturating_sub(packed.offset).min(packed.length.into());
        if there == 0 {
            return Err(Error::image(format!(
                "it is at {}, and the image ends after {} bytes",
                packed.offset,
                source.size()
            )));
        }
        let input = image::read(source, packed.offset, there as usize)?;
        match self.compression {
            Compression::Zstd => codec::unzstd(&input, out),
            _ => match codec::inflate(Deflated::Raw, &input, out)? {
                all if all == out.len() => Ok(()),
                short => Err(Error::image(format!("it gives {short} bytes, and {} are needed", out.len()))),
            },
        }
    }
}
