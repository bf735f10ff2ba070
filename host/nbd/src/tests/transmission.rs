//! Requests and replies.

use rbdkit_plugin_api::{
    BlockSizes, Buffer, Capabilities, Errno, Error, Extents, Fill, Flags, MAX_REQUEST, Span, Support,
};

use super::super::reply::{Reply, ReplyTo, RequestKind, errno};
use super::super::*;
use super::session;

fn header(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
    let length = u64::from(length);
    let payload = if command == 1 { length } else { 0 };
    RequestHeader { flags, command, cookie: COOKIE, offset, length, payload }
}

fn structured(offset: u64) -> ReplyTo {
    ReplyTo { format: ReplyFormat::Structured, cookie: COOKIE, offset }
}

const SIMPLE: ReplyTo = ReplyTo { format: ReplyFormat::Simple, cookie: COOKIE, offset: 0 };

fn refused(session: &Session, command: u16, flags: u16, offset: u64, length: u32) -> Option<Errno> {
    session.check(&header(command, flags, offset, length)).err().map(|error| error.errno())
}

#[test]
fn a_request_is_taken_apart_once_it_is_whole() {
    let bytes = b"\x25\x60\x95\x13\0\x05\0\x07ABCDEFGH\0\0\0\0\0\0\x10\0\0\0\x02\0and more";
    let cookie = u64::from_be_bytes(*b"ABCDEFGH");
    let expected = RequestHeader { flags: 5, command: 7, cookie, offset: 0x1000, length: 0x200, payload: 0 };
    for format in [ReplyFormat::Simple, ReplyFormat::Structured] {
        assert_eq!(format.header_size(), 28);
        for length in 0..28 {
            assert_eq!(RequestHeader::parse(&bytes[..length], format), Ok(None));
        }
        assert_eq!(RequestHeader::parse(&bytes[..28], format), Ok(Some(expected)));
        assert_eq!(RequestHeader::parse(bytes, format), Ok(Some(expected)));
        assert_eq!(RequestHeader::parse(b"GET / HTTP/1.1", format), Err(Violation::RequestMagic(0x4745_5420)));
    }
    assert_eq!(RequestHeader::parse(bytes, ReplyFormat::Extended), Err(Violation::RequestMagic(0x2560_9513)));
}

#[test]
fn flags_become_what_the_layers_understand() {
    let session = session();
    let check = |command, flags| session.check(&header(command, flags, 512, 1024)).unwrap();
    let (offset, length) = (512, 1024);
    assert_eq!(check(0, 0), Command::Read { offset, length: 1024, dont_fragment: false });
    assert_eq!(check(0, 4), Command::Read { offset, length: 1024, dont_fragment: true });
    assert_eq!(check(1, 1), Command::Write { offset, length: 1024, flags: Flags::FUA });
    assert_eq!(check(4, 0), Command::Trim { offset, length, flags: Flags::NONE });
    assert_eq!(check(5, 0), Command::Cache { offset, length });
    let zero = |flags| Command::Zero { offset, length, flags };
    assert_eq!(check(6, 0), zero(Flags { may_trim: true, ..Flags::NONE }));
    assert_eq!(check(6, 2 | 1), zero(Flags::FUA));
    assert_eq!(check(6, 16), zero(Flags { may_trim: true, fast_zero: true, ..Flags::NONE }));
    let status = Command::BlockStatus { offset, length, flags: Flags { req_one: true, ..Flags::NONE } };
    assert_eq!(check(7, 8), status);
    assert!(matches!(session.check(&header(3, 0, 0, 0)), Ok(Command::Flush)));
    // DISC is valid whatever its other fields say.
    assert!(matches!(session.check(&header(2, 0xffff, u64::MAX, u32::MAX)), Ok(Command::Disconnect)));
}

#[test]
fn each_flag_is_for_its_command_alone() {
    let session = session();
    let allowed: [(u16, &[u16]); 7] = [(0, &[4]), (1, &[]), (3, &[]), (4, &[]), (5, &[]), (6, &[2, 16]), (7, &[8])];
    for (command, own) in allowed {
        let (offset, length) = if command == 3 { (0, 0) } else { (0, 512) };
        for bit in 0..16 {
            let flag = 1u16 << bit;
            let expected = if flag == 1 || own.contains(&flag) { None } else { Some(Errno::Einval) };
            assert_eq!(refused(&session, command, flag, offset, length), expected, "command {command} flag {flag:#x}");
        }
    }
}

