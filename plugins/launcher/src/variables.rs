//! Variables that an order adds to a program's environment.
//!
//! They may come from an attacker who controls the server. So the helper checks the names too: no
//! name is allowed that a shell or a program takes as a setting.

use std::fmt;
use std::io;

/// The most variables of an order.
pub const MAX_VARIABLES: usize = 64;

/// The most bytes of all names and values of an order.
pub const MAX_VARIABLE_BYTES: usize = 64 << 10;

/// The longest encoded list: before each name and each value stands its length in 4 bytes.
pub(crate) const MAX_ENCODED: usize = MAX_VARIABLE_BYTES + 8 * MAX_VARIABLES;

/// Why variables are not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableError {
    /// A name is not made of lower-case letters, digits and `_`, or does not begin with a letter.
    Name,
    /// A name ends in `_proxy`: programs take such variables as settings (`http_proxy`).
    Proxy,
    /// A name is there twice.
    Twice,
    /// A value has a zero byte.
    ZeroByte,
    /// There are more than [`MAX_VARIABLES`], or more than [`MAX_VARIABLE_BYTES`] bytes.
    TooLong,
}

impl fmt::Display for VariableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VariableError::Name => {
                f.write_str("the name of a variable has lower-case letters, digits and _, and begins with a letter")
            }
            VariableError::Proxy => f.write_str("the name of a variable ends in _proxy"),
            VariableError::Twice => f.write_str("a variable is there twice"),
            VariableError::ZeroByte => f.write_str("the value of a variable has a zero byte"),
            VariableError::TooLong => {
                write!(f, "more than {MAX_VARIABLES} variables, or more than {} KiB", MAX_VARIABLE_BYTES >> 10)
            }
        }
    }
}

impl std::error::Error for VariableError {}

/// Checks the names, the values and their number.
///
/// # Errors
/// The first rule that is broken.
pub fn check_variables(variables: &[(String, String)]) -> Result<(), VariableError> {
    let bytes = variables.iter().fold(0_usize, |sum, (name, value)| sum.saturating_add(name.len() + value.len()));
    if variables.len() > MAX_VARIABLES || bytes > MAX_VARIABLE_BYTES {
        return Err(VariableError::TooLong);
    }
    for (index, (name, value)) in variables.iter().enumerate() {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(allowed) {
            return Err(VariableError::Name);
        }
        if name.ends_with("_proxy") {
            return Err(VariableError::Proxy);
        }
        if variables[..index].iter().any(|(other, _)| other == name) {
            return Err(VariableError::Twice);
        }
        if value.contains('\0') {
            return Err(VariableError::ZeroByte);
        }
    }
    Ok(())
}

/// The variables as bytes of a packet.
pub(crate) fn encode(variables: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in variables.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// Reads what [`encode`] made, and checks it.
///
/// # Errors
/// The bytes are something else, or the variables are not allowed.
pub(crate) fn decode(mut bytes: &[u8]) -> io::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (text, rest) = rest.split_at_checked(length).ok_or(io::ErrorKind::InvalidData)?;
        texts.push(String::from_utf8(text.to_vec()).map_err(|_| io::ErrorKind::InvalidData)?);
        bytes = rest;
    }
    if !bytes.is_empty() || !texts.len().is_multiple_of(2) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut texts = texts.into_iter();
    let variables: Vec<(String, String)> = std::iter::from_fn(|| texts.next().zip(texts.next())).collect();
    check_variables(&variables).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn no_name_is_allowed_that_a_shell_or_a_program_takes_as_a_setting() {
        for name in ["PATH", "IFS", "LD_PRELOAD", "", "1a", "_", "_a", "a-b", "a=b", "ä", "a b", "aB"] {
            assert_eq!(check_variables(&list(&[(name, "x")])), Err(VariableError::Name), "{name}");
        }
        assert_eq!(check_variables(&list(&[("https_proxy", "x")])), Err(VariableError::Proxy));
        assert_eq!(check_variables(&list(&[("a", "x"), ("a", "y")])), Err(VariableError::Twice));
        assert_eq!(check_variables(&list(&[("a", "x\0y")])), Err(VariableError::ZeroByte));
        assert_eq!(check_variables(&list(&[("act", "x\ny"), ("e_2", "")])), Ok(()));
    }

    #[test]
    fn number_and_bytes_are_bounded() {
        let many = |count: usize| (0..count).map(|n| (format!("a{n}"), String::new())).collect::<Vec<_>>();
        assert_eq!(check_variables(&many(MAX_VARIABLES)), Ok(()));
        assert_eq!(check_variables(&many(MAX_VARIABLES + 1)), Err(VariableError::TooLong));
        let long = |bytes: usize| vec![("a".to_string(), "x".repeat(bytes))];
        assert_eq!(check_variables(&long(MAX_VARIABLE_BYTES - 1)), Ok(()));
        assert_eq!(check_variables(&long(MAX_VARIABLE_BYTES)), Err(VariableError::TooLong));
        assert!(encode(&long(MAX_VARIABLE_BYTES - 1)).len() <= MAX_ENCODED);
    }

    #[test]
    fn what_was_sent_is_read_back_and_checked_again() {
        let variables = list(&[("act", "Read"), ("offset", "0x200"), ("empty", "")]);
        assert_eq!(decode(&encode(&variables)).unwrap(), variables);
        assert_eq!(decode(&[]).unwrap(), []);
        let path = decode(&encode(&list(&[("PATH", "/tmp")]))).unwrap_err();
        assert_eq!(path.kind(), io::ErrorKind::InvalidInput);
        for bytes in [&[0_u8, 0, 0][..], &[0, 0, 0, 9, b'a'], &[0, 0, 0, 1, b'a'], &[0xff; 4]] {
            assert_eq!(decode(bytes).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
