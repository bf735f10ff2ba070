//! What the process that wants something of a registry and its child say to each other.
//!
//! A frame is the length of a JSON text (4 bytes), the length of the bytes after it (8 bytes), the
//! text, and the bytes. Each side bounds what it reads of the other.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::credentials::Credentials;

/// The longest JSON text, in bytes. Messages and credentials are far shorter.
const MAX_TEXT: u32 = 256 << 10;

/// Whether a registry on another machine may be spoken to without TLS.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum PlainHttp {
    /// Only on this machine.
    Refused,
    /// Everywhere.
    Allowed,
}

/// Which registry, and how.
#[derive(Deserialize, Serialize)]
pub(crate) struct Session {
    pub(crate) host: String,
    pub(crate) name: String,
    pub(crate) push: bool,
    pub(crate) plain_http: PlainHttp,
    pub(crate) credentials: Option<Credentials>,
    /// How long everything may take, in milliseconds.
    pub(crate) timeout_ms: u64,
}

/// What the child is asked for. The first frame is a [`Request::Open`].
#[derive(Deserialize, Serialize)]
pub(crate) enum Request {
    Open(Session),
    /// By tag or digest.
    Manifest(String),
    /// The index of the manifests that are about the one with this digest; and the tag that has it
    /// in a registry that makes no such index.
    Referrers(String, String),
    /// By digest, and its size.
    Blob(String, u64),
    /// With this digest; the bytes follow.
    PutBlob(String),
    /// Under this tag; the bytes follow.
    PutManifest(String),
}

/// What the child answers.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Reply {
    Done,
    /// The bytes follow.
    Found {
        media_type: Option<String>,
        /// The digest that the registry says it has.
        digest: Option<String>,
    },
    Missing,
    /// One line.
    Failed(String),
}

/// Writes a frame.
pub(crate) fn write(to: &mut impl Write, value: &impl Serialize, bytes: &[u8]) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(&text)?;
    to.write_all(bytes)?;
    to.flush()
}

/// Reads a frame with at most `limit` bytes. None if the other side has ended.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read, limit: u64) -> io::Result<Option<(T, Vec<u8>)>> {
    let (mut text_length, mut length) = ([0; 4], [0; 8]);
    match from.read_exact(&mut text_length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    from.read_exact(&mut length)?;
    let (text_length, length) = (u32::from_le_bytes(text_length), u64::from_le_bytes(length));
    if text_length > MAX_TEXT || length > limit {
        return Err(io::Error::other("a message is too long"));
    }
    let take = |from: &mut dyn Read, length: u64| {
        let mut bytes = Vec::new();
        let read = from.take(length).read_to_end(&mut bytes)?;
        if read as u64 == length { Ok(bytes) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) }
    };
    let text = take(from, text_length.into())?;
    let bytes = take(from, length)?;
    Ok(Some((serde_json::from_slice(&text)?, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_is_written_and_within_its_limit() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Request::Blob("x".into(), 7), b"1234").unwrap();
        let (request, body) = read::<Request>(&mut &bytes[..], 4).unwrap().unwrap();
        assert!(matches!(request, Request::Blob(digest, 7) if digest == "x") && body == b"1234");
        assert!(read::<Request>(&mut &bytes[..], 3).is_err());
        assert!(read::<Request>(&mut &bytes[..bytes.len() - 1], 4).is_err());
        assert!(read::<Request>(&mut &[][..], 4).unwrap().is_none());
        assert!(read::<Request>(&mut &[255; 12][..], 4).is_err());
    }
}
