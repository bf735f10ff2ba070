//! Properties that hold for every input.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::reply::{self, Reply, ReplyTo, RequestKind};
use super::super::*;
use super::{export, session};
use rbdkit_plugin_api::{Buffer, Fill, Span};

/// A whole connection: all replies, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Talk {
    out: Vec<u8>,
    actions: Vec<HandshakeAction>,
    end: Option<Violation>,
    requests: Vec<(RequestHeader, Result<Command, u32>)>,
}

/// Runs both phases over input that comes in pieces. Every action succeeds.
fn talk(pieces: &[&[u8]]) -> Talk {
    let mut handshake = Handshake::new(HandshakeConfig { tls: TlsPolicy::On, ..HandshakeConfig::default() });
    let mut talk = Talk { out: Vec::new(), actions: Vec::new(), end: None, requests: Vec::new() };
    let mut transmission = None;
    let mut skip = 0;
    let mut input = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let mut rest = &input[..];
            let more = match &transmission {
                None => match handshake.advance(&mut rest, &mut talk.out) {
                    Ok(None) => false,
                    Ok(Some(action)) => {
                        match &action {
                            HandshakeAction::List => handshake.end_list(&mut talk.out),
                            HandshakeAction::Open(opening) => {
                                transmission = handshake.accept(opening, &export(), &mut talk.out);
                            }
                            HandshakeAction::StartTls => {
                                handshake.accept_tls(&mut talk.out);
                                handshake.begin_tls();
                            }
                            HandshakeAction::Abort => {}
                        }
                        talk.actions.push(action);
                        true
                    }
                    Err(violation) => {
                        talk.end = Some(violation);
                        return talk;
                    }
                },
                Some(session) => match request(session, &mut rest, &mut skip, &mut talk) {
                    Ok(more) => more,
                    Err(violation) => {
                        talk.end = Some(violation);
                        return talk;
                    }
                },
            };
            let used = input.len() - rest.len();
            input.drain(..used);
            if !more {
                break;
            }
        }
        // The length of an incomplete message is limited.
        if transmission.is_none() {
            assert!(input.len() < 16 + MAX_OPTION as usize);
            assert!(handshake.wanted(&input) <= 16 + MAX_OPTION as usize);
        } else {
            assert!(input.len() < RequestHeader::MAX_SIZE + FILTER_SIZE);
        }
    }
    talk
}

/// Takes one request. True: there may be another.
fn request(session: &Session, rest: &mut &[u8], skip: &mut usize, talk: &mut Talk) -> Result<bool, Violation> {
    let skipped = (*skip).min(rest.len());
    *rest = &rest[skipped..];
    *skip -= skipped;
    if *skip > 0 {
        return Ok(false);
    }
    let Some(header) = RequestHeader::parse(rest, session.reply_format)? else { return Ok(false) };
    let size = session.reply_format.header_size();
    let (header, checked) = if header.has_filter() {
        let Some(filter) = rest.get(size..size + FILTER_SIZE) else { return Ok(false) };
        *rest = &rest[size + FILTER_SIZE..];
        session.filtered(&header, filter.try_into().unwrap())
    } else {
        *rest = &rest[size..];
        (header, session.check(&header))
    };
    match Session::payload(&header, &checked)? {
        RequestPayload::None => {}
        RequestPayload::Data(length) | RequestPayload::Skip(length) => *skip = length as usize,
    }
    if let Ok(Command::Read { offset, length, .. } | Command::Write { offset, length, .. }) = &checked {
        assert!(*length > 0 && offset + u64::from(*length) <= session.size);
    }
    talk.requests.push((header, checked.map_err(|error| reply::errno(error.errno(), RequestKind::Plain))));
    Ok(true)
}

fn option() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![1 => 0u32..13, 1 => any::<u32>()];
    let text = prop_oneof![
        Just(b"base:allocation".to_vec()),
        Just(b"base:".to_vec()),
        Just(Vec::new()),
        vec(any::<u8>(), 0..20)
    ];
    let counted = text.prop_map(|text| [&(text.len() as u32).to_be_bytes()[..], &text].concat());
    let data = prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 0..40),
        (counted.clone(), vec(any::<u8>(), 0..6)).prop_map(|(name, rest)| [name, rest].concat()),
        (counted.clone(), vec(counted, 0..3)).prop_map(|(name, queries)| {
            [name, (queries.len() as u32).to_be_bytes().to_vec(), queries.concat()].concat()
        }),
    ];
    let length_lie = prop_oneof![9 => Just(0i64), 1 => -3i64..3, 1 => any::<u32>().prop_map(i64::from)];
    (number, data, length_lie).prop_map(|(number, data, lie)| {
        let length = (data.len() as i64 + lie).clamp(0, i64::from(u32::MAX)) as u32;
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &length.to_be_bytes(), &data].concat()
    })
}

