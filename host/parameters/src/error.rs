//! Why parameters cannot be distributed.

use rbdkit_plugin_api::ConfigError;

/// Why the parameters of a command line do not fit the layers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// A word without a key, and the plugin has no magic key.
    #[error("{plugin}: expecting key=value on the command line but got: {word}")]
    BareWord {
        /// The plugin's name.
        plugin: String,
        /// The word.
        word: String,
    },
    /// The layer that would get the key does not declare it.
    #[error("{layer}: unknown parameter '{key}'{hint}")]
    UnknownKey {
        /// The layer's name.
        layer: String,
        /// The key.
        key: String,
        /// What would be right.
        hint: String,
    },
    /// The value is not of the declared kind.
    #[error(transparent)]
    Value(#[from] ConfigError),
    /// A filter did not get a parameter that it requires.
    #[error("{filter}: the parameter {name}=<{kind}> is required: {help}")]
    Missing {
        /// The filter's name.
        filter: String,
        /// The parameter's name.
        name: String,
        /// The kind of its value, in capitals.
        kind: String,
        /// The parameter's help text.
        help: String,
    },
    /// An option addresses a filter, and there is none at all.
    #[error("{option} {target}: no filter is given")]
    NoFilter {
        /// The option.
        option: &'static str,
        /// The filter that it names.
        target: String,
    },
    /// An option addresses a filter that is not on the command line.
    #[error("{option} {target}: there is no such filter here, only {given}")]
    NoSuchFilter {
        /// The option.
        option: &'static str,
        /// The filter that it names.
        target: String,
        /// The filters on the command line.
        given: String,
    },
}

impl From<AssignError> for ConfigError {
    fn from(error: AssignError) -> ConfigError {
        match error {
            AssignError::Value(error) => error,
            error => ConfigError::new(error.to_string()),
        }
    }
}
