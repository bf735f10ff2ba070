//! The simulated host does what the contract says.

use rbdkit_filter_sdk::maps::When;
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_sdk::testing::{Disk, Host};

const NONE: CommandFlags = CommandFlags::empty();

/// An opaque filter that exports only reads and writes, and passes them on.
struct Narrow;

impl Filter for Narrow {
    type Params = ();

    fn describe() -> Description {
        Description::new("narrow", "1", "reads and writes")
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Narrow)
    }
}

impl Reads for Narrow {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Narrow {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

mod narrow {
    use super::Narrow;
    rbdkit_filter_sdk::export!(Narrow: reads, writes);
}

#[test]
fn what_an_opaque_filter_does_not_export_is_replaced_or_withdrawn() {
    let host = Host::new(Disk::pattern(8192)).serve::<Narrow>(&[]).unwrap();
    let client = host.connect().unwrap();
    assert_eq!(
        (client.can().zero, client.can().cache, client.can().fua),
        (Support::Emulate, Support::Emulate, Support::Emulate)
    );
    host.take_calls();
    client.zero(10, 20, CommandFlags::FUA).unwrap();
    assert_eq!(host.take_calls(), ["pwrite 10 20", "flush"]);
    assert_eq!(host.disk()[9..31].iter().filter(|byte| **byte == 0).count(), 20);
    client.cache(0, 100).unwrap();
    assert_eq!(host.take_calls(), ["pread 0 100"]);
    assert_eq!(client.trim(0, 10, NONE), Err(Errno::Einval));
    assert_eq!(client.zero(0, 10, CommandFlags::FAST_ZERO), Err(Errno::Enotsup));
    let data = Extent { offset: 5, length: 10, kind: ExtentType::empty() };
    assert_eq!(client.extents(5, 10, NONE), Ok(vec![data]));
}

#[test]
fn a_read_only_disk_and_a_read_only_client_cannot_write() {
    let host = Host::new(Disk::pattern(512).read_only()).serve::<Narrow>(&[]).unwrap();
    assert_eq!(host.connect().unwrap().pwrite(0, b"x", NONE), Err(Errno::Erofs));
    let host = Host::new(Disk::pattern(512)).serve::<Narrow>(&[]).unwrap();
    assert_eq!(host.connect_read_only().unwrap().pwrite(0, b"x", NONE), Err(Errno::Erofs));
}

#[test]
fn a_range_outside_of_the_disk_does_not_reach_the_filter() {
    let host = Host::new(Disk::pattern(512)).serve::<Narrow>(&[]).unwrap();
    let client = host.connect().unwrap();
    host.take_calls();
    assert_eq!(client.pread(500, 13), Err(Errno::Einval));
    assert_eq!(client.pread(u64::MAX, 1), Err(Errno::Einval));
    assert!(host.take_calls().is_empty());
}

#[test]
fn a_fault_meets_the_next_call_of_its_operation_and_no_other() {
    let host = Host::new(Disk::pattern(512)).serve::<Narrow>(&[]).unwrap();
    let client = host.connect().unwrap();
    host.fail_next("pread", Errno::Enomem);
    assert_eq!(client.pwrite(0, b"x", NONE), Ok(()));
    assert_eq!(client.pread(0, 1), Err(Errno::Enomem));
    assert_eq!(client.pread(0, 1).unwrap(), b"x");
    host.fail_next("open", Errno::Enoent);
    assert_eq!(host.connect().err(), Some(Errno::Enoent));
}

#[test]
#[should_panic(expected = "pred cannot fail here, only open, block-size, pread")]
fn a_misspelt_fault_is_refused() {
    Host::new(Disk::pattern(512)).serve::<Narrow>(&[]).unwrap().fail_next("pred", Errno::Eio);
}

#[test]
#[should_panic(expected = "natively there is only the simulated host, rbdkit_filter_sdk::testing::Host")]
fn a_function_of_the_host_outside_of_a_request_says_where_to_call_it() {
    let _ = next::get_size();
}

/// What one request of [`Script`] does.
type Steps = fn(u64) -> Result<(), Errno>;

thread_local! {
    static STEPS: std::cell::Cell<Steps> = const { std::cell::Cell::new(|_| Ok(())) };
}

/// Each read runs the steps of its test, with the offset.
struct Script {
    calls: std::cell::Cell<u32>,
}

impl Filter for Script {
    type Params = ();

