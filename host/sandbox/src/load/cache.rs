//! A cache of compiled code on the disk, so that starting with filters takes milliseconds.
//!
//! The server runs the precompiled code that it loads, so this host must have written each entry.
//! Entries live in a private directory ([`CacheDirectory`]), under a name that covers the
//! component, the engine's settings and wasmtime's version. Beside each entry is its seal: an
//! HMAC-SHA256 over that name and the code, with a key that is in the directory too. The seal is
//! checked before the code is mapped, and the file that is mapped is the file that was checked. If
//! an entry was altered, truncated, copied from another cache or renamed, the component is compiled
//! again.
//!
//! Only a user who can read the directory can make a seal. So an entry that our user was tricked
//! into copying there, or that came from a backup of another machine, is not loaded. The seal does
//! not protect against an attacker who runs as our user.
//!
//! The code is written before its seal, so a crash leaves at worst an entry without a seal.

use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use cap_std::fs::File;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rbdkit_cache_directory::{CacheDirectory, DirectoryError, KEY_FILE, default_path};
use rbdkit_plugin_api::hex;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::compile::{Compiler, MAX_CODE_BYTES};
use super::error::LoadError;
use crate::connection::engine::CodeExtras;

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// Bytes of a seal, which is an HMAC-SHA256.
const SEAL_BYTES: usize = 32;

/// How many bytes of a seal's file are read: more than a seal has.
const MAX_SEAL_BYTES: u64 = 128;

/// A cache of compiled code.
pub(crate) struct CodeCache {
    directory: CacheDirectory,
    key: [u8; KEY_BYTES],
    /// What the code has that is kept here.
    extras: CodeExtras,
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
enum CacheError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("its key: {0}")]
    Key(io::Error),
}

/// The file names of an entry.
struct EntryNames {
    code: String,
    seal: String,
}

impl EntryNames {
    fn new(entry: &str) -> EntryNames {
        EntryNames { code: format!("{entry}.code"), seal: format!("{entry}.seal") }
    }
}

/// Feeds SHA-256 with what is hashed.
struct ShaHasher(Sha256);

impl Hasher for ShaHasher {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

impl CodeCache {
    /// Opens the cache in `chosen`, or in the default directory. Creates the directory and the key
    /// if they do not exist. None if that fails or the directory is not private; the log says why.
    pub(crate) fn open(chosen: Option<PathBuf>, extras: CodeExtras) -> Option<CodeCache> {
        let path = chosen.or_else(default_path)?;
        let open = || -> Result<CodeCache, CacheError> {
            let directory = CacheDirectory::open(&path)?;
            let key = read_or_make_key(&directory).map_err(CacheError::Key)?;
            Ok(CodeCache { directory, key, extras })
        };
        open().inspect_err(|why| tracing::debug!("no cache of compiled filters in {}: {why}", path.display())).ok()
    }

    /// The name of a component's entry.
    fn entry(&self, engine: &Engine, component: &[u8]) -> String {
        // The kind of seal is part of the name, so that versions of the host with different seals
        // do not treat each other's entries as damaged. So is what was removed before compiling.
        let mut hasher = ShaHasher(Sha256::new());
        hasher.0.update(b"stripped, sealed by HMAC-SHA256");
        if self.extras != CodeExtras::None {
            hasher.0.update(self.extras.word());
        }
        engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.0.update((component.len() as u64).to_le_bytes());
        hasher.0.update(component);
        hex::encode(hasher.0.finalize())
    }

    /// The component, from the cache or compiled.
    ///
    /// # Errors
    /// Those of compiling. A fault of the cache only makes loading slower.
    pub(crate) fn load(&self, engine: &Engine, compiler: &Compiler, component: &[u8]) -> Result<Component, LoadError> {
        let entry = self.entry(engine, component);
        if let Some((file, code)) = self.open_sealed(&entry) {
            match map_code(engine, &file, &code) {
                Ok(loaded) => return Ok(loaded),
                Err(error) => tracing::debug!("compiled code {entry} is not used: {error:#}"),
            }
        }
        let compiled = compiler.compile(engine, self.extras, component)?;
        if let Err(error) = self.store(&entry, &compiled) {
            tracing::debug!("cannot keep compiled code in {}: {error:#}", self.directory.path().display());
        }
        Ok(compiled)
    }

