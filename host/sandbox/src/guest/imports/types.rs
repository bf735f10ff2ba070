//! `rbdkit:filter/types`.

use wasmtime::Result;

use crate::connection::bindings::host::types::{Errno, Host};
use crate::connection::import_error::ImportError;
use crate::guest::context::Context;

impl Host for Context {
    fn convert_errno(&mut self, error: ImportError) -> Result<Errno> {
        match error {
            ImportError::Errno(errno) => Ok(errno.into()),
            ImportError::Trap(error) => Err(error),
        }
    }
}
