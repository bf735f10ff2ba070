//! The user and the group that the server changes to.

use std::ffi::CString;
use std::io;
use std::path::Path;

use nix::unistd::{self, Gid, Group, Uid, User};
use rbdkit_plugin_api::ConfigError;
use rustix::fs::{Mode, OFlags};

/// The user and the group that the server changes to.
#[derive(Debug, Default)]
pub struct Identity {
    user: Option<Uid>,
    group: Option<Gid>,
    /// The name and the primary group of a user that was given by name.
    named: Option<(CString, Gid)>,
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
            let known = Group::from_name(group).ok().flatten().map(|group| group.gid);
            identity.group = Some(known.or_else(|| number(group).map(Gid::from_raw)).ok_or_else(wrong)?);
        }
        if let Some(user) = user {
            let wrong = || ConfigError::new(format!("--user: '{user}' is not a user, by name or number"));
            let known = User::from_name(user).ok().flatten();
            let uid = known.as_ref().map(|known| known.uid);
            identity.user = Some(uid.or_else(|| number(user).map(Uid::from_raw)).ok_or_else(wrong)?);
            identity.named = known.and_then(|known| Some((CString::new(user).ok()?, known.gid)));
        }
        Ok(identity)
    }

    /// Whether the user or the group changes.
    pub fn is_another(&self) -> bool {
        self.user.is_some() || self.group.is_some()
    }

    /// Gives a directory to this user and group. A symbolic link is not followed.
    ///
    /// # Errors
    /// As open(2) and fchown(2).
    pub fn own_directory(&self, path: &Path) -> io::Result<()> {
        let group = self.group.or_else(|| self.named.as_ref().map(|(_, primary)| *primary));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        std::os::unix::fs::fchown(directory, self.user.map(Uid::as_raw), group.map(Gid::as_raw))
    }

    /// Changes all threads of the process to this user and group. The group comes first, because
    /// the process loses the right to change it with the user.
    ///
    /// # Errors
    /// One line that names the option.
    pub fn assume(&self) -> Result<(), ConfigError> {
        let failed = |option: &'static str, what: &'static str| {
            move |error: nix::Error| {
                ConfigError::new(format!("{option}: {what}: {}", io::Error::from_raw_os_error(error as i32)))
            }
        };
        if let Some(gid) = self.group {
            unistd::setgroups(&[]).map_err(failed("--group", "setgroups"))?;
            unistd::setgid(gid).map_err(failed("--group", "setgid"))?;
        } else if let Some((name, primary)) = &self.named {
            unistd::initgroups(name, *primary).map_err(failed("--user", "initgroups"))?;
        }
        match self.user {
            Some(uid) => unistd::setuid(uid).map_err(failed("--user", "setuid")),
            None => Ok(()),
        }
    }
}

fn number(text: &str) -> Option<u32> {
    // For the kernel, the largest number means "do not change".
    text.parse().ok().filter(|id| *id != u32::MAX && !text.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        assert_eq!(Identity::look_up(Some("root"), Some("root")).unwrap().group, Some(Gid::from_raw(0)));
        assert_eq!(Identity::look_up(Some("12345"), None).unwrap().user, Some(Uid::from_raw(12345)));
        let error = Identity::look_up(Some("no such user"), None).unwrap_err().to_string();
        assert_eq!(error, "--user: 'no such user' is not a user, by name or number");
        let error = Identity::look_up(None, Some("4294967295")).unwrap_err().to_string();
        assert_eq!(error, "--group: '4294967295' is not a group, by name or number");
    }
}
