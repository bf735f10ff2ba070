//! What a case is: something wrong, the command that must find it, and the line that it must give.

/// A command that finds what is wrong.
#[derive(Clone, Copy, Debug)]
pub enum FoundBy {
    Build,
    Inspect,
    /// With these arguments after the component.
    Check(&'static [&'static str]),
    /// The server, with these parameters of the filter.
    Serve(&'static [&'static str]),
}

impl FoundBy {
    pub fn name(self) -> &'static str {
        match self {
            FoundBy::Build => "build",
            FoundBy::Inspect => "inspect",
            FoundBy::Check(_) => "check",
            FoundBy::Serve(_) => "server",
        }
    }
}

/// A change of a project.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    /// In this file, the first text becomes the second one.
    Replace(&'static str, &'static str, &'static str),
    /// This file is new and has this text.
    New(&'static str, &'static str),
    /// This text comes at the end of the file.
    Append(&'static str, &'static str),
}

/// A wrong project.
pub struct Case {
    /// What is wrong.
    pub name: &'static str,
    pub edits: &'static [Edit],
    pub found_by: FoundBy,
    /// The whole line. `*` stands for any text.
    pub says: &'static str,
}

/// Whether a line is the one that was expected.
pub fn fits(line: &str, expected: &str) -> bool {
    let mut parts = expected.split('*');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        match (parts.peek(), rest.find(part)) {
            (None, _) => return rest.ends_with(part),
            (Some(_), Some(at)) => rest = &rest[at + part.len()..],
            (Some(_), None) => return false,
        }
    }
    false
}

#[test]
fn a_star_stands_for_any_text() {
    assert!(fits("a 12 b 3 c", "a * b * c") && fits("abc", "abc") && fits("abc", "*") && fits("abc", "a*"));
    assert!(!fits("a 12 b", "a * c") && !fits("abcd", "abc") && !fits("abc", "*b") && !fits("xabc", "a*"));
}
