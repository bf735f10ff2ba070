//! What a component is told that was built for another contract.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::abi::{AbiVariant, WasmSignature, WasmType};
use wit_parser::{Resolve, WorldId, WorldItem};

use super::support::*;

/// A core module that imports and exports all functions of a world. Its own functions trap.
fn module(resolve: &Resolve, world: WorldId) -> String {
    let types = |types: &[WasmType]| -> String {
        let name = |ty: &WasmType| match ty {
            WasmType::I64 | WasmType::PointerOrI64 => "i64 ",
            WasmType::F32 => "f32 ",
            WasmType::F64 => "f64 ",
            WasmType::I32 | WasmType::Pointer | WasmType::Length => "i32 ",
        };
        types.iter().map(name).collect()
    };
    let signature = |WasmSignature { params, results, .. }: &WasmSignature| {
        format!("(param {}) (result {})", types(params), types(results))
    };
    let functions = |items: &wit_parser::IndexMap<wit_parser::WorldKey, WorldItem>, variant: AbiVariant| {
        let mut functions = Vec::new();
        for (key, item) in items {
            let WorldItem::Interface { id, .. } = item else { continue };
            for (name, function) in &resolve.interfaces[*id].functions {
                let interface = resolve.name_world_key(key);
                functions.push((interface, name.clone(), signature(&resolve.wasm_signature(variant, function))));
            }
        }
        functions
    };
    let world = &resolve.worlds[world];
    let imports = functions(&world.imports, AbiVariant::GuestImport).into_iter();
    let imports = imports.map(|(of, name, types)| format!("(import \"{of}\" \"{name}\" (func {types}))\n"));
    let exports = functions(&world.exports, AbiVariant::GuestExport).into_iter();
    let exports = exports.map(|(of, name, types)| format!("(func (export \"{of}#{name}\") {types} unreachable)\n"));
    format!(
        r#"(module {} {}
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable))"#,
        imports.collect::<String>(),
        exports.collect::<String>()
    )
}

/// The error of loading a component that was built for the contract with `from` replaced by `to`.
fn error_of(from: &str, to: &str, exports: &str) -> String {
    let contract = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit/filter.wit")).unwrap();
    assert!(contract.contains(from), "{from}");
    let world = format!("package test:guest;\nworld guest {{\ninclude rbdkit:filter/host@0.1.0;\n{exports}}}");
    let world = if to.contains("0.2.0") { world.replace("0.1.0", "0.2.0") } else { world };
    error_of_loading(&contract.replacen(from, to, 1), &world)
}

/// The error of loading a component that was built for a contract and a world.
fn error_of_loading(contract: &str, world: &str) -> String {
    let mut resolve = Resolve::default();
    resolve.push_str("filter.wit", contract).unwrap();
    let package = resolve.push_str("guest.wit", world).unwrap();
    let world = resolve.select_world(&[package], Some("guest")).unwrap();
    let mut module = wat::parse_str(module(&resolve, world)).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let component = ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap();
    host().load("guest", &component).err().map_or("none".to_string(), |error| error.to_string())
}

#[test]
fn an_error_names_the_export_and_the_field() {
    let reads = "export rbdkit:filter/reads@0.1.0;\n";
    for (from, to, exports, error) in [
        ("    longname: string,\n", "", "", "filter.describe: field `longname` is missing"),
        ("    longname: string,\n", "    long-name: string,\n", "", "filter.describe: field `longname` is missing"),
        (
            "    state-version: u32,\n",
            "    state-version: u32,\n    more: string,\n",
            "",
            "filter.describe: the contract has no field `more`",
        ),
        (
            "    version: string,\n",
            "    version: u32,\n",
            "",
            "filter.describe: field `version` is u32, the contract says string",
        ),
        (
            "describe: func() -> description;",
            "describe: func() -> string;",
            "",
            "filter.describe: its result is string, the contract says record",
        ),
        ("describe: func() -> description;", "", "", "filter.describe: the function is missing"),
        ("params: list<tuple<string, string>>)", ")", "", "filter.configure: it has 0 parameters, the contract says 1"),
        (
            "params: list<tuple<string, string>>)",
            "params: list<tuple<string, u64>>)",
            "",
            "filter.configure: parameter `params` is u64, the contract says string",
        ),
        ("    replay,\n", "", "", "filter.describe: field `recovery`: case `replay` is missing"),
        (
            "pread: func(offset: u64, length: u32, ",
            "pread: func(offset: u32, length: u32, ",
            reads,
            "next.pread: parameter `offset` is u32, the contract says u64",
        ),
        (
            "interface log {\n",
            "interface log {\n  shout: func();\n",
            "",
            "it imports log.shout, which this host does not have (was it built for a newer one?)",
        ),
    ] {
        let expected = format!("guest: it does not fit this host's rbdkit:filter@0.1.0: {error}");
        assert_eq!(error_of(from, to, exports), expected, "{from:?} -> {to:?}");
    }
}

