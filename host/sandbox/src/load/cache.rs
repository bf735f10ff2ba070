//! Compiled code on the disk, so that starting with filters takes milliseconds.
//!
//! Loading precompiled code is running it: an entry has to be something that this host wrote. So entries live in a directory of
//! our own (mode 0700, owned by us, no symbolic link; anything else and there is no cache), under a name that covers the
//! component, the engine's settings and wasmtime's version. Each has a seal beside it: HMAC-SHA256, with a key that is in the directory
//! too, over that name and the code. It is checked before the code is mapped, and what is mapped is the file that was checked: an entry that was
//! altered, truncated, brought from elsewhere or put under another's name is compiled anew.
//!
//! The key makes a seal something that only who can read the directory can make: an entry that somebody was tricked into copying into it, or that came
//! back from a backup of another machine, is not loaded. Against somebody who runs as our user nothing helps.
//!
//! Both files are written to a temporary name and renamed, the code before its seal, so a crash leaves at worst an entry without a seal.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::process::geteuid;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::compile::{Compiler, LARGEST_CODE};
use super::entropy;

/// The cache keeps so many bytes of code; the entries that were written first go first. It holds the filters of this tree (some MB)
/// and a dozen interpreters (60 to 90 MB each).
const KEEP: u64 = 1 << 30;

/// Where compiled code is kept.
pub(crate) struct CodeCache {
    directory: PathBuf,
    key: [u8; KEY],
}

/// Bytes of the key.
const KEY: usize = 32;

/// Bytes that are read of a seal: more than it has.
const SEAL: u64 = 128;

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

/// Compiles, in this process or in a child.
pub(crate) fn compile(engine: &Engine, compiler: &Compiler, component: &[u8]) -> wasmtime::Result<Component> {
    match compiler {
        // One that makes the compiler panic is refused like any other that cannot be compiled.
        Compiler::Here => std::panic::catch_unwind(AssertUnwindSafe(|| Component::from_binary(engine, component)))
            .unwrap_or_else(|_| Err(wasmtime::Error::msg("the compiler does not cope with it"))),
        Compiler::Child(bounds) => {
            let code = super::compile::compile(component, *bounds).map_err(wasmtime::Error::msg)?;
            // SAFETY: deserializing is trusting the bytes: they are what this same program compiled a moment ago with the same settings, in a
            // process that could reach nothing but the pipe that they came through.
            #[allow(unsafe_code)]
            unsafe {
                Component::deserialize(engine, code)
            }
        }
    }
}

impl CodeCache {
    /// Makes the directory, or says why there is no cache.
    pub(crate) fn open(chosen: Option<PathBuf>) -> Option<CodeCache> {
        let directory = chosen.or_else(default_directory)?;
        match prepare(&directory).and_then(|()| secret(&directory)) {
            Ok(key) => Some(CodeCache { directory, key }),
            Err(why) => {
                tracing::debug!("no cache of compiled filters in {}: {why}", directory.display());
                None
            }
        }
    }

    fn key(engine: &Engine, component: &[u8]) -> String {
        // Another way of sealing is another name, so that builds of different ages do not take each other's entries for damaged.
        let mut hasher = Sha(Sha256::new());
        hasher.0.update(b"sealed by HMAC-SHA256");
        engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.0.update((component.len() as u64).to_le_bytes());
        hasher.0.update(component);
        hex(&hasher.0.finalize())
    }

    /// The component, from the cache or compiled.
    ///
    /// # Errors
    /// Those of compiling. What goes wrong with the cache only makes it slower.
    pub(crate) fn load(&self, engine: &Engine, compiler: &Compiler, component: &[u8]) -> wasmtime::Result<Component> {
        let key = CodeCache::key(engine, component);
        let code = self.directory.join(format!("{key}.code"));
        if let Some(file) = self.sealed(&key, &code) {
            // SAFETY: `deserialize_file` maps the file and later runs what is in it, so it has to be what an engine of these settings
            // produced and must not change while it is mapped. The directory is private to our user (checked when it was opened), only `store`
            // writes there, never into an existing file, and the seal says that the bytes of this very file are those that it wrote.
            #[allow(unsafe_code)]
            match unsafe { Component::deserialize_file(engine, format!("/proc/self/fd/{}", file.as_raw_fd())) } {
                Ok(loaded) => return Ok(loaded),
                Err(error) => tracing::debug!("compiled code {} is not used: {error:#}", code.display()),
            }
        }
        let compiled = compile(engine, compiler, component)?;
        if let Err(error) = self.store(&key, &code, &compiled) {
            tracing::debug!("cannot keep compiled code in {}: {error:#}", self.directory.display());
        }
        Ok(compiled)
    }

