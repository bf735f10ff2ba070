//! A client's view of the other server's export. Long requests are cut into pieces that the server
//! accepts. Requests that are not aligned to the server's minimum block size are refused: this
//! plugin negotiated block sizes with the server, so it has to keep to them.

use std::sync::Arc;

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Client, Disk, Done, Errno, Error, Extents, Flags, Handle, Op,
    RangeCommand, Result, Span, Support,
};

use crate::connection::{Command, Connection};
use crate::handshake::Format;
use crate::wire::{cmd, cmd_flag, transmission};

/// The most data in one request to a server that does not announce its limit: 32 MiB, as the
/// specification says.
const DEFAULT_MAXIMUM: u32 = 32 << 20;

/// The longest request without data of a server without extended headers, in bytes: a multiple of
/// every block size, and not negative in a server that stores the length in an `int`.
const MAX_LENGTH: u64 = 1 << 30;

pub(crate) struct NbdHandle {
    connection: Arc<Connection>,
    /// Whether other clients use the connection too. Then it is not closed with this handle.
    shared: bool,
    disk: Disk,
    client: Arc<Client>,
}

impl NbdHandle {
    pub(crate) fn new(connection: Arc<Connection>, shared: bool, disk: Disk, client: Arc<Client>) -> NbdHandle {
        NbdHandle { connection, shared, disk, client }
    }

    /// Whether requests without data may have any length.
    fn is_extended(&self) -> bool {
        self.connection.session().format == Format::Extended
    }

    /// The most data in one request.
    fn maximum(&self) -> u32 {
        let maximum = self.connection.session().block_sizes.map_or(DEFAULT_MAXIMUM, |sizes| sizes.maximum);
        maximum.min(rbdkit_plugin_api::MAX_REQUEST)
    }

    /// Checks that a range is aligned to the server's minimum block size. It may end at the size.
    fn check_aligned(&self, offset: u64, length: u64) -> Result<()> {
        let session = self.connection.session();
        let minimum = session.block_sizes.map_or(1, |sizes| u64::from(sizes.minimum));
        let end = offset + length;
        if offset.is_multiple_of(minimum) && (end.is_multiple_of(minimum) || end == session.size) {
            return Ok(());
        }
        let what = format!(
            "nbd: the other server only takes requests that are aligned to {minimum} bytes (--filter=blocksize aligns \
                them)"
        );
        Err(Error::new(Errno::Einval, what))
    }

    /// Sends a command without data: as a whole if the server takes lengths of 64 bits, otherwise
    /// piece by piece. A server may refuse a long request that would take too much work. Then it
    /// gets pieces, too.
    fn command(&self, kind: u16, flags: u16, offset: u64, length: u64) -> Op<Result<()>> {
        if let Err(error) = self.check_aligned(offset, length) {
            return Op::Ready(Err(error));
        }
        let (connection, client) = (Arc::clone(&self.connection), Arc::clone(&self.client));
        let whole = self.is_extended() || length <= MAX_LENGTH;
        Op::later(async move {
            if whole {
                match connection.command(Command { kind, flags, offset, length }, &[]).await {
                    Err(error) if length > MAX_LENGTH && matches!(error.errno(), Errno::Eoverflow | Errno::Einval) => {}
                    answer => return answer,
                }
            }
            let mut done = 0;
            while done < length {
                // The rest of a request of 2^63 bytes would take years.
                if done > u64::from(u32::MAX) && client.is_gone() {
                    return Err(Errno::Eshutdown.into());
                }
                let piece = (length - done).min(MAX_LENGTH);
                connection.command(Command { kind, flags, offset: offset + done, length: piece }, &[]).await?;
                done += piece;
            }
            Ok(())
        })
    }
}

fn fua(flags: Flags) -> u16 {
    if flags.fua { cmd_flag::FUA } else { 0 }
}

/// `span` in pieces of up to `maximum`.
fn pieces(span: Span, maximum: u32) -> impl Iterator<Item = Span> {
    (0..span.len).step_by(maximum.max(1) as usize).map(move |at| Span::new(span.at + at, (span.len - at).min(maximum)))
}

