//! Hostile components. They are written here as core modules in text and made into components.
//!
//! Each guest behaves well except at one offset, its trigger, where it does one hostile thing. So
//! many guests can stand in one chain, and a test sees what one of them does while all others go on
//! serving.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::{PackageId, Resolve, Type, TypeDefKind, WorldItem};

/// A filter and the hostile thing that it does.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The name in the filter's description.
    pub name: String,
    /// 0 serialize-connections, 1 serialize-all-requests, 2 serialize-requests, 3 parallel.
    pub model: u8,
    /// 0 stateless, 1 replay, 2 lost.
    pub recovery: u8,
    /// The interfaces that it exports besides `filter`.
    pub exports: Vec<&'static str>,
    /// Imports, functions and globals. `$TRIGGER` stands for the trigger's offset.
    pub body: String,
    /// Replaces the body of the module's own `cabi_realloc`.
    pub realloc: Option<&'static str>,
    /// More items for the world, in WIT.
    pub world: &'static str,
    /// More interfaces of the contract's package, in WIT.
    pub contract: &'static str,
    /// The parameters in the description, as (name, kind).
    pub params: Vec<(&'static str, &'static str)>,
    /// Replaces the body of `configure`, which leaves a pointer to a result.
    pub configure: &'static str,
    /// Replaces the body of `describe`, which leaves a pointer to the description.
    pub describe: &'static str,
}

/// An allocator that never frees.
const REALLOC: &str = r#"
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
    (global.set $top (i32.add (local.get $at) (local.get 3)))
    (if (i32.gt_u (global.get $top) (i32.mul (memory.size) (i32.const 65536)))
        (then (drop (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1))))))
    (local.get $at)"#;

impl Guest {
    /// A guest that is transparent, parallel and stateless.
    pub fn new(name: &str, exports: &[&'static str], body: &str) -> Guest {
        Guest {
            name: name.to_owned(),
            model: 3,
            recovery: 0,
            exports: exports.to_vec(),
            body: body.to_owned(),
            realloc: None,
            world: "",
            contract: "",
            params: Vec::new(),
            configure: "(i32.const 1200)",
            describe: "(i32.const 1024)",
        }
    }

    /// A guest whose reads at the trigger run `code` first, which leaves nothing on the stack. Then
    /// they are passed on like all other reads.
    pub fn reads(name: &str, imports: &str, code: &str) -> Guest {
        let body = format!(
            r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    {imports}
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (local $n i32)
        (if (i64.eq (local.get 0) (i64.const $TRIGGER)) (then {code}))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#
        );
        Guest::new(name, &["reads"], &body)
    }

    /// The same as [`Guest::reads`] for writes.
    pub fn writes(name: &str, imports: &str, code: &str) -> Guest {
        let body = format!(
            r#"
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    {imports}
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (if (i64.eq (local.get 0) (i64.const $TRIGGER)) (then {code}))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
"#
        );
        Guest::new(name, &["writes"], &body)
    }

    /// The same for block status. `code` may return a pointer to a `result<list<extent>, errno>` of
    /// its own.
    pub fn mapping(name: &str, imports: &str, code: &str) -> Guest {
        let body = format!(
            r#"
    (import "rbdkit:filter/next@0.1.0" "extents-forward" (func $forward (param i64 i64 i64 i32 i32)))
    {imports}
    (func (export "rbdkit:filter/mapping@0.1.0#extents") (param i64 i64 i32) (result i32)
        (local $n i32)
        (if (i64.eq (local.get 0) (i64.const $TRIGGER)) (then {code}))
        (call $forward (local.get 0) (local.get 1) (local.get 0) (local.get 2) (i32.const 2048))
        (if (i32.eqz (i32.load8_u (i32.const 2048))) (then (return (i32.const 1200))))
        (i32.store8 (i32.const 2052) (i32.load8_u (i32.const 2049)))
        (i32.const 2048))
"#
        );
        Guest::new(name, &["mapping"], &body)
    }

    pub fn realloc(self, body: &'static str) -> Guest {
        Guest { realloc: Some(body), ..self }
    }

    pub fn world(self, world: &'static str) -> Guest {
        Guest { world, ..self }
    }

    pub fn model(self, model: u8) -> Guest {
        Guest { model, ..self }
    }

    /// The text of the core module. Its memory has the description at 1024, the name at 1100, a
    /// success at 1200 and the parameters at 1300. 2048 to 4096 is free for the guest's code, and
    /// the allocator begins at 8192.
    fn module(&self, trigger: u64) -> String {
        let mut strings = String::new();
        // A parameter has 56 bytes.
        let mut at = 1500.max(1300 + 56 * self.params.len() as u32);
        let mut string = |text: &str| {
            strings.push_str(&format!("(data (i32.const {at}) \"{text}\")\n"));
            at += text.len() as u32;
            [at - text.len() as u32, text.len() as u32]
        };
        let mut params = Vec::new();
        for (name, kind) in &self.params {
            // record param: name, aliases, kind, choices, default (option), required, repeat,
            // pass-on, help.
            let words = [string(name), [0, 0], string(kind), [0, 0]].concat();
            words.iter().for_each(|word| params.extend(word.to_le_bytes()));
            params.extend([0; 12]);
            params.extend([0; 4]);
            params.extend([0; 8]);
        }
        let mut record = Vec::new();
        let mut word = |n: u32| record.extend(n.to_le_bytes());
        word(1100);
        word(self.name.len() as u32);
        for _ in 0..3 {
            word(0);
            word(0);
        }
        word(u32::from_le_bytes([self.model, 1, self.recovery, 0]));
        word(0);
        word(1300);
        word(self.params.len() as u32);
        // Imports have to come first in a module. The order of the rest does not matter.
        let body = self.body.replace("$TRIGGER", &trigger.to_string());
        let (imports, rest): (Vec<&str>, Vec<&str>) =
            body.lines().partition(|line| line.trim_start().starts_with("(import"));
        format!(
            r#"(module
            {imports}
            (memory (export "memory") 1)
            (global $top (mut i32) (i32.const 8192))
            (data (i32.const 1024) "{record}")
            (data (i32.const 1100) "{name}")
            (data (i32.const 1200) "\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00")
            (data (i32.const 1300) "{params}")
            {strings}
            (func $realloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) {realloc})
            (func (export "rbdkit:filter/filter@0.1.0#describe") (result i32) {describe})
            (func (export "rbdkit:filter/filter@0.1.0#configure") (param i32 i32) (result i32) {configure})
            {rest})"#,
            imports = imports.join("\n"),
            record = escaped(&record),
            name = self.name,
            params = escaped(&params),
            realloc = self.realloc.unwrap_or(REALLOC),
            describe = self.describe,
            configure = self.configure,
            rest = rest.join("\n"),
        )
    }

    /// The guest as a component whose trigger is at this offset.
    pub fn component(&self, trigger: u64) -> Vec<u8> {
        let exports: String = self.exports.iter().map(|name| format!("export rbdkit:filter/{name}@0.1.0;\n")).collect();
        component_of(&self.module(trigger), self.contract, &format!("{exports}{}", self.world))
    }
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

