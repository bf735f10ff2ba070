//! Modules that Go has made: the collector of Go may run, and read the clock, while the host
//! allocates memory for a list that an import returns. The component model forbids a call of the
//! host at that time.
//!
//! The same holds for the functions that free what an export has returned, `cabi_post_...`.
//!
//! So such a module gets a flag, a global that is set as long as one of these functions runs, and
//! an adapter of its own for WASI's preview 1, which looks at the flag and then does not call the
//! host.

use std::collections::BTreeMap;

use wasm_encoder::reencode::{Reencode, RoundtripReencoder};
use wasm_encoder::{
    CodeSection, ConstExpr, ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType, Module,
    RawSection, ValType,
};
use wasmparser::{BinaryReader, CodeSectionReader, CompositeInnerType, ExternalKind, Parser, Payload, TypeRef};
use wit_component::StringEncoding;
use wit_parser::Resolve;

use crate::error::{Error, Result};

/// The flag, as the module exports it and the adapter imports it.
const FLAG: &str = "rbdkit_allocating";

/// The function with which the host allocates memory in a module.
const REALLOC: &str = "cabi_realloc";

/// The section that Go's linker writes into each module.
const BUILD_ID: &str = "go:buildid";

/// What the names of the functions begin with that free what an export has returned.
const POST_RETURN: &str = "cabi_post_";

/// Whether Go has made a module.
pub(crate) fn made(module: &[u8]) -> bool {
    Parser::new(0)
        .parse_all(module)
        .map_while(std::result::Result::ok)
        .any(|payload| matches!(payload, Payload::CustomSection(custom) if custom.name() == BUILD_ID))
}

/// The adapter.
///
/// # Errors
/// If its own text is wrong.
pub(crate) fn adapter() -> Result<Vec<u8>> {
    let wrong = |error: anyhow::Error| Error::Adapter(error.into());
    let mut adapter = wat::parse_str(include_str!("adapter.wat")).map_err(|error| wrong(error.into()))?;
    let mut resolve = Resolve::default();
    let package = resolve.push_str("adapter.wit", include_str!("adapter.wit")).map_err(wrong)?;
    let world = resolve.select_world(&[package], None).map_err(wrong)?;
    wit_component::embed_component_metadata(&mut adapter, &resolve, world, StringEncoding::UTF8).map_err(wrong)?;
    Ok(adapter)
}

/// What of a module the flag depends on.
#[derive(Default)]
struct Layout {
    /// For each type how many parameters it has, if it is a function's.
    types: Vec<Option<u32>>,
    imported_functions: u32,
    imported_globals: u32,
    /// The types of the module's own functions.
    functions: Vec<u32>,
    globals: u32,
    /// The functions during which the host must not be called, each with the name under which it
    /// is exported.
    alone: Vec<(String, u32)>,
}

/// Whether the host must not be called while an export with this name runs.
fn is_alone(name: &str) -> bool {
    name == REALLOC || name.starts_with(POST_RETURN)
}

