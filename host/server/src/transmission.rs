//! The transmission phase of one connection: requests in, operations run, answers out.
//!
//! The connection's task reads and runs requests; an operation that does not complete at its first poll becomes a task of its own.
//!
//! # Busy clients
//!
//! A client that keeps sending gets a thread, as long as there are less than [`MAX_THREADS`] such clients: the same code runs there, and
//! where it would wait for the client by way of the runtime the thread waits itself ([`Input::read_here`]). That spares each
//! request two changes of threads and a processor's way into sleep and out of it. When the client pauses the thread ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Client, Done, Errno, Error, Extents, Op, Pool};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout};

use super::answers::{Answers, Outgoing};
use super::budget::Pages;
use super::complaints::Complaints;
use super::guard::{caught, caught_now};
use super::receive::Received;
use super::socket::{Closed, Input, Output, Patience};
use super::{Server, Stop};
use rbdkit_chain::{Hop, STEP};
use rbdkit_nbd::reply::{self, Answer};
use rbdkit_nbd::{Command, Payload, RequestHeader, Session, Violation};

/// Answers collected before they are written: a longer batch saves no system call worth having, and makes the first answer wait.
const BATCH: usize = 32;

/// Bytes collected before they are written: about what a socket takes at once.
const BATCH_BYTES: u64 = 256 << 10;

/// Requests run before other tasks get a turn.
const TURN: usize = 64;

/// Bytes handled before other tasks get a turn: 1 MiB is about 100 microseconds of copying.
const TURN_BYTES: u64 = 1 << 20;

/// Reads and writes from this size on are run by whichever thread is idle if the client has sent more than this one, unless the layer is prompt: copying 128 KiB twice (from the
/// source and into the socket) takes some 20 microseconds, handing the read over one or two.
const ASIDE: Pages = Pages((128 << 10) / 4096);

/// The most extents in one answer, 512 KiB on the wire. The client asks again from where it ends.
const MAX_EXTENTS: usize = 1 << 16;

/// The most extents that a layer's list holds (see [`Extents::push`]).
const MOST_EXTENTS: u64 = 1 << 20;

/// Clients at a time that have a thread of their own. More busy clients than that have no use for it on any machine there is; they share
/// the runtime's.
pub(super) const MAX_THREADS: usize = 64;

/// Requests, none more than [`PAUSE`] after the one before, after which a client counts as busy. Starting a thread costs about as much as
/// five.
const BUSY: u32 = 16;

/// A client that sends nothing for so long is not busy.
const PAUSE: Duration = Duration::from_millis(10);

/// How often it is looked whether a client that is not read has gone.
const LOOK: Duration = Duration::from_secs(1);

/// Waits of [`Patience::LIMIT`] in vain after which a thread leaves its client: a tenth of a second.
const VAIN: u32 = 5;

/// Why [`Transmission::requests`] returns.
enum Next {
    /// No more requests.
    End(End),
    /// The client is busy: here is a place for its thread.
    Thread(OwnedSemaphorePermit),
    /// The client pauses: its thread is not needed any more.
    Pause,
}

/// Why the requests end.
#[derive(Debug)]
enum End {
    /// NBD_CMD_DISC.
    Disconnect,
    /// End of input without it, or an error.
    Gone,
    /// The client is not to be understood, or holds what others need.
    Violation(String),
    /// The server stops.
    Stop,
    /// A layer wants to be rid of the client ([`Client::disconnect`]).
    Unwanted,
}

async fn over(stop: Stop, client: Arc<Client>) -> End {
    tokio::select! {
        biased;
        () = stop.stopped() => End::Stop,
        () = client.until_unwanted() => End::Unwanted,
    }
}

/// Returns once a client has gone that is not read because it has enough in flight. One that has only closed its side may still want its answers:
/// it counts as gone when it got none for `patience`.
async fn deserted(input: &Input, answers: &Answers, patience: Duration) {
    let mut stuck = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let done = answers.requests_done();
        match (input.closed(), stuck) {
            (Closed::All, _) => return,
            (Closed::Nothing, _) => stuck = None,
            (Closed::Input, Some((since, before))) if before == done => {
                if Instant::now() - since >= patience {
                    return;
                }
            }
            (Closed::Input, _) => stuck = Some((Instant::now(), done)),
        }
    }
}

