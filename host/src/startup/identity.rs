//! The user and the group that the server changes to.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::path::Path;

use rbdkit_plugin_api::ConfigError;

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
            // SAFETY: a plain system call. The C library's function, not the kernel's, as it
            // changes all threads.
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
    // SAFETY: `entry` is plain old data for which all zeroes is valid; the function writes it and
    // the strings it points to, which lie in `line`. Both outlive `found`, which is read only when
    // the function says that it points to `entry`.
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
