//! Distributes parameters among the filters and the plugin.
//!
//! The rules, for the words after the plugin's name, in the order of the command line:
//!
//! 1. The filter nearest the client that declares the key (or an alias of that name) takes it. If
//!    it declares `pass_on`, the layers below get it too, by the same rule.
//! 2. A key that no filter declares goes to the plugin: in order, repetitions included, as nbdkit's
//!    plugins expect. The plugin has to declare it, unless the plugin takes other keys.
//! 3. A bare word is the value of the plugin's magic key. It goes to the plugin even if a filter
//!    declares that key, because `memory 1G` means the plugin's size. The first word of a plugin of
//!    nbdkit that has no magic key is the value of `script`.
//! 4. A filter gets the last value of a key, as in nbdkit, unless it declares `repeat`.
//! 5. `--filter-param FILTER:key=value` goes only to that filter. It is assigned after all others,
//!    so it wins.
//! 6. `--plugin-param key=value` goes only to the plugin, after its other parameters.
//!
//! Each value is checked against its declaration before any layer sees it. If a filter takes a key
//! that the plugin declares too, the user gets a warning.

use std::ffi::{OsStr, OsString};

use rbdkit_plugin_api::schema::{ParamSpec, ParamValue};
use rbdkit_plugin_api::secrets::without_userinfo;
use rbdkit_plugin_api::{PluginInfo, nearest};

use crate::{AssignError, Parameter, Target, TargetedParameter};

/// What a filter declares.
#[derive(Clone, Copy, Debug)]
pub struct FilterSide<'a> {
    /// The filter's own name.
    pub name: &'a str,
    /// Its parameters.
    pub specs: &'a [ParamSpec],
}

/// What the plugin declares.
#[derive(Clone, Debug)]
pub struct PluginSide<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its parameters.
    pub specs: Vec<ParamSpec>,
    /// Keys that it does not declare.
    pub undeclared: Undeclared,
    /// The key of the first parameter of all, if that is a bare word and the plugin has no magic
    /// key (nbdkit's `script`).
    pub first_key: Option<&'a str>,
}

/// What a plugin does with keys that it does not declare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undeclared {
    /// It takes them: they belong to a script, for example.
    Taken,
    /// They are an error.
    Refused,
}

impl<'a> PluginSide<'a> {
    /// What this plugin declares.
    pub fn new(info: &'a PluginInfo) -> PluginSide<'a> {
        let undeclared = if info.other_keys.is_some() { Undeclared::Taken } else { Undeclared::Refused };
        PluginSide { name: info.name, specs: (info.params)(), undeclared, first_key: None }
    }
}

/// The layers of a chain.
#[derive(Clone, Debug)]
pub struct Stack<'a> {
    /// The filters, the first nearest the client.
    pub filters: Vec<FilterSide<'a>>,
    /// The plugin.
    pub plugin: PluginSide<'a>,
}

/// Whether a filter may lack a parameter that it requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No: the chain is about to serve.
    Refused,
    /// Yes: the chain is only described (`--dump-plugin`).
    Allowed,
}

/// Which layer gets what.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// The parameters of each filter, under their declared names, checked and canonical.
    pub filters: Vec<Vec<(String, ParamValue)>>,
    /// The plugin's parameters, in the order of the command line, checked and as the user wrote
    /// them.
    pub plugin: Vec<(String, OsString)>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Distributes parameters.
///
/// # Errors
/// The first word that does not fit the layers, or a required parameter that is missing.
pub fn assign(
    stack: &Stack<'_>,
    params: &[Parameter],
    targeted: &[TargetedParameter],
    missing: Missing,
) -> Result<Assignment, AssignError> {
    let mut assignment = Assignment { filters: vec![Vec::new(); stack.filters.len()], ..Assignment::default() };
    for (index, param) in params.iter().enumerate() {
        match param {
            Parameter::Keyed(key, value) => assignment.distribute(stack, key, value)?,
            Parameter::ForPlugin(key, value) => assignment.give_plugin(stack, key, value)?,
            Parameter::Bare(value) => {
                let key = match stack.plugin.first_key.filter(|_| index == 0) {
                    Some(key) => key.to_string(),
                    None => stack.plugin.magic_key(value)?,
                };
                assignment.give_plugin(stack, &key, value)?;
            }
        }
    }
    for TargetedParameter { target, key, value } in targeted {
        let index = stack.find(target, "--filter-param")?;
        let filter = &stack.filters[index];
        let spec = declared(filter.specs, key).ok_or_else(|| filter.unknown(key))?;
        assignment.give_filter(index, spec, key, value)?;
    }
    if missing == Missing::Refused {
        assignment.check_required(stack)?;
    }
    Ok(assignment)
}

fn declared<'a>(specs: &'a [ParamSpec], key: &str) -> Option<&'a ParamSpec> {
    specs.iter().find(|spec| spec.answers_to(key))
}

impl Assignment {
    fn distribute(&mut self, stack: &Stack<'_>, key: &str, value: &OsStr) -> Result<(), AssignError> {
        for (index, filter) in stack.filters.iter().enumerate() {
            let Some(spec) = declared(filter.specs, key) else { continue };
            self.give_filter(index, spec, key, value)?;
            if spec.pass_on {
                continue;
            }
            if declared(&stack.plugin.specs, key).is_some_and(|hidden| !hidden.hidden) {
                // Without the value, which may be the plugin's password.
                self.warnings.push(format!(
                    "{key}=: taken by the {} filter, the {} plugin's parameter of that name is hidden \
                        (--plugin-param {key}=... reaches it)",
                    filter.name, stack.plugin.name
                ));
            }
            return Ok(());
        }
        self.give_plugin(stack, key, value)
    }

