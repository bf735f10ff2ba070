//! The records of a connection after its handshake by rustls.
//!
//! rustls gives its secrets away and stays to derive the next ones. Records are encrypted and
//! decrypted here, where their bytes are: rustls would copy each of them.

use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion, SupportedCipherSuite};

use crate::alert::{self, Alert};
use crate::cipher::{HEADER, MAX_ENCRYPTED, Opener, Sealer, kind, used_up};
use crate::error::TlsError;
use crate::messages::{Message, Messages};
use crate::outgoing::{Outgoing, Place, Plain};

/// Derives the next secrets of a connection.
pub(crate) enum Secrets {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

macro_rules! either {
    ($secrets:expr, $one:ident => $call:expr) => {
        match $secrets {
            Secrets::Server($one) => $call,
            Secrets::Client($one) => $call,
        }
    };
}

impl Secrets {
    fn is_tls13(&self) -> bool {
        either!(self, one => one.protocol_version()) == ProtocolVersion::TLSv1_3
    }

    /// The records that a key may encrypt.
    fn limit(&self) -> u64 {
        match either!(self, one => one.negotiated_cipher_suite()) {
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        }
    }

    fn next_to_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), TlsError> {
        either!(self, one => one.update_tx_secret()).map_err(|error| TlsError::of_library(&error))
    }

    fn next_to_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), TlsError> {
        either!(self, one => one.update_rx_secret()).map_err(|error| TlsError::of_library(&error))
    }
}

/// Records in a row without data after which the session ends: nobody needs so many.
const MAX_WITHOUT_DATA: u32 = 32;

/// A message that says that the next record has the next key. The other end need not do the same.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// The level of an alert.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// What was done with bytes of the other end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fed {
    /// Bytes that are used. 0: more are needed.
    pub(crate) used: usize,
    /// Which of them are decrypted data now.
    pub(crate) data: Range<usize>,
}

/// See the module.
pub(crate) struct Records {
    secrets: Secrets,
    sealer: Sealer,
    opener: Opener,
    limit: u64,
    messages: Messages,
    /// Records without data since the last one with data.
    without_data: u32,
    /// The other end wants our next key.
    owes_key_update: bool,
    /// The other end is to be told that there is no renegotiation.
    owes_no_renegotiation: bool,
    asked_for_renegotiation: bool,
    ended: bool,
}

impl Records {
    pub(crate) fn new(extracted: ExtractedSecrets, secrets: Secrets) -> Result<Records, TlsError> {
        let (is_tls13, limit) = (secrets.is_tls13(), secrets.limit());
        Ok(Records {
            sealer: Sealer::new(is_tls13, extracted.tx, limit)?,
            opener: Opener::new(is_tls13, extracted.rx)?,
            limit,
            messages: Messages::new(is_tls13, matches!(secrets, Secrets::Client(_))),
            secrets,
            without_data: 0,
            owes_key_update: false,
            owes_no_renegotiation: false,
            asked_for_renegotiation: false,
            ended: false,
        })
    }

    /// Whether the other end has said that nothing more follows.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes the first record of `input`. The data in it is decrypted where it is.
    pub(crate) fn feed(&mut self, input: &mut [u8], out: &mut Outgoing) -> Result<Fed, TlsError> {
        if self.ended {
            return Ok(Fed { used: input.len(), data: 0..0 });
        }
        let fed = self.record(input);
        if let Err(Failure::Ours(alert)) = &fed
            && out.is_empty()
        {
            let _ = out.put_record(&mut self.sealer, kind::ALERT, &[FATAL, alert.number()]);
        }
        fed.map_err(|failure| match failure {
            Failure::Ours(alert) => alert.into(),
            Failure::Theirs(error) => error,
        })
    }

    fn record(&mut self, input: &mut [u8]) -> Result<Fed, Failure> {
        let Some(&[first, major, minor, high, low]) = input.first_chunk::<HEADER>() else { return Ok(Fed::default()) };
        let format = self.sealer.format();
        let known = match format.is_tls13() {
            true => first == kind::DATA,
            false => matches!(first, kind::ALERT | kind::HANDSHAKE | kind::DATA),
        };
        if !known {
            return Err(Alert::Unexpected.into());
        }
        if !format.is_tls13() && [major, minor] != [3, 3] {
            return Err(Alert::Version.into());
        }
        let used = HEADER + usize::from(u16::from_be_bytes([high, low]));
        let most = if format.is_tls13() { MAX_ENCRYPTED - 2048 + 256 } else { MAX_ENCRYPTED };
        if used > most {
            return Err(Alert::TooLong.into());
        }
        let Some(record) = input.get_mut(..used) else { return Ok(Fed::default()) };
        let (kind, data) = self.opener.open(record)?;
        if kind == kind::DATA && !data.is_empty() {
            self.without_data = 0;
        } else {
            self.without_data += 1;
            if self.without_data > MAX_WITHOUT_DATA {
                return Err(Alert::Unexpected.into());
            }
        }
        let content = &record[data.clone()];
        match kind {
            kind::HANDSHAKE => self.message(content)?,
            // A message that has begun comes first.
            _ if self.messages.has_begun() => return Err(Alert::Unexpected.into()),
            kind::DATA => return Ok(Fed { used, data }),
            kind::ALERT => self.alert(content)?,
            _ => return Err(Alert::Unexpected.into()),
        }
        Ok(Fed { used, data: 0..0 })
    }

