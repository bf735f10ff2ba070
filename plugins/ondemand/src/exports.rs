//! Opens, makes and lists disks.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_assembled::{AssembledDisk, AssembledHandle, DiskFile, Durability};
use rbdkit_disk_command::{Created, begin, create};
use rbdkit_launcher::{Launcher, OpenFor, Opener, Order, Started};
use rbdkit_plugin_api::{DiskId, Errno, Error, ExportEntry, Handle, Result, lock, run_abandonable, run_blocking};
use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno as Raw;
use tokio::sync::Notify;

use crate::file_lock::{LockKind, try_lock};
use crate::names::{DEFAULT, file_name, is_disk};

/// The name of the plugin, and of its helpers.
pub(crate) const PLUGIN: &str = "ondemand";

/// How often a client that waits tries to lock a disk again. The other client may be one of another
/// server, of whose end nobody is told.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// What happens to a client whose disk another client has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WhenLocked {
    #[default]
    Refuse,
    Wait,
}

pub(crate) struct Exports {
    directory: OwnedFd,
    launcher: Arc<Launcher>,
    opener: Arc<Opener>,
    when_locked: WhenLocked,
    /// The names of the disks that are being made.
    making: Mutex<HashSet<String>>,
    /// Told when one of them has been made.
    made: Notify,
}

/// The variable of an order that names the disk.
const NAME: &str = "name";

/// Starts the command. The first word is the directory, the others are those of
/// [`rbdkit_disk_command::CommandConfig::words`].
pub(crate) fn start(words: &[OsString], order: &Order) -> io::Result<Started> {
    let [directory, words @ ..] = words else { return Err(io::ErrorKind::InvalidInput.into()) };
    let name = order.variables.iter().find(|(key, _)| key == NAME).map(|(_, name)| name);
    // The order may come from an attacker who controls the server.
    let name = name.filter(|name| is_disk(name)).ok_or(io::ErrorKind::InvalidInput)?;
    let directory = Path::new(directory);
    begin(words, directory, name.as_ref(), Created::Named(directory.join(name)))
}

/// Opens a disk for the server. It may be a symbolic link: the command or the administrator made
/// it.
pub(crate) fn open_disk(directory: BorrowedFd<'_>, name: &OsStr, purpose: OpenFor) -> rustix::io::Result<OwnedFd> {
    if !name.to_str().is_some_and(is_disk) {
        return Err(Raw::INVAL);
    }
    let flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let access = if purpose == OpenFor::Writing { OFlags::RDWR } else { OFlags::RDONLY };
    rustix::fs::openat(directory, name, flags | access, Mode::empty())
}

impl Exports {
    pub(crate) fn new(directory: &PathBuf, words: Vec<OsString>, when_locked: WhenLocked) -> io::Result<Exports> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Exports {
            directory: rustix::fs::openat(CWD, directory, flags, Mode::empty())?,
            launcher: Arc::new(Launcher::new(PLUGIN, start, words)),
            opener: Arc::new(Opener::new(PLUGIN, open_disk)),
            when_locked,
            making: Mutex::default(),
            made: Notify::new(),
        })
    }

    /// Starts the helpers.
    pub(crate) fn move_out(&self) -> io::Result<()> {
        self.launcher.move_out()?;
        self.opener.move_out(self.directory.as_fd())
    }

    /// The default export, and the disks that exist.
    pub(crate) fn list(&self) -> Result<Vec<ExportEntry>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory).map_err(io::Error::from)? {
            let entry = entry.map_err(io::Error::from)?;
            if let Ok(name) = entry.file_name().to_str()
                && is_disk(name)
                && name != DEFAULT
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        names.insert(0, String::new());
        Ok(names.into_iter().map(|name| ExportEntry { name, description: None }).collect())
    }

    /// Opens the disk of an export, and makes it before if it does not exist.
    pub(crate) async fn open(&self, exportname: &str, readonly: bool) -> Result<Arc<dyn Handle>> {
        let name = file_name(exportname)?;
        let purpose = if readonly { OpenFor::Reading } else { OpenFor::Writing };
        let file = match self.open_existing(name, purpose).await? {
            Some(file) => file,
            None => self.make(name, purpose).await?,
        };
        let kind = if readonly { LockKind::Shared } else { LockKind::Exclusive };
        self.lock(&file, name, kind).await?;
        let id = DiskId::named(name);
        let handle = run_blocking(move || {
            let disk = AssembledDisk::of_file(DiskFile::from_fd(file)?)?.alone(Durability::Kept);
            Ok(Arc::new(AssembledHandle::to(disk, id)) as Arc<dyn Handle>)
        });
        handle.await
    }

    /// None: it does not exist.
    async fn open_existing(&self, name: &str, purpose: OpenFor) -> Result<Option<OwnedFd>> {
        let directory = self.directory.try_clone()?;
        let (opener, owned) = (Arc::clone(&self.opener), name.to_owned());
        let opened = run_blocking(move || match opener.open(directory.as_fd(), owned.as_ref(), purpose) {
            Ok(file) => Ok(Some(file)),
            Err(Raw::NOENT) => Ok(None),
            Err(error) => Err(Error::new(
                Errno::from_raw(error.raw_os_error()),
                format!("ondemand: the disk {owned:?} cannot be opened: {error}"),
            )),
        });
        opened.await
    }

    /// Makes a disk, or waits until another client has made it.
    async fn make(&self, name: &str, purpose: OpenFor) -> Result<OwnedFd> {
        loop {
            let mut made = std::pin::pin!(self.made.notified());
            // From here on it is told, also before it is awaited.
            made.as_mut().enable();
            if let Some(making) = Making::begin(self, name) {
                // It may have been made since we looked.
                if let Some(file) = self.open_existing(name, purpose).await? {
                    return Ok(file);
                }
                let launcher = Arc::clone(&self.launcher);
                let variables = vec![(NAME.to_owned(), name.to_owned())];
                let order = Order { variables, ..Order::default() };
                tracing::debug!("ondemand: making the disk {name:?}");
                let file = run_abandonable(move |abandoned| create("ondemand", &launcher, &order, abandoned)).await;
                drop(making);
                return file;
            }
            made.await;
            if let Some(file) = self.open_existing(name, purpose).await? {
                return Ok(file);
            }
        }
    }

    async fn lock(&self, file: &OwnedFd, name: &str, kind: LockKind) -> Result<()> {
        loop {
            if try_lock(file, kind)? {
                return Ok(());
            }
            if self.when_locked == WhenLocked::Refuse {
                let what = format!("ondemand: {name}: filesystem is locked by another client");
                return Err(Error::new(Errno::Einval, what));
            }
            tokio::time::sleep(LOCK_INTERVAL).await;
        }
    }
}