/// What the connection's task and its operations share.
struct Shared {
    hop: Arc<Hop>,
    session: Session,
    answers: Arc<Answers>,
    client: Arc<Client>,
    complaints: Complaints,
    /// Operations that became tasks.
    running: AtomicUsize,
}

/// One request on its way: what its answer needs.
#[derive(Clone, Copy)]
struct Ticket {
    header: RequestHeader,
    pages: Pages,
}

/// The reader's account of what is in flight.
struct InFlight {
    /// Counts what is done.
    answers: Arc<Answers>,
    /// Requests and pages admitted ever.
    requests: u64,
    pages: u64,
    max_requests: u64,
    max_pages: u64,
}

impl InFlight {
    fn requests(&self) -> u64 {
        self.requests - self.answers.requests_done()
    }

    fn has_room(&self, pages: Pages) -> bool {
        let in_flight = self.pages - self.answers.pages_done();
        self.requests() < self.max_requests && (in_flight == 0 || in_flight + u64::from(pages.0) <= self.max_pages)
    }

    fn add(&mut self, pages: Pages) {
        self.requests += 1;
        self.pages += u64::from(pages.0);
    }

    /// Takes back an [`InFlight::add`] of a request that did not happen.
    fn undo(&mut self, pages: Pages) {
        self.requests -= 1;
        self.pages -= u64::from(pages.0);
    }
}

pub(super) struct Transmission {
    server: Arc<Server>,
    input: Input,
    shared: Arc<Shared>,
    received: Received,
    /// While a thread of its own does it.
    patience: Option<Patience>,
    /// Requests in a row without a pause, and when the last of them were read.
    row: u32,
    last_read: Instant,
    /// Answered, not yet queued.
    batch: Vec<Outgoing>,
    batch_bytes: u64,
    /// Since the last turn of the others.
    turn: usize,
    turn_bytes: u64,
    in_flight: InFlight,
    stop: Stop,
    /// The server stops, or does not want the client any more.
    over: Pin<Box<dyn Future<Output = End> + Send>>,
}

impl Transmission {
    pub fn new(
        server: &Arc<Server>,
        input: Input,
        output: Arc<Output>,
        client: Arc<Client>,
        hop: Arc<Hop>,
        session: Session,
        stop: Stop,
    ) -> Transmission {
        let limits = &server.options.limits;
        let stir = Arc::clone(server.chain.pool().stir());
        let answers = Arc::new(Answers::new(output, Arc::clone(&server.budget), stir, limits.stall_timeout));
        let in_flight = InFlight {
            answers: Arc::clone(&answers),
            requests: 0,
            pages: 0,
            max_requests: limits.requests_per_connection as u64,
            max_pages: Pages::of(limits.bytes_per_connection).0.into(),
        };
        Transmission {
            server: Arc::clone(server),
            input,
            shared: Arc::new(Shared {
                hop,
                session,
                answers,
                complaints: Complaints::new(client.id),
                client: Arc::clone(&client),
                running: AtomicUsize::new(0),
            }),
            received: Received::default(),
            patience: None,
            row: 0,
            last_read: Instant::now(),
            batch: Vec::new(),
            batch_bytes: 0,
            turn: 0,
            turn_bytes: 0,
            in_flight,
            over: Box::pin(over(stop.clone(), Arc::clone(&client))),
            stop,
        }
    }

