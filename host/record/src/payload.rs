//! What a record keeps of a buffer's bytes.

use std::borrow::Cow;

use rbdkit_plugin_api::{Buffer, Fill, Span};
use sha2::{Digest as _, Sha256};

use crate::entry::{DIGEST, Payload};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Digests,
    Bytes,
}

/// The digest of bytes, as a record has it.
pub fn digest(bytes: &[u8]) -> [u8; DIGEST] {
    first_half(Sha256::digest(bytes).as_slice())
}

fn first_half(whole: &[u8]) -> [u8; DIGEST] {
    let mut half = [0; DIGEST];
    half.copy_from_slice(&whole[..DIGEST]);
    half
}

/// What is kept of `span`. The buffer stays as it is: its zeroes are not written, so that they
/// still reach the client as holes. Spliced bytes are copied into it.
pub(crate) fn kept(buffer: &mut Buffer, span: Span, keep: Keep) -> Payload<'static> {
    if buffer.is_zero(span) {
        return Payload::Zeroes;
    }
    match keep {
        Keep::Bytes => {
            let mut bytes = Vec::with_capacity(span.len as usize);
            each_run(buffer, span, |part| bytes.extend_from_slice(part));
            Payload::Bytes(Cow::Owned(bytes))
        }
        Keep::Digests => {
            let mut hash = Sha256::new();
            each_run(buffer, span, |part| hash.update(part));
            Payload::Digest(first_half(hash.finalize().as_slice()))
        }
    }
}

/// Calls `take` with the bytes of the span, one part after the other.
fn each_run(buffer: &mut Buffer, span: Span, mut take: impl FnMut(&[u8])) {
    const ZEROES: [u8; 4096] = [0; 4096];
    let end = span.at + span.len;
    let runs: Vec<(Span, Fill)> = buffer
        .fills()
        .filter_map(|(run, fill)| {
            let (from, to) = (run.at.max(span.at), (run.at + run.len).min(end));
            (from < to).then(|| (Span::new(from, to - from), fill))
        })
        .collect();
    for (run, fill) in runs {
        if fill == Fill::Data {
            take(buffer.bytes(run));
            continue;
        }
        let mut left = run.len as usize;
        while left > 0 {
            let part = left.min(ZEROES.len());
            take(&ZEROES[..part]);
            left -= part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_the_client_gets_and_the_buffer_keeps_its_zeroes() {
        let mut buffer = Buffer::new(10_000);
        buffer.put(5000, &[7; 100]);
        let span = Span::new(10, 9000);
        let mut expected = vec![0; 9000];
        expected[4990..5090].fill(7);
        let before: Vec<(Span, Fill)> = buffer.fills().collect();
        assert_eq!(kept(&mut buffer, span, Keep::Bytes), Payload::Bytes(Cow::Borrowed(&expected)));
        assert_eq!(kept(&mut buffer, span, Keep::Digests), Payload::Digest(digest(&expected)));
        assert_eq!(kept(&mut buffer, Span::new(0, 5000), Keep::Bytes), Payload::Zeroes);
        assert_eq!(buffer.fills().collect::<Vec<_>>(), before);
    }
}