/// The right to make the disk of a name. Others are told when it is dropped.
struct Making<'a> {
    exports: &'a Exports,
    name: String,
}

impl Making<'_> {
    fn begin<'a>(exports: &'a Exports, name: &str) -> Option<Making<'a>> {
        lock(&exports.making).insert(name.to_owned()).then(|| Making { exports, name: name.to_owned() })
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        lock(&self.exports.making).remove(&self.name);
        self.exports.made.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use rbdkit_plugin_api::Op;
    use tokio::runtime::Builder;

    use super::*;

    fn exports(directory: &Path, command: &str, when_locked: WhenLocked) -> Exports {
        let words = [directory.as_os_str(), "8192".as_ref(), command.as_ref()].map(OsString::from);
        Exports::new(&directory.to_path_buf(), words.into(), when_locked).unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// Makes a disk, and leaves a line in the file `.made` for each one.
    const COMMAND: &str = r#"echo "${disk##*/}" >>"${disk%/*/*}/.made"; truncate -s "$size" "$disk""#;

    #[test]
    fn each_name_is_a_disk_that_is_made_once_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let exports = exports(directory.path(), COMMAND, WhenLocked::Refuse);
        for name in ["", "a", "it's $HOME", "a"] {
            let handle = run(exports.open(name, false)).unwrap();
            let Op::Ready(Ok(size)) = handle.get_size() else { panic!("it does not wait") };
            assert_eq!(size, 8192);
        }
        let made = std::fs::read_to_string(directory.path().join(".made")).unwrap();
        assert_eq!(made, "default\na\nit's $HOME\n");
        std::fs::write(directory.path().join("x.img"), "").unwrap();
        let names: Vec<String> = exports.list().unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["", "a", "it's $HOME"]);
    }

    #[test]
    fn clients_that_come_at_once_make_a_disk_once() {
        let directory = tempfile::tempdir().unwrap();
        let exports = exports(directory.path(), COMMAND, WhenLocked::Refuse);
        run(async {
            let opens = (exports.open("a", true), exports.open("a", true), exports.open("a", true));
            let (one, two, three) = tokio::join!(opens.0, opens.1, opens.2);
            assert!(one.is_ok() && two.is_ok() && three.is_ok());
        });
        assert_eq!(std::fs::read_to_string(directory.path().join(".made")).unwrap(), "a\n");
    }

    #[test]
    fn a_disk_that_is_open_is_locked_and_a_client_may_wait_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let refuses = exports(directory.path(), COMMAND, WhenLocked::Refuse);
        let first = run(refuses.open("a", false)).unwrap();
        let error = run(refuses.open("a", false)).err().unwrap();
        assert_eq!(error.errno(), Errno::Einval);
        assert_eq!(error.context(), Some("ondemand: a: filesystem is locked by another client"));
        let waits = exports(directory.path(), COMMAND, WhenLocked::Wait);
        run(async {
            let mut second = std::pin::pin!(waits.open("a", false));
            tokio::select! {
                biased;
                _ = &mut second => panic!("the disk is locked"),
                () = tokio::time::sleep(LOCK_INTERVAL * 2) => {}
            }
            drop(first);
            second.await.unwrap();
        });
    }

    #[test]
    fn a_disk_that_cannot_be_made_is_not_there_and_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let fails = exports(directory.path(), "echo half >\"$disk\"; echo no space >&2; false", WhenLocked::Refuse);
        for _ in 0..2 {
            let error = run(fails.open("a", false)).err().unwrap();
            assert_eq!(error.context(), Some("ondemand: the command exited with code 1: no space"));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        run(exports(directory.path(), COMMAND, WhenLocked::Refuse).open("a", false)).unwrap();
    }

    #[test]
    fn a_helper_opens_and_makes_only_disks_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let handle = std::fs::File::open(directory.path()).unwrap();
        for name in ["..", "../x", "/etc/passwd", "a.b"] {
            let opened = open_disk(handle.as_fd(), name.as_ref(), OpenFor::Reading);
            assert_eq!(opened.unwrap_err(), Raw::INVAL);
            let variables = vec![(NAME.to_owned(), name.to_owned())];
            let order = Order { variables, ..Order::default() };
            let words = [directory.path().as_os_str(), "1".as_ref(), "true".as_ref()].map(OsString::from);
            assert!(start(&words, &order).is_err(), "{name}");
        }
    }
}
