//! The handshake: valid and malformed options.

use rbdkit_plugin_api::{Capabilities, ExportEntry};

use super::super::handshake::MetaContext;
use super::super::*;
use super::export;

const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A handshake after the client's flags.
fn after_flags(flags: u32) -> Handshake {
    let mut handshake = Handshake::new(HandshakeConfig::default());
    let bytes = flags.to_be_bytes();
    assert_eq!(handshake.advance(&mut &bytes[..], &mut Vec::new()), Ok(None));
    handshake
}

/// A reply to an option: its kind and its data.
type OptionReply = (u32, Vec<u8>);

/// The result of one option: the replies or the action.
fn one(
    handshake: &mut Handshake,
    number: u32,
    data: &[u8],
) -> (Result<Option<HandshakeAction>, Violation>, Vec<OptionReply>) {
    let message = option(number, data);
    let (mut input, mut out) = (&message[..], Vec::new());
    let action = handshake.advance(&mut input, &mut out);
    (action, replies(number, &out))
}

fn replies(number: u32, mut out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !out.is_empty() {
        assert_eq!(out[..8], [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]);
        let word = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
        assert_eq!(word(8), number);
        let length = word(16) as usize;
        replies.push((word(12), out[20..20 + length].to_vec()));
        out = &out[20 + length..];
    }
    replies
}

fn kind(handshake: &mut Handshake, number: u32, data: &[u8]) -> u32 {
    let (action, replies) = one(handshake, number, data);
    assert_eq!(action, Ok(None));
    assert_eq!(replies.len(), 1, "{replies:?}");
    replies[0].0
}

fn request(handshake: &mut Handshake, number: u32, data: &[u8]) -> OpenRequest {
    match one(handshake, number, data) {
        (Ok(Some(HandshakeAction::Open(request))), replies) => {
            assert_eq!(replies, []);
            request
        }
        other => panic!("{other:?}"),
    }
}

/// The data of an option with a name and queries.
fn meta(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| counted(query)));
    data
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

#[test]
fn the_greeting_offers_what_is_not_masked() {
    for (mask, shown) in [(0xffff, 3), (1, 1), (2, 2), (0, 0)] {
        let handshake = Handshake::new(HandshakeConfig { flags: mask, ..HandshakeConfig::default() });
        let mut out = Vec::new();
        handshake.greeting(&mut out);
        assert_eq!(out, [&b"NBDMAGICIHAVEOPT\0"[..], &[shown]].concat());
    }
}

#[test]
fn client_flags_that_were_not_offered_end_the_connection() {
    for (offered, flags, good) in
        [(3u16, 3u32, true), (3, 0, true), (3, 4, false), (3, 0x1_0001, false), (1, 2, false), (0, 1, false)]
    {
        let mut handshake = Handshake::new(HandshakeConfig { flags: offered, ..HandshakeConfig::default() });
        let bytes = flags.to_be_bytes();
        let expected = if good { Ok(None) } else { Err(Violation::ClientFlags(flags)) };
        assert_eq!(handshake.advance(&mut &bytes[..], &mut Vec::new()), expected);
    }
}

#[test]
fn an_option_is_refused_from_its_header_alone() {
    let mut message = option(3, &[]);
    message[12..].copy_from_slice(&(MAX_OPTION + 1).to_be_bytes());
    let refused = after_flags(3).advance(&mut &message[..], &mut Vec::new());
    assert_eq!(refused, Err(Violation::OptionTooLong(MAX_OPTION + 1)));
    let refused = after_flags(3).advance(&mut &b"IHAVEOPX0000000000"[..], &mut Vec::new());
    assert!(matches!(refused, Err(Violation::OptionMagic(_))));
    // If only the data is malformed, the error comes after the whole option.
    message[12..].copy_from_slice(&MAX_OPTION.to_be_bytes());
    assert_eq!(after_flags(3).advance(&mut &message[..], &mut Vec::new()), Ok(None));
}

