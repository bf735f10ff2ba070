//! [`Violation`]: the mistakes of a client that end the connection.

/// The client broke the protocol in a way that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Client flags that the server did not offer.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// An option does not begin with the magic number.
    #[error("an option begins with {0:#018x}")]
    OptionMagic(u64),
    /// An option is longer than [`MAX_OPTION`](super::MAX_OPTION).
    #[error("an option of {0} bytes")]
    OptionTooLong(u32),
    /// More than this many options and no export chosen.
    #[error("more than {0} options and no export chosen")]
    TooManyOptions(u32),
    /// An option other than EXPORT_NAME from a client that does not speak fixed newstyle.
    #[error("option {0} from a client that does not speak fixed newstyle")]
    OptionNotFixed(u32),
    /// EXPORT_NAME, which has no error reply, with a name that the protocol does not allow.
    #[error("EXPORT_NAME with an impossible name")]
    ExportName,
    /// EXPORT_NAME after extended headers were negotiated, which the protocol does not allow.
    #[error("EXPORT_NAME with extended headers")]
    ExportNameExtended,
    /// EXPORT_NAME, which has no error reply, without TLS, which the server requires.
    #[error("EXPORT_NAME without TLS, which is required")]
    WithoutTls,
    /// A request does not begin with the magic number.
    #[error("a request begins with {0:#010x}")]
    RequestMagic(u32),
    /// The payload of a refused request is too long to be skipped.
    #[error("a payload of {0} bytes")]
    PayloadTooLong(u64),
}
