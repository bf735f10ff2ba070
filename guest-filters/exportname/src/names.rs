//! Which names clients see, and which they may open.

/// Which exports a list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListMode {
    /// Those of the layer below.
    Keep,
    /// None: the client gets an error.
    Error,
    /// None.
    Empty,
    /// The default export alone.
    DefaultOnly,
    /// Those that the operator named.
    Explicit,
}

/// Where descriptions come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Descriptions {
    /// From the layer below.
    Keep,
    /// There are none.
    None,
    /// All are this text.
    Fixed(String),
}

/// The longest name and the longest description, in bytes, that the NBD protocol allows.
pub const LONGEST: usize = 4096;

impl Descriptions {
    /// Parses the parameter's value.
    ///
    /// # Errors
    /// What is wrong, as the end of a line for the user.
    pub fn parse(text: &str) -> Result<Descriptions, String> {
        match text {
            "keep" => Ok(Descriptions::Keep),
            "none" => Ok(Descriptions::None),
            _ => match (text.strip_prefix("fixed:"), text.starts_with("script:")) {
                (Some(fixed), _) if fixed.len() > LONGEST => Err(format!("is longer than {LONGEST} bytes")),
                (Some(fixed), _) => Ok(Descriptions::Fixed(fixed.to_string())),
                (None, true) => Err("scripts are not supported in this version".to_string()),
                (None, false) => Err("is not one of keep, none, fixed:TEXT".to_string()),
            },
        }
    }

    /// The description of an export that `below` describes.
    pub fn of(&self, below: impl FnOnce() -> Option<String>) -> Option<String> {
        match self {
            Descriptions::Keep => below(),
            Descriptions::None => None,
            Descriptions::Fixed(text) => Some(text.clone()),
        }
    }
}

/// Which exports a client may open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Any.
    All,
    /// Those that the operator named.
    Named(Vec<String>),
}

impl Admission {
    /// Whether a client may open this export.
    pub fn admits(&self, name: &str) -> bool {
        match self {
            Admission::All => true,
            Admission::Named(names) => names.iter().any(|named| named == name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_comes_from_below_or_is_fixed_or_is_not_there() {
        let below = || Some("below".to_string());
        let of = |text: &str| Descriptions::parse(text).unwrap().of(below);
        assert_eq!((of("keep"), of("none")), (below(), None));
        assert_eq!((of("fixed:a: b"), of("fixed:")), (Some("a: b".into()), Some(String::new())));
    }

    #[test]
    fn what_is_no_kind_of_description_is_refused() {
        let wrong = |text: &str| Descriptions::parse(text).unwrap_err();
        assert_eq!(wrong("Keep"), "is not one of keep, none, fixed:TEXT");
        assert_eq!(wrong("script:ls"), "scripts are not supported in this version");
        assert_eq!(wrong(&format!("fixed:{}", "x".repeat(4097))), "is longer than 4096 bytes");
    }

    #[test]
    fn only_named_exports_may_be_opened() {
        let named = Admission::Named(vec!["a".into(), "b".into()]);
        assert!(named.admits("a") && named.admits("b"));
        assert!(!named.admits("c") && !named.admits(""));
        assert!(!Admission::Named(Vec::new()).admits(""));
        assert!(Admission::All.admits("c"));
    }
}
