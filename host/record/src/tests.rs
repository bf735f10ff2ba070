//! What is written can be read, damage is found, and a file that takes nothing holds nobody up.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rbdkit_chain::{Chain, Hop};
use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Client, ConfigError, Done, Errno, Extent, Flags, Handle, Op, OpenArgs,
    Param, Peer, Plugin, Pool, Result, Span, Support,
};

use crate::format::{
    Answer, Call, ClientFacts, ENTRY_HEADER, End, Entry, FILE_HEADER, Finish, Frame, Gate, GivenParameter, Kind,
    ListedExport, MAGIC, MAX_BODY, Outcome, Payload, Reason, Session, Start,
};
use crate::{Options, ReadError, Reader, Recorder, recording_layer};

fn parameters() -> Vec<GivenParameter> {
    let given = |key: &str, kind: &str, value: Option<&str>| GivenParameter {
        key: key.into(),
        kind: kind.into(),
        value: value.map(str::to_string),
    };
    vec![given("size", "size", Some("4096")), given("file", "path-read", None)]
}

fn session() -> Session {
    Session {
        program: "0.1.0".into(),
        layer: "cow".into(),
        is_filter: true,
        has_payloads: true,
        began: 7,
        parameters: parameters(),
    }
}

fn start(number: u64, call: Call<'_>) -> Entry<'_> {
    let handle = if call.kind().is_before_open() { 0 } else { 3 };
    Entry::Start(Start { number, time: number, gate: Gate::Below, handle, call })
}

fn end(number: u64, kind: Kind, outcome: Outcome<'_>) -> Entry<'_> {
    Entry::End(End { number, time: number + 1, kind, outcome })
}

/// A record with every kind of entry.
fn entries() -> Vec<Entry<'static>> {
    let flags = Flags { fua: true, req_one: true, ..Flags::NONE };
    let can = Capabilities { trim: true, cache: Support::Native, ..Capabilities::READ_WRITE_FLUSH };
    let bytes = |count: usize| Payload::Bytes(Cow::Owned((0..count).map(|at| at as u8).collect()));
    let extent = |offset, length, hole| Extent { offset, length, hole, zero: !hole };
    let sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: u32::MAX };
    let calls = [
        (
            Call::Open { client: 9, readonly: true, name: "é".into() },
            Outcome::Answered(Answer::Opened { size: 1 << 40, can }),
        ),
        (Call::Pread { offset: 5, length: 100 }, Outcome::Answered(Answer::Data(bytes(100)))),
        (Call::Pread { offset: 5, length: 100 }, Outcome::Answered(Answer::Data(Payload::Zeroes))),
        (Call::Pread { offset: 5, length: 100 }, Outcome::Failed(Errno::Enotsup)),
        (Call::Pwrite { offset: 1 << 39, length: 3, flags, payload: bytes(3) }, Outcome::Answered(Answer::Done)),
        (Call::Pwrite { offset: 0, length: 3, flags, payload: Payload::Digest([4; 16]) }, Outcome::Dropped),
        (Call::Flush, Outcome::Answered(Answer::Done)),
        (Call::Trim { offset: 0, length: 1 << 33, flags }, Outcome::Answered(Answer::Done)),
        (Call::Zero { offset: 0, length: 1 << 33, flags }, Outcome::Answered(Answer::Done)),
        (Call::Cache { offset: 0, length: 1 << 33 }, Outcome::Answered(Answer::Done)),
        (
            Call::Extents { offset: 10, length: 100, flags },
            Outcome::Answered(Answer::Extents(vec![extent(10, 5, false), extent(15, 1 << 20, true)])),
        ),
        (Call::BlockSizes, Outcome::Answered(Answer::BlockSizes(Some(sizes)))),
        (Call::BlockSizes, Outcome::Answered(Answer::BlockSizes(None))),
        (Call::Description, Outcome::Answered(Answer::Description(Some("a disk".into())))),
        (Call::Disk, Outcome::Answered(Answer::Disk(None))),
        (Call::Finalize, Outcome::Answered(Answer::Done)),
        (Call::Close, Outcome::Answered(Answer::Done)),
    ];
    let peers = [
        Peer::Unknown,
        Peer::Unix,
        Peer::Vsock { cid: 3, port: 1 << 31 },
        Peer::Ip("127.0.0.1:10809".parse().unwrap()),
        Peer::Ip("[fe80::1%7]:65535".parse().unwrap()),
    ];
    let preconnects = peers.into_iter().enumerate().map(|(at, peer)| {
        let credentials = (at % 2 == 1).then_some((1, -1, i64::MIN));
        let security_context = (at > 2).then(|| "a_u:b_r:c_t".into());
        let facts = ClientFacts { peer, credentials, security_context, tls: at == 1 };
        (Call::Preconnect { client: at as u64, readonly: at == 2, facts }, Outcome::Answered(Answer::Done))
    });
    let listed = |name: &'static str, description: Option<&'static str>| ListedExport {
        name: name.into(),
        description: description.map(Into::into),
    };
    let list = vec![listed("a", None), listed("", Some("é"))];
    let before = [
        (Call::ListExports { client: 1, readonly: false }, Outcome::Answered(Answer::Exports(list))),
        (Call::ListExports { client: 1, readonly: true }, Outcome::Answered(Answer::Exports(Vec::new()))),
        (Call::DefaultExport { client: 1, readonly: true }, Outcome::Answered(Answer::DefaultExport("b".into()))),
        (Call::DefaultExport { client: 1, readonly: false }, Outcome::Failed(Errno::Enoent)),
    ];
    let calls = calls.into_iter().chain(preconnects).chain(before);
    let mut entries = vec![Entry::Session(session())];
    for (number, (call, outcome)) in (1..).zip(calls) {
        let kind = call.kind();
        entries.extend([start(number, call), end(number, kind, outcome)]);
    }
    entries.push(Entry::Finish(Finish { time: 99, lost: 0, reason: Reason::Whole }));
    entries
}

