//! What the tool knows of a language, and the files that projects in several languages have.

use super::project::Project;
use super::tools::Way;
use crate::error::Result;

/// The contract, so that a filter can be built without rbdkit's source.
pub const CONTRACT: &str = include_str!("../../../../wit/filter.wit");

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

/// Nothing has to be prepared.
pub fn nothing(_: &Project) -> Result<()> {
    Ok(())
}

/// A file of a template.
macro_rules! template {
    ($place:literal) => {
        include_str!(concat!("../../templates/", $place))
    };
}
pub(super) use template;

/// The files of a project: those that every language has, and then a language's own. Of two files
/// with one path the later one stays.
pub fn with_common(own: &[(&str, &str)]) -> Vec<(String, String)> {
    let common = [("README.md", template!("common/README.md")), ("test.sh", template!("common/test.sh"))];
    common.iter().chain(own).map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// [`with_common`], and the filter's own world with the contract.
pub fn with_world(own: &[(&str, &str)]) -> Vec<(String, String)> {
    let world = [("wit/world.wit", template!("common/world.wit")), ("wit/deps/rbdkit-filter/filter.wit", CONTRACT)];
    with_common(&[&world, own].concat())
}

/// Adds text at the end of a file of a project.
pub fn append(files: &mut [(String, String)], path: &str, more: &str) {
    files.iter_mut().filter(|(other, _)| other == path).for_each(|(_, text)| text.push_str(more));
}
