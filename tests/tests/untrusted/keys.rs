//! Filters that derive keys while a connection is opened: without end, with much memory, from what
//! is not theirs.

use std::time::{Duration, Instant};

use rbdkit_tests::raw::{Stream, error, go, opt, rep};
use rbdkit_tests::{Client, Launch, Server, TempDir};

use crate::guest::Guest;

/// A guest with a secret parameter whose open runs `code`, which leaves nothing on the stack. If
/// `code` does not return, open then fails with ETIMEDOUT.
fn opens(name: &str, code: &str) -> Guest {
    let body = format!(
        r#"
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "derive-pbkdf2" (func $pbkdf2 (type $of-pbkdf2)))
    (type $of-pbkdf2 (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "derive-argon2" (func $argon2 (type $of-argon2)))
    (type $of-argon2 (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "unwrap" (func $unwrap (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "free-key" (func $free (param i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "make-key" (func $make (param i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "encrypt" (func $encrypt (param i32 i32 i32 i32 i32 i32 i64 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (data (i32.const 2200) "aes-xts-plain64")
    (data (i32.const 2264) "sha512")
    (data (i32.const 2280) "argon2id")
    (data (i32.const 2300) "pass")
    (data (i32.const 2310) "plain")
    ;; PBKDF2 from the parameter at this place, with this number of iterations. Its error, or -1.
    (func $derived (param $name i32) (param $length i32) (param $iterations i32) (result i32)
        (call $pbkdf2 (i32.const 0) (i32.const 2200) (i32.const 15) (i32.const 64) (local.get $name)
            (local.get $length) (i32.const 0) (i32.const 2264) (i32.const 6) (i32.const 2400) (i32.const 16)
            (local.get $iterations) (i32.const 2100))
        (call $error))
    (func $error (result i32)
        (if (result i32) (i32.load8_u (i32.const 2100)) (then (i32.load8_u (i32.const 2104))) (else (i32.const -1))))
    (func $expect (param i32 i32) (if (i32.ne (local.get 0) (local.get 1)) (then (unreachable))))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (local $n i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2100))
        {code}
        (i32.store8 (i32.const 3000) (i32.const 1))
        (i32.store8 (i32.const 3008) (i32.const 10))
        (i32.const 3000))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
    ;; At offset 4096 a key for the connection is made; at 8192 the connection's key 1 is used, and
    ;; its error is the answer.
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (if (i64.eq (local.get 0) (i64.const 4096)) (then
            (call $make (i32.const 0) (i32.const 2200) (i32.const 15) (i32.const 2400) (i32.const 32)
                (i32.const 2048))
            (i32.store8 (i32.const 2049) (i32.load8_u (i32.const 2052)))))
        (if (i64.eq (local.get 0) (i64.const 8192)) (then
            (call $encrypt (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 512) (i32.const 512)
                (i64.const 0) (i32.const 1) (i32.const 2048))))
        (i32.const 2048))
"#
    );
    let params = vec![("pass", "secret"), ("plain", "string")];
    Guest { params, ..Guest::new(name, &["connection", "reads"], &body) }
}

const FINE: &str = "(return (i32.const 1200))";

fn serve(guests: &[Guest], limits: &[&str]) -> Server {
    let dir = TempDir::new();
    let mut launch = Launch::new(limits.iter().map(|limit| format!("--filter-limit={limit}")));
    for guest in guests {
        launch = launch.arg("--wasm-filter").arg(dir.file(&format!("{}.wasm", guest.name), &guest.component(0)));
    }
    let name = &guests[0].name;
    launch.args(["memory", "1M", "plain=x"]).args(["--filter-param", &format!("{name}:pass=hush")]).start()
}

/// The type of the last reply to GO.
fn go_reply(server: &Server) -> u32 {
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream.option(opt::GO, &go("", &[])).expect("GO");
    stream.option_replies(opt::GO).expect("replies").0
}

#[test]
fn guessing_without_end_is_ended_by_the_limit_for_deriving() {
    // Each guess takes a moment. It stops at the first error, which has to be ETIMEDOUT.
    let guesses = "(loop $l (local.set $n (call $derived (i32.const 2300) (i32.const 4) (i32.const 20000))) \
                   (call $free (i32.const 0) (i32.load (i32.const 2104))) (br_if $l (i32.eq (local.get $n) \
                   (i32.const -1)))) (call $expect (local.get $n) (i32.const 10))";
    let server = serve(&[opens("guesses", guesses)], &["guesses:setup=500ms"]);
    let began = Instant::now();
    assert_ne!(go_reply(&server), rep::ACK);
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    let log = server.stop().stderr;
    assert!(!log.contains("unreachable") && !log.contains("hush"), "{log}");
    // One that goes on after that computes.
    let stubborn = "(loop $l (drop (call $derived (i32.const 2300) (i32.const 4) (i32.const 100000000))) (br $l))";
    let server = serve(&[opens("stubborn", stubborn)], &["stubborn:setup=500ms"]);
    assert_ne!(go_reply(&server), rep::ACK);
    server.wait_for_log("stubborn: ");
    server.wait_until("the limit ends it", |server| {
        server.stderr().contains("it computed for longer than 500ms")
            || server.stderr().contains("it took longer than 500ms")
    });
    assert!(server.stop().status.success());
}

#[test]
fn work_that_is_not_allowed_is_refused_at_once() {
    let argon2 = |iterations: u32, memory: u32, lanes: u32, errno: u32| {
        format!(
            "(call $argon2 (i32.const 0) (i32.const 2200) (i32.const 15) (i32.const 64) (i32.const 2300) \
             (i32.const 4) (i32.const 0) (i32.const 2280) (i32.const 8) (i32.const 2400) (i32.const 16) \
             (i32.const {iterations}) (i32.const {memory}) (i32.const {lanes}) (i32.const 2100)) \
             (call $expect (call $error) (i32.const {errno})) "
        )
    };
    let pbkdf2 = |iterations: u32, errno: u32| {
        format!(
            "(call $expect (call $derived (i32.const 2300) (i32.const 4) (i32.const {iterations})) \
             (i32.const {errno})) "
        )
    };
    let (enoent, enomem, einval) = (1, 3, 4);
    let code = [
        argon2(1, 4 << 20, 1, enomem),
        argon2(1, u32::MAX, 1, enomem),
        argon2(u32::MAX, 1 << 10, 1, einval),
        argon2(1, 1 << 10, u32::MAX, einval),
        argon2(0, 1 << 10, 1, einval),
        pbkdf2(u32::MAX, einval),
        pbkdf2(0, einval),
        // Not a secret, and not given.
        format!("(call $expect (call $derived (i32.const 2310) (i32.const 5) (i32.const 1)) (i32.const {einval})) "),
        format!("(call $expect (call $derived (i32.const 2310) (i32.const 3) (i32.const 1)) (i32.const {enoent})) "),
        FINE.to_owned(),
    ]
    .concat();
    let server = serve(&[opens("greedy", &code)], &["greedy:key-memory=1G"]);
    assert_eq!(go_reply(&server), rep::ACK, "{}", server.stderr());
    // 64 MiB are a third of what is allowed here, and four connections want them at once.
    let code = argon2(1, 64 << 10, 1, u32::MAX) + FINE;
    let server = serve(&[opens("many", &code)], &["many:key-memory=256M"]);
    let all: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| go_reply(&server))).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    assert_eq!(all, [rep::ACK; 4], "{}", server.stderr());
}

#[test]
fn key_material_that_is_not_there_traps() {
    let unwrap = "(call $derived (i32.const 2300) (i32.const 4) (i32.const 1)) (drop) \
                  (call $alloc (i32.const 4096) (i32.const 2100)) \
                  (call $unwrap (i32.const 0) (i32.const 2200) (i32.const 15) (i32.const 64) (i32.const 1) \
                  (i32.const 1) (i32.const 4090) (i32.const 10) (i32.const 2264) (i32.const 6) (i32.const 2100))";
    let server = serve(&[opens("beyond", unwrap)], &[]);
    assert_ne!(go_reply(&server), rep::ACK);
    server.wait_for_log("1024 bytes at 4090 are not within buffer 1 of 4096");
}

#[test]
fn a_key_of_another_connection_does_not_exist() {
    let server = serve(&[opens("thief", FINE)], &[]);
    let mut owner = server.client();
    let mut thief = server.client();
    assert!(owner.read(4096, 512).is_ok());
    assert!(owner.read(8192, 512).is_ok(), "its own key");
    let mine = |client: &mut Client| client.read(8192, 512);
    // ENOENT has no number in the protocol; the log names it.
    assert_eq!(mine(&mut thief), Err(error::EIO));
    server.wait_for_log("READ offset=8192 length=512: ENOENT");
    drop(owner);
    assert_eq!(mine(&mut server.client()), Err(error::EIO));
    // A second filter with the same code has keys of its own.
    let both = serve(&[opens("one", FINE), opens("two", FINE)], &[]);
    let mut client = both.client();
    assert!(client.read(4096, 512).is_ok() && client.read(8192, 512).is_ok());
}
