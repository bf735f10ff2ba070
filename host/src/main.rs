//! The program. Everything is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    rbdkit::startup::main()
}
