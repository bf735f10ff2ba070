use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::task::Wake;

use super::super::random::Random;
use super::*;

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

type LockFuture = Pin<Box<dyn Future<Output = Result<HeldLock, Errno>> + Send>>;

/// A caller that wants a lock, polled by hand.
struct Asker {
    future: Option<LockFuture>,
    flag: Arc<Flag>,
    held: Option<Result<HeldLock, Errno>>,
}

impl Asker {
    /// Requests the lock, which polls once.
    fn new(locks: &Arc<Locks>, first: u64, length: u64, mode: LockMode, on_shutdown: OnShutdown) -> Asker {
        let locks = Arc::clone(locks);
        let future: LockFuture = Box::pin(async move { locks.lock(first, length, mode, on_shutdown).await });
        let mut asker = Asker { future: Some(future), flag: Arc::default(), held: None };
        asker.poll();
        asker
    }

    fn exclusive(locks: &Arc<Locks>, first: u64, length: u64) -> Asker {
        Asker::new(locks, first, length, LockMode::Exclusive, OnShutdown::GiveUp)
    }

    fn shared(locks: &Arc<Locks>, first: u64, length: u64) -> Asker {
        Asker::new(locks, first, length, LockMode::Shared, OnShutdown::GiveUp)
    }

    fn poll(&mut self) {
        let waker = Waker::from(Arc::clone(&self.flag));
        if let Some(future) = &mut self.future
            && let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            self.held = Some(result);
            self.future = None;
        }
    }

    fn has_it(&self) -> bool {
        matches!(self.held, Some(Ok(_)))
    }

    fn error(&self) -> Option<Errno> {
        self.held.as_ref().and_then(|result| result.as_ref().err().copied())
    }

    /// Whether it was woken since the last time, and polls if so.
    fn woken(&mut self) -> bool {
        let woken = self.flag.0.swap(false, Ordering::SeqCst);
        if woken {
            self.poll();
        }
        woken
    }
}

#[test]
fn shared_locks_pass_and_exclusive_ones_wait_in_the_order_of_asking() {
    let locks = Arc::new(Locks::default());
    let (one, two) = (Asker::shared(&locks, 0, 10), Asker::shared(&locks, 5, 10));
    assert!(one.has_it() && two.has_it());
    let mut writer = Asker::exclusive(&locks, 9, 1);
    let mut late = Asker::shared(&locks, 0, 10);
    let elsewhere = Asker::exclusive(&locks, 15, 1);
    assert!(
        !writer.has_it() && !late.has_it() && elsewhere.has_it(),
        "nobody overtakes, what does not conflict passes"
    );
    drop(one);
    assert!(!writer.woken());
    drop(two);
    assert!(writer.woken() && writer.has_it() && !late.woken());
    drop(writer);
    assert!(late.woken() && late.has_it());
    drop((late, elsewhere));
    assert!(locks.table().entries.is_empty());
}

#[test]
fn a_waiter_that_gives_up_blocks_no_other() {
    let locks = Arc::new(Locks::default());
    let reader = Asker::shared(&locks, 0, 10);
    let writer = Asker::exclusive(&locks, 0, 10);
    let mut behind = Asker::shared(&locks, 0, 10);
    assert!(reader.has_it() && !behind.has_it());
    drop(writer);
    assert!(behind.woken() && behind.has_it());
    // Granted, but dropped before it is polled again: released.
    drop((reader, behind));
    let holder = Asker::exclusive(&locks, 0, 1);
    let granted = Asker::exclusive(&locks, 0, 1);
    let mut last = Asker::exclusive(&locks, 0, 1);
    drop(holder);
    drop(granted);
    assert!(last.woken() && last.has_it());
}

#[test]
fn a_shutdown_ends_waiting_but_not_for_who_has_to_write_back() {
    let locks = Arc::new(Locks::default());
    let holder = Asker::exclusive(&locks, 0, 10);
    let mut impatient = Asker::exclusive(&locks, 0, 10);
    let mut patient = Asker::new(&locks, 0, 10, LockMode::Exclusive, OnShutdown::KeepWaiting);
    locks.shutdown();
    assert!(impatient.woken() && impatient.error() == Some(Errno::Eshutdown));
    assert!(!patient.woken());
    assert_eq!(Asker::shared(&locks, 5, 1).error(), Some(Errno::Eshutdown));
    assert!(Asker::exclusive(&locks, 10, 1).has_it(), "what need not wait is granted");
    drop(holder);
    assert!(patient.woken() && patient.has_it());
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let locks = Arc::new(Locks::default());
    assert_eq!(Asker::exclusive(&locks, 7, 0).error(), Some(Errno::Einval));
    assert_eq!(Asker::exclusive(&locks, 2, u64::MAX).error(), Some(Errno::Einval));
    assert!(Asker::exclusive(&locks, 1, u64::MAX).has_it());
}

