//! The functions of nbdkit's interface that write dumps of bytes into the log.
#![allow(unsafe_code, reason = "C calls these with pointers, and finds them by their names")]
#![allow(clippy::missing_safety_doc, reason = "nbdkit's manual pages say what the arguments have to be")]

use std::ffi::{c_char, c_void};
use std::fmt::Write as _;

use super::functions::string;
use super::server_link as link;
use crate::wire::kind;

/// The lines of a hexadecimal dump.
fn dump(buffer: &[u8], prefix: &str, start: u64, mark: impl Fn(usize) -> bool) -> Vec<String> {
    let row = |(index, bytes): (usize, &[u8])| {
        let mut line = format!("{prefix}{:08x}: ", start + 16 * index as u64);
        for at in 0..16 {
            let _ = match bytes.get(at) {
                Some(byte) if mark(16 * index + at) => write!(line, "{byte:02x} "),
                _ => write!(line, "   "),
            };
            if at == 7 {
                line.push(' ');
            }
        }
        line.push_str(" |");
        for at in 0..16 {
            line.push(match bytes.get(at) {
                Some(byte) if mark(16 * index + at) && (32..127).contains(byte) => *byte as char,
                Some(_) if mark(16 * index + at) => '.',
                _ => ' ',
            });
        }
        line + "|"
    };
    buffer.chunks(16).enumerate().map(row).collect()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_debug_hexdump(buffer: *const c_void, length: usize, prefix: *const c_char, start: u64) {
    if link::is_verbose() && length > 0 {
        // SAFETY: the plugin passes so many bytes, and a C string or null.
        let (buffer, prefix) = unsafe { (std::slice::from_raw_parts(buffer.cast::<u8>(), length), string(prefix)) };
        dump(buffer, &prefix, start, |_| true).iter().for_each(|line| link::message(kind::DEBUG, line.as_bytes()));
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nbdkit_debug_hexdiff(
    first: *const c_void,
    second: *const c_void,
    length: usize,
    prefix: *const c_char,
    start: u64,
) {
    if !link::is_verbose() || length == 0 {
        return;
    }
    // SAFETY: the plugin passes so many bytes of both, and a C string or null.
    let (first, second, prefix) = unsafe {
        let slice = |buffer: *const c_void| std::slice::from_raw_parts(buffer.cast::<u8>(), length);
        (slice(first), slice(second), string(prefix))
    };
    let old = dump(first, &prefix, start, |_| true);
    let new = dump(second, &prefix, start, |at| first[at] != second[at]);
    for ((old, new), at) in old.iter().zip(&new).zip((0..length).step_by(16)) {
        let end = length.min(at + 16);
        if first[at..end] == second[at..end] {
            link::message(kind::DEBUG, format!(" {old}").as_bytes());
        } else {
            link::message(kind::DEBUG, format!("-{old}").as_bytes());
            link::message(kind::DEBUG, format!("+{new}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::dump;

    #[test]
    fn a_dump_has_nbdkits_form() {
        let lines = dump(b"12345678123456781234567812345678", "data: ", 0, |_| true);
        assert_eq!(lines[0], "data: 00000000: 31 32 33 34 35 36 37 38  31 32 33 34 35 36 37 38  |1234567812345678|");
        assert_eq!(lines.len(), 2);
        assert_eq!(dump(b"\x00a", "", 16, |_| true)[0].len(), lines[0].len() - "data: ".len());
    }
}
