//! `wasi:cli`: a program's environment, exit, standard streams and terminals.

use wasmtime::Result;
use wasmtime::component::Resource;

use super::define::{Functions, Store, resource};
use super::io::{InputStream, OutputStream};
use crate::guest::console::ConsoleStream;
use crate::guest::fault::mistake;
use crate::guest::wasi_handles::WasiHandle;

struct TerminalInput;
struct TerminalOutput;

/// The answer to a guest that asks for its terminal: it has none.
type NoTerminal<T> = (Option<Resource<T>>,);

pub(super) fn environment(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-environment", |_: Store<'_>, ()| Ok((Vec::<(String, String)>::new(),)))?;
    functions.func_wrap("get-arguments", |_: Store<'_>, ()| Ok((Vec::<String>::new(),)))?;
    functions.func_wrap("initial-cwd", |_: Store<'_>, ()| Ok((None::<String>,)))
}

/// A filter has no reason to exit, so a guest that exits has failed, whatever its status is.
pub(super) fn exit(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("exit", |_: Store<'_>, (status,): (std::result::Result<(), ()>,)| {
        let how = if status.is_ok() { "as if it had succeeded" } else { "as failed" };
        Err::<(), _>(mistake(format!("it called exit, {how}")))
    })?;
    functions.func_wrap("exit-with-code", |_: Store<'_>, (status,): (u8,)| {
        Err::<(), _>(mistake(format!("it called exit, with status {status}")))
    })
}

pub(super) fn stdin(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-stdin", |mut store: Store<'_>, ()| {
        Ok((store.data_mut().handles.add::<InputStream>(WasiHandle::Input)?,))
    })
}

pub(super) fn stdout(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-stdout", |mut store: Store<'_>, ()| {
        Ok((store.data_mut().handles.add::<OutputStream>(WasiHandle::Output(ConsoleStream::Out))?,))
    })
}

pub(super) fn stderr(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-stderr", |mut store: Store<'_>, ()| {
        Ok((store.data_mut().handles.add::<OutputStream>(WasiHandle::Output(ConsoleStream::Err))?,))
    })
}

pub(super) fn terminal_input(functions: &mut Functions<'_>) -> Result<()> {
    resource::<TerminalInput>(functions, "terminal-input")
}

pub(super) fn terminal_output(functions: &mut Functions<'_>) -> Result<()> {
    resource::<TerminalOutput>(functions, "terminal-output")
}

pub(super) fn terminal_stdin(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-terminal-stdin", |_: Store<'_>, ()| Ok::<NoTerminal<TerminalInput>, _>((None,)))
}

pub(super) fn terminal_stdout(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-terminal-stdout", |_: Store<'_>, ()| Ok::<NoTerminal<TerminalOutput>, _>((None,)))
}

pub(super) fn terminal_stderr(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-terminal-stderr", |_: Store<'_>, ()| Ok::<NoTerminal<TerminalOutput>, _>((None,)))
}
