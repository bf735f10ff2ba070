//! A component that is compiled already.

/// A component that another process of this program has compiled.
pub struct Precompiled {
    component: Vec<u8>,
    code: Vec<u8>,
}

impl Precompiled {
    /// A component and its code.
    ///
    /// # Safety
    /// The code is run. It has to be what [`crate::Host::precompile`] returned in a process of this
    /// same program.
    #[allow(unsafe_code, reason = "wasmtime cannot know where precompiled code comes from")]
    // SAFETY: this only stores the code. Loading it relies on what the caller promises here.
    pub unsafe fn new(component: Vec<u8>, code: Vec<u8>) -> Precompiled {
        Precompiled { component, code }
    }

    /// The component.
    pub fn component(&self) -> &[u8] {
        &self.component
    }

    /// The code of the component.
    pub(crate) fn code(&self) -> &[u8] {
        &self.code
    }
}
