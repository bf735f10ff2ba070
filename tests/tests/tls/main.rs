//! TLS, as a server and as a client, with real clients and servers of GnuTLS.

mod clients;
mod hostile;
mod options;
mod pki;
mod upstreams;
