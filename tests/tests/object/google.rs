//! A store that speaks as Google Cloud Storage does, as far as the plugin asks: objects with
//! generations, conditions, ranges and lists. The emulators that there are have no conditions for
//! DELETE in this interface.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::proxy::Request;

#[derive(Default)]
struct Objects {
    by_name: BTreeMap<String, (u64, Vec<u8>)>,
    last: u64,
}

/// The store, which ends with the test's process.
pub(crate) struct Google {
    pub(crate) port: u16,
    objects: Arc<Mutex<Objects>>,
}

impl Google {
    pub(crate) fn start() -> Google {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let google = Google { port, objects: Arc::default() };
        let objects = Arc::clone(&google.objects);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let objects = Arc::clone(&objects);
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(request) = Request::read(&mut stream) {
                        let answer = answer(&request, &mut objects.lock().expect("the objects"));
                        if send(stream.get_mut(), &request, answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        google
    }

    /// The names of the objects.
    pub(crate) fn names(&self) -> Vec<String> {
        self.objects.lock().expect("the objects").by_name.keys().cloned().collect()
    }
}

type Answer = (&'static str, Vec<String>, Vec<u8>);

fn send(stream: &mut TcpStream, request: &Request, (status, headers, body): Answer) -> std::io::Result<()> {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    // The answer to a HEAD has the length of what it does not send.
    let length = match request.method.as_str() {
        "HEAD" if status.starts_with("200") => String::new(),
        _ => format!("Content-Length: {}\r\n", body.len()),
    };
    stream.write_all(format!("HTTP/1.1 {status}\r\n{length}{lines}\r\n").as_bytes())?;
    if request.method == "HEAD" { Ok(()) } else { stream.write_all(&body) }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&digits, 16).expect("two digits"));
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).expect("a name")
}

fn empty(status: &'static str) -> Answer {
    (status, Vec::new(), Vec::new())
}

fn answer(request: &Request, objects: &mut Objects) -> Answer {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let Some(name) = path.strip_prefix("/b/").filter(|name| !name.is_empty()) else {
        return if path.trim_end_matches('/') == "/b" { list(query, objects) } else { empty("404 Not Found") };
    };
    let name = decoded(name);
    let now = objects.by_name.get(&name).cloned();
    let wanted = request.header("x-goog-if-generation-match").map(|wanted| wanted.parse::<u64>().expect("a number"));
    if wanted.is_some_and(|wanted| wanted != now.as_ref().map_or(0, |(generation, _)| *generation)) {
        return empty("412 Precondition Failed");
    }
    let facts = |generation: u64| {
        let date = "Last-Modified: Sat, 28 Nov 2026 07:00:00 GMT".to_owned();
        vec![format!("ETag: \"{generation:x}\""), format!("x-goog-generation: {generation}"), date]
    };
    match (request.method.as_str(), now) {
        ("PUT", _) => {
            assert!(wanted.is_some(), "a PUT without a condition");
            objects.last += 7;
            objects.by_name.insert(name, (objects.last, request.body.clone()));
            ("200 OK", facts(objects.last), Vec::new())
        }
        (_, None) => empty("404 Not Found"),
        ("DELETE", Some(_)) => {
            assert!(wanted.is_some(), "a DELETE without a condition");
            objects.by_name.remove(&name);
            empty("204 No Content")
        }
        ("HEAD", Some((generation, bytes))) => {
            let mut facts = facts(generation);
            facts.push(format!("Content-Length: {}", bytes.len()));
            ("200 OK", facts, Vec::new())
        }
        (_, Some((generation, bytes))) => {
            let mut facts = facts(generation);
            if request.header("if-match").is_some_and(|tag| tag != format!("\"{generation:x}\"")) {
                return empty("412 Precondition Failed");
            }
            let Some(range) = request.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
                return ("200 OK", facts, bytes);
            };
            let (from, last) = range.split_once('-').expect("a range");
            let (from, last) = (from.parse::<usize>().expect("a number"), last.parse::<usize>().expect("a number"));
            if from >= bytes.len() {
                return empty("416 Range Not Satisfiable");
            }
            let last = last.min(bytes.len() - 1);
            facts.push(format!("Content-Range: bytes {from}-{last}/{}", bytes.len()));
            ("206 Partial Content", facts, bytes[from..=last].to_vec())
        }
    }
}

fn list(query: &str, objects: &Objects) -> Answer {
    let value = |key: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| *name == key).map(|(_, value)| decoded(value)).next().unwrap_or_default()
    };
    // Pages are short, so that the plugin has to ask for more.
    let after = value("start-after").max(value("continuation-token"));
    let prefix = value("prefix");
    let mut found = objects.by_name.iter().filter(|(name, _)| **name > after && name.starts_with(&prefix));
    let page: Vec<_> = found.by_ref().take(3).collect();
    let next = found.next().and(page.last()).map(|(name, _)| name.as_str());
    let mut body = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>");
    for (name, (generation, bytes)) in &page {
        let _ = write!(
            body,
            "<Contents><Key>{name}</Key><LastModified>2026-11-28T07:00:00.000Z</LastModified>\
             <ETag>\"{generation:x}\"</ETag><Size>{}</Size></Contents>",
            bytes.len()
        );
    }
    if let Some(next) = next {
        let _ = write!(body, "<NextContinuationToken>{next}</NextContinuationToken>");
    }
    body.push_str("</ListBucketResult>");
    ("200 OK", Vec::new(), body.into_bytes())
}
