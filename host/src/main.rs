//! rbdkit: an NBD server whose filters are sandboxed WebAssembly components. See ARCHITECTURE.md
//! for the map.

mod cli;
mod registry;
mod startup;

fn main() -> std::process::ExitCode {
    startup::main()
}
