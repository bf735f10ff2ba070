//! The languages in which `new` writes a filter and `build` builds one: a file for each, which says
//! what a project consists of, what its build needs, and how it is built.

mod bindings;
mod c;
mod c_family;
mod cpp;
mod declarations;
mod ecmascript;
mod go;
mod go_glue;
mod js;
mod module;
mod operations;
mod project;
mod run;
mod rust;
mod tools;
mod ts;
mod zig;

use clap::ValueEnum;

pub use project::{FILE as PROJECT_FILE, Project, is_name};
pub use tools::{Tool, Way, first_complete};

use crate::error::Result;

/// The contract, so that a filter can be built without rbdkit's source.
const CONTRACT: &str = include_str!("../../../../wit/filter.wit");

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
}

/// What the tool knows of a language.
pub struct Definition {
    /// The files of a new project: the path in the project, and the text. In it `@NAME@` stands for
    /// the filter's name.
    pub files: fn() -> Vec<(String, String)>,
    /// The ways to build a project, the best one first. A build takes the first one whose tools are
    /// all here.
    pub ways: fn() -> Vec<Way>,
    /// Prepares what an editor needs, in a new project.
    pub prepare: fn(&Project) -> Result<()>,
    /// Builds a project and returns the component.
    pub build: fn(&Project, &Way, Keep) -> Result<Vec<u8>>,
}

/// What of a module, besides its code, the component keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The names of functions, for the log and for profiles.
    Names,
    /// Debugging information as well.
    Debugging,
    /// Nothing.
    Nothing,
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
        }
    }

    /// The language with this name.
    pub fn named(name: &str) -> Option<Language> {
        Language::value_variants().iter().copied().find(|language| language.name() == name)
    }

    /// What the tool knows of it.
    pub fn definition(self) -> Definition {
        match self {
            Language::Rust => rust::DEFINITION,
            Language::C => c::DEFINITION,
            Language::Cpp => cpp::DEFINITION,
            Language::Zig => zig::DEFINITION,
            Language::Go => go::DEFINITION,
            Language::Js => js::DEFINITION,
            Language::Ts => ts::DEFINITION,
        }
    }
}

/// Nothing has to be prepared.
fn nothing(_: &Project) -> Result<()> {
    Ok(())
}

/// A file of a template.
macro_rules! template {
    ($place:literal) => {
        include_str!(concat!("../../templates/", $place))
    };
}
use template;

/// The files that a project in every language has.
fn common_files() -> Vec<(String, String)> {
    [("README.md", template!("common/README.md")), ("test.sh", template!("common/test.sh"))]
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .to_vec()
}

/// The contract and the filter's own world, as files of a project.
fn wit_files() -> Vec<(String, String)> {
    vec![
        ("wit/world.wit".to_owned(), template!("common/world.wit").to_owned()),
        ("wit/deps/rbdkit-filter/filter.wit".to_owned(), CONTRACT.to_owned()),
    ]
}