    fn describe() -> Description {
        Description::new("script", "1", "runs a test").transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Script { calls: std::cell::Cell::new(0) })
    }
}

impl Reads for Script {
    fn pread(&self, offset: u64, _length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.calls.set(self.calls.get() + 1);
        slots::replace(Scope::Server, 15, slots::get(Scope::Server, 15).version, self.calls.get().into(), 0, 0, 0);
        STEPS.get()(offset)
    }
}

mod script {
    use super::Script;
    rbdkit_filter_sdk::export!(Script: reads);
}

/// Runs requests at these offsets, of one byte each, on one connection, with these steps. Returns
/// the answers.
fn run(steps: Steps, offsets: &[u64]) -> Vec<Result<Vec<u8>, Errno>> {
    STEPS.set(steps);
    let host = Host::new(Disk::pattern(512)).quota(8192).serve::<Script>(&[]).unwrap();
    let client = host.connect().unwrap();
    offsets.iter().map(|offset| client.pread(*offset, 1)).collect()
}

#[test]
fn a_parallel_filter_does_not_find_what_it_kept_in_its_memory() {
    STEPS.set(|_| Ok(()));
    let host = Host::new(Disk::pattern(512)).serve::<Script>(&[]).unwrap();
    let client = host.connect().unwrap();
    client.pread(0, 1).unwrap();
    client.pread(0, 1).unwrap();
    STEPS.set(|_| {
        // Each of the two instances has served one request before this one, which is the second.
        Payload.write(0, &[slots::get(Scope::Server, 15).a as u8]);
        Ok(())
    });
    assert_eq!(client.pread(0, 1).unwrap(), [2]);
}

#[test]
fn changes_of_a_map_are_published_as_the_contract_says() {
    fn map(offset: u64) -> Result<(), Errno> {
        maps::resize(Scope::Exportname, 0, 512, 5120)?;
        let count = || maps::count(Scope::Exportname, 0, 1) as u8;
        match offset {
            0 => {
                assert_eq!(maps::set(Scope::Exportname, 0, 0, 2, 1, 1, When::OnSuccess), 0);
                assert_eq!(count(), 0);
            }
            1 => {
                maps::set(Scope::Exportname, 0, 2, 2, 1, 1, When::OnSuccess);
                assert_eq!(maps::set(Scope::Exportname, 0, 4, 2, 1, 1, When::UndoOnFailure), 2);
                assert_eq!(count(), 4);
                return Err(Errno::Eio);
            }
            2 => {
                maps::set(Scope::Exportname, 0, 6, 1, 1, 1, When::Now);
                return Err(Errno::Eio);
            }
            _ => {}
        }
        Payload.write(0, &[count()]);
        Ok(())
    }
    let answers = run(map, &[0, 3, 1, 3, 2, 3]);
    let eio = Err(Errno::Eio);
    assert_eq!(answers, [Ok(vec![0]), Ok(vec![2]), eio.clone(), Ok(vec![2]), eio, Ok(vec![3])]);
}

#[test]
fn a_call_holds_one_lock_and_the_end_of_the_call_releases_it() {
    let lock = |_| {
        let mode = locks::Mode::Exclusive;
        assert_eq!(locks::lock(Scope::Server, 0, 0, mode), Err(Errno::Einval));
        locks::lock(Scope::Server, 0, 1, mode)?;
        assert_eq!(locks::lock(Scope::Server, 5, 1, mode), Err(Errno::Edeadlk));
        Ok(())
    };
    assert!(run(lock, &[0, 0]).iter().all(Result::is_ok));
}

#[test]
fn scratch_keeps_to_its_quota() {
    let scratch = |_| {
        let bytes = Buffer::new(4096)?;
        bytes.fill(.., 7);
        scratch::pwrite(Scope::Exportname, 0, 4096, bytes.id(), 0)?;
        scratch::pwrite(Scope::Exportname, 8192, 4096, bytes.id(), 0)?;
        assert_eq!(scratch::pwrite(Scope::Exportname, 4096, 1, bytes.id(), 0), Err(Errno::Enospc));
        scratch::pread(Scope::Exportname, 8200, 1, PAYLOAD, 0)
    };
    assert_eq!(run(scratch, &[0]), [Ok(vec![7])]);
}

#[test]
fn slots_belong_to_their_scope_and_counts_of_connections_end_with_them() {
    STEPS.set(|_| {
        let all = slots::add_until_close(Scope::Server, 0, 1);
        Payload.write(0, &[(all * 10 + slots::add(Scope::Connection, 0, 1)) as u8]);
        Ok(())
    });
    let host = Host::new(Disk::pattern(512)).serve::<Script>(&[]).unwrap();
    let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
    assert_eq!((one.pread(0, 1).unwrap(), two.pread(0, 1).unwrap()), (vec![11], vec![21]));
    one.close().unwrap();
    assert_eq!(two.pread(0, 1).unwrap(), [22]);
}

#[test]
fn sleeping_moves_the_clock_and_takes_no_time() {
    STEPS.set(|_| server::sleep(3_600_000_000_000));
    let host = Host::new(Disk::pattern(512)).serve::<Script>(&[]).unwrap();
    let client = host.connect().unwrap();
    client.pread(0, 1).unwrap();
    host.fail_next("sleep", Errno::Eshutdown);
    assert_eq!(client.pread(0, 1), Err(Errno::Eshutdown));
    assert_eq!(host.time(), 3_600_000_000_000);
}

#[test]
#[should_panic(expected = "buffer: 0+2 is outside of buffer 0, which has 1 bytes")]
fn what_would_trap_in_a_component_panics() {
    run(|_| next::pread(0, 2, PAYLOAD, 0), &[0]).clear();
}

#[test]
fn an_answer_about_extents_that_breaks_a_rule_fails_and_the_log_says_why() {
    let host = Host::new(Disk::pattern(512)).serve::<Gap>(&[]).unwrap();
    let client = host.connect().unwrap();
    assert_eq!(client.extents(0, 100, NONE), Err(Errno::Eio));
    let log = host.take_log().join("\n");
    assert!(log.starts_with("error: the extent Extent { offset: 1, length: 9"), "{log}");
}

/// Its extents begin too late.
struct Gap;

impl Filter for Gap {
    type Params = ();

