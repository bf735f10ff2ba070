//! Shell commands of the operator. A test says what they answer.

use crate::Errno;
use crate::testing::call::{RUNNING, attempt};

use super::files::path;

/// The most variables, and the most bytes of their names and values.
const MAX_VARIABLES: (usize, usize) = (64, 64 << 10);

/// Whether the host passes these variables on.
fn are_allowed(variables: &[(String, String)]) -> bool {
    let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
    let letter = |byte: u8| byte.is_ascii_lowercase();
    let allowed = |name: &str| {
        name.bytes().next().is_some_and(letter)
            && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit() || byte == b'_')
            && !name.ends_with("_proxy")
    };
    let again = |index: usize, name: &str| variables[..index].iter().any(|(other, _)| other == name);
    let right = |(index, (name, value)): (usize, &(String, String))| {
        allowed(name) && !value.contains('\0') && !again(index, name)
    };
    variables.len() <= MAX_VARIABLES.0 && bytes <= MAX_VARIABLES.1 && variables.iter().enumerate().all(right)
}

/// Notes `script COMMAND name=value ...` among the calls.
pub(crate) fn run(param: &str, nth: u32, variables: &[(String, String)]) -> Result<(i32, Vec<u8>), Errno> {
    attempt(&RUNNING, |call| {
        let command = path(call, param, nth)?;
        let mut world = call.world();
        let Some(answer) = world.scripts.get(&command).cloned() else { return Err(Errno::Enoent) };
        if !are_allowed(variables) {
            return Err(Errno::Einval);
        }
        let given: String = variables.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        world.calls.push(format!("script {command}{given}"));
        world.fault("script")?;
        Ok(answer)
    })
}
