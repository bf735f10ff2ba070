//! Clients that try to keep a server from serving others.
//!
//! Each attacker has an address of its own on the loopback network (127.0.0.2 and so on), as
//! attackers on other machines would. All of them come back at once when they are disconnected.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketType, bind, connect, recv, socket};

use crate::raw::{IHAVEOPT, cmd, go, opt, rep, request};
use crate::wait::TIMEOUT;

/// How long an attacker pauses between two rounds, so that the test's own threads do not take the
/// processors.
const PAUSE: Duration = Duration::from_millis(2);

/// How long an attacker waits for an answer. A client without a place gets no greeting.
const PATIENCE: Duration = Duration::from_millis(200);

/// The server that is attacked.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The export that clients use.
    pub export: String,
    /// Reads here end in a fault of a filter, if there is such a filter.
    pub fault_at: u64,
    /// Reads here make a filter compute in the background for their connection.
    pub compute_at: u64,
}

impl Target {
    /// A connection from this address. An honest client has the timeouts that make a test fail
    /// instead of hang.
    fn connect(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        let stream = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        bind(&stream, &SocketAddrV4::new(from, 0))?;
        connect(&stream, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port))?;
        let stream = TcpStream::from(stream);
        let patience = if from == Ipv4Addr::LOCALHOST { TIMEOUT } else { PATIENCE };
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection that has negotiated.
    pub fn client(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        let mut stream = self.greeted(from)?;
        option(&mut stream, opt::GO, &go(&self.export, &[]))?;
        while option_reply(&mut stream)? != rep::ACK {}
        Ok(stream)
    }

    fn greeted(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        let mut stream = self.connect(from)?;
        stream.read_exact(&mut [0; 18])?;
        stream.write_all(&3u32.to_be_bytes())?;
        Ok(stream)
    }
}

fn option(stream: &mut TcpStream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = IHAVEOPT.to_be_bytes().to_vec();
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(data);
    stream.write_all(&message)
}

/// Reads a reply to an option, and gives its type.
///
/// # Errors
/// Those of the socket, and an error that the server answers.
fn option_reply(stream: &mut TcpStream) -> io::Result<u32> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (kind, length) = (number(12), number(16));
    io::copy(&mut stream.take(length.into()), &mut io::sink())?;
    if kind >> 31 == 0 { Ok(kind) } else { Err(io::Error::other("refused")) }
}

