//! Why a block is to be without data.

/// Why a block is to be without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Erase {
    /// Its content does not matter any more.
    Trim,
    /// It has to read as zero.
    Zero,
}
