//! How a filter describes itself and its parameters.

use crate::bindings::host::rbdkit::filter::types;
use types::{Recovery, ThreadModel, Unexported};

/// What [`Filter::describe`](crate::Filter::describe) returns.
///
/// By default a filter is parallel, opaque and stateless. Its parameters come from
/// [`Filter::Params`](crate::Filter::Params).
#[derive(Clone, Debug)]
pub struct Description(types::Description);

impl Description {
    /// `name` is the name for `--filter` (lower-case letters, digits, `-`). `version` is the
    /// filter's own. `longname` is one line.
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

    /// A few lines for `--help`.
    pub fn help(mut self, help: &str) -> Self {
        self.0.help = help.into();
        self
    }

    /// How many calls may run at once, and so what `self` may hold.
    pub fn thread_model(mut self, model: ThreadModel) -> Self {
        self.0.thread_model = model;
        self
    }

    /// Operations that the filter does not export pass through unchanged. Only for filters that
    /// neither move nor change data.
    pub fn transparent(mut self) -> Self {
        self.0.unexported = Unexported::Transparent;
        self
    }

    /// What the host does when an instance was lost to a trap.
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.0.recovery = recovery;
        self
    }

    /// A number that must change when the meaning of the filter's maps, slots or scratch changes.
    pub fn state_version(mut self, version: u32) -> Self {
        self.0.state_version = version;
        self
    }

    #[doc(hidden)]
    pub fn into_contract(mut self, params: Vec<Param>) -> types::Description {
        self.0.params = params.into_iter().map(|param| param.0).collect();
        self.0
    }
}

/// The declaration of a parameter, `name=value` on the command line. The host parses and checks the
/// value according to its kind. [`params!`](crate::params!) makes it.
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

    /// The name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The kind, as the contract calls it.
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn contract(&self) -> &types::Param {
        &self.0
    }

    /// The same parameter under another name.
    pub(crate) fn rename(mut self, name: &str) -> Self {
        self.0.name = name.into();
        self
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

    /// One of the words in `choices`.
    pub fn choice(name: &str, choices: &[&str]) -> Param {
        let mut param = Param::new(name, "choice");
        param.0.choices = choices.iter().map(|choice| choice.to_string()).collect();
        param
    }

    /// A file that the filter reads with [`files`](crate::files).
    pub fn path_read(name: &str) -> Param {
        Param::new(name, "path-read")
    }

    /// A file that the filter reads with [`files`](crate::files). It may be missing, and may be
    /// replaced while the server runs.
    pub fn path_now(name: &str) -> Param {
        Param::new(name, "path-now")
    }

    /// A file that the filter appends to with [`files`](crate::files).
    pub fn path_append(name: &str) -> Param {
        Param::new(name, "path-append")
    }

    /// A file that the filter appends to, and that it may empty, with [`files`](crate::files).
    pub fn path_write(name: &str) -> Param {
        Param::new(name, "path-write")
    }

    /// A file that is kept, which the filter uses with [`storage`](crate::storage).
    pub fn path_readwrite(name: &str) -> Param {
        Param::new(name, "path-readwrite")
    }

    /// A disk beside next, which the filter reads with [`disks`](crate::disks).
    pub fn disk(name: &str) -> Param {
        Param::new(name, "disk")
    }

    /// A shell command of the operator, which the filter runs with [`scripts`](crate::scripts).
    pub fn script(name: &str) -> Param {
        Param::new(name, "script")
    }

    /// Text, or `script:` and a shell command. The filter sees `script:` for a command.
    pub fn string_or_script(name: &str) -> Param {
        Param::new(name, "string-or-script")
    }

    /// A path; [`files::holds`](crate::files::holds) says whether it exists.
    pub fn watch(name: &str) -> Param {
        Param::new(name, "watch")
    }

    /// A path at which the host makes a Unix socket for commands to the filter. What arrives there
    /// is passed to [`OnControl`](crate::OnControl).
    pub fn control(name: &str) -> Param {
        Param::new(name, "control")
    }

    /// A descriptor that the operator passed; [`files::holds`](crate::files::holds) says whether
    /// its other end is open.
    pub fn descriptor(name: &str) -> Param {
        Param::new(name, "descriptor")
    }

    /// A process; [`files::holds`](crate::files::holds) says whether it runs.
    pub fn process(name: &str) -> Param {
        Param::new(name, "process")
    }

    /// True, false, or a path: then the value is whether the path exists.
    pub fn bool_or_watch(name: &str) -> Param {
        Param::new(name, "bool-or-watch")
    }

    /// A password, which the filter uses with [`crypto`](crate::crypto) and never sees.
    pub fn secret(name: &str) -> Param {
        Param::new(name, "secret")
    }

    /// Another key with the same meaning.
    pub fn alias(mut self, name: &str) -> Self {
        self.0.aliases.push(name.into());
        self
    }

    /// The default as the user would write it, for the help text. The filter applies it itself.
    pub fn default(mut self, default: &str) -> Self {
        self.0.default = Some(default.into());
        self
    }

    /// The parameter must be given.
    pub fn required(mut self) -> Self {
        self.0.required = true;
        self
    }

    /// The parameter need not be given.
    pub(crate) fn optional(mut self) -> Self {
        self.0.required = false;
        self
    }

    /// The parameter may be given more than once.
    pub fn repeat(mut self) -> Self {
        self.0.repeat = true;
        self
    }

    /// The layers below receive it as well.
    pub fn pass_on(mut self) -> Self {
        self.0.pass_on = true;
        self
    }

    /// One sentence for the help text.
    pub fn help(mut self, help: &str) -> Self {
        self.0.help = help.into();
        self
    }
}
