//! How a filter describes itself and its parameters.

use crate::bindings::host::rbdkit::filter::types;
use crate::{Recovery, ThreadModel, Unexported};

/// What [`Filter::describe`](crate::Filter::describe) answers.
///
/// Unless it is said otherwise a filter is parallel, opaque, stateless and has no parameters.
#[derive(Clone, Debug)]
pub struct Description(types::Description);

impl Description {
    /// `name` is what `--filter` calls it (lower-case letters, digits, `-`), `version` the filter's own, `longname` one line.
    pub fn new(name: &str, version: &str, longname: &str) -> Description {
        Description(types::Description {
            name: name.into(),
            version: version.into(),
            longname: longname.into(),
            help: String::new(),
            thread_model: ThreadModel::Parallel,
            unexported: Unexported::Opaque,
            recovery: Recovery::Stateless,
            state_version: 0,
            params: Vec::new(),
        })
    }

    /// Some lines for `--help`.
    pub fn help(mut self, help: &str) -> Self {
        self.0.help = help.into();
        self
    }

    /// How many calls may run at once, and so what `self` may be used for.
    pub fn thread_model(mut self, model: ThreadModel) -> Self {
        self.0.thread_model = model;
        self
    }

    /// What is not exported passes by, untouched. Only for filters that neither move nor change data.
    pub fn transparent(mut self) -> Self {
        self.0.unexported = Unexported::Transparent;
        self
    }

    /// What is left when an instance was lost.
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.0.recovery = recovery;
        self
    }

    /// To be raised whenever what is kept in maps, slots and scratch changes its meaning.
    pub fn state_version(mut self, version: u32) -> Self {
        self.0.state_version = version;
        self
    }

    /// One more parameter.
    pub fn param(mut self, param: Param) -> Self {
        self.0.params.push(param.0);
        self
    }

    pub(crate) fn main_name(&self, key: &str) -> Option<&str> {
        let of = |param: &&types::Param| param.name == key || param.aliases.iter().any(|alias| alias == key);
        self.0.params.iter().find(of).map(|param| param.name.as_str())
    }

    #[doc(hidden)]
    pub fn into_contract(self) -> types::Description {
        self.0
    }
}

/// A parameter, `name=value` on the command line. The host reads and checks the value by the kind that is chosen here.
#[derive(Clone, Debug)]
pub struct Param(types::Param);

impl Param {
    fn new(name: &str, kind: &str) -> Param {
        Param(types::Param {
            name: name.into(),
            aliases: Vec::new(),
            kind: kind.into(),
            choices: Vec::new(),
            default: None,
            required: false,
            repeat: false,
            pass_on: false,
            help: String::new(),
        })
    }

    /// Any text.
    pub fn string(name: &str) -> Param {
        Param::new(name, "string")
    }

    /// True or false.
    pub fn bool(name: &str) -> Param {
        Param::new(name, "bool")
    }

    /// A whole number from 0.
    pub fn int(name: &str) -> Param {
        Param::new(name, "int")
    }

    /// Bytes: `512`, `64k`, `1G`.
    pub fn size(name: &str) -> Param {
        Param::new(name, "size")
    }

    /// A duration: `2`, `50ms`.
    pub fn duration(name: &str) -> Param {
        Param::new(name, "duration")
    }

    /// A whole number from 0 to 100.
    pub fn percent(name: &str) -> Param {
        Param::new(name, "percent")
    }

    /// A chance: `10%`, `0.1`, `1:1000`.
    pub fn probability(name: &str) -> Param {
        Param::new(name, "probability")
    }

    /// One of some words.
    pub fn choice(name: &str, choices: &[&str]) -> Param {
        let mut param = Param::new(name, "choice");
        param.0.choices = choices.iter().map(|choice| choice.to_string()).collect();
        param
    }

    /// A file to be read with [`files`](crate::files).
    pub fn path_read(name: &str) -> Param {
        Param::new(name, "path-read")
    }

    /// A file to be read with [`files`](crate::files) that may be missing, and may be replaced while the server runs.
    pub fn path_now(name: &str) -> Param {
        Param::new(name, "path-now")
    }

    /// A file to be appended to with [`files`](crate::files).
    pub fn path_append(name: &str) -> Param {
        Param::new(name, "path-append")
    }

    /// A path whose existence [`files::holds`](crate::files::holds) tells.
    pub fn watch(name: &str) -> Param {
        Param::new(name, "watch")
    }

    /// True, false, or a path whose existence is the answer.
    pub fn bool_or_watch(name: &str) -> Param {
        Param::new(name, "bool-or-watch")
    }

    /// Another key that means the same.
    pub fn alias(mut self, name: &str) -> Self {
        self.0.aliases.push(name.into());
        self
    }

    /// As the user would write it, for the help text: the filter applies it itself.
    pub fn default(mut self, default: &str) -> Self {
        self.0.default = Some(default.into());
        self
    }

    /// It has to be given.
    pub fn required(mut self) -> Self {
        self.0.required = true;
        self
    }

    /// It may be given more than once.
    pub fn repeat(mut self) -> Self {
        self.0.repeat = true;
        self
    }

    /// The layers below get it as well.
    pub fn pass_on(mut self) -> Self {
        self.0.pass_on = true;
        self
    }

    /// One sentence.
    pub fn help(mut self, help: &str) -> Self {
        self.0.help = help.into();
        self
    }
}
