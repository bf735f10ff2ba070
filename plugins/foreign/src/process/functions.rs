//! The functions that nbdkit's server exports to its plugins, apart from those with a variable
//! number of arguments (`shim.c`). The dynamic linker binds a plugin's calls to them.
//!
//! Each is as nbdkit's manual page of the same name says.
#![allow(unsafe_code, reason = "C calls these with pointers, and finds them by their names")]
#![allow(clippy::missing_safety_doc, reason = "nbdkit's manual pages say what the arguments have to be")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rbdkit_plugin_api::passwords;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::context::{intern, set_error};
use super::parse;
use super::server_link::{self as link, error};
use crate::wire::kind;

unsafe extern "C" {
    fn rbdkit_foreign_keep();
}

/// Makes the linker take the functions of `shim.c`.
pub(super) fn keep() {
    // SAFETY: it does nothing.
    unsafe { rbdkit_foreign_keep() };
}

/// The text of a C string; none for a null pointer.
///
/// # Safety
/// The pointer is null or a C string that lives as long as the result is used.
pub(super) unsafe fn bytes<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: the caller says so.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// The same as UTF-8; what is not becomes a question mark, which no number has.
pub(super) unsafe fn string(text: *const c_char) -> String {
    // SAFETY: as `bytes`.
    String::from_utf8_lossy(unsafe { bytes(text) }.unwrap_or_default()).into_owned()
}

/// A copy for the plugin, which frees it.
pub(super) fn malloced(text: &[u8]) -> *mut c_char {
    // SAFETY: the memory has room for the text and its end, and is not used by anybody else.
    unsafe {
        let copy = libc::malloc(text.len() + 1).cast::<u8>();
        if copy.is_null() {
            error("malloc: out of memory");
            return std::ptr::null_mut();
        }
        std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
        copy.add(text.len()).write(0);
        copy.cast()
    }
}

/// For `shim.c`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rbdkit_foreign_error(text: *const c_char) {
    // SAFETY: the shim passes a C string.
    link::message(kind::ERROR, unsafe { bytes(text) }.unwrap_or_default());
}

/// For `shim.c`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rbdkit_foreign_debug(text: *const c_char) {
    // SAFETY: the shim passes a C string.
    link::message(kind::DEBUG, unsafe { bytes(text) }.unwrap_or_default());
}

