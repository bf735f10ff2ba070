//! Reading and writing.

use rbdkit_slow_server::Fault;

use super::*;

#[test]
fn a_disk_is_read_in_ranges_over_kept_connections() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        assert_eq!(handle.get_size().await.unwrap(), SIZE);
        for (offset, length) in
            [(0, 1), (0, 4096), (777, 100_000), (SIZE - 1, 1), (SIZE - 5000, 5000), (0, SIZE as u32)]
        {
            assert_eq!(read(&*handle, offset, length).await.unwrap(), pattern(offset, length), "{offset} {length}");
        }
    });
    assert_eq!(server.counts().connections, 1);
    assert_eq!(server.counts().requests, 7);
}

#[test]
fn requests_are_under_way_at_once_up_to_the_number_of_connections() {
    let server = server(Rules { delay: Duration::from_millis(50), ..Rules::default() });
    let plugin = plugin_for(&server, &[("connections", "5")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        let reads = (0..20).map(|n| {
            let handle = Arc::clone(&handle);
            tokio::spawn(async move { (n, read(&*handle, n * 4096, 4096).await.unwrap()) })
        });
        for task in reads.collect::<Vec<_>>() {
            let (n, bytes) = task.await.unwrap();
            assert_eq!(bytes, pattern(n * 4096, 4096));
        }
    });
    assert_eq!(server.counts().at_once, 5);
    assert!(server.counts().connections <= 5, "{:?}", server.counts());
}

#[test]
fn a_disk_is_found_without_head_and_accept_ranges() {
    for rules in [Rules { head: false, ..Rules::default() }, Rules { accept_ranges: false, ..Rules::default() }] {
        let server = server(rules);
        run(async { reads_right(&plugin_for(&server, &[])).await });
        assert!(server.heads()[0].contains("Range: bytes=0-0\r\n"), "{:?}", server.heads());
    }
}

#[test]
fn a_disk_of_no_bytes_is_one() {
    let server =
        SlowServer::start(Content::memory(Vec::new()), Rules { head: false, ..Rules::default() }, None).unwrap();
    run(async { assert_eq!(open(&plugin_for(&server, &[]), true).await.unwrap().get_size().await.unwrap(), 0) });
}

#[test]
fn writes_are_put_and_read_back() {
    let server = SlowServer::start(Content::memory(vec![0; 100_000]), Rules::default(), None).unwrap();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, false).await.unwrap();
        assert!(handle.can().await.unwrap().write);
        write(&*handle, 1000, vec![7; 70_000]).await.unwrap();
        // By our own doing.
        server.change(|rules| rules.etag = Some("\"2\"".into()));
        let bytes = read(&*handle, 999, 70_002).await.unwrap();
        assert!(bytes[0] == 0 && bytes[70_001] == 0 && bytes[1..70_001].iter().all(|byte| *byte == 7));
        server.spoil([Fault::Status(507)]);
        let error = write(&*handle, 0, vec![1]).await.unwrap_err().to_string();
        assert_eq!(error, "curl: PUT of bytes 0-0: the server answers 507 (EIO)");
        write(&*handle, 0, vec![1]).await.unwrap();
        assert_eq!(read(&*handle, 0, 2).await.unwrap(), [1, 0]);
    });
    let put = server.heads().into_iter().find(|head| head.starts_with("PUT")).unwrap();
    assert!(put.contains("Content-Range: bytes 1000-70999/100000\r\n"), "{put}");
    assert!(!put.contains("Expect"), "{put}");
    let readonly = run(async { open(&plugin, true).await.unwrap().can().await.unwrap() });
    assert!(!readonly.write && readonly.multi_conn);
}
