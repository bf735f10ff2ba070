//! Addresses of AF_VSOCK, the sockets between virtual machines and their host.
#![allow(unsafe_code, reason = "rustix does not have these addresses")]

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketAddrAny};

/// An address of AF_VSOCK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockAddress {
    /// The machine: its context id.
    pub cid: u32,
    /// The port.
    pub port: u32,
}

impl VsockAddress {
    /// For a socket that listens to all machines. Port 2^32 - 1 is any that is free.
    pub fn any(port: u32) -> VsockAddress {
        VsockAddress { cid: libc::VMADDR_CID_ANY, port }
    }

    /// What the kernel reported. None for an address of another family.
    pub fn of(address: &SocketAddrAny) -> Option<VsockAddress> {
        let length = address.addr_len() as usize;
        if address.address_family() != AddressFamily::VSOCK || length < size_of::<libc::sockaddr_vm>() {
            return None;
        }
        // SAFETY: `as_ptr` points to `length` bytes that are initialized, and `length` is at least
        // the size of the structure, all of whose values are valid. The address may be unaligned.
        let raw = unsafe { address.as_ptr().cast::<libc::sockaddr_vm>().read_unaligned() };
        Some(VsockAddress { cid: raw.svm_cid, port: raw.svm_port })
    }
}

// SAFETY: the closure gets a pointer to a whole `sockaddr_vm` and its size. The structure lives
// until the closure has returned.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        // SAFETY: the structure consists of integers, for which zero is valid.
        let mut raw: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        raw.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        raw.svm_cid = self.cid;
        raw.svm_port = self.port;
        f((&raw const raw).cast(), size_of::<libc::sockaddr_vm>() as SocketAddrLen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_it_was() {
        let address = VsockAddress { cid: 3, port: 0x0102_0304 };
        let any = address.as_any();
        assert_eq!(any.address_family(), AddressFamily::VSOCK);
        assert_eq!(VsockAddress::of(&any), Some(address));
        let ip = std::net::SocketAddr::from(([127, 0, 0, 1], 1)).as_any();
        assert_eq!(VsockAddress::of(&ip), None);
    }
}