/// The contract with more interfaces, and its package.
fn contract(more: &str) -> (Resolve, PackageId) {
    let mut resolve = Resolve::default();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit/filter.wit");
    let text = std::fs::read_to_string(path).expect("the contract");
    let package = resolve.push_str("filter.wit", &format!("{text}\n{more}")).expect("the contract");
    (resolve, package)
}

/// The functions that a filter may import and that take a list or a string, as
/// `interface.function`, sorted.
pub fn functions_that_take_lists() -> Vec<String> {
    let (resolve, package) = contract("");
    let world = resolve.select_world(&[package], Some("host")).expect("a world");
    let is_list = |kind: Type| match kind {
        Type::String => true,
        Type::Id(id) => matches!(resolve.types[id].kind, TypeDefKind::List(_)),
        _ => false,
    };
    let interfaces = resolve.worlds[world].imports.values().filter_map(|item| match item {
        WorldItem::Interface { id, .. } => Some(&resolve.interfaces[*id]),
        _ => None,
    });
    let functions = interfaces.flat_map(|interface| {
        let name = interface.name.clone().unwrap_or_default();
        let all = interface.functions.values().filter(|function| function.params.iter().any(|param| is_list(param.ty)));
        all.map(move |function| format!("{name}.{}", function.name))
    });
    let mut functions: Vec<String> = functions.collect();
    functions.sort_unstable();
    functions
}

/// Makes a component of a core module. Its world includes the host's world and the items in
/// `world`. `more` are further interfaces of the contract.
fn component_of(module: &str, more: &str, world: &str) -> Vec<u8> {
    component_of_module(wat::parse_str(module).unwrap_or_else(|e| panic!("{e}\n{module}")), more, world)
}

/// [`component_of`] for a module that is not text.
pub fn component_of_module(mut module: Vec<u8>, more: &str, world: &str) -> Vec<u8> {
    let (mut resolve, _) = contract(more);
    let world = format!("package test:guest;\nworld guest {{\ninclude rbdkit:filter/host@0.1.0;\n{world}}}");
    let package = resolve.push_str("guest.wit", &world).unwrap_or_else(|e| panic!("{e:?}\n{world}"));
    let world = resolve.select_world(&[package], Some("guest")).expect("a world");
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("a module");
    let mut encoder = ComponentEncoder::default().module(&module).unwrap_or_else(|e| panic!("{e:?}"));
    encoder.encode().unwrap_or_else(|e| panic!("{e:?}"))
}
