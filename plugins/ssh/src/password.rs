//! `password=`: the password itself, `-` (ask), `+FILE`, or `-FD`.

use rbdkit_plugin_api::passwords::{self, Secret};
use rbdkit_plugin_api::{ConfigError, Param};

/// The longest password, in bytes: several have to fit a pipe.
const MAX: usize = 4096;

/// A password: any bytes but a newline and zero.
#[derive(Clone, Debug)]
pub(crate) struct Password(Secret);

impl Password {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Password) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Password {}

/// The password that a parameter stands for.
///
/// # Errors
/// One line that shows nothing of the value: a password may begin with `+` or `-` too.
pub(crate) fn read(param: Param<'_>) -> Result<Password, ConfigError> {
    let wrong = |what: String| ConfigError::new(format!("password: {what}"));
    let password = passwords::read("password", param.value).map_err(|error| wrong(error.to_string()))?;
    match password.bytes().iter().any(|byte| matches!(byte, b'\n' | 0)) || password.bytes().len() >= MAX {
        true => Err(wrong("is too long, or has a character that cannot be typed".into())),
        false => Ok(Password(password)),
    }
}
