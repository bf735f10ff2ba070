//! Sessions with certificates: the handshake by rustls, and then [`Records`].

use std::io::{self, Write};
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CipherSuite, ClientConfig, CommonState, NamedGroup, ServerConfig, SupportedProtocolVersion, version};

use crate::cipher::{HEADER, MAX_ENCRYPTED, kind};
use crate::error::TlsError;
use crate::names;
use crate::outgoing::{Outgoing, Plain};
use crate::priority::Priority;
use crate::records::{Fed, Records, Secrets};
use crate::taken::{PeerNames, Taken};

/// The algorithms of a priority.
pub(crate) fn provider(priority: &Priority) -> Result<Arc<CryptoProvider>, TlsError> {
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| {
        use CipherSuite as Suite;
        let version = match suite.tls13() {
            Some(_) => priority.tls13,
            None => priority.tls12,
        };
        version
            && match suite.suite() {
                Suite::TLS13_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => priority.aes128,
                Suite::TLS13_AES_256_GCM_SHA384
                | Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
                | Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => priority.aes256,
                _ => priority.chacha20,
            }
    });
    provider.kx_groups.retain(|group| match group.name() {
        NamedGroup::X25519 => priority.x25519,
        NamedGroup::secp256r1 => priority.secp256r1,
        NamedGroup::secp384r1 => priority.secp384r1,
        _ => false,
    });
    match provider.cipher_suites.is_empty() || provider.kx_groups.is_empty() {
        true => Err(TlsError::new("the priority leaves no algorithms")),
        false => Ok(Arc::new(provider)),
    }
}

/// The versions of a priority.
pub(crate) fn versions(priority: &Priority) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(priority.tls13, &version::TLS13), (priority.tls12, &version::TLS12)];
    all.into_iter().filter(|(has, _)| *has).map(|(_, version)| version).collect()
}

/// A connection during its handshake.
pub(crate) enum Handshaking {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

enum State {
    Handshaking(Box<Handshaking>),
    Established(Box<Records>),
    /// An error has ended it.
    Failed,
}

/// A session's state.
pub(crate) struct CertificateEngine {
    state: State,
    /// Bytes that the handshake has looked at and not yet used up.
    seen: usize,
    out: Outgoing,
    /// Known after the handshake.
    names: PeerNames,
    algorithms: String,
}

/// Lets rustls read all of `input`. It returns how many bytes rustls has used up.
macro_rules! advance {
    ($connection:expr, $input:expr, $out:expr) => {{
        let (input, mut used): (&mut [u8], usize) = ($input, 0);
        loop {
            let UnbufferedStatus { discard, state } = $connection.process_tls_records(&mut input[used..]);
            let waits = match state {
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    $out.put(&encoded(message)?);
                    false
                }
                Ok(ConnectionState::TransmitTlsData(sent)) => {
                    sent.done();
                    false
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => true,
                Ok(_) => return Err(TlsError::new("the other end ended the session during the handshake")),
                Err(error) => {
                    // The alert for the other end. rustls takes it before it looks at its input,
                    // which it must not do again.
                    if $connection.wants_write()
                        && let Ok(ConnectionState::EncodeTlsData(alert)) =
                            $connection.process_tls_records(&mut []).state
                    {
                        $out.put(&encoded(alert)?);
                    }
                    return Err(TlsError::of_library(&error));
                }
            };
            used += discard;
            if waits {
                break used;
            }
        }
    }};
}

/// The bytes of a message that rustls wants to send.
fn encoded<Data>(mut message: EncodeTlsData<'_, Data>) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    if let Err(EncodeError::InsufficientSize(needed)) = message.encode(&mut bytes) {
        bytes.resize(needed.required_size, 0);
        message.encode(&mut bytes).map_err(|error| TlsError::of_library(&error))?;
    }
    Ok(bytes)
}

impl CertificateEngine {
    pub(crate) fn server(config: &Arc<ServerConfig>) -> Result<CertificateEngine, TlsError> {
        let connection = UnbufferedServerConnection::new(Arc::clone(config));
        CertificateEngine::new(Handshaking::Server(connection.map_err(|error| TlsError::of_library(&error))?))
    }

    pub(crate) fn client(config: &Arc<ClientConfig>, name: ServerName<'static>) -> Result<CertificateEngine, TlsError> {
        let connection = UnbufferedClientConnection::new(Arc::clone(config), name);
        CertificateEngine::new(Handshaking::Client(connection.map_err(|error| TlsError::of_library(&error))?))
    }

    fn new(connection: Handshaking) -> Result<CertificateEngine, TlsError> {
        let mut engine = CertificateEngine {
            state: State::Handshaking(Box::new(connection)),
            seen: 0,
            out: Outgoing::default(),
            names: PeerNames::default(),
            algorithms: String::new(),
        };
        // The client speaks first.
        engine.handshake(&mut [])?;
        Ok(engine)
    }

    /// Takes a record of the other end off the front of `input`, which begins with what was not
    /// used yet.
    pub(crate) fn feed(&mut self, input: &mut [u8]) -> Result<Fed, TlsError> {
        let fed = match &mut self.state {
            State::Established(records) => records.feed(input, &mut self.out),
            State::Handshaking(_) => self.feed_handshake(input).map(|used| Fed { used, data: 0..0 }),
            State::Failed => Err(TlsError::new("the session has failed")),
        };
        if fed.is_err() {
            self.state = State::Failed;
        }
        fed
    }

