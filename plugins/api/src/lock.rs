//! Locks whose poison is ignored.
//!
//! A panic while a lock is held poisons it. The server turns a panic in a layer into EIO for that one request and goes on, so
//! the next caller must still get the lock. Code that uses these functions keeps the locked value usable at
//! every point where it can panic.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks `mutex`, also after a panic of an earlier holder.
#[inline]
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks `lock` for reading, also after a panic of an earlier holder.
#[inline]
pub fn read_lock<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks `lock` for writing, also after a panic of an earlier holder.
#[inline]
pub fn write_lock<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_lock_works_after_a_panic_of_its_holder() {
        let mutex = Mutex::new(1);
        let shared = RwLock::new(2);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _held = (lock(&mutex), write_lock(&shared));
            panic!("a test's panic");
        }));
        assert!(panicked.is_err() && mutex.is_poisoned() && shared.is_poisoned());
        assert_eq!(*lock(&mutex), 1);
        assert_eq!(*read_lock(&shared), 2);
        assert_eq!(*write_lock(&shared), 2);
    }
}