#[test]
fn a_component_that_is_no_filter_of_this_version_says_which_it_is() {
    let other = error_of("package rbdkit:filter@0.1.0;", "package rbdkit:filter@0.2.0;", "");
    assert_eq!(other, "guest: it was built for rbdkit:filter@0.2.0, and this host has 0.1.0");
}

/// Its functions trap, so it fails in `describe`, which is called once everything fits.
#[test]
fn a_component_that_uses_all_of_an_older_contract_fits() {
    let world = "package test:guest;\nworld guest { include rbdkit:filter/everything@0.1.0; }";
    let error = error_of_loading(include_str!("archive/filter.wit"), world);
    assert!(error.starts_with("guest: describe: wasm trap: wasm `unreachable`"), "{error}");
}

/// The component with further exports, which are empty.
fn with_exports(mut component: Vec<u8>, names: &[&str]) -> Vec<u8> {
    for name in names {
        let types = wasmparser::Validator::new().validate_all(&component).unwrap();
        let mut added = wasm_encoder::Component::new();
        let mut instances = wasm_encoder::ComponentInstanceSection::new();
        instances.export_items::<&str, [(&str, wasm_encoder::ComponentExportKind, u32); 0]>([]);
        added.section(&instances);
        let mut exports = wasm_encoder::ComponentExportSection::new();
        let index = types.as_ref().component_instance_count();
        exports.export(*name, wasm_encoder::ComponentExportKind::Instance, index, None);
        added.section(&exports);
        // Sections may follow each other in any order.
        component.extend(&added.finish()[8..]);
    }
    component
}

#[test]
fn an_export_that_the_host_does_not_know_is_named() {
    let filter = Guest::new(&["reads"], READS).component();
    let names = ["filter/raeds@0.1.0", "filter/reads@0.2.0", "filter/compression@0.1.7", "other/reads@0.1.0"];
    let names = names.map(|name| format!("rbdkit:{name}"));
    let module = host().load("guest", &with_exports(filter.clone(), &names.each_ref().map(String::as_str))).unwrap();
    assert_eq!(
        module.unknown_exports(),
        [
            "it exports rbdkit:filter/raeds, which this host does not know: did you mean reads?",
            "it exports rbdkit:filter/reads@0.2.0, and this host has 0.1.0: it never calls it",
            "it exports rbdkit:filter/compression, which this host does not know and never calls",
        ]
    );
    let many: Vec<String> = (0..20).map(|n| format!("rbdkit:filter/other{n}@0.1.0")).collect();
    let module =
        host().load("guest", &with_exports(filter, &many.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    assert_eq!(module.unknown_exports().len(), 9);
    assert_eq!(module.unknown_exports()[8], "it exports 12 more interfaces that this host does not know");
    assert!(load(&Guest::new(&["reads"], READS)).unwrap().unknown_exports().is_empty());
}

#[test]
fn a_component_without_our_filter_says_what_it_has() {
    let empty = wat::parse_str("(component)").unwrap();
    for (name, error) in [
        ("rbdkit:filter/filter@0.2.0", "it was built for rbdkit:filter@0.2.0, and this host has 0.1.0"),
        (
            "rbdkit:filter/fliter@0.1.0",
            "it exports rbdkit:filter/fliter, which this host does not know, and no rbdkit:filter/filter: did you \
             mean filter?",
        ),
        ("other:filter/filter@0.1.0", "it does not export rbdkit:filter/filter: it is not a filter"),
    ] {
        let why = host().load("guest", &with_exports(empty.clone(), &[name])).err().unwrap().to_string();
        assert_eq!(why, format!("guest: {error}"));
    }
}