#[test]
fn a_client_of_the_old_kind_may_only_name_an_export() {
    assert_eq!(one(&mut after_flags(0), 7, &[]).0, Err(Violation::OptionNotFixed(7)));
    let request = request(&mut after_flags(0), 1, b"disk");
    assert!(request.cannot_be_refused() && !request.only_info() && request.name == "disk");
}

#[test]
fn options_without_data_refuse_data() {
    let mut handshake = after_flags(3);
    for number in [3, 5, 8] {
        assert_eq!(kind(&mut handshake, number, b"x"), INVALID);
    }
    assert_eq!(one(&mut handshake, 3, &[]).0, Ok(Some(HandshakeAction::List)));
    assert_eq!(kind(&mut handshake, 5, &[]), UNSUP);
    assert_eq!(kind(&mut handshake, 8, &[]), 1);
}

#[test]
fn unknown_options_are_answered_and_skipped() {
    let mut handshake = after_flags(3);
    for number in [0, 4, 9999, 12, u32::MAX] {
        assert_eq!(kind(&mut handshake, number, &[7; 100]), UNSUP);
    }
}

#[test]
fn abort_is_acknowledged() {
    let (action, replies) = one(&mut after_flags(3), 2, &[]);
    assert_eq!((action, replies), (Ok(Some(HandshakeAction::Abort)), vec![(1, vec![])]));
}

#[test]
fn options_are_not_for_ever() {
    let mut handshake = after_flags(3);
    for _ in 0..MAX_OPTIONS {
        assert_eq!(kind(&mut handshake, 77, &[]), UNSUP);
    }
    assert_eq!(one(&mut handshake, 77, &[]).0, Err(Violation::TooManyOptions(MAX_OPTIONS)));
}

/// Answers a LIST with this many exports.
fn list(handshake: &mut Handshake, exports: u32) {
    assert_eq!(one(handshake, 3, &[]).0, Ok(Some(HandshakeAction::List)));
    (0..exports).for_each(|_| handshake.list_export(&ExportEntry::default(), &mut Vec::new()));
    handshake.end_list(&mut Vec::new());
}

#[test]
fn a_client_may_ask_about_every_export_that_was_listed() {
    let mut handshake = after_flags(3);
    list(&mut handshake, 2000);
    // qemu-nbd sends three options for each.
    for _ in 0..3 * 2000 {
        request(&mut handshake, 6, b"\0\0\0\0\0\0");
    }
}

#[test]
fn listing_again_and_again_does_not_allow_more_options() {
    let mut handshake = after_flags(3);
    let allowed = MAX_OPTIONS + 5 * OPTIONS_PER_EXPORT;
    for exports in (0..allowed).map(|i| i % 6) {
        list(&mut handshake, exports);
    }
    assert_eq!(one(&mut handshake, 3, &[]).0, Err(Violation::TooManyOptions(allowed)));
}

#[test]
fn names_are_text() {
    for name in [&b"a\0b"[..], b"\xff", &[b'x'; 4097]] {
        assert_eq!(one(&mut after_flags(3), 1, name).0, Err(Violation::ExportName));
        let info = [counted(name), vec![0, 0]].concat();
        assert_eq!(kind(&mut after_flags(3), 6, &info), INVALID);
        assert_eq!(kind(&mut after_flags(3), 7, &info), INVALID);
    }
    assert_eq!(request(&mut after_flags(3), 1, &[b'x'; 4096]).name.len(), 4096);
    assert_eq!(request(&mut after_flags(3), 7, &[counted("ü".as_bytes()), vec![0, 0]].concat()).name, "ü");
}