/// The file of these entries, and where each begins.
fn file(entries: &[Entry<'_>]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Frame::file_header().parts().concat();
    let mut begins = Vec::new();
    for entry in entries {
        begins.push(bytes.len());
        bytes.extend(Frame::new(entry.clone()).parts().concat());
    }
    (bytes, begins)
}

/// Reads all entries but the first. The number is where the file was cut.
fn read(bytes: &[u8]) -> Result<(Vec<String>, Option<u64>), ReadError> {
    let mut reader = Reader::new(bytes, bytes.len() as u64)?;
    let mut entries = Vec::new();
    while let Some(read) = reader.next()? {
        entries.push(format!("{:?}", read.entry));
    }
    Ok((entries, reader.cut_at()))
}

#[test]
fn every_entry_is_read_as_it_was_written() {
    let entries = entries();
    let (bytes, _) = file(&entries);
    let (found, cut_at) = read(&bytes).unwrap();
    let expected: Vec<String> = entries[1..].iter().map(|entry| format!("{entry:?}")).collect();
    assert_eq!((found, cut_at), (expected, None));
}

#[test]
fn a_file_that_was_cut_is_read_up_to_its_last_whole_entry() {
    let (bytes, begins) = file(&entries());
    let whole = read(&bytes).unwrap().0;
    for length in begins[1]..bytes.len() {
        let (found, cut_at) = read(&bytes[..length]).unwrap();
        // The last entry that begins here is not whole, unless the file ends just where it begins.
        let begun = begins.iter().rposition(|begin| *begin <= length).unwrap();
        assert_eq!(found, whole[..begun - 1], "{length}");
        assert_eq!(cut_at, (begins[begun] < length).then_some(begins[begun] as u64), "{length}");
    }
    for length in 0..begins[1] {
        assert!(read(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn every_damaged_bit_is_found() {
    let (bytes, begins) = file(&entries());
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = read(&damaged).expect_err("damage");
        match begins.iter().rposition(|begin| *begin <= bit / 8) {
            None => assert!(matches!(error, ReadError::NotARecord | ReadError::Version(_)), "{error}"),
            Some(entry) => {
                assert!(error.to_string().starts_with(&format!("byte {}: the entry", begins[entry])), "{error}");
            }
        }
    }
}

/// An entry with this body, whose checksums are right.
fn entry(body: &[u8]) -> Vec<u8> {
    let mut header = (body.len() as u32).to_le_bytes().to_vec();
    header.extend(crc32c::crc32c(body).to_le_bytes());
    header.extend(crc32c::crc32c(&header[..8]).to_le_bytes());
    [&header, body].concat()
}

/// The body of an entry.
fn body(entry: Entry<'_>) -> Vec<u8> {
    Frame::new(entry).parts().concat()[ENTRY_HEADER..].to_vec()
}

#[test]
fn a_lie_behind_a_right_checksum_is_found() {
    let (opening, begins) = file(&entries()[..3]);
    let wrong = |body: &[u8]| read(&[opening.clone(), entry(body)].concat()).expect_err("a lie").to_string();
    let changed = |made: Entry<'_>, at: usize, to: &[u8]| {
        let mut bytes = body(made);
        bytes[at..at + to.len()].copy_from_slice(to);
        wrong(&bytes)
    };
    let at = format!("byte {}: ", opening.len());
    let says = |line: String, what: &str| assert_eq!(line, format!("{at}{what}"));
    let pread = || start(50, Call::Pread { offset: 0, length: 8 });
    // Kind of entry, number, time, gate, handle and kind of call come before the offset.
    let (handle, kind, offset) = (18, 22, 23);
    says(wrong(&[]), "the entry ends before its kind");
    says(wrong(&[9]), "the kind of entry is 9, which is not defined");
    says(wrong(&body(pread())[..30]), "the entry ends before its offset");
    says(wrong(&[body(pread()), vec![0]].concat()), "the entry has 1 bytes too many");
    says(changed(pread(), kind, &[16]), "the kind of call is 16, which is not defined");
    let asked = || start(50, Call::ListExports { client: 1, readonly: false });
    says(changed(asked(), handle, &[3]), "the call is of no handle, and names one");
    says(changed(asked(), offset + 8, &[2]), "the mode is 2, which is not defined");
    let facts = ClientFacts { peer: Peer::Unix, credentials: None, security_context: None, tls: false };
    let preconnect = start(50, Call::Preconnect { client: 1, readonly: false, facts });
    says(changed(preconnect, offset + 9, &[5]), "the sort of address is 5, which is not defined");
    // A list that is said to be long takes no memory before its entries are read.
    let listing = [opening.clone(), Frame::new(asked()).parts().concat()].concat();
    let mut told = body(end(50, Kind::ListExports, Outcome::Dropped));
    *told.last_mut().unwrap() = 0;
    told.extend(u32::MAX.to_le_bytes());
    let error = read(&[listing.clone(), entry(&told)].concat()).unwrap_err().to_string();
    assert_eq!(error, format!("byte {}: the entry ends before its export's name", listing.len()));
    says(changed(pread(), handle, &[4]), "the call is of a handle that was not opened");
    says(changed(pread(), 17, &[0]), "the call is of a handle that was not opened");
    says(changed(pread(), offset, &[0xff; 8]), "the range of 8 bytes at 18446744073709551615 is not possible");
    let too_long = (64u64 << 20) + 1;
    says(changed(pread(), offset + 8, &too_long.to_le_bytes()), "the range of 67108865 bytes at 0 is not possible");
    says(changed(pread(), offset + 8, &[0]), "the range of 0 bytes at 0 is not possible");
    says(changed(pread(), offset + 16, &[1]), "the call has no such flag");
    says(changed(pread(), offset + 16, &[16]), "the set of flags is 16, which is not defined");
    says(
        wrong(&body(start(50, Call::Open { client: 1, readonly: false, name: "".into() }))),
        "a handle is opened twice",
    );
    says(wrong(&body(end(50, Kind::Flush, Outcome::Dropped))), "a flush of the number 50 ends that did not begin");
    says(changed(end(1, Kind::Open, Outcome::Failed(Errno::Eio)), 19, &[77]), "the error is 77, which is not defined");
    says(wrong(&body(Entry::Session(session()))), "a second entry says what is recorded");
    let payload = Payload::Bytes(Cow::Borrowed(b"abc"));
    let pwrite = start(50, Call::Pwrite { offset: 0, length: 4, flags: Flags::NONE, payload });
    says(wrong(&body(pwrite)), "the payload has 3 bytes, and its request 4");
    let long = "x".repeat(4096);
    let open = start(50, Call::Open { client: 1, readonly: false, name: long.into() });
    says(changed(open, offset + 9, &4097u16.to_le_bytes()), "the export's name is not a text of at most 4096 bytes");
    // Extents belong to a call that is under way.
    let asked = start(60, Call::Extents { offset: i64::MAX as u64 - 10, length: 10, flags: Flags::NONE });
    let before = [opening.clone(), Frame::new(asked).parts().concat()].concat();
    for (count, length) in [(0u32, 1u64), (129, 1), (1, 0), (1, 11), (1, u64::MAX)] {
        let mut told = body(end(60, Kind::Extents, Outcome::Dropped));
        *told.last_mut().unwrap() = 0;
        told.extend(count.to_le_bytes());
        (0..count).for_each(|_| told.extend([&length.to_le_bytes()[..], &[0]].concat()));
        let error = read(&[before.clone(), entry(&told)].concat()).unwrap_err().to_string();
        assert_eq!(error, format!("byte {}: the extents are not possible", before.len()), "{count} {length}");
    }
    // A length that no entry has, with a right checksum.
    let mut header = (MAX_BODY + 1).to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    says(
        read(&[opening.clone(), header].concat()).unwrap_err().to_string(),
        "the entry is said to have 67112961 bytes, more than the 67112960 that are possible",
    );
    let finish = Frame::new(Entry::Finish(Finish { time: 0, lost: 0, reason: Reason::Whole })).parts().concat();
    let error = read(&[opening.clone(), finish.clone(), finish].concat()).unwrap_err().to_string();
    assert!(error.ends_with("an entry follows the last one"), "{error}");
    assert_eq!(begins[0] as u64, FILE_HEADER);
}

/// Version 1 has neither parameters nor calls before something is open.
#[test]
fn a_record_of_version_1_is_read_and_has_nothing_of_version_2() {
    let header = [&MAGIC[..], &1u32.to_le_bytes()].concat();
    // Number of parameters, and then nothing.
    let session = body(Entry::Session(Session { parameters: Vec::new(), ..session() }));
    let session = entry(&session[..session.len() - 2]);
    let old: Vec<u8> =
        entries().iter().skip(1).take(34).flat_map(|entry| Frame::new(entry.clone()).parts().concat()).collect();
    let bytes = [&header[..], &session, &old].concat();
    assert_eq!(read(&bytes).unwrap().0.len(), 34);
    assert_eq!(Reader::new(&bytes[..], bytes.len() as u64).unwrap().session().parameters, []);
    let new = Frame::new(start(99, Call::DefaultExport { client: 1, readonly: false })).parts().concat();
    let error = read(&[bytes, new].concat()).unwrap_err().to_string();
    assert!(error.ends_with("the kind of call is 15, which is not defined"), "{error}");
    for version in [0u32, 3] {
        let other = [&MAGIC[..], &version.to_le_bytes(), &session].concat();
        let error = read(&other).unwrap_err().to_string();
        assert_eq!(error, format!("is a record of version {version}, and this program reads versions 1 to 2"));
    }
}

/// A disk that takes everything and counts its calls.
#[derive(Default)]
struct Counting(Arc<AtomicU64>);

impl Plugin for Counting {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        Err(param.unknown("counting"))
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle = Arc::new(Counting(Arc::clone(&self.0)));
        Box::pin(async { Ok(handle as Arc<dyn Handle>) })
    }
}

impl Handle for Counting {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(1 << 30))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities::READ_WRITE_FLUSH))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, _: u64) -> Op<Done> {
        buffer.set_zero(span);
        Op::Ready((buffer, Ok(())))
    }

    fn pwrite(&self, buffer: Buffer, _: Span, _: u64, _: Flags) -> Op<Done> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Op::Ready((buffer, Ok(())))
    }

    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }
}