    /// Opens and reads the code of an entry. None if there is none, or if its seal does not match.
    fn open_sealed(&self, entry: &str) -> Option<(File, Vec<u8>)> {
        let names = EntryNames::new(entry);
        let seal = self.directory.read(&names.seal, MAX_SEAL_BYTES).ok()?;
        let mut file = self.directory.open_file(&names.code).ok()?;
        let mut bytes = Vec::new();
        // A file that is larger than any code is damaged, and is not read.
        if file.metadata().ok()?.len() <= MAX_CODE_BYTES {
            file.read_to_end(&mut bytes).ok()?;
        }
        let seal = std::str::from_utf8(seal.trim_ascii_end()).ok().and_then(hex::decode::<SEAL_BYTES>);
        let intact =
            seal.is_some_and(|seal| self.mac(entry, &bytes).is_some_and(|mac| mac.verify_slice(&seal).is_ok()));
        if !intact {
            let path = self.directory.path().join(&names.code);
            tracing::warn!("compiled code {} is damaged: compiling anew", path.display());
        }
        intact.then_some((file, bytes))
    }

    /// The MAC over the name, the length and the bytes of an entry. Never None, because HMAC takes
    /// keys of any length.
    fn mac(&self, entry: &str, code: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(b"rbdkit compiled code 1");
        mac.update(entry.as_bytes());
        mac.update(&(code.len() as u64).to_le_bytes());
        mac.update(code);
        Some(mac)
    }

    fn store(&self, entry: &str, compiled: &Component) -> wasmtime::Result<()> {
        let bytes = compiled.serialize()?;
        let mac = self.mac(entry, &bytes).ok_or_else(|| wasmtime::format_err!("HMAC refuses the key"))?;
        let names = EntryNames::new(entry);
        self.directory.make_room(bytes.len() as u64)?;
        self.directory.replace(&names.code, &bytes)?;
        self.directory.replace(&names.seal, format!("{}\n", hex::encode(mac.finalize().into_bytes())).as_bytes())?;
        Ok(())
    }
}

/// Maps checked code, or copies it if there is no `/proc` to name the file with.
fn map_code(engine: &Engine, file: &File, code: &[u8]) -> wasmtime::Result<Component> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if !path.exists() {
        #[allow(unsafe_code, reason = "wasmtime cannot know where precompiled code comes from")]
        // SAFETY: the seal says that `store` wrote these bytes, which an engine of these settings
        // produced.
        return unsafe { Component::deserialize(engine, code) };
    }
    #[allow(unsafe_code, reason = "wasmtime cannot know where precompiled code comes from")]
    // SAFETY: `deserialize_file` maps the file and later runs what is in it. So the file has to be
    // what an engine of these settings produced, and must not change while it is mapped. The
    // directory is private to our user (checked when it was opened), only `CacheDirectory::replace`
    // writes there and never into an existing file, and the seal says that the bytes of this very
    // file are those that `store` wrote.
    unsafe {
        Component::deserialize_file(engine, path)
    }
}

