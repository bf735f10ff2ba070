//! What a library gives to a session.

/// Decrypted bytes that were taken.
pub(crate) enum Taken {
    Bytes(usize),
    /// More bytes of the other end are needed.
    Nothing,
    /// The other end has said that nothing more follows.
    End,
}

/// What the other end's certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNames {
    /// The subject's name as RFC 4514 writes it. None without a certificate.
    pub subject: Option<String>,
    /// The issuer's name.
    pub issuer: Option<String>,
}