/// A model of the list: all callers in the order of their requests.
struct Expected {
    asker: Asker,
    range: (u64, u64),
    mode: LockMode,
    on_shutdown: OnShutdown,
}

fn in_the_way(earlier: &Expected, later: &Expected) -> bool {
    let overlap = earlier.range.0 <= later.range.1 && later.range.0 <= earlier.range.1;
    overlap && (earlier.mode == LockMode::Exclusive || later.mode == LockMode::Exclusive)
}

#[test]
fn random_locks_are_granted_exactly_when_no_earlier_lock_conflicts() {
    let mut random = Random::seeded("random_locks_are_granted_exactly_when_no_earlier_lock_conflicts");
    for round in 0..40 {
        let locks = Arc::new(Locks::default());
        let mut all: Vec<Expected> = Vec::new();
        let mut stopping = false;
        for step in 0..400 {
            if all.len() < 12 && random.below(2) == 0 {
                let (first, length) = (random.below(30), random.below(8) + 1);
                let mode = if random.below(2) == 0 { LockMode::Shared } else { LockMode::Exclusive };
                let on_shutdown = if random.below(4) == 0 { OnShutdown::KeepWaiting } else { OnShutdown::GiveUp };
                let asker = Asker::new(&locks, first, length, mode, on_shutdown);
                let new = Expected { asker, range: (first, first + length - 1), mode, on_shutdown };
                let waits = all.iter().any(|earlier| in_the_way(earlier, &new));
                if stopping && waits && on_shutdown == OnShutdown::GiveUp {
                    assert_eq!(new.asker.error(), Some(Errno::Eshutdown), "round {round} step {step}");
                } else {
                    assert_eq!(new.asker.has_it(), !waits, "round {round} step {step}");
                    all.push(new);
                }
            } else if !stopping && step > 300 && random.below(40) == 0 {
                stopping = true;
                locks.shutdown();
                all.retain_mut(|one| {
                    let refused = one.asker.future.is_some() && one.on_shutdown == OnShutdown::GiveUp;
                    if refused {
                        assert!(one.asker.woken());
                        assert_eq!(one.asker.error(), Some(Errno::Eshutdown));
                    }
                    !refused
                });
            } else if !all.is_empty() {
                // Released if it is held, given up if not.
                drop(all.remove(random.below(all.len() as u64) as usize));
            }
            for n in 0..all.len() {
                let free = !all[..n].iter().any(|earlier| in_the_way(earlier, &all[n]));
                let had_it = all[n].asker.has_it();
                let woken = all[n].asker.woken();
                assert_eq!(
                    woken,
                    free && !had_it,
                    "round {round} step {step}: woken when and only when it is its turn"
                );
                assert_eq!(all[n].asker.has_it(), free, "round {round} step {step}");
            }
            assert_eq!(locks.table().entries.len(), all.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_on_many_threads_never_hold_what_conflicts_and_all_get_their_turn() {
    let mut random = Random::seeded("tasks_on_many_threads_never_hold_what_conflicts_and_all_get_their_turn");
    let locks = Arc::new(Locks::default());
    // Of each byte: how many readers hold it; a writer counts as -1000.
    let bytes: Arc<Vec<AtomicI64>> = Arc::new((0..64).map(|_| AtomicI64::new(0)).collect());
    let granted = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let mut random = Random::new(random.below(u64::MAX));
            let (locks, bytes, granted) = (Arc::clone(&locks), Arc::clone(&bytes), Arc::clone(&granted));
            tokio::spawn(async move {
                for _ in 0..500 {
                    let (first, length) = (random.below(60), random.below(4) + 1);
                    let (mode, weight) =
                        if random.below(3) == 0 { (LockMode::Exclusive, -1000) } else { (LockMode::Shared, 1) };
                    let lock = locks.lock(first, length, mode, OnShutdown::GiveUp);
                    let held = if random.below(4) == 0 {
                        // Gives up, sometimes while the lock is being handed to it.
                        let on_shutdown = random.below(3);
                        tokio::select! {
                            biased;
                            held = lock => held.unwrap(),
                            () = async { for _ in 0..on_shutdown { tokio::task::yield_now().await } } => continue,
                        }
                    } else {
                        lock.await.unwrap()
                    };
                    granted.fetch_add(1, Ordering::Relaxed);
                    for byte in &bytes[first as usize..(first + length) as usize] {
                        let before = byte.fetch_add(weight, Ordering::SeqCst);
                        assert!(if weight < 0 { before == 0 } else { before >= 0 }, "{before}");
                    }
                    if random.below(2) == 0 {
                        tokio::task::yield_now().await;
                    }
                    for byte in &bytes[first as usize..(first + length) as usize] {
                        byte.fetch_sub(weight, Ordering::SeqCst);
                    }
                    drop(held);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(granted.load(Ordering::Relaxed) > 6000);
    assert!(locks.table().entries.is_empty());
}