    fn describe() -> Description {
        Description::new("gap", "1", "wrong extents").transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Gap)
    }
}

impl Mapping for Gap {
    fn extents(&self, offset: u64, _length: u64, _flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent { offset: offset + 1, length: 9, kind: ExtentType::empty() }])
    }
}

mod gap {
    use super::Gap;
    rbdkit_filter_sdk::export!(Gap: mapping);
}

#[test]
fn the_methods_of_a_buffer_work_on_ranges_of_it() {
    let bytes = |_| {
        let buffer = Buffer::new(200_000)?;
        let mut pieces = Vec::new();
        buffer.modify(1.., |at, bytes| {
            pieces.push((at, bytes.len()));
            bytes.fill(1);
        });
        assert_eq!(pieces, [(1, 65536), (65537, 65536), (131_073, 65536), (196_609, 3391)]);
        assert_eq!((buffer.read(..2), buffer.read(199_999..)), (vec![0, 1], vec![1]));
        buffer.write(0, b"abcdefgh");
        buffer.swap(..8, 4);
        assert_eq!(buffer.read(..=7), b"dcbahgfe");
        buffer.xor(..8, b"\x01\x02", 1);
        assert_eq!(buffer.read(..8), b"fb``jfdd");
        buffer.translate(..8, &std::array::from_fn(|n| (n as u8).to_ascii_uppercase()));
        assert_eq!(buffer.find(1.., b"DD"), Some(5));
        assert_eq!(buffer.find(.., b"nothing"), None);
        let other = Buffer::new(8)?;
        other.copy(0, &buffer, ..8);
        assert_eq!(other.mismatch(.., &buffer, 0), None);
        other.fill(5..6, 0);
        assert_eq!(other.mismatch(2.., &buffer, 2), Some(3));
        assert!(other.is_zero(5..6) && !other.is_zero(..));
        other.write(0, b"12345678");
        assert_eq!(other.crc32c(4.., other.crc32c(..4, 0)), other.crc32c(.., 0));
        assert_eq!((other.sha256(..).len(), other.len()), (32, 8));
        Ok(())
    };
    assert!(run(bytes, &[0]).iter().all(Result::is_ok));
}

