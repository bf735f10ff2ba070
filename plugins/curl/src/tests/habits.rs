//! What web servers do, and what becomes of it: the slow server's table of habits.

use rbdkit_slow_server::HABITS;

use super::*;

/// What a client gets from a server with a habit.
enum Outcome {
    /// The disk's bytes.
    Right,
    /// The disk's bytes or an error, which depends on how the answer is cut into packets.
    NotWrong,
    /// No client can connect. The error contains this.
    NoDisk(&'static str),
    /// Clients connect, but cannot read 5000 bytes. The errno, and what the error contains.
    NoBytes(Errno, &'static str),
}
use Outcome::{NoBytes, NoDisk, Right};

/// For each habit (with others that bring it out): what a client gets, and how many requests the
/// server gets. Zero: it is not known.
const TABLE: &[(&str, Outcome, u64)] = &[
    ("encoding-empty", Right, 2),
    ("encoding-aws-chunked", Right, 2),
    ("encoding-stored", Right, 2),
    ("encoding-real", NoDisk("encoded (Content-Encoding: gzip)"), 1),
    ("encoding-real-later", NoBytes(Errno::Eio, "encoded (Content-Encoding: gzip)"), 2),
    ("encoding-real-chunked", NoDisk("encoded (Content-Encoding: gzip)"), 1),
    ("tag-weak-sometimes", Right, 2),
    ("tag-of-farm", NoBytes(Errno::Eio, "check-changes=false"), 2),
    ("date-of-farm", NoBytes(Errno::Eio, "its Last-Modified is Thu, 01 Jan 2026 00:00:0"), 2),
    ("tag-long", Right, 2),
    ("range-short", Right, 6),
    ("range-tiny", NoBytes(Errno::Eio, "in too small parts: 25 bytes of 5000"), 26),
    ("range-dishonest", NoBytes(Errno::Eio, "the server announces 2500 bytes instead of 5000"), 2),
    ("range-malformed", Right, 3),
    ("range-malformed,length-absent", NoDisk("without saying which (Content-Range is 'bytes some-others/all')"), 1),
    ("range-total-unknown", Right, 3),
    ("range-lower-case", Right, 2),
    ("range-spaces", Right, 2),
    ("range-equals", Right, 2),
    ("range-absent", Right, 3),
    ("range-absent,length-absent", NoDisk("without saying which (no Content-Range)"), 1),
    ("range-wrong", NoBytes(Errno::Eio, "the server sends bytes 1001-6000 instead"), 2),
    ("range-overflow", NoBytes(Errno::Eio, "the server sends bytes 1000-18446744073709551615 instead"), 2),
    ("range-multipart", NoBytes(Errno::Eio, "several ranges"), 2),
    ("range-ignored", NoDisk("the server does not support ranges"), 1),
    ("length-absent", Right, 2),
    ("chunk-extensions", Right, 2),
    ("chunk-extension-endless", NoDisk("Timeout was reached"), 1),
    ("trailers", Right, 2),
    ("trailers-endless", NoDisk("the head of the server's answer is longer than 256 KiB or 2000 lines"), 1),
    ("http-1.0", Right, 2),
    // HEAD is sent only if the size is not known otherwise, and then a GET without a range.
    ("head-403,range-total-unknown", Right, 4),
    ("head-404,range-total-unknown", Right, 4),
    ("head-405,range-total-unknown", Right, 4),
    ("head-501,range-total-unknown", Right, 4),
    ("head-closes,range-total-unknown", Right, 0),
    ("head-wrong-length,range-total-unknown", Right, 4),
    ("head-no-accept-ranges,range-total-unknown", Right, 3),
    ("head-body,range-total-unknown", Right, 3),
    ("head-403", Right, 2),
    ("head-wrong-length", Right, 2),
    ("redirect-301", Right, 4),
    ("redirect-302", Right, 4),
    ("redirect-303", Right, 4),
    ("redirect-307", Right, 4),
    ("redirect-308", Right, 4),
    ("redirect-absolute", Right, 4),
    ("redirect-page", Right, 4),
    ("redirect-token", Right, 4),
    ("redirect-loop", NoDisk("the server redirects more than 30 times"), 31),
    (
        "redirect-ftp",
        NoDisk("the server redirects to ftp://***@host/disk.img: a redirect may lead only to http and https"),
        1,
    ),
    ("redirect-long", NoDisk("a redirect that is not followed"), 1),
    ("cookies-many", Right, 2),
    ("header-line-long", NoDisk("curl: GET of the first byte: "), 1),
    ("headers-endless", NoDisk("the head of the server's answer is longer than 256 KiB or 2000 lines"), 1),
    ("interim-some", Right, 2),
    ("interim-endless", NoDisk("the head of the server's answer is longer than 256 KiB or 2000 lines"), 1),
    ("body-endless", NoDisk("the server sends more than was asked for"), 1),
    ("body-longer", Outcome::NotWrong, 0),
    ("body-cut", NoBytes(Errno::Eio, "Transferred a partial file"), 2),
    ("keep-alive-closed", Right, 2),
    ("silent", NoDisk("Timeout was reached"), 1),
    ("drip", NoDisk("Timeout was reached"), 1),
    ("status-416", NoBytes(Errno::Eio, "416: the disk has changed"), 2),
    ("status-429", NoBytes(Errno::Eio, "429: it is too busy (Retry-After: 17)"), 2),
    ("status-503", NoBytes(Errno::Eio, "503: it is too busy (Retry-After: 17)"), 2),
];

/// A plugin that asks for the disk with these habits.
fn with_habits(server: &SlowServer, habits: &str, params: &[(&str, &str)]) -> Curl {
    let url = format!("{}?habit={habits}", url(server));
    let mut all = vec![("url", url.as_str())];
    all.extend(params);
    serving(&all)
}

#[test]
fn every_habit_has_a_known_outcome() {
    for habit in HABITS {
        assert!(
            TABLE.iter().any(|(habits, ..)| habits.split(',').any(|name| name == habit.name)),
            "{} is not in the table",
            habit.name
        );
    }
    for (habits, outcome, requests) in TABLE {
        let server = plain();
        // Habits of servers that hang. The timeout has to be longer than everything else takes.
        let hangs = ["silent", "drip", "chunk-extension-endless"].contains(habits);
        let plugin = with_habits(&server, habits, &[("timeout", if hangs { "2" } else { "60" })]);
        run(async {
            let read = match open(&plugin, true).await {
                Ok(handle) if handle.get_size().await.unwrap() == SIZE => read(&*handle, 1000, 5000).await,
                Ok(handle) => panic!("{habits}: the disk has {:?} bytes", handle.get_size().await),
                Err(error) => {
                    let NoDisk(text) = outcome else { panic!("{habits}: {error}") };
                    assert!(error.to_string().contains(text), "{habits}: {error}");
                    return;
                }
            };
            match (outcome, read) {
                (Outcome::NotWrong, Err(_)) => {}
                (Right | Outcome::NotWrong, Ok(bytes)) => {
                    assert!(bytes == pattern(1000, 5000), "{habits}: wrong bytes")
                }
                (NoBytes(errno, text), Err(error)) => {
                    assert_eq!(error.errno(), *errno, "{habits}: {error}");
                    let text = format!("curl: GET of bytes 1000-5999: {text}");
                    let error = error.to_string();
                    assert!(error.starts_with("curl: GET of bytes 1000-5999: "), "{habits}: {error}");
                    assert!(error.contains(text.rsplit(": ").next().unwrap()), "{habits}: {error}");
                    assert!(!error.contains('\n'), "{habits}: {error}");
                }
                (_, read) => panic!("{habits}: {:?}", read.map(|bytes| bytes.len())),
            }
        });
        if *requests > 0 {
            assert_eq!(server.counts().requests, *requests, "{habits}: {:#?}", server.heads());
        }
    }
}

#[test]
fn a_farm_of_servers_behind_one_url_is_served_if_the_user_says_so() {
    for habit in ["tag-of-farm", "date-of-farm"] {
        let server = plain();
        run(async {
            let plugin = with_habits(&server, habit, &[("check-changes", "false")]);
            let handle = open(&plugin, true).await.unwrap();
            for offset in 0..10 {
                assert_eq!(read(&*handle, offset, 100).await.unwrap(), pattern(offset, 100));
            }
            // The size is checked all the same.
            server.change(|rules| rules.size += 1);
            read(&*handle, 0, 100).await.unwrap_err();
        });
    }
}

#[test]
fn the_rest_of_a_short_answer_is_of_the_same_version() {
    let server = plain();
    run(async {
        let plugin = with_habits(&server, "range-short", &[]);
        let handle = open(&plugin, true).await.unwrap();
        assert_eq!(read(&*handle, 7, 70_000).await.unwrap(), pattern(7, 70_000).as_slice());
        server.change(|rules| rules.delay = Duration::from_millis(20));
        let reading = tokio::spawn({
            let handle = Arc::clone(&handle);
            async move { read(&*handle, 0, 70_000).await }
        });
        let before = server.counts().requests;
        until("some parts were requested", || server.counts().requests >= before + 3).await;
        server.change(|rules| rules.etag = Some("\"2\"".into()));
        let error = reading.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("the disk has changed at the server"), "{error}");
    });
}

#[test]
fn a_redirect_is_followed_for_each_request_so_that_its_token_may_expire() {
    let server = plain();
    run(async {
        let plugin = with_habits(&server, "redirect-token", &[]);
        let handle = open(&plugin, true).await.unwrap();
        for offset in 0..5 {
            assert_eq!(read(&*handle, offset, 100).await.unwrap(), pattern(offset, 100));
        }
        // The token is another each time, but the disk is the same file.
        server.change(|rules| rules.etag = Some("\"2\"".into()));
        let error = read(&*handle, 0, 100).await.unwrap_err().to_string();
        assert!(error.contains("the disk has changed at the server"), "{error}");
    });
}

#[test]
fn a_write_goes_where_a_redirect_leads_unless_that_means_that_it_is_done() {
    for (habit, works) in
        [("redirect-307", true), ("redirect-308", true), ("redirect-302", true), ("redirect-303", false)]
    {
        let server = SlowServer::start(Content::memory(vec![0; 10_000]), Rules::default(), None).unwrap();
        run(async {
            let plugin = with_habits(&server, habit, &[]);
            let handle = open(&plugin, false).await.unwrap();
            let written = write(&*handle, 100, vec![7; 500]).await;
            assert_eq!(written.is_ok(), works, "{habit}: {written:?}");
            assert_eq!(read(&*handle, 100, 1).await.unwrap(), [if works { 7 } else { 0 }], "{habit}");
        });
    }
}

#[test]
fn no_combination_of_habits_gives_wrong_data() {
    let seed = std::env::var("RBDKIT_SEED").map_or_else(
        |_| std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64),
        |text| text.parse().unwrap(),
    );
    println!("RBDKIT_SEED={seed}");
    let mut state = seed;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % limit
    };
    // Without habits that only wait, and without one that lies in a way that nobody can notice
    // together with a Content-Range that says nothing.
    let left_out = ["silent", "drip", "chunk-extension-endless", "range-wrong"];
    let names: Vec<&str> = HABITS.iter().map(|habit| habit.name).filter(|name| !left_out.contains(name)).collect();
    for _ in 0..150 {
        let habits: Vec<&str> = (0..1 + below(4)).map(|_| names[below(names.len())]).collect();
        let habits = habits.join(",");
        let server = plain();
        let plugin = with_habits(&server, &habits, &[("timeout", "60"), ("cookiefile", "")]);
        run(async {
            let Ok(handle) = open(&plugin, true).await else { return };
            assert_eq!(handle.get_size().await.unwrap(), SIZE, "{habits}");
            for _ in 0..3 {
                let (offset, length) = (below(100_000) as u64, 1 + below(5000) as u32);
                if let Ok(bytes) = read(&*handle, offset, length).await {
                    assert!(bytes == pattern(offset, length), "{habits}: wrong bytes at {offset}");
                }
            }
        });
    }
}
