//! `rbdkit:filter/crypto`.
//!
//! Ciphers run on the thread of the request, in pieces. What derives a key takes seconds, so it
//! gets a thread of its own; a filter has one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use rbdkit_plugin_api::locked::LockedBytes;
use rbdkit_plugin_api::passwords::Secret;
use rbdkit_plugin_api::{Errno, Held};
use wasmtime::Result;
use zeroize::Zeroizing;

use super::phases::OPEN_DATA;
use crate::connection::bindings::host::crypto::Host;
use crate::connection::bindings::host::types::Scope;
use crate::connection::import_error::ImportError;
use crate::guest::call::Phase;
use crate::guest::context::Context;
use crate::guest::fault::mistake;
use crate::state::{Argon2, Cipher, CipherKey, Deadline, Digest, Pbkdf2, ScopeState, Sectors, merge_stripes};

/// The most key material of one key slot, in bytes. LUKS has 4000 stripes of at most 64 bytes.
const MOST_MATERIAL: u64 = 4 << 20;

/// The size of a sector of key material.
const MATERIAL_SECTOR: u32 = 512;

/// The longest digest of a key, in bytes.
const LONGEST_DIGEST: usize = 64;

/// Tells the work that nobody waits for it any more, when it is dropped.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn cipher(name: &str) -> Result<Cipher, Errno> {
    Cipher::parse(name).ok_or(Errno::Enotsup)
}

fn hash(name: &str) -> Result<Digest, Errno> {
    Digest::parse(name).ok_or(Errno::Enotsup)
}

/// A key length that the cipher has.
fn length_for(cipher: Cipher, length: u32) -> Result<usize, Errno> {
    let length = length as usize;
    if cipher.takes(length) { Ok(length) } else { Err(Errno::Einval) }
}

/// Adds a key to a scope. Returns its number.
fn add_key(scope: &ScopeState, cipher: Cipher, bytes: &[u8]) -> Result<u32, Errno> {
    scope.keys().add(CipherKey::new(cipher, bytes).ok_or(Errno::Einval)?)
}

impl Context {
    /// Runs `work` on a thread of its own and waits for it. The memory that it holds is given back
    /// when it ends.
    async fn derive<T: Send + 'static>(
        &mut self,
        memory: Option<Held>,
        work: impl FnOnce(&Deadline) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, ImportError> {
        let conn = self.call.conn.clone().ok_or(Errno::Enxio)?;
        let left = self.shared.limits.setup.saturating_sub(self.call.derived);
        if left.is_zero() {
            return Err(Errno::Etimedout.into());
        }
        let shared = Arc::clone(&self.shared);
        let policy = self.call.wait_policy();
        // None until its turn has come.
        let mut began = None;
        let turn = async {
            // The semaphore is never closed.
            let turn = Arc::clone(&shared.deriving).acquire_owned().await.map_err(|_| Errno::Eshutdown)?;
            let now = Instant::now();
            began = Some(now);
            let waiting = Waiting(Arc::default());
            let until = Deadline { at: now + left, abandoned: Arc::clone(&waiting.0) };
            let (answer, answered) = tokio::sync::oneshot::channel();
            let worker = move || {
                let result = work(&until);
                // The next one may begin, also if nobody takes the answer.
                drop((turn, memory));
                let _ = answer.send(result);
            };
            std::thread::Builder::new().name("key".into()).spawn(worker).map_err(|_| Errno::Enomem)?;
            let result = tokio::time::timeout(left, answered).await.map_err(|_| Errno::Etimedout)?;
            drop(waiting);
            result.unwrap_or(Err(Errno::Eio))
        };
        let wait = async {
            tokio::select! {
                biased;
                () = shared.stopping.wait() => None,
                answer = policy.wait(conn.client(), &shared.stopping, turn) => answer,
            }
        };
        let answer = self.clock.waiting(|| wait).await;
        self.call.derived += began.map(|began| began.elapsed()).unwrap_or_default();
        Ok(answer.unwrap_or(Err(Errno::Eshutdown))?)
    }

    /// A scope that has room for a key.
    fn scope_for_key(&self, scope: Scope, function: &str) -> Result<Arc<ScopeState>, ImportError> {
        let scope = Arc::clone(self.scope(scope, function)?);
        if scope.keys().has_room() { Ok(scope) } else { Err(Errno::Enospc.into()) }
    }

    /// The bytes of a secret parameter.
    fn secret(&self, param: &str, nth: u32) -> Result<Secret, Errno> {
        self.shared.files.secret(param, nth).cloned()
    }

    /// The key and the numbers of the sectors, for `encrypt` and `decrypt`.
    fn cipher_of(
        &self,
        function: &str,
        wanted: (Scope, u32),
        length: u32,
        sectors: (u32, u64, u32),
    ) -> Result<(Arc<CipherKey>, Sectors), ImportError> {
        self.allow(OPEN_DATA)?;
        let (size, first, step) = sectors;
        if !matches!(size, 512 | 1024 | 2048 | 4096) {
            return Err(mistake(format!("{function} with sectors of {size} bytes")).into());
        }
        if !length.is_multiple_of(size) {
            return Err(mistake(format!("{function} of {length} bytes, which is no multiple of {size}")).into());
        }
        let key = self.scope(wanted.0, function)?.keys().get(wanted.1)?;
        Ok((key, Sectors { size: size as usize, first, step: step.into() }))
    }
}

impl Sectors {
    /// The sectors from position `done` of the range on, which is a multiple of their size.
    fn from(self, done: u32) -> Sectors {
        let before = u64::from(done) / self.size as u64;
        Sectors { first: self.first.wrapping_add(before.wrapping_mul(self.step)), ..self }
    }
}