#[test]
fn every_command_keeps_to_the_block_sizes_that_were_negotiated() {
    let size = (1 << 20) + 100;
    let free = Session { size, ..session() };
    let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 64 << 10 };
    let held = Session { block_sizes: Some(sizes), ..free };
    let ranges = [
        (0, 512, true),
        (1024, 4096, true),
        (1, 511, false),
        (1, 512, false),
        (0, 100, false),
        (512, 513, false),
        // The tail, which no aligned request reaches.
        (1 << 20, 100, true),
        ((1 << 20) - 512, 612, true),
        ((1 << 20) + 1, 99, false),
    ];
    for command in [0, 1, 4, 5, 6, 7] {
        for (offset, length, good) in ranges {
            let expected = if good { None } else { Some(Errno::Einval) };
            assert_eq!(refused(&held, command, 0, offset, length), expected, "command {command} {offset} {length}");
            assert_eq!(refused(&free, command, 0, offset, length), None, "command {command} {offset} {length}");
        }
        // The maximum is for data.
        let expected = if command < 2 { Some(Errno::Einval) } else { None };
        assert_eq!(refused(&held, command, 0, 0, (64 << 10) + 512), expected, "command {command}");
        assert_eq!(refused(&held, command, 0, 0, 64 << 10), None, "command {command}");
        // Being outside of the export is still reported first.
        let outside = if matches!(command, 1 | 6) { Errno::Enospc } else { Errno::Einval };
        assert_eq!(refused(&held, command, 0, size - 1, 2), Some(outside), "command {command}");
    }
    assert_eq!(refused(&held, 3, 0, 0, 0), None);
}

#[test]
fn what_was_not_offered_is_refused() {
    let read_only = Session { can: Capabilities::READ_ONLY, ..session() };
    for command in [1, 4, 6] {
        assert_eq!(refused(&read_only, command, 0xffff, u64::MAX, 0), Some(Errno::Erofs));
    }
    for (command, length) in [(3, 0), (5, 512)] {
        assert_eq!(refused(&read_only, command, 0, 0, length), Some(Errno::Einval));
    }
    assert_eq!(refused(&read_only, 0, 1, 0, 512), Some(Errno::Einval));
    let plain = Capabilities { write: true, zero: Support::Emulate, ..Capabilities::READ_ONLY };
    let plain = Session { can: plain, reply_format: ReplyFormat::Simple, base_allocation: false, ..session() };
    assert_eq!(refused(&plain, 1, 1, 0, 512), Some(Errno::Einval));
    assert_eq!(refused(&plain, 4, 0, 0, 512), Some(Errno::Einval));
    assert_eq!(refused(&plain, 6, 16, 0, 512), Some(Errno::Einval));
    assert_eq!(refused(&plain, 6, 0, 0, 512), None);
    assert_eq!(refused(&plain, 0, 4, 0, 512), Some(Errno::Einval));
    assert_eq!(refused(&plain, 7, 0, 0, 512), Some(Errno::Einval));
    assert_eq!(refused(&Session { reply_format: ReplyFormat::Structured, ..plain }, 7, 0, 0, 512), Some(Errno::Einval));
}

#[test]
fn ranges_end_with_the_export() {
    let session = session();
    let size = session.size;
    for (command, expected) in [(0, Errno::Einval), (1, Errno::Enospc), (4, Errno::Einval), (5, Errno::Einval)]
        .into_iter()
        .chain([(6, Errno::Enospc), (7, Errno::Einval)])
    {
        assert_eq!(refused(&session, command, 0, size - 1, 1), None);
        for (offset, length) in
            [(size, 1), (size - 1, 2), (0, 0), (u64::MAX, 1), (u64::MAX, u32::MAX), (1 << 63, 1 << 20), (size, 0)]
        {
            assert_eq!(refused(&session, command, 0, offset, length), Some(expected), "{command} {offset} {length}");
        }
    }
    for command in [8, 99, u16::MAX] {
        assert_eq!(refused(&session, command, 0, 0, 512), Some(Errno::Einval));
    }
}

#[test]
fn the_longest_request_is_64_mib_and_the_longest_skipped_twice_that() {
    let session = Session { size: 1 << 40, ..session() };
    assert_eq!(refused(&session, 0, 0, 0, MAX_REQUEST), None);
    for command in [0, 1] {
        assert_eq!(refused(&session, command, 0, 0, MAX_REQUEST + 1), Some(Errno::Enomem));
    }
    // Commands without a payload may be longer.
    for command in [4, 5, 6, 7] {
        assert_eq!(refused(&session, command, 0, 0, u32::MAX), None);
    }
    let payload = |command, length| {
        let header = header(command, 0, 0, length);
        Session::payload(&header, &session.check(&header))
    };
    assert_eq!(payload(1, MAX_REQUEST), Ok(RequestPayload::Data(MAX_REQUEST)));
    assert_eq!(payload(1, MAX_REQUEST + 1), Ok(RequestPayload::Skip(MAX_REQUEST + 1)));
    assert_eq!(payload(1, 2 * MAX_REQUEST), Ok(RequestPayload::Skip(2 * MAX_REQUEST)));
    assert_eq!(payload(1, 2 * MAX_REQUEST + 1), Err(Violation::PayloadTooLong(2 * u64::from(MAX_REQUEST) + 1)));
    assert_eq!(payload(0, u32::MAX), Ok(RequestPayload::None));
    assert_eq!(payload(6, u32::MAX), Ok(RequestPayload::None));
}

