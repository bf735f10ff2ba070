//! Sessions with pre-shared keys, by OpenSSL.
//!
//! Only suites with an ephemeral exchange of keys are used, so that a key that becomes known later
//! does not open a recording. TLS 1.3 binds a key to SHA-256, which leaves AES-128-GCM and
//! ChaCha20-Poly1305.
//!
//! It also reads private keys of the operator's that rustls does not read.

use std::io::{self, Read, Write};
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslStream,
    SslVersion,
};
use zeroize::Zeroizing;

use crate::error::TlsError;
use crate::key_log::KeyLogFile;
use crate::keys::KeyFile;
use crate::outgoing::Plain;
use crate::priority::Priority;
use crate::records::Fed;
use crate::taken::Taken;

/// Slices shorter than this are copied together, so that they share a record.
const SHORT: usize = 4096;

/// The most bytes in a record.
const RECORD: usize = 16 << 10;

fn failed(error: &ErrorStack) -> TlsError {
    TlsError::of_library(error)
}

fn context(priority: &Priority, key_log: Option<KeyLogFile>) -> Result<SslContextBuilder, TlsError> {
    let suites =
        chosen([(priority.aes128, "TLS_AES_128_GCM_SHA256"), (priority.chacha20, "TLS_CHACHA20_POLY1305_SHA256")]);
    let suites_12 = chosen([
        (priority.chacha20, "ECDHE-PSK-CHACHA20-POLY1305"),
        (priority.aes128, "ECDHE-PSK-AES128-CBC-SHA256"),
        (priority.aes256, "ECDHE-PSK-AES256-CBC-SHA384"),
    ]);
    let groups = chosen([(priority.x25519, "X25519"), (priority.secp256r1, "P-256"), (priority.secp384r1, "P-384")]);
    let (tls12, tls13) = (priority.tls12 && !suites_12.is_empty(), priority.tls13 && !suites.is_empty());
    let (first, last) = match (tls12, tls13) {
        (true, true) => (SslVersion::TLS1_2, SslVersion::TLS1_3),
        (true, false) => (SslVersion::TLS1_2, SslVersion::TLS1_2),
        (false, true) => (SslVersion::TLS1_3, SslVersion::TLS1_3),
        (false, false) => return Err(TlsError::new("the priority leaves no cipher for pre-shared keys")),
    };
    let build = || -> Result<SslContextBuilder, ErrorStack> {
        let mut context = SslContextBuilder::new(SslMethod::tls())?;
        context.set_min_proto_version(Some(first))?;
        context.set_max_proto_version(Some(last))?;
        context.set_ciphersuites(&suites)?;
        context.set_cipher_list(if tls12 { &suites_12 } else { "ECDHE-PSK-CHACHA20-POLY1305" })?;
        context.set_groups_list(&groups)?;
        context.set_num_tickets(0)?;
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        context.set_options(SslOptions::NO_TICKET | SslOptions::NO_RENEGOTIATION | SslOptions::NO_COMPRESSION);
        if priority.server_order {
            context.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
        }
        // An idle session keeps no buffers.
        context.set_mode(SslMode::RELEASE_BUFFERS | SslMode::ENABLE_PARTIAL_WRITE);
        Ok(context)
    };
    let mut context = build().map_err(|error| failed(&error))?;
    if let Some(log) = key_log {
        context.set_keylog_callback(move |_, line| log.line(line));
    }
    Ok(context)
}

