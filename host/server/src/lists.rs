//! The lists of exports that clients wait for or are being sent (LIST).
//!
//! A list may be long, and a client may not read it. So lists do not belong to clients:
//!
//! * Clients that get the same list at the same time share one. The chain is still asked for each
//!   client, and the lists are compared.
//! * Lists that differ are charged to an account of [`ROOM`] bytes, before the chain is asked. A
//!   list is charged as the longest that was seen so far; before the first it is charged as the
//!   longest possible. At the ceiling a client waits for its turn.
//! * A client that is being sent its list holds [`PIECE`] bytes besides it. The whole list has the
//!   time of one message of the handshake. If others wait for room, it has [`CROWDED`].

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rbdkit_chain::{MAX_LIST, list_bytes};
use rbdkit_nbd::Handshake;
use rbdkit_plugin_api::{BoxFuture, Errno, Error, ExportEntry, lock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::socket::Output;

/// The unit of the account, in bytes.
const PAGE: usize = 4096;

/// The ceiling of the account, in bytes: four of the longest lists.
const ROOM: usize = 4 * MAX_LIST;

/// The most bytes that are encoded before they are written, except for the last reply.
const PIECE: usize = 4096;

/// How long a client may take for its list while others wait for room. 2 s is enough for 10,000
/// exports with 50 bytes each over a line of 4 Mbit/s.
const CROWDED: Duration = Duration::from_secs(2);

/// How often to check whether others wait for room.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A list, and what it takes from the account. Clients share it.
#[derive(Debug)]
pub(super) struct ExportList {
    exports: Vec<ExportEntry>,
    _room: OwnedSemaphorePermit,
}

/// The lists of a server.
#[derive(Debug)]
pub(super) struct ExportLists {
    room: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// The pages of the longest list so far. 0: there was none.
    longest: AtomicUsize,
    /// The list that was made last, if a client still has it.
    last: Mutex<Weak<ExportList>>,
    crowded: Duration,
}

fn pages(bytes: usize) -> usize {
    // The chain lets no longer list through.
    bytes.clamp(1, MAX_LIST).div_ceil(PAGE)
}

impl ExportLists {
    pub fn new() -> ExportLists {
        ExportLists::with_room(pages(MAX_LIST) * (ROOM / MAX_LIST), CROWDED)
    }

    fn with_room(pages: usize, crowded: Duration) -> ExportLists {
        ExportLists {
            room: Arc::new(Semaphore::new(pages)),
            waiting: AtomicUsize::new(0),
            longest: AtomicUsize::new(0),
            last: Mutex::default(),
            crowded,
        }
    }

    /// The list for a client, which `ask` gets from the chain. If the list is longer than was
    /// charged and there is no more room, `ask` is called once more.
    ///
    /// # Errors
    /// That of `ask`, or EIO if there is no room for `limit`.
    pub async fn get<'a>(
        &self,
        limit: Duration,
        ask: impl Fn() -> BoxFuture<'a, Result<Vec<ExportEntry>, Error>>,
    ) -> Result<Arc<ExportList>, Error> {
        let most = pages(MAX_LIST);
        let mut charge = match self.longest.load(Ordering::Relaxed) {
            0 => most,
            longest => longest,
        };
        loop {
            let mut room = self.take(charge, limit).await?;
            let exports = ask().await?;
            let needed = pages(list_bytes(&exports));
            self.longest.fetch_max(needed, Ordering::Relaxed);
            let mut last = lock(&self.last);
            if let Some(same) = last.upgrade().filter(|last| last.exports == exports) {
                return Ok(same);
            }
            match needed.checked_sub(charge) {
                None | Some(0) => drop(room.split(charge - needed)),
                Some(more) => match Arc::clone(&self.room).try_acquire_many_owned(more as u32) {
                    Ok(permit) => room.merge(permit),
                    Err(_) => {
                        charge = most;
                        continue;
                    }
                },
            }
            let list = Arc::new(ExportList { exports, _room: room });
            *last = Arc::downgrade(&list);
            return Ok(list);
        }
    }

    async fn take(&self, pages: usize, limit: Duration) -> Result<OwnedSemaphorePermit, Error> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(pages as u32) {
            return Ok(room);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        match timeout(limit, Arc::clone(&self.room).acquire_many_owned(pages as u32)).await {
            Ok(Ok(room)) => Ok(room),
            // The semaphore is never closed, so only the time can be up.
            _ => Err(Error::new(Errno::Eio, "too many clients list the exports at the same time, try again later")),
        }
    }

    /// Sends a list to a client, piece by piece. The end of the answer is left to the caller.
    ///
    /// # Errors
    /// That of writing, or `TimedOut`.
    pub async fn send(
        &self,
        list: &ExportList,
        limit: Duration,
        handshake: &mut Handshake,
        output: &Output,
    ) -> io::Result<()> {
        let all = async {
            let mut piece = Vec::new();
            for export in &list.exports {
                handshake.list_export(export, &mut piece);
                if piece.len() >= PIECE {
                    output.write_all(&piece).await?;
                    piece.clear();
                }
            }
            output.write_all(&piece).await
        };
        let started = Instant::now();
        let too_slow = async {
            loop {
                sleep_until((Instant::now() + POLL_INTERVAL).min(started + limit)).await;
                let crowded = self.waiting.load(Ordering::Relaxed) > 0;
                if started.elapsed() >= if crowded { limit.min(self.crowded) } else { limit } {
                    return;
                }
            }
        };
        tokio::select! {
            sent = all => sent,
            () = too_slow => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes too long for its list")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::net::UnixStream;

    use rbdkit_nbd::HandshakeConfig;

    use super::*;
    use crate::socket::socket;

    const SOON: Duration = Duration::from_secs(60);

    /// A list whose texts take about this many pages.
    fn list(first: &str, pages: usize) -> Vec<ExportEntry> {
        let entry = |name: String| ExportEntry { name, description: None };
        let rest = (1..pages).map(|i| entry(format!("{i:03900}")));
        std::iter::once(entry(first.to_string())).chain(rest).collect()
    }

    async fn get(lists: &ExportLists, exports: &[ExportEntry]) -> Result<Arc<ExportList>, Error> {
        lists.get(SOON, || Box::pin(async { Ok(exports.to_vec()) })).await
    }

    fn free(lists: &ExportLists) -> usize {
        lists.room.available_permits()
    }

    fn handshake() -> Handshake {
        Handshake::new(HandshakeConfig::default())
    }

    #[tokio::test]
    async fn clients_that_get_the_same_list_share_it() {
        let lists = ExportLists::new();
        let all = free(&lists);
        let exports = list("a", 100);
        let first = get(&lists, &exports).await.unwrap();
        let charged = all - free(&lists);
        assert!((95..=105).contains(&charged), "{charged} pages");
        let mut others = Vec::new();
        for _ in 0..600 {
            others.push(get(&lists, &exports).await.unwrap());
        }
        assert!(others.iter().all(|other| Arc::ptr_eq(other, &first)));
        assert_eq!(all - free(&lists), charged);
        // Another list is another charge.
        let other = get(&lists, &list("b", 100)).await.unwrap();
        assert_eq!(all - free(&lists), 2 * charged);
        drop((first, others, other));
        assert_eq!(free(&lists), all);
    }

    #[tokio::test]
    async fn lists_that_differ_wait_for_room() {
        let lists = ExportLists::with_room(pages(MAX_LIST) + 200, CROWDED);
        let mut held = Vec::new();
        // The first is charged as the longest possible, the others as the first.
        for name in ["a", "b", "c"] {
            held.push(get(&lists, &list(name, 300)).await.unwrap());
        }
        let asked = Cell::new(0);
        let big = list("big", pages(MAX_LIST));
        let ask = || -> BoxFuture<'_, _> {
            asked.set(asked.get() + 1);
            let big = big.clone();
            Box::pin(async move { Ok(big) })
        };
        // There is room for this much, but not while the others are held. It is asked once more
        // when there is room.
        let mut waiting = Box::pin(lists.get(SOON, ask));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("got room that was taken"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!((asked.get(), lists.waiting.load(Ordering::Relaxed)), (1, 1));
        held.clear();
        let list = tokio::time::timeout(SOON, waiting).await.expect("it gets the room").unwrap();
        assert_eq!((asked.get(), lists.waiting.load(Ordering::Relaxed)), (2, 0));
        // Nobody waits for ever.
        let error = lists.get(Duration::from_millis(1), || Box::pin(async { Ok(vec![]) })).await.unwrap_err();
        assert!(error.to_string().contains("too many clients list the exports"), "{error}");
        drop(list);
        // An error of the chain gives the room back.
        let failed = lists.get(SOON, || Box::pin(async { Err(Errno::Eio.into()) })).await;
        assert_eq!(failed.unwrap_err().errno(), Errno::Eio);
        assert_eq!(free(&lists), pages(MAX_LIST) + 200);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_list_is_given_up_sooner_when_others_wait() {
        let lists = ExportLists::with_room(pages(MAX_LIST), Duration::from_millis(1));
        let exports = get(&lists, &list("a", 1000)).await.unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        let (_input, output) = socket(server.into()).unwrap();
        let mut handshake = handshake();
        // Alone it has its whole time.
        let patience = POLL_INTERVAL * 3;
        let started = Instant::now();
        let error = lists.send(&exports, patience, &mut handshake, &output).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= patience);
        // Others wait: an hour becomes the short time.
        lists.waiting.fetch_add(1, Ordering::Relaxed);
        let error = lists.send(&exports, SOON * 60, &mut handshake, &output);
        let error = tokio::time::timeout(SOON, error).await.expect("it is given up").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }
}
