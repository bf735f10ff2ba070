//! Finds the disk when a client connects: its size and version, and whether the server supports
//! ranges.
//!
//! The first request is for the first byte. Its answer tells all at once, and servers treat it as
//! the later reads. HEAD is often refused or wrong: signed URLs of S3 allow only GET, and some
//! servers send the length of something else. HEAD follows only if the answer leaves out the size,
//! and then a GET without a range, which is aborted after the head.

use rbdkit_plugin_api::{Errno, Error, Result};

use crate::disk::Disk;
use crate::head::Head;
use crate::remote::{Found, Remote};
use crate::transfer::Task;

/// Asks the server for the disk.
///
/// # Errors
/// One line that says which request failed and why.
pub(crate) async fn find(remote: &Remote) -> Result<Disk> {
    if !remote.scheme().is_web() {
        return file(remote).await;
    }
    let named = |error: Error| {
        let what = error.context().unwrap_or(error.errno().name());
        Error::new(error.errno(), format!("curl: GET of the first byte: {what}"))
    };
    let probe = remote.look(Task::Probe).await.map_err(named)?;
    let size = match told(&probe).map_err(named)? {
        Some(size) => Some(size),
        None => elsewhere(remote, &probe).await,
    };
    let missing = || Error::new(Errno::Eio, "the server does not say how large the disk is");
    size.ok_or_else(missing).and_then(|size| Disk::new(size, &probe.address, &probe.head)).map_err(named)
}

/// Asks a server that is no web server for the size of the file.
async fn file(remote: &Remote) -> Result<Disk> {
    let named = |error: Error| {
        let what = error.context().unwrap_or(error.errno().name());
        Error::new(error.errno(), format!("curl: asking for the size: {what}"))
    };
    let found = remote.look(Task::Head).await.map_err(named)?;
    found.result.as_ref().map_err(|error| named(Error::new(error.errno(), error.context().unwrap_or_default())))?;
    let missing = || named(Error::new(Errno::Eio, "the server does not say how large the file is"));
    Disk::new(found.head.length.ok_or_else(missing)?, &found.address, &found.head).map_err(named)
}

/// The size of the disk, if the answer to the request for the first byte tells it.
fn told(probe: &Found) -> Result<Option<u64>> {
    let head = &probe.head;
    let eio = |what: String| Err(Error::new(Errno::Eio, what));
    // The whole disk is not read to its end, but its head tells enough.
    if let (Err(error), false) = (&probe.result, head.status == 200) {
        return Err(Error::new(error.errno(), error.context().unwrap_or_default()));
    }
    match head.status {
        206 => head.first_byte().map(|()| head.range.total()),
        416 => match head.range.total() {
            None | Some(0) => Ok(head.range.total()),
            Some(size) => eio(format!("the server has {size} bytes, but refuses the first one")),
        },
        // A disk of so few bytes may come whole.
        200 if head.encoding.is_none() && head.length.is_some_and(|length| length <= 1) => Ok(head.length),
        200 => eio("the server does not support ranges".into()),
        _ => Err(head.refusal()),
    }
}

/// The size of the disk, if other requests tell it. `probe` was the answer to the first one.
async fn elsewhere(remote: &Remote, probe: &Found) -> Option<u64> {
    let fits = |head: &Head| {
        let size = head.length.filter(|_| head.encoding.is_none() && matches!(head.status, 200..=299))?;
        // The first byte was sent, or refused because there is none.
        (size > 0).eq(&(probe.head.status == 206)).then_some(size)
    };
    for task in [Task::Head, Task::Whole] {
        if let Some(size) = remote.look(task).await.ok().and_then(|found| fits(&found.head)) {
            return Some(size);
        }
    }
    None
}
