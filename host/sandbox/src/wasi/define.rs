//! Helpers for the definitions of all interfaces.

use wasmtime::component::{LinkerInstance, ResourceType};
use wasmtime::{Result, StoreContextMut};

use crate::guest::context::Context;
use crate::guest::fault::mistake;

/// The store that calls a function.
pub(super) type Store<'a> = StoreContextMut<'a, Context>;

/// The functions of one interface, in the linker.
pub(super) type Functions<'a> = LinkerInstance<'a, Context>;

/// Defines a type whose handles a guest may have.
pub(super) fn resource<T: 'static>(functions: &mut Functions<'_>, name: &str) -> Result<()> {
    functions.resource(name, ResourceType::host::<T>(), |mut store, rep| {
        store.data_mut().handles.remove(rep);
        Ok(())
    })
}

/// Defines functions that take a handle of a type of which no guest has a handle. So a guest can
/// never call them.
pub(super) fn unreachable(functions: &mut Functions<'_>, names: &[&'static str]) -> Result<()> {
    for &name in names {
        functions.func_new(name, move |_, _, _, _| {
            Err(mistake(format!("it called {name} with a handle that does not exist")))
        })?;
    }
    Ok(())
}