impl Handle for NbdHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.connection.session().size))
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        // Requests beyond the server's maximum are cut here, so clients see no maximum.
        Op::Ready(Ok(self.connection.session().block_sizes.map(|sizes| BlockSizes { maximum: u32::MAX, ..sizes })))
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        Op::Ready(Ok(self.connection.session().description.clone()))
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        Box::pin(async { Ok(self.disk.clone()) })
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        let offers = |flag| self.connection.offers(flag);
        let native_or = |flag, otherwise| if offers(flag) { Support::Native } else { otherwise };
        Op::Ready(Ok(Capabilities {
            write: !self.connection.is_read_only(),
            flush: offers(transmission::SEND_FLUSH),
            rotational: offers(transmission::ROTATIONAL),
            trim: offers(transmission::SEND_TRIM),
            fast_zero: offers(transmission::SEND_FAST_ZERO),
            extents: self.connection.session().context.is_some(),
            // On a shared connection every flush covers every write that was answered.
            multi_conn: self.shared || offers(transmission::CAN_MULTI_CONN),
            zero: native_or(transmission::SEND_WRITE_ZEROES, Support::Emulate),
            fua: native_or(transmission::SEND_FUA, Support::Emulate),
            // Emulation would read over the network and discard the data, which prefetches nothing.
            cache: native_or(transmission::SEND_CACHE, Support::None),
        }))
    }

    /// A dropped read frees its buffer. If it was half sent, that ends the connection, which other
    /// clients must not notice.
    fn drops_reads(&self) -> bool {
        !self.shared
    }

    /// Without extended headers the gate cuts long requests, and ends them when the client has
    /// gone.
    fn takes_long(&self, _: RangeCommand) -> bool {
        self.is_extended()
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if let Err(error) = self.check_aligned(offset, span.len.into()) {
            return Op::Ready((buffer, Err(error)));
        }
        let (connection, maximum) = (Arc::clone(&self.connection), self.maximum());
        Op::later(async move {
            if span.len <= maximum {
                return connection.read(buffer, span, offset).await;
            }
            for piece in pieces(span, maximum) {
                let from = offset + u64::from(piece.at - span.at);
                let (back, result) = connection.read(buffer, piece, from).await;
                if result.is_err() {
                    return (back, result);
                }
                buffer = back;
            }
            (buffer, Ok(()))
        })
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        if let Err(error) = self.check_aligned(offset, span.len.into()) {
            return Op::Ready((buffer, Err(error)));
        }
        let (connection, maximum) = (Arc::clone(&self.connection), self.maximum());
        Op::later(async move {
            for piece in pieces(span, maximum) {
                let to = offset + u64::from(piece.at - span.at);
                if let Err(error) = connection.write(buffer.data(piece), to, flags).await {
                    return (buffer, Err(error));
                }
            }
            (buffer, Ok(()))
        })
    }

    fn flush(&self) -> Op<Result<()>> {
        let connection = Arc::clone(&self.connection);
        Op::later(async move { connection.command(Command::FLUSH, &[]).await })
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.command(cmd::TRIM, fua(flags), offset, length)
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let no_hole = if flags.may_trim { 0 } else { cmd_flag::NO_HOLE };
        let fast = if flags.fast_zero { cmd_flag::FAST_ZERO } else { 0 };
        self.command(cmd::WRITE_ZEROES, fua(flags) | no_hole | fast, offset, length)
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.command(cmd::CACHE, 0, offset, length)
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        if let Err(error) = self.check_aligned(offset, length) {
            return Op::Ready(Err(error));
        }
        let connection = Arc::clone(&self.connection);
        let req_one = if flags.req_one { cmd_flag::REQ_ONE } else { 0 };
        // An answer may cover less than the request.
        let length = if self.is_extended() { length } else { length.min(MAX_LENGTH) };
        Op::later(async move {
            connection.status(Command { kind: cmd::BLOCK_STATUS, flags: req_one, offset, length }).await
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if !self.shared {
                self.connection.close().await;
            }
        })
    }
}