    /// The file of an entry, if it is as it was written.
    fn sealed(&self, key: &str, code: &Path) -> Option<fs::File> {
        let mut seal = Vec::new();
        open(&self.seal(key)).ok()?.take(SEAL).read_to_end(&mut seal).ok()?;
        let mut file = open(code).ok()?;
        let mut bytes = Vec::new();
        // What is longer than any code is damaged, and not worth the memory.
        if file.metadata().ok()?.len() <= LARGEST_CODE {
            file.read_to_end(&mut bytes).ok()?;
        }
        let intact = same(seal.trim_ascii_end(), self.seal_of(key, &bytes).as_bytes());
        if !intact {
            tracing::warn!("compiled code {} is damaged: compiling anew", code.display());
        }
        intact.then_some(file)
    }

    /// What shows that an entry is ours: a MAC over its name, its length and its bytes.
    fn seal_of(&self, key: &str, code: &[u8]) -> String {
        hex(&hmac(&self.key, &[b"rbdkit compiled code 1", key.as_bytes(), &(code.len() as u64).to_le_bytes(), code]))
    }

    fn seal(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.seal"))
    }

    fn store(&self, key: &str, code: &Path, compiled: &Component) -> anyhow::Result<()> {
        let bytes = compiled.serialize().map_err(|e| anyhow::anyhow!("{e:#}"))?;
        self.make_room(bytes.len() as u64)?;
        self.write(code, &bytes)?;
        self.write(&self.seal(key), format!("{}\n", self.seal_of(key, &bytes)).as_bytes())
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

/// HMAC-SHA256 (RFC 2104) over parts one after the other. Parts of variable length are preceded by it, or the last.
fn hmac(key: &[u8; KEY], parts: &[&[u8]]) -> [u8; 32] {
    // The key is shorter than SHA-256's block of 64 bytes: padded with zeroes.
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let mut inner = Sha256::new();
    inner.update(pad(0x36));
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = Sha256::new();
    outer.update(pad(0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

/// Compares without telling by the time it takes where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Opens a file of the cache: nothing that is elsewhere, and nothing that one could wait for or that has no end.
fn open(path: &Path) -> std::io::Result<fs::File> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("it is no regular file")),
    }
}

/// The directory's key; made at its first use.
fn secret(directory: &Path) -> Result<[u8; KEY], String> {
    let path = directory.join("key");
    let read = || -> std::io::Result<[u8; KEY]> {
        let mut file = open(&path)?;
        let mut key = [0; KEY];
        file.read_exact(&mut key)?;
        Ok(key)
    };
    match read() {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof) => {}
        result => return result.map_err(|e| format!("its key: {e}")),
    }
    let mut key = [0; KEY];
    if !entropy::fill(&mut key) {
        return Err(entropy::NONE.into());
    }
    // Renamed into place: nobody ever sees half a key. Of several processes that begin at once the last one's stays.
    let temporary = directory.join(format!(".key.{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&key)?;
        fs::rename(&temporary, &path)
    };
    write().and_then(|()| read()).map_err(|e| format!("its key: {e}"))
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
    use crate::tests::support::TempDir;

    const COMPONENT: &str = "(component (core module (func (export \"f\"))))";

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn cache() -> (TempDir, CodeCache, Engine, Vec<u8>) {
        let directory = TempDir::new();
        let cache = CodeCache::open(Some(directory.path().join("code"))).unwrap();
        (directory, cache, crate::connection::engine::engine().unwrap(), wat::parse_str(COMPONENT).unwrap())
    }

    #[test]
    fn a_second_load_takes_what_the_first_compiled() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let first = files(&cache.directory);
        // Code, seal and the key.
        assert_eq!(first.len(), 3);
        let written: Vec<u64> = first.iter().map(|file| fs::metadata(file).unwrap().ino()).collect();
        let again = CodeCache::open(Some(cache.directory.clone())).unwrap();
        again.load(&engine, &Compiler::Here, &component).unwrap();
        let now: Vec<u64> = first.iter().map(|file| fs::metadata(file).unwrap().ino()).collect();
        assert_eq!(now, written);
    }

    #[test]
    fn altered_and_truncated_code_is_compiled_anew() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let code =
            files(&cache.directory).into_iter().find(|path| path.extension().is_some_and(|e| e == "code")).unwrap();
        let good = fs::read(&code).unwrap();
        let mut altered = good.clone();
        altered[good.len() / 2] ^= 1;
        for bad in [altered.as_slice(), &good[..good.len() - 1], b""] {
            fs::write(&code, bad).unwrap();
            cache.load(&engine, &Compiler::Here, &component).unwrap();
            assert_eq!(fs::read(&code).unwrap().len(), good.len());
            assert!(cache.sealed(&CodeCache::key(&engine, &component), &code).is_some());
        }
    }

