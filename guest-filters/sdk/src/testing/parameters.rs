//! Reading `key=value` as the server does: by the filter's declarations, into canonical form.

use crate::Param;
use crate::bindings::host::rbdkit::filter::types;
use crate::units;

/// What a filter gets.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    /// Names and canonical values.
    pub(super) values: Vec<(String, String)>,
    /// Of secrets and of those that name a file: the parameter's name and what the user wrote.
    pub(super) paths: Vec<(String, String)>,
}

/// The kinds of which only the host sees what the user wrote.
const HOST_ONLY: [&str; 14] = [
    "path-read",
    "path-now",
    "path-append",
    "path-write",
    "path-readwrite",
    "disk",
    "watch",
    "bool-or-watch",
    "script",
    "string-or-script",
    "descriptor",
    "process",
    "secret",
    "control",
];

/// Reads the words of a command line.
///
/// # Errors
/// The server's line for the user.
pub(super) fn assign(filter: &str, declared: &[Param], words: &[&str]) -> Result<Assigned, String> {
    assign_over(filter, declared, &[], words)
}

/// Reads the words of a command line. `given` is what a record has: keys, kinds and canonical
/// values. A word replaces what is given under its key. What the filter does not declare with the
/// same kind is left out.
///
/// # Errors
/// The server's line for the user.
pub(super) fn assign_over(
    filter: &str,
    declared: &[Param],
    given: &[(&str, &str, &str)],
    words: &[&str],
) -> Result<Assigned, String> {
    let mut assigned = Assigned::default();
    for (key, kind, value) in given {
        let named =
            |param: &&types::Param, key: &str| param.name == key || param.aliases.iter().any(|alias| alias == key);
        let Some(param) = declared.iter().map(Param::contract).find(|param| named(param, key)) else { continue };
        let is_replaced = words.iter().filter_map(|word| word.split_once('=')).any(|(word, _)| named(&param, word));
        if !is_replaced && param.kind == *kind && is_canonical(param, value) {
            assigned.values.push((param.name.clone(), value.to_string()));
        }
    }
    for word in words {
        let (key, text) = word.split_once('=').ok_or_else(|| format!("{word}: is not of the form key=value"))?;
        let param = declared
            .iter()
            .map(Param::contract)
            .find(|param| param.name == key || param.aliases.iter().any(|alias| alias == key))
            .ok_or_else(|| format!("{filter}: unknown parameter '{key}'"))?;
        let value = canonical(param, text).map_err(|wrong| format!("{key}={text}: {wrong}"))?;
        if !param.repeat {
            assigned.values.retain(|(name, _)| *name != param.name);
            assigned.paths.retain(|(name, _)| *name != param.name);
        }
        if HOST_ONLY.contains(&&*param.kind) {
            let path = match &*value {
                "watch" | "set" => text.to_string(),
                "script:" => text["script:".len()..].to_string(),
                _ => value.clone(),
            };
            assigned.paths.push((param.name.clone(), path));
        }
        assigned.values.push((param.name.clone(), value));
    }
    let lacks = |param: &&types::Param| param.required && !assigned.values.iter().any(|(name, _)| *name == param.name);
    match declared.iter().map(Param::contract).find(lacks) {
        Some(param) => {
            let kind = param.kind.to_ascii_uppercase();
            Err(format!("{filter}: the parameter {}=<{kind}> is required: {}", param.name, param.help))
        }
        None => Ok(assigned),
    }
}

/// Whether a value of a record has the form in which the filter gets one. A record has no values of
/// the other kinds.
fn is_canonical(param: &types::Param, value: &str) -> bool {
    match &*param.kind {
        "string" => true,
        "bool" => matches!(value, "true" | "false"),
        "choice" => param.choices.iter().any(|choice| choice == value),
        "int" | "size" | "duration" | "probability" | "percent" => value.parse::<u64>().is_ok(),
        _ => false,
    }
}

