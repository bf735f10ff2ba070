//! The answer to [`op::CAN`](crate::memory::op): one byte for each of nbdkit's `can_*` functions.

use rbdkit_plugin_api::{Capabilities, Support};

/// Bytes of the answer.
pub(crate) const LENGTH: usize = 10;

/// The plugin's answers in the order of the packet: write, flush, rotational, trim, zero, fast
/// zero, fua, multi-conn, cache, extents. What nbdkit calls truth is any number but 0.
pub(crate) fn encode(answers: &[i64; LENGTH]) -> [u8; LENGTH] {
    answers.map(|answer| answer.clamp(0, 2) as u8)
}

/// What the server makes of them.
pub(crate) fn decode(answers: [u8; LENGTH]) -> Capabilities {
    let support = |answer: u8| match answer {
        0 => Support::None,
        1 => Support::Emulate,
        _ => Support::Native,
    };
    let [write, flush, rotational, trim, zero, fast_zero, fua, multi_conn, cache, extents] = answers;
    Capabilities {
        write: write != 0,
        flush: flush != 0,
        rotational: rotational != 0,
        trim: trim != 0,
        fast_zero: fast_zero != 0,
        extents: extents != 0,
        multi_conn: multi_conn != 0,
        zero: support(zero),
        fua: support(fua),
        cache: support(cache),
    }
}
