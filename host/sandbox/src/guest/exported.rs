//! Which interfaces of the contract a filter exports.

/// Which operations a filter exports, in the form that every request asks.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one for each interface of the contract")]
pub(crate) struct Exported {
    /// What it does not export passes by untouched.
    pub(crate) transparent: bool,
    pub(crate) threading: bool,
    pub(crate) lifecycle: bool,
    pub(crate) admission: bool,
    pub(crate) names: bool,
    pub(crate) connection: bool,
    pub(crate) info: bool,
    pub(crate) features: bool,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    pub(crate) flushes: bool,
    pub(crate) trims: bool,
    pub(crate) zeroes: bool,
    pub(crate) mapping: bool,
    pub(crate) caching: bool,
    pub(crate) background: bool,
}
