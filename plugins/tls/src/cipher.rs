//! Encrypts and decrypts one record with the keys of a connection (RFC 8446, section 5; RFC 5246,
//! section 6.2.3; RFC 5288; RFC 7905).
//!
//! Each direction counts its records. The count is a part of the nonce, so no nonce is used twice
//! with a key.

use std::ops::Range;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use crate::alert::Alert;
use crate::error::TlsError;

/// The most bytes of the caller in a record.
pub(crate) const RECORD: usize = 16 << 10;

/// The bytes before each record: its kind, a version and its length.
pub(crate) const HEADER: usize = 5;

/// The most bytes of a record with its header: TLS 1.2 allows 2 KiB more than its data, TLS 1.3 256
/// bytes.
pub(crate) const MAX_ENCRYPTED: usize = HEADER + RECORD + 2048;

/// The bytes by which a cipher proves that nobody changed a record.
pub(crate) const TAG: usize = 16;

/// The bytes of the nonce that a record of TLS 1.2 carries with AES-GCM.
const EXPLICIT: usize = 8;

/// What is in a record.
pub(crate) mod kind {
    pub(crate) const ALERT: u8 = 21;
    pub(crate) const HANDSHAKE: u8 = 22;
    pub(crate) const DATA: u8 = 23;
}

/// How a record looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The kind is encrypted behind the data.
    Tls13,
    /// The record carries a part of the nonce.
    Tls12Gcm,
    Tls12ChaCha,
}

impl Format {
    pub(crate) fn is_tls13(self) -> bool {
        self == Format::Tls13
    }

    /// The bytes of a record before what is encrypted.
    fn head_length(self) -> usize {
        match self {
            Format::Tls13 | Format::Tls12ChaCha => HEADER,
            Format::Tls12Gcm => HEADER + EXPLICIT,
        }
    }
}

/// The key of one direction, and how many records it has encrypted.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    format: Format,
    sequence: u64,
}

impl Key {
    fn new(is_tls13: bool, (sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Key, TlsError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(TlsError::new("the library has chosen a cipher that is not known")),
        };
        let format = match (is_tls13, &secrets) {
            (true, _) => Format::Tls13,
            (false, ConnectionTrafficSecrets::Chacha20Poly1305 { .. }) => Format::Tls12ChaCha,
            (false, _) => Format::Tls12Gcm,
        };
        let wrong = || TlsError::new("the library has given a key of a wrong length");
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| wrong())?;
        let iv = iv.as_ref().try_into().map_err(|_| wrong())?;
        Ok(Key { key: LessSafeKey::new(key), iv, format, sequence })
    }

    /// The nonce of the next record.
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        nonce
    }

    /// What a record of TLS 1.2 proves besides its data.
    fn proved_in_tls12(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut proved = [0; 13];
        proved[..8].copy_from_slice(&self.sequence.to_be_bytes());
        proved[8..11].copy_from_slice(&[kind, 3, 3]);
        proved[11..].copy_from_slice(&(length as u16).to_be_bytes());
        proved
    }
}

/// The bytes before and behind an encrypted record.
pub(crate) struct Frame {
    head: [u8; HEADER + EXPLICIT],
    head_length: usize,
    pub(crate) tag: [u8; TAG],
}

impl Frame {
    pub(crate) fn head(&self) -> &[u8] {
        &self.head[..self.head_length]
    }
}

/// Encrypts the records of one direction.
pub(crate) struct Sealer {
    key: Key,
    /// From this record on the key may tell something of the data.
    limit: u64,
}

impl Sealer {
    pub(crate) fn new(
        is_tls13: bool,
        secrets: (u64, ConnectionTrafficSecrets),
        limit: u64,
    ) -> Result<Sealer, TlsError> {
        Ok(Sealer { key: Key::new(is_tls13, secrets)?, limit })
    }

    pub(crate) fn format(&self) -> Format {
        self.key.format
    }

