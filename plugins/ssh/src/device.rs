//! The size of a block device, which SFTP does not tell: its attributes say 0. It is found by what can be read.
//!
//! A byte is there or not, and all before one that is there are, so the size is searched for; with many questions in flight, a round takes the way to
//! the server and back once, and there are some eight of them.

use std::sync::Arc;

use rbdkit_plugin_api::{Buffer, Errno, Error, Result, Span};

use crate::session::Session;

/// Sizes are multiples of it, in bytes.
const SECTOR: u64 = 512;

/// Sectors of the largest size that there can be, 2^62 bytes.
const MOST: u64 = (1 << 62) / SECTOR;

/// Questions in a round.
const QUESTIONS: u64 = 32;

/// Bytes that can be read from an open file, in whole sectors.
pub(crate) async fn measure(session: &Arc<Session>, handle: &[u8]) -> Result<u64> {
    // Sectors that are there, and a number that there are at most.
    let (mut least, mut most) = (0, MOST);
    let powers: Vec<u64> = (0..MOST.ilog2()).map(|bits| 1 << bits).collect();
    narrow(session, handle, powers, &mut least, &mut most).await?;
    while least < most {
        let step = (most - least).div_ceil(QUESTIONS + 1);
        let questions = (least..most).step_by(usize::try_from(step).unwrap_or(usize::MAX)).collect();
        narrow(session, handle, questions, &mut least, &mut most).await?;
    }
    Ok(least * SECTOR)
}

/// Asks whether these sectors, in ascending order, are there.
async fn narrow(
    session: &Arc<Session>,
    handle: &[u8],
    sectors: Vec<u64>,
    least: &mut u64,
    most: &mut u64,
) -> Result<()> {
    let questions: Vec<_> = sectors
        .into_iter()
        .map(|sector| {
            let (session, handle) = (Arc::clone(session), handle.to_vec());
            let ask = async move { session.read(&handle, Buffer::new(1), Span::new(0, 1), sector * SECTOR).await };
            (sector, tokio::spawn(ask))
        })
        .collect();
    let (mut there, mut not_there) = (None, None);
    for (sector, question) in questions {
        let (_, answer) = question.await.map_err(|_| Error::from(Errno::Eshutdown))?;
        match answer {
            Ok(()) => there = Some(sector),
            Err(error) if session.is_broken() => return Err(error),
            // Servers do not agree on what to say to somebody who reads beyond the end.
            Err(_) => not_there = not_there.or(Some(sector)),
        }
    }
    *least = there.map_or(*least, |sector| sector + 1).max(*least);
    *most = not_there.unwrap_or(*most).min(*most);
    match *least <= *most {
        true => Ok(()),
        // An error of the device in the midst of it.
        false => Err(Error::new(Errno::Eio, "the size of the device cannot be found: parts of it cannot be read")),
    }
}