/// Reads bytes with a simple reply.
pub fn read(stream: &mut TcpStream, offset: u64, length: u32) -> io::Result<Vec<u8>> {
    stream.write_all(&request(0, cmd::READ, 1, offset, length))?;
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    if header[4..8] != [0; 4] {
        return Err(io::Error::other("the read failed"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What an attacker does while the attack lasts.
pub struct Attacker {
    /// A name for reports, and to choose it alone.
    pub name: &'static str,
    run: fn(&Attack<'_>),
}

/// One attacker at work.
pub struct Attack<'a> {
    target: &'a Target,
    from: Ipv4Addr,
    lasts: &'a AtomicBool,
    /// Rounds that the attacker has made.
    rounds: &'a AtomicUsize,
}

impl Attack<'_> {
    /// Pauses, and says whether the attack goes on.
    fn goes_on(&self) -> bool {
        self.rounds.fetch_add(1, Ordering::SeqCst);
        std::thread::park_timeout(PAUSE);
        self.lasts.load(Ordering::SeqCst)
    }

    /// Keeps `count` connections that `begin` has begun, and begins another one for each that the
    /// server closes. `each` is called for each of them in each round.
    fn crowd(&self, count: usize, begin: impl Fn() -> io::Result<TcpStream>, each: impl Fn(&mut TcpStream)) {
        let mut crowd: Vec<TcpStream> = Vec::new();
        while self.goes_on() {
            crowd.retain(|stream| !is_closed(stream));
            for _ in crowd.len()..count.min(crowd.len() + 20) {
                match begin() {
                    Ok(stream) if self.lasts.load(Ordering::SeqCst) => crowd.push(stream),
                    _ => break,
                }
            }
            crowd.iter_mut().for_each(&each);
        }
    }
}

/// Whether the server has closed the connection, whatever is still unread.
fn is_closed(stream: &TcpStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let _ = poll(&mut fds, Some(&Timespec::default()));
    fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

/// Two reads of 64 MiB, whose replies nobody takes.
fn unread(attack: &Attack<'_>) -> io::Result<TcpStream> {
    let mut stream = attack.target.client(attack.from)?;
    for cookie in 0..2 {
        stream.write_all(&request(0, cmd::READ, cookie, 0, 64 << 20))?;
    }
    Ok(stream)
}

/// All attackers. The names are words for reports.
pub const ALL: [Attacker; 9] = [
    Attacker { name: "takes-no-replies", run: |attack| attack.crowd(40, || unread(attack), |_| {}) },
    Attacker {
        name: "takes-a-byte-now-and-then",
        run: |attack| {
            let take = |stream: &mut TcpStream| {
                // There may be nothing to take.
                let _ = recv(stream, &mut [0; 1], RecvFlags::DONTWAIT);
            };
            attack.crowd(20, || unread(attack), take);
        },
    },
    Attacker {
        name: "sends-no-payload",
        run: |attack| {
            let begin = || {
                let mut stream = attack.target.client(attack.from)?;
                stream.write_all(&request(0, cmd::WRITE, 1, 0, 64 << 20))?;
                Ok(stream)
            };
            attack.crowd(20, begin, |_| {});
        },
    },
    Attacker {
        name: "takes-no-list",
        run: |attack| {
            let begin = || {
                let mut stream = attack.target.greeted(attack.from)?;
                option(&mut stream, opt::LIST, &[])?;
                Ok(stream)
            };
            attack.crowd(60, begin, |_| {});
        },
    },
    Attacker {
        name: "leaves-while-opening",
        run: |attack| {
            while attack.goes_on() {
                let Ok(mut stream) = attack.target.greeted(attack.from) else { continue };
                let _ = option(&mut stream, opt::GO, &go(&attack.target.export, &[]));
            }
        },
    },
    Attacker {
        name: "fills-the-log",
        run: |attack| {
            let name: String = "\u{202e}".repeat(1300);
            while attack.goes_on() {
                let Ok(mut stream) = attack.target.greeted(attack.from) else { continue };
                for _ in 0..100 {
                    if option(&mut stream, opt::GO, &go(&name, &[])).is_err() {
                        break;
                    }
                    // Refused, or accepted by a plugin that takes any name.
                    if option_reply(&mut stream).is_ok() {
                        break;
                    }
                }
            }
        },
    },
    Attacker {
        name: "opens-connections",
        run: |attack| attack.crowd(400, || attack.target.client(attack.from), |_| {}),
    },
    Attacker {
        name: "computes-in-the-background",
        run: |attack| {
            let begin = || {
                let mut stream = attack.target.client(attack.from)?;
                read(&mut stream, attack.target.compute_at, 512)?;
                Ok(stream)
            };
            attack.crowd(4, begin, |_| {});
        },
    },
    Attacker {
        name: "makes-a-filter-fail",
        run: |attack| {
            while attack.goes_on() {
                let Ok(mut stream) = attack.target.client(attack.from) else { continue };
                while attack.goes_on()
                    && stream.write_all(&request(0, cmd::READ, 1, attack.target.fault_at, 512)).is_ok()
                {
                    if stream.read_exact(&mut [0; 16]).is_err() {
                        break;
                    }
                }
            }
        },
    },
];

/// Runs `during` while these attackers are at work. It begins once each has made some rounds.
pub fn under_attack<T>(target: &Target, attackers: &[&Attacker], during: impl FnOnce() -> T) -> T {
    let lasts = AtomicBool::new(true);
    let rounds: Vec<AtomicUsize> = attackers.iter().map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        for (index, (attacker, rounds)) in attackers.iter().zip(&rounds).enumerate() {
            let attack = Attack { target, from: Ipv4Addr::new(127, 0, 0, 2 + index as u8), lasts: &lasts, rounds };
            let run = attacker.run;
            scope.spawn(move || {
                // What the attackers themselves compute must not delay the client that is measured.
                let _ = rustix::process::nice(19);
                run(&attack);
            });
        }
        let begun = crate::wait::Deadline::new();
        while !rounds.iter().all(|rounds| rounds.load(Ordering::SeqCst) >= 3) && !begun.is_over() {
            std::thread::park_timeout(PAUSE);
        }
        let result = during();
        lasts.store(false, Ordering::SeqCst);
        result
    })
}
