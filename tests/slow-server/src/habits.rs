//! Habits: what web servers do beyond serving a disk as asked, from the ordinary to the hostile.
//!
//! Each habit has a name. A request switches habits on by its query (`/disk.img?habit=NAME,NAME`),
//! and [`crate::Rules::habits`] switches them on for all requests.

use std::io;
use std::time::Duration;

use crate::connection::{Connection, Request, closed};
use crate::{Rules, lock};

/// What a server does.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// Its name in a query.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
}

/// All habits.
pub const HABITS: &[Habit] = &[
    habit("encoding-empty", "Content-Encoding without a value"),
    habit("encoding-aws-chunked", "Content-Encoding: aws-chunked, as S3 stores it"),
    habit("encoding-stored", "a stored .gz: Content-Encoding: gzip, and the lengths of the stored bytes"),
    habit("encoding-real", "a range that is compressed on the way: another length"),
    habit("encoding-real-later", "the same for ranges of more than one byte"),
    habit("encoding-real-chunked", "the same in chunks"),
    habit("tag-weak-sometimes", "the same ETag, weak in every other answer"),
    habit("tag-of-farm", "another ETag in each answer, as from a farm of servers"),
    habit("date-of-farm", "no ETag, and Last-Modified differs by a second in every other answer"),
    habit("tag-long", "an ETag of 100 KB, another in each answer"),
    habit("range-short", "206 with at most 1000 bytes, announced so"),
    habit("range-tiny", "206 with one byte, announced so"),
    habit("range-dishonest", "206 with half of the bytes, announced as all"),
    habit("range-malformed", "a Content-Range that is none"),
    habit("range-total-unknown", "Content-Range: bytes FIRST-LAST/*"),
    habit("range-lower-case", "content-range, in lower case"),
    habit("range-spaces", "spaces in Content-Range wherever some fit"),
    habit("range-equals", "Content-Range: bytes=FIRST-LAST/TOTAL"),
    habit("range-absent", "206 without Content-Range"),
    habit("range-wrong", "other bytes than asked for, announced so"),
    habit("range-overflow", "numbers in Content-Range that do not fit into 64 bits"),
    habit("range-multipart", "206 as multipart/byteranges"),
    habit("range-ignored", "200 with the whole disk in answer to a range"),
    habit("length-absent", "chunks instead of Content-Length"),
    habit("chunk-extensions", "chunks with an extension each"),
    habit("chunk-extension-endless", "a chunk extension that never ends"),
    habit("trailers", "trailers after the chunks that contradict the head"),
    habit("trailers-endless", "trailers without end"),
    habit("http-1.0", "HTTP/1.0, and the end of the connection ends the body"),
    habit("head-403", "HEAD gets 403"),
    habit("head-404", "HEAD gets 404"),
    habit("head-405", "HEAD gets 405"),
    habit("head-501", "HEAD gets 501"),
    habit("head-closes", "HEAD closes the connection"),
    habit("head-wrong-length", "HEAD gets the Content-Length 0"),
    habit("head-no-accept-ranges", "HEAD gets no Accept-Ranges"),
    habit("head-body", "HEAD gets a body"),
    habit("redirect-301", "redirects to the disk with 301"),
    habit("redirect-302", "redirects to the disk with 302"),
    habit("redirect-303", "redirects to the disk with 303"),
    habit("redirect-307", "redirects to the disk with 307"),
    habit("redirect-308", "redirects to the disk with 308"),
    habit("redirect-absolute", "redirects with a whole URL"),
    habit("redirect-page", "redirects with a page of 100 KB"),
    habit("redirect-token", "redirects to a URL with a token that is right once"),
    habit("redirect-loop", "redirects to itself"),
    habit("redirect-ftp", "redirects to ftp, with a password in the URL"),
    habit("redirect-long", "redirects to a URL of 100 KB"),
    habit("cookies-many", "40 cookies of 4 KB in each answer, with new names each time"),
    habit("header-line-long", "a header line of 256 KB"),
    habit("headers-endless", "header lines without end"),
    habit("interim-some", "three interim answers before the answer"),
    habit("interim-endless", "interim answers without end"),
    habit("body-endless", "chunks without end"),
    habit("body-longer", "more bytes than the range and the Content-Length have"),
    habit("body-cut", "an orderly close in the middle of the body"),
    habit("keep-alive-closed", "closes the kept connection after each answer without a word"),
    habit("silent", "reads the request and answers nothing"),
    habit("drip", "a head that comes one byte every tenth of a second and never ends"),
    habit("status-416", "416 without a reason for ranges of more than one byte"),
    habit("status-429", "429 with Retry-After for ranges of more than one byte"),
    habit("status-503", "503 with Retry-After for ranges of more than one byte"),
];