#[test]
fn go_and_info_take_their_lists_as_long_as_they_say_they_are() {
    for data in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\0",
        b"\0\0\0\0\0",
        b"\0\0\0\0\0\x01",
        b"\0\0\0\0\0\x01\0",
        b"\0\0\0\0\0\0\0",
        b"\0\0\0\0\0\x01\0\0\0",
        b"\0\0\0\x05ab\0\0",
        b"\xff\xff\xff\xff\0\0",
    ] {
        assert_eq!(kind(&mut after_flags(3), 6, data), INVALID, "{data:?}");
        assert_eq!(kind(&mut after_flags(3), 7, data), INVALID, "{data:?}");
    }
    let asked = request(&mut after_flags(3), 6, b"\0\0\0\0\0\x04\0\0\0\x01\0\x02\xff\xff");
    assert!(asked.only_info() && asked.wants_name && !asked.cannot_be_refused());
}

#[test]
fn an_export_is_described_as_far_as_was_asked() {
    let mut handshake = after_flags(3);
    let every = b"\0\0\0\x01d\0\x03\0\x01\0\x02\0\x03";
    let asked = request(&mut handshake, 7, every);
    let mut out = Vec::new();
    let session = handshake.accept(&asked, &export(), &mut out).expect("GO begins the transmission");
    assert!(!session.is_structured() && !session.base_allocation);
    let flags = [0x0d, 0x7d];
    let export_info = [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &flags].concat();
    let sizes = [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 1, 0, 0].to_vec();
    let expected =
        [(3, export_info.clone()), (3, b"\0\x01name".to_vec()), (3, b"\0\x02text".to_vec()), (3, sizes), (1, vec![])];
    assert_eq!(replies(7, &out), expected);

    out.clear();
    let asked = request(&mut handshake, 6, b"\0\0\0\0\0\0");
    assert!(handshake.accept(&asked, &export(), &mut out).is_none());
    assert_eq!(replies(6, &out), [(3, export_info), (1, vec![])]);
}

#[test]
fn only_a_client_that_goes_with_block_sizes_is_held_to_them() {
    for (number, data, held) in [
        (7, &b"\0\0\0\0\0\x01\0\x03"[..], true),
        (7, b"\0\0\0\0\0\x02\0\x01\0\x02", false),
        (7, b"\0\0\0\0\0\0", false),
        (1, b"", false),
    ] {
        let mut handshake = after_flags(3);
        let asked = request(&mut handshake, number, data);
        let session = handshake.accept(&asked, &export(), &mut Vec::new()).expect("the transmission begins");
        assert_eq!(session.block_sizes, export().block_sizes.filter(|_| held), "{data:?}");
        // An export without block sizes has none to keep to.
        let plain = Export { block_sizes: None, ..export() };
        assert_eq!(handshake.accept(&asked, &plain, &mut Vec::new()).unwrap().block_sizes, None);
    }
}

#[test]
fn export_name_ends_with_zeroes_unless_both_sides_agreed() {
    for (flags, length) in [(0, 134), (1, 134), (2, 10), (3, 10)] {
        let mut handshake = after_flags(flags);
        let asked = request(&mut handshake, 1, b"");
        let mut out = Vec::new();
        assert!(handshake.accept(&asked, &export(), &mut out).is_some());
        assert_eq!(out.len(), length);
        assert_eq!(out[..8], (1u64 << 20).to_be_bytes());
    }
}

#[test]
fn transmission_flags_follow_the_capabilities() {
    let with = |can, format, context| Export { can, ..export() }.transmission_flags(format, context);
    let flags = |can, format| with(can, format, MetaContext::BaseAllocation);
    assert_eq!(flags(Capabilities::READ_ONLY, ReplyFormat::Simple), 3);
    assert_eq!(flags(Capabilities::READ_ONLY, ReplyFormat::Structured), 3 | 128);
    assert_eq!(flags(Capabilities::READ_WRITE_FLUSH, ReplyFormat::Simple), 1 | 4 | 8 | 64);
    assert_eq!(flags(super::everything(), ReplyFormat::Structured), 0b1101_1111_1101);
    assert_eq!(flags(super::everything(), ReplyFormat::Extended), 0b1_1101_1111_1101);
    assert_eq!(with(super::everything(), ReplyFormat::Extended, MetaContext::None), 0b1101_1111_1101);
}

