//! `wasi:random`. What is asked for as insecure costs no more to make well.

use wasmtime::Result;

use super::{Functions, Store, mistake};

/// The most bytes at once: 2 ms of the system's generator, in which nothing can end the call. Honest guests want a seed or a key.
const MOST: u64 = 1 << 20;

fn bytes(mut store: Store<'_>, (length,): (u64,)) -> Result<(Vec<u8>,)> {
    if length > MOST {
        return Err(mistake(format!("it asked for {length} random bytes at once (at most {MOST})")));
    }
    let mut bytes = vec![0; length as usize];
    store.data_mut().outside.fill(&mut bytes)?;
    Ok((bytes,))
}

fn word(mut store: Store<'_>, (): ()) -> Result<(u64,)> {
    Ok((store.data_mut().outside.word()?,))
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
    functions.func_wrap("insecure-seed", |mut store: Store<'_>, ()| {
        let outside = &mut store.data_mut().outside;
        Ok(((outside.word()?, outside.word()?),))
    })
}
