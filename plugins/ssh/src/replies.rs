//! The reader's task: reads the server's answers, which come in any order.
//!
//! The task never writes, so it cannot deadlock with a server that waits for us to read. It checks
//! lengths and ids before it uses them. After an invalid answer the start of the next one cannot be
//! found, so the first one ends the connection.

use std::sync::Arc;

use rbdkit_plugin_api::text::is_hidden;
use rbdkit_plugin_api::{Errno, Error, Span};
use rbdkit_stream::{ConnectionError, Input};

use crate::table::{Reply, Table, Transfer, Waiting};
use crate::wire::{Reader, errno, kind, status};

type Result<T> = std::result::Result<T, ConnectionError>;

/// The longest packet other than DATA, in bytes. A version with its extensions, or a status with a
/// message, is a tenth of that.
pub(crate) const MAX_PACKET: u32 = 64 << 10;

/// Reads answers until the connection cannot be used any more, and returns why.
pub(crate) async fn read(mut input: Input, table: Arc<Table>) -> ConnectionError {
    loop {
        if let Err(broken) = next(&mut input, &table).await {
            return broken;
        }
    }
}

/// A packet's kind, and how many bytes follow it.
pub(crate) async fn header(input: &mut Input) -> Result<(u8, u32)> {
    let length = u32::from_be_bytes(input.array().await?);
    let [kind] = input.array().await?;
    let body = length.checked_sub(1).filter(|body| kind == kind::DATA || *body <= MAX_PACKET);
    body.map(|body| (kind, body))
        .ok_or_else(|| ConnectionError::new(format!("the server sent a packet of {length} bytes")))
}

async fn next(input: &mut Input, table: &Table) -> Result<()> {
    let (kind, length) = header(input).await?;
    let length = length.checked_sub(4).ok_or_else(|| ConnectionError::new("the server sent half a packet"))?;
    let id = u32::from_be_bytes(input.array().await?);
    match table.take(id)? {
        Waiting::Reply(answer) if kind != kind::DATA => {
            let body = input.vec(length as usize).await?;
            // At the end of the server the caller may no longer exist.
            let _ = answer.send(Ok(Reply { kind, body }));
            Ok(())
        }
        Waiting::Reply(answer) => {
            let broken = ConnectionError::new("the server sent data that was not asked for");
            let _ = answer.send(Err(Error::new(Errno::Eio, format!("ssh: {}: {broken}", table.host()))));
            Err(broken)
        }
        Waiting::Piece { transfer: key, span } => {
            // The transfer failed because the connection has ended.
            let Some(mut transfer) = table.take_transfer(key) else {
                return Err(ConnectionError::new("the connection was given up"));
            };
            match piece(input, &mut transfer, span, kind, length).await {
                Ok(()) => {
                    table.settle(key, transfer);
                    Ok(())
                }
                Err(broken) => {
                    table.fail(transfer, &broken);
                    Err(broken)
                }
            }
        }
    }
}

async fn piece(input: &mut Input, transfer: &mut Transfer, span: Span, kind: u8, length: u32) -> Result<()> {
    match kind {
        kind::DATA => {
            let count = u32::from_be_bytes(input.array().await?);
            if count == 0 || count > span.len || length != count + 4 {
                return Err(ConnectionError::new(format!(
                    "the server sent {count} bytes where {} were asked for",
                    span.len
                )));
            }
            input.fill(&mut transfer.buffer, Span::new(span.at, count)).await?;
            if count < span.len {
                transfer.missing.push(Span::new(span.at + count, span.len - count));
            }
            Ok(())
        }
        kind::STATUS => {
            let body = input.vec(length as usize).await?;
            transfer.error =
                Some(failure(&body)?.unwrap_or_else(|| {
                    Error::new(Errno::Eio, "the server says that a read succeeded, and has no data")
                }));
            Ok(())
        }
        _ => Err(ConnectionError::new(format!("the server answered a read with a packet of type {kind}"))),
    }
}

/// The error of a STATUS; none if the request succeeded.
pub(crate) fn failure(body: &[u8]) -> Result<Option<Error>> {
    let mut reader = Reader(body);
    let code = reader.u32().ok_or_else(|| ConnectionError::new("the server sent a malformed status"))?;
    let message = reader.string().map(|text| String::from_utf8_lossy(&text[..text.len().min(400)]).into_owned());
    let message: String = message.unwrap_or_default().chars().map(|c| if is_hidden(c) { '?' } else { c }).collect();
    Ok(match code {
        status::OK => None,
        status::EOF => Some(Error::new(Errno::Eio, "the file ends before: it is shorter than it was")),
        code => Some(Error::new(errno(code), format!("the server says \"{message}\""))),
    })
}
