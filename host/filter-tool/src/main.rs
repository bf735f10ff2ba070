//! `rbdkit-filter`: for those who write filters and those who decide whether to run one.
//!
//! A program of its own, so that no subcommand shadows a plugin's name on rbdkit's command line.
#![forbid(unsafe_code)]

/// A line on standard output. Who reads only the beginning (`| head`) is not an error.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        if let Err(error) = writeln!(std::io::stdout(), $($text)*)
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            // Said once, at the end.
            let _ = crate::UNSAID.set(error);
        }
    }};
}

mod build;
mod check;
mod inspect;
mod scaffold;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};

/// Why a line did not get to standard output.
static UNSAID: OnceLock<std::io::Error> = OnceLock::new();

#[derive(Parser)]
#[command(name = "rbdkit-filter", version, about = "Write, build, examine and try filters for rbdkit")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Begin a filter: a directory with everything needed to build it
    New {
        /// The filter's name: lower-case letters, digits and '-'
        name: String,
        /// rust, c or js
        #[arg(long, default_value = "rust")]
        lang: scaffold::Language,
        /// Where to put it (default: a directory of the filter's name)
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Build the filter in a directory into NAME.wasm in it, or make a component of a core module
    Build {
        /// The directory that `new` made (default: this one); or FILE.wasm with its component type in it: leaves FILE.component.wasm
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Show what a component is, wants and can do, without serving anything
    Inspect {
        /// The component
        file: PathBuf,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Try a component on a small disk in memory: every operation, several times, and say what it did
    Check {
        /// The component
        file: PathBuf,
        /// Its parameters, key=value
        params: Vec<String>,
    },
    /// Measure what a component costs a request, beside no filter at all
    Bench {
        /// The component
        file: PathBuf,
        /// Its parameters, key=value
        params: Vec<String>,
        /// Requests of each kind
        #[arg(long, default_value_t = 200_000)]
        requests: u32,
    },
}

fn main() -> ExitCode {
    // Components are compiled in a child of this program, and modules made components in another.
    if let Some(status) = rbdkit_sandbox::serve_if_asked().or_else(build::serve_if_asked) {
        return status;
    }
    rbdkit_confine::survive_the_file_size_limit();
    // What the filter logs or prints on standard error, and what is said of its faults.
    let format =
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_target(false).with_level(false);
    format.with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    let result = match Args::parse().command {
        Command::New { name, lang, dir } => scaffold::new(&name, lang, dir),
        Command::Build { dir } => build::build(&dir),
        Command::Inspect { file, json } => inspect::inspect(&file, json),
        Command::Check { file, params } => check::check(&file, &params),
        Command::Bench { file, params, requests } => check::bench(&file, &params, requests),
    };
    let wrong = match (result, UNSAID.get()) {
        (Ok(()), None) => return ExitCode::SUCCESS,
        (Ok(()), Some(error)) => format!("cannot write to standard output: {error}"),
        (Err(error), _) => format!("{error:#}"),
    };
    complain(&wrong);
    ExitCode::FAILURE
}

/// What is wrong, in one line: names of files and texts of components have no say in where it ends.
fn complain(what: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "rbdkit-filter: error: {}", rbdkit_plugin_api::text::one_line(what));
}
