//! Helpers for the definitions of all interfaces.

use std::future::Future;
use std::time::Instant;

use wasmtime::component::{ComponentNamedList, Lift, LinkerInstance, Lower, ResourceType};
use wasmtime::{Result, StoreContextMut};

use crate::connection::trace::Recording;
use crate::guest::context::Context;
use crate::guest::fault::mistake;

/// The store that calls a function.
pub(super) type Store<'a> = StoreContextMut<'a, Context>;

/// The future of a function that waits.
pub(super) type WaitFuture<'a, T> = Box<dyn Future<Output = Result<T>> + Send + 'a>;

/// The functions of one interface, in the linker.
pub(super) struct Functions<'a> {
    pub(super) linker: LinkerInstance<'a, Context>,
    /// The interface's name without its version.
    pub(super) interface: &'static str,
    /// Whether the calls of these functions are recorded. Their arguments are not.
    pub(super) recording: Recording,
}

impl Functions<'_> {
    /// Defines a function.
    pub(super) fn func_wrap<F, Params, Return>(&mut self, name: &str, function: F) -> Result<()>
    where
        F: Fn(Store<'_>, Params) -> Result<Return> + Send + Sync + 'static,
        Params: ComponentNamedList + Lift + 'static,
        Return: ComponentNamedList + Lower + 'static,
    {
        if self.recording == Recording::Off {
            return self.linker.func_wrap(name, function);
        }
        let full = format!("{}.{name}", self.interface);
        self.linker.func_wrap(name, move |mut store: Store<'_>, params| {
            let (began, recorder) = (Instant::now(), store.data_mut().recorder.clone());
            let result = function(store, params);
            if let Some(recorder) = recorder {
                recorder.host_call(&full, "", &in_words(&result), began);
            }
            result
        })
    }

    /// Defines a function that waits.
    pub(super) fn func_wrap_async<F, Params, Return>(&mut self, name: &str, function: F) -> Result<()>
    where
        F: for<'a> Fn(Store<'a>, Params) -> WaitFuture<'a, Return> + Send + Sync + 'static,
        Params: ComponentNamedList + Lift + 'static,
        Return: ComponentNamedList + Lower + 'static,
    {
        if self.recording == Recording::Off {
            return self.linker.func_wrap_async(name, function);
        }
        let full = format!("{}.{name}", self.interface);
        self.linker.func_wrap_async(name, move |mut store: Store<'_>, params| {
            let (began, recorder) = (Instant::now(), store.data_mut().recorder.clone());
            let (full, future) = (full.clone(), function(store, params));
            Box::new(async move {
                let result = Box::into_pin(future).await;
                if let Some(recorder) = recorder {
                    recorder.host_call(&full, "", &in_words(&result), began);
                }
                result
            })
        })
    }
}

/// How a function ended. Its value is not known here.
fn in_words<T>(result: &Result<T>) -> String {
    match result {
        Ok(_) => "returned".to_string(),
        Err(error) => format!("ends the guest: {}", error.root_cause()),
    }
}

/// Defines a type whose handles a guest may have.
pub(super) fn resource<T: 'static>(functions: &mut Functions<'_>, name: &str) -> Result<()> {
    functions.linker.resource(name, ResourceType::host::<T>(), |mut store, rep| {
        store.data_mut().handles.remove(rep);
        Ok(())
    })
}

/// Defines functions that take a handle of a type of which no guest has a handle. So a guest can
/// never call them.
pub(super) fn unreachable(functions: &mut Functions<'_>, names: &[&'static str]) -> Result<()> {
    for &name in names {
        functions.linker.func_new(name, move |_, _, _, _| {
            Err(mistake(format!("it called {name} with a handle that does not exist")))
        })?;
    }
    Ok(())
}