/// A chain of a recording layer over a disk, one connection to it, and the count of its writes.
async fn recorded(file: File, limit: u64) -> (Arc<Recorder>, Arc<Chain>, Arc<Hop>, Arc<AtomicU64>) {
    let recorder = Recorder::new(Options {
        file: "test.rec".into(),
        program: "test".into(),
        layer: "counting".into(),
        parameters: Vec::new(),
        is_filter: false,
        with_payloads: true,
        limit,
    });
    recorder.start(file, || {}).unwrap();
    let count = Arc::<AtomicU64>::default();
    let plugin = Box::new(Counting(Arc::clone(&count)));
    let chain = Chain::new(vec![recording_layer(&recorder, Gate::Above)], "counting", plugin, Pool::new());
    let top = chain.top(Arc::new(Client::new(1, Peer::Unknown, None, false)));
    let hop = top.open(false, "").await.unwrap();
    (recorder, chain, hop, count)
}

async fn write(hop: &Arc<Hop>, length: usize) {
    let buffer = Buffer::from_vec(vec![1; length]);
    let span = buffer.span();
    hop.pwrite(buffer, span, 0, Flags::NONE).await.1.unwrap();
}

#[tokio::test]
async fn what_is_recorded_of_a_chain_is_whole_once_it_is_finished() {
    let mut file = tempfile::tempfile().unwrap();
    let (recorder, chain, hop, _) = recorded(file.try_clone().unwrap(), 1 << 20).await;
    write(&hop, 4096).await;
    hop.flush().await.unwrap();
    hop.finalize().await.unwrap();
    hop.close().await;
    chain.begin_stop();
    recorder.finish(Duration::from_secs(60));
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let (entries, cut_at) = read(&bytes).unwrap();
    assert_eq!((entries.len(), cut_at), (13, None), "{entries:#?}");
    assert!(entries[12].contains("lost: 0, reason: Whole"), "{entries:#?}");
}

