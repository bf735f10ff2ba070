//! TLS for both ends of an NBD connection: the server, and the nbd plugin as a client.
//!
//! Everything that names a TLS library is in this crate. Two libraries stand behind it:
//!
//! * rustls, for certificates (X.509). It is written in safe Rust.
//! * OpenSSL's libssl, for pre-shared keys (PSK). No release of rustls has external keys. libssl is
//!   on the system already, because libcurl needs it. It never parses a certificate here.
//!
//! A [`Session`] is one connection's TLS. It does no I/O of its own: the caller lends it something
//! to read from and to write to, and neither may block.
//!
//! | module | subject |
//! |---|---|
//! | [`session`] | one connection: handshake, reading, writing |
//! | [`server`], [`client`] | the settings of each end, from which sessions are made |
//! | [`certificates`] | the files of a directory of certificates |
//! | [`keys`] | the file of pre-shared keys |
//! | [`priority`] | GnuTLS's priority strings |
//! | [`names`] | the names in a certificate, as RFC 4514 writes them |
//! | [`with_rustls`], [`with_openssl`] | the two libraries |
//! | [`records`], [`messages`], [`alert`] | what follows the handshake of rustls |
//! | [`cipher`], [`outgoing`] | encrypts and decrypts records where their bytes are |

#![forbid(unsafe_code)]

mod alert;
mod certificates;
mod cipher;
mod client;
mod error;
mod files;
mod key_log;
mod keys;
mod messages;
mod names;
mod outgoing;
mod priority;
mod records;
mod server;
mod session;
mod taken;
mod verify;
mod with_openssl;
mod with_rustls;

pub use certificates::{CertificateFiles, Role, directory_with_certificates};
pub use client::{ClientTls, ServerIdentity};
pub use error::TlsError;
pub use files::read_bounded;
pub use key_log::KeyLogFile;
pub use keys::KeyFile;
pub use priority::Priority;
pub use server::{ClientCertificates, ServerTls};
pub use session::{Handshake, Received, Session};
pub use taken::PeerNames;

#[cfg(test)]
mod tests;