impl Host for Context {
    async fn derive_pbkdf2(
        &mut self,
        s: Scope,
        cipher_name: String,
        length: u32,
        param: String,
        nth: u32,
        hash_name: String,
        salt: Vec<u8>,
        iterations: u32,
    ) -> Result<u32, ImportError> {
        self.allow(Phase::OPEN)?;
        let (cipher, hash) = (cipher(&cipher_name)?, hash(&hash_name)?);
        let length = length_for(cipher, length)?;
        let pbkdf2 = Pbkdf2::new(hash, salt, iterations)?;
        let scope = self.scope_for_key(s, "crypto.derive-pbkdf2")?;
        let secret = self.secret(&param, nth)?;
        let bytes = self.derive(None, move |until| pbkdf2.derive(secret.bytes(), length, until)).await?;
        Ok(add_key(&scope, cipher, &bytes)?)
    }

    async fn derive_argon2(
        &mut self,
        s: Scope,
        cipher_name: String,
        length: u32,
        param: String,
        nth: u32,
        variant: String,
        salt: Vec<u8>,
        iterations: u32,
        memory: u32,
        lanes: u32,
    ) -> Result<u32, ImportError> {
        self.allow(Phase::OPEN)?;
        let cipher = cipher(&cipher_name)?;
        let length = length_for(cipher, length)?;
        if u64::from(memory) << 10 > self.shared.limits.key_memory {
            return Err(Errno::Enomem.into());
        }
        let argon2 = Argon2::new(&variant, salt, iterations, memory, lanes)?;
        let scope = self.scope_for_key(s, "crypto.derive-argon2")?;
        let secret = self.secret(&param, nth)?;
        let charged = self.shared.key_memory.hold(argon2.memory()).ok_or(Errno::Enomem)?;
        let bytes = self.derive(Some(charged), move |_| argon2.derive(secret.bytes(), length)).await?;
        Ok(add_key(&scope, cipher, &bytes)?)
    }

    async fn unwrap(
        &mut self,
        s: Scope,
        cipher_name: String,
        length: u32,
        with: u32,
        buf: u32,
        at: u32,
        stripes: u32,
        hash_name: String,
    ) -> Result<u32, ImportError> {
        self.allow(Phase::OPEN)?;
        let (cipher, hash) = (cipher(&cipher_name)?, hash(&hash_name)?);
        let length = length_for(cipher, length)?;
        let material = length as u64 * u64::from(stripes);
        if material == 0 || material > MOST_MATERIAL {
            return Err(Errno::Einval.into());
        }
        let scope = self.scope_for_key(s, "crypto.unwrap")?;
        let with = scope.keys().get(with)?;
        let whole = (material as u32).next_multiple_of(MATERIAL_SECTOR);
        let (buffer, span) = self.call.buffers.look(buf, at, whole)?;
        let mut bytes = LockedBytes::copy(buffer.bytes(span));
        let work = move |until: &Deadline| {
            with.decrypt(&mut bytes, Sectors { size: MATERIAL_SECTOR as usize, first: 0, step: 1 });
            merge_stripes(hash, &bytes[..material as usize], length, until)
        };
        let key = self.derive(None, work).await?;
        Ok(add_key(&scope, cipher, &key)?)
    }

    async fn matches(
        &mut self,
        s: Scope,
        key: u32,
        hash_name: String,
        salt: Vec<u8>,
        iterations: u32,
        digest: Vec<u8>,
    ) -> Result<bool, ImportError> {
        self.allow(Phase::OPEN)?;
        let pbkdf2 = Pbkdf2::new(hash(&hash_name)?, salt, iterations)?;
        if !(1..=LONGEST_DIGEST).contains(&digest.len()) {
            return Err(Errno::Einval.into());
        }
        let key = self.scope(s, "crypto.matches")?.keys().get(key)?;
        let length = digest.len();
        let made = self.derive(None, move |until| pbkdf2.derive(key.bytes(), length, until)).await?;
        Ok(made[..] == digest)
    }

    fn make_key(&mut self, s: Scope, cipher_name: String, bytes: Vec<u8>) -> Result<u32, ImportError> {
        self.allow(OPEN_DATA)?;
        let bytes = Zeroizing::new(bytes);
        let cipher = cipher(&cipher_name)?;
        let scope = self.scope_for_key(s, "crypto.make-key")?;
        Ok(add_key(&scope, cipher, &bytes)?)
    }

    fn free_key(&mut self, s: Scope, key: u32) -> Result<()> {
        self.scope(s, "crypto.free-key")?.keys().free(key);
        Ok(())
    }

    async fn encrypt(
        &mut self,
        s: Scope,
        key: u32,
        buf: u32,
        at: u32,
        length: u32,
        sector: u32,
        first: u64,
        step: u32,
    ) -> Result<(), ImportError> {
        let (key, sectors) = self.cipher_of("crypto.encrypt", (s, key), length, (sector, first, step))?;
        Ok(self.change_in_pieces((buf, at, length), |bytes, done| key.encrypt(bytes, sectors.from(done))).await?)
    }

    async fn decrypt(
        &mut self,
        s: Scope,
        key: u32,
        buf: u32,
        at: u32,
        length: u32,
        sector: u32,
        first: u64,
        step: u32,
    ) -> Result<(), ImportError> {
        let (key, sectors) = self.cipher_of("crypto.decrypt", (s, key), length, (sector, first, step))?;
        Ok(self.change_in_pieces((buf, at, length), |bytes, done| key.decrypt(bytes, sectors.from(done))).await?)
    }
}
