//! Which layer gets which parameter.
//!
//! The rules, for `key=value` after the plugin's name, in the order of the command line:
//!
//! 1. The filter nearest the client that declares the key (or has it for an alias) takes it. With `pass_on` the layers below
//!    get it too, by the same rule.
//! 2. What no filter declares goes to the plugin, as nbdkit's plugins expect it: in order, repetitions included.
//! 3. A bare word is the value of the plugin's magic key. It goes to the plugin whatever filters declare: nobody who writes
//!    `memory 1G` means a filter.
//! 4. A key that a filter takes once and that is given again: the last one wins, as in nbdkit.
//! 5. `--filter-param FILTER:key=value` goes to that filter and nowhere else, after all the others, so it wins.
//!
//! A filter that takes a key which the plugin's help lists hides it: that is worth a warning.

use std::ffi::{OsStr, OsString};

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::schema::{ParamSpec, ParamValue};

use super::{Parameter, Target, TargetedParameter, nearest};

/// A filter that was loaded.
#[derive(Clone, Copy)]
pub struct Filter<'a> {
    /// Its name for itself.
    pub name: &'a str,
    /// What it declares.
    pub specs: &'a [ParamSpec],
}

/// The plugin.
#[derive(Clone, Copy)]
pub struct PluginSide<'a> {
    /// Its name.
    pub name: &'a str,
    /// The key of bare words.
    pub magic_key: Option<&'a str>,
    /// Its help, one parameter a line.
    pub help: &'a str,
}

/// Who gets what.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// For each filter its parameters, under their declared names, checked and canonical.
    pub filters: Vec<Vec<(String, ParamValue)>>,
    /// For the plugin, in the order of the command line.
    pub plugin: Vec<(String, OsString)>,
    /// What the user should be told.
    pub warnings: Vec<String>,
}

