//! Compares what a source implements, as a script in the source's own language lists it, with the
//! project's world.

use std::process::Command;

use serde_json::Value;

use super::bindings::Wit;
use super::operations;
use super::project::Project;
use super::run::output;
use crate::error::{Error, Result};

/// A script that prints what a source implements, as JSON, for example
/// `{"reads": {"pread": {"line": 7, "async": false}}}`. Null stands for an interface whose
/// functions are not known, because they are not written out.
pub struct Lister {
    /// The program that runs it.
    pub interpreter: &'static str,
    /// Its name in `target/`, where its modules are found from.
    pub name: &'static str,
    pub text: &'static str,
    /// How the source writes the name of a function.
    pub spelled: fn(&str) -> String,
}

impl Lister {
    /// Runs the script with these arguments. `shown` is the author's file.
    ///
    /// # Errors
    /// The source is wrong, implements something else than the world exports, or has operations
    /// that are asynchronous.
    pub fn compare(&self, project: &Project, arguments: &[&std::ffi::OsStr], shown: &str) -> Result<()> {
        let script = project.made()?.join(self.name);
        std::fs::write(&script, self.text).map_err(Error::file("cannot write", &script))?;
        let listed = output(Command::new(self.interpreter).current_dir(&project.dir).arg(&script).args(arguments))?;
        let listed: Value = serde_json::from_str(&listed).map_err(|error| Error::Contract {
            doing: "cannot list what the filter implements",
            source: error.into(),
        })?;
        let find = |interface: &str, function: &str| listed.get(interface)?.get((self.spelled)(function));
        let wit = Wit::read(&project.path("wit"))?;
        let all = wit.everything();
        let operations =
            all.iter().flat_map(|(interface, functions)| functions.iter().map(move |one| (interface, one)));
        let asynchronous: Vec<String> = operations
            .filter_map(|(interface, function)| {
                let about = find(interface, function).filter(|about| about["async"] == true)?;
                let operation = format!("{interface}.{}", (self.spelled)(function));
                Some(operations::asynchronous(shown, &about["line"], &operation))
            })
            .collect();
        if !asynchronous.is_empty() {
            return Err(Error::Operations(asynchronous));
        }
        operations::compare(&wit.exports(), &all, "wit/world.wit", |interface, function| {
            let is_unknown = listed.get(interface).is_some_and(Value::is_null);
            is_unknown || find(interface, function).is_some()
        })
    }
}
