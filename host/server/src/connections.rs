//! The limit on connections, and what happens when it is reached.
//!
//! A client may be idle for as long as it likes: the idle disk of a virtual machine must stay
//! connected. So no connection is closed for being idle alone, and none for what another peer does.
//! When the limit is reached and another client comes, each *peer* has an equal share: the peer
//! with the most connections loses the one that it has not used for the longest time, if it then
//! still has at least as many as the peer of the new client. So a peer that opens connections
//! without end only loses its own.
//!
//! A client whose peer has its share already waits until a connection closes. The server holds few
//! such clients, and closes the connections of further ones.
//!
//! A peer is a process on a Unix socket and an address on TCP. Peers are grouped, so that nobody
//! gets more by being many: the processes of a user, and the addresses of an IPv6 network (/64).
//! Groups come first, then the peers of one group.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use rbdkit_plugin_api::{Client, Peer, Usage, lock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use tokio::sync::oneshot;

/// The most clients that wait for a place, of all peers and of one peer. Each has a file
/// descriptor.
pub(super) const MAX_WAITING: usize = 64;
const MAX_WAITING_OF_ONE: usize = 32;

/// A connection that has to go no longer counts towards the limit, because its last operation may
/// take long. This part of the limit may be on the way out at a time.
const LEAVING: usize = 8;

/// Who a connection counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Group {
    User(i64),
    V4([u8; 4]),
    /// The first half of an address.
    V6([u8; 8]),
    /// A virtual machine, by its context id.
    Vsock(u32),
    Unknown,
}

/// A member of a group: a process, or the second half of an address.
type Member = (Group, u64);

fn member(client: &Client) -> Member {
    match (&client.peer, client.credentials) {
        (Peer::Ip(address), _) => match address.ip().to_canonical() {
            IpAddr::V4(ip) => (Group::V4(ip.octets()), 0),
            IpAddr::V6(ip) => {
                let (network, host) = ((ip.to_bits() >> 64) as u64, ip.to_bits() as u64);
                (Group::V6(network.to_be_bytes()), host)
            }
        },
        (Peer::Vsock { cid, .. }, _) => (Group::Vsock(*cid), 0),
        (_, Some((process, user, _))) => (Group::User(user), process as u64),
        _ => (Group::Unknown, 0),
    }
}

/// When a client last sent a request.
#[derive(Debug)]
pub(super) struct LastUse {
    epoch: Instant,
    /// Milliseconds since `epoch`.
    at: AtomicU64,
}

impl LastUse {
    fn new(epoch: Instant) -> LastUse {
        let last_use = LastUse { epoch, at: AtomicU64::new(0) };
        last_use.note(Instant::now());
        last_use
    }

    /// The client has sent something.
    #[inline]
    pub fn note(&self, now: Instant) {
        self.at.store(now.saturating_duration_since(self.epoch).as_millis() as u64, Ordering::Relaxed);
    }

    /// The client is in use until [`LastUse::note`].
    pub fn note_in_use(&self) {
        self.at.store(u64::MAX, Ordering::Relaxed);
    }
}

/// The connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    epoch: Instant,
    state: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    /// By the number of the client.
    open: BTreeMap<u64, Open>,
    /// Connections that count towards the limit: in all, and of each group and member.
    counted: usize,
    /// The most that ever counted.
    peak: usize,
    groups: HashMap<Group, usize>,
    members: HashMap<Member, usize>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Open {
    member: Member,
    last_use: Arc<LastUse>,
    /// None once it has to go. Then it does not count.
    socket: Option<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Waiting {
    client: u64,
    member: Member,
    socket: Arc<OwnedFd>,
    place: oneshot::Sender<Place>,
}

/// A connection's place. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    client: u64,
}

/// The answer to a new client.
#[derive(Debug)]
pub(super) enum Entry {
    Now(Place),
    /// Once a connection closes.
    Later(oneshot::Receiver<Place>),
    /// Too many of its peer are waiting.
    Refused,
}

