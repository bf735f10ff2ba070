//! Components in OCI registries: `rbdkit-filter push` and `pull`, and `--wasm-filter oci://...`.
//!
//! A registry may be hostile. Its words reach only a child process ([`child`]), which is limited
//! and confined. This process gets bytes of a bounded size from the child, and compares each with
//! the digest that the caller or a manifest names, and with the signature. The server pulls before
//! it gives up its rights, and has no client in it afterwards.
//!
//! | file | subject |
//! |---|---|
//! | [`pull`], [`push`] | what the programs call |
//! | [`store`] | what was pulled, by digest |
//! | [`child`], [`frame`] | the child process and what it is asked |
//! | [`registry`], [`http`], [`url`] | in the child: the client of a registry |
//! | [`manifest`], [`signature`], [`bundle`] | what a registry keeps |
//! | [`reference`](mod@reference), [`digest`], [`credentials`], [`error`] | the words |
#![forbid(unsafe_code)]

pub mod bundle;
mod child;
mod credentials;
mod digest;
mod error;
mod frame;
mod http;
pub mod manifest;
mod pull;
mod push;
mod reference;
mod registry;
mod signature;
mod store;
mod url;

pub use child::{Access, serve_if_asked};
pub use digest::Digest;
pub use error::Error;
pub use frame::PlainHttp;
pub use pull::{Pulled, Source, pull};
pub use push::push;
pub use reference::Reference;
pub use signature::{PrivateKey, PublicKey, make_keys};
