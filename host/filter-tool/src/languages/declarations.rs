//! The contract as TypeScript declarations, with its documentation, for editors and for `tsc`.
//!
//! The names and types are those that componentize-qjs gives: camel case, `number` for every
//! integer, the name of an enum's case as a string, an object of booleans for flags, `null` for an
//! option without a value, and an exception for an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use wit_bindgen_core::wit_parser::{
    Docs, Function, InterfaceId, Resolve, Type, TypeDefKind, TypeId, WorldId, WorldItem, WorldKey,
};

use super::bindings::Wit;
use crate::error::{Error, Result};

/// What the file begins with.
const HEAD: &str = "// rbdkit-filter makes this file from wit/. The contract, as TypeScript.
//
// An integer of 64 bits is a number, which is exact up to 2^53: offsets beyond 8 PiB do not work.
// An error is thrown: throw \"eio\". What an imported function throws passes through the filter as
// it is; its `payload` is such a string.

";

/// Writes the declarations of a project's world.
///
/// # Errors
/// If the contract cannot be read, or the file not be written.
pub fn write(wit: &Wit, path: &Path) -> Result<()> {
    let text = text(wit.resolve(), wit.world());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::file("cannot make", parent))?;
    }
    if std::fs::read_to_string(path).ok().as_deref() == Some(&text) {
        return Ok(());
    }
    std::fs::write(path, text).map_err(Error::file("cannot write", path))
}

fn text(resolve: &Resolve, world: WorldId) -> String {
    let names = Names::of(resolve, world);
    let mut text = HEAD.to_owned();
    let world = &resolve.worlds[world];
    text.push_str("declare namespace rbdkit {\n");
    for (id, name) in names.in_order() {
        names.type_definition(&mut text, id, name);
    }
    for (key, item) in &world.exports {
        if let Some((id, _)) = interface(key, item) {
            names.exported_interface(&mut text, id);
        }
    }
    text.push_str("}\n");
    for (key, item) in &world.imports {
        if let Some((id, _)) = interface(key, item)
            && !resolve.interfaces[id].functions.is_empty()
        {
            names.imported_module(&mut text, id);
        }
    }
    text
}

fn interface<'a>(key: &'a WorldKey, item: &WorldItem) -> Option<(InterfaceId, &'a WorldKey)> {
    match item {
        WorldItem::Interface { id, .. } => Some((*id, key)),
        _ => None,
    }
}

/// The names of the contract's types in TypeScript.
struct Names<'a> {
    resolve: &'a Resolve,
    names: BTreeMap<TypeId, String>,
}