#[tokio::test]
async fn a_file_that_takes_nothing_delays_calls_and_ends_the_record_once_the_server_stops() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (recorder, chain, hop, count) = recorded(File::from(std::os::fd::OwnedFd::from(writer)), 1 << 40).await;
    // The queue has room for 64 MiB, and nobody reads from the pipe.
    let most = 100;
    let writes = tokio::spawn({
        let hop = Arc::clone(&hop);
        async move {
            for _ in 0..most {
                write(&hop, 1 << 20).await;
            }
        }
    });
    while count.load(Ordering::SeqCst) < 60 {
        tokio::task::yield_now().await;
    }
    // A write that begins now would need room that is not there.
    assert!(!writes.is_finished() && count.load(Ordering::SeqCst) < most);
    chain.begin_stop();
    tokio::time::timeout(Duration::from_secs(60), writes).await.expect("the writes end").unwrap();
    assert_eq!(count.load(Ordering::SeqCst), most);
    // The end does not wait for the file without end either.
    recorder.finish(Duration::from_millis(10));
    drop(reader);
}

#[tokio::test]
async fn a_file_that_fails_ends_the_record_and_calls_go_on() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (recorder, _chain, hop, count) = recorded(File::from(std::os::fd::OwnedFd::from(writer)), 1 << 40).await;
    reader.read_exact(&mut [0; 12]).unwrap();
    drop(reader);
    for _ in 0..100 {
        tokio::time::timeout(Duration::from_secs(60), write(&hop, 1 << 20)).await.expect("the write ends");
    }
    assert_eq!(count.load(Ordering::SeqCst), 100);
    recorder.finish(Duration::from_secs(60));
}

#[tokio::test]
async fn a_record_is_a_beginning_of_what_happened() {
    let mut file = tempfile::tempfile().unwrap();
    let (recorder, _chain, hop, _) = recorded(file.try_clone().unwrap(), 64 << 10).await;
    write(&hop, 20_000).await;
    // This one does not fit, and the small one after it is not recorded either.
    write(&hop, 50_000).await;
    write(&hop, 1).await;
    recorder.finish(Duration::from_secs(60));
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let (entries, _) = read(&bytes).unwrap();
    assert_eq!(entries.len(), 7, "{entries:#?}");
    assert!(entries[6].contains("lost: 4, reason: Limit"), "{entries:#?}");
}
