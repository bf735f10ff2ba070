//! What a build looks at, and takes out, in the core modules that compilers make.

use std::collections::BTreeSet;

use wasm_encoder::{Module, RawSection};
use wasmparser::{KnownCustom, Linking, Parser, Payload, SymbolFlags, SymbolInfo};

use super::definition::Keep;

/// The functions that an object file defines and others can call. An object that cannot be read
/// defines none.
pub fn defined_functions(object: &[u8]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for payload in Parser::new(0).parse_all(object).map_while(Result::ok) {
        let Payload::CustomSection(custom) = payload else { continue };
        let KnownCustom::Linking(linking) = custom.as_known() else { continue };
        for part in linking.into_iter().map_while(Result::ok) {
            let Linking::SymbolTable(symbols) = part else { continue };
            for symbol in symbols.into_iter().map_while(Result::ok) {
                if let SymbolInfo::Func { flags, name: Some(name), .. } = symbol
                    && !flags.contains(SymbolFlags::UNDEFINED)
                    && !flags.contains(SymbolFlags::BINDING_LOCAL)
                {
                    names.insert(name.to_owned());
                }
            }
        }
    }
    names
}

/// The module without the custom sections that are not to be kept. The type of the component always
/// is. A module that cannot be read stays as it is: what makes a component of it says what is
/// wrong.
pub fn trimmed(module: Vec<u8>, keep: Keep) -> Vec<u8> {
    without(&module, keep).unwrap_or(module)
}

/// The module without these sections. None if it cannot be read.
fn without(module: &[u8], keep: Keep) -> Option<Vec<u8>> {
    let is_kept = |name: &str| match keep {
        Keep::Debugging => true,
        Keep::Names => !name.starts_with(".debug") && name != "sourceMappingURL",
        Keep::Nothing => name.starts_with("component-type"),
    };
    let mut kept = Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.ok()?;
        if let Payload::CustomSection(custom) = &payload
            && !is_kept(custom.name())
        {
            continue;
        }
        if let Some((id, range)) = payload.as_section() {
            kept.section(&RawSection { id, data: &module[range] });
        }
    }
    Some(kept.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sections_that_are_asked_for_stay() {
        let custom =
            |name| wasm_encoder::CustomSection { name: std::borrow::Cow::Borrowed(name), data: (&b"data"[..]).into() };
        let mut module = Module::new();
        let names = [".debug_info", "name", "component-type:mine"];
        names.iter().for_each(|name| {
            module.section(&custom(name));
        });
        let module = module.finish();
        let left = |keep| {
            let trimmed = trimmed(module.clone(), keep);
            let sections = Parser::new(0).parse_all(&trimmed).map(Result::unwrap);
            let names = sections.filter_map(|payload| match payload {
                Payload::CustomSection(custom) => Some(custom.name().to_owned()),
                _ => None,
            });
            names.collect::<Vec<String>>()
        };
        assert_eq!(left(Keep::Debugging), names);
        assert_eq!(left(Keep::Names), names[1..]);
        assert_eq!(left(Keep::Nothing), names[2..]);
        assert_eq!(trimmed(b"no module".to_vec(), Keep::Names), b"no module");
    }

    #[test]
    fn what_is_no_object_defines_nothing() {
        assert!(defined_functions(b"no module").is_empty());
        assert!(defined_functions(&Module::new().finish()).is_empty());
    }
}