impl Layout {
    fn of(module: &[u8]) -> Result<Layout> {
        let mut layout = Layout::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::TypeSection(groups) => {
                    for group in groups {
                        for ty in group?.into_types() {
                            layout.types.push(match ty.composite_type.inner {
                                CompositeInnerType::Func(function) => Some(u32::try_from(function.params().len())?),
                                _ => None,
                            });
                        }
                    }
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        match import?.ty {
                            TypeRef::Func(_) => layout.imported_functions += 1,
                            TypeRef::Global(_) => layout.imported_globals += 1,
                            _ => {}
                        }
                    }
                }
                Payload::FunctionSection(functions) => {
                    layout.functions = functions.into_iter().collect::<std::result::Result<_, _>>()?;
                }
                Payload::GlobalSection(globals) => layout.globals = globals.count(),
                Payload::ExportSection(exports) => {
                    for export in exports {
                        let export = export?;
                        if is_alone(export.name) && export.kind == ExternalKind::Func {
                            layout.alone.push((export.name.to_owned(), export.index));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(layout)
    }

    /// The type of one of the module's own functions, and how many parameters it has.
    fn own(&self, function: u32) -> Option<(u32, u32)> {
        let ty = *self.functions.get(function.checked_sub(self.imported_functions)? as usize)?;
        Some((ty, (*self.types.get(ty as usize)?)?))
    }
}

/// The module with the flag. No function and no global gets another number.
///
/// # Errors
/// If it cannot be read, or has no global or no `cabi_realloc`, which each module of Go has.
pub(crate) fn with_flag(module: &[u8]) -> Result<Vec<u8>> {
    let layout = Layout::of(module)?;
    let flag = layout.imported_globals + layout.globals;
    let mut types = layout.functions.clone();
    let mut code = Vec::new();
    // Under which number what stands before a function is exported in its place.
    let mut instead = BTreeMap::new();
    for (name, function) in &layout.alone {
        let own = layout.own(*function).ok_or_else(|| lacks(&format!("{name} of its own")))?;
        instead.insert(name.as_str(), layout.imported_functions + u32::try_from(types.len())?);
        types.push(own.0);
        code.push(with_flag_set(*function, own.1, flag));
    }
    if !instead.contains_key(REALLOC) {
        return Err(lacks(REALLOC));
    }
    if layout.globals == 0 {
        return Err(lacks("global"));
    }
    let mut with = Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        let Some((id, range)) = payload.as_section() else { continue };
        match payload {
            Payload::FunctionSection(_) => {
                let mut functions = FunctionSection::new();
                types.iter().for_each(|ty| {
                    functions.function(*ty);
                });
                with.section(&functions);
            }
            Payload::GlobalSection(reader) => {
                let mut globals = GlobalSection::new();
                RoundtripReencoder.parse_global_section(&mut globals, reader)?;
                let of = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
                globals.global(of, &ConstExpr::i32_const(0));
                with.section(&globals);
            }
            Payload::ExportSection(reader) => {
                let mut exports = ExportSection::new();
                for export in reader {
                    let export = export?;
                    let index = instead.get(export.name).copied().unwrap_or(export.index);
                    exports.export(export.name, RoundtripReencoder.export_kind(export.kind)?, index);
                }
                exports.export(FLAG, ExportKind::Global, flag);
                with.section(&exports);
            }
            Payload::CodeSectionStart { .. } => {
                let mut bodies = CodeSection::new();
                for body in CodeSectionReader::new(BinaryReader::new(&module[range], 0))? {
                    bodies.raw(body?.as_bytes());
                }
                code.iter().for_each(|body| {
                    bodies.function(body);
                });
                with.section(&bodies);
            }
            _ => {
                with.section(&RawSection { id, data: &module[range] });
            }
        }
    }
    Ok(with.finish())
}

fn lacks(what: &str) -> Error {
    Error::Malformed(format!("a module of Go that has no {what}"))
}

/// A function that calls another one and sets the flag as long as it runs. If it traps, the
/// instance is not used again.
fn with_flag_set(function: u32, parameters: u32, flag: u32) -> Function {
    let mut with = Function::new([]);
    let mut body = with.instructions();
    body.i32_const(1).global_set(flag);
    (0..parameters).for_each(|parameter| {
        body.local_get(parameter);
    });
    body.call(function).i32_const(0).global_set(flag).end();
    with
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIT: &str = "package a:b;\ninterface lists {\n  get: func() -> list<u8>;\n}\nworld w {\n  import lists;\n  \
                       export run: func() -> string;\n}\n";

    /// What Go's linker makes, in small: `custom` is the name of its section.
    fn module(custom: &str, realloc: &str) -> Vec<u8> {
        let text = format!(
            r#"(module (@custom "{custom}" "id")
                (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
                (import "a:b/lists" "get" (func $get (param i32)))
                (memory (export "memory") 1)
                (global $next (mut i32) (i32.const 1024))
                (func $realloc {realloc} (param i32 i32 i32 i32) (result i32)
                    (drop (call $time (i32.const 1) (i64.const 0) (i32.const 0)))
                    (global.get $next))
                (func (export "run") (result i32) (call $get (i32.const 16)) (i32.const 16))
                (func (export "cabi_post_run") (param i32)))"#
        );
        let mut module = wat::parse_str(text).unwrap();
        let mut resolve = Resolve::default();
        let package = resolve.push_str("w.wit", WIT).unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        module
    }

    const EXPORTED: &str = r#"(export "cabi_realloc")"#;

    /// The interfaces that a component imports.
    fn imports(component: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            if let Payload::ComponentImportSection(imports) = payload.unwrap() {
                names.extend(imports.into_iter().map(|import| import.unwrap().name.name.to_owned()));
            }
        }
        names
    }