    /// Serves until the client leaves or the server stops, and waits until nothing is in flight any more.
    pub async fn run(mut self) {
        let end = loop {
            match self.requests().await {
                Next::End(end) => break end,
                Next::Pause => {}
                Next::Thread(place) => match self.on_thread(place).await {
                    Some((me, Next::End(end))) => {
                        self = me;
                        break end;
                    }
                    Some((me, _)) => self = me,
                    None => return,
                },
            }
        };
        self.flush();
        tracing::debug!("connection {}: {end:?}", self.shared.client.id);
        match end {
            End::Disconnect => self.leaving().await,
            End::Stop => {}
            End::Gone | End::Unwanted => self.shared.client.set_gone(),
            End::Violation(what) => {
                tracing::warn!("connection {}: closed: {what}", self.shared.client.id);
                self.shared.client.set_gone();
            }
        }
        self.drain().await;
        self.shared.client.set_gone();
    }

    /// Goes on in a thread of its own. None cannot happen: a panic in there is caught.
    async fn on_thread(mut self, place: OwnedSemaphorePermit) -> Option<(Transmission, Next)> {
        let runtime = tokio::runtime::Handle::current();
        // It gets this connection once it runs: if it cannot be started nothing is lost.
        let (give, take) = std::sync::mpsc::sync_channel::<Transmission>(1);
        let (answer, answered) = oneshot::channel();
        let work = move || {
            let _place = place;
            let Ok(mut me) = take.recv() else { return };
            me.patience = Some(Patience::new(Arc::clone(&me.server.threads)));
            let next = runtime.block_on(caught(me.requests())).unwrap_or_else(|panic| {
                tracing::error!("connection {}: {panic}", me.shared.client.id);
                Next::End(End::Gone)
            });
            me.patience = None;
            let _ = answer.send((me, next));
        };
        self.row = 0;
        match std::thread::Builder::new().name("rbdkit-client".to_string()).spawn(work) {
            Ok(_) => {
                let _ = give.send(self);
                answered.await.ok()
            }
            Err(error) => {
                tracing::debug!("connection {}: no thread for it: {error}", self.shared.client.id);
                Some((self, Next::Pause))
            }
        }
    }

    async fn requests(&mut self) -> Next {
        self.requests_or_end().await.unwrap_or_else(Next::End)
    }

