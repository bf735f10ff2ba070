//! The messages that the other end may send after the handshake. Nothing of them is kept but their
//! first bytes.

use crate::alert::Alert;

/// A message that something has to be done about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// TLS 1.3: the next record has the next key.
    KeyUpdate { wants_ours: bool },
    /// TLS 1.2: the other end wants to agree upon new keys.
    Renegotiation,
}

const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// The kind of a message and its length.
const HEAD: usize = 4;

/// A message may begin in one record and end in another.
#[derive(Debug)]
pub(crate) struct Messages {
    is_tls13: bool,
    is_client: bool,
    head: [u8; HEAD],
    /// How many bytes of `head` have come. All of them: a `KEY_UPDATE` lacks its only byte.
    have: usize,
    /// Bytes of a message that still come and do not matter.
    skip: usize,
}

impl Messages {
    pub(crate) fn new(is_tls13: bool, is_client: bool) -> Messages {
        Messages { is_tls13, is_client, head: [0; HEAD], have: 0, skip: 0 }
    }

    /// Whether a message has begun and not ended.
    pub(crate) fn has_begun(&self) -> bool {
        self.have > 0 || self.skip > 0
    }

    /// Takes bytes off the front, up to the end of a message that something has to be done about.
    /// None: there is no such message among them.
    pub(crate) fn next(&mut self, content: &mut &[u8]) -> Result<Option<Message>, Alert> {
        loop {
            let skipped = self.skip.min(content.len());
            self.skip -= skipped;
            *content = &content[skipped..];
            let Some((&byte, rest)) = content.split_first() else { return Ok(None) };
            *content = rest;
            if self.have == HEAD {
                self.have = 0;
                return match byte {
                    0 | 1 => Ok(Some(Message::KeyUpdate { wants_ours: byte == 1 })),
                    _ => Err(Alert::WrongParameter),
                };
            }
            self.head[self.have] = byte;
            self.have += 1;
            if self.have < HEAD {
                continue;
            }
            let [kind, length @ ..] = self.head;
            let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            match (kind, self.is_tls13, self.is_client) {
                (KEY_UPDATE, true, _) if length == 1 => {}
                (KEY_UPDATE, true, _) => return Err(Alert::WrongMessage),
                // No session is resumed, so tickets are of no use.
                (NEW_SESSION_TICKET, true, true) => (self.have, self.skip) = (0, length),
                (CLIENT_HELLO, false, false) | (HELLO_REQUEST, false, true) => {
                    (self.have, self.skip) = (0, length);
                    return Ok(Some(Message::Renegotiation));
                }
                _ => return Err(Alert::Unexpected),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(messages: &mut Messages, mut content: &[u8]) -> Result<Vec<Message>, Alert> {
        let mut found = Vec::new();
        while let Some(message) = messages.next(&mut content)? {
            found.push(message);
        }
        Ok(found)
    }

    #[test]
    fn messages_are_the_same_wherever_records_cut_them() {
        let stream = [4, 0, 0, 3, 9, 9, 9, 24, 0, 0, 1, 1, 4, 0, 0, 0, 24, 0, 0, 1, 0];
        let both = [Message::KeyUpdate { wants_ours: true }, Message::KeyUpdate { wants_ours: false }];
        for cut in 0..=stream.len() {
            let mut messages = Messages::new(true, true);
            let mut found = all(&mut messages, &stream[..cut]).unwrap();
            assert_eq!(messages.has_begun(), ![0, 7, 12, 16, 21].contains(&cut), "cut at {cut}");
            found.extend(all(&mut messages, &stream[cut..]).unwrap());
            assert_eq!((found, messages.has_begun()), (both.to_vec(), false), "cut at {cut}");
        }
    }

    #[test]
    fn messages_that_do_not_belong_there_are_refused() {
        for (is_tls13, is_client, bytes, alert) in [
            (true, true, [24, 0, 0, 2, 0], Alert::WrongMessage),
            (true, false, [24, 0, 0, 1, 2], Alert::WrongParameter),
            (true, false, [4, 0, 0, 1, 0], Alert::Unexpected),
            (true, false, [1, 0, 0, 1, 0], Alert::Unexpected),
            (true, true, [13, 0, 0, 1, 0], Alert::Unexpected),
            (false, true, [1, 0, 0, 1, 0], Alert::Unexpected),
            (false, false, [24, 0, 0, 1, 0], Alert::Unexpected),
            (false, false, [0, 0, 0, 0, 0], Alert::Unexpected),
        ] {
            assert_eq!(all(&mut Messages::new(is_tls13, is_client), &bytes), Err(alert), "{bytes:?}");
        }
        let hello = all(&mut Messages::new(false, false), &[1, 0, 0, 1, 0]);
        assert_eq!(hello, Ok(vec![Message::Renegotiation]));
    }
}
