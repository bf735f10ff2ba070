//! Which interfaces of the contract a filter exports.

/// Which interfaces a filter exports. Every request reads this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each interface of the contract")]
pub(crate) struct Exported {
    /// Operations that it does not export are passed on to the layer below.
    pub(crate) transparent: bool,
    pub(crate) wishes: bool,
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
    pub(crate) on_alarm: bool,
    pub(crate) on_watch: bool,
    pub(crate) on_connection: bool,
    pub(crate) on_control: bool,
}