impl Connections {
    /// With at most `limit` connections.
    pub fn new(limit: usize) -> Arc<Connections> {
        Arc::new(Connections { limit, epoch: Instant::now(), state: Mutex::default() })
    }

    /// The most connections that exist at a time, with those that have to go.
    pub fn most(limit: usize) -> usize {
        limit + limit / LEAVING
    }

    fn state(&self) -> MutexGuard<'_, Registry> {
        lock(&self.state)
    }

    /// A client has come, over this socket.
    pub fn enter(self: &Arc<Self>, client: &Client, socket: &Arc<OwnedFd>) -> Entry {
        let member = member(client);
        let mut state = self.state();
        if !self.has_room(&state) {
            self.displace_for(member, &mut state);
        }
        if self.has_room(&state) {
            return Entry::Now(self.add(client.id, member, Arc::clone(socket), &mut state));
        }
        if state.is_crowded(member) {
            // Those who have left no longer wait. Their tasks may not have seen it yet.
            state.waiting.retain(|waiting| !has_left(&waiting.socket));
            if state.is_crowded(member) {
                return Entry::Refused;
            }
        }
        let (place, later) = oneshot::channel();
        state.waiting.push(Waiting { client: client.id, member, socket: Arc::clone(socket), place });
        Entry::Later(later)
    }

    fn has_room(&self, state: &Registry) -> bool {
        state.counted < self.limit && state.open.len() < Connections::most(self.limit)
    }

    fn add(self: &Arc<Self>, client: u64, member: Member, socket: Arc<OwnedFd>, state: &mut Registry) -> Place {
        let last_use = Arc::new(LastUse::new(self.epoch));
        state.open.insert(client, Open { member, last_use, socket: Some(socket) });
        state.counted += 1;
        state.peak = state.peak.max(state.counted);
        *state.groups.entry(member.0).or_default() += 1;
        *state.members.entry(member).or_default() += 1;
        Place { connections: Arc::clone(self), client }
    }

    /// Ends a connection if a peer has more than its share, compared with a new client of `member`.
    fn displace_for(&self, member: Member, state: &mut Registry) {
        let of_group = state.groups.get(&member.0).copied().unwrap_or_default();
        let of_member = state.members.get(&member).copied().unwrap_or_default();
        let largest = state.groups.iter().max_by_key(|(_, count)| **count).map(|(group, count)| (*group, *count));
        let Some((largest, count)) = largest else { return };
        // From its own group a client only takes from a member that has more.
        let (group, least) = if count > of_group + 1 { (largest, 0) } else { (member.0, of_member + 2) };
        let members = state.members.iter().filter(|((of, _), count)| *of == group && **count >= least);
        let Some(victim) = members.max_by_key(|(_, count)| **count).map(|(member, _)| *member) else { return };
        let unused = |open: &Open| open.last_use.at.load(Ordering::Relaxed);
        let candidates = state.open.iter_mut().filter(|(_, open)| open.member == victim && open.socket.is_some());
        let Some((client, open)) = candidates.min_by_key(|(client, open)| (unused(open), **client)) else { return };
        tracing::warn!("connection {client}: closed: there are {} connections, most of them of its peer", self.limit);
        // The connection finds that its client has gone.
        if let Some(socket) = open.socket.take() {
            let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        }
        state.uncount(victim);
    }

    /// The connection of this client, for [`LastUse::note`].
    pub fn last_use(&self, client: u64) -> Option<Arc<LastUse>> {
        self.state().open.get(&client).map(|open| Arc::clone(&open.last_use))
    }

    /// How many connections there are.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            account: "connections".to_string(),
            limit: self.limit as u64,
            used: state.counted as u64,
            peak: state.peak as u64,
        }
    }

    /// A connection has closed. Others may enter, those of the peers with the fewest first.
    fn leave(self: &Arc<Self>, client: u64) {
        {
            let mut state = self.state();
            let Some(open) = state.open.remove(&client) else { return };
            if open.socket.is_some() {
                state.uncount(open.member);
            }
        }
        loop {
            let mut state = self.state();
            if !self.has_room(&state) {
                return;
            }
            let share = |waiting: &Waiting| {
                let of_group = state.groups.get(&waiting.member.0).copied().unwrap_or_default();
                (of_group, state.members.get(&waiting.member).copied().unwrap_or_default())
            };
            let first = (0..state.waiting.len()).min_by_key(|index| (share(&state.waiting[*index]), *index));
            let Some(first) = first else { return };
            let waiting = state.waiting.remove(first);
            let place = self.add(waiting.client, waiting.member, waiting.socket, &mut state);
            // A place that nobody takes comes back here, so the lock is released first.
            drop(state);
            let _ = waiting.place.send(place);
        }
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.state().open.len()
    }
}

