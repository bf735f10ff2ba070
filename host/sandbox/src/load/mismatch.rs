//! Says which function of a component does not fit the contract, and in what.
//!
//! wasmtime finds that a type differs, but names neither the function nor the field. So this module
//! compares again, by the contract's text. It runs only after wasmtime has refused a component. It
//! follows the contract's types and not the component's, which may be huge.

use rbdkit_plugin_api::nearest;
use rbdkit_plugin_api::text::one_line_within;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem, Type};
use wit_parser::{Function, InterfaceId, Param, Resolve, Type as WitType, TypeDefKind};

use super::component::{built_for, is_ours};
use super::error::LoadError;

const CONTRACT: &str = include_str!("../../../../wit/filter.wit");

/// The most bytes of a name that a message shows.
const NAME: usize = 80;

/// The first exported function that does not fit the contract, and why. None: all fit.
pub(crate) fn of_exports(component: &Component, engine: &Engine) -> Option<String> {
    let contract = Contract::parse()?;
    component.component_type().exports(engine).find_map(|(name, item)| {
        let (interface, instance) = interface(name, &item.ty)?;
        let functions = &contract.0.interfaces[contract.interface(interface)?].functions;
        functions.values().find_map(|function| {
            let wrong = match found(instance, engine, &function.name) {
                Some(found) => contract.function(function, &found)?,
                None => ": the function is missing".to_string(),
            };
            Some(format!("{interface}.{}{wrong}", function.name))
        })
    })
}

/// The first imported function that does not fit the contract, and why. None: all fit.
pub(crate) fn of_imports(component: &Component, engine: &Engine) -> Option<String> {
    let contract = Contract::parse()?;
    component.component_type().imports(engine).find_map(|(name, item)| {
        let (interface, instance) = interface(name, &item.ty)?;
        let shown = one_line_within(interface, NAME);
        let Some(known) = contract.interface(interface) else {
            return Some(unknown(&shown));
        };
        instance.exports(engine).find_map(|(name, item)| {
            let ComponentItem::ComponentFunc(function) = item.ty else { return None };
            let place = format!("{shown}.{}", one_line_within(name, NAME));
            match contract.0.interfaces[known].functions.get(name) {
                Some(expected) => Some(format!("{place}{}", contract.function(expected, &function)?)),
                None => Some(unknown(&place)),
            }
        })
    })
}

fn unknown(what: &str) -> String {
    format!("it imports {what}, which this host does not have (was it built for a newer one?)")
}

/// The exports of a component that are of the contract's package, by interface and version.
fn exports(component: &Component, engine: &Engine) -> Vec<(String, String)> {
    let exports = component.component_type();
    let ours = exports.exports(engine).filter_map(|(name, _)| name.strip_prefix("rbdkit:filter/")?.split_once('@'));
    ours.map(|(interface, version)| (interface.to_string(), version.to_string())).collect()
}

/// How many unknown exports are named.
const MAX_UNKNOWN: usize = 8;

/// What a component exports of the contract's package that this host never calls: a line for each.
/// `known` are the interfaces that a filter can export.
pub(crate) fn unknown_exports(component: &Component, engine: &Engine, known: &[&str]) -> Vec<String> {
    let exports = exports(component, engine);
    let unknown = exports.iter().filter_map(|(interface, version)| {
        let shown = one_line_within(interface, NAME);
        if known.contains(&interface.as_str()) {
            let version = one_line_within(version, NAME);
            let wrong =
                format!("it exports rbdkit:filter/{shown}@{version}, and this host has 0.1.0: it never calls it");
            return (!is_ours(&version)).then_some(wrong);
        }
        let hint = match nearest(interface, known.iter().copied()) {
            Some(near) => format!(": did you mean {near}?"),
            None => " and never calls".to_string(),
        };
        Some(format!("it exports rbdkit:filter/{shown}, which this host does not know{hint}"))
    });
    let mut lines: Vec<String> = unknown.collect();
    if lines.len() > MAX_UNKNOWN {
        let more = lines.len() - MAX_UNKNOWN;
        lines.truncate(MAX_UNKNOWN);
        lines.push(format!("it exports {more} more interfaces that this host does not know"));
    }
    lines
}

