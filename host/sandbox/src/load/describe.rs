//! The description that a filter gives of itself, checked.

use rbdkit_plugin_api::ThreadModel;
use rbdkit_plugin_api::schema::{ParamKind, ParamSpec};
use rbdkit_plugin_api::text::one_line_within;

use super::error::LoadError;
use crate::connection::bindings::host::types as wit;

/// A filter's description. Its texts have no control characters, so that they cannot break a line
/// or control a terminal.
#[derive(Clone, Debug)]
pub struct Description {
    /// What `--filter` and messages call it.
    pub name: String,
    /// The filter's own version, for people.
    pub version: String,
    /// One line.
    pub longname: String,
    /// A text of some lines for `--help`.
    pub help: String,
    /// Which calls may run at once. The parameters may change it.
    pub thread_model: ThreadModel,
    /// Whether operations that it does not export go to the layer below.
    pub transparent: bool,
    /// What happens when an instance is lost: `stateless`, `replay` or `lost`.
    pub recovery: &'static str,
    /// The version of the format of the state that it keeps in the host.
    pub state_version: u32,
    /// The parameters it takes.
    pub params: Vec<ParamSpec>,
    /// The interfaces it exports, by their names in the contract.
    pub exports: Vec<&'static str>,
    /// The interfaces it imports: the contract's by their names there, WASI's by their full names
    /// without the version.
    pub imports: Vec<String>,
}

/// How many parameters a filter may have. nbdkit's largest filters have some twenty.
const MAX_PARAMS: usize = 256;

/// How many aliases a parameter may have. Each alias is compared with all other names.
const MAX_ALIASES: usize = 16;

/// The longest help text, in bytes.
const MAX_HELP_BYTES: usize = 64 << 10;

/// Whether a text is a name: ASCII letters, digits and `extra`, at most 64 bytes, beginning with a
/// letter or a digit.
fn is_word(text: &str, extra: &[u8]) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.len() <= 64
        && bytes.all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

/// A text as one line that can be shown.
fn line(text: &str) -> String {
    one_line_within(text, 1000)
}

/// A text of several lines that can be shown.
fn lines(text: &str) -> String {
    let mut all = String::new();
    for one in text.lines() {
        if all.len() + one.len() > MAX_HELP_BYTES {
            break;
        }
        all.push_str(&line(one));
        all.push('\n');
    }
    all
}

/// The name of a kind of recovery, for people.
fn recovery(recovery: wit::Recovery) -> &'static str {
    match recovery {
        wit::Recovery::Stateless => "stateless",
        wit::Recovery::Replay => "replay",
        wit::Recovery::Lost => "lost",
    }
}

fn wrong(why: impl Into<String>) -> LoadError {
    LoadError::Description(why.into())
}

/// Checks what a guest answered to `describe`.
///
/// # Errors
/// One line that says what is not allowed.
pub(crate) fn checked(
    told: &wit::Description,
    exports: Vec<&'static str>,
    imports: Vec<String>,
) -> Result<Description, LoadError> {
    let name = line(&told.name);
    if !is_word(&told.name, b"-") || told.name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(wrong(format!("its name \"{name}\" is not of lower-case letters, digits and '-'")));
    }
    let transparent = told.unexported == wit::Unexported::Transparent;
    if !transparent && !exports.contains(&"reads") {
        return Err(wrong(
            "it is opaque and does not export reads: nothing could be read through it \
                    (export reads, or describe it as transparent)",
        ));
    }
    if let Some(param) = told.params.iter().find(|param| param.kind == ParamKind::Control.name())
        && !exports.contains(&"on-control")
    {
        let param = line(&param.name);
        return Err(wrong(format!(
            "its parameter \"{param}\" has the kind control, and it does not export on-control: nobody would serve the \
             socket"
        )));
    }
    if told.params.len() > MAX_PARAMS {
        return Err(wrong(format!("it has {} parameters (at most {MAX_PARAMS})", told.params.len())));
    }
    let mut params: Vec<ParamSpec> = Vec::with_capacity(told.params.len());
    for param in &told.params {
        let spec = checked_param(param)?;
        let taken = params
            .iter()
            .any(|known| known.answers_to(&spec.name) || spec.aliases.iter().any(|alias| known.answers_to(alias)));
        if taken {
            return Err(wrong(format!("it has two parameters that answer to \"{}\"", spec.name)));
        }
        params.push(spec);
    }
    Ok(Description {
        name,
        version: line(&told.version),
        longname: line(&told.longname),
        help: lines(&told.help),
        thread_model: told.thread_model.into(),
        transparent,
        recovery: recovery(told.recovery),
        state_version: told.state_version,
        params,
        exports,
        imports,
    })
}

fn checked_param(param: &wit::Param) -> Result<ParamSpec, LoadError> {
    let name = line(&param.name);
    if param.aliases.len() > MAX_ALIASES {
        return Err(wrong(format!(
            "its parameter {name} has {} further names (at most {MAX_ALIASES})",
            param.aliases.len()
        )));
    }
    for key in std::iter::once(&param.name).chain(&param.aliases) {
        if !is_word(key, b"-_.") || !key.as_bytes()[0].is_ascii_alphabetic() {
            return Err(wrong(format!("\"{}\" cannot be the name of a parameter", line(key))));
        }
    }
    let kind = ParamKind::parse(&param.kind).ok_or_else(|| {
        let known: Vec<&str> = ParamKind::names().collect();
        wrong(format!(
            "its parameter {name} is of the kind \"{}\", which this host does not know (it knows {})",
            line(&param.kind),
            known.join(", ")
        ))
    })?;
    if kind == ParamKind::Choice && param.choices.is_empty() {
        return Err(wrong(format!("its parameter {name} has nothing to choose from")));
    }
    Ok(ParamSpec {
        name,
        aliases: param.aliases.clone(),
        kind,
        choices: param.choices.iter().map(|choice| line(choice)).collect(),
        default: param.default.as_deref().map(line),
        required: param.required,
        repeat: param.repeat,
        pass_on: param.pass_on,
        secret: kind == ParamKind::Secret,
        help: line(&param.help),
        ..ParamSpec::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_has_few_further_names() {
        let param = |aliases: usize| wit::Param {
            name: "size".into(),
            aliases: (0..aliases).map(|n| format!("a{n}")).collect(),
            kind: "size".into(),
            choices: Vec::new(),
            default: None,
            required: false,
            repeat: false,
            pass_on: false,
            help: String::new(),
        };
        assert!(checked_param(&param(MAX_ALIASES)).is_ok());
        let why = checked_param(&param(MAX_ALIASES + 1)).unwrap_err();
        assert_eq!(why.to_string(), "its parameter size has 17 further names (at most 16)");
    }
}
