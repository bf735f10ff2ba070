//! What a server can cost: each wait has a way out, and cookies cost the same whenever they come.

use rbdkit_slow_server::Fault;

use super::*;

#[test]
fn a_request_is_dropped_at_any_moment_with_its_connection() {
    for habit in ["silent", "drip", "interim-some,silent", "chunk-extension-endless"] {
        let server = plain();
        let silent = format!("{}?habit={habit}", url(&server));
        run(async {
            let plugin = serving(&[("url", silent.as_str()), ("connections", "2")]);
            // More requests than there may be connections, so that some wait for their turn.
            for _ in 0..3 {
                let mut opening: Vec<_> = (0..5).map(|_| Box::pin(open(&plugin, true))).collect();
                for open in &mut opening {
                    let _ = tokio::time::timeout(Duration::from_millis(1), open).await;
                }
                until("both connections have sent their request", || server.open_connections() == 2).await;
                drop(opening);
                until("the connections are closed", || server.open_connections() == 0).await;
            }
        });
    }
}

#[test]
fn a_read_that_is_dropped_makes_room_for_others() {
    let server = plain();
    run(async {
        let plugin = plugin_for(&server, &[("connections", "1")]);
        let handle = open(&plugin, true).await.unwrap();
        server.spoil([Fault::Stall]);
        let hanging = tokio::spawn({
            let handle = Arc::clone(&handle);
            async move { read(&*handle, 0, 100_000).await }
        });
        until("the server stalls", || server.counts().bytes > 40_000).await;
        hanging.abort();
        assert_eq!(read(&*handle, 5, 100).await.unwrap(), pattern(5, 100));
    });
}

#[test]
fn the_thread_ends_with_the_plugin_even_if_a_server_hangs() {
    let server = plain();
    let silent = format!("{}?habit=silent", url(&server));
    run(async {
        let plugin = serving(&[("url", silent.as_str())]);
        let _ = tokio::time::timeout(Duration::from_millis(100), open(&plugin, true)).await;
        drop(plugin);
        until("the connection is closed", || server.open_connections() == 0).await;
    });
}

#[test]
fn a_request_without_progress_ends() {
    for habit in ["silent", "drip", "chunk-extension-endless"] {
        let server = plain();
        let hanging = format!("{}?habit={habit}", url(&server));
        let error = run(async { open(&serving(&[("url", &hanging), ("stall-timeout", "1")]), true).await.err() });
        let error = error.expect("a stalled request fails");
        assert_eq!(error.errno(), Errno::Etimedout, "{habit}: {error}");
    }
}

#[test]
fn timeout_bounds_all_redirects_and_parts_of_a_request_together() {
    let server = server(Rules { delay: Duration::from_millis(300), ..Rules::default() });
    let loops = format!("{}/loop", server.url());
    let error = run(async { open(&serving(&[("url", &loops), ("timeout", "1")]), true).await.err() });
    assert_eq!(error.expect("a timeout").errno(), Errno::Etimedout);
    assert!(server.counts().requests <= 5, "{:?}", server.counts());
}

#[test]
fn a_script_that_hangs_runs_once_and_lets_its_requests_be_dropped() {
    let server = plain();
    let dir = tempfile::tempdir().unwrap();
    let (runs, go) = (dir.path().join("runs"), dir.path().join("go"));
    let script = format!("echo x >>{}; until test -e {}; do sleep 0.05; done; echo a=1", runs.display(), go.display());
    run(async {
        let plugin = plugin_for(&server, &[("cookie-script", &script)]);
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(50), open(&plugin, true)).await.is_err());
        }
        until("the script runs", || runs.exists()).await;
        std::fs::write(&go, "").unwrap();
        reads_right(&plugin).await;
    });
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "x\n");
}

#[test]
fn cookies_without_end_do_not_make_later_requests_dearer() {
    let server = plain();
    let many = format!("{}?habit=cookies-many", url(&server));
    let dir = tempfile::tempdir().unwrap();
    let jar = dir.path().join("jar");
    run(async {
        let plugin = serving(&[("url", &many), ("cookiejar", jar.to_str().unwrap()), ("connections", "4")]);
        let handle = open(&plugin, true).await.unwrap();
        let time = async |reads: u64| {
            let began = std::time::Instant::now();
            for offset in 0..reads {
                assert_eq!(read(&*handle, offset, 100).await.unwrap(), pattern(offset, 100));
            }
            began.elapsed()
        };
        // The set is full after this.
        time(20).await;
        let early = time(50).await;
        time(150).await;
        let late = time(50).await;
        // 40 cookies each: without a bound the late ones would go through 11,000 others.
        assert!(late < early * 5 + Duration::from_secs(1), "{late:?} after {early:?}");
        handle.close().await;
    });
    let kept = std::fs::read(&jar).unwrap();
    assert!(kept.len() < 400 << 10, "{} bytes of cookies", kept.len());
    assert!(kept.split(|byte| *byte == b'\n').count() < 160);
}

#[test]
fn a_server_that_refuses_every_token_has_a_script_run_a_bounded_number_of_times() {
    let server = plain();
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let script = format!("echo x >>{}; echo a=1", runs.display());
    run(async {
        let plugin = plugin_for(&server, &[("cookie-script", &script)]);
        let handle = open(&plugin, true).await.unwrap();
        server.change(|rules| rules.require = Some("Cookie: a=2".into()));
        let began = std::time::Instant::now();
        for _ in 0..100 {
            let error = read(&*handle, 0, 100).await.unwrap_err().to_string();
            assert!(error.contains("the server answers 401"), "{error}");
        }
        // The first run, ten at once, and one for each second.
        let bound = 12 + began.elapsed().as_secs();
        assert!(std::fs::read(&runs).unwrap().len() as u64 / 2 <= bound, "{bound}");
    });
}
