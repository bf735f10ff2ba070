//! The parameter `allocator=`.

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, Param, units};

/// How the disk is kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocator {
    /// Only what was written.
    #[default]
    Sparse,
    /// Only what was written, compressed.
    Zstd,
    /// All of the disk, allocated at the start.
    Malloc(Residency),
}

/// Whether the kernel may move allocated memory to swap space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// It may.
    Swappable,
    /// It may not: the memory is locked with mlock(2).
    Locked,
}

impl Allocator {
    /// The declaration of the parameter.
    pub fn spec() -> ParamSpec {
        ParamSpec::string("allocator")
            .placeholder("sparse|zstd|malloc[,mlock=BOOL]")
            .default_value("sparse")
            .help("sparse keeps what was written, zstd compresses it; malloc allocates the whole disk at the start")
    }

    /// Reads `sparse`, `zstd`, `malloc` or `malloc,mlock=BOOL`.
    ///
    /// # Errors
    /// One line that names the parameter and says what would be right.
    pub fn parse(param: Param<'_>) -> Result<Allocator, ConfigError> {
        let text = param.text()?;
        let (kind, option) = match text.split_once(',') {
            Some((kind, option)) => (kind, Some(option)),
            None => (text, None),
        };
        match (kind, option) {
            ("sparse", None) => Ok(Allocator::Sparse),
            ("zstd", None) => Ok(Allocator::Zstd),
            ("sparse" | "zstd", Some(_)) => Err(param.error(format_args!("{kind} takes no options"))),
            ("malloc", None) => Ok(Allocator::Malloc(Residency::Swappable)),
            ("malloc", Some("mlock")) => Ok(Allocator::Malloc(Residency::Locked)),
            ("malloc", Some(option)) => match option.strip_prefix("mlock=").map(units::parse_bool) {
                Some(Ok(true)) => Ok(Allocator::Malloc(Residency::Locked)),
                Some(Ok(false)) => Ok(Allocator::Malloc(Residency::Swappable)),
                Some(Err(wrong)) => Err(param.error(format!("mlock {wrong}"))),
                None => Err(param.error("the only option of malloc is mlock=true or mlock=false")),
            },
            _ => Err(param.error("is not an allocator: sparse, zstd, malloc or malloc,mlock=true")),
        }
    }
}
