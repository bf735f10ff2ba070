//! Who a client is, as the server tells the plugin's process.

use std::net::SocketAddr;

use rbdkit_plugin_api::{Client, Peer as Address};

use crate::wire::{Fields, Packet};

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The address; none if there is none or it is not known.
    pub(crate) address: Where,
    /// Process, user and group; -1 where they are not known.
    pub(crate) credentials: [i64; 3],
    pub(crate) security_context: Option<Vec<u8>>,
    pub(crate) tls: bool,
    /// The names in the client's certificate, as RFC 4514 writes them: the subject's and the
    /// issuer's.
    pub(crate) names: [Option<Vec<u8>>; 2],
}

/// The address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Unknown,
    Unix,
    Ip(SocketAddr),
    Vsock(u32, u32),
}

impl Peer {
    pub(crate) fn of(client: &Client) -> Peer {
        let address = match client.peer {
            Address::Ip(address) => Where::Ip(address),
            Address::Unix => Where::Unix,
            Address::Vsock { cid, port } => Where::Vsock(cid, port),
            Address::Unknown => Where::Unknown,
        };
        let credentials = client.credentials.map_or([-1; 3], |(pid, uid, gid)| [pid, uid, gid]);
        let security_context = client.security_context.clone().map(String::into_bytes);
        let names = client.tls_peer().map_or([None, None], |peer| [peer.subject.clone(), peer.issuer.clone()]);
        let names = names.map(|name| name.map(String::into_bytes));
        Peer { address, credentials, security_context, tls: client.is_tls(), names }
    }

    pub(crate) fn write(&self, packet: Packet) -> Packet {
        let packet = match self.address {
            Where::Unknown => packet.byte(0),
            Where::Unix => packet.byte(1),
            Where::Ip(address) => packet.byte(2).text(address.to_string().as_bytes()),
            Where::Vsock(cid, port) => packet.byte(3).number(cid.into()).number(port.into()),
        };
        let packet = self.credentials.iter().fold(packet, |packet, id| packet.signed(*id));
        let packet = packet.optional(self.security_context.as_deref()).byte(self.tls.into());
        self.names.iter().fold(packet, |packet, name| packet.optional(name.as_deref()))
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Peer> {
        let address = match fields.byte()? {
            0 => Where::Unknown,
            1 => Where::Unix,
            2 => Where::Ip(std::str::from_utf8(fields.text()?).ok()?.parse().ok()?),
            _ => Where::Vsock(fields.number()? as u32, fields.number()? as u32),
        };
        let credentials = [fields.signed()?, fields.signed()?, fields.signed()?];
        let security_context = fields.optional()?.map(<[u8]>::to_vec);
        let tls = fields.byte()? != 0;
        let mut name = || Some(fields.optional()?.map(<[u8]>::to_vec));
        let names = [name()?, name()?];
        Some(Peer { address, credentials, security_context, tls, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_arrives_as_it_was_sent() {
        let ip = Where::Ip("[fe80::1]:10809".parse().unwrap());
        for address in [Where::Unknown, Where::Unix, ip, Where::Vsock(2, 10809)] {
            let security_context = Some(b"a_t".to_vec());
            let names = [Some(b"CN=me".to_vec()), None];
            let peer = Peer { address, credentials: [5, -1, 0], security_context, tls: true, names };
            let packet = peer.write(Packet::fields());
            assert_eq!(Peer::read(&mut Fields::new(packet.bytes())), Some(peer));
        }
    }
}