impl<'a> Names<'a> {
    /// Names the types of all interfaces of a world. A name that two interfaces use gets the
    /// interface's in front.
    fn of(resolve: &'a Resolve, world: WorldId) -> Names<'a> {
        let mut names = BTreeMap::new();
        let world = &resolve.worlds[world];
        for item in world.imports.values().chain(world.exports.values()) {
            let WorldItem::Interface { id, .. } = item else { continue };
            let interface = &resolve.interfaces[*id];
            for (name, id) in &interface.types {
                // A type that is used from another interface has its name there.
                if matches!(resolve.types[*id].kind, TypeDefKind::Type(_)) || names.contains_key(id) {
                    continue;
                }
                let short = pascal(name);
                let taken = names.values().any(|name| *name == short);
                let name = if taken { pascal(interface.name.as_deref().unwrap_or_default()) + &short } else { short };
                names.insert(*id, name);
            }
        }
        Names { resolve, names }
    }

    fn in_order(&self) -> impl Iterator<Item = (TypeId, &String)> {
        self.names.iter().map(|(id, name)| (*id, name))
    }

    fn type_definition(&self, text: &mut String, id: TypeId, name: &str) {
        let definition = &self.resolve.types[id];
        docs(text, "  ", &definition.docs);
        match &definition.kind {
            TypeDefKind::Record(record) => {
                let _ = writeln!(text, "  interface {name} {{");
                for field in &record.fields {
                    docs(text, "    ", &field.docs);
                    let _ = writeln!(text, "    {}: {};", camel(&field.name), self.name(&field.ty));
                }
                text.push_str("  }\n");
            }
            TypeDefKind::Flags(flags) => {
                let _ = writeln!(text, "  interface {name} {{");
                for flag in &flags.flags {
                    docs(text, "    ", &flag.docs);
                    let _ = writeln!(text, "    {}: boolean;", camel(&flag.name));
                }
                text.push_str("  }\n");
            }
            TypeDefKind::Enum(cases) => {
                let _ = writeln!(text, "  type {name} =");
                for case in &cases.cases {
                    docs(text, "    ", &case.docs);
                    let _ = writeln!(text, "    | \"{}\"", case.name);
                }
                text.push_str("  ;\n");
            }
            other => {
                let _ = writeln!(text, "  type {name} = {};", self.kind(other));
            }
        }
    }

    fn exported_interface(&self, text: &mut String, id: InterfaceId) {
        let interface = &self.resolve.interfaces[id];
        docs(text, "  ", &interface.docs);
        let _ = writeln!(text, "  interface {} {{", pascal(interface.name.as_deref().unwrap_or_default()));
        for function in interface.functions.values() {
            docs(text, "    ", &function.docs);
            let _ = writeln!(text, "    {}{};", camel(&function.name), self.signature(function));
        }
        text.push_str("  }\n");
    }

    fn imported_module(&self, text: &mut String, id: InterfaceId) {
        let interface = &self.resolve.interfaces[id];
        text.push('\n');
        docs(text, "", &interface.docs);
        let _ = writeln!(text, "declare module \"{}\" {{", self.resolve.id_of(id).unwrap_or_default());
        for function in interface.functions.values() {
            docs(text, "  ", &function.docs);
            let _ = writeln!(text, "  export function {}{};", camel(&function.name), self.signature(function));
        }
        text.push_str("}\n");
    }

    fn signature(&self, function: &Function) -> String {
        let params: Vec<String> =
            function.params.iter().map(|param| format!("{}: {}", camel(&param.name), self.name(&param.ty))).collect();
        let result = function.result.as_ref().map_or("void".to_owned(), |ty| self.name(ty));
        format!("({}): {result}", params.join(", "))
    }

    fn name(&self, ty: &Type) -> String {
        match ty {
            Type::Bool => "boolean".to_owned(),
            Type::String | Type::Char => "string".to_owned(),
            Type::Id(id) => match (self.names.get(id), &self.resolve.types[*id].kind) {
                (_, TypeDefKind::Type(same)) => self.name(same),
                (Some(name), _) => format!("rbdkit.{name}"),
                (None, kind) => self.kind(kind),
            },
            // Integers, and floating point numbers, of which the contract has none.
            _ => "number".to_owned(),
        }
    }

    /// A type that has no name of its own.
    fn kind(&self, kind: &TypeDefKind) -> String {
        let or_void = |ty: &Option<Type>| ty.as_ref().map_or("void".to_owned(), |ty| self.name(ty));
        match kind {
            TypeDefKind::Option(some) => format!("{} | null", self.name(some)),
            // Errors are thrown.
            TypeDefKind::Result(result) => or_void(&result.ok),
            TypeDefKind::List(Type::U8) => "Uint8Array".to_owned(),
            TypeDefKind::List(item) => format!("Array<{}>", self.name(item)),
            TypeDefKind::Tuple(tuple) => {
                format!("[{}]", tuple.types.iter().map(|ty| self.name(ty)).collect::<Vec<String>>().join(", "))
            }
            TypeDefKind::Type(same) => self.name(same),
            _ => "unknown".to_owned(),
        }
    }
}

/// A documentation comment.
fn docs(text: &mut String, indent: &str, docs: &Docs) {
    let Some(contents) = &docs.contents else { return };
    let _ = writeln!(text, "{indent}/**");
    for line in contents.trim().lines() {
        // The end of a comment in the text would end this one.
        let line = line.replace("*/", "* /");
        let _ = writeln!(text, "{}", format!("{indent} * {}", line.trim_end()).trim_end());
    }
    let _ = writeln!(text, "{indent} */");
}

/// `thread-model` as `threadModel`.
pub fn camel(name: &str) -> String {
    let mut words = name.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| text + &capital(word))
}

/// `thread-model` as `ThreadModel`.
fn pascal(name: &str) -> String {
    name.split('-').map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
