//! Finds the size of a block device. SFTP reports 0 for it, so the size is found by reading.
//!
//! A byte can be read if and only if it lies before the end, so the size is found by a search that
//! reads single bytes. Each round has many reads in flight and takes one round trip to the server;
//! there are some eight rounds.

use std::sync::Arc;

use rbdkit_plugin_api::{Buffer, Errno, Error, Result, Span};

use crate::session::Session;

/// The size of a device is a multiple of this, in bytes.
const SECTOR: u64 = 512;

/// The largest size that is searched for, 2^62 bytes, in sectors.
const MAX_SECTORS: u64 = (1 << 62) / SECTOR;

/// Reads in a round.
const PROBES: u64 = 32;

/// How many bytes can be read from an open file, in whole sectors.
pub(crate) async fn measure(session: &Arc<Session>, handle: &[u8]) -> Result<u64> {
    // The size is at least `least` and at most `most` sectors.
    let (mut least, mut most) = (0, MAX_SECTORS);
    let powers: Vec<u64> = (0..MAX_SECTORS.ilog2()).map(|bits| 1 << bits).collect();
    narrow(session, handle, powers, &mut least, &mut most).await?;
    while least < most {
        let step = (most - least).div_ceil(PROBES + 1);
        let probes = (least..most).step_by(usize::try_from(step).unwrap_or(usize::MAX)).collect();
        narrow(session, handle, probes, &mut least, &mut most).await?;
    }
    Ok(least * SECTOR)
}

/// Reads a byte of each of these sectors, in ascending order, and narrows the bounds.
async fn narrow(
    session: &Arc<Session>,
    handle: &[u8],
    sectors: Vec<u64>,
    least: &mut u64,
    most: &mut u64,
) -> Result<()> {
    let probes: Vec<_> = sectors
        .into_iter()
        .map(|sector| {
            let (session, handle) = (Arc::clone(session), handle.to_vec());
            let ask = async move { session.read(&handle, Buffer::new(1), Span::new(0, 1), sector * SECTOR).await };
            (sector, tokio::spawn(ask))
        })
        .collect();
    let (mut readable, mut unreadable) = (None, None);
    for (sector, probe) in probes {
        let (_, answer) = probe.await.map_err(|_| Error::from(Errno::Eshutdown))?;
        match answer {
            Ok(()) => readable = Some(sector),
            Err(error) if session.is_broken() => return Err(error),
            // Servers answer a read beyond the end in different ways.
            Err(_) => unreadable = unreadable.or(Some(sector)),
        }
    }
    *least = readable.map_or(*least, |sector| sector + 1).max(*least);
    *most = unreadable.unwrap_or(*most).min(*most);
    match *least <= *most {
        true => Ok(()),
        // A part of the device could not be read.
        false => Err(Error::new(Errno::Eio, "the size of the device cannot be found: parts of it cannot be read")),
    }
}
