//! Removes from a component what only people read, before it is compiled: custom sections, and most
//! of the names.
//!
//! The compiler keeps the names of functions with the code, and a fault's message shows them. One
//! name may be as long as the component, and then each fault would copy and demangle it. So a name
//! is cut here, once. Debugging information (DWARF) is kept only for the tools of authors
//! ([`CodeExtras`]). Everything else in custom sections (names of locals) is never used.

use std::borrow::Cow;
use std::ops::Range;

use wasm_encoder::{
    Component, CustomSection, Module, ModuleSection, NameMap, NameSection, NestedComponentSection, RawSection,
};
use wasmparser::{Encoding, KnownCustom, Name, NameSectionReader, Parser, Payload};

use crate::connection::engine::CodeExtras;

/// The longest name of a function that is kept, in bytes. Messages show 100 characters, and Rust's
/// names are some 150 bytes before they are demangled.
const MAX_NAME_BYTES: usize = 512;

/// Bytes of all names that are kept of one module. Python's standard library has 3 MiB.
const MAX_NAMES_BYTES: usize = 16 << 20;

/// How the names of the sections of DWARF begin.
const DWARF: &str = ".debug_";

/// Bytes of DWARF that are kept of one component. A trap looks at all of it. Rust's standard
/// library has 5 MiB.
const MAX_DWARF_BYTES: usize = 48 << 20;

/// What is being copied: the component or one of its parts.
enum Copied {
    Module(Module),
    Component(Component),
}

impl Copied {
    fn section(&mut self, id: u8, data: &[u8]) {
        let section = RawSection { id, data };
        match self {
            Copied::Module(module) => {
                module.section(&section);
            }
            Copied::Component(component) => {
                component.section(&section);
            }
        }
    }
}

/// The same component without custom sections other than short names of functions, and DWARF if the
/// code has lines. None if it is not well formed; then the compiler says what is wrong.
pub(super) fn stripped(component: &[u8], extras: CodeExtras) -> Option<Vec<u8>> {
    let mut parts: Vec<Copied> = Vec::new();
    let mut dwarf = 0;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.ok()?;
        match &payload {
            Payload::Version { encoding: Encoding::Module, .. } => parts.push(Copied::Module(Module::new())),
            Payload::Version { encoding: Encoding::Component, .. } => parts.push(Copied::Component(Component::new())),
            // These come as sections of their own, up to their end.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {}
            Payload::CustomSection(custom) => {
                let Some(Copied::Module(module)) = parts.last_mut() else { continue };
                if let KnownCustom::Name(names) = custom.as_known() {
                    module.section(&short_names(names));
                } else if extras.keeps_lines() && custom.name().starts_with(DWARF) {
                    dwarf += custom.data().len();
                    if dwarf <= MAX_DWARF_BYTES {
                        module.section(&CustomSection {
                            name: Cow::Borrowed(custom.name()),
                            data: Cow::Borrowed(custom.data()),
                        });
                    }
                }
            }
            Payload::End(_) => {
                let ended = parts.pop()?;
                match (ended, parts.last_mut()) {
                    (Copied::Module(module), Some(Copied::Component(whole))) => {
                        whole.section(&ModuleSection(&module));
                    }
                    (Copied::Component(part), Some(Copied::Component(whole))) => {
                        whole.section(&NestedComponentSection(&part));
                    }
                    (Copied::Component(whole), None) => return Some(whole.finish()),
                    _ => return None,
                }
            }
            other => {
                if let Some((id, Range { start, end })) = other.as_section() {
                    parts.last_mut()?.section(id, component.get(start..end)?);
                }
            }
        }
    }
    None
}

/// The names of functions up to the limits, as far as the section is well formed.
fn short_names(names: NameSectionReader<'_>) -> NameSection {
    let mut kept = NameMap::new();
    let mut bytes = 0;
    let functions = names.into_iter().map_while(Result::ok).find_map(|name| match name {
        Name::Function(functions) => Some(functions),
        _ => None,
    });
    for naming in functions.into_iter().flatten().map_while(Result::ok) {
        let name = &naming.name[..naming.name.floor_char_boundary(MAX_NAME_BYTES)];
        bytes += name.len();
        if bytes > MAX_NAMES_BYTES {
            break;
        }
        kept.append(naming.index, name);
    }
    let mut section = NameSection::new();
    section.functions(&kept);
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A component that has everything that is stripped, at each level.
    fn component(name: &str) -> Vec<u8> {
        wat::parse_str(format!(
            r#"(component
                (core module $m
                    (@custom "debug" "{name}")
                    (func $"{name}" (export "f") (local $local i32) unreachable)
                    (func $short (call 0)))
                (component (core module (func $"{name}")) (core instance (instantiate 0)))
                (core instance $i (instantiate $m))
                (func (export "f") (canon lift (core func $i "f"))))"#
        ))
        .unwrap()
    }

    #[test]
    fn a_name_is_cut_and_the_code_is_the_same() {
        let long = "n".repeat(100_000);
        let whole = component(&long);
        let stripped = stripped(&whole, CodeExtras::None).unwrap();
        assert!(whole.len() > 300_000 && stripped.len() < 2000, "{} {}", whole.len(), stripped.len());
        wasmparser::Validator::new().validate_all(&stripped).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(text(&stripped).contains(&"n".repeat(MAX_NAME_BYTES)) && text(&stripped).contains("short"));
        let sections = |bytes: &[u8]| {
            let all = Parser::new(0).parse_all(bytes).map(Result::unwrap);
            all.filter_map(|payload| match payload {
                Payload::CustomSection(_) | Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => None,
                other => other.as_section().map(|(id, range)| (id, bytes[range].to_vec())),
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(sections(&whole), sections(&stripped));
    }

    #[test]
    fn dwarf_is_kept_only_for_code_with_lines() {
        let whole = wat::parse_str(
            r#"(component (core module (@custom ".debug_line" "the lines") (@custom "other" "the rest") (func)))"#,
        )
        .unwrap();
        let has = |extras, text: &str| {
            let stripped = stripped(&whole, extras).unwrap();
            wasmparser::Validator::new().validate_all(&stripped).unwrap();
            String::from_utf8_lossy(&stripped).contains(text)
        };
        assert!(has(CodeExtras::Lines, "the lines") && has(CodeExtras::LinesAndCount, "the lines"));
        assert!(!has(CodeExtras::None, "the lines") && !has(CodeExtras::Lines, "the rest"));
    }

    #[test]
    fn what_is_not_a_component_is_left_to_the_compiler() {
        let whole = component("name");
        for end in 0..whole.len() {
            let is_component = wasmparser::validate(&whole[..end]).is_ok();
            assert_eq!(stripped(&whole[..end], CodeExtras::None).is_some(), is_component, "{end}");
        }
        assert!(stripped(&wat::parse_str("(module)").unwrap(), CodeExtras::None).is_none());
    }
}
