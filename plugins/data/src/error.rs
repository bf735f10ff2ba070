//! What is wrong with the data, and where.

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::rc::Rc;

use crate::image::ImageError;

/// A place in the text, or in the text of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The variable's name.
    pub(crate) variable: Option<Rc<str>>,
    /// Bytes.
    pub(crate) offset: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variable {
            Some(name) => write!(f, "${name} at offset {}", self.offset),
            None => write!(f, "at offset {}", self.offset),
        }
    }
}

/// Text that is not in the data language, or that cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[error("data: {place}: {problem}")]
pub(crate) struct DataError {
    pub(crate) place: Place,
    pub(crate) problem: Problem,
}

impl DataError {
    pub(crate) fn new(place: &Place, problem: impl Into<Problem>) -> DataError {
        DataError { place: place.clone(), problem: problem.into() }
    }
}

/// What is wrong, without the place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// The text is not in the data language.
    #[error("{0}")]
    Syntax(String),
    #[error("expressions are nested more than {0} deep")]
    NestedTooDeep(u32),
    #[error("expressions refer to one another more than {0} deep")]
    ReferencesTooDeep(u32),
    #[error("the data takes too many steps to evaluate")]
    TooManySteps,
    #[error("\\{0} not defined")]
    Undefined(String),
    #[error("@-{bytes} must not be larger than the current offset {offset}")]
    BeforeTheStart { bytes: u64, offset: u64 },
    #[error("[{from}:{to}] is not within the {length} bytes before it")]
    SliceOutside { from: u64, to: u64, length: u64 },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("<{name}: {error}")]
    File { name: String, error: ReadError },
    #[error("<({script}): {error}")]
    Script { script: String, error: ReadError },
}

/// Why a file or the output of a script cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("more than {0} bytes of data; a slice [N:M] would take a part of it")]
    TooLong(u64),
    #[error("the script failed ({0})")]
    Failed(ExitStatus),
    #[error(transparent)]
    Image(#[from] ImageError),
}
