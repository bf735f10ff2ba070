//! The thread that drives all transfers.
//!
//! libcurl's multi interface waits for all transfers at once. The thread owns all handles of
//! libcurl. Requests come over a channel, and each answer goes back over a channel of its own. At
//! most `connections=` requests run; the others wait in order. Transfers are reused, because
//! creating one costs more than changing the options that differ between requests.
//!
//! A request whose answer nobody waits for any more is dropped at once, with its connection: the
//! client has left, or the server stops. So a server that never answers keeps nothing busy. Only a
//! name lookup is waited for: a thread of libcurl runs it and cannot be stopped, and without this
//! wait clients that come and go could start any number of such threads.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock};

use curl::easy::Easy2;
use curl::multi::{Easy2Handle, Multi, MultiWaker};
use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::{ConfigError, Errno, Error, StopScope, lock};
use tokio::sync::oneshot;

use crate::config::Settings;
use crate::cookies::{self, Cookies, Counter};
use crate::jar::Jar;
use crate::raw;
use crate::secret::Secret;
use crate::setup;
use crate::times::Times;
use crate::transfer::{Answer, Job, Kept, Transfer};

enum Message {
    Request(Job),
    /// Somebody has stopped waiting for an answer.
    Abandoned,
    /// Write the cookie jar.
    SaveCookies(oneshot::Sender<()>),
    /// The server stops: end these requests, and refuse later ones.
    Stop(StopScope),
}

/// The sender's side of the thread. The thread starts with the first message, after the server has
/// confined itself, and ends when this value is dropped.
pub(crate) struct Driver {
    /// Moves into the thread when it starts.
    prepared: Mutex<Option<Prepared>>,
    thread: OnceLock<Thread>,
    times: Arc<Times>,
}

#[derive(Clone)]
struct Prepared {
    settings: Settings,
    /// The cookies to begin with, if cookies are kept.
    cookies: Option<Vec<Secret>>,
    jar: Option<Arc<Jar>>,
    times: Arc<Times>,
}

/// Waits for the answer to a request. Dropping it drops the request.
struct Waiting<'a> {
    driver: &'a Driver,
    answer: oneshot::Receiver<Answer>,
    is_answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.answer.close();
            self.driver.send(Message::Abandoned);
        }
    }
}

struct Thread {
    messages: Sender<Message>,
    waker: MultiWaker,
}

impl Driver {
    /// For these settings.
    ///
    /// # Errors
    /// If the cookies cannot be read, or the cookie jar cannot be written.
    pub(crate) fn new(settings: Settings) -> Result<Driver, ConfigError> {
        let cookies = settings.cookiefile.as_deref().map(cookies::read).transpose()?;
        let jar = settings.cookiejar.as_deref().map(Jar::open).transpose()?.map(Arc::new);
        let times = Arc::new(Times::default());
        let prepared = Prepared { settings, cookies, jar, times: Arc::clone(&times) };
        Ok(Driver { prepared: Mutex::new(Some(prepared)), thread: OnceLock::new(), times })
    }

    /// How long the requests have taken so far.
    pub(crate) fn times(&self) -> &Times {
        &self.times
    }

    /// The two ends of an answer.
    pub(crate) fn reply() -> (oneshot::Sender<Answer>, oneshot::Receiver<Answer>) {
        oneshot::channel()
    }

    /// Sends a request and waits for its answer at the other end of its `reply`. None if there is
    /// no thread. If the future is dropped, the request is dropped too, with its connection.
    pub(crate) async fn answer(&self, job: Job, answer: oneshot::Receiver<Answer>) -> Option<Answer> {
        let mut waiting = Waiting { driver: self, answer, is_answered: false };
        self.send(Message::Request(job));
        let answer = (&mut waiting.answer).await;
        waiting.is_answered = true;
        answer.ok()
    }

    /// Ends the requests that `scope` names, if there are any.
    pub(crate) fn stop(&self, scope: StopScope) {
        if let Some(thread) = self.thread.get()
            && thread.messages.send(Message::Stop(scope)).is_ok()
        {
            let _ = thread.waker.wakeup();
        }
    }

    /// Writes the cookie jar.
    pub(crate) async fn save_cookies(&self) {
        let (done, wait) = oneshot::channel();
        self.send(Message::SaveCookies(done));
        let _ = wait.await;
    }

    fn send(&self, message: Message) {
        if let Some(thread) = self.thread()
            && thread.messages.send(message).is_ok()
        {
            let _ = thread.waker.wakeup();
        }
    }

    fn thread(&self) -> Option<&Thread> {
        if let Some(thread) = self.thread.get() {
            return Some(thread);
        }
        // Other requests wait here until the thread has started.
        let mut prepared = lock(&self.prepared);
        if let Some(parts) = prepared.take() {
            match Thread::start(parts.clone()) {
                Ok(thread) => drop(self.thread.set(thread)),
                Err(error) => {
                    tracing::error!("curl: cannot start a thread: {error}");
                    *prepared = Some(parts);
                }
            }
        }
        self.thread.get()
    }
}

