//! Watches what parameters name: files, descriptors and processes.
//!
//! One epoll instance holds an inotify instance for the directories of all files, and every
//! descriptor and process. It is set up before the process is confined. Where the kernel does not
//! tell (a network's file system, a directory that did not exist, the target of a link), looking
//! every [`POLL_INTERVAL`] finds the change.
//!
//! The kernel tells that something has changed, and not what: a look asks for the state of all. It
//! takes about a millisecond for a thousand paths. Whoever may write in a watched directory could
//! cause looks without end, so the next look comes [`PAUSE_FACTOR`] times as long after a look as
//! that one took. A look is made on a thread that may block: a network's file system may not
//! answer.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::state::{ParamFiles, Seen, directories};

/// The time between two looks at files of which the kernel told nothing.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Looks take at most one part in 20 of a processor. A look that takes longer than a tenth of a
/// second waits for a file system, so no pause is longer than [`POLL_INTERVAL`].
const PAUSE_FACTOR: u32 = 19;

/// The watched things of one filter.
pub(crate) struct Watches {
    files: Arc<ParamFiles>,
    watched: Vec<Watched>,
    kernel: Option<Kernel>,
    has_files: bool,
    /// What the last look found changed, and the filter was not told yet.
    changed: VecDeque<usize>,
    /// The look that is under way.
    looking: Option<JoinHandle<Look>>,
    /// The kernel told of something since the last look began.
    is_told: bool,
    /// The next look comes no sooner.
    free_at: Instant,
    /// The next look comes then, also if the kernel tells nothing.
    look_at: Option<Instant>,
}

struct Watched {
    param: Arc<str>,
    nth: u32,
    /// The state that the filter was told last.
    told: Seen,
}

/// The state of all watched things, in their order.
struct Look {
    seen: Vec<Seen>,
    took: Duration,
}

/// What the kernel tells of.
struct Kernel {
    epoll: AsyncFd<OwnedFd>,
    inotify: Option<OwnedFd>,
}

impl Watches {
    /// Begins to watch. Changes since the parameters were read count as well. Call it within a
    /// runtime.
    pub(crate) fn new(files: &Arc<ParamFiles>) -> Watches {
        let watched: Vec<Watched> =
            files.watched().map(|(param, nth, told)| Watched { param: param.into(), nth, told }).collect();
        let paths: Vec<PathBuf> = files.watched_paths();
        let has_files = !paths.is_empty();
        let kernel = if watched.is_empty() { None } else { Kernel::new(files, &paths) };
        let now = Instant::now();
        Watches {
            files: Arc::clone(files),
            look_at: (!watched.is_empty()).then_some(now),
            watched,
            kernel,
            has_files,
            changed: VecDeque::new(),
            looking: None,
            is_told: false,
            free_at: now,
        }
    }

    /// Waits until something has changed. Returns its number. The future may be dropped.
    pub(crate) async fn next(&mut self) -> usize {
        loop {
            if let Some(n) = self.changed.pop_front() {
                return n;
            }
            if self.looking.is_none() {
                self.wait_for_a_look().await;
            }
            let looking = self.looking.get_or_insert_with(|| {
                self.is_told = false;
                let all: Vec<_> =
                    self.watched.iter().map(|watched| (Arc::clone(&watched.param), watched.nth)).collect();
                look(Arc::clone(&self.files), all)
            });
            let looked = looking.await;
            self.looking = None;
            // A look cannot fail.
            if let Ok(look) = looked {
                self.found(&look);
            }
        }
    }

    /// Waits until it is time for a look.
    async fn wait_for_a_look(&mut self) {
        while !self.is_told {
            let told = async {
                match &self.kernel {
                    Some(kernel) => kernel.tells().await,
                    None => std::future::pending().await,
                }
            };
            let time = async {
                match self.look_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = told => {}
                () = time => {}
            }
            self.is_told = true;
        }
        tokio::time::sleep_until(self.free_at).await;
    }