    /// How many modules of a component export the flag.
    fn flags(component: &[u8]) -> usize {
        let with = Parser::new(0).parse_all(component).filter(|payload| match payload.as_ref().unwrap() {
            Payload::ExportSection(exports) => exports.clone().into_iter().any(|export| export.unwrap().name == FLAG),
            _ => false,
        });
        with.count()
    }

    #[test]
    fn a_module_of_go_gets_the_adapter_that_looks_at_the_flag() {
        let component = crate::componentize(&module(BUILD_ID, EXPORTED)).unwrap();
        let ours = imports(&component);
        let clocks = ["wasi:clocks/monotonic-clock@0.2.0", "wasi:clocks/wall-clock@0.2.0"];
        // What the module does not use is not part of the component.
        assert_eq!(ours, [&["a:b/lists"], &clocks[..]].concat());
        assert_eq!(flags(&component), 1, "the main module exports the flag, and the adapter imports it");
    }

    #[test]
    fn other_modules_stay_as_they_are() {
        let module = module("other", EXPORTED);
        assert!(!made(&module));
        let component = crate::componentize(&module).unwrap();
        assert_eq!(flags(&component), 0);
        // The adapter of wasmtime is of a later version than 0.2.0.
        assert!(!imports(&component).contains(&"wasi:clocks/wall-clock@0.2.0".to_owned()));
    }

    #[test]
    fn only_cabi_realloc_and_what_is_new_differ() {
        let module = module(BUILD_ID, EXPORTED);
        let with = with_flag(&module).unwrap();
        wasmparser::Validator::new().validate_all(&with).unwrap();
        let (before, after) = (Layout::of(&module).unwrap(), Layout::of(&with).unwrap());
        assert_eq!(after.functions[..before.functions.len()], before.functions);
        assert_eq!((after.functions.len(), after.globals), (before.functions.len() + 2, before.globals + 1));
        let alone = |realloc, post| vec![("cabi_realloc".to_owned(), realloc), ("cabi_post_run".to_owned(), post)];
        assert_eq!((before.alone, after.alone), (alone(2, 4), alone(5, 6)));
    }

    #[test]
    fn each_function_of_preview_1_is_there() {
        let adapter = adapter().unwrap();
        let exported = Parser::new(0).parse_all(&adapter).find_map(|payload| match payload.unwrap() {
            Payload::ExportSection(exports) => Some(exports.count()),
            _ => None,
        });
        assert_eq!(exported, Some(46));
    }

    #[test]
    fn what_is_no_module_of_go_is_an_error() {
        let error = with_flag(&module(BUILD_ID, "")).unwrap_err();
        assert_eq!(error.to_string(), "a module of Go that has no cabi_realloc");
        let module = module(BUILD_ID, EXPORTED);
        assert!(with_flag(&module[..module.len() - 1]).is_err());
        for length in 0..module.len() {
            // Cut short between sections it may be a module still.
            let _ = with_flag(&module[..length]);
            let mut damaged = module.clone();
            damaged[length] ^= 0x55;
            let _ = with_flag(&damaged);
        }
    }
}
