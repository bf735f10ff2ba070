//! The parameters of a replay: those on the command line, and the record's for all other keys.
//!
//! A record may come from anywhere. So a value reaches the filter only if the filter declares the
//! parameter with the same kind, and if the value is one that this kind can have.

use rbdkit_plugin_api::schema::{ParamKind, ParamSpec, ParamValue};
use rbdkit_plugin_api::text::quoted;
use rbdkit_record::format::GivenParameter;

use crate::error::{Error, Result};

/// What the filter gets.
#[derive(Debug, Default)]
pub struct Completed {
    pub values: Vec<(String, ParamValue)>,
    /// The keys whose values are the record's.
    pub from_record: Vec<String>,
    /// The record's keys that the filter does not get, because it declares no such parameter.
    pub left_out: Vec<String>,
}

/// Adds the record's parameters to those that were given.
///
/// # Errors
/// The record has no value for a parameter, or a value that is none of its kind, or a required
/// parameter is missing.
pub fn complete(
    recorded: &[GivenParameter],
    specs: &[ParamSpec],
    given: Vec<(String, ParamValue)>,
) -> Result<Completed> {
    let mut completed = Completed::default();
    let is_given = |key: &str| given.iter().any(|(known, _)| known == key);
    for one in recorded.iter().filter(|one| !is_given(&one.key)) {
        let spec = specs.iter().find(|spec| spec.name == one.key && spec.kind.name() == one.kind);
        let (Some(spec), key) = (spec, &one.key) else {
            completed.left_out.push(one.key.clone());
            continue;
        };
        let Some(text) = &one.value else {
            return Err(Error::Found(format!(
                "the record says that {key} was set, and does not have its value: give {key}=VALUE"
            )));
        };
        if !is_canonical(spec, text) {
            let (text, kind) = (quoted(text), &one.kind);
            return Err(Error::Found(format!("the record has {key}={text}, which is no value of the kind {kind}")));
        }
        completed.from_record.push(key.clone());
        completed.values.push((key.clone(), ParamValue { text: text.clone(), path: None }));
    }
    completed.values.extend(given);
    let is_there = |key: &str| completed.values.iter().any(|(known, _)| known == key);
    match specs.iter().find(|spec| spec.required && !is_there(&spec.name)) {
        Some(spec) => Err(Error::Found(format!("the filter needs the parameter {0}: give {0}=VALUE", spec.name))),
        None => Ok(completed),
    }
}

/// Whether a text is the canonical form of a value of this kind.
fn is_canonical(spec: &ParamSpec, text: &str) -> bool {
    let number_to = |most: u64| text.parse::<u64>().is_ok_and(|value| value <= most && value.to_string() == text);
    match spec.kind {
        ParamKind::String => !text.contains('\0'),
        ParamKind::Bool | ParamKind::BoolOrWatch => matches!(text, "true" | "false"),
        ParamKind::Int | ParamKind::Size | ParamKind::Duration => number_to(u64::MAX),
        ParamKind::Percent => number_to(100),
        ParamKind::Probability => number_to(1_000_000_000),
        ParamKind::Choice => spec.choices.iter().any(|choice| choice == text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, kind: ParamKind) -> ParamSpec {
        let choices = vec!["a".to_string(), "b".to_string()];
        ParamSpec { name: name.into(), kind, choices, ..ParamSpec::default() }
    }

    fn recorded(key: &str, kind: &str, value: Option<&str>) -> GivenParameter {
        GivenParameter { key: key.into(), kind: kind.into(), value: value.map(str::to_string) }
    }

    fn value(text: &str) -> ParamValue {
        ParamValue { text: text.into(), path: None }
    }

    #[test]
    fn what_is_given_comes_before_what_the_record_has() {
        let specs = [spec("size", ParamKind::Size), spec("word", ParamKind::String)];
        let records = [
            recorded("size", "size", Some("4096")),
            recorded("word", "string", Some("x")),
            recorded("gone", "string", Some("x")),
            recorded("word", "int", Some("7")),
        ];
        let completed = complete(&records, &specs, vec![("size".into(), value("512"))]).unwrap();
        assert_eq!(completed.values, [("word".into(), value("x")), ("size".into(), value("512"))]);
        assert_eq!(completed.from_record, ["word"]);
        assert_eq!(completed.left_out, ["gone", "word"]);
    }

    #[test]
    fn a_parameter_that_was_only_set_has_to_be_given() {
        let specs = [spec("file", ParamKind::PathRead)];
        let records = [recorded("file", "path-read", None)];
        let line = complete(&records, &specs, Vec::new()).unwrap_err().to_string();
        assert_eq!(line, "the record says that file was set, and does not have its value: give file=VALUE");
        assert!(complete(&records, &specs, vec![("file".into(), value("set"))]).is_ok());
        let required = ParamSpec { required: true, ..spec("must", ParamKind::Int) };
        let line = complete(&[], &[required], Vec::new()).unwrap_err().to_string();
        assert_eq!(line, "the filter needs the parameter must: give must=VALUE");
    }

    #[test]
    fn a_value_that_is_none_of_its_kind_is_refused() {
        for (kind, good, bad) in [
            (ParamKind::Bool, "true", "yes"),
            (ParamKind::Int, "0", "-1"),
            (ParamKind::Size, "18446744073709551615", "1K"),
            (ParamKind::Duration, "5", "05"),
            (ParamKind::Percent, "100", "101"),
            (ParamKind::Probability, "1000000000", "1000000001"),
            (ParamKind::Choice, "b", "c"),
            (ParamKind::String, "", "a\0b"),
            (ParamKind::BoolOrWatch, "false", "watch"),
        ] {
            let specs = [spec("key", kind)];
            let with = |text| complete(&[recorded("key", kind.name(), Some(text))], &specs, Vec::new());
            assert!(with(good).is_ok(), "{kind:?}");
            let line = with(bad).unwrap_err().to_string();
            assert!(line.starts_with("the record has key=") && line.ends_with(kind.name()), "{line}");
        }
        // A record that names a file is not believed.
        let forged = [recorded("file", "path-read", Some("/etc/shadow"))];
        assert!(complete(&forged, &[spec("file", ParamKind::PathRead)], Vec::new()).is_err());
    }
}
