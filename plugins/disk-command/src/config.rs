//! The parameters: a size, a command, and variables for the command.

use std::ffi::OsString;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, OtherKeys, Param};

/// The help on the parameters that become variables.
pub const OTHER_KEYS: OtherKeys =
    OtherKeys { form: "VAR=VALUE", help: "Becomes the shell variable $VAR of the command" };

/// What is run to make a disk.
#[derive(Debug, Default)]
pub struct CommandConfig {
    size: Option<u64>,
    command: Option<OsString>,
    /// In the order of the command line. A later one of a name wins, as in a shell.
    variables: Vec<(String, OsString)>,
}

/// The words of a launcher: the size, the command (empty: the default), and the variables, each as
/// two words.
pub(crate) const FIRST_VARIABLE: usize = 2;

impl CommandConfig {
    /// The declarations of the parameters.
    pub fn specs() -> Vec<ParamSpec> {
        vec![
            ParamSpec::size("size").magic().required().help("Size of the disk"),
            ParamSpec::string("type").placeholder("FS").default_value("ext4").help("The file system, for mkfs"),
            ParamSpec::bytes("label").placeholder("LABEL").help("The label of the file system"),
            ParamSpec::bytes("command")
                .placeholder("COMMAND")
                .help("A shell command that makes the disk $disk, instead of mkfs"),
            ParamSpec::hidden("disk"),
        ]
    }

    /// Takes a parameter.
    ///
    /// # Errors
    /// One line: the size is wrong, or the key cannot be the name of a variable.
    pub fn set(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = Some(param.size()?),
            "command" => self.command = Some(param.value.to_owned()),
            "disk" => return Err(ConfigError::new("disk= cannot be given: it is the variable for the disk's name")),
            key if !is_variable(key) => {
                return Err(ConfigError::new(format!(
                    "{key}= cannot become a shell variable: a name has letters, digits and _, and no digit in front"
                )));
            }
            key => self.variables.push((key.to_owned(), param.value.to_owned())),
        }
        Ok(())
    }

    /// Checks that the size was given to the plugin of this name.
    ///
    /// # Errors
    /// One line: it was not.
    pub fn check(&self, plugin: &str) -> Result<(), ConfigError> {
        match self.size {
            Some(_) => Ok(()),
            None => Err(ConfigError::new(format!("{plugin}: size=SIZE has to be given, for example 1G"))),
        }
    }

    /// The words for the launcher.
    pub fn words(&self) -> Vec<OsString> {
        let mut words = vec![self.size.unwrap_or(0).to_string().into(), self.command.clone().unwrap_or_default()];
        words.extend(self.variables.iter().flat_map(|(name, value)| [name.into(), value.clone()]));
        words
    }
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_parameters_are_variables() {
        let mut config = CommandConfig::default();
        for (key, value) in [("size", "1M"), ("type", "xfs"), ("command", "true"), ("os_1", "it's"), ("os_1", "b")] {
            config.set(Param { key, value: value.as_ref() }).unwrap();
        }
        assert_eq!(config.words(), ["1048576", "true", "type", "xfs", "os_1", "it's", "os_1", "b"]);
        config.check("tmpdisk").unwrap();
    }

    #[test]
    fn mistakes_are_one_line() {
        let mut config = CommandConfig::default();
        assert_eq!(
            config.check("tmpdisk").unwrap_err().to_string(),
            "tmpdisk: size=SIZE has to be given, for example 1G"
        );
        for key in ["a-b", "a.b", "1a"] {
            let error = config.set(Param { key, value: "x".as_ref() }).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}= cannot become a shell variable")), "{error}");
        }
        let error = config.set(Param { key: "disk", value: "x".as_ref() }).unwrap_err().to_string();
        assert_eq!(error, "disk= cannot be given: it is the variable for the disk's name");
    }
}
