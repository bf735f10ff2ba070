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
    /// A file, although a signature is required.
    #[error("--filter-key: '{}' is a file, and only filters in a registry have signatures", .0.display())]
    Unsigned(PathBuf),
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
    /// What differs from a record in a replay.
    #[error("{0}")]
    Differs(String),
    /// A record of `rbdkit --record`.
    #[error("{}", path.display())]
    Record { path: PathBuf, source: Box<rbdkit_record::ReadError> },
    /// A script for `check`.
    #[error("{0}")]
    Script(String),
    /// Words that are no operation for `call`.
    #[error("{0}")]
    Call(String),

    /// A directory without a filter.
    #[error(
        "{} is not a filter's directory: it has no rbdkit-filter.toml (rbdkit-filter new makes one)", .0.display()
    )]
    NothingToBuild(PathBuf),
    /// The file that says what a project is.
    #[error("{}: {why}", path.display())]
    Project { path: PathBuf, why: String },
    /// A Rust project that makes no library for the component.
    #[error("Cargo.toml has no library with crate-type = [\"cdylib\"]")]
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
    /// The generator of bindings made something else than expected.
    #[error("the bindings have no file *{end}")]
    NoBindings { end: String },
    /// A program that cannot be started.
    #[error("cannot run {program}")]
    Start { program: String, source: io::Error },
    /// The server that `dev` starts.
    #[error("cannot run {program} (rbdkit is looked for beside rbdkit-filter, then in PATH)")]
    NoServer { program: String, source: io::Error },
    /// A program that fails, after it said why.
    #[error("{program} failed: {how}")]
    Failed { program: String, how: String },
    /// Tools that a build needs. A line for each.
    #[error("to build filters in {language}, install what is missing")]
    MissingTools { language: &'static str, missing: Vec<String> },
    /// `doctor` finds no language whose tools are here.
    #[error("tools are missing")]
    Incomplete,
    /// What is written is not what would run. A line for each operation.
    #[error("what is written is not what would run")]
    Operations(Vec<String>),

    /// A name that no filter can have.
    #[error(
        "'{0}' cannot be a filter's name: it begins with a lower-case letter, then letters, digits \
         and '-'"
    )]
    Name(String),
    /// A directory that would be overwritten.
    #[error("{} exists already: choose another with --dir", .0.display())]
    Exists(PathBuf),
}

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The error of an operation on a file.
    pub fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { doing, path, source }
    }

    /// What is printed before the error itself.
    pub fn details(&self) -> &[String] {
        match self {
            Error::MissingTools { missing: lines, .. } | Error::Operations(lines) => lines,
            _ => &[],
        }
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
        let error = Error::Start { program: "cc".into(), source: io::Error::other("gone") };
        assert_eq!(error.with_causes(), "cannot run cc: gone");
    }
}
