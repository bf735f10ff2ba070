//! Loading a component into the sandbox.

use std::path::Path;
use std::sync::Arc;

use rbdkit_oci::{Access, Reference, pull};
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
    /// The value of `--wasm-filter` that accepts this component and no other.
    pub pinned: String,
}

/// A sandbox with these options, which compiles in a child process.
pub fn host(options: Options) -> Result<Arc<Host>> {
    Ok(Host::new(Options { compiler: Compiler::Child(CompileLimits::default()), ..options })?)
}

/// Reads a component and loads it into the sandbox, which refuses components that it would not run.
/// Instead of a file, `oci://host/name:tag` names a component in a registry.
pub fn load(file: &Path) -> Result<Component> {
    let name = file.display().to_string();
    let (bytes, pinned) = match Reference::is_meant_by(&name) {
        true => {
            let reference = Reference::parse(&name)?;
            let failed = |source| Error::Registry { doing: "pull", reference: name.clone(), source };
            let pulled = pull(&reference, Access::default(), None).map_err(failed)?;
            (pulled.component, reference.pinned(pulled.digest).to_string())
        }
        false => {
            let bytes = read(file)?;
            let pinned = format!("{name}@sha256:{}", hex::encode(Sha256::digest(&bytes)));
            (bytes, pinned)
        }
    };
    let module = load_bytes(&name, &bytes)?;
    Ok(Component { module, size: bytes.len(), digest: hex::encode(Sha256::digest(&bytes)), pinned })
}

/// Loads a component that has been read.
pub fn load_bytes(name: &str, bytes: &[u8]) -> Result<Module> {
    Ok(host(Options::default())?.load(name, bytes)?)
}

/// Reads a component or a module. Refuses a file that is larger than the sandbox accepts.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    read_component(file).map_err(|why| Error::Unreadable { path: file.to_path_buf(), why: why.to_string() })
}
