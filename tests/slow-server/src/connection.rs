//! One connection: reads requests and answers them one after another.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::habits::Habits;
use crate::{Chances, Fault, Rules, Shared, lock};

/// How many requests' heads the server keeps for the test.
const REMEMBERED: usize = 1000;

/// Bytes that are read from the disk and sent at a time.
const PIECE: usize = 256 << 10;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

pub(crate) fn serve(shared: &Shared, socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let stream: Box<dyn Stream + '_> = match &shared.tls {
        Some(config) => {
            let Ok(connection) = rustls::ServerConnection::new(config.clone()) else { return };
            Box::new(rustls::StreamOwned::new(connection, socket))
        }
        None => Box::new(socket),
    };
    let mut connection = Connection { shared, stream: BufReader::with_capacity(64 << 10, stream), socket };
    while connection.request().is_ok() {}
}

pub(crate) struct Connection<'a> {
    pub(crate) shared: &'a Shared,
    stream: BufReader<Box<dyn Stream + 'a>>,
    socket: &'a TcpStream,
}

pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Lossily, for what has to be text.
    text: String,
    head: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// The first and the last byte of the requested range.
    pub(crate) fn range(&self, size: u64) -> Option<(u64, u64)> {
        let (first, last) = self.header("Range")?.strip_prefix("bytes=")?.split_once('-')?;
        let first = first.parse().ok()?;
        let last = if last.is_empty() { size.checked_sub(1)? } else { last.parse::<u64>().ok()? };
        Some((first, last.min(size.saturating_sub(1))))
    }
}