fn wire_request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0u64..(1 << 21), any::<u64>()];
    let length = prop_oneof![0u32..200, 0u32..(1 << 21), any::<u32>()];
    (any::<u16>(), 0u16..10, any::<u64>(), offset, length).prop_map(|(flags, command, cookie, offset, length)| {
        let flags = if flags % 3 == 0 { flags } else { flags & 0x1f & (flags >> 8) };
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        if command == 1 {
            bytes.resize(28 + (length as usize).min(300), 0x77);
        }
        bytes
    })
}

fn wire_extended_request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0u64..(1 << 21), any::<u64>()];
    let length = prop_oneof![Just(12), 0u64..200, 0u64..(1 << 21), any::<u64>()];
    (any::<u16>(), 0u16..10, any::<u64>(), offset, length).prop_map(|(flags, command, cookie, offset, length)| {
        let flags = if flags % 3 == 0 { flags } else { flags & 0x3f & (flags >> 8) };
        let flags = if command == 1 && flags % 5 != 0 { flags | 32 } else { flags };
        let mut bytes = vec![0x21, 0xe4, 0x1c, 0x71];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        if flags & 32 != 0 {
            bytes.resize(32 + length.min(300) as usize, 0);
            if length == 12 {
                // Sometimes the context that was agreed upon.
                bytes[43] = (cookie % 2) as u8;
            }
        }
        bytes
    })
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    let go = b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0".to_vec();
    let structured = b"IHAVEOPT\0\0\0\x08\0\0\0\0".to_vec();
    let extended = b"IHAVEOPT\0\0\0\x0b\0\0\0\0".to_vec();
    let context = b"IHAVEOPT\0\0\0\x0a\0\0\0\x1b\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation".to_vec();
    let talk = (
        prop_oneof![4 => Just(3u32), 1 => 0u32..5],
        0..3u32,
        vec(option(), 0..6),
        any::<bool>(),
        (vec(wire_request(), 0..8), vec(wire_extended_request(), 0..8)),
        vec(any::<u8>(), 0..30),
    );
    let talk = talk.prop_map(move |(flags, better, options, with_go, (requests, extended_requests), rest)| {
        let mut bytes = flags.to_be_bytes().to_vec();
        match better {
            0 => {}
            1 => bytes.extend(&structured),
            _ => bytes.extend(&extended),
        }
        if better > 0 {
            bytes.extend(&context);
        }
        bytes.extend(options.concat());
        if with_go {
            bytes.extend(&go);
        }
        bytes.extend(if better == 2 { extended_requests.concat() } else { requests.concat() });
        bytes.extend(rest);
        bytes
    });
    prop_oneof![4 => talk, 1 => vec(any::<u8>(), 0..200)]
}