    async fn requests_or_end(&mut self) -> Result<Next, End> {
        let mut vain = 0;
        loop {
            while let Some(header) = self.next_header()? {
                self.received.consume(RequestHeader::SIZE);
                self.row = self.row.saturating_add(1);
                self.request(header).await?;
            }
            self.flush();
            self.let_others().await;
            if self.shared.answers.is_broken() {
                return Err(End::Gone);
            }
            let pool = &self.server.receive_pool;
            if self.patience.is_some() {
                if self.stop.is_stopped() {
                    return Err(End::Stop);
                }
                if self.shared.client.is_unwanted() {
                    return Err(End::Unwanted);
                }
                match self.received.read(&mut self.input, pool, self.patience.as_mut()).await {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        vain += 1;
                        if vain == VAIN {
                            return Ok(Next::Pause);
                        }
                    }
                    read => {
                        vain = 0;
                        if ended(read)? == 0 {
                            return Err(End::Gone);
                        }
                    }
                }
                continue;
            }
            let read = tokio::select! {
                biased;
                end = &mut self.over => return Err(end),
                read = self.received.read(&mut self.input, pool, None) => read,
            };
            if ended(read)? == 0 {
                return Err(End::Gone);
            }
            if self.is_busy()
                && let Ok(place) = Arc::clone(&self.server.threads).try_acquire_owned()
            {
                return Ok(Next::Thread(place));
            }
        }
    }

    /// Whether the client sends all the time. Called after each read.
    fn is_busy(&mut self) -> bool {
        let now = Instant::now();
        if now - self.last_read > PAUSE {
            self.row = 0;
        }
        self.last_read = now;
        self.row >= BUSY
    }

    fn next_header(&self) -> Result<Option<RequestHeader>, End> {
        RequestHeader::parse(self.received.bytes()).map_err(violation)
    }

    async fn request(&mut self, header: RequestHeader) -> Result<(), End> {
        let checked = self.shared.session.check(&header);
        let pages = reservation(&checked);
        match Session::payload(&header, &checked).map_err(violation)? {
            Payload::Skip(length) => self.skip(length).await?,
            Payload::None | Payload::Data(_) => {}
        }
        if matches!(checked, Ok(Command::Disconnect)) {
            return Err(End::Disconnect);
        }
        self.admit(pages).await?;
        let ticket = Ticket { header, pages };
        let is_read = matches!(checked, Ok(Command::Read { .. }));
        let outgoing = match checked {
            Err(error) => {
                tracing::debug!("{}: {error}", header.name());
                Some(self.shared.refusal(ticket, false, &error))
            }
            Ok(command @ (Command::Read { length, .. } | Command::Write { length, .. })) => {
                let mut buffer = self.pool().take(length);
                let payload = if matches!(command, Command::Write { .. }) { length } else { 0 };
                self.received.expect(payload);
                if payload > 0 {
                    self.payload(&mut buffer, pages).await?;
                }
                let busy = self.in_flight.requests() > 1 || !self.received.bytes().is_empty();
                let aside = pages >= ASIDE && busy && !self.shared.hop.is_prompt() && self.others_idle();
                Shared::run_with(&self.shared, ticket, command, buffer, aside)
            }
            Ok(command) => Shared::run(&self.shared, ticket, command),
        };
        let mut handled = pages.bytes();
        if let Some(outgoing) = outgoing {
            // A hole is a few bytes on the wire, and nobody copied any, however long it is.
            if is_read {
                handled = outgoing.answer.length() as u64;
            }
            self.batch_bytes = self.batch_bytes.saturating_add(handled);
            self.batch.push(outgoing);
            if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
                self.flush();
            }
        }
        self.turn += 1;
        self.turn_bytes = self.turn_bytes.saturating_add(handled);
        self.let_others().await;
        Ok(())
    }

    /// Whether there may be a processor that no busy client needs.
    fn others_idle(&self) -> bool {
        Patience::is_roomy(&self.server.threads)
    }

    fn pool(&self) -> &Pool {
        self.server.chain.pool()
    }

    fn flush(&mut self) {
        self.shared.answers.send(&mut self.batch, self.patience.is_some());
        self.batch_bytes = 0;
    }

    /// No flood of one client starves the others.
    async fn let_others(&mut self) {
        if self.patience.is_some() {
            // Nobody else needs this thread.
            return;
        }
        if self.turn >= TURN || self.turn_bytes >= TURN_BYTES {
            (self.turn, self.turn_bytes) = (0, 0);
            self.flush();
            tokio::task::yield_now().await;
        }
    }

    /// Waits for room below the connection's ceiling and then the server's. Until then nothing more is read.
    async fn admit(&mut self, pages: Pages) -> Result<(), End> {
        if !self.in_flight.has_room(pages) {
            self.flush();
            let (in_flight, answers) = (&self.in_flight, &self.shared.answers);
            tokio::select! {
                end = &mut self.over => return Err(end),
                () = answers.until(|| in_flight.has_room(pages) || answers.is_broken()) => {}
                () = deserted(&self.input, answers, self.server.options.limits.answer_timeout) => return Err(End::Gone),
            }
            if self.shared.answers.is_broken() {
                return Err(End::Gone);
            }
        }
        if !self.server.budget.try_take(pages) {
            self.flush();
            tokio::select! {
                biased;
                end = &mut self.over => return Err(end),
                () = self.server.budget.take(pages) => {}
                () = deserted(&self.input, &self.shared.answers, self.server.options.limits.answer_timeout) => {
                    return Err(End::Gone);
                }
            }
        }
        self.in_flight.add(pages);
        Ok(())
    }

    /// Receives a write's payload. If the client does not send it, what was admitted is given back.
    async fn payload(&mut self, buffer: &mut Buffer, pages: Pages) -> Result<(), End> {
        let result = self.receive_payload(buffer).await;
        if result.is_err() {
            self.in_flight.undo(pages);
            self.server.budget.give_back(u64::from(pages.0));
        }
        result
    }

    async fn receive_payload(&mut self, buffer: &mut Buffer) -> Result<(), End> {
        let mut filled = self.received.fill(buffer, 0);
        if filled < buffer.len() {
            self.flush();
        }
        let stall = self.server.options.limits.stall_timeout;
        // A client that pauses in the middle of a payload is waited for by way of the runtime.
        let mut patient = self.patience.is_some();
        while filled < buffer.len() {
            let (input, pool) = (&mut self.input, &self.server.receive_pool);
            if patient {
                match self.received.read_payload(input, pool, self.patience.as_mut(), buffer, filled).await {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => patient = false,
                    read => match ended(read)? {
                        same if same == filled => return Err(End::Gone),
                        more => filled = more,
                    },
                }
                continue;
            }
            let read = tokio::select! {
                biased;
                end = &mut self.over => return Err(end),
                read = timeout(stall, self.received.read_payload(input, pool, None, buffer, filled)) => read,
            };
            match read {
                Ok(read) => match ended(read)? {
                    same if same == filled => return Err(End::Gone),
                    more => filled = more,
                },
                Err(_) if self.server.budget.is_short() => {
                    return Err(End::Violation("sends no payload while others wait for room".to_string()));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Reads past a payload that nobody wants.
    async fn skip(&mut self, length: u32) -> Result<(), End> {
        let mut left = length as usize;
        loop {
            let here = self.received.bytes().len().min(left);
            self.received.consume(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.flush();
            let read = tokio::select! {
                biased;
                end = &mut self.over => return Err(end),
                read = self.received.read(&mut self.input, &self.server.receive_pool, None) => read,
            };
            if ended(read)? == 0 {
                return Err(End::Gone);
            }
        }
    }

    /// Waits for the operations of a client that said goodbye and may still want their answers. It has gone if it has closed its side, or sends
    /// what it must not send any more, and operations go on for long after that.
    async fn leaving(&mut self) {
        let patience = self.server.options.limits.answer_timeout;
        let shared = Arc::clone(&self.shared);
        let closed = async {
            let _ = self.received.read(&mut self.input, &self.server.receive_pool, None).await;
            tokio::time::sleep(patience).await;
        };
        tokio::select! {
            biased;
            () = shared.answers.until(|| shared.running.load(Ordering::SeqCst) == 0) => {}
            () = closed => shared.client.set_gone(),
        }
    }

    /// Waits until every operation has ended, however long that takes, and its answer is written, as long as the client takes answers.
    async fn drain(&mut self) {
        let (shared, in_flight) = (&self.shared, &self.in_flight);
        let answers = &shared.answers;
        answers.until(|| shared.running.load(Ordering::SeqCst) == 0).await;
        let patience = self.server.options.limits.answer_timeout;
        let mut written = answers.written();
        let mut since = Instant::now();
        while in_flight.requests() > 0 {
            let none_left = answers.until(|| in_flight.requests() == 0);
            let _ = tokio::time::timeout_at(since + patience, none_left).await;
            if answers.written() != written {
                (written, since) = (answers.written(), Instant::now());
            } else if since.elapsed() >= patience && !answers.is_broken() {
                tracing::debug!("connection {}: the client does not take its answers", shared.client.id);
                answers.break_off();
                since = Instant::now();
            }
        }
    }
}

fn violation(violation: Violation) -> End {
    End::Violation(violation.to_string())
}

fn ended<T>(read: io::Result<T>) -> Result<T, End> {
    read.map_err(|error| {
        tracing::debug!("reading from the client: {error}");
        End::Gone
    })
}

/// What a request holds while it is in flight.
fn reservation(checked: &Result<Command, Error>) -> Pages {
    match checked {
        Ok(Command::Read { length, .. } | Command::Write { length, .. }) => Pages::of(u64::from(*length)),
        // Extents are rarely finer than a sector; each takes 32 bytes in the list and 8 in the answer.
        Ok(Command::BlockStatus { length, flags, .. }) if !flags.req_one => {
            let extents = (u64::from(*length) / 512 + 1).min(MOST_EXTENTS);
            Pages::of(extents * 40)
        }
        // Where a layer cannot do it, it is done by reading or writing in steps.
        Ok(Command::Zero { length, .. } | Command::Cache { length, .. }) => Pages::of(u64::from(*length.min(&STEP))),
        _ => Pages::default(),
    }
}

impl Shared {
    /// Starts an operation and polls it once. None: it goes on as a task, which answers.
    fn start<T: Send + 'static>(
        this: &Arc<Shared>,
        ticket: Ticket,
        call: impl FnOnce(&Arc<Hop>) -> Op<T>,
        finish: impl FnOnce(&Shared, Ticket, Result<T, Error>) -> Outgoing + Send + 'static,
    ) -> Option<Outgoing> {
        // Whoever is still pending is polled again by its task at once, with that task's waker: this poll needs none.
        let mut context = Context::from_waker(Waker::noop());
        let later = match caught_now(|| call(&this.hop).poll_now(&mut context)) {
            Ok(Op::Ready(value)) => return Some(finish(this, ticket, Ok(value))),
            Ok(Op::Later(future)) => future,
            Ok(Op::Taken) => {
                let error = Error::new(Errno::Eio, "an operation without an answer");
                return Some(finish(this, ticket, Err(error)));
            }
            Err(panic) => return Some(finish(this, ticket, Err(panic))),
        };
        Shared::go_on(this, ticket, later, finish);
        None
    }

    /// As [`Shared::start`], but on another thread if one is idle.
    fn start_aside<T: Send + 'static>(
        this: &Arc<Shared>,
        ticket: Ticket,
        call: impl FnOnce(&Arc<Hop>) -> Op<T> + Send + 'static,
        finish: impl FnOnce(&Shared, Ticket, Result<T, Error>) -> Outgoing + Send + 'static,
    ) {
        let hop = Arc::clone(&this.hop);
        let operation = async move {
            match call(&hop) {
                Op::Ready(value) => value,
                Op::Later(future) => future.await,
                Op::Taken => panic!("an operation without an answer"),
            }
        };
        Shared::go_on(this, ticket, operation, finish);
    }

    /// Polls an operation to its end as a task of its own, and answers.
    fn go_on<T: Send + 'static>(
        this: &Arc<Shared>,
        ticket: Ticket,
        operation: impl Future<Output = T> + Send + 'static,
        finish: impl FnOnce(&Shared, Ticket, Result<T, Error>) -> Outgoing + Send + 'static,
    ) {
        this.running.fetch_add(1, Ordering::SeqCst);
        let this = Arc::clone(this);
        tokio::spawn(async move {
            let value = caught(operation).await;
            // Building an answer runs no code of a layer, but a fault in it must not lose the request either.
            let outgoing = caught_now(|| finish(&this, ticket, value))
                .unwrap_or_else(|panic| this.failure(ticket, false, false, &panic));
            this.answers.send(&mut vec![outgoing], false);
            this.running.fetch_sub(1, Ordering::SeqCst);
            this.answers.nudge();
        });
    }

    fn run_with(this: &Arc<Shared>, ticket: Ticket, command: Command, buffer: Buffer, aside: bool) -> Option<Outgoing> {
        let span = buffer.span();
        match command {
            Command::Read { offset, dont_fragment, .. } => {
                let call = move |hop: &Arc<Hop>| hop.pread(buffer, span, offset);
                let finish = move |this: &Shared, ticket: Ticket, value: Result<Done, Error>| {
                    let cookie = ticket.header.cookie;
                    match value.and_then(|(buffer, result)| result.map(|()| buffer)) {
                        Ok(buffer) => {
                            let structured = this.session.structured;
                            this.outgoing(ticket, Answer::data(structured, dont_fragment, cookie, offset, buffer))
                        }
                        Err(error) => this.failure(ticket, false, dont_fragment, &error),
                    }
                };
                if aside {
                    Shared::start_aside(this, ticket, call, finish);
                    return None;
                }
                Shared::start(this, ticket, call, finish)
            }
            Command::Write { offset, flags, .. } => {
                let call = move |hop: &Arc<Hop>| hop.pwrite(buffer, span, offset, flags);
                let finish = |this: &Shared, ticket: Ticket, value: Result<Done, Error>| {
                    this.done(ticket, false, value.and_then(|(_, result)| result))
                };
                if aside {
                    Shared::start_aside(this, ticket, call, finish);
                    return None;
                }
                Shared::start(this, ticket, call, finish)
            }
            _ => Shared::run(this, ticket, command),
        }
    }

    fn run(this: &Arc<Shared>, ticket: Ticket, command: Command) -> Option<Outgoing> {
        match command {
            Command::Flush => Shared::without_data(this, ticket, false, |hop| hop.flush()),
            Command::Trim { offset, length, flags } => {
                Shared::without_data(this, ticket, false, |hop| hop.trim(offset, length.into(), flags))
            }
            Command::Cache { offset, length } => {
                Shared::without_data(this, ticket, false, |hop| hop.cache(offset, length.into()))
            }
            Command::Zero { offset, length, flags } => {
                Shared::without_data(this, ticket, flags.fast_zero, |hop| hop.zero(offset, length.into(), flags))
            }
            Command::BlockStatus { offset, length, flags } => Shared::start(
                this,
                ticket,
                |hop| hop.extents(offset, length.into(), flags),
                |this, ticket, value: Result<Result<Extents, Error>, Error>| match value.and_then(|result| result) {
                    Ok(extents) => {
                        this.outgoing(ticket, Answer::block_status(ticket.header.cookie, &extents, MAX_EXTENTS))
                    }
                    Err(error) => this.failure(ticket, false, false, &error),
                },
            ),
            Command::Read { .. } | Command::Write { .. } | Command::Disconnect => {
                let error = Error::new(Errno::Eio, "a command in the wrong place");
                Some(this.failure(ticket, false, false, &error))
            }
        }
    }

    fn without_data(
        this: &Arc<Shared>,
        ticket: Ticket,
        fast_zero: bool,
        call: impl FnOnce(&Arc<Hop>) -> Op<Result<(), Error>>,
    ) -> Option<Outgoing> {
        Shared::start(this, ticket, call, move |this, ticket, value| {
            this.done(ticket, fast_zero, value.and_then(|result| result))
        })
    }

    fn outgoing(&self, ticket: Ticket, answer: Answer) -> Outgoing {
        Outgoing { answer, pages: ticket.pages }
    }

    fn done(&self, ticket: Ticket, fast_zero: bool, result: Result<(), Error>) -> Outgoing {
        match result {
            Ok(()) => self.outgoing(ticket, Answer::done(ticket.header.cookie)),
            Err(error) => self.failure(ticket, fast_zero, false, &error),
        }
    }

    /// An operation failed: into the log, once, and to the client.
    fn failure(&self, ticket: Ticket, fast_zero: bool, dont_fragment: bool, error: &Error) -> Outgoing {
        let RequestHeader { offset, length, .. } = ticket.header;
        let (id, name) = (self.client.id, ticket.header.name());
        match error.errno() {
            // It was ended for that.
            Errno::Eshutdown if self.client.is_gone() => {
                tracing::debug!("connection {id}: {name} offset={offset} length={length}: {error}")
            }
            // An answer rather than a fault.
            Errno::Enotsup if fast_zero => {
                tracing::debug!("connection {id}: {name} offset={offset} length={length}: {error}")
            }
            _ => self.complaints.say(|| format!("connection {id}: {name} offset={offset} length={length}: {error}")),
        }
        let errno = reply::errno(error.errno(), fast_zero, dont_fragment);
        self.outgoing(ticket, Answer::error(self.session.structured, ticket.header.cookie, errno, error))
    }

    /// A request was not even tried.
    fn refusal(&self, ticket: Ticket, dont_fragment: bool, error: &Error) -> Outgoing {
        let errno = reply::errno(error.errno(), false, dont_fragment);
        self.outgoing(ticket, Answer::error(self.session.structured, ticket.header.cookie, errno, error))
    }
}