/// The form in which the filter gets a value.
fn canonical(param: &types::Param, text: &str) -> Result<String, String> {
    match &*param.kind {
        "string" => Ok(text.to_string()),
        "bool" => units::parse_bool(text).map(|value| value.to_string()),
        "int" => units::parse_whole(text, u64::MAX).map(|value| value.to_string()),
        "size" => units::parse_size(text).map(|value| value.to_string()),
        "duration" => units::parse_duration(text).map(|value| value.to_string()),
        "probability" => units::parse_probability(text).map(|value| value.to_string()),
        "percent" => units::parse_whole(text.strip_suffix('%').unwrap_or(text), 100)
            .map(|value| value.to_string())
            .map_err(|_| "is not a percentage from 0 to 100".to_string()),
        "choice" if param.choices.iter().any(|choice| choice == text) => Ok(text.to_string()),
        "choice" => Err(format!("is not one of {}", param.choices.join(", "))),
        "bool-or-watch" if text.starts_with('/') => Ok("watch".to_string()),
        "bool-or-watch" => units::parse_bool(text)
            .map(|value| value.to_string())
            .map_err(|_| "is neither true, false nor an absolute path".to_string()),
        "secret" => Ok("set".to_string()),
        "descriptor" | "process" => {
            let least = u64::from(&*param.kind == "process");
            let number = units::parse_whole(text, i32::MAX as u64).ok().filter(|number| *number >= least);
            number.map(|_| "set".to_string()).ok_or_else(|| format!("is not the number of a {}", param.kind))
        }
        "script" if text.is_empty() => Err("is not a shell command".to_string()),
        "script" => Ok("set".to_string()),
        "string-or-script" => match text.strip_prefix("script:") {
            Some("") => Err("is not a shell command".to_string()),
            Some(_) => Ok("script:".to_string()),
            None => Ok(text.to_string()),
        },
        "disk" if text.is_empty() => Err("is not a disk".to_string()),
        kind if HOST_ONLY.contains(&kind) && text.is_empty() => Err("is not the name of a file".to_string()),
        kind if HOST_ONLY.contains(&kind) => Ok("set".to_string()),
        kind => Err(format!("the contract has no parameters of the kind {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(declared: &[Param], words: &[&str]) -> Result<Vec<(String, String)>, String> {
        assign("mine", declared, words).map(|assigned| assigned.values)
    }

    #[test]
    fn values_are_read_as_the_user_writes_them() {
        for (param, text, value) in [
            (Param::bool("key"), "YES", "true"),
            (Param::int("key"), "0x1f", "31"),
            (Param::size("key"), "2k", "2048"),
            (Param::duration("key"), "2ms", "2000000"),
            (Param::percent("key"), "95%", "95"),
            (Param::probability("key"), "50%", "500000000"),
            (Param::choice("key", &["one", "two"]), "two", "two"),
            (Param::bool_or_watch("key"), "/tmp/x", "watch"),
            (Param::path_now("key"), "x", "set"),
            (Param::control("key"), "x", "set"),
            (Param::secret("key"), "hush", "set"),
            (Param::descriptor("key"), "0", "set"),
            (Param::process("key"), "17", "set"),
            (Param::path_write("key"), "x", "set"),
            (Param::path_readwrite("key"), "x", "set"),
            (Param::disk("key"), "x", "set"),
            (Param::script("key"), "echo", "set"),
            (Param::string_or_script("key"), "fixed:x", "fixed:x"),
            (Param::string_or_script("key"), "script:echo", "script:"),
        ] {
            let word = format!("key={text}");
            assert_eq!(values(&[param], &[&word]), Ok(vec![("key".into(), value.into())]), "{text}");
        }
    }

    #[test]
    fn what_the_declaration_does_not_allow_is_refused_in_the_servers_words() {
        let size = || Param::size("size").help("How large.");
        assert_eq!(values(&[size()], &["szie=1"]), Err("mine: unknown parameter 'szie'".into()));
        assert!(values(&[size()], &["size=big"]).is_err_and(|error| error.starts_with("size=big: is not a size")));
        let missing = "mine: the parameter size=<SIZE> is required: How large.";
        assert_eq!(values(&[size().required()], &[]), Err(missing.into()));
    }

    #[test]
    fn the_last_value_counts_unless_the_parameter_repeats() {
        let given = ["n=1", "m=2"];
        let one = values(&[Param::int("n").alias("m")], &given);
        assert_eq!(one, Ok(vec![("n".into(), "2".into())]));
        let both = values(&[Param::int("n").alias("m").repeat()], &given);
        assert_eq!(both, Ok(vec![("n".into(), "1".into()), ("n".into(), "2".into())]));
    }
}
