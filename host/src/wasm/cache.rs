//! Compiled code on the disk, so that starting with filters takes milliseconds.
//!
//! Loading precompiled code is running it: an entry has to be something that this host wrote. So entries live in a directory of
//! our own (mode 0700, owned by us, no symbolic link; anything else and there is no cache), under a name that covers the
//! component, the engine's settings and wasmtime's version. Each has a seal beside it, its length and SHA-256, which is checked
//! before the code is mapped: a truncated or altered entry is compiled anew. The seal is against accidents; against somebody
//! who can write into a directory of ours nothing helps.
//!
//! Both files are written to a temporary name and renamed, the code before its seal, so a crash leaves at worst an entry without a seal.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::process::geteuid;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// The cache keeps so many bytes of code; the entries that were written first go first. It holds the filters of this tree (some MB)
/// and a dozen interpreters (60 to 90 MB each).
const KEEP: u64 = 1 << 30;

/// Where compiled code is kept.
pub(super) struct CodeCache {
    directory: PathBuf,
}

/// Feeds what is hashed to SHA-256.
struct Sha(Sha256);

impl Hasher for Sha {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compiles. A component is a stranger's: one that makes the compiler panic is refused like any other that cannot be compiled.
pub(super) fn compile(engine: &Engine, component: &[u8]) -> wasmtime::Result<Component> {
    std::panic::catch_unwind(AssertUnwindSafe(|| Component::from_binary(engine, component)))
        .unwrap_or_else(|_| Err(wasmtime::Error::msg("the compiler does not cope with it")))
}

impl CodeCache {
    /// Makes the directory, or says why there is no cache.
    pub(super) fn open(chosen: Option<PathBuf>) -> Option<CodeCache> {
        let directory = chosen.or_else(default_directory)?;
        match prepare(&directory) {
            Ok(()) => Some(CodeCache { directory }),
            Err(why) => {
                tracing::debug!("no cache of compiled filters in {}: {why}", directory.display());
                None
            }
        }
    }

    fn key(engine: &Engine, component: &[u8]) -> String {
        let mut hasher = Sha(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.0.update((component.len() as u64).to_le_bytes());
        hasher.0.update(component);
        hex(&hasher.0.finalize())
    }

    /// The component, from the cache or compiled.
    ///
    /// # Errors
    /// Those of compiling. What goes wrong with the cache only makes it slower.
    pub(super) fn load(&self, engine: &Engine, component: &[u8]) -> wasmtime::Result<Component> {
        let key = CodeCache::key(engine, component);
        let code = self.directory.join(format!("{key}.code"));
        if self.is_sealed(&key, &code) {
            // SAFETY: `deserialize_file` maps the file and later runs what is in it, so it has to be what an engine of these settings
            // produced and must not change while it is mapped. The directory is private to our user (checked when it was opened), only `store`
            // writes there, never into an existing file, and the seal says that the bytes are still those that it wrote.
            #[allow(unsafe_code)]
            match unsafe { Component::deserialize_file(engine, &code) } {
                Ok(loaded) => return Ok(loaded),
                Err(error) => tracing::debug!("compiled code {} is not used: {error:#}", code.display()),
            }
        }
        let compiled = compile(engine, component)?;
        if let Err(error) = self.store(&key, &code, &compiled) {
            tracing::debug!("cannot keep compiled code in {}: {error:#}", self.directory.display());
        }
        Ok(compiled)
    }

    fn is_sealed(&self, key: &str, code: &Path) -> bool {
        let Ok(seal) = fs::read_to_string(self.seal(key)) else { return false };
        let Ok(bytes) = fs::read(code) else { return false };
        let intact = seal == seal_of(&bytes);
        if !intact {
            tracing::warn!("compiled code {} is damaged: compiling anew", code.display());
        }
        intact
    }

    fn seal(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.seal"))
    }

    fn store(&self, key: &str, code: &Path, compiled: &Component) -> anyhow::Result<()> {
        let bytes = compiled.serialize().map_err(|e| anyhow::anyhow!("{e:#}"))?;
        self.make_room(bytes.len() as u64)?;
        self.write(code, &bytes)?;
        self.write(&self.seal(key), seal_of(&bytes).as_bytes())
    }

    /// Writes a new file in place of whatever is there; a mapping of the old one keeps the old one's bytes.
    fn write(&self, to: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let temporary = self.directory.join(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, to));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        Ok(written?)
    }

    fn make_room(&self, more: u64) -> anyhow::Result<()> {
        let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let metadata = entry.metadata()?;
            entries.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        let mut total = entries.iter().map(|(_, size, _)| size).sum::<u64>().saturating_add(more);
        entries.sort();
        for (_, size, path) in entries {
            if total <= KEEP {
                break;
            }
            let _ = fs::remove_file(path);
            total -= size;
        }
        Ok(())
    }
}

fn seal_of(bytes: &[u8]) -> String {
    format!("{} {}\n", bytes.len(), hex(&Sha256::digest(bytes)))
}

fn default_directory() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(path) = absolute("XDG_CACHE_HOME") {
        return Some(path.join("rbdkit"));
    }
    if geteuid().is_root() {
        return Some("/var/cache/rbdkit".into());
    }
    absolute("HOME").map(|home| home.join(".cache/rbdkit"))
}

/// The directory, made if it is not there, or why it must not be used.
fn prepare(directory: &Path) -> Result<(), String> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).map_err(|e| e.to_string())?;
    }
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.to_string()),
        _ => {}
    }
    let found = fs::symlink_metadata(directory).map_err(|e| e.to_string())?;
    if !found.is_dir() {
        return Err("it is not a directory".into());
    }
    if found.uid() != geteuid().as_raw() {
        return Err("it belongs to somebody else".into());
    }
    if found.mode() & 0o077 != 0 {
        return Err("others may use it (its mode has to be 0700)".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::wasm::tests::support::TempDir;

    const COMPONENT: &str = "(component (core module (func (export \"f\"))))";

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn cache() -> (TempDir, CodeCache, Engine, Vec<u8>) {
        let directory = TempDir::new();
        let cache = CodeCache::open(Some(directory.path().join("code"))).unwrap();
        (directory, cache, super::super::engine::engine().unwrap(), wat::parse_str(COMPONENT).unwrap())
    }

    #[test]
    fn a_second_load_takes_what_the_first_compiled() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &component).unwrap();
        let first = files(&cache.directory);
        assert_eq!(first.len(), 2);
        let written = fs::metadata(&first[0]).unwrap().ino();
        cache.load(&engine, &component).unwrap();
        assert_eq!(fs::metadata(&first[0]).unwrap().ino(), written);
    }

    #[test]
    fn altered_and_truncated_code_is_compiled_anew() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &component).unwrap();
        let code = files(&cache.directory).into_iter().find(|path| path.extension().unwrap() == "code").unwrap();
        let good = fs::read(&code).unwrap();
        let mut altered = good.clone();
        altered[good.len() / 2] ^= 1;
        for bad in [altered.as_slice(), &good[..good.len() - 1], b""] {
            fs::write(&code, bad).unwrap();
            cache.load(&engine, &component).unwrap();
            assert_eq!(fs::read(&code).unwrap().len(), good.len());
            assert!(cache.is_sealed(&CodeCache::key(&engine, &component), &code));
        }
    }

    #[test]
    fn a_directory_that_others_may_use_is_not_used() {
        let directory = TempDir::new();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(CodeCache::open(Some(open)).is_none());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(CodeCache::open(Some(link)).is_none());
        assert!(CodeCache::open(Some("/proc/nowhere".into())).is_none());
    }
}
