//! Modules that Go has made: the collector of Go may run, and read the clock, while the host
//! allocates memory for a list that an import returns. The component model forbids a call of the
//! host at that time.
//!
//! So such a module gets a flag, a global that is set as long as `cabi_realloc` runs, and an
//! adapter of its own for WASI's preview 1, which looks at the flag and then does not call the
//! host.

use wasm_encoder::reencode::{Reencode, RoundtripReencoder};
use wasm_encoder::{
    CodeSection, ConstExpr, ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType, Module,
    RawSection, ValType,
};
use wasmparser::{BinaryReader, CodeSectionReader, Parser, Payload, TypeRef};
use wit_component::StringEncoding;
use wit_parser::Resolve;

use crate::error::{Error, Result};

/// The flag, as the module exports it and the adapter imports it.
const FLAG: &str = "rbdkit_allocating";

/// The function with which the host allocates memory in a module.
const REALLOC: &str = "cabi_realloc";

/// The section that Go's linker writes into each module.
const BUILD_ID: &str = "go:buildid";

/// How many numbers `cabi_realloc` takes.
const REALLOC_PARAMETERS: u32 = 4;

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
    let package = resolve.push_str("adapter.wit", include_str!("adapter.wit")).map_err(|error| wrong(error.into()))?;
    let world = resolve.select_world(&[package], None).map_err(wrong)?;
    wit_component::embed_component_metadata(&mut adapter, &resolve, world, StringEncoding::UTF8).map_err(wrong)?;
    Ok(adapter)
}

/// What of a module the flag depends on.
#[derive(Default)]
struct Survey {
    imported_functions: u32,
    imported_globals: u32,
    functions: Vec<u32>,
    globals: u32,
    /// The function that is exported as `cabi_realloc`.
    realloc: Option<u32>,
}

impl Survey {
    fn of(module: &[u8]) -> Result<Survey> {
        let mut survey = Survey::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        match import?.ty {
                            TypeRef::Func(_) => survey.imported_functions += 1,
                            TypeRef::Global(_) => survey.imported_globals += 1,
                            _ => {}
                        }
                    }
                }
                Payload::FunctionSection(functions) => {
                    survey.functions = functions.into_iter().collect::<std::result::Result<_, _>>()?;
                }
                Payload::GlobalSection(globals) => survey.globals = globals.count(),
                Payload::ExportSection(exports) => {
                    for export in exports {
                        let export = export?;
                        if export.name == REALLOC && export.kind == wasmparser::ExternalKind::Func {
                            survey.realloc = Some(export.index);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(survey)
    }

    /// The type of the module's own function that is `cabi_realloc`.
    fn realloc_type(&self) -> Option<u32> {
        let own = self.realloc?.checked_sub(self.imported_functions)?;
        self.functions.get(own as usize).copied()
    }
}

/// The module with the flag. No function and no global gets another number.
///
/// # Errors
/// If it cannot be read, or has no global or no `cabi_realloc`, which each module of Go has.
pub(crate) fn with_flag(module: &[u8]) -> Result<Vec<u8>> {
    let survey = Survey::of(module)?;
    let (Some(realloc), Some(realloc_type)) = (survey.realloc, survey.realloc_type()) else {
        return Err(Error::Malformed(format!("a module of Go that has no {REALLOC} of its own")));
    };
    let flag = survey.imported_globals + survey.globals;
    let flagged = survey.imported_functions + u32::try_from(survey.functions.len())?;
    let mut with = Module::new();
    let mut has_globals = false;
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        let Some((id, range)) = payload.as_section() else { continue };
        match payload {
            Payload::FunctionSection(_) => {
                let mut functions = FunctionSection::new();
                survey.functions.iter().chain([&realloc_type]).for_each(|of| {
                    functions.function(*of);
                });
                with.section(&functions);
            }
            Payload::GlobalSection(reader) => {
                let mut globals = GlobalSection::new();
                RoundtripReencoder.parse_global_section(&mut globals, reader)?;
                let of = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
                globals.global(of, &ConstExpr::i32_const(0));
                with.section(&globals);
                has_globals = true;
            }
            Payload::ExportSection(reader) => {
                let mut exports = ExportSection::new();
                for export in reader {
                    let export = export?;
                    let index = if export.name == REALLOC { flagged } else { export.index };
                    exports.export(export.name, RoundtripReencoder.export_kind(export.kind)?, index);
                }
                exports.export(FLAG, ExportKind::Global, flag);
                with.section(&exports);
            }
            Payload::CodeSectionStart { .. } => {
                let mut code = CodeSection::new();
                for body in CodeSectionReader::new(BinaryReader::new(&module[range], 0))? {
                    code.raw(body?.as_bytes());
                }
                code.function(&with_flag_set(realloc, flag));
                with.section(&code);
            }
            _ => {
                with.section(&RawSection { id, data: &module[range] });
            }
        }
    }
    if !has_globals {
        return Err(Error::Malformed("a module of Go that has no global".to_owned()));
    }
    Ok(with.finish())
}

/// A function that calls `cabi_realloc` and sets the flag as long as it runs. If it traps, the
/// instance is not used again.
fn with_flag_set(realloc: u32, flag: u32) -> Function {
    let mut function = Function::new([]);
    let mut body = function.instructions();
    body.i32_const(1).global_set(flag);
    (0..REALLOC_PARAMETERS).for_each(|parameter| {
        body.local_get(parameter);
    });
    body.call(realloc).i32_const(0).global_set(flag).end();
    function
}