#[test]
fn log_macros_format_and_have_levels() {
    STEPS.set(|offset| {
        error!("one");
        warn!("two {offset}");
        info!("three {:?}", "x");
        debug!("four {n}", n = 4);
        Ok(())
    });
    let host = Host::new(Disk::pattern(512)).serve::<Script>(&[]).unwrap();
    host.connect().unwrap().pread(9, 1).unwrap();
    assert_eq!(host.take_log(), ["error: one", "warning: two 9", "info: three \"x\"", "debug: four 4"]);
}

/// Logs the life of a connection.
struct Life;

impl Filter for Life {
    type Params = ();

    fn describe() -> Description {
        Description::new("life", "1", "logs").transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Life)
    }
}

impl Lifecycle for Life {
    fn get_ready(&self) -> Result<(), String> {
        info!("ready, {} connections", server::connections());
        Ok(())
    }
}

impl Names for Life {
    fn default_export(&self, _readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        Ok("main".into())
    }
}

impl Connection for Life {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        info!("open {exportname}");
        next_open::open(readonly, exportname)?;
        Ok(7)
    }

    fn prepare(&self) -> Result<(), Errno> {
        info!("prepare {} of {}", request::handle(), next::get_size()?);
        next::flush()
    }

    fn finalize(&self) -> Result<(), Errno> {
        info!("finalize");
        next::flush()
    }

    fn close(&self) {
        info!("close, next: {:?}", next::get_size().err().map(|error| error.name()));
    }
}

mod life {
    use super::Life;
    rbdkit_filter_sdk::export!(Life: lifecycle, names, connection);
}

#[test]
fn a_connection_lives_as_the_contract_says() {
    let host = Host::new(Disk::zeroes(512)).serve::<Life>(&[]).unwrap();
    assert_eq!(host.take_log(), ["info: ready, 0 connections"]);
    assert_eq!(host.default_export(), Ok("main".into()));
    assert_eq!(host.list_exports().unwrap().len(), 1);
    let client = host.connect_to("main").unwrap();
    host.fail_next("flush", Errno::Enospc);
    assert_eq!(client.close(), Err(Errno::Enospc));
    let lines = ["info: open main", "info: prepare 7 of 512", "info: finalize", "info: close, next: Some(\"enxio\")"];
    assert_eq!(host.take_log(), lines);
}

#[test]
fn what_did_not_begin_is_not_ended() {
    let host = Host::new(Disk::zeroes(512)).serve::<Life>(&[]).unwrap();
    host.take_log();
    host.fail_next("open", Errno::Enoent);
    assert_eq!(host.connect().err(), Some(Errno::Enoent));
    assert_eq!(host.take_log(), ["info: open "]);
    host.fail_next("flush", Errno::Eio);
    assert_eq!(host.connect().err(), Some(Errno::Eio));
    assert_eq!(host.take_log()[2], "info: close, next: Some(\"enxio\")");
}

params! {
    /// Files that the operator names.
    struct Named {
        /// Files with text.
        text: Vec<ReadFile>,
        /// Where to write.
        to: AppendFile,
        /// Whether to write.
        on: BoolOrWatch = BoolOrWatch::Fixed(false),
    }
}

/// Each read appends the texts to a file.
struct Appends {
    named: Named,
}

impl Filter for Appends {
    type Params = Named;

    fn describe() -> Description {
        Description::new("appends", "1", "appends").transparent()
    }