    /// The length of [`Frame::head`].
    pub(crate) fn head_length(&self) -> usize {
        self.key.format.head_length()
    }

    /// The bytes between the data and the tag: TLS 1.3 has the kind there.
    pub(crate) fn kind_length(&self) -> usize {
        usize::from(self.key.format.is_tls13())
    }

    /// Whether the key has encrypted all records but the last that it may encrypt.
    pub(crate) fn is_used_up(&self) -> bool {
        self.key.sequence >= self.limit - 1
    }

    #[cfg(test)]
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Encrypts `bytes` where they are: at most [`RECORD`] bytes, and behind them the kind if
    /// [`Sealer::kind_length`] says so.
    pub(crate) fn seal(&mut self, kind: u8, bytes: &mut [u8]) -> Result<Frame, TlsError> {
        let key = &mut self.key;
        let nonce = key.nonce();
        let head_length = key.format.head_length();
        let mut head = [0; HEADER + EXPLICIT];
        let shown_kind = if key.format.is_tls13() { kind::DATA } else { kind };
        let length = head_length - HEADER + bytes.len() + TAG;
        head[..3].copy_from_slice(&[shown_kind, 3, 3]);
        head[3..HEADER].copy_from_slice(&(length as u16).to_be_bytes());
        head[HEADER..].copy_from_slice(&nonce[4..]);
        let proved_in_tls12 = key.proved_in_tls12(kind, bytes.len());
        let proved = if key.format.is_tls13() { &head[..HEADER] } else { &proved_in_tls12[..] };
        let nonce = Nonce::assume_unique_for_key(nonce);
        let next = key.sequence.checked_add(1).ok_or_else(used_up)?;
        let sealed = key.key.seal_in_place_separate_tag(nonce, Aad::from(proved), bytes);
        let sealed = sealed.map_err(|_| TlsError::new("a record cannot be encrypted"))?;
        key.sequence = next;
        let mut tag = [0; TAG];
        tag.copy_from_slice(sealed.as_ref());
        Ok(Frame { head, head_length, tag })
    }
}

/// No more records can be sent with a key.
pub(crate) fn used_up() -> TlsError {
    TlsError::new("the keys of this connection may not encrypt more, and its version of TLS has no others")
}

/// Decrypts the records of one direction.
pub(crate) struct Opener(Key);

impl Opener {
    pub(crate) fn new(is_tls13: bool, secrets: (u64, ConnectionTrafficSecrets)) -> Result<Opener, TlsError> {
        Ok(Opener(Key::new(is_tls13, secrets)?))
    }

    /// Decrypts a whole record where it is. It returns its kind, and where its data is.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(u8, Range<usize>), Alert> {
        let key = &mut self.0;
        let from = key.format.head_length();
        let length = record.len().checked_sub(from + TAG).ok_or(Alert::BadRecord)?;
        let (head, body) = record.split_at_mut(from);
        let mut nonce = key.nonce();
        if key.format == Format::Tls12Gcm {
            nonce[..4].copy_from_slice(&key.iv[..4]);
            nonce[4..].copy_from_slice(&head[HEADER..]);
        }
        let proved_in_tls12 = key.proved_in_tls12(head[0], length);
        let proved = if key.format.is_tls13() { &head[..HEADER] } else { &proved_in_tls12[..] };
        let next = key.sequence.checked_add(1).ok_or(Alert::Internal)?;
        let opened = key.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(proved), body);
        let opened = opened.map_err(|_| Alert::BadRecord)?;
        key.sequence = next;
        let (kind, length) = match key.format {
            // Zeroes may follow the kind, to hide the length.
            Format::Tls13 => match opened.iter().rposition(|byte| *byte != 0) {
                Some(at) => (opened[at], at),
                None => return Err(Alert::Unexpected),
            },
            Format::Tls12Gcm | Format::Tls12ChaCha => (head[0], opened.len()),
        };
        match length <= RECORD {
            true => Ok((kind, from..from + length)),
            false => Err(Alert::TooLong),
        }
    }
}
