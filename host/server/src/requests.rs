//! [`RequestReader`]: reads the requests of one client and starts each of them.
//!
//! The reader takes all complete requests out of what one `read` returns and dispatches them one
//! after the other. Replies that are ready at once are collected in a batch and written together,
//! before the reader waits for the client again. When a request would exceed a limit on what is in
//! flight, the reader waits. Meanwhile it reads nothing more from that client.
//!
//! The same code runs in two places: in the connection's task, where it waits through the runtime,
//! or on a thread of its own (`client_thread`), where the thread itself waits for the socket
//! ([`SpinWait`]). The reader decides when to change: see [`HandOver`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_nbd::{Command, FILTER_SIZE, ReplyFormat, RequestHeader, RequestPayload, Session};
use rbdkit_plugin_api::{Buffer, Client};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::admission::{Admission, pages_for};
use super::budget::Pages;
use super::connections::LastUse;
use super::dispatch::{Dispatcher, RunOn, Ticket};
use super::end::{EndReason, EndSignal, disconnected, end_signal, or_gone};
use super::receive::ReceiveBuffer;
use super::reply_queue::{QueuedReply, WriteFrom};
use super::socket::Input;
use super::spin::SpinWait;
use super::stall::StallWatch;
use super::state::ServerState;
use super::stop::Stop;

/// The most replies in a batch. A longer batch would save hardly any system calls, and would delay
/// its first reply.
const MAX_BATCH: usize = 32;

/// The most bytes in a batch: about what a socket takes at once.
const MAX_BATCH_BYTES: u64 = 256 << 10;

/// Requests run before other tasks of the runtime get a turn.
const MAX_TURN: usize = 64;

/// Bytes handled before other tasks get a turn: 1 MiB is about 100 microseconds of copying.
const MAX_TURN_BYTES: u64 = 1 << 20;

/// Reads and writes from this size on run on any idle thread, if the client has sent further
/// requests and the layer is not prompt. Copying 128 KiB twice (from the source and into the
/// socket) takes some 20 microseconds. Passing the request to another thread takes one or two.
const MIN_FOR_IDLE_THREAD: Pages = Pages((128 << 10) / 4096);

/// A client counts as busy after so many requests, each within [`MAX_GAP`] of the one before.
/// Starting a thread costs about as much as five requests.
const BUSY_AFTER: u32 = 16;

/// A client that sends nothing for this long is not busy.
const MAX_GAP: Duration = Duration::from_millis(10);

/// After this many empty waits (100 ms in all, see [`SpinWait::MAX_SLEEP`]) the thread stops
/// waiting for its client and returns the connection to the runtime.
const MAX_EMPTY_WAITS: u32 = 5;

/// Why [`RequestReader::read_requests`] returns.
pub(super) enum HandOver {
    /// There are no more requests.
    End(EndReason),
    /// The client is busy. This permit is for its thread.
    ToThread(OwnedSemaphorePermit),
    /// The client pauses: it does not need its thread any more.
    ToRuntime,
}

/// The incoming side of one connection.
pub(super) struct RequestReader {
    pub server: Arc<ServerState>,
    pub dispatcher: Arc<Dispatcher>,
    pub admission: Admission,
    pub input: Input,
    received: ReceiveBuffer,
    /// How requests look.
    format: ReplyFormat,
    /// Some while the reader runs on a thread of its own.
    spin: Option<SpinWait>,
    /// Requests in a row without a gap, and when the last of them were read.
    in_a_row: u32,
    last_read: Instant,
    /// For the limit on connections.
    last_use: Option<Arc<LastUse>>,
    /// Replies that are ready and not yet in the queue.
    batch: Vec<QueuedReply>,
    batch_bytes: u64,
    /// What was handled since other tasks had their last turn.
    turn: usize,
    turn_bytes: u64,
    stop: Stop,
    end: EndSignal,
}

impl RequestReader {
    pub fn new(server: &Arc<ServerState>, input: Input, dispatcher: Arc<Dispatcher>, stop: Stop) -> RequestReader {
        let replies = Arc::clone(&dispatcher.replies);
        let end = end_signal(stop.clone(), Arc::clone(&dispatcher.client));
        RequestReader {
            server: Arc::clone(server),
            admission: Admission::new(replies, &server.options.limits),
            input,
            received: ReceiveBuffer::default(),
            format: dispatcher.session.reply_format,
            spin: None,
            in_a_row: 0,
            last_read: Instant::now(),
            last_use: server.connections.last_use(dispatcher.client.id),
            batch: Vec::new(),
            batch_bytes: 0,
            turn: 0,
            turn_bytes: 0,
            stop,
            end,
            dispatcher,
        }
    }

