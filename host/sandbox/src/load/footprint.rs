//! What an instance of a component takes in the host besides its memories and tables, and how much
//! is copied to make one.
//!
//! The author of a component chooses how many globals, functions and segments its modules have, and
//! how often the component instantiates them. wasmtime allocates for all of them when an instance
//! is made, and asks no limiter. So they are counted here, from the component's bytes: each module
//! has a cost, and each instantiation adds the cost of its module or component once. The sums are
//! upper bounds. They are charged to `memory` and `memory-all` before the instance is made.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef, ElementItems,
    ElementKind, Encoding, Instance, Parser, Payload, TypeRef,
};

use super::error::LoadError;

/// Bytes of a global in an instance.
const GLOBAL: u64 = 16;
/// Bytes of a function, defined or imported: its reference and its import.
const FUNCTION: u64 = 72;
/// Bytes of an item of a passive element segment.
const ELEMENT: u64 = 16;
/// Bytes of anything else that is counted: an export, an import, a segment, a function of the
/// component, an argument of an instantiation.
const ITEM: u64 = 64;
/// Bytes of an instance with nothing in it: the structure, and what the store keeps for it.
const INSTANCE: u64 = 2048;

/// The most bytes that are copied to make one instance: segments, and the constant expressions of
/// globals. No limit on time ends this copying. It takes less than 0.1 s, and an interpreter with
/// its standard library copies 20 MiB.
const MAX_COPIED: u64 = 256 << 20;

/// How deep components may be inside each other. Tools nest two or three.
const MAX_DEPTH: usize = 16;

/// What making one instance costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Bytes in the host besides memories and tables.
    pub(crate) bytes: u64,
    /// Bytes that are copied from the component.
    copied: u64,
}

impl Footprint {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn add_items(&mut self, count: u32, each: u64) {
        self.add(u64::from(count).saturating_mul(each));
    }

    fn add_copied(&mut self, bytes: usize) {
        self.copied = self.copied.saturating_add(bytes as u64);
    }

    fn add_part(&mut self, part: Footprint) {
        self.add(part.bytes);
        self.copied = self.copied.saturating_add(part.copied);
    }
}

/// Why there is no footprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FootprintError {
    /// The bytes are not a component. The compiler says more about it.
    #[error("it is malformed")]
    Malformed,
    #[error("its components are inside each other more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("making an instance copies {0} MiB (at most {limit} MiB)", limit = MAX_COPIED >> 20)]
    CopiesTooMuch(u64),
    #[error("it instantiates a module or component that it imports or gets from an instance")]
    Unknown,
}

impl From<wasmparser::BinaryReaderError> for FootprintError {
    fn from(_: wasmparser::BinaryReaderError) -> FootprintError {
        FootprintError::Malformed
    }
}

impl From<FootprintError> for LoadError {
    fn from(error: FootprintError) -> LoadError {
        LoadError::NotComponent(error.to_string())
    }
}

/// A module or component while it is read, with the modules and components that it can
/// instantiate, by their index. None: it comes from elsewhere.
#[derive(Default)]
struct Part {
    is_module: bool,
    own: Footprint,
    modules: Vec<Option<Footprint>>,
    components: Vec<Option<Footprint>>,
}

fn known(parts: &[Option<Footprint>], index: u32) -> Result<Footprint, FootprintError> {
    parts.get(index as usize).ok_or(FootprintError::Malformed)?.ok_or(FootprintError::Unknown)
}

impl Footprint {
    /// The footprint of an instance of this component.
    pub(crate) fn of(component: &[u8]) -> Result<Footprint, FootprintError> {
        let mut parts: Vec<Part> = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            match payload? {
                Payload::Version { encoding, .. } => {
                    if parts.len() > MAX_DEPTH {
                        return Err(FootprintError::TooDeep);
                    }
                    let is_module = encoding == Encoding::Module;
                    let own = Footprint { bytes: INSTANCE, copied: 0 };
                    parts.push(Part { is_module, own, ..Part::default() });
                }
                Payload::End(_) => {
                    let ended = parts.pop().ok_or(FootprintError::Malformed)?;
                    let Some(whole) = parts.last_mut() else { return ended.own.checked() };
                    let list = if ended.is_module { &mut whole.modules } else { &mut whole.components };
                    list.push(Some(ended.own));
                }
                payload => {
                    let (part, outer) = parts.split_last_mut().ok_or(FootprintError::Malformed)?;
                    part.section(&payload, outer)?;
                }
            }
        }
        Err(FootprintError::Malformed)
    }

    fn checked(self) -> Result<Footprint, FootprintError> {
        if self.copied > MAX_COPIED { Err(FootprintError::CopiesTooMuch(self.copied >> 20)) } else { Ok(self) }
    }
}

