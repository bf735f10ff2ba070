//! The disk that clients without TLS see: a message.

/// The size of the disk in bytes.
pub const SIZE: usize = 512;

/// What the disk says unless the operator chose another text.
pub const DEFAULT: &str = "This server has useful data only for clients that use TLS.\n";

/// The disk with this text: cut or filled up with zeroes.
pub fn disk(text: &str) -> [u8; SIZE] {
    let mut disk = [0; SIZE];
    let length = text.len().min(SIZE);
    disk[..length].copy_from_slice(&text.as_bytes()[..length]);
    disk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_filled_up_and_a_long_one_is_cut() {
        let short = disk("hello");
        assert_eq!((&short[..5], short[5..].iter().any(|byte| *byte != 0)), (&b"hello"[..], false));
        assert_eq!(disk(""), [0; SIZE]);
        assert_eq!(disk(&"x".repeat(600)), [b'x'; SIZE]);
        assert!(DEFAULT.len() < SIZE);
    }
}
