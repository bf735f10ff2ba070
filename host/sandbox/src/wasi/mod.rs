//! The host's own stubs of WASI 0.2. Some toolchains import WASI even if the filter's author does
//! not use it: C libraries, and the runtimes of Python, JavaScript and Go.
//!
//! The stubs give such a runtime what it needs to start: clocks, random numbers, and standard
//! output and error, whose lines go to the filter's log. All other functions exist only so that the
//! component links, and grant nothing: no environment, no directories, no network. So no stub
//! grants more than `rbdkit:filter` does, and the same limits hold for it. An interface that is not
//! in [`INTERFACES`] is not granted, and a component that imports it is refused.
//!
//! The stubs are written by hand because the crates that implement WASI give files and sockets to
//! guests, and a filter gets none.
//!
//! **Handles.** A guest can have handles of the three standard streams, of pollables, and of a
//! network that denies everything. They are counted
//! ([`WasiHandles`](crate::guest::wasi_handles::WasiHandles)) and end with their instance. No guest
//! ever has a handle of any other type (files, sockets, terminals), so it cannot call the functions
//! of those types: the engine knows which handles each component has, and traps on any other.
//!
//! **Versions.** Every version 0.2.x works, because the linker uses one definition for all
//! compatible versions.

#![forbid(unsafe_code)]

mod cli;
mod clocks;
mod define;
mod denied;
mod io;
mod random;

use wasmtime::Result;
use wasmtime::component::Linker;

use self::define::Functions;
use crate::connection::trace::Recording;
use crate::guest::context::Context;

/// One interface of WASI.
struct Interface {
    name: &'static str,
    /// What it grants a guest, as a text for the operator.
    grants: &'static str,
    define: fn(&mut Functions<'_>) -> Result<()>,
}

const fn interface(
    name: &'static str,
    grants: &'static str,
    define: fn(&mut Functions<'_>) -> Result<()>,
) -> Interface {
    Interface { name, grants, define }
}

/// All interfaces that are granted.
const INTERFACES: [Interface; 27] = [
    interface("wasi:cli/environment", "nothing: no variables, no arguments, no directory", cli::environment),
    interface("wasi:cli/exit", "a fault of its own, which fails its request", cli::exit),
    interface("wasi:cli/stdin", "nothing: it is closed", cli::stdin),
    interface("wasi:cli/stdout", "lines in the server's log (with -v), limited in rate", cli::stdout),
    interface("wasi:cli/stderr", "lines in the server's log, limited in rate", cli::stderr),
    interface("wasi:cli/terminal-input", "nothing: there is no terminal", cli::terminal_input),
    interface("wasi:cli/terminal-output", "nothing: there is no terminal", cli::terminal_output),
    interface("wasi:cli/terminal-stdin", "nothing: there is no terminal", cli::terminal_stdin),
    interface("wasi:cli/terminal-stdout", "nothing: there is no terminal", cli::terminal_stdout),
    interface("wasi:cli/terminal-stderr", "nothing: there is no terminal", cli::terminal_stderr),
    interface("wasi:clocks/monotonic-clock", "the time since the server started; sleep", clocks::monotonic),
    interface("wasi:clocks/wall-clock", "the time of day", clocks::wall),
    interface("wasi:filesystem/preopens", "nothing: no directories", denied::preopens),
    interface("wasi:filesystem/types", "nothing: there is no file to use it on", denied::files),
    interface("wasi:io/error", "nothing: errors have no details", io::error),
    interface("wasi:io/poll", "waiting for what it may use", io::poll),
    interface("wasi:io/streams", "standard input, output and error, as above", io::streams),
    interface("wasi:random/random", "random numbers", random::random),
    interface("wasi:random/insecure", "random numbers", random::insecure),
    interface("wasi:random/insecure-seed", "a random number", random::insecure_seed),
    interface(
        "wasi:sockets/instance-network",
        "nothing: a network on which everything is denied",
        denied::instance_network,
    ),
    interface("wasi:sockets/ip-name-lookup", "nothing: access is denied", denied::name_lookup),
    interface("wasi:sockets/network", "nothing: access is denied", denied::network),
    interface("wasi:sockets/tcp", "nothing: there is no socket to use it on", denied::tcp),
    interface("wasi:sockets/tcp-create-socket", "nothing: access is denied", denied::tcp_create),
    interface("wasi:sockets/udp", "nothing: there is no socket to use it on", denied::udp),
    interface("wasi:sockets/udp-create-socket", "nothing: access is denied", denied::udp_create),
];

/// The version under which the stubs are defined.
const VERSION: &str = "0.2.0";

/// Adds all stubs to a linker.
pub(super) fn add_to_linker(linker: &mut Linker<Context>, recording: Recording) -> Result<()> {
    for Interface { name, define, .. } in &INTERFACES {
        let linker = linker.instance(&format!("{name}@{VERSION}"))?;
        define(&mut Functions { linker, interface: name, recording })?;
    }
    Ok(())
}

/// The name of an imported interface without its version, if it is granted.
pub(super) fn granted(name: &str) -> Option<&'static str> {
    let (interface, version) = name.split_once('@')?;
    let patch = version.strip_prefix("0.2.")?;
    let released = !patch.is_empty() && patch.len() <= 9 && patch.bytes().all(|b| b.is_ascii_digit());
    INTERFACES.iter().map(|known| known.name).find(|known| released && *known == interface)
}

/// What an interface of WASI, named without its version, grants a guest. None if it is not granted.
pub fn grants(interface: &str) -> Option<&'static str> {
    INTERFACES.iter().find(|known| known.name == interface).map(|known| known.grants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_release_of_wasi_0_2_is_granted_and_nothing_else() {
        assert_eq!(granted("wasi:cli/exit@0.2.0"), Some("wasi:cli/exit"));
        assert_eq!(granted("wasi:cli/exit@0.2.12"), Some("wasi:cli/exit"));
        for other in [
            "wasi:cli/exit",
            "wasi:cli/exit@0.2",
            "wasi:cli/exit@0.2.",
            "wasi:cli/exit@0.2.0-rc-2023-11-10",
            "wasi:cli/exit@0.2.99999999999999999999",
            "wasi:cli/exit@0.3.0",
            "wasi:cli/exit@1.0.0",
            "wasi:http/types@0.2.0",
            "wasi:cli/run@0.2.0",
        ] {
            assert_eq!(granted(other), None, "{other}");
        }
    }

    #[test]
    fn the_stubs_can_be_linked() {
        let engine = crate::connection::engine::engine(Default::default()).unwrap();
        for recording in [Recording::Off, Recording::On] {
            add_to_linker(&mut Linker::new(&engine), recording).unwrap();
        }
        assert!(INTERFACES.iter().all(|interface| grants(interface.name) == Some(interface.grants)));
    }
}
