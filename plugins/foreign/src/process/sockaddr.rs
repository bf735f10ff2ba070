//! A client's address as C has it.

use std::net::SocketAddr;

use crate::peer::Where;

/// `struct sockaddr` of the address; none if it is not known.
pub(super) fn bytes(address: &Where) -> Option<Vec<u8>> {
    let family = |family: libc::c_int| (family as u16).to_ne_bytes().to_vec();
    Some(match address {
        Where::Unknown => return None,
        Where::Unix => family(libc::AF_UNIX),
        Where::Ip(SocketAddr::V4(address)) => {
            let mut bytes = family(libc::AF_INET);
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.resize(size_of::<libc::sockaddr_in>(), 0);
            bytes
        }
        Where::Ip(SocketAddr::V6(address)) => {
            let mut bytes = family(libc::AF_INET6);
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.flowinfo().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend(address.scope_id().to_ne_bytes());
            bytes
        }
        Where::Vsock(cid, port) => {
            let mut bytes = family(libc::AF_VSOCK);
            bytes.extend([0; 2]);
            bytes.extend(port.to_ne_bytes());
            bytes.extend(cid.to_ne_bytes());
            bytes.resize(16, 0);
            bytes
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_length_that_c_expects() {
        let length = |text: &str| bytes(&Where::Ip(text.parse().unwrap())).unwrap().len();
        assert_eq!(length("127.0.0.1:10809"), size_of::<libc::sockaddr_in>());
        assert_eq!(length("[::1]:10809"), size_of::<libc::sockaddr_in6>());
        let loopback = bytes(&Where::Ip("127.0.0.1:258".parse().unwrap())).unwrap();
        assert_eq!(loopback[2..8], [1, 2, 127, 0, 0, 1]);
    }
}