/// Reads the directory's key, or creates one.
fn read_or_make_key(directory: &CacheDirectory) -> io::Result<[u8; KEY_BYTES]> {
    let read = || -> io::Result<[u8; KEY_BYTES]> {
        let mut key = [0; KEY_BYTES];
        directory.open_file(KEY_FILE)?.read_exact(&mut key)?;
        Ok(key)
    };
    match read() {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {}
        result => return result,
    }
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key)?;
    directory.replace(KEY_FILE, &key)?;
    // If several processes create a key at once, the last one wins, and each process reads the key
    // again.
    read()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

    const COMPONENT: &str = "(component (core module (func (export \"f\"))))";

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn cache() -> (TempDir, CodeCache, Engine, Vec<u8>) {
        let directory = TempDir::new().unwrap();
        let cache = CodeCache::open(Some(directory.path().join("code")), CodeExtras::None).unwrap();
        (
            directory,
            cache,
            crate::connection::engine::engine(CodeExtras::None).unwrap(),
            wat::parse_str(COMPONENT).unwrap(),
        )
    }

    fn seal_of(cache: &CodeCache, entry: &str) -> PathBuf {
        cache.directory.path().join(EntryNames::new(entry).seal)
    }

    #[test]
    fn a_second_load_takes_what_the_first_compiled() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let first = files(cache.directory.path());
        // Code, seal and the key.
        assert_eq!(first.len(), 3);
        let written: Vec<u64> = first.iter().map(|file| fs::metadata(file).unwrap().ino()).collect();
        let again = CodeCache::open(Some(cache.directory.path().into()), CodeExtras::None).unwrap();
        again.load(&engine, &Compiler::Here, &component).unwrap();
        let now: Vec<u64> = first.iter().map(|file| fs::metadata(file).unwrap().ino()).collect();
        assert_eq!(now, written);
    }

    #[test]
    fn altered_and_truncated_code_is_compiled_anew() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let code = files(cache.directory.path())
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "code"))
            .unwrap();
        let good = fs::read(&code).unwrap();
        let mut altered = good.clone();
        altered[good.len() / 2] ^= 1;
        for bad in [altered.as_slice(), &good[..good.len() - 1], b""] {
            fs::write(&code, bad).unwrap();
            cache.load(&engine, &Compiler::Here, &component).unwrap();
            assert_eq!(fs::read(&code).unwrap().len(), good.len());
            assert!(cache.open_sealed(&cache.entry(&engine, &component)).is_some());
        }
    }

    #[test]
    fn code_without_the_right_seal_is_compiled_again() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let key = cache.entry(&engine, &component);
        let code = cache.directory.path().join(format!("{key}.code"));
        // Of another directory, with its own key.
        let other = TempDir::new().unwrap();
        let other = CodeCache::open(Some(other.path().join("code")), CodeExtras::None).unwrap();
        other.load(&engine, &Compiler::Here, &component).unwrap();
        let theirs = fs::read(seal_of(&other, &key)).unwrap();
        let ours = fs::read(seal_of(&cache, &key)).unwrap();
        assert_ne!(theirs, ours);
        for seal in [&theirs[..], b"", b"\n", &ours[..ours.len() - 3]] {
            fs::write(seal_of(&cache, &key), seal).unwrap();
            assert!(cache.open_sealed(&key).is_none());
        }
        // Another component's entry under this one's name.
        let wat = "(component (core module (func (export \"g\"))))";
        let second = wat::parse_str(wat).unwrap();
        cache.load(&engine, &Compiler::Here, &second).unwrap();
        let second = cache.entry(&engine, &second);
        fs::copy(cache.directory.path().join(format!("{second}.code")), &code).unwrap();
        fs::copy(seal_of(&cache, &second), seal_of(&cache, &key)).unwrap();
        assert!(cache.open_sealed(&key).is_none());
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        assert!(cache.open_sealed(&key).is_some());
    }

    #[test]
    fn what_is_no_file_is_neither_followed_nor_waited_for() {
        let (_directory, cache, engine, component) = cache();
        let path = cache.directory.path().join("key");
        let fifo = |path: &Path| {
            fs::remove_file(path).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        };
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let key = cache.entry(&engine, &component);
        let (code, seal) = (cache.directory.path().join(format!("{key}.code")), seal_of(&cache, &key));
        for file in [&code, &seal] {
            fifo(file);
            cache.load(&engine, &Compiler::Here, &component).unwrap();
            assert!(cache.open_sealed(&key).is_some(), "it was made anew");
        }
        fs::remove_file(&seal).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &seal).unwrap();
        assert!(cache.open_sealed(&key).is_none());
        fifo(&path);
        assert!(CodeCache::open(Some(cache.directory.path().into()), CodeExtras::None).is_none());
    }

    #[test]
    fn a_seal_is_an_hmac_over_the_name_the_length_and_the_code() {
        let directory = TempDir::new().unwrap();
        let directory = CacheDirectory::open(&directory.path().join("code")).unwrap();
        let key = std::array::from_fn(|n| n as u8);
        let seal = CodeCache { directory, key, extras: CodeExtras::None }
            .mac("name", b"code")
            .unwrap()
            .finalize()
            .into_bytes();
        // Computed with another implementation of HMAC.
        let expected = "e5a40409d70bcab9521f9f371cb1ccc91e3cb17a143fe0eb6ba0d94569427629";
        assert_eq!(hex::encode(seal), expected);
    }
}
