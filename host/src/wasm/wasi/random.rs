//! `wasi:random`. What is asked for as insecure costs no more to make well.

use wasmtime::Result;

use super::super::entropy;
use super::{Functions, Store, mistake};

/// The most bytes at once: 2 ms of the system's generator, in which nothing can end the call. Honest guests want a seed or a key.
const MOST: u64 = 1 << 20;

fn none() -> wasmtime::Error {
    wasmtime::Error::msg(entropy::NONE)
}

fn bytes(_: Store<'_>, (length,): (u64,)) -> Result<(Vec<u8>,)> {
    if length > MOST {
        return Err(mistake(format!("it asked for {length} random bytes at once (at most {MOST})")));
    }
    let mut bytes = vec![0; length as usize];
    if entropy::fill(&mut bytes) { Ok((bytes,)) } else { Err(none()) }
}

fn word(_: Store<'_>, (): ()) -> Result<(u64,)> {
    Ok((entropy::word().ok_or_else(none)?,))
}

pub(super) fn random(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-random-bytes", bytes)?;
    functions.func_wrap("get-random-u64", word)
}

pub(super) fn insecure(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-insecure-random-bytes", bytes)?;
    functions.func_wrap("get-insecure-random-u64", word)
}

pub(super) fn insecure_seed(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("insecure-seed", |_: Store<'_>, ()| {
        let seed = entropy::word().zip(entropy::word());
        Ok((seed.ok_or_else(none)?,))
    })
}
