//! Requests and replies with extended headers.

use rbdkit_plugin_api::{BlockSizes, Buffer, Errno, Error, Extents, Fill, Flags, MAX_REQUEST, Span};

use super::super::reply::{Reply, ReplyTo, RequestKind, errno};
use super::super::*;
use super::session;

const COOKIE: u64 = 0x0102_0304_0506_0708;

/// The flag for a payload.
const PAYLOAD: u16 = 32;

fn extended() -> Session {
    Session { reply_format: ReplyFormat::Extended, size: i64::MAX as u64, ..session() }
}

fn message(command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0x21, 0xe4, 0x1c, 0x71];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(COOKIE.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn header(command: u16, flags: u16, offset: u64, length: u64) -> RequestHeader {
    RequestHeader::parse(&message(command, flags, offset, length), ReplyFormat::Extended).unwrap().unwrap()
}

fn checked(command: u16, flags: u16, offset: u64, length: u64) -> Result<Command, Errno> {
    extended().check(&header(command, flags, offset, length)).map_err(|error| error.errno())
}

#[test]
fn a_header_has_32_bytes_and_its_own_magic() {
    let bytes = message(6, 2, 1 << 40, 1 << 33);
    assert_eq!((bytes.len(), ReplyFormat::Extended.header_size(), RequestHeader::MAX_SIZE), (32, 32, 32));
    for length in 0..32 {
        assert_eq!(RequestHeader::parse(&bytes[..length], ReplyFormat::Extended), Ok(None));
    }
    let (offset, length) = (1 << 40, 1 << 33);
    let expected = RequestHeader { flags: 2, command: 6, cookie: COOKIE, offset, length, payload: 0 };
    assert_eq!(RequestHeader::parse(&bytes, ReplyFormat::Extended), Ok(Some(expected)));
    assert_eq!(RequestHeader::parse(&bytes, ReplyFormat::Structured), Err(Violation::RequestMagic(0x21e4_1c71)));
}

#[test]
fn lengths_have_64_bits() {
    let size = i64::MAX as u64;
    for length in [1, u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, 1 << 62, size] {
        let (offset, flags) = (0, Flags::NONE);
        assert_eq!(checked(4, 0, 0, length), Ok(Command::Trim { offset, length, flags }));
        assert_eq!(checked(5, 0, 0, length), Ok(Command::Cache { offset, length }));
        assert_eq!(checked(6, 2, 0, length), Ok(Command::Zero { offset, length, flags }));
        assert_eq!(checked(7, 0, 0, length), Ok(Command::BlockStatus { offset, length, flags }));
    }
    for (offset, length) in [(0, 0), (0, 1 << 63), (1, size), (size, 1), (1 << 62, 1 << 63), (u64::MAX, u64::MAX)] {
        for command in [4, 5, 7] {
            assert_eq!(checked(command, 0, offset, length), Err(Errno::Einval), "{command} {offset} {length}");
        }
        assert_eq!(checked(6, 0, offset, length), Err(Errno::Enospc), "{offset} {length}");
    }
}

#[test]
fn data_of_more_than_64_mib_is_refused_and_a_payload_of_up_to_twice_that_is_skipped() {
    let most = u64::from(MAX_REQUEST);
    assert_eq!(checked(0, 0, 0, most), Ok(Command::Read { offset: 0, length: MAX_REQUEST, dont_fragment: false }));
    for length in [most + 1, u64::from(u32::MAX), 1 << 32, (1 << 32) + 4096, 1 << 62] {
        for flags in [0, 4] {
            assert_eq!(checked(0, flags, 0, length), Err(Errno::Eoverflow), "{length}");
        }
        assert_eq!(checked(1, PAYLOAD, 0, length), Err(Errno::Einval), "{length}");
        let header = header(1, PAYLOAD, 0, length);
        let expected = match length <= 2 * most {
            true => Ok(RequestPayload::Skip(length as u32)),
            false => Err(Violation::PayloadTooLong(length)),
        };
        assert_eq!(Session::payload(&header, &extended().check(&header)), expected);
    }
    assert_eq!(errno(Errno::Eoverflow, RequestKind::Refused), 75);
}

#[test]
fn a_payload_belongs_to_writes_alone() {
    let payload = |command, flags, length| {
        let header = header(command, flags, 0, length);
        let checked = extended().check(&header);
        let errno = checked.as_ref().err().map(Error::errno);
        (errno, Session::payload(&header, &checked))
    };
    assert_eq!(payload(1, PAYLOAD, 4096), (None, Ok(RequestPayload::Data(4096))));
    // Clients of qemu leave the flag out.
    assert_eq!(payload(1, 0, 4096), (None, Ok(RequestPayload::Data(4096))));
    assert_eq!(payload(1, 0, 1 << 40).1, Err(Violation::PayloadTooLong(1 << 40)));
    // For no command is a payload of no bytes right.
    assert_eq!(payload(1, PAYLOAD, 0), (Some(Errno::Enospc), Ok(RequestPayload::None)));
    for command in [0, 3, 4, 5, 6, 8, 99] {
        let skipped = (Some(Errno::Einval), Ok(RequestPayload::Skip(4096)));
        assert_eq!(payload(command, PAYLOAD, 4096), skipped, "{command}");
        let long = Err(Violation::PayloadTooLong(1 << 40));
        assert_eq!(payload(command, PAYLOAD, 1 << 40), (Some(Errno::Einval), long), "{command}");
        assert_eq!(payload(command, PAYLOAD, 0), (Some(Errno::Einval), Ok(RequestPayload::None)), "{command}");
    }
    // DISC is valid whatever its other fields say, and nothing is read after it.
    assert_eq!(payload(2, 0xffff, u64::MAX), (None, Ok(RequestPayload::None)));
    // With compact headers the flag is unknown, and does not bring a payload.
    let mut compact = header(0, PAYLOAD, 0, 4096);
    compact.payload = 0;
    assert_eq!(session().check(&compact).unwrap_err().errno(), Errno::Einval);
}

#[test]
fn a_block_status_may_name_its_context() {
    let filter = |length: u64, id: u32| -> [u8; FILTER_SIZE] {
        [&length.to_be_bytes()[..], &id.to_be_bytes()].concat().try_into().unwrap()
    };
    let request = header(7, PAYLOAD | 8, 512, 12);
    assert!(request.has_filter());
    let (header_of_range, command) = extended().filtered(&request, filter(1 << 40, 1));
    let flags = Flags { req_one: true, ..Flags::NONE };
    assert_eq!(command.unwrap(), Command::BlockStatus { offset: 512, length: 1 << 40, flags });
    assert_eq!((header_of_range.length, header_of_range.payload, header_of_range.flags), (1 << 40, 0, 8));
    // A context that was not agreed upon, a range that is not within the export.
    for (length, id) in [(1 << 40, 0), (1 << 40, 2), (1 << 40, u32::MAX), (0, 1), (u64::MAX, 1), (1 << 63, 1)] {
        let (header, command) = extended().filtered(&request, filter(length, id));
        assert_eq!(command.as_ref().unwrap_err().errno(), Errno::Einval, "{length} {id}");
        assert_eq!(Session::payload(&header, &command), Ok(RequestPayload::None));
    }
    let without = Session { base_allocation: false, ..extended() };
    assert_eq!(without.filtered(&request, filter(512, 1)).1.unwrap_err().errno(), Errno::Einval);
    // No context, two of them, half of one: the payload is dropped.
    for length in [1, 8, 11, 13, 16, 4096] {
        let request = header(7, PAYLOAD, 512, length);
        let checked = extended().check(&request);
        assert!(!request.has_filter());
        assert_eq!(checked.as_ref().unwrap_err().errno(), Errno::Einval);
        assert_eq!(Session::payload(&request, &checked), Ok(RequestPayload::Skip(length as u32)), "{length}");
    }
}

#[test]
fn long_requests_keep_to_the_block_sizes_that_were_negotiated() {
    let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 64 << 10 };
    let held = Session { block_sizes: Some(sizes), size: 1 << 40, ..extended() };
    let refused = |command, offset, length| {
        let flags = if command == 1 { PAYLOAD } else { 0 };
        held.check(&header(command, flags, offset, length)).err().map(|error| error.errno())
    };
    for command in [4, 5, 6, 7] {
        assert_eq!(refused(command, 512, (1 << 39) + 512), None);
        assert_eq!(refused(command, 512, (1 << 39) + 1), Some(Errno::Einval));
        assert_eq!(refused(command, 1, 1 << 39), Some(Errno::Einval));
    }
    for command in [0, 1] {
        assert_eq!(refused(command, 0, 64 << 10), None);
        assert_eq!(refused(command, 0, (64 << 10) + 512), Some(Errno::Einval));
    }
}

