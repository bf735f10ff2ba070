//! Whether a file begins as its format does.

use rbdkit_filter_sdk::image::{Error, Source, read};

/// Checks the first bytes of a file. `name` is that of a file of the format: "an xz file".
///
/// # Errors
/// Those of the source, and a line if the file begins with other bytes.
pub fn check_signature(below: &dyn Source, name: &str, signature: &[u8]) -> Result<(), Error> {
    let there = read(below, 0, below.size().min(signature.len() as u64) as usize)?;
    if there == signature {
        return Ok(());
    }
    Err(Error::image(match there.is_empty() {
        true => format!("it is not {name}: it is empty"),
        false => format!("it is not {name}: it begins with {}, not {}", hexadecimal(&there), hexadecimal(signature)),
    }))
}

/// Bytes as two hexadecimal digits each.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