impl Thread {
    fn start(prepared: Prepared) -> std::io::Result<Thread> {
        let (messages, receiver) = channel();
        // A multi handle cannot move to another thread, so the new thread makes it.
        let (waker_out, waker_in) = channel();
        std::thread::Builder::new().name("curl".into()).spawn(move || {
            let multi = Multi::new();
            if waker_out.send(multi.waker()).is_ok() {
                Loop::new(multi, prepared, receiver).run();
            }
        })?;
        let waker = waker_in.recv().map_err(std::io::Error::other)?;
        Ok(Thread { messages, waker })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Closes the channel before it wakes the thread.
        self.messages = channel().0;
        let _ = self.waker.wakeup();
    }
}

enum Slot {
    Idle(Box<Easy2<Transfer>>),
    Busy(Easy2Handle<Transfer>),
    /// Between two states, or after an error of libcurl.
    Empty,
}

struct Loop {
    multi: Multi,
    settings: Settings,
    jar: Option<Arc<Jar>>,
    messages: Receiver<Message>,
    waiting: VecDeque<Job>,
    /// The token of a transfer is its index here.
    slots: Vec<Slot>,
    cookies: Option<Cookies>,
    /// The requests that are refused, because the server stops.
    stopped: Option<StopScope>,
    set_cookies: Counter,
    /// Whether a request that nobody waits for may still be under way.
    has_abandoned: bool,
    /// Limits the warnings about cookies.
    warnings: Rate,
    times: Arc<Times>,
}

impl Loop {
    fn new(mut multi: Multi, prepared: Prepared, messages: Receiver<Message>) -> Loop {
        let Prepared { settings, cookies, jar, times } = prepared;
        let set_cookies = Counter::default();
        let host = settings.address.as_ref().map_or("", |address| address.host());
        let cookies = cookies.and_then(|lines| {
            let cookies = Cookies::new(&lines, host, Rc::clone(&set_cookies));
            cookies.inspect_err(|error| tracing::error!("curl: no cookies are kept: {error}")).ok()
        });
        // Keeps as many idle connections as requests can run. If libcurl refuses, it uses its
        // default.
        let _ = multi.set_max_connects(settings.connections);
        let (waiting, slots, stopped) = (VecDeque::new(), Vec::new(), None);
        let (has_abandoned, warnings) = (false, Rate::new(1, 1));
        Loop {
            multi,
            settings,
            jar,
            messages,
            waiting,
            slots,
            cookies,
            stopped,
            set_cookies,
            has_abandoned,
            warnings,
            times,
        }
    }

    fn run(mut self) {
        // Without a sender nobody waits for an answer.
        while self.take_messages().is_ok() {
            self.start_waiting();
            if let Err(error) = self.multi.perform() {
                tracing::error!("curl: {error}");
            }
            self.bound_cookies();
            if self.finish() {
                continue;
            }
            let sleep = if self.has_abandoned { setup::LOOKUP_SLEEP } else { setup::MAX_SLEEP };
            if let Err(error) = self.multi.poll(&mut [], sleep) {
                tracing::error!("curl: {error}");
            }
        }
    }

