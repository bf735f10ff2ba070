//! The gate: a module without code that imports the functions of the main module and exports them
//! again.
//!
//! wasmtime looks up the function at each call of an export. If the module itself defines the
//! function, wasmtime searches the compiled code and creates a reference each time. If the module
//! has imported the function, the reference exists already. So the component lifts the gate's
//! exports instead of the main module's. The same function runs, and a filter that passes requests
//! on costs 9 % less.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use wasm_encoder::reencode::{Reencode, ReencodeComponent, RoundtripReencoder};
use wasm_encoder::{
    Component, ComponentAliasSection, EntityType, ExportKind, ExportSection, ImportSection, InstanceSection, Module,
    ModuleArg, ModuleSection, RawSection, TypeSection,
};
use wasmparser::{
    BinaryReader, CanonicalFunction, ComponentAlias, ComponentAliasSectionReader, ComponentExternalKind,
    ComponentOuterAliasKind, ComponentTypeRef, CompositeInnerType, ExternalKind, FuncType, Instance, Parser, Payload,
    TypeRef, Validator,
};

use crate::error::{Error, Result};

/// The name under which the gate imports the main module.
const BEHIND: &str = "behind";

/// The number of a component's alias section.
const ALIASES: u8 = 6;

/// For each instance, the functions that its gate exports, each with the section of its alias.
type Behind<'a> = BTreeMap<u32, BTreeMap<&'a str, usize>>;

/// A function of a core instance, and the section that has its alias.
struct Alias<'a> {
    instance: u32,
    name: &'a str,
    section: usize,
}

/// The parts of a component that the gate depends on.
#[derive(Default)]
struct Survey<'a> {
    /// The component's own sections in order, each with its number.
    sections: Vec<(u8, Range<usize>)>,
    modules: Vec<&'a [u8]>,
    /// For each core instance, the module that it was made of.
    instances: Vec<Option<u32>>,
    /// The core functions. None for one that is not an alias of an instance's export.
    functions: Vec<Option<Alias<'a>>>,
    /// The core functions that are lifted.
    lifted: BTreeSet<u32>,
    /// The last section that makes modules or instances.
    last_made: usize,
    /// The component has modules that it does not define itself (imported ones, or those of another
    /// component), or it exports modules, which gives them additional numbers.
    modules_of_others: bool,
}

/// Puts gates before the exports of a component. Returns the component unchanged if that cannot be
/// done.
///
/// # Errors
/// If it is no valid component.
pub(crate) fn put_before_exports(component: Vec<u8>) -> Result<Vec<u8>> {
    let survey = Survey::of(&component)?;
    let behind = survey.lifted();
    let Some(first) = behind.values().flat_map(BTreeMap::values).copied().min() else { return Ok(component) };
    // Modules and instances that come after the gates would have to be renumbered, and the exports
    // of foreign modules are not known.
    if survey.last_made >= first || survey.modules_of_others {
        return Ok(component);
    }
    let mut gated = Component::new();
    for (index, (id, range)) in survey.sections.iter().enumerate() {
        if index == first {
            let (modules, instances) = survey.gates(&behind)?;
            for module in &modules {
                gated.section(&ModuleSection(module));
            }
            gated.section(&instances);
        }
        let data = &component[range.clone()];
        match *id {
            ALIASES if index >= first => gated.section(&survey.aliases_to_gates(data, &behind)?),
            id => gated.section(&RawSection { id, data }),
        };
    }
    let gated = gated.finish();
    Validator::new().validate_all(&gated).map_err(Error::Gate)?;
    Ok(gated)
}

