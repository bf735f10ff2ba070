//! Loading a component into the sandbox.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbdkit_oci::{Access, PlainHttp, PublicKey, Reference, pull};
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

/// How a component that may be in a registry is fetched, as on the server's command line.
#[derive(Debug, clap::Args)]
pub struct Trust {
    /// Refuse a component that is not signed by this public key (PEM). Only components in a
    /// registry have signatures
    #[arg(long, value_name = "PUB")]
    filter_key: Option<PathBuf>,
    /// Talk to registries on other machines without TLS
    #[arg(long)]
    plain_http: bool,
}

/// The bytes of a component, which nobody has looked at.
pub struct Fetched {
    pub bytes: Vec<u8>,
    /// The value of `--wasm-filter` that accepts these bytes and no others.
    pub pinned: String,
}

impl Trust {
    /// Reads a component. Instead of a file, `oci://host/name:tag` names a component in a registry.
    ///
    /// # Errors
    /// It cannot be read or pulled, or the key has not signed it.
    pub fn fetch(&self, file: &Path) -> Result<Fetched> {
        let name = file.display().to_string();
        let key = self.filter_key.as_deref().map(PublicKey::read).transpose()?;
        if !Reference::is_meant_by(&name) {
            if key.is_some() {
                return Err(Error::Unsigned(file.to_path_buf()));
            }
            let bytes = read(file)?;
            let pinned = format!("{name}@sha256:{}", hex::encode(Sha256::digest(&bytes)));
            return Ok(Fetched { bytes, pinned });
        }
        let reference = Reference::parse(&name)?;
        let plain_http = if self.plain_http { PlainHttp::Allowed } else { PlainHttp::Refused };
        let failed = |source| Error::Registry { doing: "pull", reference: name.clone(), source };
        let pulled = pull(&reference, Access { plain_http, ..Access::default() }, key.as_ref()).map_err(failed)?;
        Ok(Fetched { bytes: pulled.component, pinned: reference.pinned(pulled.digest).to_string() })
    }
}

/// Fetches a component and loads it into the sandbox, which refuses components that it would not
/// run.
///
/// # Errors
/// Those of [`Trust::fetch`], or the sandbox refuses it.
pub fn load(file: &Path, trust: &Trust) -> Result<Component> {
    let Fetched { bytes, pinned } = trust.fetch(file)?;
    let module = load_bytes(&file.display().to_string(), &bytes)?;
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
