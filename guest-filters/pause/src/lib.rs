//! Holds the requests of all clients while the operator takes a snapshot of what is below.
//!
//! The host holds them: this filter only closes and opens the gate before its layer. No request
//! enters a guest.

mod commands;

use commands::{Command, FAILED};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The filter's parameters.
    pub struct Settings {
        /// The Unix socket for commands, which the server makes: p pauses, r resumes.
        pause_control: Control,
    }
}

/// The filter.
pub struct Pause;

impl Filter for Pause {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("pause", env!("CARGO_PKG_VERSION"), "holds the requests while a snapshot is taken")
            .help("Send p to the socket to pause (the answer P comes when no request is under way), and r to resume.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_settings: Settings) -> Result<Self, String> {
        Ok(Pause)
    }
}

impl OnControl for Pause {
    fn received(&self, _param: &str, _nth: u32, data: &[u8]) -> Vec<u8> {
        Command::all(data).map(carry_out).collect()
    }
}

/// Carries a command out. Returns its answer.
fn carry_out(command: Command) -> u8 {
    match command {
        Command::Pause => match gate::close() {
            Ok(()) => {}
            Err(Errno::Etimedout) => {
                error!("new requests wait, but those under way do not end: send p again to wait on, or r to resume");
                return FAILED;
            }
            Err(_) => return FAILED,
        },
        Command::Resume => gate::open(),
        Command::Unknown => {}
    }
    command.done()
}

rbdkit_filter_sdk::export!(Pause: on_control);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host, Served};

    fn serve() -> Served<Pause> {
        Host::new(Disk::pattern(4096)).serve(&["pause-control=/run/pause"]).unwrap()
    }

    fn say(host: &Served<Pause>, data: &[u8]) -> Vec<u8> {
        host.send("pause-control", 0, data).unwrap()
    }

    #[test]
    fn p_closes_the_gate_and_r_opens_it() {
        let host = serve();
        let client = host.connect().unwrap();
        assert!(!host.gate_is_closed());
        for _ in 0..2 {
            assert_eq!(say(&host, b"p\n"), b"P");
            assert!(host.gate_is_closed());
        }
        for _ in 0..2 {
            assert_eq!(say(&host, b"r"), b"R");
            assert!(!host.gate_is_closed());
        }
        assert_eq!(client.pread(5, 7).unwrap(), host.disk()[5..12]);
        assert_eq!(say(&host, b"prp x"), b"PRPX");
        assert!(host.gate_is_closed());
        client.close().unwrap();
    }

    #[test]
    fn what_is_unknown_changes_nothing() {
        let host = serve();
        say(&host, b"p");
        assert_eq!(say(&host, b"PRq"), b"XXX");
        assert!(host.gate_is_closed());
        assert_eq!(say(&host, b"\n"), b"");
    }

    #[test]
    fn requests_that_do_not_end_are_told_and_the_pause_can_be_tried_again() {
        let host = serve();
        host.fail_next("gate-close", Errno::Etimedout);
        assert_eq!(say(&host, b"p"), b"X");
        assert!(host.gate_is_closed());
        assert_eq!(
            host.take_log(),
            ["error: new requests wait, but those under way do not end: send p again to wait on, or r to resume"]
        );
        assert_eq!(say(&host, b"p"), b"P");
    }

    #[test]
    fn the_socket_has_to_be_named() {
        let refused = Host::new(Disk::pattern(512)).serve::<Pause>(&[]);
        let why = refused.err().unwrap();
        assert!(why.starts_with("pause: the parameter pause-control=<CONTROL> is required"), "{why}");
    }
}
