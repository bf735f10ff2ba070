//! What one end tells the other when it ends a session (RFC 8446, section 6).

use crate::error::TlsError;

/// Why we end a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alert {
    Unexpected,
    BadRecord,
    TooLong,
    WrongMessage,
    WrongParameter,
    Version,
    Internal,
}

impl Alert {
    /// Nothing more follows.
    pub(crate) const CLOSE: u8 = 0;

    /// The other end has given up; the end follows.
    pub(crate) const CANCELED: u8 = 90;

    /// TLS 1.2: the keys are not agreed upon again.
    pub(crate) const NO_RENEGOTIATION: u8 = 100;

    /// Its number.
    pub(crate) fn number(self) -> u8 {
        match self {
            Alert::Unexpected => 10,
            Alert::BadRecord => 20,
            Alert::TooLong => 22,
            Alert::WrongParameter => 47,
            Alert::WrongMessage => 50,
            Alert::Version => 70,
            Alert::Internal => 80,
        }
    }
}

impl From<Alert> for TlsError {
    fn from(alert: Alert) -> TlsError {
        TlsError::new(match alert {
            Alert::Unexpected => "the other end sent a message that does not belong there",
            Alert::BadRecord => "a record was changed on its way, or is not of this session",
            Alert::TooLong => "the other end sent a record that is too long",
            Alert::WrongMessage => "the other end sent a message that cannot be read",
            Alert::WrongParameter => "the other end sent a message with a value that it cannot have",
            Alert::Version => "the other end sent a record of another version",
            Alert::Internal => "the other end sent more records than a session can have",
        })
    }
}

/// What an alert of the other end says.
pub(crate) fn received(number: u8) -> TlsError {
    let name = match number {
        10 => "unexpected message",
        20 => "bad record",
        22 => "record too long",
        40 => "handshake failure",
        42..=46 => "bad certificate",
        47 => "illegal parameter",
        50 => "decode error",
        51 => "decrypt error",
        70 => "protocol version",
        80 => "internal error",
        _ => "another error",
    };
    TlsError::new(format!("the other end ended the session: {name} (alert {number})"))
}