/// Why a component that does not export this host's `filter` is refused.
pub(crate) fn no_filter(component: &Component, engine: &Engine) -> LoadError {
    let exports = exports(component, engine);
    let other = exports.iter().find(|(_, version)| !is_ours(version));
    let near = || exports.iter().find(|(name, _)| nearest(name, ["filter"]).is_some());
    LoadError::Contract(match (other, near()) {
        (Some((_, version)), _) => built_for(version),
        (None, Some((name, _))) => format!(
            "it exports rbdkit:filter/{}, which this host does not know, and no rbdkit:filter/filter: did you mean \
             filter?",
            one_line_within(name, NAME)
        ),
        (None, None) => "it does not export rbdkit:filter/filter: it is not a filter".to_string(),
    })
}

/// The contract's name of an interface, and its type.
fn interface<'a>(name: &'a str, item: &'a ComponentItem) -> Option<(&'a str, &'a ComponentInstance)> {
    let (interface, version) = name.strip_prefix("rbdkit:filter/")?.split_once('@')?;
    match item {
        ComponentItem::ComponentInstance(instance) if is_ours(version) => Some((interface, instance)),
        _ => None,
    }
}

fn found(instance: &ComponentInstance, engine: &Engine, name: &str) -> Option<ComponentFunc> {
    match instance.get_export(engine, name)?.ty {
        ComponentItem::ComponentFunc(function) => Some(function),
        _ => None,
    }
}

struct Contract(Resolve);

impl Contract {
    /// The contract of this host. The tests parse it, so there always is one.
    fn parse() -> Option<Contract> {
        let mut contract = Resolve::default();
        contract.push_str("filter.wit", CONTRACT).ok()?;
        Some(Contract(contract))
    }

    fn interface(&self, name: &str) -> Option<InterfaceId> {
        let mut interfaces = self.0.packages.iter().flat_map(|(_, package)| &package.interfaces);
        interfaces.find(|(known, _)| *known == name).map(|(_, id)| *id)
    }

    /// In what a function differs: the rest of a sentence that begins with its name.
    fn function(&self, expected: &Function, found: &ComponentFunc) -> Option<String> {
        if expected.params.len() != found.params().len() {
            let (has, says) = (found.params().len(), expected.params.len());
            return Some(format!(": it has {has} parameters, the contract says {says}"));
        }
        let parameters = expected.params.iter().zip(found.params());
        let mut parameters = parameters.filter_map(|(Param { name, ty, .. }, (_, found))| {
            Some(format!(": parameter `{name}`{}", self.difference(ty, &found)?))
        });
        parameters.next().or_else(|| {
            let result = found.results().next();
            let wrong = self.optional(expected.result.as_ref(), result.as_ref())?;
            Some(if wrong.starts_with(':') { wrong } else { format!(": its result{wrong}") })
        })
    }

    fn optional(&self, expected: Option<&WitType>, found: Option<&Type>) -> Option<String> {
        match (expected, found) {
            (Some(expected), Some(found)) => self.difference(expected, found),
            (None, None) => None,
            (Some(expected), None) => Some(is_not("nothing", self.name(expected))),
            (None, Some(found)) => Some(is_not(name(found), "nothing")),
        }
    }

