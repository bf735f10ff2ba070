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
    /// A command of the operator prints them.
    Script,
}

/// The longest name and the longest description, in bytes, that the NBD protocol allows.
pub const LONGEST: usize = 4096;

impl Descriptions {
    /// Parses the parameter's value, if it is no command.
    ///
    /// # Errors
    /// What is wrong, as the end of a line for the user.
    pub fn parse(text: &str) -> Result<Descriptions, String> {
        match text {
            "keep" => Ok(Descriptions::Keep),
            "none" => Ok(Descriptions::None),
            _ => match text.strip_prefix("fixed:") {
                Some(fixed) if fixed.len() > LONGEST => Err(format!("is longer than {LONGEST} bytes")),
                Some(fixed) => Ok(Descriptions::Fixed(fixed.to_string())),
                None => Err("is not one of keep, none, fixed:TEXT, script:COMMAND".to_string()),
            },
        }
    }

    /// The description of an export. `below` asks the layer below for it, and `command` the command
    /// of the operator.
    pub fn of(
        &self,
        below: impl FnOnce() -> Option<String>,
        command: impl FnOnce() -> Option<String>,
    ) -> Option<String> {
        match self {
            Descriptions::Keep => below(),
            Descriptions::None => None,
            Descriptions::Fixed(text) => Some(text.clone()),
            Descriptions::Script => command(),
        }
    }
}

/// The description that a command has printed: without the end of its last line, and at most
/// [`LONGEST`] bytes of it. Bytes that are no UTF-8 become U+FFFD. None if it has printed nothing.
pub fn printed(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output.strip_suffix(b"\n").unwrap_or(output));
    let end = text.floor_char_boundary(LONGEST);
    Some(text[..end].to_string()).filter(|text| !text.is_empty())
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
        let command = || Some("printed".to_string());
        let of = |text: &str| Descriptions::parse(text).unwrap().of(below, command);
        assert_eq!((of("keep"), of("none")), (below(), None));
        assert_eq!((of("fixed:a: b"), of("fixed:")), (Some("a: b".into()), Some(String::new())));
        assert_eq!(Descriptions::Script.of(below, command), command());
    }

    #[test]
    fn what_a_command_prints_is_a_description_without_the_end_of_the_line() {
        let text = |output: &[u8]| printed(output);
        assert_eq!(text(b"one\ntwo\n"), Some("one\ntwo".into()));
        assert_eq!((text(b"x"), text(b"a\n\n")), (Some("x".into()), Some("a\n".into())));
        assert_eq!((text(b""), text(b"\n")), (None, None));
        assert_eq!(text(b"a\xffb"), Some("a\u{fffd}b".into()));
        assert_eq!(text(&[b'x'; LONGEST + 1]), Some("x".repeat(LONGEST)));
        // A letter of two bytes that would end beyond the limit is left out.
        assert_eq!(text(format!("x{}", "\u{e4}".repeat(LONGEST)).as_bytes()).unwrap().len(), LONGEST - 1);
    }

    #[test]
    fn what_is_no_kind_of_description_is_refused() {
        let wrong = |text: &str| Descriptions::parse(text).unwrap_err();
        assert_eq!(wrong("Keep"), "is not one of keep, none, fixed:TEXT, script:COMMAND");
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
