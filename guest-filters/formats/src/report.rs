//! What is known of an image before anybody reads it.

/// A description of an image for people and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The size of the disk in bytes, if the format tells it without decoding everything.
    pub size: Option<u64>,
    /// What the headers say: a name of few words in lower case, and a value. Values are text of the
    /// image only if they went through [`quoted`](rbdkit_filter_sdk::image::quoted).
    pub facts: Vec<(&'static str, String)>,
    /// What could do harm in a program that trusts the image, or cannot be right: one line each.
    /// "it names a backing file: '/etc/passwd'".
    pub dangers: Vec<String>,
}

impl Report {
    /// Adds a fact.
    pub fn fact(&mut self, name: &'static str, value: impl ToString) {
        self.facts.push((name, value.to_string()));
    }

    /// Adds a danger.
    pub fn danger(&mut self, line: impl Into<String>) {
        self.dangers.push(line.into());
    }
}