/// One step of a client that negotiates: what it sends, and how many exports a LIST finds.
#[derive(Clone, Debug)]
enum Step {
    List(u32),
    Other(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let info = b"IHAVEOPT\0\0\0\x06\0\0\0\x06\0\0\0\0\0\0".to_vec();
    let step = prop_oneof![
        1 => (0u32..80).prop_map(Step::List),
        3 => Just(Step::Other(info)),
        3 => option().prop_map(Step::Other),
    ];
    vec((step, 1usize..400), 1..40)
        .prop_map(|runs| runs.into_iter().flat_map(|(step, times)| std::iter::repeat_n(step, times)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn options_are_bounded_by_the_longest_list(steps in steps()) {
        let mut handshake = Handshake::new(HandshakeConfig::default());
        prop_assert_eq!(handshake.advance(&mut &[0, 0, 0, 3][..], &mut Vec::new()), Ok(None));
        let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
        let (mut longest, mut options) = (0, 0);
        for step in steps {
            let message = match &step {
                Step::List(_) => &list[..],
                Step::Other(bytes) => &bytes[..],
            };
            let (mut rest, mut out) = (message, Vec::new());
            let action = handshake.advance(&mut rest, &mut out);
            if rest.len() == message.len() && action == Ok(None) {
                // The message is not whole, so the conversation cannot go on.
                return Ok(());
            }
            options += 1;
            let allowed = MAX_OPTIONS + longest * OPTIONS_PER_EXPORT;
            match action {
                Err(Violation::TooManyOptions(limit)) => {
                    prop_assert_eq!((limit, options), (allowed, allowed + 1));
                    return Ok(());
                }
                Err(_) => return Ok(()),
                Ok(Some(HandshakeAction::List)) => {
                    let found = if let Step::List(found) = step { found } else { 0 };
                    (0..found).for_each(|_| handshake.list_export(&Default::default(), &mut out));
                    handshake.end_list(&mut out);
                    longest = longest.max(found);
                }
                Ok(Some(HandshakeAction::Open(request))) => {
                    if handshake.accept(&request, &export(), &mut out).is_some() {
                        return Ok(());
                    }
                }
                Ok(Some(HandshakeAction::Abort | HandshakeAction::StartTls)) => return Ok(()),
                Ok(None) => {}
            }
            prop_assert!(options <= allowed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn every_way_to_cut_the_input_leads_to_the_same_conversation(
        input in input(),
        cuts in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let whole = talk(&[&input]);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&talk(&pieces), &whole);
        let single: Vec<&[u8]> = input.chunks(1).collect();
        prop_assert_eq!(&talk(&single), &whole);
    }

    #[test]
    fn a_read_is_whole_however_it_is_sent(
        offset in 0u64..5000,
        len in 1u32..50_000,
        marks in vec((any::<prop::sample::Index>(), 0u32..20_000, 0u8..3), 0..8),
        dont_fragment: bool,
    ) {
        let mut buffer = Buffer::new(len);
        for (index, (at, length, fill)) in marks.into_iter().enumerate() {
            let at = at.index(len as usize) as u32;
            let span = Span::new(at, length.min(len - at));
            match fill {
                0 => buffer.put(at, &vec![index as u8 + 1; span.len as usize]),
                1 => buffer.set_zero(span),
                _ => buffer.mark(span, Fill::Unfilled),
            }
        }
        let mut plain = buffer.duplicate();
        let all = plain.span();
        let expected = plain.bytes(all).to_vec();

        let kind = if dont_fragment { RequestKind::DontFragment } else { RequestKind::Plain };
        let to = ReplyTo { format: ReplyFormat::Structured, cookie: 1, offset };
        let mut reply = Reply::data(to, kind, buffer);
        let stream: Vec<u8> = reply.slices().flatten().copied().collect();
        let slices: Vec<Vec<u8>> = reply.slices().map(<[u8]>::to_vec).collect();
        prop_assert_eq!(&slices, &reply.slices_mut().map(|slice| slice.to_vec()).collect::<Vec<_>>());
        let mut rest = &stream[..];
        let mut got = Vec::new();
        let mut chunks = 0;
        while !rest.is_empty() {
            chunks += 1;
            let length = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
            let (kind, payload) = (rest[7], &rest[20..20 + length]);
            prop_assert_eq!(payload[..8].to_vec(), (offset + got.len() as u64).to_be_bytes().to_vec());
            match kind {
                1 => got.extend_from_slice(&payload[8..]),
                2 => got.resize(got.len() + u32::from_be_bytes(payload[8..].try_into().unwrap()) as usize, 0),
                _ => prop_assert!(false, "chunk of kind {}", kind),
            }
            // Only the last chunk has the flag.
            prop_assert_eq!(rest[5] == 1, rest.len() == 20 + length);
            rest = &rest[20 + length..];
        }
        prop_assert!(got == expected);
        prop_assert!(chunks == 1 || !dont_fragment);
    }

    #[test]
    fn no_request_gets_past_the_checks_that_should_not(bytes in wire_request(), extended in wire_extended_request()) {
        for (bytes, reply_format) in [(bytes, ReplyFormat::Structured), (extended, ReplyFormat::Extended)] {
            let session = Session { reply_format, ..session() };
            let header = RequestHeader::parse(&bytes, reply_format).unwrap().unwrap();
            let checked = session.check(&header);
            if Session::payload(&header, &checked).is_ok() && checked.is_ok() && header.command != 2 {
                prop_assert!(header.command == 3 || header.offset + header.length <= session.size);
                prop_assert!(header.flags & !0x1f == 0 || (header.flags & !0x3f == 0 && header.command == 1));
            }
        }
    }
}