fn to(offset: u64) -> ReplyTo {
    ReplyTo { format: ReplyFormat::Extended, cookie: COOKIE, offset }
}

fn bytes(answer: &Reply) -> Vec<u8> {
    let bytes: Vec<u8> = answer.slices().flatten().copied().collect();
    assert_eq!(answer.length(), bytes.len());
    bytes
}

fn chunk(flags: u8, kind: [u8; 2], offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x6e, 0x8a, 0x27, 0x8c, 0, flags];
    bytes.extend(kind);
    bytes.extend(COOKIE.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend((payload.len() as u64).to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn every_reply_repeats_cookie_and_offset_of_its_request() {
    assert_eq!(bytes(&Reply::done(to(77))), chunk(1, [0, 0], 77, b""));
    let error = Error::new(Errno::Enospc, "full");
    assert_eq!(bytes(&Reply::error(to(77), 28, &error)), chunk(1, [0x80, 1], 77, b"\0\0\0\x1c\0\x04full"));
    let long = Error::new(Errno::Eio, "x".repeat(10_000));
    assert_eq!(bytes(&Reply::error(to(0), 5, &long)).len(), 32 + 6 + 4096);

    let filled = Buffer::from_vec(vec![7; 100]);
    let expected = [&77u64.to_be_bytes()[..], &[7; 100]].concat();
    assert_eq!(bytes(&Reply::data(to(77), RequestKind::Plain, filled)), chunk(1, [0, 1], 77, &expected));
    let expected = [&77u64.to_be_bytes()[..], &[0, 0, 0, 100]].concat();
    let hole = Reply::data(to(77), RequestKind::Plain, Buffer::new(100));
    assert_eq!(bytes(&hole), chunk(1, [0, 2], 77, &expected));
}

#[test]
fn parts_of_a_read_have_an_offset_of_their_own_beside_that_of_the_request() {
    let mut buffer = Buffer::from_vec(vec![7; 12_288]);
    buffer.mark(Span::new(4096, 4096), Fill::Zero);
    let mut expected = Vec::new();
    let data = |at: u64| [&at.to_be_bytes()[..], &[7; 4096]].concat();
    expected.extend(chunk(0, [0, 1], 512, &data(512)));
    expected.extend(chunk(0, [0, 2], 512, &[&4608u64.to_be_bytes()[..], &4096u32.to_be_bytes()].concat()));
    expected.extend(chunk(1, [0, 1], 512, &data(8704)));
    assert!(bytes(&Reply::data(to(512), RequestKind::Plain, buffer)) == expected);
}

#[test]
fn extents_have_64_bits_for_length_and_flags() {
    let mut extents = Extents::new(1 << 40, 1 << 41);
    extents.push(4096, false, false);
    extents.push(1 << 41, true, true);
    extents.push(512, false, true);
    let mut body = vec![0, 0, 0, 1, 0, 0, 0, 3];
    for (length, flags) in [(4096u64, 0u64), (1 << 41, 3), (512, 2)] {
        body.extend(length.to_be_bytes());
        body.extend(flags.to_be_bytes());
    }
    assert_eq!(bytes(&Reply::block_status(to(1 << 40), &extents, 100)), chunk(1, [0, 6], 1 << 40, &body));
    body[7] = 1;
    assert_eq!(bytes(&Reply::block_status(to(1 << 40), &extents, 0)), chunk(1, [0, 6], 1 << 40, &body[..24]));
}
