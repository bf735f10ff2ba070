//! The data of the call.

use crate::Errno;
use crate::testing::call::{Call, REQUESTS, attempt, with};

/// The longest buffer in bytes.
const MAX_LENGTH: u32 = 64 << 20;

/// The longest key or pattern in bytes.
const MAX_KEY: usize = 65536;

fn on<R>(function: &str, body: impl FnOnce(&mut Call) -> R) -> R {
    with(&format!("buffer.{function}"), &REQUESTS, body)
}

fn check_key(function: &str, key: &[u8]) {
    let length = key.len();
    assert!((1..=MAX_KEY).contains(&length), "buffer.{function}: a key or pattern of {length} bytes, not 1 to 65536");
}

pub(crate) fn len(buf: u32) -> u32 {
    on("len", |call| match call.buffers.get(buf as usize).and_then(Option::as_ref) {
        Some(bytes) => bytes.len() as u32,
        None => panic!("buffer: the call has no buffer {buf}"),
    })
}

pub(crate) fn alloc(length: u32) -> Result<u32, Errno> {
    attempt(&REQUESTS, |call| {
        if length == 0 || length > MAX_LENGTH {
            return Err(Errno::Einval);
        }
        call.world().fault("alloc")?;
        call.buffers.push(Some(vec![0; length as usize]));
        Ok(call.buffers.len() as u32 - 1)
    })
}

pub(crate) fn free(buf: u32) {
    on("free", |call| {
        let own = call.buffers.get_mut(buf as usize).filter(|_| buf != 0);
        assert!(own.is_some_and(|bytes| bytes.take().is_some()), "buffer.free: the call has no buffer {buf} to free");
    });
}

pub(crate) fn read(buf: u32, at: u32, length: u32) -> Vec<u8> {
    on("read", |call| call.part(buf, at, length).to_vec())
}

pub(crate) fn write(buf: u32, at: u32, data: &[u8]) {
    on("write", |call| call.part(buf, at, data.len() as u32).copy_from_slice(data));
}

pub(crate) fn fill(buf: u32, at: u32, length: u32, byte: u8) {
    on("fill", |call| call.part(buf, at, length).fill(byte));
}

pub(crate) fn copy(to: u32, to_at: u32, from: u32, from_at: u32, length: u32) {
    on("copy", |call| {
        let bytes = call.part(from, from_at, length).to_vec();
        call.part(to, to_at, length).copy_from_slice(&bytes);
    });
}

pub(crate) fn is_zero(buf: u32, at: u32, length: u32) -> bool {
    on("is-zero", |call| call.part(buf, at, length).iter().all(|byte| *byte == 0))
}

pub(crate) fn equal(a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> bool {
    mismatch(a, a_at, b, b_at, length).is_none()
}

pub(crate) fn mismatch(a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> Option<u32> {
    on("mismatch", |call| {
        let bytes = call.part(a, a_at, length).to_vec();
        bytes.iter().zip(call.part(b, b_at, length)).position(|(a, b)| a != b).map(|n| n as u32)
    })
}

pub(crate) fn xor(buf: u32, at: u32, length: u32, key: &[u8], skip: u64) {
    check_key("xor", key);
    on("xor", |call| {
        let from = (skip % key.len() as u64) as usize;
        for (byte, key) in call.part(buf, at, length).iter_mut().zip(key.iter().cycle().skip(from)) {
            *byte ^= key;
        }
    });
}

pub(crate) fn translate(buf: u32, at: u32, length: u32, table: &[u8]) {
    assert!(table.len() == 256, "buffer.translate: a table of {} bytes, not 256", table.len());
    on("translate", |call| {
        for byte in call.part(buf, at, length) {
            *byte = table[usize::from(*byte)];
        }
    });
}

pub(crate) fn swap(buf: u32, at: u32, length: u32, width: u32) {
    assert!(matches!(width, 2 | 4 | 8), "buffer.swap: a width of {width}, not 2, 4 or 8");
    assert!(length.is_multiple_of(width), "buffer.swap: {length} bytes are not a multiple of {width}");
    on("swap", |call| call.part(buf, at, length).chunks_mut(width as usize).for_each(<[u8]>::reverse));
}

pub(crate) fn find(buf: u32, at: u32, length: u32, pattern: &[u8]) -> Option<u32> {
    check_key("find", pattern);
    on("find", |call| {
        let bytes = call.part(buf, at, length);
        bytes.windows(pattern.len()).position(|window| window == pattern).map(|n| n as u32)
    })
}

pub(crate) fn sha256(buf: u32, at: u32, length: u32) -> Vec<u8> {
    on("sha256", |call| crate::testing::digest::sha256(call.part(buf, at, length)).to_vec())
}

pub(crate) fn crc32c(buf: u32, at: u32, length: u32, before: u32) -> u32 {
    on("crc32c", |call| crate::testing::digest::crc32c(call.part(buf, at, length), before))
}
