//! `rbdkit-filter`: for authors of filters, and for operators who decide whether to run a filter.
//!
//! It is a separate program, because on rbdkit's command line a subcommand could hide a plugin's
//! name.
#![forbid(unsafe_code)]

#[macro_use]
mod output;

mod bench;
mod build;
mod chain;
mod check;
mod component;
mod error;
mod inspect;
mod scaffold;
mod share;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use inspect::Format;

#[derive(Parser)]
#[command(name = "rbdkit-filter", version, about = "Create, build, inspect and test filters for rbdkit")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a directory with everything needed to build a filter
    New {
        /// The filter's name: lower-case letters, digits and '-'
        name: String,
        /// The language: rust, c or js
        #[arg(long, default_value = "rust")]
        lang: scaffold::Language,
        /// The directory to create (default: the filter's name)
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Build NAME.wasm from the filter in a directory, or a component from a core module
    Build {
        /// The directory that `new` created, or FILE.wasm with a component type, which becomes
        /// FILE.component.wasm
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Show what a component is, what it imports and what it can do, without serving anything
    Inspect {
        /// The component: a file, or oci://host/name:tag in a registry
        file: PathBuf,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Test a component with random operations on disks in memory, and print the smallest sequence
    /// that goes wrong
    Check {
        /// The component
        file: PathBuf,
        /// Parameters of the component, or of the disk below it (size): key=value
        params: Vec<String>,
        #[command(flatten)]
        options: check::Options,
    },
    /// Push a component to an OCI registry, and print the digest to pin
    Push {
        /// The component
        file: PathBuf,
        /// Where to: oci://host[:port]/name:tag
        reference: String,
        /// Sign it with this private key (ECDSA P-256, PKCS#8 in PEM), as cosign does
        #[arg(long, value_name = "KEY")]
        sign: Option<PathBuf>,
        #[command(flatten)]
        options: share::RegistryOptions,
    },
    /// Pull a component from an OCI registry into a file
    Pull {
        /// What: oci://host[:port]/name:tag[@sha256:HEX]
        reference: String,
        /// The file to write (default: the last part of the name, and .wasm)
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Refuse a component that is not signed by this public key (PEM)
        #[arg(long, value_name = "PUB")]
        filter_key: Option<PathBuf>,
        #[command(flatten)]
        options: share::RegistryOptions,
    },
    /// Make a pair of keys for signing components: PREFIX.key and PREFIX.pub
    Keygen {
        /// The files' names without their ends
        #[arg(default_value = "filter", value_name = "PREFIX")]
        prefix: PathBuf,
    },
    /// Measure the processor time that a component adds to a request
    Bench {
        /// The component
        file: PathBuf,
        /// Parameters of the component, or of the memory plugin below it: key=value
        params: Vec<String>,
        /// Requests of each kind
        #[arg(long, default_value_t = 200_000)]
        requests: u32,
    },
}

fn main() -> ExitCode {
    // This program is also its own child process that compiles components, makes components from
    // modules or talks to registries.
    if let Some(status) =
        rbdkit_sandbox::serve_if_asked().or_else(rbdkit_oci::serve_if_asked).or_else(build::serve_if_asked)
    {
        return status;
    }
    rbdkit_confine::survive_the_file_size_limit();
    // For the filter's log lines and standard error, and for messages about its faults.
    let format = tracing_subscriber::fmt().with_writer(output::log).without_time().with_target(false).with_level(false);
    format.with_max_level(tracing_subscriber::filter::LevelFilter::INFO).init();
    let result = match Args::parse().command {
        Command::New { name, lang, dir } => scaffold::new(&name, lang, dir),
        Command::Build { dir } => build::build(&dir),
        Command::Inspect { file, json } => inspect::inspect(&file, if json { Format::Json } else { Format::Text }),
        Command::Check { file, params, options } => check::check(&file, &params, &options),
        Command::Push { file, reference, sign, options } => share::push(&file, &reference, sign.as_deref(), &options),
        Command::Pull { reference, output, filter_key, options } => {
            share::pull(&reference, output, filter_key.as_deref(), &options)
        }
        Command::Keygen { prefix } => share::keygen(&prefix),
        Command::Bench { file, params, requests } => bench::bench(&file, &params, requests),
    };
    let wrong = match (result, output::unsaid()) {
        (Ok(()), None) => return ExitCode::SUCCESS,
        (Ok(()), Some(error)) => format!("cannot write to standard output: {error}"),
        (Err(error), _) => error.with_causes(),
    };
    output::complain(&wrong);
    ExitCode::FAILURE
}