    /// In what a type differs: the rest of a sentence, which begins with a space or a colon.
    fn difference(&self, expected: &WitType, found: &Type) -> Option<String> {
        let WitType::Id(id) = expected else {
            let says = self.name(expected);
            return (says != name(found)).then(|| is_not(name(found), says));
        };
        match (&self.0.types[*id].kind, found) {
            (TypeDefKind::Type(alias), _) => self.difference(alias, found),
            (TypeDefKind::Record(record), Type::Record(found)) => {
                let names = record.fields.iter().map(|field| field.name.as_str());
                names_differ("field", names, found.fields().map(|field| field.name)).or_else(|| {
                    let mut fields = record.fields.iter().zip(found.fields());
                    fields.find_map(|(field, found)| {
                        Some(format!(": field `{}`{}", field.name, self.difference(&field.ty, &found.ty)?))
                    })
                })
            }
            (TypeDefKind::Variant(variant), Type::Variant(found)) => {
                let names = variant.cases.iter().map(|case| case.name.as_str());
                names_differ("case", names, found.cases().map(|case| case.name)).or_else(|| {
                    let mut cases = variant.cases.iter().zip(found.cases());
                    cases.find_map(|(case, found)| {
                        let wrong = self.optional(case.ty.as_ref(), found.ty.as_ref())?;
                        Some(format!(": case `{}`{wrong}", case.name))
                    })
                })
            }
            (TypeDefKind::Enum(names), Type::Enum(found)) => {
                names_differ("case", names.cases.iter().map(|case| case.name.as_str()), found.names())
            }
            (TypeDefKind::Flags(names), Type::Flags(found)) => {
                names_differ("flag", names.flags.iter().map(|flag| flag.name.as_str()), found.names())
            }
            (TypeDefKind::Tuple(tuple), Type::Tuple(found)) => match tuple.types.len() == found.types().len() {
                true => {
                    let mut items = tuple.types.iter().zip(found.types());
                    items.find_map(|(expected, found)| self.difference(expected, &found))
                }
                false => Some(format!(": {} items, the contract says {}", found.types().len(), tuple.types.len())),
            },
            (TypeDefKind::List(item), Type::List(found)) => self.difference(item, &found.ty()),
            (TypeDefKind::Option(item), Type::Option(found)) => self.difference(item, &found.ty()),
            (TypeDefKind::Result(result), Type::Result(found)) => self
                .optional(result.ok.as_ref(), found.ok().as_ref())
                .or_else(|| self.optional(result.err.as_ref(), found.err().as_ref())),
            (kind, found) => Some(is_not(name(found), kind.as_str())),
        }
    }

    fn name(&self, ty: &WitType) -> &'static str {
        match ty {
            WitType::Bool => "bool",
            WitType::U8 => "u8",
            WitType::U16 => "u16",
            WitType::U32 => "u32",
            WitType::U64 => "u64",
            WitType::S8 => "s8",
            WitType::S16 => "s16",
            WitType::S32 => "s32",
            WitType::S64 => "s64",
            WitType::F32 => "f32",
            WitType::F64 => "f64",
            WitType::Char => "char",
            WitType::String => "string",
            WitType::ErrorContext => "error-context",
            WitType::Id(id) => match &self.0.types[*id].kind {
                TypeDefKind::Type(alias) => self.name(alias),
                kind => kind.as_str(),
            },
        }
    }
}

fn name(ty: &Type) -> &'static str {
    match ty {
        Type::Bool => "bool",
        Type::U8 => "u8",
        Type::U16 => "u16",
        Type::U32 => "u32",
        Type::U64 => "u64",
        Type::S8 => "s8",
        Type::S16 => "s16",
        Type::S32 => "s32",
        Type::S64 => "s64",
        Type::Float32 => "f32",
        Type::Float64 => "f64",
        Type::Char => "char",
        Type::String => "string",
        Type::ErrorContext => "error-context",
        Type::List(_) => "list",
        Type::Map(_) => "map",
        Type::Record(_) => "record",
        Type::Tuple(_) => "tuple",
        Type::Variant(_) => "variant",
        Type::Enum(_) => "enum",
        Type::Option(_) => "option",
        Type::Result(_) => "result",
        Type::Flags(_) => "flags",
        Type::Own(_) | Type::Borrow(_) => "resource",
        Type::Future(_) => "future",
        Type::Stream(_) => "stream",
        Type::FixedLengthList(_) => "fixed-length list",
    }
}

fn is_not(found: &str, expected: &str) -> String {
    format!(" is {found}, the contract says {expected}")
}

/// The first name that is missing, or that the contract does not have.
fn names_differ<'a>(
    what: &str,
    expected: impl Iterator<Item = &'a str>,
    found: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.collect(), found.collect());
    if let Some(name) = expected.iter().find(|name| !found.contains(name)) {
        return Some(format!(": {what} `{name}` is missing"));
    }
    if let Some(name) = found.iter().find(|name| !expected.contains(name)) {
        return Some(format!(": the contract has no {what} `{}`", one_line_within(name, NAME)));
    }
    (expected != found).then(|| format!(": the {what}s are not in the contract's order"))
}