    #[test]
    fn code_that_somebody_else_sealed_is_compiled_anew() {
        let (_directory, cache, engine, component) = cache();
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let key = CodeCache::key(&engine, &component);
        let code = cache.directory.join(format!("{key}.code"));
        // Of another directory, with its own key.
        let other = TempDir::new();
        let other = CodeCache::open(Some(other.path().join("code"))).unwrap();
        other.load(&engine, &Compiler::Here, &component).unwrap();
        let theirs = fs::read(other.seal(&key)).unwrap();
        let ours = fs::read(cache.seal(&key)).unwrap();
        assert_ne!(theirs, ours);
        for seal in [&theirs[..], b"", b"\n", &ours[..ours.len() - 3]] {
            fs::write(cache.seal(&key), seal).unwrap();
            assert!(cache.sealed(&key, &code).is_none());
        }
        // Another component's entry under this one's name.
        let wat = "(component (core module (func (export \"g\"))))";
        let second = wat::parse_str(wat).unwrap();
        cache.load(&engine, &Compiler::Here, &second).unwrap();
        let second = CodeCache::key(&engine, &second);
        fs::copy(cache.directory.join(format!("{second}.code")), &code).unwrap();
        fs::copy(cache.seal(&second), cache.seal(&key)).unwrap();
        assert!(cache.sealed(&key, &code).is_none());
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        assert!(cache.sealed(&key, &code).is_some());
    }

    #[test]
    fn what_is_no_file_is_neither_followed_nor_waited_for() {
        let (_directory, cache, engine, component) = cache();
        let path = cache.directory.join("key");
        let fifo = |path: &Path| {
            fs::remove_file(path).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        };
        cache.load(&engine, &Compiler::Here, &component).unwrap();
        let key = CodeCache::key(&engine, &component);
        let (code, seal) = (cache.directory.join(format!("{key}.code")), cache.seal(&key));
        for file in [&code, &seal] {
            fifo(file);
            cache.load(&engine, &Compiler::Here, &component).unwrap();
            assert!(cache.sealed(&key, &code).is_some(), "it was made anew");
        }
        fs::remove_file(&seal).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &seal).unwrap();
        assert!(cache.sealed(&key, &code).is_none());
        fifo(&path);
        assert!(CodeCache::open(Some(cache.directory.clone())).is_none());
    }

    #[test]
    fn the_mac_is_the_one_of_the_standard() {
        // RFC 4231, test case 1; its key of twenty bytes padded with zeroes is the same key.
        let mut key = [0; KEY];
        key[..20].fill(0x0b);
        let mac = hex(&hmac(&key, &[b"Hi ", b"There"]));
        assert_eq!(mac, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
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
