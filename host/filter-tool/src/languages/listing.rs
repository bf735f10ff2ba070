//! Compares what a source implements, as a script in the source's own language lists it, with the
//! project's world.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::Value;

use super::bindings::Wit;
use super::operations;
use super::project::Project;
use super::run::output;
use crate::error::{Error, Result};

/// A script that prints what the files of a filter implement, as JSON. `implemented` is what the
/// first file offers, for example `{"reads": {"pread": {"file": "filter.js", "line": 7, "async":
/// false}}}`. Null stands for an interface whose functions are not known, because they are not
/// written out. `elsewhere` lists what has the name of an interface and is not offered by the first
/// file, for example `[{"file": "trims.js", "line": 3, "name": "trims", "functions": ["trim"]}]`.
/// `describe`, if it is there, has the place and the fields of the description.
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
    /// Runs the script with these arguments. `first` is the file that the host calls.
    ///
    /// # Errors
    /// The source is wrong, implements something else than the world exports, or has operations
    /// that are asynchronous.
    pub fn compare(&self, project: &Project, arguments: &[&OsStr], first: &str) -> Result<()> {
        let script = project.made()?.join(self.name);
        std::fs::write(&script, self.text).map_err(Error::file("cannot write", &script))?;
        let listed = output(Command::new(self.interpreter).current_dir(&project.dir).arg(&script).args(arguments))?;
        let listed: Value = serde_json::from_str(&listed).map_err(|error| Error::Contract {
            doing: "cannot list what the filter implements",
            source: error.into(),
        })?;
        let implemented = &listed["implemented"];
        let find = |interface: &str, function: &str| implemented.get(interface)?.get((self.spelled)(function));
        let wit = Wit::read(&project.path("wit"))?;
        let all = wit.everything();
        let operations =
            all.iter().flat_map(|(interface, functions)| functions.iter().map(move |one| (interface, one)));
        let asynchronous: Vec<String> = operations
            .filter_map(|(interface, function)| {
                let about = find(interface, function).filter(|about| about["async"] == true)?;
                let operation = format!("{interface}.{}", (self.spelled)(function));
                Some(operations::asynchronous(&place(about), &operation))
            })
            .collect();
        let out_of_reach = listed["elsewhere"].as_array().into_iter().flatten().filter_map(|other| {
            let name = other["name"].as_str()?;
            let has = |function: &String| {
                let function = (self.spelled)(function);
                other["functions"].as_array().is_some_and(|all| all.iter().any(|one| *one == *function))
            };
            all.get(name)?.iter().any(has).then(|| operations::out_of_reach(&place(other), name, first))
        });
        let describe = &listed["describe"];
        let missing = describe["fields"].as_array().into_iter().flat_map(|given| {
            let fields = wit.fields("description").into_iter().map(|field| (self.spelled)(&field));
            let missing = fields.filter(|field| !given.iter().any(|one| *one == **field));
            missing.map(|field| operations::missing_field(&place(describe), &field)).collect::<Vec<_>>()
        });
        let wrong: Vec<String> = asynchronous.into_iter().chain(out_of_reach).chain(missing).collect();
        if !wrong.is_empty() {
            return Err(Error::Operations(wrong));
        }
        operations::compare(&wit.exports(), &all, "wit/world.wit", |interface, function| {
            let is_unknown = implemented.get(interface).is_some_and(Value::is_null);
            is_unknown || find(interface, function).is_some()
        })
    }
}

/// The file and the line of something that was listed.
fn place(about: &Value) -> String {
    format!("{}:{}", about["file"].as_str().unwrap_or_default(), about["line"])
}