/// Distributes parameters. `filters` are in the order of the command line.
///
/// # Errors
/// One line: a value that its filter cannot take, a required parameter that is missing, a bare word for a plugin that
/// has no magic key, or a `--filter-param` for a filter or key that is not there.
pub fn assign(
    filters: &[Filter<'_>],
    plugin: PluginSide<'_>,
    params: &[Parameter],
    targeted: &[TargetedParameter],
) -> Result<Assignment, ConfigError> {
    let mut assignment = Assignment { filters: vec![Vec::new(); filters.len()], ..Assignment::default() };
    for param in params {
        match param {
            Parameter::Keyed(key, value) => assignment.distribute(filters, plugin, key, value)?,
            Parameter::Bare(value) => {
                let key = plugin.magic_key.ok_or_else(|| bare_word_without_a_key(plugin, value))?;
                assignment.plugin.push((key.to_string(), value.clone()));
            }
        }
    }
    for TargetedParameter { target, key, value } in targeted {
        let index = find(filters, target, "--filter-param")?;
        let filter = &filters[index];
        let spec = filter.specs.iter().find(|spec| spec.answers_to(key)).ok_or_else(|| undeclared(filter, key))?;
        assignment.give(index, spec, key, value)?;
    }
    check_required(filters, &assignment)?;
    Ok(assignment)
}

/// The filter that a target names.
///
/// # Errors
/// One line that lists the filters that there are.
pub fn find(filters: &[Filter<'_>], target: &Target, option: &str) -> Result<usize, ConfigError> {
    let named = filters.iter().enumerate().filter(|(_, filter)| filter.name == target.name);
    named.map(|(index, _)| index).nth(target.instance - 1).ok_or_else(|| {
        let names: Vec<&str> = filters.iter().map(|filter| filter.name).collect();
        ConfigError::new(match names.is_empty() {
            true => format!("{option} {target}: no filter is given"),
            false => format!("{option} {target}: there is no such filter here, only {}", names.join(", ")),
        })
    })
}

impl Assignment {
    fn distribute(
        &mut self,
        filters: &[Filter<'_>],
        plugin: PluginSide<'_>,
        key: &str,
        value: &OsStr,
    ) -> Result<(), ConfigError> {
        for (index, filter) in filters.iter().enumerate() {
            let Some(spec) = filter.specs.iter().find(|spec| spec.answers_to(key)) else {
                continue;
            };
            self.give(index, spec, key, value)?;
            if spec.pass_on {
                continue;
            }
            if help_lists(plugin.help, key) {
                // Without the value: it may be the plugin's password.
                self.warnings.push(format!(
                    "{key}=: taken by the {} filter, the {} plugin's parameter of that name is hidden",
                    filter.name, plugin.name
                ));
            }
            return Ok(());
        }
        self.plugin.push((key.to_string(), value.to_os_string()));
        Ok(())
    }

    fn give(&mut self, index: usize, spec: &ParamSpec, key: &str, value: &OsStr) -> Result<(), ConfigError> {
        let value = spec.read(key, value)?;
        let taken = &mut self.filters[index];
        match taken.iter_mut().find(|(name, _)| !spec.repeat && *name == spec.name) {
            Some((_, earlier)) => *earlier = value,
            None => taken.push((spec.name.clone(), value)),
        }
        Ok(())
    }
}

fn check_required(filters: &[Filter<'_>], assignment: &Assignment) -> Result<(), ConfigError> {
    for (filter, taken) in filters.iter().zip(&assignment.filters) {
        for spec in filter.specs.iter().filter(|spec| spec.required) {
            if !taken.iter().any(|(name, _)| *name == spec.name) {
                return Err(ConfigError::new(format!(
                    "{}: the parameter {}=<{}> is required: {}",
                    filter.name,
                    spec.name,
                    spec.kind.name().to_ascii_uppercase(),
                    spec.help
                )));
            }
        }
    }
    Ok(())
}

/// The error for a bare word where the plugin has no magic key.
pub fn bare_word_without_a_key(plugin: PluginSide<'_>, value: &OsStr) -> ConfigError {
    let value = value.to_string_lossy();
    ConfigError::new(format!("{}: expecting key=value on the command line but got: {value}", plugin.name))
}

fn undeclared(filter: &Filter<'_>, key: &str) -> ConfigError {
    let names = || filter.specs.iter().map(|spec| spec.name.as_str());
    ConfigError::new(match nearest(key, names()) {
        Some(name) => format!("{}: unknown parameter '{key}': did you mean {name}?", filter.name),
        None if filter.specs.is_empty() => format!("{}: unknown parameter '{key}': it has none", filter.name),
        None => {
            format!("{}: unknown parameter '{key}': it has {}", filter.name, names().collect::<Vec<_>>().join(", "))
        }
    })
}

/// Whether a plugin's help has a line for `key`: `key=...` or, for a magic key, `[key=]...`.
fn help_lists(help: &str, key: &str) -> bool {
    help.lines().any(|line| {
        let line = line.trim_start().trim_start_matches('[');
        line.strip_prefix(key).is_some_and(|rest| rest.starts_with('='))
    })
}

#[cfg(test)]
mod tests {
    use rbdkit_plugin_api::schema::ParamKind;

    use super::*;

    fn spec(name: &str, kind: ParamKind) -> ParamSpec {
        ParamSpec {
            name: name.into(),
            aliases: vec![],
            kind,
            choices: vec![],
            default: None,
            required: false,
            repeat: false,
            pass_on: false,
            help: "What it is".into(),
        }
    }

    const PLUGIN: PluginSide<'static> =
        PluginSide { name: "memory", magic_key: Some("size"), help: "[size=]SIZE  Size\nallocator=sparse  How" };

    fn keyed(words: &[(&str, &str)]) -> Vec<Parameter> {
        words.iter().map(|(key, value)| Parameter::Keyed(key.to_string(), value.into())).collect()
    }

    fn texts(assignment: &Assignment, filter: usize) -> Vec<(&str, &str)> {
        assignment.filters[filter].iter().map(|(key, value)| (key.as_str(), value.text.as_str())).collect()
    }

    fn aimed(name: &str, instance: usize, key: &str, value: &str) -> TargetedParameter {
        let target = Target { name: name.into(), instance };
        TargetedParameter { target, key: key.into(), value: value.into() }
    }

    #[test]
    fn the_outermost_filter_that_declares_a_key_takes_it() {
        let specs = [spec("delay", ParamKind::Duration)];
        let filters = [
            Filter { name: "a", specs: &[] },
            Filter { name: "b", specs: &specs },
            Filter { name: "c", specs: &specs },
        ];
        let assignment = assign(&filters, PLUGIN, &keyed(&[("delay", "1ms"), ("allocator", "sparse")]), &[]).unwrap();
        assert_eq!(texts(&assignment, 1), [("delay", "1000000")]);
        assert!(assignment.filters[0].is_empty() && assignment.filters[2].is_empty());
        assert_eq!(assignment.plugin, [("allocator".to_string(), "sparse".into())]);
    }

    #[test]
    fn pass_on_hands_a_key_to_the_layers_below_as_well() {
        let passing = [ParamSpec { pass_on: true, ..spec("size", ParamKind::Size) }];
        let keeping = [spec("size", ParamKind::Size)];
        let both = [Filter { name: "a", specs: &passing }, Filter { name: "b", specs: &keeping }];
        let assignment = assign(&both, PLUGIN, &keyed(&[("size", "1k")]), &[]).unwrap();
        assert_eq!((texts(&assignment, 0), texts(&assignment, 1)), (vec![("size", "1024")], vec![("size", "1024")]));
        assert!(assignment.plugin.is_empty());
        let assignment = assign(&both[..1], PLUGIN, &keyed(&[("size", "1k")]), &[]).unwrap();
        assert_eq!(assignment.plugin, [("size".to_string(), "1k".into())]);
        assert!(assignment.warnings.is_empty());
    }

    #[test]
    fn a_filter_that_hides_a_parameter_of_the_plugin_is_worth_a_warning() {
        let specs = [spec("size", ParamKind::Size), spec("other", ParamKind::Int)];
        let filters = [Filter { name: "a", specs: &specs }];
        let assignment = assign(&filters, PLUGIN, &keyed(&[("other", "1"), ("size", "1k")]), &[]).unwrap();
        assert_eq!(
            assignment.warnings,
            ["size=: taken by the a filter, the memory plugin's parameter of that name is hidden"]
        );
    }

    #[test]
    fn bare_words_go_to_the_plugins_magic_key_whatever_filters_declare() {
        let specs = [spec("size", ParamKind::Size)];
        let filters = [Filter { name: "a", specs: &specs }];
        let words = [Parameter::Bare("1G".into()), Parameter::Bare("2G".into())];
        let assignment = assign(&filters, PLUGIN, &words, &[]).unwrap();
        assert!(assignment.filters[0].is_empty());
        assert_eq!(assignment.plugin, [("size".to_string(), "1G".into()), ("size".to_string(), "2G".into())]);
        let none = PluginSide { magic_key: None, name: "eval", ..PLUGIN };
        let error = assign(&[], none, &words, &[]).unwrap_err().to_string();
        assert_eq!(error, "eval: expecting key=value on the command line but got: 1G");
    }

    #[test]
    fn aliases_arrive_under_the_declared_name_and_the_last_value_wins() {
        let specs = [
            ParamSpec { aliases: vec!["read-delay".into()], ..spec("rdelay", ParamKind::Duration) },
            ParamSpec { repeat: true, ..spec("add", ParamKind::Int) },
        ];
        let filters = [Filter { name: "delay", specs: &specs }];
        let params = keyed(&[("rdelay", "1"), ("add", "1"), ("read-delay", "2"), ("add", "2")]);
        let assignment = assign(&filters, PLUGIN, &params, &[]).unwrap();
        assert_eq!(texts(&assignment, 0), [("rdelay", "2000000000"), ("add", "1"), ("add", "2")]);
    }

    #[test]
    fn a_targeted_parameter_reaches_only_its_filter_and_wins() {
        let specs = [spec("size", ParamKind::Size)];
        let filters = [Filter { name: "x", specs: &specs }, Filter { name: "x", specs: &specs }];
        let targeted = [aimed("x", 2, "size", "2k"), aimed("x", 1, "size", "3k")];
        let assignment = assign(&filters, PLUGIN, &keyed(&[("size", "1k")]), &targeted).unwrap();
        assert_eq!((texts(&assignment, 0), texts(&assignment, 1)), (vec![("size", "3072")], vec![("size", "2048")]));
        for (target, message) in [
            (aimed("x", 3, "size", "1"), "--filter-param x#3: there is no such filter here, only x, x"),
            (aimed("y", 1, "size", "1"), "--filter-param y: there is no such filter here, only x, x"),
            (aimed("x", 1, "sise", "1"), "x: unknown parameter 'sise': did you mean size?"),
            (aimed("x", 1, "colour", "1"), "x: unknown parameter 'colour': it has size"),
            (
                aimed("x", 1, "size", "big"),
                "size=big: is not a size: digits and one of b, s, k, M, G, T, P, E, for example 512, 64k or 1G",
            ),
        ] {
            assert_eq!(assign(&filters, PLUGIN, &[], &[target]).unwrap_err().to_string(), message);
        }
        let nobody = assign(&[], PLUGIN, &[], &targeted).unwrap_err().to_string();
        assert_eq!(nobody, "--filter-param x#2: no filter is given");
    }

    #[test]
    fn a_required_parameter_that_is_missing_is_named() {
        let specs = [ParamSpec { required: true, ..spec("offset", ParamKind::Size) }];
        let filters = [Filter { name: "offset", specs: &specs }];
        let error = assign(&filters, PLUGIN, &[], &[]).unwrap_err().to_string();
        assert_eq!(error, "offset: the parameter offset=<SIZE> is required: What it is");
        assert!(assign(&filters, PLUGIN, &[], &[aimed("offset", 1, "offset", "1")]).is_ok());
    }
}
