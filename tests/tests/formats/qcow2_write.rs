//! Writing through the filter qcow2: several clients at once, and a server that is killed.

use std::path::{Path, PathBuf};

use rbdkit_tests::server::filter;
use rbdkit_tests::{Rng, Server, TempDir, tool};

use crate::changes::{SIZE, apply, assert_kept, by_clients, until_killed};
use crate::shared::{assert_content, content, qemu_img};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Serves an image through the filter, for writing.
fn serve(image: &Image, parameters: &[&str]) -> Server {
    let component = filter("qcow2");
    let fixed = ["--wasm-filter", text(&component), "file", text(&image.path)];
    let passphrase = format!("qcow2-passphrase={PASSPHRASE}");
    let secret = image.is_encrypted.then_some(passphrase.as_str());
    Server::start(fixed.into_iter().chain(parameters.iter().copied()).chain(secret))
}

const PASSPHRASE: &str = "correct horse";

/// The options of an image that is encrypted, with others.
fn encrypted(others: &str) -> String {
    format!("encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,{others}")
}

/// An image file.
struct Image {
    path: PathBuf,
    is_encrypted: bool,
}

impl Image {
    /// An image with space for what is written to it.
    fn new(dir: &TempDir, options: &[&str]) -> Image {
        let path = dir.join("image");
        let image = Image { path, is_encrypted: options.iter().any(|option| option.starts_with("encrypt")) };
        let size = SIZE.to_string();
        let create = [&["create", "-q", "-f", "qcow2"], &image.secret()[..], options, &[text(&image.path), &size]];
        qemu_img(&create.concat());
        image.qemu("qemu-io", &[], &["-c", "write -P 3 1M 500k"]);
        let file = std::fs::OpenOptions::new().write(true).open(&image.path).expect("the image");
        file.set_len(24 << 20).expect("space");
        image
    }

    fn secret(&self) -> Vec<&'static str> {
        if self.is_encrypted { vec!["--object", "secret,id=key,data=correct horse"] } else { Vec::new() }
    }

    /// What names the image for one of qemu's tools.
    fn name(&self) -> Vec<String> {
        let key = if self.is_encrypted { ",encrypt.key-secret=key" } else { "" };
        vec!["--image-opts".into(), format!("driver=qcow2,file.filename={}{key}", text(&self.path))]
    }

    /// Runs one of qemu's tools on the image, and returns its status and what it says.
    fn status(&self, program: &str, before: &[&str], after: &[&str]) -> (i32, String) {
        let name = self.name();
        let name = name.iter().map(String::as_str);
        let all = before.iter().copied().chain(self.secret()).chain(name).chain(after.iter().copied());
        let output = std::process::Command::new(program).args(all).output().expect(program);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), said)
    }

    fn qemu(&self, program: &str, before: &[&str], after: &[&str]) {
        let (status, said) = self.status(program, before, after);
        assert_eq!(status, 0, "{program} {before:?} {after:?}: {said}");
    }

    /// What `qemu-img check` says: 0 for nothing, 2 for errors, 3 for leaks.
    fn check(&self) -> (i32, String) {
        self.status("qemu-img", &["check"], &[])
    }

    fn disk(&self, dir: &TempDir) -> Vec<u8> {
        let raw = dir.join("disk.raw");
        self.qemu("qemu-img", &["convert"], &["-O", "raw", text(&raw)]);
        std::fs::read(raw).expect("the disk")
    }
}

#[test]
fn clients_that_write_at_once_leave_nothing_for_a_check() {
    let dir = TempDir::new();
    let base = dir.file("base", &content(SIZE - 100_000, 4));
    let seed = rbdkit_tests::seed();
    println!("RBDKIT_SEED={seed}");
    let backing = format!("qcow2-backing={}", text(&base));
    for (options, parameters) in [
        (&["-o", "cluster_size=512,refcount_bits=1"][..], &[][..]),
        (&["-o", "compat=0.10,cluster_size=4k"], &[]),
        (&["-o", "cluster_size=64k"], &[]),
        (&["-o", "cluster_size=4k", "-b", text(&base), "-F", "raw"], &[backing.as_str()]),
        (&["-o", "extended_l2=on,cluster_size=16k"], &[]),
        (&["-o", "extended_l2=on", "-b", text(&base), "-F", "raw"], &[backing.as_str()]),
        (&["-o", &encrypted("cluster_size=4k")], &[]),
        (&["-o", &encrypted("cluster_size=64k"), "-b", text(&base), "-F", "raw"], &[backing.as_str()]),
        (&["-o", &encrypted("extended_l2=on,cluster_size=32k"), "-b", text(&base), "-F", "raw"], &[backing.as_str()]),
    ] {
        let image = Image::new(&dir, options);
        let mut expected = image.disk(&dir);
        let server = serve(&image, parameters);
        let done = by_clients(&server, seed, 150);
        assert!(done.iter().all(|done| done.unknown.is_none()), "{options:?}: {}", server.stderr());
        apply(&done, &mut expected);
        assert_content(&server, &expected, &format!("{options:?}, RBDKIT_SEED={seed}"));
        let uri = server.uri();
        let discard = ["-f", "raw", "-c", "discard 1M 1M", "-c", "write -P 8 1536k 100", "-c", "flush", &uri];
        tool("qemu-io", discard).ok();
        let now = dir.join("now.raw");
        tool("nbdcopy", [&uri, text(&now)]).ok();
        let log = server.stop().stderr;
        assert!(!log.contains("error"), "{log}");
        let (code, said) = image.check();
        assert_eq!(code, 0, "{options:?}, RBDKIT_SEED={seed}: {said}");
        assert!(image.disk(&dir) == std::fs::read(&now).expect("the copy"), "{options:?}: qemu reads other bytes");
    }
}

#[test]
fn a_server_that_is_killed_leaves_leaks_at_worst_and_all_that_was_answered() {
    let dir = TempDir::new();
    let seed = rbdkit_tests::seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    for options in [
        "cluster_size=512",
        "compat=0.10,cluster_size=4k",
        "cluster_size=64k",
        "extended_l2=on,cluster_size=16k",
        &encrypted("cluster_size=64k"),
        &encrypted("extended_l2=on"),
    ] {
        let image = Image::new(&dir, &["-o", options]);
        for _ in 0..3 {
            let mut expected = image.disk(&dir);
            let server = serve(&image, &[]);
            let (round, until) = (rng.below(1 << 30), rng.below(400));
            let done = until_killed(server, round, until);
            let what = format!("{options}, killed after {until} changes, RBDKIT_SEED={seed}");
            let (code, said) = image.check();
            assert!(code == 0 || code == 3, "{what}: {said}");
            assert_kept(&done, &mut expected, image.disk(&dir), &what);
        }
    }
}
