//! A guest traps between writing data and publishing where the data is. Each block has to be what
//! it was before or what was written.

use rbdkit_tests::raw::error;
use rbdkit_tests::{Launch, Rng, TempDir, seed};

use crate::guest::Guest;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 200;

/// An overlay of blocks in the scratch file. A map says which blocks are there. The block's number
/// chooses where the guest traps, by chance in about every second write: 1 before anything, 2 after
/// the data, 3 after the change of the map, which is held back until the end of the call, 4 after
/// it also wrote to the layer below.
fn overlay() -> Guest {
    let trap_at = |place: u32| {
        format!("(if (i32.and (global.get $odd) (i64.eq (local.get $kind) (i64.const {place}))) (then (unreachable)))")
    };
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/maps@0.1.0" "resize" (func $resize (param i32 i32 i32 i64 i32)))
    (import "rbdkit:filter/maps@0.1.0" "set" (func $set (param i32 i32 i64 i64 i32 i32 i32) (result i64)))
    (import "rbdkit:filter/maps@0.1.0" "get-run" (func $run (param i32 i32 i64 i64 i32)))
    (import "rbdkit:filter/scratch@0.1.0" "pread" (func $scratch_pread (param i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $scratch_pwrite (param i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/clock@0.1.0" "random" (func $random (result i64)))
    (global $odd (mut i32) (i32.const 0))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2100))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32)
        (call $resize (i32.const 1) (i32.const 0) (i32.const 4096) (i64.const 0x100000) (i32.const 2100))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $run (i32.const 1) (i32.const 0) (i64.shr_u (local.get 0) (i64.const 12)) (i64.const 1) (i32.const 2112))
        (if (i32.load8_u (i32.const 2112))
            (then (call $scratch_pread (i32.const 1) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0)
                (i32.const 2048)))
            (else (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))))
        (i32.const 2048))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (local $kind i64)
        (local.set $kind (i64.rem_u (i64.shr_u (local.get 0) (i64.const 12)) (i64.const 5)))
        (global.set $odd (i32.and (i32.wrap_i64 (call $random)) (i32.const 1)))
        {}
        (call $scratch_pwrite (i32.const 1) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (return (i32.const 2048))))
        {}
        (drop (call $set (i32.const 1) (i32.const 0) (i64.shr_u (local.get 0) (i64.const 12)) (i64.const 1)
            (i32.const 15)
            (i32.const 1) (i32.const 1)))
        {}
        (if (i64.eq (local.get $kind) (i64.const 4)) (then
            (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))))
        {}
        (i32.const 2048))
"#,
        trap_at(1),
        trap_at(2),
        trap_at(3),
        trap_at(4)
    );
    Guest::new("overlay", &["connection", "reads", "writes"], &body)
}

#[test]
fn a_block_is_what_it_was_before_or_what_was_written() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let dir = TempDir::new();
    let disk = dir.file("disk", &vec![0x11; (BLOCK * BLOCKS) as usize]);
    let file = dir.file("overlay.wasm", &overlay().component(0));
    let server = Launch::new(["--wasm-filter"]).arg(file).arg("file").path("file", &disk).start();
    let mut client = server.client();
    // The values that each block may have, the last write first.
    let mut may_be: Vec<Vec<u8>> = vec![vec![0x11]; BLOCKS as usize];
    let mut failed = 0;
    for round in 0..2000 {
        let block = rng.below(BLOCKS);
        let may_be = &mut may_be[block as usize];
        if rng.chance(50) {
            let fill = 1 + rng.below(250) as u8;
            match client.write(block * BLOCK, &vec![fill; BLOCK as usize]) {
                Ok(()) => *may_be = vec![fill],
                Err(error) => {
                    assert_eq!(error, error::EIO, "seed {seed} round {round}");
                    failed += 1;
                    may_be.push(fill);
                    // After several failures in a row the filter is paused for this connection, so
                    // the next request comes from another one.
                    client = server.client();
                }
            }
        } else {
            let bytes =
                client.read(block * BLOCK, BLOCK as u32).unwrap_or_else(|e| panic!("seed {seed} round {round}: {e}"));
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "seed {seed} round {round}: block {block} is torn");
            assert!(
                may_be.contains(&bytes[0]),
                "seed {seed} round {round}: block {block} is {}, not of {may_be:?}",
                bytes[0]
            );
            // A value that was read once does not change.
            *may_be = vec![bytes[0]];
        }
    }
    assert!(failed > 100, "{failed} traps");
    assert!(server.stop().status.success());
}
