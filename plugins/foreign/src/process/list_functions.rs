//! The functions of nbdkit's interface that fill and read lists of extents and of exports.
#![allow(unsafe_code, reason = "C calls these with pointers, and finds them by their names")]
#![allow(clippy::missing_safety_doc, reason = "nbdkit's manual pages say what the arguments have to be")]

use std::ffi::{c_char, c_int, c_void};

use super::context::set_error;
use super::extents::{Exports, Extents, Wrong};
use super::functions::bytes;
use super::server_link::error;

/// 0, or -1 after the message of what was wrong.
fn taken(result: Result<(), Wrong>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(Wrong { errno, message }) => {
            error(&message);
            set_error(errno);
            -1
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_add_extent(list: *mut c_void, offset: u64, length: u64, kind: u32) -> c_int {
    // SAFETY: the plugin passes the list that its `extents` got.
    taken(unsafe { &mut *list.cast::<Extents>() }.add(offset, length, kind))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_add_export(
    list: *mut c_void,
    name: *const c_char,
    description: *const c_char,
) -> c_int {
    // SAFETY: the plugin passes the list that its `list_exports` got, and C strings.
    unsafe {
        let (name, description) = (bytes(name).unwrap_or_default(), bytes(description));
        taken((*list.cast::<Exports>()).add(name, description))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_use_default_export(list: *mut c_void) -> c_int {
    // SAFETY: the plugin passes the list that its `list_exports` got.
    unsafe { &mut *list.cast::<Exports>() }.use_default = true;
    0
}

/// For filters and for code that plugins share with them.
#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_extents_new(start: u64, end: u64) -> *mut c_void {
    Box::into_raw(Box::new(Extents::new(start, end))).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_extents_free(list: *mut c_void) {
    if !list.is_null() {
        // SAFETY: it comes from `nbdkit_extents_new` and is not used any more.
        drop(unsafe { Box::from_raw(list.cast::<Extents>()) });
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_extents_count(list: *const c_void) -> usize {
    // SAFETY: it comes from `nbdkit_extents_new`.
    unsafe { &*list.cast::<Extents>() }.as_slice().len()
}

/// `struct nbdkit_extent`.
#[repr(C)]
pub struct Extent {
    offset: u64,
    length: u64,
    kind: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_get_extent(list: *const c_void, index: usize) -> Extent {
    // SAFETY: it comes from `nbdkit_extents_new`.
    let (offset, length, kind) = unsafe { &*list.cast::<Extents>() }.as_slice()[index];
    Extent { offset, length, kind }
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_exports_new() -> *mut c_void {
    Box::into_raw(Box::<Exports>::default()).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_exports_free(list: *mut c_void) {
    if !list.is_null() {
        // SAFETY: it comes from `nbdkit_exports_new` and is not used any more.
        drop(unsafe { Box::from_raw(list.cast::<Exports>()) });
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_exports_count(list: *const c_void) -> usize {
    // SAFETY: it comes from `nbdkit_exports_new`.
    unsafe { &*list.cast::<Exports>() }.list.len()
}
