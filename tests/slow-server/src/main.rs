//! The slow server as a program, for `make demo-remote` and for measuring by hand.
//!
//!     rbdkit-slow-server [port=N] [size=BYTES | file=PATH] [delay=MILLISECONDS] [bandwidth=BYTES]
//!                        [habit=NAME]...
//!     rbdkit-slow-server habits
//!
//! `habits` lists the habits that the server can have, which a query can switch on as well.
//! It prints its URL. For each line on standard input it prints the requests and the bytes that it
//! served since the last line. It ends at the end of its input.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use rbdkit_slow_server::{Content, HABITS, Rules, SlowServer};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut rules = Rules::default();
    let mut content = Content::Pattern { seed: 1, size: 1 << 30 };
    let mut port = 0;
    for argument in std::env::args().skip(1) {
        let (key, value) = argument.split_once('=').unwrap_or((&argument, ""));
        let wrong = || io::Error::other(format!("{argument}: not understood"));
        let number = || value.parse::<u64>().map_err(|_| wrong());
        match key {
            "port" => port = number()?.try_into().map_err(|_| wrong())?,
            "size" => content = Content::Pattern { seed: 1, size: number()? },
            "file" => content = Content::File(OpenOptions::new().read(true).open(value)?),
            "delay" => rules.delay = Duration::from_millis(number()?),
            "bandwidth" => rules.bandwidth = Some(number()?),
            "habit" if HABITS.iter().any(|habit| habit.name == value) => rules.habits.push(value.into()),
            "habits" => {
                HABITS.iter().for_each(|habit| println!("{:24} {}", habit.name, habit.what));
                return Ok(());
            }
            _ => return Err(wrong()),
        }
    }
    let server = SlowServer::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), content, rules, None)?;
    println!("{}/disk.img", server.url());
    io::stdout().flush()?;
    for line in io::stdin().lock().lines() {
        line?;
        let counts = server.counts();
        println!("{} {}", counts.transfers, counts.bytes);
        io::stdout().flush()?;
        server.reset_counts();
    }
    Ok(())
}
