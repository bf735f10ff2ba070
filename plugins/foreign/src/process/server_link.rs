//! The way to the server for messages: the control socket, which all threads of the process share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context::Context;
use crate::wire::{MAX_TEXT, Packet, kind};

static CONTROL: OnceLock<OwnedFd> = OnceLock::new();
static VERBOSE: AtomicBool = AtomicBool::new(false);
static STDIO_SAFE: AtomicBool = AtomicBool::new(false);

/// Takes over the control socket. Called once.
pub(super) fn set_control(control: OwnedFd) {
    let _ = CONTROL.set(control);
}

/// The control socket.
pub(super) fn control() -> Option<BorrowedFd<'static>> {
    CONTROL.get().map(AsFd::as_fd)
}

pub(super) fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

pub(super) fn is_verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// Whether the plugin may use standard input and output now.
pub(super) fn set_stdio_safe(safe: bool) {
    STDIO_SAFE.store(safe, Ordering::Relaxed);
}

pub(super) fn is_stdio_safe() -> bool {
    STDIO_SAFE.load(Ordering::Relaxed)
}

/// Sends a packet. If the server has ended nobody needs it.
pub(super) fn send(packet: &Packet) {
    if let Some(control) = control() {
        let _ = packet.send(control);
    }
}

/// Sends a message for the log.
pub(super) fn message(kind: u8, text: &[u8]) {
    let connection = Context::current().map_or(0, |context| context.id);
    send(&Packet::new(kind).number(connection).text(&text[..text.len().min(MAX_TEXT)]));
}

/// An error message, as a plugin's own.
pub(super) fn error(text: &str) {
    message(kind::ERROR, text.as_bytes());
}
