//! [`Digest`]: a SHA-256 digest, as registries write it.

use std::fmt;

use rbdkit_plugin_api::hex;
use sha2::{Digest as _, Sha256};

/// The prefix of a digest. Registries may know other algorithms; all of them know this one.
const PREFIX: &str = "sha256:";

/// A SHA-256 digest. It is shown as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Reads `sha256:` and 64 hexadecimal digits. None for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Digest> {
        text.strip_prefix(PREFIX).and_then(hex::decode).map(Digest)
    }

    /// The 64 digits.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}
