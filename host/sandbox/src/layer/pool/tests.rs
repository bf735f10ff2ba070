//! Tests of the pool's shares and of its wait queue.

use super::*;

fn empty(holder: &Arc<Holder>, pool: &Arc<InstancePool>) -> u32 {
    let mut leases = Vec::new();
    while let Some(lease) = pool.try_take(Some(holder)) {
        leases.push(lease);
    }
    leases.into_iter().map(std::mem::forget).count() as u32
}

#[test]
fn a_connection_that_holds_none_finds_one_left() {
    let pool = InstancePool::new(128);
    let holders: Vec<_> = (0..20).map(Holder::new).collect();
    let each: Vec<u32> = holders.iter().map(|holder| empty(holder, &pool)).collect();
    assert_eq!(each[..9], [64, 32, 16, 8, 4, 2, 1, 1, 0]);
}

#[test]
fn any_connection_may_have_the_only_instance() {
    let pool = InstancePool::new(1);
    let (one, other) = (Holder::new(1), Holder::new(2));
    drop(pool.try_take(Some(&one)).unwrap());
    assert_eq!((empty(&other, &pool), empty(&one, &pool)), (1, 0));
    assert_eq!(pool.places().leased, 1);
}

#[test]
fn shares_level_out_as_places_come_back() {
    let pool = InstancePool::new(30);
    let (one, other) = (Holder::new(1), Holder::new(2));
    let mut ones: Vec<_> = std::iter::from_fn(|| pool.try_take(Some(&one))).collect();
    let mut others: Vec<_> = std::iter::from_fn(|| pool.try_take(Some(&other))).collect();
    assert_eq!((ones.len(), others.len()), (15, 8));
    for _ in 0..100 {
        // Each ends a request and begins as many as it may.
        ones.pop();
        ones.extend(std::iter::from_fn(|| pool.try_take(Some(&one))));
        others.pop();
        others.extend(std::iter::from_fn(|| pool.try_take(Some(&other))));
    }
    assert!((9..=11).contains(&ones.len()) && (9..=11).contains(&others.len()), "{} {}", ones.len(), others.len());
    drop((ones, others));
    assert_eq!(pool.places().leased, 0);
}

/// Polls once.
fn now<'a>(take: &mut std::pin::Pin<Box<impl Future<Output = Result<Lease<'a>>>>>) -> Option<Lease<'a>> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match take.as_mut().poll(&mut context) {
        std::task::Poll::Ready(lease) => Some(lease.unwrap()),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn connections_take_turns_and_one_without_an_instance_is_first() {
    let pool = InstancePool::new(2);
    let (greedy, modest, late) = (Holder::new(1), Holder::new(2), Holder::new(3));
    let first = pool.try_take(Some(&greedy)).unwrap();
    let second = pool.try_take(Some(&modest)).unwrap();
    // Two requests of the first in the queue, then one each of others.
    let mut again: Vec<_> = (0..2).map(|_| Box::pin(pool.take(Some(&greedy)))).collect();
    let mut other = Box::pin(pool.take(Some(&late)));
    let mut service = Box::pin(pool.take(None));
    assert!(again.iter_mut().all(|take| now(take).is_none()));
    assert!(now(&mut other).is_none() && now(&mut service).is_none());
    drop(second);
    let service = now(&mut service).expect("before all requests");
    drop(service);
    let other = now(&mut other).expect("it has none");
    assert!(again.iter_mut().all(|take| now(take).is_none()));
    drop(first);
    let granted = again.iter_mut().filter_map(now).collect::<Vec<_>>();
    assert_eq!(granted.len(), 1, "in the order of asking");
    // A waiter that gives up leaves no place behind, also if it has it already.
    drop(other);
    drop(granted);
    drop(again);
    let places = pool.places();
    assert_eq!((places.leased, places.has_waiters()), (0, false));
}
