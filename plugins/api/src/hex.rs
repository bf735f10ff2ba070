//! Bytes as hexadecimal digits, for digests.

/// Two lower-case digits for each byte.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads digits in either case. None unless there are exactly two for each of the `N` bytes.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    decode_into(text.as_bytes(), &mut bytes).map(|()| bytes)
}

/// [`decode`] into bytes that the caller has, for example locked ones. After None they have
/// anything.
pub fn decode_into(digits: &[u8], bytes: &mut [u8]) -> Option<()> {
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_they_are_written() {
        let bytes = [0x00, 0x7f, 0xa0, 0xff];
        assert_eq!(encode(bytes), "007fa0ff");
        assert_eq!(decode("007fa0ff"), Some(bytes));
        assert_eq!(decode("007FA0Ff"), Some(bytes));
        for text in ["", "007fa0f", "007fa0ff0", "007fa0ff00", "007fa0fg", "+07fa0ff", "é07fa0f"] {
            assert_eq!(decode::<4>(text), None, "{text}");
        }
    }
}