    pub fn client(&self) -> &Arc<Client> {
        &self.dispatcher.client
    }

    /// The client has to show again that it is busy before it is offered a thread.
    pub fn forget_busy(&mut self) {
        self.in_a_row = 0;
    }

    /// From now on the reader waits as a thread that serves only this client.
    pub fn wait_as_thread(&mut self) {
        self.spin = Some(SpinWait::new(self.server.thread_permits.clone()));
        if let Some(last_use) = &self.last_use {
            last_use.note_in_use();
        }
    }

    /// From now on the reader waits through the runtime.
    pub fn wait_as_task(&mut self) {
        self.spin = None;
        if let Some(last_use) = &self.last_use {
            last_use.note(Instant::now().into_std());
        }
    }

    /// Reads and dispatches requests until the connection ends or has to move.
    pub async fn read_requests(&mut self) -> HandOver {
        self.requests_or_end().await.unwrap_or_else(HandOver::End)
    }

    async fn requests_or_end(&mut self) -> Result<HandOver, EndReason> {
        let mut empty_waits = 0;
        loop {
            while let Some(header) = RequestHeader::parse(self.received.bytes(), self.format)? {
                self.received.consume(self.format.header_size());
                self.in_a_row = self.in_a_row.saturating_add(1);
                self.request(header).await?;
            }
            self.flush();
            self.yield_after_turn().await;
            if self.dispatcher.replies.is_broken() {
                return Err(EndReason::Gone);
            }
            let pool = &self.server.receive_pool;
            if self.spin.is_some() {
                if self.stop.is_stopped() {
                    return Err(EndReason::Stop);
                }
                if self.dispatcher.client.is_disconnect_requested() {
                    return Err(disconnected(&self.dispatcher.client));
                }
                match self.received.read(&mut self.input, pool, self.spin.as_mut()).await {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        empty_waits += 1;
                        if empty_waits == MAX_EMPTY_WAITS {
                            return Ok(HandOver::ToRuntime);
                        }
                    }
                    read => {
                        empty_waits = 0;
                        if or_gone(read)? == 0 {
                            return Err(EndReason::Gone);
                        }
                    }
                }
                continue;
            }
            let read = tokio::select! {
                biased;
                reason = &mut self.end => return Err(reason),
                read = self.received.read(&mut self.input, pool, None) => read,
            };
            if or_gone(read)? == 0 {
                return Err(EndReason::Gone);
            }
            if self.is_busy()
                && let Some(permit) = self.server.thread_permits.try_take()
            {
                return Ok(HandOver::ToThread(permit));
            }
        }
    }

    /// Whether the client sends all the time. Called after each read.
    fn is_busy(&mut self) -> bool {
        let now = Instant::now();
        if now - self.last_read > MAX_GAP {
            self.in_a_row = 0;
        }
        self.last_read = now;
        if let Some(last_use) = &self.last_use {
            last_use.note(now.into_std());
        }
        self.in_a_row >= BUSY_AFTER
    }

    async fn request(&mut self, header: RequestHeader) -> Result<(), EndReason> {
        let (header, checked) = match header.has_filter() {
            false => (header, self.dispatcher.session.check(&header)),
            true => {
                let filter = self.filter().await?;
                self.dispatcher.session.filtered(&header, filter)
            }
        };
        let pages = pages_for(&checked);
        match Session::payload(&header, &checked)? {
            RequestPayload::Skip(length) => self.skip(length).await?,
            RequestPayload::None | RequestPayload::Data(_) => {}
        }
        if matches!(checked, Ok(Command::Disconnect)) {
            return Err(EndReason::Disconnect);
        }
        if !self.admission.try_admit(pages) {
            self.flush();
            self.admission.admit(pages, &self.input, &mut self.end).await?;
        }
        let ticket = Ticket { header, pages };
        let is_read = matches!(checked, Ok(Command::Read { .. }));
        let reply = match checked {
            Err(error) => {
                tracing::debug!("{}: {error}", header.name());
                Some(self.dispatcher.refusal(ticket, &error))
            }
            Ok(command @ (Command::Read { length, .. } | Command::Write { length, .. })) => {
                let mut buffer = self.server.chain.pool().take(length);
                if self.input.is_tls() {
                    buffer.never_splice();
                }
                let payload = if matches!(command, Command::Write { .. }) { length } else { 0 };
                self.received.expect(payload);
                if payload > 0 {
                    self.payload(&mut buffer, pages).await?;
                }
                let run_on = self.run_on(pages);
                self.dispatcher.run_with_buffer(ticket, command, buffer, run_on)
            }
            Ok(command) => self.dispatcher.run(ticket, command),
        };
        let mut handled = pages.bytes();
        if let Some(reply) = reply {
            // A hole is a few bytes on the wire, however long it is, and none were copied.
            if is_read {
                handled = reply.reply.length() as u64;
            }
            self.batch_bytes = self.batch_bytes.saturating_add(handled);
            self.batch.push(reply);
            if self.batch.len() >= MAX_BATCH || self.batch_bytes >= MAX_BATCH_BYTES {
                self.flush();
            }
        }
        self.turn += 1;
        self.turn_bytes = self.turn_bytes.saturating_add(handled);
        self.yield_after_turn().await;
        Ok(())
    }

    /// Where a read or write of this size should run.
    fn run_on(&self, pages: Pages) -> RunOn {
        let has_more = self.admission.in_flight() > 1 || !self.received.bytes().is_empty();
        let elsewhere = pages >= MIN_FOR_IDLE_THREAD
            && has_more
            && !self.dispatcher.hop.is_prompt()
            && self.server.thread_permits.processors_suffice();
        if elsewhere { RunOn::IdleThread } else { RunOn::ReaderThread }
    }

    /// Queues the batch of replies.
    pub fn flush(&mut self) {
        let from = if self.spin.is_some() { WriteFrom::ClientThread } else { WriteFrom::Task };
        self.dispatcher.send(&mut self.batch, from);
        self.batch_bytes = 0;
    }

    /// Lets other tasks run after each turn, so that no client's flood of requests starves others.
    async fn yield_after_turn(&mut self) {
        if self.spin.is_some() {
            // No other task needs this thread.
            return;
        }
        if self.turn >= MAX_TURN || self.turn_bytes >= MAX_TURN_BYTES {
            (self.turn, self.turn_bytes) = (0, 0);
            self.flush();
            tokio::task::yield_now().await;
        }
    }

    /// Receives a write's payload. If it does not arrive, the admission is taken back.
    async fn payload(&mut self, buffer: &mut Buffer, pages: Pages) -> Result<(), EndReason> {
        let result = self.receive_payload(buffer).await;
        if result.is_err() {
            self.admission.cancel(pages);
        }
        result
    }

    async fn receive_payload(&mut self, buffer: &mut Buffer) -> Result<(), EndReason> {
        let mut filled = self.received.fill(buffer, 0);
        if filled == buffer.len() {
            return Ok(());
        }
        self.flush();
        let replies = Arc::clone(&self.dispatcher.replies);
        let payload_bytes = u64::from(buffer.len());
        let mut watch = StallWatch::new(self.server.options.limits.stall_timeout, payload_bytes);
        // If the client pauses in the middle of a payload, even a thread waits through the runtime.
        let mut as_thread = self.spin.is_some();
        while filled < buffer.len() {
            let (input, pool) = (&mut self.input, &self.server.receive_pool);
            let read = if as_thread {
                match self.received.read_payload(input, pool, self.spin.as_mut(), buffer, filled).await {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        as_thread = false;
                        continue;
                    }
                    read => read,
                }
            } else {
                tokio::select! {
                    biased;
                    reason = &mut self.end => return Err(reason),
                    read = self.received.read_payload(input, pool, None, buffer, filled) => read,
                    () = watch.until_in_the_way(replies.budget()) => {
                        return Err(EndReason::Violation("sends too little payload while others wait for room".into()));
                    }
                }
            };
            match or_gone(read)? {
                same if same == filled => return Err(EndReason::Gone),
                more => {
                    watch.moved(u64::from(more - filled), payload_bytes);
                    as_thread &= !watch.has_stalled();
                    filled = more;
                }
            }
        }
        Ok(())
    }

    /// Reads past the payload of a request that is refused.
    async fn skip(&mut self, length: u32) -> Result<(), EndReason> {
        let mut left = length as usize;
        loop {
            let here = self.received.bytes().len().min(left);
            self.received.consume(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.read_more().await?;
        }
    }

    /// Receives the payload that names the contexts of a BLOCK_STATUS. It fits into what a
    /// connection without a receive buffer has.
    async fn filter(&mut self) -> Result<[u8; FILTER_SIZE], EndReason> {
        loop {
            if let Some(filter) = self.received.bytes().first_chunk::<FILTER_SIZE>() {
                let filter = *filter;
                self.received.consume(FILTER_SIZE);
                return Ok(filter);
            }
            self.read_more().await?;
        }
    }

    /// Waits for more bytes of a message that has begun.
    async fn read_more(&mut self) -> Result<(), EndReason> {
        self.flush();
        let read = tokio::select! {
            biased;
            reason = &mut self.end => return Err(reason),
            read = self.received.read(&mut self.input, &self.server.receive_pool, None) => read,
        };
        match or_gone(read)? {
            0 => Err(EndReason::Gone),
            _ => Ok(()),
        }
    }
}
