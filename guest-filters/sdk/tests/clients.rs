//! Clients of the simulated host: what the filter learns of them, several at once, connections that
//! the filter ends, instances that are lost, and other versions of the filter.

use std::cell::Cell;

use rbdkit_filter_sdk::client::{Ending, Inet, Peer};
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_sdk::testing::{Disk, Host};
use rbdkit_filter_sdk::{client, request};

const NONE: CommandFlags = CommandFlags::empty();

/// Logs what it learns of a client, and ends connections. A read at 1 ends its connection after the
/// answer, and a read at 2 at once.
struct Guard;

impl Filter for Guard {
    type Params = ();

    fn describe() -> Description {
        Description::new("guard", "1", "looks at clients").transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Guard)
    }
}

impl Admission for Guard {
    fn preconnect(&self, _readonly: bool) -> Result<(), Errno> {
        let context = client::security_context();
        match context.as_deref() {
            Ok("refused") => Err(Errno::Eperm),
            Ok("ended") => client::disconnect(Ending::AtOnce),
            _ => Ok(()),
        }
    }
}

impl Names for Guard {
    fn list_exports(&self, _readonly: bool, is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        if client::security_context().is_ok() {
            client::disconnect(Ending::AtOnce)?;
        }
        let name = if is_tls { "secret" } else { "public" };
        Ok(vec![ExportEntry { name: name.into(), description: None }])
    }
}

impl Connection for Guard {
    fn open(&self, readonly: bool, name: &str, is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        info!("{:?} {:?} {is_tls}", client::peer_name(), client::peer_credentials().ok());
        info!("{:?} {:?}", client::tls_subject().ok(), client::tls_issuer().ok());
        if name == "ended" {
            client::disconnect(Ending::AfterAnswers)?;
        }
        next_open::open(readonly, name)?;
        Ok(request::connection())
    }

    fn finalize(&self) -> Result<(), Errno> {
        info!("finalize {}", request::handle());
        Ok(())
    }
}

impl Reads for Guard {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        match offset {
            1 => client::disconnect(Ending::AfterAnswers)?,
            2 => client::disconnect(Ending::AtOnce)?,
            _ => {}
        }
        next::pread(offset, length, PAYLOAD, 0)
    }
}

mod guard {
    use super::Guard;
    rbdkit_filter_sdk::export!(Guard: admission, names, connection, reads);
}