/// Whether the client has closed its side before it was served.
fn has_left(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let _ = poll(&mut fds, Some(&Timespec::default()));
    fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

impl Registry {
    /// Whether another client of this member may not even wait.
    fn is_crowded(&self, member: Member) -> bool {
        let of_one = self.waiting.iter().filter(|waiting| waiting.member.0 == member.0).count();
        self.waiting.len() >= MAX_WAITING || of_one >= MAX_WAITING_OF_ONE
    }

    fn uncount(&mut self, member: Member) {
        self.counted -= 1;
        decrement(&mut self.groups, member.0);
        decrement(&mut self.members, member);
    }
}

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.leave(self.client);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    struct Crowd {
        connections: Arc<Connections>,
        next: u64,
        /// The other ends of the sockets.
        ends: Vec<UnixStream>,
    }

    impl Crowd {
        fn of(limit: usize) -> Crowd {
            Crowd { connections: Connections::new(limit), next: 0, ends: Vec::new() }
        }

        fn enter(&mut self, peer: Peer, credentials: Option<(i64, i64, i64)>) -> Entry {
            self.next += 1;
            let (ours, end) = UnixStream::pair().unwrap();
            self.ends.push(end);
            let client = Client::new(self.next, peer, credentials, false);
            let entry = self.connections.enter(&client, &Arc::new(ours.into()));
            // Later connections are used later, although all this takes less than a millisecond.
            if let Some(last_use) = self.connections.last_use(self.next) {
                last_use.at.store(self.next, Ordering::Relaxed);
            }
            entry
        }

        fn from(&mut self, address: &str) -> Entry {
            self.enter(Peer::Ip(format!("{address}:1").parse().unwrap()), None)
        }

        fn process(&mut self, user: i64, process: i64) -> Entry {
            self.enter(Peer::Unix, Some((process, user, 0)))
        }

        /// The numbers of the clients that still count.
        fn stay(&self) -> Vec<u64> {
            let state = self.connections.state();
            state.open.iter().filter(|(_, open)| open.socket.is_some()).map(|(client, _)| *client).collect()
        }
    }

    fn now(entry: Entry) -> Place {
        match entry {
            Entry::Now(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn later(entry: Entry) -> oneshot::Receiver<Place> {
        match entry {
            Entry::Later(place) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flood_of_one_peer_takes_nothing_from_others() {
        let mut crowd = Crowd::of(16);
        let mut places = vec![now(crowd.from("10.0.0.1"))];
        places.extend((0..15).map(|_| now(crowd.from("10.0.0.2"))));
        let _waiting: Vec<_> = (0..MAX_WAITING_OF_ONE).map(|_| later(crowd.from("10.0.0.2"))).collect();
        assert!(matches!(crowd.from("10.0.0.2"), Entry::Refused));
        assert!(crowd.stay().contains(&1));
        // A third peer enters at once. The flood's oldest connection has to go.
        places.push(now(crowd.from("10.0.0.3")));
        let stay = crowd.stay();
        assert!(stay.contains(&1) && !stay.contains(&2) && stay.contains(&3), "{stay:?}");
        // It uses its oldest connection, so the next one is the longest unused.
        crowd.connections.last_use(3).unwrap().note_in_use();
        places.push(now(crowd.from("10.0.0.1")));
        let stay = crowd.stay();
        assert!(stay.contains(&1) && stay.contains(&3) && !stay.contains(&4), "{stay:?}");
        assert_eq!(stay.len(), 16);
    }

    #[test]
    fn peers_share_the_limit_equally_and_then_wait() {
        let mut crowd = Crowd::of(16);
        let mut places: Vec<_> = (0..16).map(|_| now(crowd.from("10.0.0.1"))).collect();
        let mut entered = 0;
        let waits = loop {
            match crowd.from("10.0.0.2") {
                Entry::Now(place) => places.push(place),
                Entry::Later(place) => break place,
                Entry::Refused => panic!("refused"),
            }
            entered += 1;
            // Those that had to go are closed by their tasks.
            let gone = |place: &Place| !crowd.stay().contains(&place.client);
            places.retain(|place| !gone(place));
        };
        assert_eq!(entered, 8);
        let (mut waits, mut another) = (waits, later(crowd.from("10.0.0.1")));
        // A place of the first peer goes to the peer that then has fewer.
        places.remove(0);
        let _entered = another.try_recv().unwrap();
        assert!(waits.try_recv().is_err());
        places.pop();
        assert!(waits.try_recv().is_ok());
    }

    #[test]
    fn many_processes_of_a_user_and_many_addresses_of_a_network_are_one_group() {
        let mut crowd = Crowd::of(16);
        let mut places: Vec<_> = (0..16).map(|process| now(crowd.process(1, 100 + process))).collect();
        places.push(now(crowd.process(2, 1)));
        places.push(now(crowd.process(2, 1)));
        assert_eq!(crowd.stay().len(), 16);
        // Within a group, the process with the most loses.
        let mut crowd = Crowd::of(16);
        let mut places: Vec<_> = vec![now(crowd.process(1, 1))];
        places.extend((0..15).map(|_| now(crowd.process(1, 2))));
        places.push(now(crowd.process(1, 3)));
        let stay = crowd.stay();
        assert!(stay.contains(&1) && !stay.contains(&2), "{stay:?}");

        let mut crowd = Crowd::of(16);
        let mut places: Vec<_> = (0..16).map(|host| now(crowd.from(&format!("[2001:db8::{host:x}]")))).collect();
        places.push(now(crowd.from("[2001:db8:0:1::1]")));
        places.push(now(crowd.from("[2001:db8:0:1::1]")));
        assert_eq!(crowd.stay().len(), 16);
        // The same address over either protocol is the same peer.
        assert_eq!(member_of("10.0.0.1"), member_of("[::ffff:10.0.0.1]"));
    }

    fn member_of(address: &str) -> Member {
        member(&Client::new(1, Peer::Ip(format!("{address}:1").parse().unwrap()), None, false))
    }

    #[test]
    fn waiters_that_have_left_keep_nobody_from_waiting() {
        let mut crowd = Crowd::of(1);
        let _first = now(crowd.from("10.0.0.1"));
        let waiting: Vec<_> = (0..MAX_WAITING_OF_ONE).map(|_| later(crowd.from("10.0.0.1"))).collect();
        assert!(matches!(crowd.from("10.0.0.1"), Entry::Refused));
        // Their tasks have not seen it yet.
        crowd.ends.drain(1..);
        let _next = later(crowd.from("10.0.0.1"));
        assert_eq!(crowd.connections.waiting(), 1);
        drop(waiting);
    }

    #[test]
    fn a_waiter_that_has_gone_leaves_its_place_to_the_next() {
        let mut crowd = Crowd::of(1);
        let first = now(crowd.from("10.0.0.1"));
        drop(later(crowd.from("10.0.0.1")));
        let mut next = later(crowd.from("10.0.0.1"));
        drop(first);
        assert!(next.try_recv().is_ok());
        assert_eq!(crowd.connections.open(), 0);
    }
}