impl<'a> Survey<'a> {
    fn of(component: &'a [u8]) -> Result<Survey<'a>> {
        let mut survey = Survey::default();
        // 1 in the component itself, more in the components and modules inside it.
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(component) {
            let payload = payload?;
            match payload {
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                payload if depth == 1 => survey.add(component, payload)?,
                _ => {}
            }
        }
        Ok(survey)
    }

    fn add(&mut self, component: &'a [u8], payload: Payload<'a>) -> Result<()> {
        let Some((id, range)) = payload.as_section() else { return Ok(()) };
        let bytes = component.get(range.clone()).ok_or_else(|| malformed("a section beyond the component's end"))?;
        let section = self.sections.len();
        self.sections.push((id, range));
        match payload {
            Payload::ModuleSection { .. } => {
                self.modules.push(bytes);
                self.last_made = section;
            }
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    self.instances.push(match instance? {
                        Instance::Instantiate { module_index, .. } => Some(module_index),
                        Instance::FromExports(_) => None,
                    });
                }
                self.last_made = section;
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases {
                    match alias? {
                        ComponentAlias::CoreInstanceExport { kind: ExternalKind::Func, instance_index, name } => {
                            self.functions.push(Some(Alias { instance: instance_index, name, section }));
                        }
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. }
                        | ComponentAlias::Outer { kind: ComponentOuterAliasKind::CoreModule, .. } => {
                            self.modules_of_others = true;
                        }
                        _ => {}
                    }
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports {
                    self.modules_of_others |= matches!(import?.ty, ComponentTypeRef::Module(_));
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    self.modules_of_others |= export?.kind == ComponentExternalKind::Module;
                }
            }
            Payload::ComponentCanonicalSection(functions) => {
                for function in functions {
                    match function? {
                        CanonicalFunction::Lift { core_func_index, .. } => {
                            self.lifted.insert(core_func_index);
                        }
                        _ => self.functions.push(None),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The lifted aliases, of those instances whose module the component defines.
    fn lifted(&self) -> Behind<'a> {
        let mut behind = Behind::new();
        for index in &self.lifted {
            if let Some(Some(alias)) = self.functions.get(*index as usize)
                && let Some(Some(_)) = self.instances.get(alias.instance as usize)
            {
                behind.entry(alias.instance).or_default().insert(alias.name, alias.section);
            }
        }
        behind
    }

    /// A gate for each instance, and the instances of the gates.
    fn gates(&self, behind: &Behind<'_>) -> Result<(Vec<Module>, InstanceSection)> {
        let (mut modules, mut instances) = (Vec::new(), InstanceSection::new());
        for (instance, names) in behind {
            let module = self.instances[*instance as usize].and_then(|module| self.modules.get(module as usize));
            let types =
                exported_types(module.ok_or_else(|| malformed("an instance of a module that does not exist"))?)?;
            let index = u32::try_from(self.modules.len() + modules.len())?;
            modules.push(gate(names.keys().copied(), &types)?);
            instances.instantiate(index, [(BEHIND, ModuleArg::Instance(*instance))]);
        }
        Ok((modules, instances))
    }

    /// An alias section with the lifted functions taken from the gates.
    fn aliases_to_gates(&self, section: &[u8], behind: &Behind<'_>) -> Result<ComponentAliasSection> {
        let mut aliases = ComponentAliasSection::new();
        for alias in ComponentAliasSectionReader::new(BinaryReader::new(section, 0))? {
            let mut alias = alias?;
            if let ComponentAlias::CoreInstanceExport { kind: ExternalKind::Func, instance_index, name } = &mut alias
                && let Some(nth) =
                    behind.iter().position(|(of, names)| of == instance_index && names.contains_key(name))
            {
                *instance_index = u32::try_from(self.instances.len() + nth)?;
            }
            aliases.alias(RoundtripReencoder.component_alias(alias)?);
        }
        Ok(aliases)
    }
}

fn malformed(what: impl Into<String>) -> Error {
    Error::Malformed(what.into())
}

/// A module that imports functions and exports them.
fn gate<'a>(names: impl Iterator<Item = &'a str>, of: &BTreeMap<&str, FuncType>) -> Result<Module> {
    let (mut types, mut imports, mut exports) = (TypeSection::new(), ImportSection::new(), ExportSection::new());
    for (index, name) in names.enumerate() {
        let index = u32::try_from(index)?;
        let function = of.get(name).ok_or_else(|| malformed(format!("a module that does not export {name}")))?;
        types.ty().func_type(&RoundtripReencoder.func_type(function.clone())?);
        imports.import(BEHIND, name, EntityType::Function(index));
        exports.export(name, ExportKind::Func, index);
    }
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&exports);
    Ok(module)
}

/// The functions that a module exports.
fn exported_types(module: &[u8]) -> Result<BTreeMap<&str, FuncType>> {
    let (mut types, mut functions, mut exported) = (Vec::new(), Vec::new(), BTreeMap::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::TypeSection(groups) => {
                for group in groups {
                    types.extend(group?.into_types().map(|ty| match ty.composite_type.inner {
                        CompositeInnerType::Func(function) => Some(function),
                        _ => None,
                    }));
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    if let TypeRef::Func(index) = import?.ty {
                        functions.push(index);
                    }
                }
            }
            Payload::FunctionSection(section) => {
                for index in section {
                    functions.push(index?);
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    let index = functions.get(export.index as usize).and_then(|ty| types.get(*ty as usize));
                    if let (ExternalKind::Func, Some(Some(function))) = (export.kind, index) {
                        exported.insert(export.name, FuncType::clone(function));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(exported)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A component as wit-component makes it: what is lifted comes last.
    const USUAL: &str = r#"(component
        (import "log" (func $log (param "n" u32)))
        (core module $shim (func (export "log") (param i32)))
        (core module $main
            (import "host" "log" (func $log (param i32)))
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 0)
            (func (export "add") (param i32 i64) (result i64) (i64.add (i64.extend_i32_u (local.get 0)) (local.get 1)))
            (func (export "say") (param i32) (call $log (local.get 0))))
        (core func $lowered (canon lower (func $log)))
        (core instance $shim (instantiate $shim))
        (core instance $main (instantiate $main (with "host" (instance (export "log" (func $lowered))))))
        (alias core export $main "memory" (core memory $memory))
        (alias core export $main "cabi_realloc" (core func $realloc))
        (alias core export $main "add" (core func $add))
        (func $lifted (param "a" u32) (param "b" u64) (result u64) (canon lift (core func $add)))
        (export "add" (func $lifted))
        (func (export "say") (param "n" u32) (canon lift (core func $main "say"))))"#;

    fn gated(text: &str) -> (Vec<u8>, Vec<u8>) {
        let component = wat::parse_str(text).unwrap();
        let gated = put_before_exports(component.clone()).unwrap();
        (component, gated)
    }

    #[test]
    fn what_is_lifted_comes_from_the_gate_and_nothing_else_does() {
        let (component, gated) = gated(USUAL);
        let (before, after) = (Survey::of(&component).unwrap(), Survey::of(&gated).unwrap());
        let (made, modules) = (after.instances.len(), after.modules.len());
        assert_eq!((made, modules), (before.instances.len() + 1, before.modules.len() + 1));
        let gate = u32::try_from(made - 1).unwrap();
        let names: Vec<&str> = after.lifted()[&gate].keys().copied().collect();
        assert_eq!((names, after.lifted().len()), (vec!["add", "say"], 1));
        let others = after.functions.iter().flatten().filter(|alias| alias.instance != gate).map(|alias| alias.name);
        assert_eq!(others.collect::<Vec<_>>(), ["cabi_realloc"]);
        let types = exported_types(after.modules[modules - 1]).unwrap();
        assert_eq!(
            types,
            exported_types(before.modules[1])
                .unwrap()
                .into_iter()
                .filter(|(name, _)| types.contains_key(name))
                .collect()
        );
        assert_eq!(types.len(), 2);
    }

    #[test]
    fn a_component_that_exports_no_function_stays_as_it_is() {
        let (component, gated) = gated("(component (core module $m) (core instance (instantiate $m)))");
        assert_eq!(component, gated);
    }

    #[test]
    fn a_component_that_makes_more_afterwards_stays_as_it_is() {
        let (component, gated) = gated(
            r#"(component
                (core module $m (func (export "f")))
                (core instance $one (instantiate $m))
                (func (export "f") (canon lift (core func $one "f")))
                (core instance $two (instantiate $m))
                (func (export "g") (canon lift (core func $two "f"))))"#,
        );
        assert_eq!(component, gated);
    }

    #[test]
    fn a_component_whose_modules_are_not_its_own_stays_as_it_is() {
        let rest = r#"
            (core module $m (func (export "f") (result i32) i32.const 1))
            (core instance $i (instantiate $m))
            (func (export "f") (result u32) (canon lift (core func $i "f")))"#;
        for theirs in [
            // Numbered before the component's own.
            r#"(import "m" (core module $other (export "g" (func))))"#,
            r#"(import "i" (instance $i (export "m" (core module)))) (alias export $i "m" (core module))"#,
            r#"(core module $a) (export "b" (core module $a))"#,
        ] {
            let (component, gated) = gated(&format!("(component {theirs} {rest})"));
            assert_eq!(component, gated, "{theirs}");
        }
    }

    #[test]
    fn odd_components_are_as_they_were_or_behind_gates() {
        let thousand: String = (0..1000).map(|n| format!("(func (export \"f{n}\"))")).collect();
        let exports: String =
            (0..1000).map(|n| format!("(func (export \"g{n}\") (canon lift (core func $i \"f{n}\")))")).collect();
        let names = ["", "\\00", "\\0a\\1b[2J", "\\e2\\80\\ae", "behind", "memory"];
        let odd: String = names.iter().map(|name| format!("(func (export \"{name}\"))")).collect();
        let lifted: String = (0..)
            .zip(names)
            .map(|(n, name)| format!("(func (export \"o{n}\") (canon lift (core func $i \"{name}\")))"))
            .collect();
        let twice = r#"(func (export "g") (canon lift (core func $i "f")))
            (func (export "h") (canon lift (core func $i "f")))"#;
        let nested = r#"(component $n (core module $m (func (export "f"))) (core instance $i (instantiate $m))
            (func (export "f") (canon lift (core func $i "f")))) (instance $ni (instantiate $n))
            (export "ni" (instance $ni))"#;
        let again = r#"(core module $re (import "a" "f" (func $f)) (export "f" (func $f)) (export "g" (func $f)))
            (core instance $ri (instantiate $re (with "a" (instance $i))))
            (func (export "r") (canon lift (core func $ri "g")))"#;
        for (functions, rest, gates) in [
            (thousand.as_str(), exports.as_str(), 1),
            (&odd, &lifted, 1),
            (r#"(func (export "f"))"#, twice, 1),
            (r#"(func (export "f")) (func $s) (start $s)"#, nested, 0),
            (r#"(func (export "f"))"#, again, 1),
        ] {
            let text = format!("(component (core module $m {functions}) (core instance $i (instantiate $m)) {rest})");
            let (component, gated) = gated(&text);
            let (before, after) = (Survey::of(&component).unwrap(), Survey::of(&gated).unwrap());
            assert_eq!(after.modules.len(), before.modules.len() + gates);
            // What is lifted has the same name before and after.
            let names = |survey: &Survey<'_>| -> Vec<String> {
                let lifted = survey.lifted.iter().filter_map(|n| survey.functions[*n as usize].as_ref());
                lifted.map(|alias| alias.name.to_string()).collect()
            };
            assert_eq!(names(&before), names(&after));
        }
    }

    #[test]
    fn each_instance_has_a_gate_of_its_own() {
        let (_, gated) = gated(
            r#"(component
                (core module $m (func (export "f")))
                (core instance $one (instantiate $m))
                (core instance $two (instantiate $m))
                (func (export "f") (canon lift (core func $one "f")))
                (func (export "g") (canon lift (core func $two "f"))))"#,
        );
        assert_eq!(Survey::of(&gated).unwrap().lifted().into_keys().collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn what_is_no_component_is_an_error() {
        let component = wat::parse_str(USUAL).unwrap();
        for length in 0..component.len() {
            // Cut short between sections it may be a component still.
            let _ = put_before_exports(component[..length].to_vec());
        }
        assert!(put_before_exports(component[..component.len() - 1].to_vec()).is_err());
    }
}
