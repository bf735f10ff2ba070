//! The errors of the program.

use std::io;
use std::path::{Path, PathBuf};

use rbdkit_parameters::AssignError;
use rbdkit_plugin_api::ConfigError;

/// An error of a library that has no type for it.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system.
    #[error("{doing} {}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    /// A file that should be a component or a module.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    /// A registry, or what it has.
    #[error("cannot {doing} {reference}")]
    Registry { doing: &'static str, reference: String, source: rbdkit_oci::Error },
    /// A reference or a key.
    #[error(transparent)]
    Oci(#[from] rbdkit_oci::Error),
    /// Another error of the system.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The sandbox, the filter or the disk refuses its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Parameters that the layers do not declare, or that are missing.
    #[error(transparent)]
    Parameters(#[from] AssignError),
    /// A parameter that neither the filter nor the disk below it declares.
    #[error("the filter has no parameter '{key}' (it has: {known}), and the disk below it has {disk}")]
    UnknownParameter { key: String, known: String, disk: String },
    /// A word that is no parameter.
    #[error("{0}: parameters are key=value")]
    NoParameter(String),
    /// The chain fails an operation.
    #[error("{operation}")]
    Operation { operation: &'static str, source: rbdkit_plugin_api::Error },
    /// A finding of `check`.
    #[error("{0}")]
    Found(String),
    /// A script for `check`.
    #[error("{0}")]
    Script(String),

    /// A directory without a filter.
    #[error(
        "{} holds neither a Cargo.toml, a filter.c nor a filter.js: rbdkit-filter new makes one",
        .0.display()
    )]
    NothingToBuild(PathBuf),
    /// A directory without a name.
    #[error("the root directory cannot be a filter")]
    RootDirectory,
    /// A manifest without a name.
    #[error("Cargo.toml names no package")]
    NoPackage,
    /// A module that cannot become a component.
    #[error("{}", path.display())]
    Module { path: PathBuf, source: Box<Error> },
    /// The library that makes components refuses the module.
    #[error(transparent)]
    Componentize(#[from] rbdkit_componentize::Error),
    /// The child that makes components refuses the module.
    #[error("{0}")]
    Refused(String),
    /// The child that makes components failed.
    #[error("no component can be made of it: it is damaged")]
    Damaged,
    /// The contract in `wit/`.
    #[error("{doing}")]
    Contract { doing: &'static str, source: Source },
    /// A program that cannot be started.
    #[error("cannot run {program}{hint}")]
    Start { program: String, hint: Hint, source: io::Error },
    /// A program that fails.
    #[error("{program} failed{hint}: {how}")]
    Failed { program: String, hint: Hint, how: String },
    /// Rust's standard library for WebAssembly.
    #[error(
        "no standard library for {target}: rustup target add {target}, or on Debian apt-get install \
         rustc-web rust-web-src"
    )]
    NoStandardLibrary { target: &'static str },

    /// A name that no filter can have.
    #[error(
        "'{0}' cannot be a filter's name: it begins with a lower-case letter, then letters, digits \
         and '-'"
    )]
    Name(String),
    /// A directory that would be overwritten.
    #[error("{} exists already: choose another with --dir", .0.display())]
    Exists(PathBuf),
    /// The SDK.
    #[error("the SDK was not found: neither in share/rbdkit beside this program nor in rbdkit's source tree")]
    NoSdk,
}

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A hint on what to install for a program. Empty: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint(pub &'static str);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => Ok(()),
            hint => write!(f, " ({hint})"),
        }
    }
}

impl Error {
    /// The error of an operation on a file.
    pub fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { doing, path, source }
    }

    /// The error with its causes, each after a colon.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_in_their_order() {
        let source = Error::file("cannot open", Path::new("/x"))(io::Error::other("it is closed"));
        let error = Error::Module { path: "/m.wasm".into(), source: Box::new(source) };
        assert_eq!(error.with_causes(), "/m.wasm: cannot open /x: it is closed");
        let error = Error::Start { program: "cc".into(), hint: Hint("install it"), source: io::Error::other("gone") };
        assert_eq!(error.with_causes(), "cannot run cc (install it): gone");
    }
}
