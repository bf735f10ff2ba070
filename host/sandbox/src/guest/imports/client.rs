//! `rbdkit:filter/client`.

use std::net::IpAddr;
use std::sync::Arc;

use rbdkit_plugin_api as api;
use rbdkit_plugin_api::{Client, Errno};
use wasmtime::Result;

use super::phases::OPEN_DATA;
use crate::connection::bindings::host::client::{Ending, Host, Inet, Peer, Vsock};
use crate::connection::import_error::ImportError;
use crate::connection::powers::Power;
use crate::guest::call::Phase;
use crate::guest::context::Context;
use crate::guest::fault::mistake;

impl Context {
    /// The client that the call is for. `function` is the function's name, for the message.
    fn client(&self, function: &str) -> Result<&Arc<Client>> {
        self.require(OPEN_DATA.or(Phase::BEFORE), function)?;
        self.call.client().ok_or_else(|| mistake(format!("it called {function} where there is no client")))
    }
}

impl Host for Context {
    fn peer_name(&mut self) -> Result<Peer> {
        Ok(match &self.client("client.peer-name")?.peer {
            api::Peer::Ip(address) => {
                let octets = match address.ip() {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                Peer::Ip(Inet { address: octets, port: address.port() })
            }
            api::Peer::Unix => Peer::Unix,
            api::Peer::Vsock { cid, port } => Peer::Vsock(Vsock { cid: *cid, port: *port }),
            api::Peer::Unknown => Peer::Unknown,
        })
    }

    fn peer_credentials(&mut self) -> Result<(i64, i64, i64), ImportError> {
        Ok(self.client("client.peer-credentials")?.credentials.ok_or(Errno::Enxio)?)
    }

    fn is_tls(&mut self) -> Result<bool> {
        Ok(self.client("client.is-tls")?.is_tls())
    }

    fn tls_subject(&mut self) -> Result<String, ImportError> {
        let peer = self.client("client.tls-subject")?.tls_peer();
        Ok(peer.and_then(|peer| peer.subject.clone()).ok_or(Errno::Enxio)?)
    }

    fn tls_issuer(&mut self) -> Result<String, ImportError> {
        let peer = self.client("client.tls-issuer")?.tls_peer();
        Ok(peer.and_then(|peer| peer.issuer.clone()).ok_or(Errno::Enxio)?)
    }

    fn security_context(&mut self) -> Result<String, ImportError> {
        Ok(self.client("client.security-context")?.security_context.clone().ok_or(Errno::Enxio)?)
    }

    fn disconnect(&mut self, ending: Ending) -> Result<(), ImportError> {
        self.allow(OPEN_DATA.or(Phase::BEFORE))?;
        self.may(Power::Disconnect)?;
        self.call.client().ok_or(Errno::Enxio)?.end(match ending {
            Ending::AfterAnswers => api::Ending::AfterAnswers,
            Ending::AtOnce => api::Ending::AtOnce,
        });
        Ok(())
    }
}
