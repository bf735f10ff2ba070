//! Which partition an operator wants.

use std::fmt;

use rbdkit_filter_sdk::image::quoted;

use super::table::{Partition, Type};
use crate::guid::Guid;

/// Which partition is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Number(u32),
    /// The name in a GPT or an Apple partition map.
    Label(String),
    Guid(Guid),
    Type(Type),
}

/// Names for types that are wanted often.
const NAMES: [(&str, &str); 6] = [
    ("efi", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
    ("linux", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"),
    ("swap", "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"),
    ("lvm", "E6D6D379-F507-44C2-A23C-238F2A3DF928"),
    ("raid", "A19D880F-05FC-4D3B-A006-743F0F84911E"),
    ("windows", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"),
];

impl Choice {
    /// A type as an operator writes it: a GUID, a name of a GPT's type, two hexadecimal digits for
    /// an MBR (`83`, `0x83`), or the type of an Apple partition map (`Apple_HFS`).
    ///
    /// # Errors
    /// The rest of a line that begins with the parameter.
    pub fn parse_type(text: &str) -> Result<Type, String> {
        if let Some(guid) = Guid::parse(text) {
            return Ok(Type::Gpt(guid));
        }
        let named = NAMES.iter().find(|(name, _)| *name == text).and_then(|(_, guid)| Guid::parse(guid));
        if let Some(guid) = named {
            return Ok(Type::Gpt(guid));
        }
        let digits = text.strip_prefix("0x").unwrap_or(text);
        if (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return u8::from_str_radix(digits, 16).map(Type::Mbr).map_err(|error| error.to_string());
        }
        if text.contains('_') && text.len() <= 32 {
            return Ok(Type::Apm(text.into()));
        }
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        Err(format!(
            "is not a type of a partition: use a GUID, two hexadecimal digits, a type such as Apple_HFS, or one of {}",
            names.join(", ")
        ))
    }

    pub(super) fn is(&self, part: &Partition) -> bool {
        match self {
            Choice::Number(number) => part.number == *number,
            Choice::Label(label) => part.label == *label,
            Choice::Guid(guid) => part.guid == Some(*guid),
            Choice::Type(kind) => part.kind == *kind,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Number(number) => write!(f, "the number {number}"),
            Choice::Label(label) => write!(f, "the label {}", quoted(label.as_bytes())),
            Choice::Guid(guid) => write!(f, "the GUID {guid}"),
            Choice::Type(Type::Mbr(kind)) => write!(f, "the type {kind:02x}"),
            Choice::Type(Type::Gpt(guid)) => write!(f, "the type {guid}"),
            Choice::Type(Type::Apm(kind)) => write!(f, "the type {}", quoted(kind)),
        }
    }
}
