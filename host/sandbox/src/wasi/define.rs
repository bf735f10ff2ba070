//! What the definitions of all interfaces use.

use wasmtime::component::{LinkerInstance, ResourceType};
use wasmtime::{Result, StoreContextMut};

use crate::guest::context::Context;
use crate::guest::fault::mistake;

/// The store that calls a function.
pub(super) type Store<'a> = StoreContextMut<'a, Context>;

/// The functions of one interface, in the linker.
pub(super) type Functions<'a> = LinkerInstance<'a, Context>;

/// Defines a type of which a guest may have handles.
pub(super) fn resource<T: 'static>(functions: &mut Functions<'_>, name: &str) -> Result<()> {
    functions.resource(name, ResourceType::host::<T>(), |mut store, rep| {
        store.data_mut().handles.remove(rep);
        Ok(())
    })
}

/// Defines functions, of any type, that need a handle of a kind that no guest ever has. So they are
/// never called.
pub(super) fn unreachable(functions: &mut Functions<'_>, names: &[&'static str]) -> Result<()> {
    for &name in names {
        functions.func_new(name, move |_, _, _, _| {
            Err(mistake(format!("it called {name} with a handle that does not exist")))
        })?;
    }
    Ok(())
}
