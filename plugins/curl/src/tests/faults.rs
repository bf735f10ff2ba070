//! Servers that send something wrong, go away or change: an error, and never wrong data.

use rbdkit_slow_server::{Chances, Fault};

use super::*;

#[test]
fn a_server_without_ranges_is_refused_when_a_client_connects() {
    let server = server(Rules { ranges: false, accept_ranges: false, ..Rules::default() });
    let error = run(async { refused(&plugin_for(&server, &[])).await });
    assert_eq!(error, "curl: GET of the first byte: the server does not support ranges (EIO)");
    assert_eq!(server.counts().requests, 1);
}

#[test]
fn a_server_that_forgets_its_ranges_gives_an_error_and_no_data() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        server.spoil([Fault::NoRange]);
        let error = read(&*handle, 4096, 4096).await.unwrap_err().to_string();
        assert!(error.contains("bytes 4096-8191: the server does not support ranges"), "{error}");
        // From the beginning it would be right as far as it goes, but it is not what was asked for.
        server.spoil([Fault::NoRange]);
        read(&*handle, 0, 4096).await.unwrap_err();
        assert_eq!(read(&*handle, 4096, 4096).await.unwrap(), pattern(4096, 4096));
    });
}

#[test]
fn every_fault_is_an_error_and_the_next_request_works() {
    let server = plain();
    let plugin = plugin_for(&server, &[("timeout", "2")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        for (fault, errno, what) in [
            (Fault::Reset(0), Errno::Eio, "bytes 8192-139263: "),
            (Fault::Reset(1000), Errno::Eio, "bytes 8192-139263: "),
            (Fault::Cut(70_000), Errno::Eio, "Transferred a partial file"),
            (Fault::Status(500), Errno::Eio, "the server answers 500"),
            (Fault::Status(503), Errno::Eio, "the server answers 503: it is too busy"),
            (Fault::Status(404), Errno::Eio, "the server answers 404: there is no such disk"),
            (Fault::Status(204), Errno::Eio, "the server answers 204"),
            (Fault::WrongRange, Errno::Eio, "the server sends bytes 139264-270335 instead"),
            (Fault::Short, Errno::Eio, "the server announces 65536 bytes instead of 131072"),
            (Fault::Endless, Errno::Eio, "more than was asked for"),
            (Fault::HugeHeader, Errno::Eio, "bytes 8192-139263: "),
            (Fault::Garbage, Errno::Eio, "bytes 8192-139263: "),
            (Fault::Stall, Errno::Etimedout, "Timeout was reached"),
        ] {
            server.spoil([fault]);
            let error = read(&*handle, 8192, 131_072).await.expect_err("a fault");
            assert_eq!(error.errno(), errno, "{fault:?}: {error}");
            assert!(error.to_string().contains(what), "{fault:?}: {error}");
            assert_eq!(read(&*handle, 8192, 131_072).await.unwrap(), pattern(8192, 131_072), "after {fault:?}");
        }
    });
}

#[test]
fn by_chance_faults_never_give_wrong_data() {
    let seed = std::env::var("RBDKIT_SEED").map_or(20261121, |text| text.parse().unwrap());
    println!("seed {seed}");
    let chances = Chances { seed, reset: 100, burst: 40, wrong_range: 80, short: 80 };
    let server = server(Rules { chances: Some(chances), ..Rules::default() });
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        let tasks: Vec<_> = (0..8u64)
            .map(|lane| {
                let handle = Arc::clone(&handle);
                tokio::spawn(async move {
                    let mut failures = 0;
                    for n in 0..60u64 {
                        let offset = (lane * 131 + n * 7919) % (SIZE - 70_000);
                        let length = 1 + (n * 1117 % 70_000) as u32;
                        match read(&*handle, offset, length).await {
                            Ok(bytes) => assert!(bytes == pattern(offset, length), "wrong data at {offset}"),
                            Err(_) => failures += 1,
                        }
                    }
                    failures
                })
            })
            .collect();
        let mut failures = 0;
        for task in tasks {
            failures += task.await.unwrap();
        }
        assert!(failures > 20 && failures < 400, "{failures}");
    });
}

#[test]
fn a_server_that_goes_away_and_comes_back_is_found_again() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        read(&*handle, 0, 512).await.unwrap();
        server.pause();
        let error = read(&*handle, 0, 512).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio);
        assert!(error.to_string().contains("connect"), "{error}");
        assert!(refused(&plugin).await.starts_with("curl: GET of the first byte: "));
        server.resume().unwrap();
        assert_eq!(read(&*handle, 0, 512).await.unwrap(), pattern(0, 512));
    });
}

#[test]
fn a_disk_that_changes_is_noticed() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        server.change(|rules| rules.etag = Some("\"2\"".into()));
        let error = read(&*handle, 0, 512).await.unwrap_err().to_string();
        assert!(error.contains("the disk has changed at the server: its ETag is \"2\", it was \"1\""), "{error}");
        let handle = open(&plugin, true).await.unwrap();
        read(&*handle, 0, 512).await.unwrap();
        server.change(|rules| rules.size = 4096);
        let error = read(&*handle, 0, 512).await.unwrap_err().to_string();
        assert!(error.contains(&format!("its size is 4096, it was {SIZE}")), "{error}");
        let error = read(&*handle, 8192, 512).await.unwrap_err().to_string();
        assert!(error.contains("416: the disk has changed"), "{error}");
    });
}