#[test]
fn error_numbers_are_those_of_the_protocol() {
    use Errno::*;
    let plain = [Eperm, Enoent, Eio, Enomem, Einval, Enospc, Erofs, Enotsup, Eoverflow, Eshutdown, Etimedout, Edeadlk]
        .map(|number| errno(number, RequestKind::Plain));
    assert_eq!(plain, [1, 5, 5, 12, 22, 28, 1, 22, 22, 108, 5, 5]);
    assert_eq!(errno(Enotsup, RequestKind::FastZero), 95);
    assert_eq!(errno(Eoverflow, RequestKind::DontFragment), 75);
    assert_eq!(errno(Eoverflow, RequestKind::Refused), 75);
}

const COOKIE: u64 = 0x0102_0304_0506_0708;

fn bytes(answer: &Reply) -> Vec<u8> {
    assert!(answer.slices().all(|slice| !slice.is_empty()));
    answer.slices().flatten().copied().collect()
}

#[test]
fn the_slices_that_are_encrypted_are_those_that_are_sent() {
    let error = Error::new(Errno::Enospc, "full");
    for mut answer in [
        Reply::done(SIMPLE),
        Reply::error(structured(0), 28, &error),
        Reply::data(SIMPLE, RequestKind::Plain, buffer(10, &[(2, 5, Fill::Unfilled)])),
        Reply::data(structured(0), RequestKind::Plain, buffer(20_000, &[(512, 8192, Fill::Zero)])),
    ] {
        let slices: Vec<Vec<u8>> = answer.slices().map(<[u8]>::to_vec).collect();
        assert_eq!(slices, answer.slices_mut().map(|slice| slice.to_vec()).collect::<Vec<_>>());
        answer.slices_mut().for_each(|slice| slice.fill(7));
        assert!(answer.slices().flatten().all(|byte| *byte == 7));
    }
}

fn chunk(flags: u8, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, flags];
    bytes.extend(kind);
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn at(offset: u64, rest: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), rest].concat()
}

