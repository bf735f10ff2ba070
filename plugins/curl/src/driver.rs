//! The thread that drives all transfers.
//!
//! libcurl's multi interface does the waiting for all of them at once. The thread owns everything of libcurl's; requests come over a channel,
//! answers go back each by its own. At most `connections=` are under way, the others wait in order. Transfers are kept and used again, as
//! setting one up costs more than what changes from one request to the next.
//!
//! Cookies belong to each transfer in libcurl. What one of them learns is given to the others before their next request.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock};

use curl::easy::Easy2;
use curl::multi::{Easy2Handle, Multi, MultiWaker};
use rbdkit_plugin_api::{ConfigError, lock};
use tokio::sync::oneshot;

use crate::config::Settings;
use crate::jar::Jar;
use crate::setup;
use crate::transfer::{Job, Transfer};

enum Message {
    Request(Job),
    /// Write the cookie jar.
    SaveCookies(oneshot::Sender<()>),
}

/// The way to the thread, which is started with the first message, when the server has given up what it does not need, and ends when this is dropped.
pub(crate) struct Driver {
    /// Taken by the thread.
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

    /// Hands over a request. Without a thread the job is dropped, and whoever waits for its answer learns of that.
    pub(crate) fn request(&self, job: Job) {
        self.send(Message::Request(job));
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
        // Whoever comes meanwhile waits here.
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
        // The multi handle cannot change its thread, so it is made there.
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
        // The thread is to find the channel closed when it wakes.
        let (nobody, _) = channel();
        self.messages = nobody;
        let _ = self.waker.wakeup();
    }
}

enum Slot {
    Idle(Box<Easy2<Transfer>>, u64),
    Busy(Easy2Handle<Transfer>),
    /// While it changes hands, or lost to an error of libcurl's.
    Empty,
}

/// All cookies, as lines of a cookie file, with a number that changes with them.
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
    /// A transfer's token is its place here.
    slots: Vec<Slot>,
    cookies: Option<Cookies>,
}

impl Loop {
    fn new(mut multi: Multi, settings: Settings, jar: Option<Arc<Jar>>, messages: Receiver<Message>) -> Loop {
        let cookies = settings.cookiefile.as_ref().map(|_| Cookies::default());
        // As many idle connections are kept as requests can be under way; if libcurl refuses, it keeps its own number.
        let _ = multi.set_max_connects(settings.connections);
        Loop { multi, settings, jar, messages, waiting: VecDeque::new(), slots: Vec::new(), cookies }
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
            if let Err(error) = self.multi.poll(&mut [], setup::LONGEST_SLEEP) {
                tracing::error!("curl: {error}");
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.slots.iter().any(|slot| matches!(slot, Slot::Busy(_)))
    }

    /// Takes all that has come; an error once no more can come.
    fn take_messages(&mut self) -> Result<(), TryRecvError> {
        loop {
            match self.messages.try_recv() {
                Ok(Message::Request(job)) => self.waiting.push_back(job),
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

    fn start_waiting(&mut self) {
        while !self.waiting.is_empty() {
            let Some(place) = self.free_slot() else { return };
            let Some(job) = self.waiting.pop_front() else { return };
            self.start(place, job);
        }
    }

    /// The last one used is the first to be used again: its connection is the warmest.
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
                // Without its token it would never be found again; setting a pointer does not fail.
                let _ = handle.set_token(place);
                self.slots[place] = Slot::Busy(handle);
            }
            // The transfer is dropped, and with it its job: whoever waits learns of that.
            Err(error) => tracing::error!("curl: {error}"),
        }
    }

    /// Ends the transfers that libcurl is done with; whether there were any.
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

impl Cookies {
    /// Takes over what a transfer knows; the generation that it is of.
    fn learn(&mut self, easy: &mut Easy2<Transfer>) -> u64 {
        let Ok(list) = easy.cookies() else { return 0 };
        let lines: Vec<String> = list.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        if lines != self.lines {
            self.lines = lines;
            self.generation += 1;
        }
        self.generation
    }

    /// Makes a transfer forget what it knows and take over ours.
    fn give(&self, easy: &mut Easy2<Transfer>) -> Result<(), curl::Error> {
        easy.cookie_list("ALL")?;
        self.lines.iter().try_for_each(|line| easy.cookie_list(line))
    }
}
