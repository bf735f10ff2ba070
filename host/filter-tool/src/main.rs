//! `rbdkit-filter`: for authors of filters, and for operators who decide whether to run a filter.
//!
//! It is a separate program, because on rbdkit's command line a subcommand could hide a plugin's
//! name.
#![forbid(unsafe_code)]

#[macro_use]
mod output;

mod bench;
mod build;
mod call;
mod chain;
mod check;
mod component;
mod componentize;
mod dev;
mod doctor;
mod error;
mod file_disk;
mod image;
mod inspect;
mod junit;
mod languages;
mod replay;
mod scaffold;
mod share;
mod times;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use inspect::Format;
use languages::{Keep, Language};

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
        /// The language
        #[arg(long, value_name = "LANGUAGE", default_value = "rust")]
        lang: Language,
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
        /// Keep debugging information, so that the log names files and lines
        #[arg(long, conflicts_with = "strip")]
        debug: bool,
        /// Leave out the names of functions, for a smaller component
        #[arg(long)]
        strip: bool,
    },
    /// Say for which languages the tools are here, and how to install those that are missing
    Doctor {
        /// Only this language
        language: Option<Language>,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Build a filter, serve with it, and at each change build it again and reload it into the
    /// running server
    Dev {
        /// The directory that `new` created
        dir: PathBuf,
        /// Parameters of the filter: key=value
        params: Vec<String>,
        /// The plugin with its parameters, and further options of rbdkit: -- file disk.img
        #[arg(last = true, required = true, value_name = "PLUGIN")]
        rest: Vec<OsString>,
    },
    /// Show what a component is, what it imports and what it can do, without serving anything
    Inspect {
        /// The component: a file, or oci://host/name:tag[@sha256:HEX] in a registry
        file: PathBuf,
        #[command(flatten)]
        trust: component::Trust,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Test a component with random operations on disks in memory, and print the smallest sequence
    /// that goes wrong
    Check {
        /// The component: a file, or oci://host/name:tag[@sha256:HEX] in a registry
        file: PathBuf,
        /// Parameters of the component, or of the disk below it (size): key=value
        params: Vec<String>,
        #[command(flatten)]
        options: check::Options,
    },
    /// Carry out one operation, and show what the component did in it
    Call {
        /// The component: a file, or oci://host/name:tag[@sha256:HEX] in a registry
        file: PathBuf,
        /// The operation and its arguments, in bytes (pread 0 4096, pwrite 0 512, flush, trim,
        /// zero, extents, cache, get-size, can, block-size, export-description, describe,
        /// list-exports, ...), and parameters: key=value
        #[arg(required = true, value_name = "OPERATION")]
        words: Vec<String>,
        #[command(flatten)]
        options: call::CallOptions,
    },
    /// Run a record of rbdkit --record against a component and compare, or show the record
    Replay {
        /// The record
        file: PathBuf,
        /// The component, a file or oci://host/name:tag[@sha256:HEX] (with --show: none)
        filter: Option<PathBuf>,
        /// Parameters of the component: key=value
        params: Vec<String>,
        #[command(flatten)]
        options: replay::ReplayOptions,
    },
    /// Say what a disk image is and what is dangerous in it, without serving it. The exit status is
    /// 1 if it is refused or something is dangerous
    Image {
        /// The image
        file: PathBuf,
        #[command(flatten)]
        options: image::ImageOptions,
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
    /// Measure what a component costs: times, throughput, instructions, memory and its start
    Bench {
        /// The component: a file, or oci://host/name:tag[@sha256:HEX] in a registry
        file: PathBuf,
        /// Parameters of the component, or of the disk below it (size): key=value
        params: Vec<String>,
        #[command(flatten)]
        options: bench::BenchOptions,
    },
}

fn main() -> ExitCode {
    // This program is also its own child process that compiles components, makes components from
    // modules or talks to registries.
    if let Some(status) =
        rbdkit_sandbox::serve_if_asked().or_else(rbdkit_oci::serve_if_asked).or_else(componentize::serve_if_asked)
    {
        return status;
    }
    rbdkit_confine::survive_the_file_size_limit();
    // For the filter's log lines and standard error, and for messages about its faults.
    let command = Args::parse().command;
    let level = match command {
        // It shows all that the filter logs.
        Command::Call { .. } => tracing_subscriber::filter::LevelFilter::DEBUG,
        _ => tracing_subscriber::filter::LevelFilter::INFO,
    };
    let format = tracing_subscriber::fmt().with_writer(output::log).without_time().with_target(false).with_level(false);
    format.with_max_level(level).init();
    let result = match command {
        Command::New { name, lang, dir } => scaffold::new(&name, lang, dir),
        Command::Build { dir, debug, strip } => build::build(&dir, kept(debug, strip)).map(drop),
        Command::Dev { dir, params, rest } => dev::dev(&dir, &params, &rest),
        Command::Doctor { language, json } => doctor::doctor(language, format_of(json)),
        Command::Inspect { file, trust, json } => inspect::inspect(&file, &trust, format_of(json)),
        Command::Check { file, params, options } => check::check(&file, &params, &options),
        Command::Image { file, options } => image::image(&file, &options),
        Command::Push { file, reference, sign, options } => share::push(&file, &reference, sign.as_deref(), &options),
        Command::Pull { reference, output, filter_key, options } => {
            share::pull(&reference, output, filter_key.as_deref(), &options)
        }
        Command::Keygen { prefix } => share::keygen(&prefix),
        Command::Call { file, words, options } => call::call(&file, &words, &options),
        Command::Replay { file, filter, params, options } => {
            replay::replay(&file, filter.as_deref(), &params, &options)
        }
        Command::Bench { file, params, options } => bench::bench(&file, &params, &options),
    };
    let wrong = match (result, output::unsaid()) {
        (Ok(()), None) => return ExitCode::SUCCESS,
        (Ok(()), Some(error)) => format!("cannot write to standard output: {error}"),
        (Err(error), _) => {
            error.details().iter().for_each(|line| output::note(line));
            error.with_causes()
        }
    };
    output::complain(&wrong);
    ExitCode::FAILURE
}

fn format_of(json: bool) -> Format {
    if json { Format::Json } else { Format::Text }
}

fn kept(debug: bool, strip: bool) -> Keep {
    match (debug, strip) {
        (true, _) => Keep::Debugging,
        (false, true) => Keep::Nothing,
        (false, false) => Keep::Names,
    }
}
