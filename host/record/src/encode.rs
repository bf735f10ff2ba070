//! Entries to bytes.

use std::borrow::Cow;

use std::net::SocketAddr;

use rbdkit_plugin_api::{Capabilities, Errno, Extent, Flags, Peer, Support};

use crate::entry::{
    Answer, Call, ClientFacts, ENTRY_HEADER, ERRNOS, Entry, Finish, Gate, ListedExport, MAGIC, MAX_PARAMETERS,
    MAX_TEXT, Outcome, Payload, Session, VERSION, peer, tag,
};

/// An entry as it stands in the file. A payload is last in its body and is not copied into one
/// vector with the rest.
#[derive(Debug)]
pub struct Frame {
    head: Vec<u8>,
    payload: Vec<u8>,
}

impl Frame {
    /// The first bytes of a file.
    pub fn file_header() -> Frame {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        Frame { head, payload: Vec::new() }
    }

    /// An entry.
    pub fn new(entry: Entry<'_>) -> Frame {
        let mut body = Body(vec![0; ENTRY_HEADER]);
        let payload = match entry {
            Entry::Session(session) => body.session(&session),
            Entry::Start(start) => {
                body.byte(tag::START).long(start.number).long(start.time);
                body.byte(u8::from(start.gate == Gate::Below)).word(start.handle).byte(start.call.kind() as u8);
                body.call(start.call)
            }
            Entry::End(end) => {
                body.byte(tag::END).long(end.number).long(end.time).byte(end.kind as u8);
                body.outcome(end.outcome)
            }
            Entry::Finish(finish) => body.finish(&finish),
        };
        let mut head = body.0;
        let length = (head.len() - ENTRY_HEADER + payload.len()) as u32;
        head[0..4].copy_from_slice(&length.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[ENTRY_HEADER..]), &payload);
        head[4..8].copy_from_slice(&sum.to_le_bytes());
        let header_sum = crc32c::crc32c(&head[0..8]);
        head[8..12].copy_from_slice(&header_sum.to_le_bytes());
        Frame { head, payload }
    }

    /// Its bytes in the file, in two parts.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.head, &self.payload]
    }

    /// The number of its bytes in the file.
    pub fn size(&self) -> u64 {
        (self.head.len() + self.payload.len()) as u64
    }
}

/// A body that grows. The functions that end it give the payload that follows.
struct Body(Vec<u8>);

impl Body {
    fn byte(&mut self, value: u8) -> &mut Body {
        self.0.push(value);
        self
    }