const fn habit(name: &'static str, what: &'static str) -> Habit {
    Habit { name, what }
}

/// The habits of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Habits(Vec<String>);

impl Habits {
    pub(crate) fn of(request: &Request, rules: &Rules) -> Habits {
        let query = request.path.split_once('?').map_or("", |(_, query)| query);
        let asked = query.split('&').filter_map(|word| word.strip_prefix("habit=")).flat_map(|list| list.split(','));
        Habits(asked.map(str::to_string).chain(rules.habits.iter().cloned()).collect())
    }

    pub(crate) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        debug_assert!(HABITS.iter().any(|habit| habit.name == name), "{name}");
        self.0.iter().any(|habit| habit == name)
    }

    fn number(&self, prefix: &str) -> Option<u16> {
        self.0.iter().find_map(|habit| habit.strip_prefix(prefix)?.parse().ok())
    }
}

/// The answer to a range, before it is sent.
struct Draft {
    first: u64,
    /// Bytes that are sent.
    length: u64,
    /// Bytes that are announced.
    announced: u64,
    range_name: &'static str,
    range: Option<String>,
    is_chunked: bool,
    extension: &'static str,
    /// Lines of the head.
    lines: Vec<String>,
}

impl Connection<'_> {
    /// Answers a request by its habits. Returns whether it has.
    pub(crate) fn by_habit(&mut self, request: &Request, rules: &Rules, habits: &Habits) -> io::Result<bool> {
        if habits.are_none() {
            return self.spends_token(request, rules);
        }
        if habits.has("silent") {
            return self.until_closed();
        }
        if self.redirects(request, rules, habits)? {
            return Ok(true);
        }
        if habits.has("interim-some") {
            self.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(3).as_slice())?;
        }
        while habits.has("interim-endless") {
            self.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")?;
        }
        while habits.has("drip") {
            self.send(b"HTTP/1.1 206 x\r\nX-Drip: ").and_then(|()| self.drip())?;
        }
        match request.method.as_str() {
            "HEAD" => self.head_by_habit(request, rules, habits)?,
            "GET" => self.range_by_habit(request, rules, habits)?,
            _ => return Ok(false),
        }
        match habits.has("keep-alive-closed") {
            true => Err(closed()),
            false => Ok(true),
        }
    }

    fn drip(&mut self) -> io::Result<()> {
        loop {
            self.send(b"x")?;
            self.wait(Duration::from_millis(100))?;
        }
    }

    fn redirects(&mut self, request: &Request, rules: &Rules, habits: &Habits) -> io::Result<bool> {
        let mut status = habits.number("redirect-");
        let mut location = "disk.img".to_string();
        let mut page = String::new();
        if habits.has("redirect-absolute") {
            location = format!("http://{}/disk.img", request.header("Host").unwrap_or_default());
        } else if habits.has("redirect-page") {
            page = "x".repeat(100_000);
        } else if habits.has("redirect-loop") {
            location.clone_from(&request.path);
        } else if habits.has("redirect-ftp") {
            location = "ftp://u:SECRET@host/disk.img?SECRET".into();
        } else if habits.has("redirect-long") {
            location = format!("/{}", "x".repeat(100_000));
        } else if habits.has("redirect-token") {
            let mut token = lock(&self.shared.token);
            *token += 1;
            location = format!("/disk.img?token={token}");
        } else if status.is_none() {
            return self.spends_token(request, rules);
        }
        let status = *status.get_or_insert(302);
        let length = page.len();
        self.send(
            format!("HTTP/1.1 {status} x\r\nLocation: {location}\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
        )?;
        // A client that does not read the page closes the connection.
        self.send(page.as_bytes()).map(|()| true)
    }

    /// Refuses a token that is not the last one, or that was used before.
    fn spends_token(&mut self, request: &Request, rules: &Rules) -> io::Result<bool> {
        let Some((_, token)) = request.path.split_once("?token=") else { return Ok(false) };
        let is_right = {
            let mut last = lock(&self.shared.token);
            let is_right = token.parse() == Ok(*last);
            *last += 1;
            is_right
        };
        match is_right {
            true => Ok(false),
            false => self.page(403, request, rules, "").map(|()| true),
        }
    }

    /// The lines that every answer has.
    fn lines(&self, rules: &Rules, habits: &Habits) -> Vec<String> {
        let n = self.shared.counters.requests();
        let mut lines = vec!["Accept-Ranges: bytes".to_string()];
        let tag = rules.etag.clone().unwrap_or_else(|| "\"1\"".into());
        if habits.has("tag-weak-sometimes") {
            lines.push(format!("ETag: {}{tag}", if n.is_multiple_of(2) { "W/" } else { "" }));
        } else if habits.has("tag-of-farm") {
            lines.push(format!("ETag: \"{n}\""));
        } else if habits.has("tag-long") {
            lines.push(format!("ETag: \"{n}{}\"", "x".repeat(90_000)));
        } else if habits.has("date-of-farm") {
            lines.push(format!("Last-Modified: Thu, 01 Jan 2026 00:00:0{} GMT", n % 2));
        } else {
            lines.push(format!("ETag: {tag}"));
        }
        if habits.has("encoding-empty") {
            lines.push("Content-Encoding:".into());
        }
        if habits.has("encoding-aws-chunked") {
            lines.push("Content-Encoding: aws-chunked".into());
        }
        if habits.has("encoding-stored") {
            lines.push("Content-Encoding: gzip".into());
        }
        if habits.has("cookies-many") {
            lines.extend((0..40).map(|i| format!("Set-Cookie: c{n}x{i}={}; Path=/", "x".repeat(4000))));
        }
        if habits.has("header-line-long") {
            lines.push(format!("X-Long: {}", "x".repeat(256 << 10)));
        }
        lines
    }

    fn head_by_habit(&mut self, request: &Request, rules: &Rules, habits: &Habits) -> io::Result<()> {
        if habits.has("head-closes") {
            return Err(closed());
        }
        if let Some(status) = habits.number("head-") {
            return self.page(status, request, rules, "");
        }
        let size = if habits.has("head-wrong-length") { 0 } else { rules.size };
        let mut lines = self.lines(rules, habits);
        if habits.has("head-no-accept-ranges") {
            lines.retain(|line| !line.starts_with("Accept-Ranges"));
        }
        lines.push(format!("Content-Length: {size}"));
        self.send(format!("HTTP/1.1 200 x\r\n{}\r\n\r\n", lines.join("\r\n")).as_bytes())?;
        match habits.has("head-body") {
            true => self.body(0, 5000, None),
            false => Ok(()),
        }
    }

    fn range_by_habit(&mut self, request: &Request, rules: &Rules, habits: &Habits) -> io::Result<()> {
        self.shared.counters.count_transfer();
        let range = request.range(rules.size).filter(|_| !habits.has("range-ignored"));
        let Some((first, last)) = range else {
            let lines = self.lines(rules, habits).join("\r\n");
            self.send(format!("HTTP/1.1 200 x\r\n{lines}\r\nContent-Length: {}\r\n\r\n", rules.size).as_bytes())?;
            return self.body(0, rules.size, None);
        };
        if let Some(status) = habits.number("status-").filter(|_| last > first) {
            return self.page(status, request, rules, if status == 416 { "" } else { "Retry-After: 17\r\n" });
        }
        let draft = draft(first, last, rules.size, self.lines(rules, habits), habits);
        self.send_draft(&draft, habits)
    }

    fn send_draft(&mut self, draft: &Draft, habits: &Habits) -> io::Result<()> {
        let version = if habits.has("http-1.0") { "HTTP/1.0" } else { "HTTP/1.1" };
        let mut head = format!("{version} 206 x\r\n{}\r\n", draft.lines.join("\r\n"));
        if let Some(range) = &draft.range {
            head.push_str(&format!("{}: {range}\r\n", draft.range_name));
        }
        if habits.has("headers-endless") {
            loop {
                self.send(head.as_bytes())?;
                head = "X-Line: a line among many, many lines\r\n".repeat(100);
            }
        }
        match draft.is_chunked {
            true => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
            false if habits.has("http-1.0") => head.push_str("\r\n"),
            false => head.push_str(&format!("Content-Length: {}\r\n\r\n", draft.announced)),
        }
        self.send(head.as_bytes())?;
        if !draft.is_chunked {
            self.body(draft.first, draft.length, None)?;
            return match draft.length < draft.announced || habits.has("http-1.0") {
                true => Err(closed()),
                false => Ok(()),
            };
        }
        let mut done = 0;
        while done < draft.length || habits.has("body-endless") {
            let now = 50_000.min(if done < draft.length { draft.length - done } else { 50_000 });
            self.send(format!("{now:x}{}\r\n", draft.extension).as_bytes())?;
            self.body(draft.first + done, now, None)?;
            self.send(b"\r\n")?;
            done += now;
        }
        if habits.has("chunk-extension-endless") {
            self.send(b"1;")?;
            loop {
                self.send(&[b'x'; 4096])?;
            }
        }
        self.send(b"0\r\n")?;
        if habits.has("trailers") {
            self.send(b"ETag: \"other\"\r\nContent-Range: bytes 0-0/1\r\nHTTP/1.1 500 x: y\r\n")?;
        }
        while habits.has("trailers-endless") {
            self.send(b"X-Trailer: a line among many, many lines\r\n".repeat(100).as_slice())?;
        }
        self.send(b"\r\n")
    }
}

