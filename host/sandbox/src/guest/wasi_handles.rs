//! What the WASI handles of an instance stand for.

use wasmtime::Result;
use wasmtime::component::Resource;

use super::console::ConsoleStream;
use super::fault::mistake;

/// How many handles an instance may have at once. A runtime has three streams, and a pollable for
/// each task that sleeps.
const MAX_HANDLES: usize = 1024;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WasiHandle {
    /// Standard input, which is closed.
    Input,
    /// Standard output or error.
    Output(ConsoleStream),
    /// A pollable, with the time at which it is ready in nanoseconds of the monotonic clock.
    Until(u64),
    /// The network, which denies everything.
    Network,
}

/// The handles of one instance: what they stand for, and how many there are. The engine checks to
/// which component a handle belongs, and its type.
#[derive(Default)]
pub(crate) struct WasiHandles(Vec<Option<WasiHandle>>);

impl WasiHandles {
    /// Makes a handle for the guest.
    ///
    /// # Errors
    /// A trap if the guest has too many.
    pub(crate) fn add<T: 'static>(&mut self, handle: WasiHandle) -> Result<Resource<T>> {
        let index = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        match self.0.get_mut(index) {
            Some(slot) => *slot = Some(handle),
            None if index < MAX_HANDLES => self.0.push(Some(handle)),
            None => return Err(mistake(format!("it has more than {MAX_HANDLES} handles of WASI"))),
        }
        Ok(Resource::new_own(index as u32))
    }

    /// What a guest's handle stands for.
    pub(crate) fn get<T: 'static>(&self, resource: &Resource<T>) -> Result<WasiHandle> {
        let handle = self.0.get(resource.rep() as usize).copied().flatten();
        // Not reached: the engine checks each handle.
        handle.ok_or_else(|| mistake("it used a handle of WASI that is not there"))
    }

    /// The guest has dropped a handle.
    pub(crate) fn remove(&mut self, rep: u32) {
        if let Some(slot) = self.0.get_mut(rep as usize) {
            *slot = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_reused_and_limited() {
        let mut handles = WasiHandles::default();
        for n in 0..MAX_HANDLES {
            assert_eq!(handles.add::<()>(WasiHandle::Until(n as u64)).unwrap().rep(), n as u32);
        }
        let error = handles.add::<()>(WasiHandle::Input).unwrap_err();
        assert_eq!(error.to_string(), "it has more than 1024 handles of WASI");
        handles.remove(7);
        assert!(handles.get(&Resource::<()>::new_own(7)).is_err());
        let again = handles.add::<()>(WasiHandle::Network).unwrap();
        assert_eq!((again.rep(), handles.get(&again).unwrap()), (7, WasiHandle::Network));
        handles.remove(u32::MAX);
    }
}
