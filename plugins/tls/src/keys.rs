//! The file of pre-shared keys, as psktool writes it: lines of `user:key`, the key in hexadecimal
//! digits.

use std::collections::BTreeMap;
use std::path::Path;

use rbdkit_plugin_api::hex;
use zeroize::Zeroizing;

use crate::error::TlsError;
use crate::files::read_path;

/// The longest name of a user, in bytes: OpenSSL's limit on an identity.
const MAX_USER: usize = 128;

/// The longest key, in bytes: that of OpenSSL and of psktool.
const MAX_KEY: usize = 64;

/// The shortest key, in bytes. Whoever records a handshake with a shorter key can try all keys.
const MIN_KEY: usize = 16;

/// The longest file, in bytes: some 5,000 users with long keys.
const MAX_FILE: u64 = 1 << 20;

/// The users of a file, and their keys.
pub struct KeyFile {
    keys: BTreeMap<Vec<u8>, Zeroizing<Vec<u8>>>,
}

impl KeyFile {
    /// Reads the text of a file. An empty line is ignored, and so is one that begins with `#`.
    ///
    /// # Errors
    /// One line that names the first line of the file that is wrong, or says that there is none. It
    /// never contains a part of a key.
    pub fn parse(text: &[u8]) -> Result<KeyFile, TlsError> {
        if text.len() as u64 > MAX_FILE {
            return Err(TlsError::new("is longer than 1 MiB"));
        }
        let mut keys = BTreeMap::new();
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let wrong = |what: &str| TlsError::new(format!("line {number}: {what}"));
            // The key has no colon, so a user's name may have some.
            let colon = line.iter().rposition(|byte| *byte == b':');
            let (user, key) = colon.map(|at| (&line[..at], &line[at + 1..])).ok_or_else(|| wrong("is not USER:KEY"))?;
            if user.is_empty() || user.len() > MAX_USER || user.contains(&0) {
                return Err(wrong("the user's name has to have 1 to 128 bytes, none of them zero"));
            }
            let key = decode(key).ok_or_else(|| wrong("the key is not made of pairs of hexadecimal digits"))?;
            if !(MIN_KEY..=MAX_KEY).contains(&key.len()) {
                return Err(wrong("the key has to have 16 to 64 bytes, which are 32 to 128 digits"));
            }
            if keys.insert(user.to_vec(), key).is_some() {
                return Err(wrong("names a user that an earlier line names"));
            }
        }
        match keys.is_empty() {
            true => Err(TlsError::new("has no line USER:KEY")),
            false => Ok(KeyFile { keys }),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or what [`KeyFile::parse`] says.
    pub fn read(path: &Path) -> Result<KeyFile, TlsError> {
        let text = read_path(path).map(Zeroizing::new);
        KeyFile::parse(&text.map_err(|error| TlsError::new(error.to_string()))?)
    }

    /// The key of a user.
    pub(crate) fn key(&self, user: &[u8]) -> Option<&[u8]> {
        self.keys.get(user).map(|key| key.as_slice())
    }

    /// Whether the file has a key for this user.
    pub fn has(&self, user: &str) -> bool {
        self.keys.contains_key(user.as_bytes())
    }

    /// The user of a file with one line.
    pub fn only_user(&self) -> Option<String> {
        let user = self.keys.keys().next().filter(|_| self.keys.len() == 1)?;
        String::from_utf8(user.clone()).ok()
    }

    /// How many users there are.
    pub fn users(&self) -> usize {
        self.keys.len()
    }
}

fn decode(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; digits.len() / 2]);
    hex::decode_into(digits, &mut bytes).map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeFF";

    #[test]
    fn a_file_of_psktool_is_read() {
        let file = KeyFile::parse(format!("# users\r\n\nalice:{KEY}\r\na:b:{KEY}").as_bytes()).unwrap();
        assert_eq!(file.key(b"alice").unwrap()[..3], [0, 0x11, 0x22]);
        assert_eq!(file.key(b"a:b").unwrap()[15], 0xff);
        assert_eq!((file.key(b"bob"), file.users()), (None, 2));
    }

    #[test]
    fn an_odd_line_is_named_by_its_number_and_shows_no_key() {
        let long = "x".repeat(129);
        for (text, wrong) in [
            ("".to_string(), "has no line USER:KEY"),
            ("# nobody\n".to_string(), "has no line USER:KEY"),
            (format!("alice:{KEY}\nbob"), "line 2: is not USER:KEY"),
            (format!(":{KEY}"), "line 1: the user's name has to have"),
            (format!("{long}:{KEY}"), "line 1: the user's name has to have"),
            (format!("a\0b:{KEY}"), "line 1: the user's name has to have"),
            (format!("alice:{KEY}0"), "line 1: the key is not made of pairs"),
            (format!("alice: {KEY} "), "line 1: the key is not made of pairs"),
            ("alice:".to_string(), "line 1: the key has to have 16 to 64 bytes"),
            ("alice:0011".to_string(), "line 1: the key has to have 16 to 64 bytes"),
            (format!("alice:{}", KEY.repeat(5)), "line 1: the key has to have 16 to 64 bytes"),
            (format!("alice:{KEY}\n\nalice:{KEY}\n"), "line 3: names a user that"),
        ] {
            let error = KeyFile::parse(text.as_bytes()).err().unwrap().to_string();
            assert!(error.starts_with(wrong), "{text:?}: {error}");
            assert!(!error.contains("00112233"), "{error}");
        }
        assert!(KeyFile::parse(&vec![b'\n'; MAX_FILE as usize + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_file_or_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Err(error) = KeyFile::parse(&bytes) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }

        #[test]
        fn any_lines_of_its_alphabet_are_a_file_or_one_line(text in "([a-c:#\r]{0,6}:?[0-9a-g]{0,40}\n){0,6}") {
            match KeyFile::parse(text.as_bytes()) {
                Ok(file) => prop_assert!(file.users() > 0),
                Err(error) => prop_assert!(!error.to_string().contains('\n')),
            }
        }
    }
}
