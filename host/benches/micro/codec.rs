//! The protocol: parses a request's header into a checked command, and encodes an answer as the
//! slices of a vectored write.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use rbdkit_nbd::reply::{Reply, ReplyTo, RequestKind};
use rbdkit_nbd::{ReplyFormat, RequestHeader, Session, wire};
use rbdkit_plugin_api::{Buffer, Capabilities, Errno, Error, Fill, Pool, Span};

const SIZE: u64 = 1 << 30;
/// The requests that one `recv` returns at depth 32.
const BATCH: u64 = 32;

fn session() -> Session {
    Session {
        size: SIZE,
        can: Capabilities::READ_WRITE_FLUSH,
        reply_format: ReplyFormat::Structured,
        base_allocation: true,
        block_sizes: None,
    }
}

fn to(format: ReplyFormat, offset: u64) -> ReplyTo {
    ReplyTo { format, cookie: 1, offset }
}

/// Headers of requests of 4 KiB, one after the other.
fn headers(command: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..BATCH {
        bytes.extend_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&0u16.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&(cookie * 7919 * 4096 % SIZE).to_be_bytes());
        bytes.extend_from_slice(&4096u32.to_be_bytes());
    }
    bytes
}

/// Parses a batch of headers and checks each, with what has to follow it.
#[divan::bench(args = ["read", "write"])]
fn parse_and_check(bencher: Bencher<'_, '_>, command: &str) {
    let command = if command == "read" { wire::cmd::READ } else { wire::cmd::WRITE };
    let (bytes, session) = (headers(command), session());
    bencher.counter(ItemsCount::new(BATCH)).bench(|| {
        let mut accepted = 0;
        for bytes in black_box(&bytes).chunks_exact(session.reply_format.header_size()) {
            let Ok(Some(header)) = RequestHeader::parse(bytes, session.reply_format) else { continue };
            let checked = session.check(&header);
            let payload = Session::payload(&header, &checked);
            accepted += u32::from(checked.is_ok() && payload.is_ok());
        }
        accepted
    });
}

fn filled(pool: &Pool, length: u32, fill: Fill) -> Buffer {
    let mut buffer = pool.take(length);
    let span = buffer.span();
    buffer.mark(span, fill);
    buffer
}

/// The number of bytes written for a reply.
fn written(reply: &Reply) -> usize {
    reply.slices().map(|slice| black_box(slice).len()).sum()
}

#[divan::bench(args = ["extended", "structured", "simple"])]
fn answer_a_read(bencher: Bencher<'_, '_>, kind: &str) {
    let format = match kind {
        "extended" => ReplyFormat::Extended,
        "structured" => ReplyFormat::Structured,
        _ => ReplyFormat::Simple,
    };
    let pool = Pool::new();
    let input = || filled(&pool, 4096, Fill::Data);
    bencher
        .with_inputs(input)
        .bench_local_values(|buffer| written(&Reply::data(to(format, 8192), RequestKind::Plain, buffer)));
}

#[divan::bench]
fn answer_a_read_of_zeroes(bencher: Bencher<'_, '_>) {
    let pool = Pool::new();
    let input = || filled(&pool, 4096, Fill::Zero);
    bencher.with_inputs(input).bench_local_values(|buffer| {
        written(&Reply::data(to(ReplyFormat::Structured, 8192), RequestKind::Plain, buffer))
    });
}

/// Every other 4 KiB of 16 KiB is a hole. The buffer is not longer, because memory that the pool
/// does not keep would go back to the kernel, which costs more than all the rest.
#[divan::bench]
fn answer_a_read_with_holes(bencher: Bencher<'_, '_>) {
    let pool = Pool::new();
    let input = || {
        let mut buffer = filled(&pool, 16 << 10, Fill::Data);
        (0..2).for_each(|nth| buffer.set_zero(Span::new(nth << 13, 1 << 12)));
        buffer
    };
    bencher
        .with_inputs(input)
        .bench_local_values(|buffer| written(&Reply::data(to(ReplyFormat::Structured, 0), RequestKind::Plain, buffer)));
}

#[divan::bench]
fn answer_a_write() -> usize {
    written(&Reply::done(black_box(to(ReplyFormat::Structured, 0))))
}

#[divan::bench]
fn answer_with_an_error(bencher: Bencher<'_, '_>) {
    let error = Error::new(Errno::Eio, "the disk is broken");
    bencher.bench(|| written(&Reply::error(to(ReplyFormat::Structured, 0), 5, black_box(&error))));
}
