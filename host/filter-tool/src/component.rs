//! Loading a component into the sandbox.

use std::path::Path;
use std::sync::Arc;

use rbdkit_plugin_api::hex;
use rbdkit_sandbox::{CompileLimits, Compiler, Host, Module, Options, read_component};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A component that the sandbox has accepted.
pub struct Component {
    pub module: Module,
    /// The size of the file in bytes.
    pub size: usize,
    /// The SHA-256 digest of the file, in hexadecimal digits.
    pub digest: String,
}

/// A sandbox with these options, which compiles in a child process.
pub fn host(options: Options) -> Result<Arc<Host>> {
    Ok(Host::new(Options { compiler: Compiler::Child(CompileLimits::default()), ..options })?)
}

/// Reads a component and loads it into the sandbox, which refuses components that it would not run.
pub fn load(file: &Path) -> Result<Component> {
    let bytes = read(file)?;
    let digest = hex::encode(Sha256::digest(&bytes));
    let host = host(Options::default())?;
    let module = host.load(&file.display().to_string(), &bytes)?;
    Ok(Component { module, size: bytes.len(), digest })
}

/// Reads a component or a module. Refuses a file that is larger than the sandbox accepts.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    read_component(file).map_err(|why| Error::Unreadable { path: file.to_path_buf(), why: why.to_string() })
}