/// What the habits make of an answer to a range. `lines` are those of every answer.
fn draft(first: u64, last: u64, size: u64, lines: Vec<String>, habits: &Habits) -> Draft {
    let (mut first, mut last) = (first, last);
    let asked = last - first + 1;
    let mut lines = lines;
    if habits.has("range-short") {
        last = last.min(first + 999);
    } else if habits.has("range-tiny") {
        last = first;
    } else if habits.has("range-wrong") && asked > 1 {
        (first, last) = (first + 1, last + 1);
    }
    let mut length = last - first + 1;
    let mut announced = length;
    let stated = format!("bytes {first}-{last}/{size}");
    let is_probe = asked == 1;
    let range = match habits {
        _ if habits.has("range-malformed") => Some("bytes some-others/all".to_string()),
        _ if habits.has("range-total-unknown") => Some(format!("bytes {first}-{last}/*")),
        _ if habits.has("range-spaces") => Some(format!("  bytes   {first} - {last} / {size}  ")),
        _ if habits.has("range-equals") => Some(stated.replace("bytes ", "bytes=")),
        _ if habits.has("range-overflow") && !is_probe => Some(format!("bytes {first}-99999999999999999999/{size}")),
        _ if habits.has("range-absent") || habits.has("range-multipart") && !is_probe => None,
        _ => Some(stated),
    };
    if habits.has("range-multipart") && !is_probe {
        lines.push("Content-Type: multipart/byteranges; boundary=x".into());
    }
    if habits.has("range-dishonest") && !is_probe {
        length /= 2;
        announced = length;
    }
    let is_real = habits.has("encoding-real") || habits.has("encoding-real-later") && !is_probe;
    if is_real || habits.has("encoding-real-chunked") {
        lines.push("Content-Encoding: gzip".into());
        length = length / 2 + 23;
        announced = length;
    }
    if habits.has("body-cut") && !is_probe {
        length /= 2;
    }
    if habits.has("body-longer") {
        length += 1000;
    }
    let chunked = [
        "length-absent",
        "chunk-extensions",
        "chunk-extension-endless",
        "trailers",
        "trailers-endless",
        "encoding-real-chunked",
        "body-endless",
    ];
    Draft {
        first,
        length,
        announced,
        range_name: if habits.has("range-lower-case") { "content-range" } else { "Content-Range" },
        range,
        is_chunked: chunked.iter().any(|name| habits.has(name)),
        extension: if habits.has("chunk-extensions") { ";name=\"a value\";other" } else { "" },
        lines,
    }
}
