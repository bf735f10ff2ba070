//! The functions of nbdkit's interface that are about a thread's connection: its export name and
//! its client, and those that end it or the server.
#![allow(unsafe_code, reason = "C calls these with pointers, and finds them by their names")]
#![allow(clippy::missing_safety_doc, reason = "nbdkit's manual pages say what the arguments have to be")]

use std::ffi::{c_char, c_int, c_void};

use super::context::Context;
use super::functions::{malloced, number_or_error};
use super::server_link::{self as link, error};
use super::sockaddr;
use crate::wire::{Packet, kind};

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_export_name() -> *const c_char {
    let Some(context) = Context::current() else {
        error("no connection in this thread");
        return std::ptr::null();
    };
    // The connection lives as long as the plugin's handle, and the name with it.
    context.export_name.get().map_or(std::ptr::null(), |name| name.as_ptr())
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_is_tls() -> c_int {
    match Context::current() {
        Some(context) => context.peer.tls.into(),
        None => number_or_error(Err("no connection in this thread".into())),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_peer_name(address: *mut c_void, length: *mut libc::socklen_t) -> c_int {
    let name = Context::current().and_then(|context| sockaddr::bytes(&context.peer.address));
    let Some(name) = name else {
        return number_or_error(Err("peer name is not available".into()));
    };
    // SAFETY: as for getpeername(2): the plugin passes a place and its length.
    unsafe {
        let room = (*length as usize).min(name.len());
        std::ptr::copy_nonoverlapping(name.as_ptr(), address.cast::<u8>(), room);
        *length = name.len() as libc::socklen_t;
    }
    0
}

/// One of the numbers that the kernel tells of a client on a Unix socket.
fn credential(which: usize, what: &str) -> i64 {
    let context = Context::current();
    match context.map(|context| context.peer.credentials[which]) {
        Some(id) if id >= 0 => id,
        _ => number_or_error(Err(format!("peer {what} is only available for clients on Unix sockets"))),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_peer_pid() -> i64 {
    credential(0, "pid")
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_peer_uid() -> i64 {
    credential(1, "uid")
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_peer_gid() -> i64 {
    credential(2, "gid")
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_peer_security_context() -> *mut c_char {
    match Context::current().and_then(|context| context.peer.security_context.clone()) {
        Some(text) => malloced(&text),
        None => {
            error("peer security context is not available");
            std::ptr::null_mut()
        }
    }
}

/// The subject in the client's certificate. Empty without one, as in nbdkit.
#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_peer_tls_dn() -> *mut c_char {
    certificate_name(0)
}

/// The issuer of the client's certificate. Empty without one, as in nbdkit.
#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_peer_tls_issuer_dn() -> *mut c_char {
    certificate_name(1)
}

/// 0 for the subject, 1 for the issuer.
fn certificate_name(which: usize) -> *mut c_char {
    let context = Context::current();
    let name = context.as_ref().and_then(|context| context.peer.names.get(which)?.as_deref());
    malloced(name.unwrap_or_default())
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_shutdown() {
    link::send(&Packet::new(kind::SHUTDOWN));
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_disconnect(force: c_int) {
    if let Some(context) = Context::current() {
        link::send(&Packet::new(kind::DISCONNECT).number(context.id).byte(u8::from(force != 0)));
    }
}