    fn configure(named: Named) -> Result<Self, String> {
        Ok(Appends { named })
    }
}

impl Reads for Appends {
    fn pread(&self, _offset: u64, _length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        if self.named.on.holds() {
            for file in &self.named.text {
                self.named.to.append(&file.read(1, file.size()? as u32)?)?;
            }
        }
        Ok(())
    }
}

mod appends {
    use super::Appends;
    rbdkit_filter_sdk::export!(Appends: reads);
}

#[test]
fn parameters_that_name_files_are_types_with_the_files_functions() {
    let host = || Host::new(Disk::zeroes(512)).file("/a", b"1one").file("/b", b"2two");
    let missing = host().serve::<Appends>(&["text=/a"]).err();
    assert_eq!(missing.as_deref(), Some("appends: the parameter to=<PATH-APPEND> is required: Where to write."));
    let served = host().serve::<Appends>(&["text=/a", "to=/log", "text=/b", "on=/switch"]).unwrap();
    let client = served.connect().unwrap();
    client.pread(0, 1).unwrap();
    assert_eq!(served.file("/log"), None);
    served.set_file("/switch", Some(b""));
    client.pread(0, 1).unwrap();
    assert_eq!(served.file("/log").as_deref(), Some(&b"onetwo"[..]));
    served.set_file("/b", None);
    assert_eq!(client.pread(0, 1), Err(Errno::Enoent));
    assert_eq!(
        host().serve::<Appends>(&["to=/x", "on=maybe"]).err().as_deref(),
        Some("on=maybe: is neither true, false nor an absolute path")
    );
}

params! {
    /// What is kept after the server has ended.
    struct Kept {
        /// The file.
        kept: StorageFile,
        /// Text, or a script that makes it.
        text: StringOrScript,
    }
}

/// Writes go to a file that is kept, and reads come from it. A flush writes the text at the
/// beginning.
struct Keeps {
    kept: Kept,
}

impl Filter for Keeps {
    type Params = Kept;

    fn describe() -> Description {
        Description::new("keeps", "1", "keeps").transparent()
    }

    fn configure(kept: Kept) -> Result<Self, String> {
        Ok(Keeps { kept })
    }
}

impl Reads for Keeps {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.kept.kept.pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Keeps {
    fn pwrite(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.kept.kept.pwrite(offset, length, PAYLOAD, 0)
    }
}

impl Flushes for Keeps {
    fn flush(&self) -> Result<(), Errno> {
        let text = match &self.kept.text {
            StringOrScript::Text(text) => text.clone().into_bytes(),
            StringOrScript::Script(script) => script.run(&[("size", &self.kept.kept.size()?.to_string())])?.1,
        };
        self.kept.kept.write(0, &text)?;
        self.kept.kept.flush()
    }
}

mod keeps {
    use super::Keeps;
    rbdkit_filter_sdk::export!(Keeps: reads, writes, flushes);
}

#[test]
fn a_file_is_kept_and_a_script_answers_what_the_test_says() {
    let host = || Host::new(Disk::zeroes(512)).script("date", 0, b"today").quota(400);
    for (text, expected) in [("text=script:date", "today"), ("text=fixed", "fixed")] {
        let served = host().serve::<Keeps>(&["kept=/kept", text]).unwrap();
        let client = served.connect().unwrap();
        client.pwrite(100, b"written", CommandFlags::empty()).unwrap();
        assert_eq!(client.pwrite(395, b"too long", CommandFlags::empty()), Err(Errno::Enospc));
        served.take_calls();
        client.flush().unwrap();
        assert_eq!(client.pread(98, 12).unwrap(), b"\0\0written\0\0\0");
        let script = (text == "text=script:date").then_some("script date size=107");
        assert_eq!(served.take_calls(), script.into_iter().chain(["storage-flush"]).collect::<Vec<_>>());
        served.fail_next("storage-flush", Errno::Eio);
        assert_eq!(client.flush(), Err(Errno::Eio));
        assert!(served.file("/kept").unwrap().starts_with(expected.as_bytes()));
    }
}