#[test]
fn replies_without_data_are_as_the_specification_draws_them() {
    assert_eq!(bytes(&Reply::done(SIMPLE)), b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
    let error = Error::new(Errno::Enospc, "full");
    assert_eq!(bytes(&Reply::error(SIMPLE, 28, &error)), b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08");
    let expected = chunk(1, [0x80, 1], b"\0\0\0\x1c\0\x04full");
    assert_eq!(bytes(&Reply::error(structured(0), 28, &error)), expected);
    let silent = chunk(1, [0x80, 1], b"\0\0\0\x05\0\0");
    assert_eq!(bytes(&Reply::error(structured(0), 5, &Errno::Eio.into())), silent);
    let long = Error::new(Errno::Eio, "ü".repeat(10_000));
    assert_eq!(bytes(&Reply::error(structured(0), 5, &long)).len(), 20 + 6 + 4096);
}

#[test]
fn an_extent_that_is_too_long_for_32_bits_is_told_in_part() {
    for (length, told) in [(u64::from(u32::MAX), u32::MAX), (1 << 32, 0xffff_0000), (1 << 62, 0xffff_0000)] {
        let mut extents = Extents::new(0, length);
        extents.push(length, true, true);
        let body = [&[0, 0, 0, 1][..], &told.to_be_bytes(), &[0, 0, 0, 3]].concat();
        assert_eq!(bytes(&Reply::block_status(structured(0), &extents, 100)), chunk(1, [0, 5], &body));
    }
}

#[test]
fn extents_are_flags_and_lengths() {
    let mut extents = Extents::new(1 << 40, 2 << 20);
    extents.push(4096, false, false);
    extents.push(1 << 20, true, true);
    extents.push(512, false, true);
    extents.push(1, true, false);
    let first = b"\0\0\0\x01\0\0\x10\0\0\0\0\0";
    let rest = b"\0\x10\0\0\0\0\0\x03\0\0\x02\0\0\0\0\x02\0\0\0\x01\0\0\0\x01";
    let all = chunk(1, [0, 5], &[&first[..], rest].concat());
    assert_eq!(bytes(&Reply::block_status(structured(1 << 40), &extents, 100)), all);
    for limit in [0, 1] {
        assert_eq!(bytes(&Reply::block_status(structured(1 << 40), &extents, limit)), chunk(1, [0, 5], first));
    }
}

/// A buffer of 7s. The given runs (offset, length) are zero or unfilled; their memory holds 9s.
fn buffer(len: u32, holes: &[(u32, u32, Fill)]) -> Buffer {
    let mut bytes = vec![7; len as usize];
    for &(at, length, _) in holes {
        bytes[at as usize..(at + length) as usize].fill(9);
    }
    let mut buffer = Buffer::from_vec(bytes);
    for &(at, length, fill) in holes {
        buffer.mark(Span::new(at, length), fill);
    }
    buffer
}

#[test]
fn data_is_one_chunk_and_zeroes_are_one_hole() {
    let data = |kind, buffer| bytes(&Reply::data(structured(4096), kind, buffer));
    for kind in [RequestKind::DontFragment, RequestKind::Plain] {
        assert_eq!(data(kind, buffer(100, &[])), chunk(1, [0, 1], &at(4096, &[7; 100])));
        let hole = chunk(1, [0, 2], &at(4096, &[0, 0, 0, 100]));
        assert_eq!(data(kind, buffer(100, &[(0, 100, Fill::Zero)])), hole);
        assert_eq!(data(kind, Buffer::new(100)), hole);
        assert_eq!(data(kind, buffer(100, &[(0, 50, Fill::Zero), (50, 50, Fill::Unfilled)])), hole);
    }
    let simple = bytes(&Reply::data(SIMPLE, RequestKind::Plain, buffer(10, &[(2, 5, Fill::Unfilled)])));
    assert_eq!(simple[16..], [7, 7, 0, 0, 0, 0, 0, 7, 7, 7]);
}

#[test]
fn long_zeroes_within_data_become_holes_on_sectors() {
    let len = 40_000;
    // In order: too short; long enough but not aligned; unfilled next to zero; at the end.
    let holes =
        [(100, 4000, Fill::Zero), (5000, 6000, Fill::Zero), (20_000, 5000, Fill::Unfilled), (25_000, 5000, Fill::Zero)];
    let all = bytes(&Reply::data(structured(512), RequestKind::Plain, buffer(len, &holes)));
    let mut expected = vec![7; len as usize];
    for (at, length, _) in holes {
        expected[at as usize..(at + length) as usize].fill(0);
    }
    let mut stream = Vec::new();
    stream.extend(chunk(0, [0, 1], &at(512, &expected[..5120])));
    stream.extend(chunk(0, [0, 2], &at(512 + 5120, &5632u32.to_be_bytes())));
    stream.extend(chunk(0, [0, 1], &at(512 + 10_752, &expected[10_752..20_480])));
    stream.extend(chunk(0, [0, 2], &at(512 + 20_480, &9216u32.to_be_bytes())));
    stream.extend(chunk(1, [0, 1], &at(512 + 29_696, &expected[29_696..])));
    assert!(all == stream);
    // A reply that may not be fragmented has the same bytes in one chunk.
    let one = bytes(&Reply::data(structured(512), RequestKind::DontFragment, buffer(len, &holes)));
    assert!(one == chunk(1, [0, 1], &at(512, &expected)));
}

#[test]
fn a_hole_may_be_first_or_last_wherever_the_request_begins() {
    let all = bytes(&Reply::data(structured(3), RequestKind::Plain, buffer(10_000, &[(0, 5000, Fill::Zero)])));
    let first = chunk(0, [0, 2], &at(3, &4605u32.to_be_bytes()));
    assert_eq!(all[..first.len()], first);
    let all = bytes(&Reply::data(structured(3), RequestKind::Plain, buffer(10_000, &[(5000, 5000, Fill::Zero)])));
    let last = chunk(1, [0, 2], &at(3 + 5117, &4883u32.to_be_bytes()));
    assert_eq!(all[all.len() - last.len()..], last);
}

#[test]
fn the_number_of_chunks_is_bounded() {
    let holes: Vec<_> = (0..2000).map(|i| (i * 8192, 4096, Fill::Zero)).collect();
    let answer = Reply::data(structured(0), RequestKind::Plain, buffer(2000 * 8192, &holes));
    assert!(answer.slices().count() <= 130, "{}", answer.slices().count());
    let all = bytes(&answer);
    assert!(all.ends_with(&[7; 4096]));
}
