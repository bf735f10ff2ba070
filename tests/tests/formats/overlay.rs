//! The overlay that the filter cow keeps in a file (`cow-file=`).

use std::path::{Path, PathBuf};
use std::process::Command;

use rbdkit_tests::server::filter;
use rbdkit_tests::{Launch, Rng, Server, TempDir, tool};

use crate::changes::{SIZE, apply, assert_kept, by_clients, until_killed};
use crate::shared::{assert_content, content, qemu_img};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A disk, and the file with its overlay.
struct Overlay {
    dir: TempDir,
    base: PathBuf,
    file: PathBuf,
}

impl Overlay {
    fn new() -> Overlay {
        let dir = TempDir::new();
        let base = dir.file("base", &content(SIZE, 9));
        let file = dir.join("overlay");
        Overlay { dir, base, file }
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let component = filter("cow");
        let file = format!("cow-file={}", text(&self.file));
        let fixed = ["--wasm-filter", text(&component), "file", text(&self.base), &file];
        fixed.iter().chain(more).map(|word| (*word).to_string()).collect()
    }

    fn serve(&self, more: &[&str]) -> Server {
        Server::start(self.arguments(more))
    }

    /// What `qemu-img check` says: 0 for nothing, 2 for errors, 3 for leaks.
    fn check(&self) -> (i32, String) {
        let output = Command::new("qemu-img").args(["check", "-f", "qcow2", text(&self.file)]).output();
        let output = output.expect("qemu-img");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), said)
    }

    /// The disk as qemu reads it, with the name that the overlay has for the base.
    fn disk(&self) -> Vec<u8> {
        let raw = self.dir.join("disk.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(&self.file), text(&raw)]);
        std::fs::read(raw).expect("the disk")
    }
}

#[test]
fn an_overlay_lasts_and_qemu_commits_it() {
    let overlay = Overlay::new();
    let seed = rbdkit_tests::seed();
    println!("RBDKIT_SEED={seed}");
    let backing = format!("cow-backing={}", text(&overlay.base));
    let before = std::fs::read(&overlay.base).expect("the base");
    let mut expected = before.clone();
    for round in 0..3 {
        let server = overlay.serve(&[&backing, "cow-block-size=4k"]);
        let done = by_clients(&server, seed + round, 100);
        assert!(done.iter().all(|done| done.unknown.is_none()), "{}", server.stderr());
        apply(&done, &mut expected);
        assert_content(&server, &expected, &format!("round {round}, RBDKIT_SEED={seed}"));
        let log = server.stop().stderr;
        assert!(!log.contains("error"), "{log}");
        let (code, said) = overlay.check();
        assert_eq!(code, 0, "RBDKIT_SEED={seed}: {said}");
        assert!(overlay.disk() == expected, "qemu reads other bytes, RBDKIT_SEED={seed}");
    }
    assert!(std::fs::read(&overlay.base).expect("the base") == before, "the base is never written");
    qemu_img(&["commit", "-q", "-f", "qcow2", text(&overlay.file)]);
    assert!(std::fs::read(&overlay.base).expect("the base") == expected, "commit, RBDKIT_SEED={seed}");
}

#[test]
fn a_server_that_is_killed_leaves_an_overlay_with_all_that_was_answered() {
    let overlay = Overlay::new();
    let seed = rbdkit_tests::seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let backing = format!("cow-backing={}", text(&overlay.base));
    let mut expected = std::fs::read(&overlay.base).expect("the base");
    for _ in 0..8 {
        let server = overlay.serve(&[&backing]);
        let (round, until) = (rng.below(1 << 30), rng.below(300));
        let done = until_killed(server, round, until);
        let what = format!("killed after {until} changes, RBDKIT_SEED={seed}");
        let (code, said) = overlay.check();
        assert!(code == 0 || code == 3, "{what}: {said}");
        let after = overlay.disk();
        assert_kept(&done, &mut expected, after.clone(), &what);
        // What was under way may be there or not: the next server goes on with what is there.
        expected = after;
    }
    let server = overlay.serve(&[]);
    assert_content(&server, &expected, "after the last kill");
}

#[test]
fn a_second_server_and_a_second_export_do_not_get_the_file() {
    let overlay = Overlay::new();
    let server = overlay.serve(&[]);
    tool("nbdinfo", ["--size", &server.uri()]).ok();
    let refused = Launch::new(overlay.arguments(&[])).try_start().err().expect("no second server");
    let line = format!("cow-file={}: another server, or another filter of this one, has it open", text(&overlay.file));
    assert!(refused.stderr.contains(&line), "{}", refused.stderr);
    drop(server);

    let dir = TempDir::new();
    for name in ["a", "b"] {
        dir.file(name, &[1; 4096]);
    }
    let (component, exports) = (filter("cow"), format!("dir={}", text(dir.path())));
    let file = format!("cow-file={}", text(&overlay.dir.join("other")));
    let server = Server::start(["--wasm-filter", text(&component), "file", &exports, &file]);
    for (export, works) in [("a", true), ("b", false), ("a", true)] {
        let uri = format!("nbd+unix:///{export}?socket={}", server.socket().display());
        assert_eq!(tool("nbdinfo", ["--size", &uri]).code == 0, works, "{export}");
    }
    server.wait_for_log("cow-file= has the overlay of another export: start a server for each export");
}
