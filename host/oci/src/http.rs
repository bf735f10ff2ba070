//! One HTTP request at a time, with a bound for everything that the other side can send.

use std::io::Read as _;
use std::time::{Duration, Instant};

use curl::easy::{Easy2, Handler, List, ReadError, WriteError};

use crate::error::shown;
use crate::url::Url;

/// The most bytes of header lines in an answer.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a request sends.
#[derive(Clone, Copy)]
pub(crate) enum Method<'a> {
    Get,
    Head,
    Post,
    Put(&'a [u8]),
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u32,
    /// The names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first header line of this name, which is given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All header lines of this name.
    pub(crate) fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Why there is no answer. Each is the end of a sentence that begins with the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no TLS at the other end.
    NoTls(String),
    Other(String),
}

impl Failure {
    pub(crate) fn why(self) -> String {
        match self {
            Failure::NoTls(why) | Failure::Other(why) => why,
        }
    }
}

/// What libcurl gives us of a running request.
#[derive(Default)]
struct Transfer {
    headers: Vec<(String, String)>,
    head_bytes: usize,
    body: Vec<u8>,
    limit: usize,
    /// What libcurl was told to stop for.
    refused: Option<String>,
    sent: std::io::Cursor<Vec<u8>>,
}

impl Transfer {
    fn too_long(&self) -> String {
        format!("sends more than {} bytes", self.limit)
    }
}

impl Handler for Transfer {
    fn write(&mut self, data: &[u8]) -> Result<usize, WriteError> {
        if self.body.len() + data.len() > self.limit {
            self.refused = Some(self.too_long());
            return Ok(0);
        }
        self.body.extend_from_slice(data);
        Ok(data.len())
    }

    fn read(&mut self, data: &mut [u8]) -> Result<usize, ReadError> {
        self.sent.read(data).map_err(|_| ReadError::Abort)
    }

    fn header(&mut self, data: &[u8]) -> bool {
        self.head_bytes += data.len();
        if self.head_bytes > MAX_HEAD_BYTES {
            self.refused = Some(format!("sends more than {} KiB of header lines", MAX_HEAD_BYTES >> 10));
            return false;
        }
        let line = String::from_utf8_lossy(data);
        if line.starts_with("HTTP/") {
            // Of a further answer: the one before was only a sign that the server is at work.
            self.headers.clear();
        } else if let Some((name, value)) = line.split_once(':') {
            self.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        true
    }
}

/// A client with its connections.
pub(crate) struct Http {
    easy: Easy2<Transfer>,
    deadline: Instant,
}

impl Http {
    /// A client whose requests all end before the deadline.
    pub(crate) fn new(deadline: Instant) -> Http {
        Http { easy: Easy2::new(Transfer::default()), deadline }
    }

    /// Sends a request. Follows no redirects. The answer's body has at most `limit` bytes.
    ///
    /// # Errors
    /// There is no whole answer within the limits.
    pub(crate) fn send(
        &mut self,
        method: Method<'_>,
        url: &Url,
        headers: &[String],
        limit: usize,
    ) -> Result<Answer, Failure> {
        self.easy.reset();
        *self.easy.get_mut() = Transfer { limit, ..Transfer::default() };
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(Failure::Other("takes too long".into()));
        }
        let set_up = self.prepare(method, url, headers, left);
        set_up.map_err(|error| Failure::Other(format!("cannot be asked: {}", error.description())))?;
        let performed = self.easy.perform();
        let transfer = std::mem::take(self.easy.get_mut());
        if let Some(why) = transfer.refused {
            return Err(Failure::Other(why));
        }
        if let Err(error) = performed {
            return Err(failure(&error, transfer.body.len()));
        }
        let status = self.easy.response_code().unwrap_or_default();
        let answer = Answer { status, headers: transfer.headers, body: transfer.body };
        match answer.header("content-encoding") {
            None | Some("identity") => Ok(answer),
            Some(other) => {
                Err(Failure::Other(format!("sends it compressed ({}), which nobody asked for", shown(other))))
            }
        }
    }

    fn prepare(
        &mut self,
        method: Method<'_>,
        url: &Url,
        headers: &[String],
        left: Duration,
    ) -> Result<(), curl::Error> {
        let easy = &mut self.easy;
        easy.url(&url.to_string())?;
        easy.useragent(concat!("rbdkit/", env!("CARGO_PKG_VERSION")))?;
        easy.signal(false)?;
        easy.timeout(left)?;
        easy.connect_timeout(CONNECT_TIMEOUT.min(left))?;
        // libcurl itself takes these from the environment only where it was built without a place
        // for certificates.
        if let Some(file) = std::env::var_os("SSL_CERT_FILE") {
            easy.cainfo(file)?;
        }
        if let Some(directory) = std::env::var_os("SSL_CERT_DIR") {
            easy.capath(directory)?;
        }
        let mut list = List::new();
        for header in headers {
            list.append(header)?;
        }
        // Otherwise libcurl waits a second before it sends a body to a server that does not know
        // this.
        list.append("Expect:")?;
        easy.http_headers(list)?;
        match method {
            Method::Get => easy.get(true),
            Method::Head => easy.nobody(true),
            Method::Post => {
                easy.post(true)?;
                easy.post_field_size(0)
            }
            Method::Put(body) => {
                easy.upload(true)?;
                easy.in_filesize(body.len() as u64)?;
                easy.get_mut().sent = std::io::Cursor::new(body.to_vec());
                Ok(())
            }
        }
    }
}

fn failure(error: &curl::Error, received: usize) -> Failure {
    if error.is_operation_timedout() {
        return Failure::Other("takes too long".into());
    }
    if error.is_partial_file() {
        return Failure::Other(format!("ends the connection after {received} bytes, before the answer is whole"));
    }
    let why = match error.extra_description() {
        Some(extra) => format!("cannot be reached: {}", shown(extra)),
        None => format!("cannot be reached: {}", error.description()),
    };
    match error.is_ssl_connect_error() || error.is_got_nothing() || error.is_recv_error() {
        true => Failure::NoTls(why),
        false => Failure::Other(why),
    }
}
