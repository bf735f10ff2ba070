//! What starting a server does to the process itself: the one module here that needs `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;

use rbdkit_plugin_api::ConfigError;

/// Which side of a fork this is.
pub enum Side {
    /// The process that was there before, and the id of its child.
    Parent(rustix::process::Pid),
    /// The new process.
    Child,
}

/// Forks. Call it only while the process has a single thread.
///
/// # Errors
/// As fork(2); also if there is a second thread already.
pub fn fork() -> io::Result<Side> {
    if thread_count() > 1 {
        return Err(io::Error::other("threads were started before the fork"));
    }
    // SAFETY: fork is sound when no other thread can hold a lock or be in the middle of a change; there is none.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => rustix::process::Pid::from_raw(pid).map(Side::Parent).ok_or_else(|| io::Error::other("impossible pid")),
    }
}

/// Threads of this process; 1 where the kernel does not tell.
fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Removes variables from the environment. Call it only while the process has a single thread.
pub fn forget_variables(names: &[&str]) {
    for name in names {
        // SAFETY: no other thread exists that could read the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}

/// Whom to become.
#[derive(Debug, Default)]
pub struct Identity {
    user: Option<(libc::uid_t, Option<CString>)>,
    group: Option<libc::gid_t>,
    primary_group: Option<libc::gid_t>,
}

impl Identity {
    /// Looks up names or numbers.
    ///
    /// # Errors
    /// One line that names the option.
    pub fn look_up(user: Option<&str>, group: Option<&str>) -> Result<Identity, ConfigError> {
        let mut identity = Identity::default();
        if let Some(group) = group {
            let wrong = || ConfigError::new(format!("--group: '{group}' is not a group, by name or number"));
            identity.group = Some(group_id(group).or_else(|| number(group)).ok_or_else(wrong)?);
        }
        if let Some(user) = user {
            let wrong = || ConfigError::new(format!("--user: '{user}' is not a user, by name or number"));
            let known = user_ids(user);
            let uid = known.map(|(uid, _)| uid).or_else(|| number(user)).ok_or_else(wrong)?;
            identity.primary_group = known.map(|(_, gid)| gid);
            identity.user = Some((uid, known.and_then(|_| CString::new(user).ok())));
        }
        Ok(identity)
    }

    /// Whether anything is to change.
    pub fn is_another(&self) -> bool {
        self.user.is_some() || self.group.is_some()
    }

    /// Makes a file its own.
    ///
    /// # Errors
    /// As chown(2).
    pub fn own(&self, path: &Path) -> io::Result<()> {
        let uid = self.user.as_ref().map(|(uid, _)| *uid);
        std::os::unix::fs::chown(path, uid, self.group.or(self.primary_group))
    }

    /// Becomes it, in all threads: group first, as the right to change it goes with the user.
    ///
    /// # Errors
    /// One line that names the option.
    pub fn assume(&self) -> Result<(), ConfigError> {
        let failed =
            |option: &str, what: &str| ConfigError::new(format!("{option}: {what}: {}", io::Error::last_os_error()));
        if let Some(gid) = self.group {
            // SAFETY: plain system calls; the empty list is not read.
            if unsafe { libc::setgroups(0, std::ptr::null()) } == -1 {
                return Err(failed("--group", "setgroups"));
            }
            // SAFETY: a plain system call.
            if unsafe { libc::setgid(gid) } == -1 {
                return Err(failed("--group", "setgid"));
            }
        }
        if let Some((uid, name)) = &self.user {
            if let (Some(name), Some(gid), None) = (name, self.primary_group, self.group) {
                // SAFETY: `name` is a C string that lives through the call.
                if unsafe { libc::initgroups(name.as_ptr(), gid) } == -1 {
                    return Err(failed("--user", "initgroups"));
                }
            }
            // SAFETY: a plain system call. The C library's function, not the kernel's, as it changes all threads.
            if unsafe { libc::setuid(*uid) } == -1 {
                return Err(failed("--user", "setuid"));
            }
        }
        Ok(())
    }
}

fn number(text: &str) -> Option<u32> {
    // The largest number means "do not change" to the kernel.
    text.parse().ok().filter(|id| *id != u32::MAX && !text.starts_with('+'))
}

/// The bytes that a line of the user or group database may take: beyond any that is real.
const LINE: usize = 1 << 20;

fn user_ids(name: &str) -> Option<(libc::uid_t, libc::gid_t)> {
    let name = CString::new(name).ok()?;
    let mut line = vec![0; LINE];
    let mut found = std::ptr::null_mut();
    // SAFETY: `entry` is plain old data for which all zeroes is valid; the function writes it and the strings it points to, which
    // lie in `line`. Both outlive `found`, which is read only when the function says that it points to `entry`.
    unsafe {
        let mut entry: libc::passwd = std::mem::zeroed();
        let error = libc::getpwnam_r(name.as_ptr(), &mut entry, line.as_mut_ptr(), line.len(), &mut found);
        (error == 0 && !found.is_null()).then_some((entry.pw_uid, entry.pw_gid))
    }
}

fn group_id(name: &str) -> Option<libc::gid_t> {
    let name = CString::new(name).ok()?;
    let mut line = vec![0; LINE];
    let mut found = std::ptr::null_mut();
    // SAFETY: as in `user_ids`.
    unsafe {
        let mut entry: libc::group = std::mem::zeroed();
        let error = libc::getgrnam_r(name.as_ptr(), &mut entry, line.as_mut_ptr(), line.len(), &mut found);
        (error == 0 && !found.is_null()).then_some(entry.gr_gid)
    }
}

/// Bytes from which on the allocator asks the system for each piece of memory and gives it back at once. What the server often needs that long are
/// payloads, which it keeps itself for as long as they are needed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LONG: libc::c_int = 1 << 20;

/// Bytes that it keeps at the end of each arena: its own default.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 128 << 10;

/// Makes the C library's allocator give back what a burst needed. Left alone it takes the longest piece that was ever freed, up to 32 MiB, for what
/// is usual here: from then on pieces of that size come out of its arenas, of which there is one for each thread or so, and each of them
/// keeps twice as much at its end, which `malloc_trim` does not give back either.
pub fn tame_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, LONG), (libc::M_TRIM_THRESHOLD, KEPT)] {
        // SAFETY: it changes a number, under a lock of its own.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Lets the server have as many file descriptors as it may. The usual limit, 1024, is for programs that call `select`; here each client takes one.
/// Scripts and what `--run` starts find the same limit.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!("the limit on file descriptors stays as it is: {error}");
    }
}

/// The operating system's description of a signal, for messages.
pub fn signal_name(signal: i32) -> String {
    // SAFETY: strsignal answers a pointer to a string that stays valid until this thread calls it again; it is copied at once.
    let text = unsafe { libc::strsignal(signal) };
    if text.is_null() {
        return format!("signal {signal}");
    }
    // SAFETY: see above, and it is not null.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Takes ownership of a descriptor that the parent process passed on (socket activation).
///
/// # Errors
/// EBADF if it is not open.
pub fn inherited(fd: i32) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: asks about a number, whatever it stands for.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the rules of socket activation nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        assert_eq!(Identity::look_up(Some("root"), Some("root")).unwrap().group, Some(0));
        assert_eq!(Identity::look_up(Some("12345"), None).unwrap().user, Some((12345, None)));
        let error = Identity::look_up(Some("no such user"), None).unwrap_err().to_string();
        assert_eq!(error, "--user: 'no such user' is not a user, by name or number");
        let error = Identity::look_up(None, Some("4294967295")).unwrap_err().to_string();
        assert_eq!(error, "--group: '4294967295' is not a group, by name or number");
    }
}
