//! Checks a component before it is compiled, and what it imports before it is linked.

use rbdkit_plugin_api::text::one_line_within;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::error::LoadError;
use super::file::MAX_COMPONENT_BYTES;
use crate::connection::powers::{Power, Powers};

/// Checks whether `bytes` may be a component: the length and the first eight bytes.
///
/// # Errors
/// One line that says what is wrong, without the component's name.
pub(crate) fn check_format(bytes: &[u8]) -> Result<(), LoadError> {
    if bytes.len() > MAX_COMPONENT_BYTES {
        let why = format!("it has {} bytes (at most {MAX_COMPONENT_BYTES})", bytes.len());
        return Err(LoadError::NotComponent(why));
    }
    let why = match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 0x0d, 0, 1, 0]) => return Ok(()),
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => {
            "it is a core WebAssembly module, not a component (rbdkit-filter build makes one of it)"
        }
        _ => "it is not a WebAssembly component",
    };
    Err(LoadError::NotComponent(why.to_string()))
}

/// The imports of a component, all of them granted.
pub(crate) struct LinkedImports {
    /// Interfaces of the contract by their short names; those of WASI by their full names without
    /// the version.
    pub(crate) interfaces: Vec<String>,
    /// It imports `next-open.reopen`: it may replace the layer below.
    pub(crate) reopens: bool,
    /// It imports `next.flush-all`: it may flush the layers below of all its connections.
    pub(crate) flushes_others: bool,
    /// It imports `gate`: it may hold the requests before its layer.
    pub(crate) has_gate: bool,
    /// The powers that it may ask for: it imports their functions.
    pub(crate) asks_for: Powers,
}

impl LinkedImports {
    /// Whether the component imports functions on the state of scopes.
    pub(crate) fn keep_state(&self) -> bool {
        let state = |name: &String| matches!(name.as_str(), "locks" | "slots" | "maps" | "scratch" | "crypto");
        self.flushes_others || self.interfaces.iter().any(state)
    }

    /// Checks that everything that a component imports is granted. `wasi` returns the name of an
    /// import's WASI interface, if that is granted.
    ///
    /// # Errors
    /// One line that names an import that is not granted.
    pub(crate) fn check(
        component: &Component,
        engine: &Engine,
        wasi: fn(&str) -> Option<&'static str>,
    ) -> Result<LinkedImports, LoadError> {
        let mut imports = LinkedImports {
            interfaces: Vec::new(),
            reopens: false,
            flushes_others: false,
            has_gate: false,
            asks_for: Powers::default(),
        };
        for (name, item) in component.component_type().imports(engine) {
            if let Some(stub) = wasi(name) {
                // If a component has several parts, each part may import its own version of it.
                if !imports.interfaces.iter().any(|known| known == stub) {
                    imports.interfaces.push(stub.to_string());
                }
                continue;
            }
            let granted = name.strip_prefix("rbdkit:filter/").and_then(|rest| rest.split_once('@'));
            if let Some((_, version)) = granted
                && !is_ours(version)
            {
                return Err(LoadError::Contract(built_for(version)));
            }
            let Some((interface, _)) = granted.filter(|(_, version)| is_ours(version)) else {
                return Err(LoadError::Contract(format!(
                    "it imports \"{}\", and filters get nothing but rbdkit:filter@0.1 and stubs of some of WASI 0.2",
                    one_line_within(name, 200)
                )));
            };
            if let ComponentItem::ComponentInstance(instance) = item.ty {
                // Several parts of a component may each import another patch level of an interface.
                let has = |function: &str| instance.exports(engine).any(|(name, _)| name == function);
                match interface {
                    "gate" => imports.has_gate |= has("close"),
                    "next-open" => imports.reopens |= has("reopen"),
                    "next" => imports.flushes_others |= has("flush-all"),
                    "server" if has("shutdown") => imports.asks_for = imports.asks_for.with(Power::Shutdown),
                    "client" if has("disconnect") => imports.asks_for = imports.asks_for.with(Power::Disconnect),
                    _ => {}
                }
            }
            imports.interfaces.push(interface.to_string());
        }
        Ok(imports)
    }
}

/// The message about a component that was built for another version of the contract.
pub(super) fn built_for(version: &str) -> String {
    format!("it was built for rbdkit:filter@{}, and this host has 0.1.0", one_line_within(version, 200))
}

/// Whether this host serves a version of the contract: 0.1 of any patch level.
pub(super) fn is_ours(version: &str) -> bool {
    version.strip_prefix("0.1.").is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::engine::{CodeExtras, engine};

    #[test]
    fn what_is_imported_of_one_patch_level_counts_beside_another() {
        let engine = engine(CodeExtras::default()).unwrap();
        let functions =
            [("gate", "close", "open"), ("next-open", "reopen", "generation"), ("next", "flush-all", "flush")];
        for counted_in in [0, 1] {
            let mut text = String::new();
            for (interface, counted, other) in functions {
                for patch in [0, 1] {
                    let function = if patch == counted_in { counted } else { other };
                    text += &format!(
                        "(import \"rbdkit:filter/{interface}@0.1.{patch}\" (instance (export \"{function}\" (func))))"
                    );
                }
            }
            let component = wat::parse_str(format!("(component {text})")).unwrap();
            let component = Component::new(&engine, component).unwrap();
            let imports = LinkedImports::check(&component, &engine, |_| None).unwrap();
            assert!(imports.has_gate && imports.reopens && imports.flushes_others, "{counted_in}");
        }
    }
}
