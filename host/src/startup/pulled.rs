//! Filters that come from a registry. They are pulled while the server starts, before it is
//! confined.

use std::path::Path;

use rbdkit_oci::{Access, PublicKey, Reference, pull};
use rbdkit_plugin_api::ConfigError;

use crate::cli::RegistryOptions;

/// How filters are pulled, and who has to have signed them.
pub(super) struct Registries {
    access: Access,
    key: Option<PublicKey>,
}

impl Registries {
    /// # Errors
    /// One line: the key cannot be read.
    pub(super) fn new(options: &RegistryOptions) -> Result<Registries, ConfigError> {
        let key = options.filter_key.as_deref().map(PublicKey::read).transpose();
        let key = key.map_err(|why| ConfigError::new(format!("--filter-key: {why}")))?;
        Ok(Registries { access: Access { plain_http: options.plain_http, ..Access::default() }, key })
    }

    /// Pulls a component. Says which digest to pin if the reference has none.
    ///
    /// # Errors
    /// One line that names the reference.
    pub(super) fn pull(&self, reference: &Reference) -> Result<Vec<u8>, ConfigError> {
        let pulled = pull(reference, self.access, self.key.as_ref())
            .map_err(|why| ConfigError::new(format!("cannot pull filter '{reference}': {why}")))?;
        if reference.digest.is_none() {
            tracing::warn!(
                "filter '{reference}' is not pinned, and its tag may be moved: pin it with --wasm-filter {}",
                reference.pinned(pulled.digest)
            );
        }
        Ok(pulled.component)
    }

    /// A file has no signature, so it is refused if signatures are required.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn refuse_file(&self, path: &Path) -> Result<(), ConfigError> {
        match self.key {
            None => Ok(()),
            Some(_) => Err(ConfigError::new(format!(
                "--filter-key: filter '{}' is a file, and only filters in a registry have signatures",
                path.display()
            ))),
        }
    }
}