    /// Takes over what a look has found.
    fn found(&mut self, look: &Look) {
        let changed =
            self.watched.iter().zip(&look.seen).zip(0..).filter(|((watched, seen), _)| watched.told != **seen);
        self.changed.extend(changed.map(|(_, n)| n));
        let now = Instant::now();
        self.free_at = now + (look.took * PAUSE_FACTOR).min(POLL_INTERVAL);
        let looks_again = self.has_files || self.kernel.is_none();
        self.look_at = (looks_again && !self.watched.is_empty()).then(|| now + POLL_INTERVAL);
    }

    /// The filter is told of this one now. Returns the parameter, its occurrence, and whether it
    /// holds. None if it is again as the filter was told last.
    pub(crate) fn take(&mut self, n: usize) -> Option<(&str, u32, bool)> {
        let watched = self.watched.get_mut(n)?;
        let seen = self.files.seen(&watched.param, watched.nth);
        if seen == watched.told {
            return None;
        }
        watched.told = seen;
        Some((&watched.param, watched.nth, seen.holds()))
    }
}

/// Looks at all that is watched, on a thread of its own.
fn look(files: Arc<ParamFiles>, all: Vec<(Arc<str>, u32)>) -> JoinHandle<Look> {
    tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let seen = all.iter().map(|(param, nth)| files.seen(param, *nth)).collect();
        Look { seen, took: began.elapsed() }
    })
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
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rbdkit_plugin_api::schema::{ParamKind, ParamValue};

    use super::*;

    /// A thousand paths in a directory, of which none exists.
    fn thousand(directory: &std::path::Path) -> Arc<ParamFiles> {
        let values: Vec<ParamValue> = (0..1000)
            .map(|n| ParamValue { text: "set".into(), path: Some(directory.join(n.to_string()).into()) })
            .collect();
        Arc::new(ParamFiles::open(values.iter().map(|value| ("watch", ParamKind::Watch, value))).unwrap())
    }

    #[tokio::test]
    async fn changes_beside_a_thousand_paths_cost_one_part_in_twenty() {
        let directory = tempfile::tempdir().unwrap();
        let mut watches = Watches::new(&thousand(directory.path()));
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        let mut all = Duration::ZERO;
        let mut looks = 0;
        // Somebody makes a file that is not watched between any two steps.
        while looks < 20 {
            std::fs::write(directory.path().join("beside"), "").unwrap();
            if tokio::time::timeout(Duration::from_millis(1), watches.wait_for_a_look()).await.is_err() {
                continue;
            }
            watches.is_told = false;
            let all_of_them = watches.watched.iter().map(|watched| (Arc::clone(&watched.param), watched.nth)).collect();
            let look = look(Arc::clone(&watches.files), all_of_them).await.unwrap();
            watches.found(&look);
            assert!(watches.changed.is_empty());
            (longest, all, looks) = (longest.max(look.took), all + look.took, looks + 1);
        }
        println!("{looks} looks took {all:?} of {:?}", began.elapsed());
        assert!((all - longest) * 20 <= began.elapsed(), "{all:?} of {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn each_of_many_changes_is_told_once_and_one_that_was_undone_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut watches = Watches::new(&thousand(directory.path()));
        for n in (0..1000).rev() {
            std::fs::write(directory.path().join(n.to_string()), "").unwrap();
        }
        let first = watches.next().await;
        std::fs::remove_file(directory.path().join("999")).unwrap();
        let mut told = vec![watches.take(first).map(|(_, nth, holds)| (nth, holds))];
        for _ in 1..1000 {
            // A future that is dropped loses nothing.
            let _ = tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await;
            let n = watches.next().await;
            told.push(watches.take(n).map(|(_, nth, holds)| (nth, holds)));
        }
        let expected: Vec<_> = (0..999).map(|nth| Some((nth, true))).chain([None]).collect();
        assert_eq!(told, expected);
        // All is told: nothing comes any more, until something changes.
        let next = tokio::time::timeout(Duration::from_millis(50), watches.next()).await;
        assert!(next.is_err());
        std::fs::remove_file(directory.path().join("7")).unwrap();
        let n = watches.next().await;
        assert_eq!(watches.take(n).map(|(_, nth, holds)| (nth, holds)), Some((7, false)));
    }
}
