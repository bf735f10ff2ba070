//! Numbers and texts in a header.

use super::Error;

/// The fields of a header or table. Every access is checked: an offset beyond the end is an error
/// with a line that says which header is too short.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    order: Order,
    what: &'a str,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Little,
    Big,
}

impl<'a> Fields<'a> {
    /// Little-endian fields. `what` names the bytes in errors: "the header".
    pub fn little(bytes: &'a [u8], what: &'a str) -> Fields<'a> {
        Fields { bytes, order: Order::Little, what }
    }

    /// Big-endian fields.
    pub fn big(bytes: &'a [u8], what: &'a str) -> Fields<'a> {
        Fields { bytes, order: Order::Big, what }
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// `length` bytes from `at` on.
    pub fn bytes(&self, at: usize, length: usize) -> Result<&'a [u8], Error> {
        at.checked_add(length).and_then(|end| self.bytes.get(at..end)).ok_or_else(|| {
            Error::Image(format!("{} has {} bytes, and a field at {at} of {length} bytes", self.what, self.bytes.len()))
        })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(at, N)?);
        if matches!(self.order, Order::Big) {
            array.reverse();
        }
        Ok(array)
    }

    /// The byte at `at`.
    pub fn u8(&self, at: usize) -> Result<u8, Error> {
        self.array(at).map(|[byte]| byte)
    }

    /// The number of 16 bits at `at`.
    pub fn u16(&self, at: usize) -> Result<u16, Error> {
        self.array(at).map(u16::from_le_bytes)
    }

    /// The number of 32 bits at `at`.
    pub fn u32(&self, at: usize) -> Result<u32, Error> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// The number of 64 bits at `at`.
    pub fn u64(&self, at: usize) -> Result<u64, Error> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// The text in `length` bytes from `at` on: up to the first zero byte, or all of it.
    pub fn text(&self, at: usize, length: usize) -> Result<&'a [u8], Error> {
        let bytes = self.bytes(at, length)?;
        Ok(bytes.split(|byte| *byte == 0).next().unwrap_or(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_order_of_their_header() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let (little, big) = (Fields::little(&bytes, "it"), Fields::big(&bytes, "it"));
        assert_eq!((little.u8(8), big.u8(8)), (Ok(9), Ok(9)));
        assert_eq!((little.u16(1), big.u16(1)), (Ok(0x0302), Ok(0x0203)));
        assert_eq!((little.u32(1), big.u32(1)), (Ok(0x0504_0302), Ok(0x0203_0405)));
        assert_eq!((little.u64(1), big.u64(1)), (Ok(0x0908_0706_0504_0302), Ok(0x0203_0405_0607_0809)));
        assert_eq!(big.text(0, 9), Ok(&bytes[..]));
        assert_eq!(Fields::big(b"ab\0c", "it").text(0, 4), Ok(&b"ab"[..]));
    }

    #[test]
    fn a_field_beyond_the_end_is_an_error_that_names_the_header() {
        let fields = Fields::big(&[0; 9], "the header");
        assert_eq!(fields.u64(2), Err(Error::image("the header has 9 bytes, and a field at 2 of 8 bytes")));
        assert!(fields.bytes(usize::MAX, 2).is_err());
        assert!(fields.text(9, 1).is_err());
    }
}