    fn alert(&mut self, content: &[u8]) -> Result<(), Failure> {
        let &[level, number] = content else { return Err(Alert::WrongMessage.into()) };
        match number {
            Alert::CLOSE => self.ended = true,
            Alert::CANCELED => {}
            // TLS 1.3 has no other warnings.
            _ if level == WARNING && !self.sealer.format().is_tls13() => {}
            _ => return Err(Failure::Theirs(alert::received(number))),
        }
        Ok(())
    }

    fn message(&mut self, mut content: &[u8]) -> Result<(), Failure> {
        if content.is_empty() {
            return Err(Alert::Unexpected.into());
        }
        while let Some(message) = self.messages.next(&mut content)? {
            match message {
                Message::Renegotiation if !self.asked_for_renegotiation => {
                    self.asked_for_renegotiation = true;
                    self.owes_no_renegotiation = true;
                }
                Message::Renegotiation => return Err(Alert::Unexpected.into()),
                Message::KeyUpdate { wants_ours } => {
                    // What follows has another key, so it is in another record.
                    if !content.is_empty() {
                        return Err(Alert::Unexpected.into());
                    }
                    let next = self.secrets.next_to_receive().map_err(Failure::Theirs)?;
                    self.opener = Opener::new(true, next).map_err(Failure::Theirs)?;
                    self.owes_key_update |= wants_ours;
                }
            }
        }
        Ok(())
    }

    /// Whether the other end is owed an answer.
    pub(crate) fn owes(&self) -> bool {
        self.owes_key_update || self.owes_no_renegotiation
    }

    /// Adds what the other end is owed to what is sent.
    pub(crate) fn put_owed(&mut self, out: &mut Outgoing) -> Result<(), TlsError> {
        if std::mem::take(&mut self.owes_no_renegotiation) {
            out.put_record(&mut self.sealer, kind::ALERT, &[WARNING, Alert::NO_RENEGOTIATION])?;
        }
        if std::mem::take(&mut self.owes_key_update) {
            self.renew_key(out)?;
        }
        Ok(())
    }

    /// From the next record on we encrypt with the next key.
    fn renew_key(&mut self, out: &mut Outgoing) -> Result<(), TlsError> {
        if !self.sealer.format().is_tls13() {
            return Err(used_up());
        }
        out.put_record(&mut self.sealer, kind::HANDSHAKE, &KEY_UPDATE)?;
        self.sealer = Sealer::new(true, self.secrets.next_to_send()?, self.limit)?;
        Ok(())
    }

    /// Encrypts bytes off the front, `most` at most, and returns their number.
    pub(crate) fn encrypt(
        &mut self,
        plain: &mut Plain<'_, '_>,
        most: usize,
        out: &mut Outgoing,
    ) -> Result<usize, TlsError> {
        self.put_owed(out)?;
        let (mut place, mut count) = (Place::default(), 0);
        while count < most && place.skip_empty(plain) {
            if self.sealer.is_used_up() {
                self.renew_key(out)?;
            }
            match out.put_data(&mut self.sealer, plain, &mut place, most - count)? {
                0 => break,
                more => count += more,
            }
        }
        Ok(count)
    }

    /// Adds that nothing more follows.
    pub(crate) fn end(&mut self, out: &mut Outgoing) {
        // An error means that the other end cannot be told.
        let _ = out.put_record(&mut self.sealer, kind::ALERT, &[WARNING, Alert::CLOSE]);
    }

    /// For tests: adds a record of any kind.
    #[cfg(test)]
    pub(crate) fn put_record(&mut self, kind: u8, bytes: &[u8], out: &mut Outgoing) {
        out.put_record(&mut self.sealer, kind, bytes).unwrap();
    }

    /// For tests: a key may encrypt only so many records.
    #[cfg(test)]
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.sealer.set_limit(limit);
    }
}

/// Why a record ends the session.
enum Failure {
    /// The other end is told.
    Ours(Alert),
    /// The other end has said so, or cannot be told.
    Theirs(TlsError),
}

impl From<Alert> for Failure {
    fn from(alert: Alert) -> Failure {
        Failure::Ours(alert)
    }
}