#[test]
fn a_refusal_says_why() {
    let mut handshake = after_flags(3);
    let asked = request(&mut handshake, 7, b"\0\0\0\0\0\0");
    let mut out = Vec::new();
    handshake.refuse(&asked, "no such thing", &mut out);
    assert_eq!(replies(7, &out), [(0x8000_0006, b"no such thing".to_vec())]);
    out.clear();
    // A long message is cut between two characters.
    handshake.refuse(&asked, &"ü".repeat(4000), &mut out);
    assert_eq!(replies(7, &out), [(0x8000_0006, "ü".repeat(2048).into_bytes())]);
}

#[test]
fn exports_are_listed_with_descriptions_unless_the_protocol_cannot() {
    let mut out = Vec::new();
    let entry =
        |name: &str, text: Option<&str>| ExportEntry { name: name.into(), description: text.map(str::to_string) };
    let exports = [entry("a", Some("text")), entry(&"x".repeat(4097), None), entry("n\0l", None), entry("", None)];
    let mut handshake = after_flags(3);
    exports.iter().for_each(|export| handshake.list_export(export, &mut out));
    handshake.end_list(&mut out);
    assert_eq!(replies(3, &out), [(2, b"\0\0\0\x01atext".to_vec()), (2, vec![0; 4]), (1, vec![])]);
}

/// A handshake after the client's flags, of a server with this policy.
fn with_tls(tls: TlsPolicy) -> Handshake {
    let mut handshake = Handshake::new(HandshakeConfig { tls, ..HandshakeConfig::default() });
    handshake.advance(&mut &[0, 0, 0, 3][..], &mut Vec::new()).unwrap();
    handshake
}

#[test]
fn starttls_is_for_once_and_for_servers_that_have_it() {
    assert_eq!(kind(&mut with_tls(TlsPolicy::Off), 5, &[]), UNSUP);
    let mut handshake = with_tls(TlsPolicy::On);
    assert_eq!(kind(&mut handshake, 5, &[0]), INVALID);
    assert_eq!(one(&mut handshake, 5, &[]), (Ok(Some(HandshakeAction::StartTls)), vec![]));
    let mut out = Vec::new();
    handshake.refuse_tls("no", &mut out);
    assert_eq!(replies(5, &std::mem::take(&mut out)), [(0x8000_0002, b"no".to_vec())]);
    assert_eq!(one(&mut handshake, 5, &[]).0, Ok(Some(HandshakeAction::StartTls)));
    handshake.accept_tls(&mut out);
    assert_eq!(replies(5, &out), [(1, vec![])]);
    handshake.begin_tls();
    assert_eq!(kind(&mut handshake, 5, &[]), INVALID);
}

#[test]
fn what_was_negotiated_before_tls_is_void() {
    let mut handshake = with_tls(TlsPolicy::On);
    assert_eq!(kind(&mut handshake, 8, &[]), 1);
    assert_eq!(one(&mut handshake, 10, &meta(b"", &[b"base:allocation"])).1.len(), 2);
    assert_eq!(one(&mut handshake, 5, &[]).0, Ok(Some(HandshakeAction::StartTls)));
    handshake.begin_tls();
    assert_eq!(kind(&mut handshake, 10, &meta(b"", &[b"base:allocation"])), INVALID);
    let Ok(Some(HandshakeAction::Open(request))) = one(&mut handshake, 7, &[0; 6]).0 else { panic!("no action") };
    let session = handshake.accept(&request, &export(), &mut Vec::new()).unwrap();
    assert!(!session.is_structured() && !session.base_allocation);
}

