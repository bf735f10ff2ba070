//! The thread that drives all transfers.
//!
//! libcurl's multi interface waits for all transfers at once. The thread owns all handles of
//! libcurl. Requests come over a channel, and each answer goes back over a channel of its own. At
//! most `connections=` requests run; the others wait in order. Transfers are reused, because
//! creating one costs more than changing the options that differ between requests.
//!
//! In libcurl each transfer has its own cookies. The driver gives the cookies that one transfer
//! receives to the others before their next request.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock};

use curl::easy::Easy2;
use curl::multi::{Easy2Handle, Multi, MultiWaker};
use rbdkit_plugin_api::{ConfigError, Errno, Error, StopScope, lock};
use tokio::sync::oneshot;

use crate::config::Settings;
use crate::jar::Jar;
use crate::setup;
use crate::transfer::{Job, Transfer};

enum Message {
    Request(Job),
    /// Write the cookie jar.
    SaveCookies(oneshot::Sender<()>),
    /// The server stops: end these requests, and refuse later ones.
    Stop(StopScope),
}

/// The sender's side of the thread. The thread starts with the first message, after the server has
/// confined itself, and ends when this value is dropped.
pub(crate) struct Driver {
    /// Moves into the thread when it starts.
    prepared: Mutex<Option<(Settings, Option<Arc<Jar>>)>>,
    thread: OnceLock<Thread>,
}

struct Thread {
    messages: Sender<Message>,
    waker: MultiWaker,
}

impl Driver {
    /// For these settings.
    ///
    /// # Errors
    /// If the cookie jar cannot be written.
    pub(crate) fn new(settings: Settings) -> Result<Driver, ConfigError> {
        let jar = settings.cookiejar.as_deref().map(Jar::open).transpose()?.map(Arc::new);
        Ok(Driver { prepared: Mutex::new(Some((settings, jar))), thread: OnceLock::new() })
    }

    /// Hands over a request. If there is no thread the job is dropped, which its sender sees.
    pub(crate) fn request(&self, job: Job) {
        self.send(Message::Request(job));
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
        if let Some((settings, jar)) = prepared.take() {
            match Thread::start(settings.clone(), jar.clone()) {
                Ok(thread) => drop(self.thread.set(thread)),
                Err(error) => {
                    tracing::error!("curl: cannot start a thread: {error}");
                    *prepared = Some((settings, jar));
                }
            }
        }
        self.thread.get()
    }
}

impl Thread {
    fn start(settings: Settings, jar: Option<Arc<Jar>>) -> std::io::Result<Thread> {
        let (messages, receiver) = channel();
        // A multi handle cannot move to another thread, so the new thread makes it.
        let (waker_out, waker_in) = channel();
        std::thread::Builder::new().name("curl".into()).spawn(move || {
            let multi = Multi::new();
            if waker_out.send(multi.waker()).is_ok() {
                Loop::new(multi, settings, jar, receiver).run();
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
    Idle(Box<Easy2<Transfer>>, u64),
    Busy(Easy2Handle<Transfer>),
    /// Between two states, or after an error of libcurl.
    Empty,
}

/// All cookies, as lines of a cookie file. The generation changes with every change of the cookies.
#[derive(Default)]
struct Cookies {
    lines: Vec<String>,
    generation: u64,
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
}

impl Loop {
    fn new(mut multi: Multi, settings: Settings, jar: Option<Arc<Jar>>, messages: Receiver<Message>) -> Loop {
        let cookies = settings.cookiefile.as_ref().map(|_| Cookies::default());
        // Keeps as many idle connections as requests can run. If libcurl refuses, it uses its
        // default.
        let _ = multi.set_max_connects(settings.connections);
        Loop { multi, settings, jar, messages, waiting: VecDeque::new(), slots: Vec::new(), cookies, stopped: None }
    }

    fn run(mut self) {
        loop {
            match self.take_messages() {
                Ok(()) => {}
                Err(_) if self.is_idle() => return,
                Err(_) => {}
            }
            self.start_waiting();
            if let Err(error) = self.multi.perform() {
                tracing::error!("curl: {error}");
            }
            if self.finish() {
                continue;
            }
            if let Err(error) = self.multi.poll(&mut [], setup::MAX_SLEEP) {
                tracing::error!("curl: {error}");
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.slots.iter().any(|slot| matches!(slot, Slot::Busy(_)))
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
                Ok(Message::SaveCookies(done)) => {
                    if let (Some(cookies), Some(jar)) = (&self.cookies, &self.jar)
                        && let Err(error) = jar.write(&cookies.lines)
                    {
                        tracing::error!("curl: cannot write the cookie jar: {error}");
                    }
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(error) => return Err(error),
            }
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
        if let Some(place) = self.slots.iter().position(|slot| matches!(slot, Slot::Idle(..))) {
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
        let (mut easy, seen) = match std::mem::replace(&mut self.slots[place], Slot::Empty) {
            Slot::Idle(easy, seen) => (easy, seen),
            _ => match setup::handle(&self.settings) {
                Ok(easy) => (Box::new(easy), 0),
                Err(error) => {
                    let mut transfer = Transfer::default();
                    transfer.begin(job);
                    return transfer.end(Err(error), None);
                }
            },
        };
        let ready = setup::request(&mut easy, &job).and_then(|()| match &self.cookies {
            Some(cookies) if cookies.generation != seen => cookies.give(&mut easy),
            _ => Ok(()),
        });
        easy.get_mut().begin(job);
        if let Err(error) = ready {
            easy.get_mut().end(Err(error), None);
            self.slots[place] = Slot::Idle(easy, seen);
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
            let url = easy.effective_url().ok().flatten().map(str::to_string);
            let generation = match &mut self.cookies {
                Some(cookies) => cookies.learn(&mut easy),
                None => 0,
            };
            easy.get_mut().end(result, url);
            self.slots[place] = Slot::Idle(easy, generation);
        }
        any
    }
}

/// The error of a request that the server does not wait for.
fn stopped() -> Error {
    Error::new(Errno::Eshutdown, "the server stops")
}

impl Cookies {
    /// Takes over the cookies of a transfer and returns their generation.
    fn learn(&mut self, easy: &mut Easy2<Transfer>) -> u64 {
        let Ok(list) = easy.cookies() else { return 0 };
        let lines: Vec<String> = list.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        if lines != self.lines {
            self.lines = lines;
            self.generation += 1;
        }
        self.generation
    }

    /// Replaces the cookies of a transfer.
    fn give(&self, easy: &mut Easy2<Transfer>) -> Result<(), curl::Error> {
        easy.cookie_list("ALL")?;
        self.lines.iter().try_for_each(|line| easy.cookie_list(line))
    }
}
