//! Short and long names.
//!
//! Every file has a short name of 8 and 3 characters, for programs that know no others, and a long
//! one. The short names of a directory differ.

use std::collections::HashSet;

/// A name of 8 and 3 characters, padded with blanks.
pub(crate) type ShortName = [u8; 11];

/// The longest name on the disk, in UTF-16 code units.
pub(crate) const MAX_UNITS: usize = 255;

/// A file's two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) short: ShortName,
    /// In UTF-16.
    pub(crate) long: Vec<u16>,
}

/// Gives each file of a directory a short name that no other has.
pub(crate) fn convert<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Names> {
    let mut taken = HashSet::new();
    names
        .map(|name| {
            let plain = short(name);
            let mut own = plain;
            let mut number = 0;
            while !taken.insert(own) {
                number += 1;
                own = numbered(plain, number);
            }
            Names { short: own, long: name.encode_utf16().take(MAX_UNITS).collect() }
        })
        .collect()
}

/// The short name: what comes before the first character that it cannot have, and the same of what
/// comes after the last dot, both in capital letters.
fn short(name: &str) -> ShortName {
    let mut short = [b' '; 11];
    let (base, extension) = match name.rsplit_once('.') {
        Some((base, extension)) => (base, extension),
        None => (name, ""),
    };
    let put = |place: &mut [u8], text: &str| {
        let usable = text.bytes().take_while(|byte| is_usable(*byte));
        for (place, byte) in place.iter_mut().zip(usable) {
            *place = byte.to_ascii_uppercase();
        }
    };
    put(&mut short[..8], base);
    put(&mut short[8..], extension);
    if short[0] == b' ' {
        // A name has at least one character.
        short[0] = b'_';
    }
    short
}

/// Whether a short name may have this byte. `~` is left to [`numbered`].
fn is_usable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'()-@^_`{}".contains(&byte)
}

/// The short name with a number at its end: `NAME~12`.
fn numbered(plain: ShortName, number: u32) -> ShortName {
    let tail = format!("~{number}");
    let used = plain[..8].iter().position(|byte| *byte == b' ').unwrap_or(8);
    let kept = used.min(8_usize.saturating_sub(tail.len()));
    let mut own = plain;
    own[kept..8].fill(b' ');
    for (place, byte) in own[kept..8].iter_mut().zip(tail.bytes()) {
        *place = byte;
    }
    own
}

/// The checksum over a short name in the entries of its long name.
pub(crate) fn checksum(short: &ShortName) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shorts(names: &[&str]) -> Vec<String> {
        convert(names.iter().copied()).iter().map(|one| String::from_utf8(one.short.to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_short_name_is_the_beginning_in_capital_letters() {
        let pairs = [
            ("readme.txt", "README  TXT"),
            ("a", "A          "),
            ("archive.tar.gz", "ARCHIVE GZ "),
            (".bashrc", "_       BAS"),
            ("ä.txt", "_       TXT"),
            ("long name.html", "LONG    HTM"),
            ("ends.", "ENDS       "),
        ];
        for (name, short) in pairs {
            assert_eq!(shorts(&[name]), [short]);
        }
    }

    #[test]
    fn short_names_of_a_directory_differ() {
        assert_eq!(
            shorts(&["longname1.txt", "longname2.txt", "longname3.txt", "a b", "a c"]),
            ["LONGNAMETXT", "LONGNA~1TXT", "LONGNA~2TXT", "A          ", "A~1        "]
        );
        let many: Vec<String> = (0..20_000).map(|number| format!("same name {number}")).collect();
        let names = convert(many.iter().map(String::as_str));
        let different: HashSet<ShortName> = names.iter().map(|one| one.short).collect();
        assert_eq!(different.len(), many.len());
    }

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        // Worked out by hand for a name with one letter: 'A' and ten blanks.
        let by_hand = [b'A', b' ', b' ', b' ', b' ', b' ', b' ', b' ', b' ', b' ', b' '];
        let expected =
            by_hand.iter().fold(0_u32, |sum, byte| (((sum & 1) << 7) + (sum >> 1) + u32::from(*byte)) & 0xff);
        assert_eq!(u32::from(checksum(&by_hand)), expected);
    }
}
