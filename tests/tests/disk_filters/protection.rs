//! protect, readonly and checkwrite.

use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

use super::{observe, refused, same_as_nbdkit};

#[test]
fn protect_lets_writes_pass_as_nbdkits_filter_does() {
    let script = "can()\nwhat('pwrite', b'x', 99)\nwhat('pwrite', b'x' * 3, 98)\nwhat('pwrite', b'x' * 3, 198)\n\
                  what('pwrite', b'x', 200)\nwhat('pwrite', bytes(300), 50)\nwhat('pwrite', b'x', 1000)\n\
                  what('pwrite', b'x', 1048575)\nprint(h.pread(300, 0))\nprint(h.pread(1, 1048575))";
    for ranges in [&["protect=100-199"][..], &["protect=~100-199"], &["protect=-0x63", "protect=01750-"]] {
        let words = [&["--filter=protect"], ranges].concat();
        // nbdkit writes the whole request where ours leaves out what is protected.
        let printed = |text: String| text.lines().take_while(|line| !line.starts_with("pread")).collect::<String>();
        let ours = observe(None, &words, script);
        if !is_nbdkit() {
            assert_eq!(printed(ours.clone()), printed(observe(Some("nbdkit"), &words, script)), "{words:?}");
        }
        assert!(ours.contains("EPERM") && ours.contains("success"), "{ours}");
    }
}

#[test]
fn protect_keeps_zeroes_and_trims_away_from_what_they_would_change() {
    if is_nbdkit() {
        return;
    }
    let dir = TempDir::new();
    let disk = dir.file("disk.img", &[7; 8192]);
    let server = Launch::new(["--filter=protect", "file", "protect=512-1023"]).path("file", &disk).start();
    let script = "h.connect_uri(uri)\nassert fails(lambda: h.zero(600, 0)) == 'EPERM'\n\
                  assert fails(lambda: h.trim(4096, 0)) == 'EPERM'\nh.zero(512, 0)\nh.zero(7168, 1024)\n\
                  assert fails(lambda: h.zero(1024, 0, nbd.CMD_FLAG_FAST_ZERO)) == 'ENOTSUP'";
    nbdsh(&server.uri(), script).ok();
    server.wait_for_log("protect: a zero request of 600 bytes at 0 would change the protected range 512-1023");
    let bytes = std::fs::read(&disk).expect("the disk");
    assert!(bytes[512..1024].iter().all(|byte| *byte == 7) && bytes[1024..].iter().all(|byte| *byte == 0));
    tool("qemu-io", ["-f", "raw", "-c", "write -P 7 512 512", "-c", "write -P 1 0 512", &server.uri()]).ok();
    let wrong = refused(&["--filter=protect", "memory", "1M", "protect=9-0"]);
    assert!(wrong.contains("protect: protect=9-0: ends before it starts"), "{wrong}");
}

#[test]
fn readonly_offers_no_writes_or_refuses_them_while_its_file_exists() {
    if is_nbdkit() {
        return;
    }
    let observed = observe(None, &["--filter=readonly"], "can()");
    assert_eq!(observed, "cache flush\nread-only  1048576\n");
    let dir = TempDir::new();
    let file = dir.join("ro");
    let server = Launch::new(["--filter=readonly", "memory", "1M"]).path("readonly-file", &file).start();
    let script = format!(
        "h.connect_uri(uri)\nimport os\ndef writes():\n    \
         return [fails(lambda: h.pwrite(b'x', 0)), fails(lambda: h.zero(1, 0)), fails(lambda: h.trim(1, 0))]\n\
         assert not h.is_read_only() and writes() == ['success'] * 3\nopen('{0}', 'w').close()\n\
         assert writes() == ['EPERM'] * 3\nh.pread(512, 0)\nh.flush()\nos.remove('{0}')\n\
         assert writes() == ['success'] * 3",
        file.display()
    );
    nbdsh(&server.uri(), &script).ok();
}

#[test]
fn checkwrite_accepts_what_is_there_as_nbdkits_filter_does() {
    let script = "can()\nwhat('pwrite', bytes(512), 0)\nwhat('pwrite', b'x', 100)\nwhat('zero', 8192, 0)\n\
                  what('trim', 512, 100)\nwhat('zero', 512, 0, FAST)\nwhat('flush')\nwhat('pwrite', bytes(1), 5, FUA)";
    let printed = |text: String| text.lines().take_while(|line| !line.starts_with("pread")).collect::<String>();
    let ours = observe(None, &["--filter=checkwrite"], script);
    assert!(!ours.contains("pwrite 0 512") && ours.contains("EIO"), "{ours}");
    if !is_nbdkit() {
        let theirs = observe(Some("nbdkit"), &["--filter=checkwrite"], script);
        assert_eq!(printed(ours), printed(theirs));
    }
}

#[test]
fn programs_that_copy_pass_checkwrite_and_one_that_errs_does_not() {
    let dir = TempDir::new();
    let mut bytes = vec![0; 3 << 20];
    for (nth, byte) in bytes[1 << 20..2 << 20].iter_mut().enumerate() {
        *byte = (nth / 300) as u8;
    }
    let disk = dir.file("disk.img", &bytes);
    let server = Launch::new(["--filter=checkwrite", "file"]).path("file", &disk).start();
    let uri = server.uri();
    tool("nbdcopy", [&uri, &uri]).ok();
    tool("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", &uri, &uri]).ok();
    bytes[1_500_000] ^= 1;
    let other = dir.file("other.img", &bytes);
    let errors = tool("nbdcopy", [other.to_str().expect("UTF-8"), &uri]).fails();
    assert!(errors.contains("Input/output error"), "{errors}");
    let wanted = if is_nbdkit() { "data written does not match" } else { "differs from what is on the disk" };
    server.wait_for_log(wanted);
}

#[test]
fn a_disk_below_checkwrite_is_opened_read_only() {
    let dir = TempDir::new();
    let opened = dir.join("opened");
    let open = format!("open=echo $2 >>{}", opened.display());
    let server = Server::start(["--filter=checkwrite", "eval", "get_size=echo 512", "pwrite=exit 1", &open]);
    tool("nbdinfo", [server.uri()]).ok();
    let opened = std::fs::read_to_string(opened).expect("it was opened");
    assert!(opened.lines().all(|line| line == "true"), "{opened}");
    let script = "can()\n";
    assert!(same_as_nbdkit(&["--filter=checkwrite"], script).contains("writable"));
}
