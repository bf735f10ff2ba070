//! The identifiers in GPT.

use std::io;

use rbdkit_plugin_api::hex;

/// An identifier as it is on the disk: the first three groups are little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

/// Where each byte of the text stands on the disk.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// Linux filesystem data.
    pub const LINUX: Guid =
        Guid([0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);

    /// Reads `01234567-89AB-CDEF-0123-456789ABCDEF`, also in braces. None: it is something else.
    pub fn parse(text: &str) -> Option<Guid> {
        let text = text.strip_prefix('{').map_or(Some(text), |rest| rest.strip_suffix('}'))?;
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return None;
        }
        let written: [u8; 16] = hex::decode(&groups.concat())?;
        let mut guid = [0; 16];
        for (byte, place) in written.into_iter().zip(ORDER) {
            guid[place] = byte;
        }
        Some(Guid(guid))
    }

    /// A new one that nobody else has (version 4, random).
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> io::Result<Guid> {
        let mut guid = [0; 16];
        getrandom::fill(&mut guid)?;
        guid[7] = guid[7] & 0x0f | 0x40;
        guid[8] = guid[8] & 0x3f | 0x80;
        Ok(Guid(guid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_groups_are_little_endian() {
        assert_eq!(Guid::parse("0FC63DAF-8483-4772-8E79-3D69D8477DE4"), Some(Guid::LINUX));
        assert_eq!(Guid::parse("{0fc63daf-8483-4772-8e79-3d69d8477de4}"), Some(Guid::LINUX));
        for wrong in [
            "",
            "{}",
            "0FC63DAF-8483-4772-8E79-3D69D8477DE",
            "0FC63DAF-8483-4772-8E79-3D69D8477DEG",
            "0FC63DAF84834772-8E79-3D69D8477DE4xx",
            "{0FC63DAF-8483-4772-8E79-3D69D8477DE4",
            "0FC63DAF-8483-4772-8E79-3D69D8477DE4}",
            "0FC63DAF-8483-47728E79-3D69D8477DE4-",
            "0FC63DAF-8483-4772-8E79-+D69D8477DE4",
            "0FC63DAF-8483-4772-8E79-3D69D8477Dä",
        ] {
            assert_eq!(Guid::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn random_ones_differ_and_say_that_they_are_random() {
        let (one, other) = (Guid::random().unwrap(), Guid::random().unwrap());
        assert_ne!(one, other);
        assert!([one, other].iter().all(|guid| guid.0[7] >> 4 == 4 && guid.0[8] >> 6 == 2));
    }
}
