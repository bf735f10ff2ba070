//! `wasi:random`. The "insecure" numbers come from the same source as the others, because that
//! costs no more.

use wasmtime::Result;

use super::define::{Functions, Store};
use crate::guest::fault::mistake;

/// The most bytes that a guest may ask for at once. Generating that many takes 2 ms, during which
/// nothing can end the call. An honest guest asks only for a seed or a key.
const MAX_BYTES: u64 = 1 << 20;

fn bytes(mut store: Store<'_>, (length,): (u64,)) -> Result<(Vec<u8>,)> {
    if length > MAX_BYTES {
        return Err(mistake(format!("it asked for {length} random bytes at once (at most {MAX_BYTES})")));
    }
    let mut bytes = vec![0; length as usize];
    store.data_mut().inputs.fill(&mut bytes)?;
    Ok((bytes,))
}

fn word(mut store: Store<'_>, (): ()) -> Result<(u64,)> {
    Ok((store.data_mut().inputs.word()?,))
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
        let inputs = &mut store.data_mut().inputs;
        Ok(((inputs.word()?, inputs.word()?),))
    })
}
