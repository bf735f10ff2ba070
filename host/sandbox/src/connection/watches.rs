//! Watches what parameters name: files, descriptors and processes.
//!
//! One epoll instance holds an inotify instance for the directories of all files, and every
//! descriptor and process. It is set up before the process is confined. Where the kernel does not
//! tell (a network's file system, a directory that did not exist, the target of a link), looking
//! every [`LOOK`] finds the change.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::state::{ParamFiles, Seen, directories};

/// The time between two looks at files of which the kernel told nothing.
const LOOK: Duration = Duration::from_secs(2);

/// The watched things of one filter.
pub(crate) struct Watches {
    watched: Vec<Watched>,
    kernel: Option<Kernel>,
    has_files: bool,
}

struct Watched {
    param: String,
    nth: u32,
    /// The state that the filter was told last.
    told: Seen,
}

/// What the kernel tells of.
struct Kernel {
    epoll: AsyncFd<OwnedFd>,
    inotify: Option<OwnedFd>,
}

impl Watches {
    /// Begins to watch. Changes since the parameters were read count as well. Call it within a
    /// runtime.
    pub(crate) fn new(files: &ParamFiles) -> Watches {
        let watched: Vec<Watched> =
            files.watched().map(|(param, nth, told)| Watched { param: param.to_string(), nth, told }).collect();
        let paths: Vec<PathBuf> = files.watched_paths();
        let has_files = !paths.is_empty();
        let kernel = if watched.is_empty() { None } else { Kernel::new(files, &paths) };
        Watches { watched, kernel, has_files }
    }

    /// Waits until something has changed. Returns its number. The future may be dropped.
    pub(crate) async fn next(&mut self, files: &ParamFiles) -> usize {
        loop {
            let changed = |watched: &Watched| files.seen(&watched.param, watched.nth) != watched.told;
            if let Some(n) = self.watched.iter().position(changed) {
                return n;
            }
            let told = async {
                match &self.kernel {
                    Some(kernel) => kernel.tells().await,
                    None => std::future::pending().await,
                }
            };
            let look = async {
                match self.has_files || self.kernel.is_none() && !self.watched.is_empty() {
                    true => tokio::time::sleep(LOOK).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = told => {}
                () = look => {}
            }
        }
    }

    /// The filter is told of this one now. Returns the parameter, its occurrence, and whether it
    /// holds.
    pub(crate) fn take(&mut self, n: usize, files: &ParamFiles) -> (&str, u32, bool) {
        // To the end: otherwise one that changes all the time would keep those after it waiting.
        self.watched[n..].rotate_left(1);
        let last = self.watched.len() - 1;
        let watched = &mut self.watched[last];
        watched.told = files.seen(&watched.param, watched.nth);
        (&watched.param, watched.nth, watched.told.holds())
    }
}

impl Kernel {
    /// None if the system refuses: then looking has to do.
    fn new(files: &ParamFiles, paths: &[PathBuf]) -> Option<Kernel> {
        let inner = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
        let edge = epoll::EventFlags::ET;
        let inotify = if paths.is_empty() { None } else { watch_directories(paths) };
        if let Some(inotify) = &inotify {
            epoll::add(&inner, inotify, epoll::EventData::new_u64(0), edge | epoll::EventFlags::IN).ok()?;
        }
        for (fd, of_process) in files.watched_descriptors() {
            // Data that arrives is no change; HUP and ERR are always reported.
            let events = if of_process { epoll::EventFlags::IN } else { epoll::EventFlags::RDHUP };
            epoll::add(&inner, fd, epoll::EventData::new_u64(0), edge | events).ok()?;
        }
        #[allow(unsafe_code, reason = "AsyncFd has no safe constructor")]
        // SAFETY: an `OwnedFd` names one open descriptor as long as it lives, and AsyncFd owns it.
        let epoll = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) };
        Some(Kernel { epoll: epoll.ok()?, inotify })
    }

    /// Waits until the kernel tells of something.
    async fn tells(&self) {
        match self.epoll.readable().await {
            Ok(mut ready) => {
                let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 16];
                let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                while epoll::wait(self.epoll.get_ref(), &mut events, Some(&none)).is_ok_and(|(got, _)| !got.is_empty())
                {
                }
                if let Some(inotify) = &self.inotify {
                    let mut bytes = [0; 4096];
                    while rustix::io::read(inotify, &mut bytes).is_ok_and(|count| count > 0) {}
                }
                ready.clear_ready();
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Watches the directories of files. A file that appears, goes or is replaced changes its
/// directory.
fn watch_directories(paths: &[PathBuf]) -> Option<OwnedFd> {
    use inotify::WatchFlags;
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    let changes = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MODIFY
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    for directory in directories(paths) {
        // Looking finds what happens in a directory that cannot be watched.
        let _ = inotify::add_watch(fd.as_fd(), &directory, changes);
    }
    Some(fd)
}