    fn give_filter(&mut self, index: usize, spec: &ParamSpec, key: &str, value: &OsStr) -> Result<(), AssignError> {
        let value = spec.read(key, value)?;
        let taken = &mut self.filters[index];
        match taken.iter_mut().find(|(name, _)| !spec.repeat && *name == spec.name) {
            Some((_, earlier)) => *earlier = value,
            None => taken.push((spec.name.clone(), value)),
        }
        Ok(())
    }

    fn give_plugin(&mut self, stack: &Stack<'_>, key: &str, value: &OsStr) -> Result<(), AssignError> {
        match declared(&stack.plugin.specs, key) {
            Some(spec) => spec.check(key, value)?,
            None if stack.plugin.undeclared == Undeclared::Taken => {}
            None => return Err(stack.unknown(key)),
        }
        self.plugin.push((key.to_string(), value.to_os_string()));
        Ok(())
    }

    fn check_required(&self, stack: &Stack<'_>) -> Result<(), AssignError> {
        for (filter, taken) in stack.filters.iter().zip(&self.filters) {
            let lacking = |spec: &&ParamSpec| spec.required && !taken.iter().any(|(name, _)| *name == spec.name);
            if let Some(spec) = filter.specs.iter().find(lacking) {
                return Err(AssignError::Missing {
                    filter: filter.name.to_string(),
                    name: spec.name.clone(),
                    kind: spec.kind.name().to_ascii_uppercase(),
                    help: spec.help.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Stack<'_> {
    /// The index of the filter that an option addresses.
    ///
    /// # Errors
    /// If it is not there.
    pub fn find(&self, target: &Target, option: &'static str) -> Result<usize, AssignError> {
        let named = self.filters.iter().enumerate().filter(|(_, filter)| filter.name == target.name);
        named.map(|(index, _)| index).nth(target.instance - 1).ok_or_else(|| {
            let names: Vec<&str> = self.filters.iter().map(|filter| filter.name).collect();
            match names.is_empty() {
                true => AssignError::NoFilter { option, target: target.to_string() },
                false => AssignError::NoSuchFilter { option, target: target.to_string(), given: names.join(", ") },
            }
        })
    }

    /// The rest of an error that lists the parameters of the filters. Empty if they have none.
    fn of_filters(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for spec in self.filters.iter().flat_map(|filter| filter.specs).filter(|spec| !spec.hidden) {
            if !names.contains(&spec.name.as_str()) {
                names.push(&spec.name);
            }
        }
        if names.len() > MAX_NAMES {
            names.truncate(MAX_NAMES);
            names.push("...");
        }
        match names.is_empty() {
            true => String::new(),
            false => format!("; the filters have {}", names.join(", ")),
        }
    }

    /// The error for a key that no layer declares. It may suggest a key of a filter.
    fn unknown(&self, key: &str) -> AssignError {
        let plugin = &self.plugin;
        let visible = plugin.specs.iter().filter(|spec| !spec.hidden).map(|spec| spec.name.as_str());
        let filters = self.filters.iter().flat_map(|filter| filter.specs.iter().map(|spec| spec.name.as_str()));
        let of_filter = |name: &str| self.filters.iter().find(|filter| declared(filter.specs, name).is_some());
        let hint = match nearest(key, visible.chain(filters)) {
            Some(near) if declared(&plugin.specs, near).is_some() => format!(": did you mean {near}?"),
            Some(near) => {
                let filter = of_filter(near).map_or("", |filter| filter.name);
                format!(": did you mean {near} of the {filter} filter?")
            }
            None => format!(" (rbdkit {} --help lists those it has{})", plugin.name, self.of_filters()),
        };
        AssignError::UnknownKey { layer: plugin.name.to_string(), key: key.to_string(), hint }
    }
}

/// How many names of parameters an error lists.
const MAX_NAMES: usize = 20;

impl FilterSide<'_> {
    /// The error for a key that is addressed to this filter, which does not declare it.
    fn unknown(&self, key: &str) -> AssignError {
        let names: Vec<&str> = self.specs.iter().map(|spec| spec.name.as_str()).collect();
        let hint = match nearest(key, names.iter().copied()) {
            Some(near) => format!(": did you mean {near}?"),
            None if names.is_empty() => ": it has none".to_string(),
            None => format!(": it has {}", names.join(", ")),
        };
        AssignError::UnknownKey { layer: self.name.to_string(), key: key.to_string(), hint }
    }
}

impl PluginSide<'_> {
    /// The key for a bare word.
    fn magic_key(&self, word: &OsStr) -> Result<String, AssignError> {
        let magic = self.specs.iter().find(|spec| spec.magic).map(|spec| spec.name.clone());
        magic.ok_or_else(|| AssignError::BareWord {
            plugin: self.name.to_string(),
            word: without_userinfo(&word.to_string_lossy()),
        })
    }
}

#[cfg(test)]
mod tests;