#[test]
fn a_server_that_requires_tls_answers_nothing_else_before_it() {
    const TLS_REQUIRED: u32 = 0x8000_0005;
    let mut handshake = with_tls(TlsPolicy::Require);
    for number in [3, 6, 7, 8, 9, 10, 99] {
        assert_eq!(kind(&mut handshake, number, &[]), TLS_REQUIRED, "{number}");
    }
    assert_eq!(one(&mut handshake, 2, &[]).0, Ok(Some(HandshakeAction::Abort)));
    assert_eq!(one(&mut handshake, 1, b"disk"), (Err(Violation::WithoutTls), vec![]));
    let mut handshake = with_tls(TlsPolicy::Require);
    assert_eq!(one(&mut handshake, 5, &[]).0, Ok(Some(HandshakeAction::StartTls)));
    handshake.begin_tls();
    assert_eq!(kind(&mut handshake, 8, &[]), 1);
    assert!(matches!(one(&mut handshake, 1, b"disk").0, Ok(Some(HandshakeAction::Open(_)))));
}

#[test]
fn structured_replies_can_be_switched_off() {
    let mut handshake = Handshake::new(HandshakeConfig { structured_replies: false, ..HandshakeConfig::default() });
    handshake.advance(&mut &[0, 0, 0, 3][..], &mut Vec::new()).unwrap();
    assert_eq!(kind(&mut handshake, 8, &[]), UNSUP);
    assert_eq!(kind(&mut handshake, 11, &[]), UNSUP);
    assert_eq!(kind(&mut handshake, 10, &meta(b"", &[b"base:allocation"])), INVALID);
}

#[test]
fn extended_headers_take_precedence_over_structured_replies() {
    const EXT_HEADER_REQD: u32 = 0x8000_000a;
    let session = |handshake: &mut Handshake| {
        let asked = request(handshake, 7, b"\0\0\0\0\0\0");
        handshake.accept(&asked, &export(), &mut Vec::new()).unwrap()
    };
    // Without structured replies, and after them.
    for first in [&[][..], &[8]] {
        let mut handshake = after_flags(3);
        first.iter().for_each(|number| assert_eq!(kind(&mut handshake, *number, &[]), 1));
        assert_eq!(kind(&mut handshake, 11, b"x"), INVALID);
        assert_ne!(session(&mut handshake).reply_format, ReplyFormat::Extended);
        assert_eq!(kind(&mut handshake, 11, &[]), 1);
        assert_eq!(kind(&mut handshake, 11, &[]), INVALID);
        assert_eq!(kind(&mut handshake, 8, &[]), EXT_HEADER_REQD);
        assert_eq!(one(&mut handshake, 10, &meta(b"", &[b"base:allocation"])).1.len(), 2);
        let session = session(&mut handshake);
        assert_eq!((session.reply_format, session.base_allocation), (ReplyFormat::Extended, true));
        assert_eq!(one(&mut handshake, 1, b"").0, Err(Violation::ExportNameExtended));
    }
    // Only fixed newstyle has options.
    assert_eq!(one(&mut after_flags(2), 11, &[]).0, Err(Violation::OptionNotFixed(11)));
}

#[test]
fn a_selection_outlives_the_change_to_extended_headers() {
    let mut handshake = after_flags(3);
    kind(&mut handshake, 8, &[]);
    let _ = one(&mut handshake, 10, &meta(b"", &[b"base:allocation"]));
    assert_eq!(kind(&mut handshake, 11, &[]), 1);
    let asked = request(&mut handshake, 7, b"\0\0\0\0\0\0");
    let session = handshake.accept(&asked, &export(), &mut Vec::new()).unwrap();
    assert_eq!((session.reply_format, session.base_allocation), (ReplyFormat::Extended, true));
}

#[test]
fn thousands_of_queries_are_answered_once() {
    let mut handshake = after_flags(3);
    kind(&mut handshake, 8, &[]);
    let many = vec![&b"base:"[..]; 7000];
    assert_eq!(one(&mut handshake, 9, &meta(b"", &many)).1.len(), 2);
    let many = vec![&b""[..]; 16_000];
    assert_eq!(one(&mut handshake, 9, &meta(b"", &many)).1, [(1, vec![])]);
}