    /// Receives all messages that have come; an error if the channel is closed.
    fn take_messages(&mut self) -> Result<(), TryRecvError> {
        loop {
            match self.messages.try_recv() {
                Ok(Message::Request(job)) if self.stopped.is_some_and(|scope| job.task.ends_with() <= scope) => {
                    job.refuse(stopped());
                }
                Ok(Message::Request(job)) => self.waiting.push_back(job),
                Ok(Message::Stop(scope)) => self.stop(scope),
                Ok(Message::Abandoned) => self.has_abandoned = true,
                Ok(Message::SaveCookies(done)) => {
                    self.save_cookies();
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => break,
                Err(error) => return Err(error),
            }
        }
        if self.has_abandoned {
            self.drop_abandoned();
        }
        Ok(())
    }

    /// Drops the requests that nobody waits for any more. libcurl closes their connections (or
    /// ends their streams of HTTP/2).
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|job| !job.is_abandoned());
        self.has_abandoned = false;
        for slot in &mut self.slots {
            let Slot::Busy(handle) = slot else { continue };
            if !handle.get_ref().is_abandoned() {
                continue;
            }
            // The time is set when the name is known.
            if handle.namelookup_time().is_ok_and(|time| time.is_zero()) {
                handle.get_mut().drop_buffer();
                self.has_abandoned = true;
                continue;
            }
            let Slot::Busy(handle) = std::mem::replace(slot, Slot::Empty) else { continue };
            match self.multi.remove2(handle) {
                Ok(mut easy) => {
                    easy.get_mut().forget();
                    *slot = Slot::Idle(Box::new(easy));
                }
                Err(error) => tracing::error!("curl: {error}"),
            }
        }
    }

    fn save_cookies(&mut self) {
        let (Some(cookies), Some(jar)) = (&mut self.cookies, &self.jar) else { return };
        let written = cookies.list().map_err(std::io::Error::other).and_then(|list| jar.write(&list));
        if let Err(error) = written {
            tracing::error!("curl: cannot write the cookie jar: {error}");
        }
    }

    /// Keeps the set of cookies within its bounds.
    fn bound_cookies(&mut self) {
        let Some(cookies) = &mut self.cookies else {
            self.set_cookies.set(0);
            return;
        };
        match cookies.bound() {
            Ok(false) => {}
            Ok(true) if self.warnings.admit().is_none() => {}
            Ok(true) => tracing::warn!("curl: the server sets too many cookies: the last ones are not kept"),
            Err(error) => tracing::error!("curl: {error}"),
        }
    }

    /// Ends the requests that `scope` names.
    fn stop(&mut self, scope: StopScope) {
        self.stopped = self.stopped.max(Some(scope));
        for job in std::mem::take(&mut self.waiting) {
            match job.task.ends_with() <= scope {
                true => job.refuse(stopped()),
                false => self.waiting.push_back(job),
            }
        }
        for slot in &mut self.slots {
            match std::mem::replace(slot, Slot::Empty) {
                Slot::Busy(mut handle) if handle.get_ref().ends_with() <= scope => {
                    // The answer comes first: libcurl may wait for a name to be resolved before it
                    // lets a transfer go.
                    handle.get_mut().give_up(stopped());
                    if let Err(error) = self.multi.remove2(handle) {
                        tracing::error!("curl: {error}");
                    }
                }
                other => *slot = other,
            }
        }
    }

    fn start_waiting(&mut self) {
        while !self.waiting.is_empty() {
            let Some(place) = self.free_slot() else { return };
            let Some(job) = self.waiting.pop_front() else { return };
            self.start(place, job);
        }
    }

    /// An idle transfer, if there is one. Otherwise room for a new one, up to `connections=`.
    fn free_slot(&mut self) -> Option<usize> {
        if let Some(place) = self.slots.iter().position(|slot| matches!(slot, Slot::Idle(_))) {
            return Some(place);
        }
        if let Some(place) = self.slots.iter().position(|slot| matches!(slot, Slot::Empty)) {
            return Some(place);
        }
        if self.slots.len() < self.settings.connections {
            self.slots.push(Slot::Empty);
            return Some(self.slots.len() - 1);
        }
        None
    }

    fn start(&mut self, place: usize, job: Job) {
        let mut easy = match std::mem::replace(&mut self.slots[place], Slot::Empty) {
            Slot::Idle(easy) => easy,
            _ => match setup::handle(&self.settings, Rc::clone(&self.set_cookies)) {
                Ok(easy) => Box::new(easy),
                Err(error) => {
                    let mut transfer = Transfer::new(Kept::default());
                    transfer.begin(job);
                    return transfer.end(Err(error), None);
                }
            },
        };
        let ready = setup::request(&mut easy, &job, self.cookies.as_ref());
        easy.get_mut().begin(job);
        if let Err(error) = ready {
            easy.get_mut().end(Err(error), None);
            self.slots[place] = Slot::Idle(easy);
            return;
        }
        match self.multi.add2(*easy) {
            Ok(mut handle) => {
                // Without its token the transfer could not be found again; setting a pointer does
                // not fail.
                let _ = handle.set_token(place);
                self.slots[place] = Slot::Busy(handle);
            }
            // The transfer is dropped with its job, which the sender sees.
            Err(error) => tracing::error!("curl: {error}"),
        }
    }

    /// Answers the requests whose transfers have ended. Returns whether there were any.
    fn finish(&mut self) -> bool {
        let mut done = Vec::new();
        let slots = &self.slots;
        self.multi.messages(|message| {
            let Ok(place) = message.token() else { return };
            if let Some(Slot::Busy(handle)) = slots.get(place)
                && let Some(result) = message.result_for2(handle)
            {
                done.push((place, result));
            }
        });
        let any = !done.is_empty();
        for (place, result) in done {
            let Slot::Busy(handle) = std::mem::replace(&mut self.slots[place], Slot::Empty) else { continue };
            let mut easy = match self.multi.remove2(handle) {
                Ok(easy) => Box::new(easy),
                Err(error) => {
                    tracing::error!("curl: {error}");
                    continue;
                }
            };
            self.times.add(&easy);
            let length = raw::content_length(&easy);
            easy.get_mut().end(result, length);
            self.slots[place] = Slot::Idle(easy);
        }
        any
    }
}

/// The error of a request that the server does not wait for.
fn stopped() -> Error {
    Error::new(Errno::Eshutdown, "the server stops")
}
