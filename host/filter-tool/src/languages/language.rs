//! The languages in which a filter can be written.

use clap::ValueEnum;

/// The language of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    C,
    #[value(name = "c++", alias = "cpp")]
    Cpp,
    Zig,
    Go,
    Js,
    Ts,
    Python,
}

impl Language {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::C => "c",
            Language::Cpp => "c++",
            Language::Zig => "zig",
            Language::Go => "go",
            Language::Js => "js",
            Language::Ts => "ts",
            Language::Python => "python",
        }
    }

    /// The name as people write it.
    pub fn title(self) -> &'static str {
        match self {
            Language::Rust => "Rust",
            Language::C => "C",
            Language::Cpp => "C++",
            Language::Zig => "Zig",
            Language::Go => "Go",
            Language::Js => "JavaScript",
            Language::Ts => "TypeScript",
            Language::Python => "Python",
        }
    }

    /// The language with this name.
    pub fn named(name: &str) -> Option<Language> {
        Language::value_variants().iter().copied().find(|language| language.name() == name)
    }
}