impl Part {
    /// Counts a section. `outer` is what this part is in, the outermost first.
    fn section(&mut self, payload: &Payload<'_>, outer: &[Part]) -> Result<(), FootprintError> {
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    self.own.add(match import?.ty {
                        TypeRef::Func(_) | TypeRef::FuncExact(_) => FUNCTION,
                        _ => ITEM,
                    });
                }
            }
            Payload::FunctionSection(functions) => self.own.add_items(functions.count(), FUNCTION),
            Payload::GlobalSection(globals) => {
                self.own.add_items(globals.count(), GLOBAL);
                self.own.add_copied(globals.range().len());
            }
            Payload::TableSection(tables) => {
                self.own.add_items(tables.count(), ITEM);
                self.own.add_copied(tables.range().len());
            }
            Payload::ExportSection(exports) => self.own.add_items(exports.count(), ITEM),
            Payload::ElementSection(elements) => {
                self.own.add_items(elements.count(), ITEM);
                self.own.add_copied(elements.range().len());
                for element in elements.clone() {
                    let element = element?;
                    let count = match &element.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    };
                    if matches!(element.kind, ElementKind::Passive) {
                        self.own.add_items(count, ELEMENT);
                    }
                }
            }
            Payload::DataSection(data) => {
                self.own.add_items(data.count(), ITEM);
                self.own.add_copied(data.range().len());
            }
            payload => self.component_section(payload, outer)?,
        }
        Ok(())
    }

    fn component_section(&mut self, payload: &Payload<'_>, outer: &[Part]) -> Result<(), FootprintError> {
        match payload {
            Payload::InstanceSection(instances) => {
                for instance in instances.clone() {
                    match instance? {
                        Instance::Instantiate { module_index, args } => {
                            self.own.add_part(known(&self.modules, module_index)?);
                            self.own.add(args.len() as u64 * ITEM);
                        }
                        Instance::FromExports(exports) => self.own.add(exports.len() as u64 * ITEM),
                    }
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances.clone() {
                    match instance? {
                        ComponentInstance::Instantiate { component_index, args } => {
                            self.own.add_part(known(&self.components, component_index)?);
                            self.own.add(args.len() as u64 * ITEM);
                        }
                        ComponentInstance::FromExports(exports) => self.own.add(exports.len() as u64 * ITEM),
                    }
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                self.own.add_items(aliases.count(), ITEM);
                for alias in aliases.clone() {
                    self.alias(&alias?, outer)?;
                }
            }
            Payload::ComponentCanonicalSection(functions) => self.own.add_items(functions.count(), ITEM),
            Payload::ComponentTypeSection(types) => self.own.add_items(types.count(), ITEM),
            Payload::ComponentImportSection(imports) => {
                self.own.add_items(imports.count(), ITEM);
                for import in imports.clone() {
                    match import?.ty {
                        ComponentTypeRef::Module(_) => self.modules.push(None),
                        ComponentTypeRef::Component(_) => self.components.push(None),
                        _ => {}
                    }
                }
            }
            // An export is one more name for the part in the component itself.
            Payload::ComponentExportSection(exports) => {
                self.own.add_items(exports.count(), ITEM);
                for export in exports.clone() {
                    let export = export?;
                    match export.kind {
                        ComponentExternalKind::Module => again(&mut self.modules, export.index)?,
                        ComponentExternalKind::Component => again(&mut self.components, export.index)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>, outer: &[Part]) -> Result<(), FootprintError> {
        match *alias {
            ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. } => self.modules.push(None),
            ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                self.components.push(None);
            }
            ComponentAlias::Outer { kind, count, index } => {
                let from = match (count as usize).checked_sub(1) {
                    None => &*self,
                    Some(up) => outer.iter().rev().nth(up).ok_or(FootprintError::Malformed)?,
                };
                let of =
                    |parts: &[Option<Footprint>]| parts.get(index as usize).copied().ok_or(FootprintError::Malformed);
                match kind {
                    ComponentOuterAliasKind::CoreModule => {
                        let module = of(&from.modules)?;
                        self.modules.push(module);
                    }
                    ComponentOuterAliasKind::Component => {
                        let component = of(&from.components)?;
                        self.components.push(component);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Gives a part one more index.
fn again(parts: &mut Vec<Option<Footprint>>, index: u32) -> Result<(), FootprintError> {
    let part = *parts.get(index as usize).ok_or(FootprintError::Malformed)?;
    parts.push(part);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Footprint, FootprintError> {
        Footprint::of(&wat::parse_str(text).unwrap())
    }

    fn bytes(text: &str) -> u64 {
        of(text).unwrap().bytes
    }

    /// A module with this many globals, as text.
    fn module(globals: usize) -> String {
        format!("(core module $m {})", "(global i64 (i64.const 1))".repeat(globals))
    }

    #[test]
    fn each_instantiation_costs_what_its_module_has() {
        let with = |rest: &str| bytes(&format!("(component {} {rest})", module(1000)));
        let none = with("");
        let one = with("(core instance (instantiate $m))") - none;
        assert!((16_000..20_000).contains(&one), "{one}");
        let hundred = with(&"(core instance (instantiate $m))".repeat(100)) - none;
        assert_eq!(hundred, 100 * one);
    }

    #[test]
    fn components_inside_each_other_multiply() {
        let mut text = format!("{} (core instance (instantiate $m)) (core instance (instantiate $m))", module(1000));
        let mut least = 32_000;
        for _ in 0..5 {
            text = format!("(component $c {text}) {}", "(instance (instantiate $c))".repeat(4));
            least *= 4;
        }
        assert!(bytes(&format!("(component {text})")) > least);
        for _ in 0..60 {
            text = format!("(component $c {text}) (instance (instantiate $c))");
        }
        assert_eq!(of(&format!("(component {text})")), Err(FootprintError::TooDeep));
    }

    #[test]
    fn a_module_costs_the_same_under_each_of_its_names() {
        let one = bytes(&format!("(component {} (core instance (instantiate $m)))", module(5000)));
        let outer = format!(
            "(component {} (component $c (alias outer 1 0 (core module $n)) (core instance (instantiate $n)))
             (instance (instantiate $c)))",
            module(5000)
        );
        let exported = format!(
            r#"(component {} (export $n "n" (core module $m)) (core instance (instantiate $n)))"#,
            module(5000)
        );
        for text in [outer, exported] {
            assert!(bytes(&text).abs_diff(one) < 8000, "{text}");
        }
        let import = r#"(component (import "m" (core module $m)) (core instance (instantiate $m)))"#;
        assert_eq!(of(import), Err(FootprintError::Unknown));
    }

    #[test]
    fn everything_that_an_author_may_repeat_is_counted() {
        let items = [
            "(global i32 (i32.const 0))",
            "(func)",
            "(func (import \"a\" \"b\"))",
            "(import \"a\" \"b\" (global i32))",
            "(elem func $f)",
            "(data \"\")",
        ];
        for item in items {
            let with = |count: usize| {
                let (imports, rest) = if item.contains("import") {
                    (item.repeat(count), "".into())
                } else {
                    ("".into(), item.repeat(count))
                };
                let module = wat::parse_str(format!("(module {imports} (func $f) {rest})")).unwrap();
                let mut component = wasm_encoder::Component::new();
                component.section(&wasm_encoder::RawSection { id: 1, data: &module });
                let mut instances = wasm_encoder::InstanceSection::new();
                instances.instantiate::<[(&str, wasm_encoder::ModuleArg); 0], &str>(0, []);
                component.section(&instances);
                Footprint::of(&component.finish()).unwrap().bytes
            };
            assert!(with(1000) >= with(0) + 16_000, "{item}");
        }
    }

    #[test]
    fn copying_for_each_instantiation_is_bounded() {
        let module = format!("(core module $m (memory 100) (data (i32.const 0) \"{}\"))", "x".repeat(5 << 20));
        let text = |count: usize| format!("(component {module} {})", "(core instance (instantiate $m))".repeat(count));
        of(&text(50)).unwrap();
        assert_eq!(of(&text(60)), Err(FootprintError::CopiesTooMuch(300)));
    }

    #[test]
    fn bytes_that_are_cut_have_no_footprint_unless_they_are_cut_between_sections() {
        let whole = wat::parse_str(format!("(component {} (core instance (instantiate $m)))", module(3))).unwrap();
        for end in 0..whole.len() {
            let known = Footprint::of(&whole[..end]);
            assert_eq!(known.is_ok(), wasmparser::validate(&whole[..end]).is_ok(), "{end}: {known:?}");
        }
    }
}
