//! Guests that use keys and ciphers in a way that the contract forbids.

use super::case::{Act, Case, Want};
use crate::guest::Guest;

/// The name of a cipher at 2200 (15 bytes), of another one at 2232 (14 bytes) and of a hash at 2264
/// (6 bytes).
const KEYS: &str = r#"
    (import "rbdkit:filter/crypto@0.1.0" "make-key" (func $make (param i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "free-key" (func $free (param i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "encrypt" (func $encrypt (param i32 i32 i32 i32 i32 i32 i64 i32 i32)))
    (import "rbdkit:filter/crypto@0.1.0" "derive-pbkdf2" (func $derive (type $of-derive)))
    (type $of-derive (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    (data (i32.const 2200) "aes-xts-plain64")
    (data (i32.const 2232) "rot-13-plain64")
    (data (i32.const 2264) "sha256")"#;

/// Makes a key of this many bytes for the connection. The result is at 2100.
fn make(bytes: u32) -> String {
    format!(
        "(call $make (i32.const 0) (i32.const 2200) (i32.const 15) (i32.const 2300) (i32.const {bytes}) \
         (i32.const 2100)) "
    )
}

/// Encrypts a part of the payload with the connection's key 1. The result is at 2100.
fn encrypt(at: u32, length: u32, sector: u32) -> String {
    format!(
        "(call $encrypt (i32.const 0) (i32.const 1) (i32.const 0) (i32.const {at}) (i32.const {length}) \
         (i32.const {sector}) (i64.const -1) (i32.const -1) (i32.const 2100)) "
    )
}

/// Traps unless the result at 2100 is this error, by its number in the contract. `value_at` is
/// where the error of this kind of result is.
fn expect_error(number: u32, value_at: u32) -> String {
    format!(
        "(if (i32.or (i32.ne (i32.load8_u (i32.const 2100)) (i32.const 1)) \
         (i32.ne (i32.load8_u (i32.const {value_at})) (i32.const {number}))) (then (unreachable))) "
    )
}

const ENOENT: u32 = 1;
const EINVAL: u32 = 4;
const ENOSPC: u32 = 5;
const ENOTSUP: u32 = 7;
const ENXIO: u32 = 12;

pub fn keys() -> Vec<Case> {
    let reads = |name: &str, code: String| Guest::reads(name, KEYS, &code);
    let every_key = "(loop $l (local.set $n (i32.add (local.get $n) (i32.const 1))) MAKE \
                     (br_if $l (i32.eqz (i32.load8_u (i32.const 2100))))) \
                     (if (i32.ne (local.get $n) (i32.const 17)) (then (unreachable))) ";
    let free_all = "(loop $f (call $free (i32.const 0) (local.get $n)) \
                    (br_if $f (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))";
    vec![
        Case::harmless(reads("a-key-of-nobody", encrypt(0, 512, 512) + &expect_error(ENOENT, 2101))),
        Case::harmless(reads(
            "keys-without-end",
            every_key.replace("MAKE", &make(32)) + &expect_error(ENOSPC, 2104) + free_all,
        )),
        Case::harmless(reads(
            "keys-of-wrong-lengths",
            [0, 16, 31, 33, 48, 65, 4096].map(|bytes| make(bytes) + &expect_error(EINVAL, 2104)).concat(),
        )),
        Case::harmless(reads(
            "a-cipher-of-its-own",
            make(32).replace("2200) (i32.const 15", "2232) (i32.const 14") + &expect_error(ENOTSUP, 2104),
        )),
        // Deriving is for open alone: it takes long.
        Case::harmless(reads(
            "derives-in-a-request",
            "(call $derive (i32.const 0) (i32.const 2200) (i32.const 15) (i32.const 32) (i32.const 0) (i32.const 0) \
             (i32.const 0) (i32.const 2264) (i32.const 6) (i32.const 2300) (i32.const 8) (i32.const 1) \
             (i32.const 2100)) "
                .to_owned()
                + &expect_error(ENXIO, 2104),
        )),
        Case::fault(reads("odd-sectors", make(32) + &encrypt(0, 777, 777)), "crypto.encrypt with sectors of 777 bytes"),
        Case::fault(
            reads("half-a-sector", make(32) + &encrypt(0, 513, 512)),
            "crypto.encrypt of 513 bytes, which is no multiple of 512",
        ),
        Case::fault(
            reads("encrypts-beyond-its-buffer", make(32) + &encrypt(4096, 512, 512)),
            "512 bytes at 4096 are not within buffer 0 of 4096",
        ),
        Case::fault(
            reads("encrypts-4-gib", make(32) + &encrypt(4095, 0xffff_f000, 4096)),
            "4294963200 bytes at 4095 are not within buffer 0 of 4096",
        ),
        // The numbers of the sectors wrap. The layers above keep their bytes.
        Case::new(
            Guest::writes("encrypts-a-payload", KEYS, &(make(64) + &encrypt(0, 4096, 1024))),
            Act::Write(4096),
            Want::Right,
            "",
        ),
    ]
}
