//! What an instance's handles stand for.

use wasmtime::Result;
use wasmtime::component::Resource;

use super::console::Stream;
use super::fault::mistake;

/// Handles that an instance may have at once. Runtimes have three streams, and something to wait for in each task that sleeps.
const MOST: usize = 1024;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handle {
    /// Standard input, which is closed.
    Input,
    /// Standard output or error.
    Output(Stream),
    /// Something to wait for: the time at which it is ready, in nanoseconds of the monotonic clock.
    Until(u64),
    /// The network that denies everything.
    Network,
}

/// The handles of one instance. The engine checks whose they are and of which type; here is what they mean, and how many there are.
#[derive(Default)]
pub(crate) struct Handles(Vec<Option<Handle>>);

impl Handles {
    /// A new one, for the guest.
    pub(crate) fn add<T: 'static>(&mut self, handle: Handle) -> Result<Resource<T>> {
        let index = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        match self.0.get_mut(index) {
            Some(slot) => *slot = Some(handle),
            None if index < MOST => self.0.push(Some(handle)),
            None => return Err(mistake(format!("it has more than {MOST} handles of WASI"))),
        }
        Ok(Resource::new_own(index as u32))
    }

    /// What a guest's handle stands for.
    pub(crate) fn get<T: 'static>(&self, resource: &Resource<T>) -> Result<Handle> {
        let handle = self.0.get(resource.rep() as usize).copied().flatten();
        // Not reached: the engine has let it through.
        handle.ok_or_else(|| mistake("it used a handle of WASI that is not there"))
    }

    /// It was dropped.
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
    fn places_are_used_again_and_there_is_an_end_to_them() {
        let mut handles = Handles::default();
        for n in 0..MOST {
            assert_eq!(handles.add::<()>(Handle::Until(n as u64)).unwrap().rep(), n as u32);
        }
        let error = handles.add::<()>(Handle::Input).unwrap_err();
        assert_eq!(error.to_string(), "it has more than 1024 handles of WASI");
        handles.remove(7);
        assert!(handles.get(&Resource::<()>::new_own(7)).is_err());
        let again = handles.add::<()>(Handle::Network).unwrap();
        assert_eq!((again.rep(), handles.get(&again).unwrap()), (7, Handle::Network));
        handles.remove(u32::MAX);
    }
}