/// For `shim.c`.
#[unsafe(no_mangle)]
pub extern "C" fn rbdkit_foreign_is_verbose() -> c_int {
    link::is_verbose().into()
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_set_error(errno: c_int) {
    set_error(errno);
}

/// One function for each type of a number.
macro_rules! parse_functions {
    ($($name:ident $number:ty;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(what: *const c_char, text: *const c_char, result: *mut $number) -> c_int {
            // SAFETY: the plugin passes C strings.
            let (what, text) = unsafe { (string(what), string(text)) };
            match parse::whole(&text, <$number>::MIN.into(), <$number>::MAX.into()) {
                Ok(number) => {
                    if !result.is_null() {
                        // SAFETY: the plugin passes a place for the number. `number` is in range.
                        unsafe { *result = number as $number };
                    }
                    0
                }
                Err(wrong) => {
                    error(&format!("{what}: could not parse number: \"{text}\": {wrong}"));
                    -1
                }
            }
        }
    )*};
}

parse_functions! {
    nbdkit_parse_int c_int;
    nbdkit_parse_unsigned c_uint;
    nbdkit_parse_int8_t i8;
    nbdkit_parse_uint8_t u8;
    nbdkit_parse_int16_t i16;
    nbdkit_parse_uint16_t u16;
    nbdkit_parse_int32_t i32;
    nbdkit_parse_uint32_t u32;
    nbdkit_parse_int64_t i64;
    nbdkit_parse_uint64_t u64;
}

/// The number, or -1 after a message.
pub(super) fn number_or_error<T: From<i8>>(result: Result<T, String>) -> T {
    result.unwrap_or_else(|wrong| {
        error(&wrong);
        T::from(-1)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_parse_size(text: *const c_char) -> i64 {
    // SAFETY: the plugin passes a C string.
    number_or_error(parse::size(&unsafe { string(text) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_parse_bool(text: *const c_char) -> c_int {
    // SAFETY: the plugin passes a C string.
    number_or_error(parse::boolean(&unsafe { string(text) }).map(c_int::from))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_parse_probability(what: *const c_char, text: *const c_char, result: *mut f64) -> c_int {
    // SAFETY: the plugin passes C strings.
    let (what, text) = unsafe { (string(what), string(text)) };
    match parse::probability(&text) {
        Ok(value) => {
            if !result.is_null() {
                // SAFETY: the plugin passes a place for the number.
                unsafe { *result = value };
            }
            0
        }
        Err(wrong) => number_or_error(Err(format!("{what}: {wrong}"))),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_parse_delay(
    what: *const c_char,
    text: *const c_char,
    seconds: *mut c_uint,
    nanoseconds: *mut c_uint,
) -> c_int {
    // SAFETY: the plugin passes C strings.
    let (what, text) = unsafe { (string(what), string(text)) };
    match parse::delay(&text) {
        Ok(delay) => {
            for (place, value) in [(seconds, delay.0), (nanoseconds, delay.1)] {
                if !place.is_null() {
                    // SAFETY: the plugin passes a place for the number, or null.
                    unsafe { *place = value };
                }
            }
            0
        }
        Err(wrong) => number_or_error(Err(format!("{what}: {wrong}"))),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_stdio_safe() -> c_int {
    link::is_stdio_safe().into()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_read_password(value: *const c_char, password: *mut *mut c_char) -> c_int {
    // SAFETY: the plugin passes a C string.
    let value = unsafe { bytes(value) }.unwrap_or_default();
    if value == b"-" && !link::is_stdio_safe() {
        error("stdin is not available for reading the password");
        return -1;
    }
    match passwords::read("password", OsStr::from_bytes(value)) {
        Ok(secret) => {
            let copy = malloced(secret.bytes());
            // SAFETY: the plugin passes a place for the pointer.
            unsafe { *password = copy };
            if copy.is_null() { -1 } else { 0 }
        }
        Err(wrong) => number_or_error(Err(wrong.to_string())),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_absolute_path(path: *const c_char) -> *mut c_char {
    // SAFETY: the plugin passes a C string.
    let path = unsafe { bytes(path) }.unwrap_or_default();
    let path = Path::new(OsStr::from_bytes(path));
    match std::env::current_dir() {
        _ if path.as_os_str().is_empty() => error("cannot convert null or empty path to an absolute path"),
        _ if path.is_absolute() => return malloced(path.as_os_str().as_bytes()),
        Ok(directory) => return malloced(directory.join(path).as_os_str().as_bytes()),
        Err(wrong) => error(&format!("getcwd: {wrong}")),
    }
    std::ptr::null_mut()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_realpath(path: *const c_char) -> *mut c_char {
    // SAFETY: the plugin passes a C string.
    let path = unsafe { bytes(path) }.unwrap_or_default();
    match Path::new(OsStr::from_bytes(path)).canonicalize() {
        Ok(path) => malloced(path.as_os_str().as_bytes()),
        Err(wrong) => {
            error(&format!("realpath: {}: {wrong}", String::from_utf8_lossy(path)));
            std::ptr::null_mut()
        }
    }
}

/// Sleeps, and ends early if the server has ended: the other end of the control socket is closed.
#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_nanosleep(seconds: c_uint, nanoseconds: c_uint) -> c_int {
    if seconds >= i32::MAX as c_uint {
        error("sleep request is too long");
        set_error(libc::EINVAL);
        return -1;
    }
    let time = Duration::from_secs(seconds.into()) + Duration::from_nanos(nanoseconds.into());
    let end = std::time::Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let Some(control) = link::control() else { return -1 };
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::from_borrowed_fd(control, PollFlags::empty())], Some(&timeout)) {
            Ok(0) => return 0,
            Err(rustix::io::Errno::INTR) => {}
            _ => {
                error("aborting sleep because of server shut down");
                set_error(libc::ESHUTDOWN);
                return -1;
            }
        }
    }
}

/// Keeps bytes as a C string. They end at their first zero byte.
fn keep_text(text: &[u8]) -> *const c_char {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    intern(CString::new(&text[..end]).unwrap_or_default())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_strdup_intern(text: *const c_char) -> *const c_char {
    // SAFETY: the plugin passes a C string.
    match unsafe { bytes(text) } {
        Some(text) => keep_text(text),
        None => {
            error("nbdkit_strdup_intern: no string given");
            set_error(libc::EINVAL);
            std::ptr::null()
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_strndup_intern(text: *const c_char, most: usize) -> *const c_char {
    if text.is_null() {
        error("nbdkit_strndup_intern: no string given");
        set_error(libc::EINVAL);
        return std::ptr::null();
    }
    // SAFETY: the plugin passes a string that has `most` bytes or ends before.
    keep_text(unsafe { std::slice::from_raw_parts(text.cast(), libc::strnlen(text, most)) })
}

/// The time in UTC. The text lives until this thread calls it again.
#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_timestamp() -> *const c_char {
    thread_local! {
        static TEXT: std::cell::RefCell<[u8; 64]> = const { std::cell::RefCell::new([0; 64]) };
    }
    TEXT.with_borrow_mut(|text| {
        // SAFETY: all of these write to memory of this function or thread. The format fits.
        unsafe {
            let mut now: libc::timespec = std::mem::zeroed();
            let mut parts: libc::tm = std::mem::zeroed();
            libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
            libc::gmtime_r(&raw const now.tv_sec, &raw mut parts);
            libc::strftime(text.as_mut_ptr().cast(), text.len(), c"%Y-%m-%d %H:%M:%S UTC".as_ptr(), &raw const parts);
        }
        text.as_ptr().cast()
    })
}

/// The name that messages begin with.
#[unsafe(no_mangle)]
pub extern "C" fn nbdkit_name() -> *const c_char {
    c"nbdkit".as_ptr()
}