#[test]
fn a_filter_learns_of_a_client_what_the_test_says() {
    let host = Host::new(Disk::pattern(512)).serve::<Guard>(&[]).unwrap();
    let address = Peer::Ip(Inet { address: vec![192, 0, 2, 1], port: 7 });
    let far = host.client().peer(address).certificate("CN=me", "CN=ca").connect().unwrap();
    let log = host.take_log();
    assert!(log[0].contains("192, 0, 2, 1") && log[0].ends_with("None true"), "{log:?}");
    assert_eq!(log[1], r#"info: Some("CN=me") Some("CN=ca")"#);
    let near = host.client().credentials(5, 6, 7).connect().unwrap();
    let log = host.take_log();
    assert_eq!(log, [r#"info: Peer::Unix Some((5, 6, 7)) false"#, "info: None None"]);
    assert_eq!(host.client().security_context("refused").connect().err(), Some(Errno::Eperm));
    assert_eq!(host.client().tls().list_exports().unwrap()[0].name, "secret");
    assert_eq!(host.list_exports().unwrap()[0].name, "public");
    drop((far, near));
}

#[test]
fn a_connection_that_the_filter_ends_answers_no_further_request() {
    let host = Host::new(Disk::pattern(512)).serve::<Guard>(&[]).unwrap();
    let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
    host.take_log();
    assert!(one.pread(1, 1).is_ok(), "this answer is still sent");
    assert_eq!(one.disconnected(), Some(Ending::AfterAnswers));
    assert_eq!((one.pread(0, 1), one.pwrite(0, b"x", NONE)), (Err(Errno::Eshutdown), Err(Errno::Eshutdown)));
    assert!(two.pread(0, 1).is_ok(), "another connection is not concerned");
    assert_eq!(two.pread(2, 1), Err(Errno::Eshutdown), "nobody gets this answer");
    assert_eq!((two.flush(), two.disconnected()), (Err(Errno::Eshutdown), Some(Ending::AtOnce)));
    drop((one, two));
    assert_eq!(host.take_log(), ["info: finalize 1", "info: finalize 2"]);
    // Before the export is open, and while it is opened.
    assert_eq!(host.client().security_context("ended").connect().err(), Some(Errno::Eshutdown));
    assert_eq!(host.client().security_context("x").list_exports().err(), Some(Errno::Eshutdown));
    assert_eq!(host.connect_to("ended").err(), Some(Errno::Eshutdown));
    assert!(host.connect().is_ok(), "the next client is not concerned");
    let host = Host::new(Disk::pattern(512)).without_powers().serve::<Guard>(&[]).unwrap();
    let client = host.connect().unwrap();
    assert_eq!((client.pread(1, 1), client.disconnected()), (Err(Errno::Eperm), None));
}

/// Counts the reads of each connection, of the export and of the server in the host, and of the
/// instance in its memory.
struct Counter<const RECOVERY: u8, const VERSION: u32> {
    reads: Cell<u8>,
}

const REPLAY: u8 = 0;
const LOST: u8 = 1;

impl<const RECOVERY: u8, const VERSION: u32> Filter for Counter<RECOVERY, VERSION> {
    type Params = ();

    fn describe() -> Description {
        let recovery = if RECOVERY == LOST { Recovery::Lost } else { Recovery::Replay };
        // The thread model of version 9 is another.
        let model = if VERSION == 9 { ThreadModel::SerializeAllRequests } else { ThreadModel::SerializeRequests };
        let state = if VERSION == 8 { 2 } else { 1 };
        let described = Description::new("counter", "1", "counts").transparent().recovery(recovery);
        described.thread_model(model).state_version(state)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Counter { reads: Cell::new(0) })
    }
}

impl<const RECOVERY: u8, const VERSION: u32> Lifecycle for Counter<RECOVERY, VERSION> {
    fn cleanup(&self) {
        info!("cleanup of version {VERSION}");
    }
}

impl<const RECOVERY: u8, const VERSION: u32> Connection for Counter<RECOVERY, VERSION> {
    fn open(&self, readonly: bool, name: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        if replayed && name == "refused" {
            return Err(Errno::Eio);
        }
        info!("open {name}, replayed: {replayed}");
        next_open::open(readonly, name)?;
        Ok(if replayed { 100 } else { 1 })
    }

    fn prepare(&self) -> Result<(), Errno> {
        info!("prepare {}", request::handle());
        Ok(())
    }
}

impl<const RECOVERY: u8, const VERSION: u32> Reads for Counter<RECOVERY, VERSION> {
    fn pread(&self, _offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.reads.set(self.reads.get() + 1);
        let counts = [Scope::Connection, Scope::Exportname, Scope::Server].map(|scope| slots::add(scope, 0, 1) as u8);
        let bytes = [counts[0], counts[1], counts[2], self.reads.get(), VERSION as u8];
        Payload.write(0, &bytes[..length as usize]);
        Ok(())
    }
}

mod counter {
    use super::Counter;
    type Replay1 = Counter<0, 1>;
    type Lost1 = Counter<1, 1>;
    type Replay2 = Counter<0, 2>;
    type State2 = Counter<0, 8>;
    type Model2 = Counter<0, 9>;
    mod a {
        use super::Replay1;
        rbdkit_filter_sdk::export!(Replay1: lifecycle, connection, reads);
    }
    mod b {
        use super::Lost1;
        rbdkit_filter_sdk::export!(Lost1: lifecycle, connection, reads);
    }
    mod c {
        use super::Replay2;
        rbdkit_filter_sdk::export!(Replay2: lifecycle, connection, reads);
    }
    mod d {
        use super::State2;
        rbdkit_filter_sdk::export!(State2: lifecycle, connection, reads);
    }
    mod e {
        use super::Model2;
        rbdkit_filter_sdk::export!(Model2: lifecycle, connection, reads);
    }
}

#[test]
fn connections_have_their_own_state_and_share_the_rest() {
    let host = Host::new(Disk::zeroes(512)).serve::<Counter<REPLAY, 1>>(&[]).unwrap();
    let (one, two) = (host.connect().unwrap(), host.connect_to("x").unwrap());
    assert_eq!(one.pread(0, 4).unwrap(), [1, 1, 1, 1]);
    assert_eq!(one.pread(0, 4).unwrap(), [2, 2, 2, 2]);
    // The instance is its own, too: the thread model is serialize-requests.
    assert_eq!(two.pread(0, 4).unwrap(), [1, 3, 3, 1]);
    drop(one);
    assert_eq!(host.connect().unwrap().pread(0, 4).unwrap(), [1, 4, 4, 1]);
}

#[test]
fn a_lost_instance_is_replaced_and_its_connections_are_opened_again() {
    let host = Host::new(Disk::zeroes(512)).serve::<Counter<REPLAY, 1>>(&[]).unwrap();
    let (one, two) = (host.connect_to("one").unwrap(), host.connect_to("refused").unwrap());
    assert_eq!(one.pread(0, 4).unwrap(), [1, 1, 1, 1]);
    host.take_log();
    host.take_calls();
    host.restart();
    assert_eq!(host.take_log(), ["info: open one, replayed: true", "info: prepare 100"]);
    assert!(host.take_calls().is_empty(), "next is open already");
    assert_eq!(one.pread(0, 4).unwrap(), [2, 2, 2, 1], "what the host keeps is there, and the memory is new");
    assert_eq!(two.pread(0, 4), Err(Errno::Eshutdown), "a connection that cannot be replayed is lost");
    let host = Host::new(Disk::zeroes(512)).serve::<Counter<LOST, 1>>(&[]).unwrap();
    let client = host.connect().unwrap();
    host.restart();
    assert_eq!(client.pread(0, 4), Err(Errno::Eshutdown));
    assert_eq!(host.connect().unwrap().pread(0, 4).unwrap(), [1, 1, 1, 1]);
}

#[test]
fn another_version_finds_the_state_and_connections_stay_with_theirs() {
    let host = Host::new(Disk::zeroes(512)).serve::<Counter<REPLAY, 1>>(&[]).unwrap();
    let old = host.connect().unwrap();
    assert_eq!(old.pread(0, 5).unwrap(), [1, 1, 1, 1, 1]);
    let next = host.reload::<Counter<REPLAY, 2>>(&[]).unwrap();
    let new = next.connect().unwrap();
    assert_eq!(new.pread(0, 5).unwrap(), [1, 2, 2, 1, 2]);
    assert_eq!(old.pread(0, 5).unwrap(), [2, 3, 3, 2, 1]);
    drop(old);
    host.take_log();
    drop(host);
    assert_eq!(next.take_log(), ["info: cleanup of version 1"]);
    assert_eq!(new.pread(0, 5).unwrap(), [2, 4, 4, 2, 2]);
    let refused = next.reload::<Counter<REPLAY, 8>>(&[]).err().unwrap();
    assert!(refused.starts_with("its state-version is 2, and that of the running version is 1"), "{refused}");
    let refused = next.reload::<Counter<REPLAY, 9>>(&[]).err().unwrap();
    assert_eq!(
        refused,
        "its thread model is serialize_all_requests, and that of the running version is serialize_requests"
    );
    let refused = next.reload::<Guard>(&[]).err().unwrap();
    assert_eq!(refused, "it is the filter guard, and counter is running");
    assert_eq!(new.pread(0, 5).unwrap(), [3, 5, 5, 3, 2]);
    assert!(next.take_log().is_empty(), "what did not start has no cleanup");
}
