//! What the functions that a plugin calls have to know: the connection that the thread serves, and
//! the error that the plugin has set.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::{Arc, Mutex, OnceLock};

use rbdkit_plugin_api::lock;

use crate::peer::Peer;

/// A connection, as the plugin may ask for it.
pub(super) struct Context {
    /// The server's number of the connection.
    pub(super) id: u64,
    pub(super) peer: Peer,
    /// Set when the export is opened.
    pub(super) export_name: OnceLock<CString>,
    kept: Strings,
}

/// Strings that live as long as their owner.
#[derive(Default)]
pub(super) struct Strings(Mutex<Vec<CString>>);

impl Strings {
    pub(super) const fn new() -> Strings {
        Strings(Mutex::new(Vec::new()))
    }

    /// Keeps a string. The pointer is valid as long as `self`.
    pub(super) fn keep(&self, text: CString) -> *const c_char {
        // Moving a `CString` does not move its bytes.
        let pointer = text.as_ptr();
        lock(&self.0).push(text);
        pointer
    }
}

/// Strings that were kept outside of a connection.
static FOR_EVER: Strings = Strings::new();

thread_local! {
    static CONTEXT: RefCell<Option<Arc<Context>>> = const { RefCell::new(None) };
    static ERROR: Cell<c_int> = const { Cell::new(0) };
}

impl Context {
    pub(super) fn new(id: u64, peer: Peer) -> Context {
        Context { id, peer, export_name: OnceLock::new(), kept: Strings::default() }
    }

    /// Makes it the connection of this thread.
    pub(super) fn enter(self: &Arc<Context>) {
        CONTEXT.set(Some(Arc::clone(self)));
    }

    /// The connection of this thread.
    pub(super) fn current() -> Option<Arc<Context>> {
        CONTEXT.with_borrow(Option::clone)
    }
}

/// Keeps a string as long as the connection of this thread, or for ever if it has none.
pub(super) fn intern(text: CString) -> *const c_char {
    match Context::current() {
        Some(context) => context.kept.keep(text),
        None => FOR_EVER.keep(text),
    }
}

/// What `nbdkit_set_error` does.
pub(super) fn set_error(errno: c_int) {
    ERROR.set(errno);
}

/// The error that the plugin has set on this thread since the last call; 0 for none.
pub(super) fn take_error() -> c_int {
    ERROR.replace(0)
}

/// A copy of a plugin's text. None for a null pointer.
///
/// # Safety
/// The pointer is null or a C string.
#[allow(unsafe_code, reason = "a plugin's texts are C strings")]
// SAFETY: the caller's part is above.
pub(super) unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: the caller says so.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}