    fn short(&mut self, value: u16) -> &mut Body {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn word(&mut self, value: u32) -> &mut Body {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn long(&mut self, value: u64) -> &mut Body {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A text with its length before it. A text that is too long is cut.
    fn text(&mut self, text: &str) -> &mut Body {
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        self.0.extend((text.len() as u16).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn maybe_text(&mut self, text: Option<&str>) {
        match text {
            None => self.byte(0),
            Some(text) => self.byte(1).text(text),
        };
    }

    fn session(&mut self, session: &Session) -> Vec<u8> {
        self.byte(tag::SESSION).long(session.began);
        self.byte(u8::from(session.is_filter)).byte(u8::from(session.has_payloads));
        self.text(&session.program).text(&session.layer);
        let parameters = &session.parameters[..session.parameters.len().min(MAX_PARAMETERS)];
        self.short(parameters.len() as u16);
        for given in parameters {
            self.text(&given.key).text(&given.kind).maybe_text(given.value.as_deref());
        }
        Vec::new()
    }

    fn finish(&mut self, finish: &Finish) -> Vec<u8> {
        self.byte(tag::FINISH).long(finish.time).long(finish.lost).byte(finish.reason as u8);
        Vec::new()
    }

    fn call(&mut self, call: Call<'_>) -> Vec<u8> {
        if let Some((offset, length)) = call.range() {
            self.long(offset).long(length).byte(flag_bits(call.flags()));
        }
        match call {
            Call::Open { client, readonly, name } => {
                self.long(client).byte(u8::from(readonly)).text(&name);
                Vec::new()
            }
            Call::Pwrite { payload, .. } => self.payload(payload),
            Call::Preconnect { client, readonly, facts } => {
                self.long(client).byte(u8::from(readonly)).facts(&facts);
                Vec::new()
            }
            Call::ListExports { client, readonly } | Call::DefaultExport { client, readonly } => {
                self.long(client).byte(u8::from(readonly));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn facts(&mut self, facts: &ClientFacts<'_>) {
        match &facts.peer {
            Peer::Unknown => {
                self.byte(peer::UNKNOWN);
            }
            Peer::Unix => {
                self.byte(peer::UNIX);
            }
            Peer::Vsock { cid, port } => {
                self.byte(peer::VSOCK).word(*cid).word(*port);
            }
            Peer::Ip(SocketAddr::V4(address)) => {
                self.byte(peer::V4).0.extend(address.ip().octets());
                self.short(address.port());
            }
            Peer::Ip(SocketAddr::V6(address)) => {
                self.byte(peer::V6).0.extend(address.ip().octets());
                self.short(address.port()).word(address.flowinfo()).word(address.scope_id());
            }
        }
        self.byte(u8::from(facts.credentials.is_some()));
        if let Some((process, user, group)) = facts.credentials {
            self.long(process.cast_unsigned()).long(user.cast_unsigned()).long(group.cast_unsigned());
        }
        self.maybe_text(facts.security_context.as_deref());
        self.byte(u8::from(facts.tls));
    }

    fn payload(&mut self, payload: Payload<'_>) -> Vec<u8> {
        match payload {
            Payload::Zeroes => {
                self.byte(0);
                Vec::new()
            }
            Payload::Digest(digest) => {
                self.byte(1).0.extend(digest);
                Vec::new()
            }
            Payload::Bytes(bytes) => {
                self.byte(2);
                bytes.into_owned()
            }
        }
    }

    fn outcome(&mut self, outcome: Outcome<'_>) -> Vec<u8> {
        match outcome {
            Outcome::Failed(errno) => {
                self.byte(1).byte(errno_number(errno));
                Vec::new()
            }
            Outcome::Dropped => {
                self.byte(2);
                Vec::new()
            }
            Outcome::Answered(answer) => {
                self.byte(0);
                self.answer(answer)
            }
        }
    }

    fn answer(&mut self, answer: Answer<'_>) -> Vec<u8> {
        match answer {
            Answer::Done => {}
            Answer::Opened { size, can } => {
                self.long(size).capabilities(can);
            }
            Answer::Data(payload) => return self.payload(payload),
            Answer::Extents(extents) => self.extents(&extents),
            Answer::BlockSizes(None) => {
                self.byte(0);
            }
            Answer::BlockSizes(Some(sizes)) => {
                self.byte(1).word(sizes.minimum).word(sizes.preferred).word(sizes.maximum);
            }
            Answer::Description(text) | Answer::Disk(text) => self.maybe_text(text.as_ref().map(Cow::as_ref)),
            Answer::Exports(list) => self.exports(&list),
            Answer::DefaultExport(name) => {
                self.text(&name);
            }
        }
        Vec::new()
    }

    fn exports(&mut self, list: &[ListedExport<'_>]) {
        self.word(list.len() as u32);
        for ListedExport { name, description } in list {
            self.text(name).maybe_text(description.as_deref());
        }
    }

    fn extents(&mut self, extents: &[Extent]) {
        self.word(extents.len() as u32);
        for extent in extents {
            self.long(extent.length).byte(u8::from(extent.hole) | u8::from(extent.zero) << 1);
        }
    }

    fn capabilities(&mut self, can: Capabilities) {
        let flags = [can.write, can.flush, can.rotational, can.trim, can.fast_zero, can.extents, can.multi_conn];
        let bits = (0..).zip(flags).fold(0, |bits, (at, set)| bits | u8::from(set) << at);
        let [zero, fua, cache] = [can.zero, can.fua, can.cache].map(|support| match support {
            Support::None => 0,
            Support::Emulate => 1,
            Support::Native => 2,
        });
        self.byte(bits).byte(zero).byte(fua).byte(cache);
    }
}

fn flag_bits(flags: Flags) -> u8 {
    let all = [flags.fua, flags.may_trim, flags.fast_zero, flags.req_one];
    (0..).zip(all).fold(0, |bits, (at, set)| bits | u8::from(set) << at)
}

fn errno_number(errno: Errno) -> u8 {
    ERRNOS.iter().find(|(known, _)| *known == errno).map_or(5, |(_, number)| *number)
}