pub(crate) fn closed() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl Connection<'_> {
    fn request(&mut self) -> io::Result<()> {
        let request = self.read_head()?;
        let rules = lock(&self.shared.rules).clone();
        let counters = &self.shared.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let now = counters.now.fetch_add(1, Ordering::Relaxed) + 1;
        counters.at_once.fetch_max(now, Ordering::Relaxed);
        let result = self.answer(&request, &rules);
        counters.now.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn read_head(&mut self) -> io::Result<Request> {
        let mut head = Vec::new();
        loop {
            let before = head.len();
            if self.stream.read_until(b'\n', &mut head)? == 0 || head.len() > 64 << 10 {
                return Err(closed());
            }
            if before > 0 && head.len() - before == 2 {
                break;
            }
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut words = text.split(' ');
        let method = words.next().unwrap_or_default().to_string();
        let path = words.next().unwrap_or_default().to_string();
        let mut heads = lock(&self.shared.heads);
        if heads.len() == REMEMBERED {
            heads.pop_front();
        }
        heads.push_back(head.clone());
        Ok(Request { method, path, text, head })
    }

    fn answer(&mut self, request: &Request, rules: &Rules) -> io::Result<()> {
        let body = self.read_body(request)?;
        self.wait(rules.delay)?;
        if let Some(required) = &rules.require
            && !request
                .head
                .split(|byte| *byte == b'\n')
                .any(|line| line.trim_ascii_end().eq_ignore_ascii_case(required.as_bytes()))
        {
            return self.page(401, request, rules, "");
        }
        if let Some(to) = redirect(&request.path) {
            return self.page(302, request, rules, &format!("Location: {to}\r\n"));
        }
        let habits = Habits::of(request, rules);
        if self.by_habit(request, rules, &habits)? {
            return Ok(());
        }
        match request.method.as_str() {
            "HEAD" if !rules.head => self.page(405, request, rules, ""),
            "HEAD" => {
                let head = self.head(200, rules, rules.size, "");
                self.send(head.as_bytes())
            }
            "GET" => {
                self.shared.counters.transfers.fetch_add(1, Ordering::Relaxed);
                // A client that connects looks at the first byte. Faults spoil what is read then.
                let is_look = request.range(rules.size) == Some((0, 0));
                match (!is_look).then(|| self.next_fault()).flatten() {
                    Some(fault) => self.spoiled(fault, request, rules),
                    None => self.disk(request, rules),
                }
            }
            "PUT" => {
                self.shared.counters.transfers.fetch_add(1, Ordering::Relaxed);
                if let Some(Fault::Status(status)) = self.next_fault() {
                    return self.page(status, request, rules, "");
                }
                self.put(request, rules, &body)
            }
            _ => self.page(405, request, rules, ""),
        }
    }

    fn read_body(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let length: u64 = request.header("Content-Length").and_then(|text| text.parse().ok()).unwrap_or(0);
        if length > 128 << 20 {
            return Err(closed());
        }
        if request.header("Expect").is_some() {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    fn put(&mut self, request: &Request, rules: &Rules, body: &[u8]) -> io::Result<()> {
        let first = request
            .header("Content-Range")
            .and_then(|text| text.strip_prefix("bytes "))
            .and_then(|text| text.split('-').next())
            .and_then(|text| text.parse().ok());
        match first {
            Some(first) if self.shared.content.write(body, first) => self.page(204, request, rules, ""),
            _ => self.page(403, request, rules, ""),
        }
    }

    fn disk(&mut self, request: &Request, rules: &Rules) -> io::Result<()> {
        let range = request.range(rules.size).filter(|_| rules.ranges);
        let (status, first, length, extra) = match range {
            None => (200, 0, rules.size, String::new()),
            Some((first, last)) if first > last || first >= rules.size => {
                return self.page(416, request, rules, &format!("Content-Range: bytes */{}\r\n", rules.size));
            }
            Some((first, last)) => {
                (206, first, last - first + 1, format!("Content-Range: bytes {first}-{last}/{}\r\n", rules.size))
            }
        };
        let head = self.head(status, rules, length, &extra);
        self.send(head.as_bytes())?;
        self.body(first, length, rules.bandwidth)
    }

    /// Sends a range of the disk.
    pub(crate) fn body(&mut self, first: u64, length: u64, bandwidth: Option<u64>) -> io::Result<()> {
        let started = Instant::now();
        let mut piece = vec![0; PIECE.min(length as usize)];
        let mut done = 0;
        while done < length {
            let now = piece.len().min((length - done) as usize);
            self.shared.content.read(&mut piece[..now], first + done)?;
            self.send(&piece[..now])?;
            done += now as u64;
            self.shared.counters.bytes.fetch_add(now as u64, Ordering::Relaxed);
            if let Some(bandwidth) = bandwidth.filter(|bandwidth| *bandwidth > 0) {
                let due = Duration::from_secs_f64(done as f64 / bandwidth as f64);
                self.wait(due.saturating_sub(started.elapsed()))?;
            }
        }
        Ok(())
    }

    fn spoiled(&mut self, fault: Fault, request: &Request, rules: &Rules) -> io::Result<()> {
        let (first, last) = request.range(rules.size).unwrap_or((0, rules.size.saturating_sub(1)));
        let length = last + 1 - first.min(last + 1);
        let range = format!("Content-Range: bytes {first}-{last}/{}\r\n", rules.size);
        match fault {
            Fault::Status(status) => self.page(status, request, rules, ""),
            Fault::NoRange => {
                let head = self.head(200, rules, rules.size, "");
                self.send(head.as_bytes())?;
                self.body(0, rules.size, rules.bandwidth)
            }
            Fault::Reset(after) | Fault::Cut(after) => {
                let head = self.head(206, rules, length, &range);
                self.send(head.as_bytes())?;
                self.body(first, after.min(length), rules.bandwidth)?;
                if matches!(fault, Fault::Reset(_)) {
                    // Closing a socket with a linger time of 0 resets the connection.
                    let _ = rustix::net::sockopt::set_socket_linger(self.socket, Some(Duration::ZERO));
                }
                Err(closed())
            }
            Fault::Stall => {
                let head = self.head(206, rules, length, &range);
                self.send(head.as_bytes())?;
                self.body(first, length / 2, rules.bandwidth)?;
                let mut away = lock(&self.shared.away);
                while !*away {
                    away = self.shared.changed.wait(away).expect("no panic with this lock");
                }
                Err(closed())
            }
            Fault::WrongRange => {
                let wrong = if first >= length { first - length } else { (first + length).min(rules.size - length) };
                let range = format!("Content-Range: bytes {wrong}-{}/{}\r\n", wrong + length - 1, rules.size);
                let head = self.head(206, rules, length, &range);
                self.send(head.as_bytes())?;
                self.body(wrong, length, rules.bandwidth)
            }
            Fault::Short => {
                let head = self.head(206, rules, length / 2, &range);
                self.send(head.as_bytes())?;
                self.body(first, length / 2, rules.bandwidth)
            }
            Fault::Endless => {
                let head = format!("HTTP/1.1 206 Partial Content\r\n{range}Transfer-Encoding: chunked\r\n\r\n");
                self.send(head.as_bytes())?;
                loop {
                    self.send(b"1000\r\n")?;
                    self.body(0, 4096, None)?;
                    self.send(b"\r\n")?;
                }
            }
            Fault::HugeHeader => {
                self.send(b"HTTP/1.1 206 Partial Content\r\n")?;
                loop {
                    self.send(b"X-Line: a line among many, many lines\r\n")?;
                }
            }
            Fault::Garbage => {
                self.send(b"\x00\x01\x02 no server speaks like this\r\n\r\n")?;
                Err(closed())
            }
        }
    }

    fn next_fault(&self) -> Option<Fault> {
        let mut rules = lock(&self.shared.rules);
        if let Some(fault) = rules.faults.pop_front() {
            return Some(fault);
        }
        let chances: Chances = rules.chances.clone()?;
        let mut state = lock(&self.shared.chance);
        let mut below = |limit: u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 33) % limit
        };
        let mut left = below(1000);
        for (chance, fault) in [
            (chances.reset, Fault::Reset(below(100_000))),
            (chances.burst, Fault::Status(503)),
            (chances.wrong_range, Fault::WrongRange),
            (chances.short, Fault::Short),
        ] {
            if left < chance {
                if fault == Fault::Status(503) {
                    rules.faults.extend([fault, fault]);
                }
                return Some(fault);
            }
            left -= chance;
        }
        None
    }

    pub(crate) fn page(&mut self, status: u16, request: &Request, rules: &Rules, extra: &str) -> io::Result<()> {
        let page = if request.method == "HEAD" || status == 204 { "" } else { "a page for people\n" };
        let head = self.head(status, rules, page.len() as u64, extra);
        self.send(format!("{head}{page}").as_bytes())
    }

    fn head(&self, status: u16, rules: &Rules, length: u64, extra: &str) -> String {
        let mut head = format!("HTTP/1.1 {status} As Ordered\r\nContent-Length: {length}\r\n{extra}");
        if status < 300 {
            if rules.accept_ranges {
                head.push_str("Accept-Ranges: bytes\r\n");
            }
            if let Some(etag) = &rules.etag {
                head.push_str(&format!("ETag: {etag}\r\n"));
            }
        }
        if let Some(cookie) = &rules.set_cookie {
            head.push_str(&format!("Set-Cookie: {cookie}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Sends nothing until the client closes the connection.
    pub(crate) fn until_closed(&mut self) -> io::Result<bool> {
        while self.stream.read(&mut [0; 100])? > 0 {}
        Err(closed())
    }

    /// Waits. Fails if the server goes away meanwhile.
    pub(crate) fn wait(&self, time: Duration) -> io::Result<()> {
        let away = lock(&self.shared.away);
        if *away {
            return Err(closed());
        }
        if time.is_zero() {
            return Ok(());
        }
        let (away, _) =
            self.shared.changed.wait_timeout_while(away, time, |away| !*away).expect("no panic with this lock");
        if *away { Err(closed()) } else { Ok(()) }
    }
}

/// Where a path redirects to, if it is not the disk.
fn redirect(path: &str) -> Option<String> {
    if path == "/loop" {
        return Some("/loop".into());
    }
    if let Some(url) = path.strip_prefix("/elsewhere?") {
        return Some(url.into());
    }
    match path.strip_prefix("/redirect/")?.parse::<u32>().ok()? {
        0 => None,
        1 => Some("/disk".into()),
        n => Some(format!("/redirect/{}", n - 1)),
    }
}
