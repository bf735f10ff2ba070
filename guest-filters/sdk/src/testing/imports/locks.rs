//! Range locks. One call runs at a time, so a lock is granted at once.

use crate::host::locks::Mode;
use crate::testing::call::{REQUESTS, attempt, with};
use crate::{Errno, Scope};

pub(crate) fn lock(_s: Scope, offset: u64, length: u64, _m: Mode) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        if length == 0 || offset.checked_add(length).is_none() {
            return Err(Errno::Einval);
        }
        if std::mem::replace(&mut call.locked, true) {
            return Err(Errno::Edeadlk);
        }
        Ok(())
    })
}

pub(crate) fn unlock() {
    with("locks.unlock", &REQUESTS, |call| {
        call.publish();
        call.locked = false;
    });
}