#[test]
fn meta_contexts_are_listed_and_selected() {
    let mut handshake = after_flags(3);
    assert_eq!(kind(&mut handshake, 9, &meta(b"", &[])), INVALID);
    assert_eq!(kind(&mut handshake, 8, &[]), 1);
    let context = |id: u8| (4, [&[0, 0, 0, id][..], b"base:allocation"].concat());
    let ack = (1, vec![]);
    let listed: [(&[&[u8]], bool); 5] = [
        (&[], true),
        (&[b"base:"], true),
        (&[b"base:allocation"], true),
        (&[b"base:other", b"qemu:x", b""], false),
        (&[b"x", b"base:"], true),
    ];
    for (queries, found) in listed {
        let expected = if found { vec![context(0), ack.clone()] } else { vec![ack.clone()] };
        assert_eq!(one(&mut handshake, 9, &meta(b"", queries)).1, expected, "{queries:?}");
    }
    let set: [(&[&[u8]], bool); 4] = [
        (&[], false),
        (&[b"base:"], false),
        (&[b"base:allocation", b"base:allocation"], true),
        (&[b"BASE:ALLOCATION"], false),
    ];
    for (queries, found) in set {
        let expected = if found { vec![context(1), ack.clone()] } else { vec![ack.clone()] };
        assert_eq!(one(&mut handshake, 10, &meta(b"", queries)).1, expected, "{queries:?}");
    }
}

#[test]
fn a_selection_holds_for_its_export_until_the_next() {
    let selected = |steps: &[(&[u8], &[&[u8]])], name: &[u8]| {
        let mut handshake = after_flags(3);
        kind(&mut handshake, 8, &[]);
        for (export, queries) in steps {
            let _ = one(&mut handshake, 10, &meta(export, queries));
        }
        let asked = request(&mut handshake, 7, &[counted(name), vec![0, 0]].concat());
        handshake.accept(&asked, &export(), &mut Vec::new()).unwrap().base_allocation
    };
    let all: &[&[u8]] = &[b"base:allocation"];
    assert!(selected(&[(b"a", all)], b"a"));
    assert!(!selected(&[(b"a", all)], b"b"));
    assert!(!selected(&[(b"a", all), (b"a", &[])], b"a"));
    assert!(!selected(&[(b"a", all), (b"b", all)], b"a"));
    // Also if the next selection is refused.
    assert!(!selected(&[(b"a", all), (b"\xff", all)], b"a"));
}

#[test]
fn malformed_queries_are_invalid() {
    let mut handshake = after_flags(3);
    kind(&mut handshake, 8, &[]);
    let good = meta(b"name", &[b"base:allocation"]);
    for length in 0..good.len() {
        assert_eq!(kind(&mut handshake, 10, &good[..length]), INVALID, "{length}");
    }
    assert_eq!(kind(&mut handshake, 10, &[&good[..], b"x"].concat()), INVALID);
    assert_eq!(kind(&mut handshake, 10, &meta(b"", &[&[b'q'; 4097]])), INVALID);
    let mut many = counted(b"");
    many.extend(u32::MAX.to_be_bytes());
    assert_eq!(kind(&mut handshake, 10, &many), INVALID);
}

#[test]
fn what_is_wanted_is_never_more_than_the_message_has() {
    let mut handshake = after_flags(3);
    let message = option(77, &[1; 500]);
    for length in 0..message.len() {
        let wanted = handshake.wanted(&message[..length]);
        assert!((1..=message.len() - length).contains(&wanted), "{length}: {wanted}");
    }
    assert_eq!(handshake.advance(&mut &message[..], &mut Vec::new()), Ok(None));
    assert_eq!(Handshake::new(HandshakeConfig::default()).wanted(&[0, 0]), 2);
}