fn chosen<const N: usize>(all: [(bool, &'static str); N]) -> String {
    all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect::<Vec<_>>().join(":")
}

/// The settings of a server that knows these users.
pub(crate) fn server(
    keys: Arc<KeyFile>,
    priority: &Priority,
    key_log: Option<KeyLogFile>,
) -> Result<SslContext, TlsError> {
    let mut context = context(priority, key_log)?;
    // 0 stands for a user that does not exist. The handshake then fails.
    context.set_psk_server_callback(move |_, user, key| {
        let known = user.and_then(|user| keys.key(user)).filter(|known| known.len() <= key.len());
        let Some(known) = known else { return Ok(0) };
        key[..known.len()].copy_from_slice(known);
        Ok(known.len())
    });
    Ok(context.build())
}

/// The settings of a client that is this user.
pub(crate) fn client(
    user: &str,
    key: &[u8],
    priority: &Priority,
    key_log: Option<KeyLogFile>,
) -> Result<SslContext, TlsError> {
    let mut context = context(priority, key_log)?;
    let (user, own) = (user.to_string(), Zeroizing::new(key.to_vec()));
    context.set_psk_client_callback(move |_, _hint, identity, key| {
        // The identity ends with a zero byte.
        if user.len() >= identity.len() || own.len() > key.len() {
            return Ok(0);
        }
        identity[..user.len()].copy_from_slice(user.as_bytes());
        identity[user.len()] = 0;
        key[..own.len()].copy_from_slice(&own);
        Ok(own.len())
    });
    Ok(context.build())
}

/// A private key of the operator's in another form of the same key. None: it is no such key.
pub(crate) fn to_pkcs8(pem: &[u8]) -> Option<Vec<u8>> {
    // Without a question for a passphrase on the terminal.
    let key = PKey::private_key_from_pem_passphrase(pem, b"").ok()?;
    key.private_key_to_pkcs8().ok()
}

/// What libssl reads from and writes to.
#[derive(Default)]
struct Pipe {
    /// Bytes of the other end, used up to `at`.
    input: Vec<u8>,
    at: usize,
    /// Bytes for the other end, sent up to `sent`.
    output: Vec<u8>,
    sent: usize,
}

impl Read for Pipe {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = &self.input[self.at..];
        if left.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = left.len().min(to.len());
        to[..count].copy_from_slice(&left[..count]);
        self.at += count;
        if self.at == self.input.len() {
            (self.input, self.at) = (Vec::new(), 0);
        }
        Ok(count)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Which end a session is.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Server,
    Client,
}

/// A session's state.
pub(crate) struct KeyEngine {
    stream: SslStream<Pipe>,
    end: End,
    handshaking: bool,
    short: Vec<u8>,
}

impl KeyEngine {
    pub(crate) fn new(context: &SslContext, end: End) -> Result<KeyEngine, TlsError> {
        let ssl = Ssl::new(context).map_err(|error| failed(&error))?;
        let stream = SslStream::new(ssl, Pipe::default()).map_err(|error| failed(&error))?;
        let mut engine = KeyEngine { stream, end, handshaking: true, short: Vec::new() };
        if let End::Client = end {
            // The client speaks first.
            engine.advance()?;
        }
        Ok(engine)
    }

    /// Takes all bytes of the other end.
    pub(crate) fn feed(&mut self, bytes: &mut [u8]) -> Result<Fed, TlsError> {
        self.stream.get_mut().input.extend_from_slice(bytes);
        if self.handshaking {
            self.advance()?;
        }
        Ok(Fed { used: bytes.len(), data: 0..0 })
    }

    fn advance(&mut self) -> Result<(), TlsError> {
        let done = match self.end {
            End::Server => self.stream.accept(),
            End::Client => self.stream.connect(),
        };
        match done {
            Ok(()) => self.handshaking = false,
            Err(error) if matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE) => {}
            Err(error) => return Err(said(&error)),
        }
        Ok(())
    }

    /// Whether the handshake is still under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.handshaking
    }

    /// Takes decrypted bytes.
    pub(crate) fn take(&mut self, to: &mut [u8]) -> Result<Taken, TlsError> {
        match self.stream.ssl_read(to) {
            Ok(count) => Ok(Taken::Bytes(count)),
            Err(error) => match error.code() {
                ErrorCode::WANT_READ | ErrorCode::WANT_WRITE => Ok(Taken::Nothing),
                ErrorCode::ZERO_RETURN => Ok(Taken::End),
                _ => Err(said(&error)),
            },
        }
    }

    /// Encrypts copies of bytes off the front, `most` at most, and returns their number.
    pub(crate) fn encrypt(&mut self, plain: &mut Plain<'_, '_>, most: usize) -> Result<usize, TlsError> {
        let slices = plain.up_to(most);
        let mut short = std::mem::take(&mut self.short);
        for slice in &slices {
            if slice.len() < SHORT {
                short.extend_from_slice(slice);
            } else {
                self.write(&mut short)?;
                let mut rest = &slice[..];
                while !rest.is_empty() {
                    rest = &rest[self.stream.ssl_write(rest).map_err(|error| said(&error))?..];
                }
            }
            if short.len() >= RECORD - SHORT {
                self.write(&mut short)?;
            }
        }
        self.write(&mut short)?;
        self.short = short;
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn write(&mut self, bytes: &mut Vec<u8>) -> Result<(), TlsError> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            rest = &rest[self.stream.ssl_write(rest).map_err(|error| said(&error))?..];
        }
        bytes.clear();
        Ok(())
    }

    /// Whether there are encrypted bytes to send.
    pub(crate) fn has_output(&self) -> bool {
        !self.stream.get_ref().output.is_empty()
    }

    /// Sends encrypted bytes, with one call of `to`.
    pub(crate) fn send(&mut self, to: &mut dyn Write, _plain: &Plain<'_, '_>) -> io::Result<usize> {
        let pipe = self.stream.get_mut();
        let count = to.write(&pipe.output[pipe.sent..])?;
        pipe.sent += count;
        if pipe.sent == pipe.output.len() {
            (pipe.output, pipe.sent) = (Vec::new(), 0);
        }
        Ok(count)
    }

    /// Says that nothing more follows.
    pub(crate) fn end(&mut self) {
        let _ = self.stream.shutdown();
    }

    /// Version and cipher, for the log.
    pub(crate) fn algorithms(&self) -> String {
        let ssl = self.stream.ssl();
        format!("{} {}", ssl.version_str(), ssl.current_cipher().map_or("unknown cipher", |cipher| cipher.name()))
    }
}

/// What libssl says, without the places in its source.
fn said(error: &openssl::ssl::Error) -> TlsError {
    let reason = error.ssl_error().and_then(|stack| stack.errors().last().and_then(|error| error.reason()));
    match reason {
        Some(reason) => TlsError::of_library(&reason),
        None => TlsError::of_library(error),
    }
}