    /// Shows rustls one more record than before. What follows the handshake is not for rustls.
    fn feed_handshake(&mut self, input: &mut [u8]) -> Result<usize, TlsError> {
        let Some(more) = record_length(&input[self.seen..]) else { return Ok(0) };
        let shown = self.seen + more;
        let used = self.handshake(&mut input[..shown])?;
        self.seen = shown - used;
        if !self.is_handshaking() && self.seen > 0 {
            return Err(TlsError::new("the other end sent more than its handshake"));
        }
        // A message may be longer than a record. The caller then keeps its beginning.
        Ok(used)
    }

    fn handshake(&mut self, input: &mut [u8]) -> Result<usize, TlsError> {
        let State::Handshaking(connection) = &mut self.state else { return Ok(0) };
        let (used, done) = match &mut **connection {
            Handshaking::Server(server) => (advance!(server, input, self.out), !server.is_handshaking()),
            Handshaking::Client(client) => (advance!(client, input, self.out), !client.is_handshaking()),
        };
        if done && let State::Handshaking(connection) = std::mem::replace(&mut self.state, State::Failed) {
            self.state = State::Established(Box::new(self.establish(*connection)?));
        }
        Ok(used)
    }

    /// Takes the secrets out of a connection whose handshake is done.
    fn establish(&mut self, connection: Handshaking) -> Result<Records, TlsError> {
        let common: &CommonState = match &connection {
            Handshaking::Server(server) => server,
            Handshaking::Client(client) => client,
        };
        let certificate = common.peer_certificates().and_then(|all| all.first());
        if let Some((subject, issuer)) = certificate.and_then(|one| names::subject_and_issuer(one)) {
            self.names = PeerNames { subject: Some(subject), issuer: Some(issuer) };
        }
        let version = common.protocol_version().and_then(|version| version.as_str());
        let suite = common.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        self.algorithms = format!("{} {}", version.unwrap_or("TLS"), suite.unwrap_or("unknown cipher"));
        let failed = |error| TlsError::of_library(&error);
        let (extracted, secrets) = match connection {
            Handshaking::Server(server) => {
                let (extracted, kernel) = server.dangerous_into_kernel_connection().map_err(failed)?;
                (extracted, Secrets::Server(kernel))
            }
            Handshaking::Client(client) => {
                let (extracted, kernel) = client.dangerous_into_kernel_connection().map_err(failed)?;
                (extracted, Secrets::Client(kernel))
            }
        };
        Records::new(extracted, secrets)
    }

    /// Whether the handshake is still under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        !matches!(self.state, State::Established(_))
    }

    /// Takes decrypted bytes: there are none but those that [`CertificateEngine::feed`] told of.
    pub(crate) fn take(&mut self, _to: &mut [u8]) -> Result<Taken, TlsError> {
        match &self.state {
            State::Established(records) if records.has_ended() => Ok(Taken::End),
            _ => Ok(Taken::Nothing),
        }
    }

    /// Encrypts bytes off the front, `most` at most, and returns their number.
    pub(crate) fn encrypt(&mut self, plain: &mut Plain<'_, '_>, most: usize) -> Result<usize, TlsError> {
        let State::Established(records) = &mut self.state else {
            return Err(TlsError::new("the session takes no more data"));
        };
        let encrypted = records.encrypt(plain, most, &mut self.out);
        if encrypted.is_err() {
            self.state = State::Failed;
        }
        encrypted
    }

    /// Whether there is something to send.
    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty() || matches!(&self.state, State::Established(records) if records.owes())
    }

    /// Sends encrypted bytes, with one call of `to`. `plain` begins with those that were encrypted.
    pub(crate) fn send(&mut self, to: &mut dyn Write, plain: &Plain<'_, '_>) -> io::Result<usize> {
        if let State::Established(records) = &mut self.state
            && self.out.is_empty()
        {
            records.put_owed(&mut self.out)?;
        }
        self.out.send(to, plain)
    }

    /// Says that nothing more follows.
    pub(crate) fn end(&mut self) {
        if let State::Established(records) = &mut self.state {
            records.end(&mut self.out);
        }
    }

    /// The names of the other end's certificate.
    pub(crate) fn peer_names(&self) -> PeerNames {
        self.names.clone()
    }

    /// Version and cipher, for the log.
    pub(crate) fn algorithms(&self) -> String {
        self.algorithms.clone()
    }

    /// For tests: the next record is of this kind.
    #[cfg(test)]
    pub(crate) fn put_record(&mut self, kind: u8, bytes: &[u8]) {
        let State::Established(records) = &mut self.state else { panic!("not established") };
        records.put_record(kind, bytes, &mut self.out);
    }

    /// For tests: a key may encrypt only so many records.
    #[cfg(test)]
    pub(crate) fn set_limit(&mut self, limit: u64) {
        if let State::Established(records) = &mut self.state {
            records.set_limit(limit);
        }
    }
}

/// The length of the first record. None: it is not complete. All bytes, if it cannot be a record:
/// rustls then says what is wrong with it.
fn record_length(input: &[u8]) -> Option<usize> {
    let &[kind, major, _, high, low] = input.first_chunk::<HEADER>()?;
    let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
    if !(20..=kind::DATA).contains(&kind) || major != 3 || length > MAX_ENCRYPTED {
        return Some(input.len());
    }
    (length <= input.len()).then_some(length)
}
