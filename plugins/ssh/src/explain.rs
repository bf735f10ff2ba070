//! Turns the error messages of `ssh` into one line that says what is wrong and what would be right.
//!
//! `ssh` prints several lines for a person at a terminal. A message that is not known here is
//! passed on as it is.

use rbdkit_plugin_api::{Errno, Error};

use crate::config::Settings;

/// The error for a connection that could not be made. `said` is what `ssh` printed.
pub(crate) fn error(settings: &Settings, said: &str) -> Error {
    let (errno, why) = explain(settings, said);
    Error::new(errno, format!("ssh: {}: {why}", settings.host))
}

fn explain(settings: &Settings, said: &str) -> (Errno, String) {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('@'));
    let line_with = |needle: &str| lines().find(|line| line.contains(needle));
    let where_to_look = match &settings.known_hosts {
        Some(file) => format!("in {}", file.display()),
        None => "in the known hosts".to_owned(),
    };
    if said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        let entry = line_with("Offending").map(|line| format!(" ({})", line.trim_end_matches('.'))).unwrap_or_default();
        let why = format!(
            "the host's key is not the one that is {where_to_look}: it was changed, or this is not the host{entry}"
        );
        return (Errno::Eperm, why);
    }
    if line_with("host key is known for").is_some() {
        let why = format!(
            "the host's key is not {where_to_look}: connect once with ssh to accept it, give a file that \
                has it with known-hosts=, or set verify-remote-host=false"
        );
        return (Errno::Eperm, why);
    }
    if line_with("REVOKED HOST KEY").is_some() {
        return (Errno::Eperm, "the host's key is revoked".to_owned());
    }
    if let Some(line) = line_with("Permission denied (") {
        let methods = line.rsplit_once('(').and_then(|(_, rest)| rest.split(')').next()).unwrap_or_default();
        let tried = match settings.password {
            Some(_) => "neither a key nor the password was accepted",
            None => "no key was accepted, and no password was given",
        };
        return (Errno::Eperm, format!("{tried} (the host offers {methods})"));
    }
    match lines().next_back() {
        Some(line) => (Errno::Eio, line.strip_prefix("ssh: ").unwrap_or(line).to_owned()),
        None => (Errno::Eio, "ssh ended without a word".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::settings;

    fn one_line(said: &str) -> (Errno, String) {
        let error = error(&settings(&["host=far", "/disk", "known-hosts=/known"]), said);
        let context = error.context().unwrap_or_default().to_owned();
        assert!(context.starts_with("ssh: far: ") && !context.contains('\n'), "{context}");
        (error.errno(), context)
    }

    #[test]
    fn what_ssh_says_becomes_one_line_that_helps() {
        let changed = "@@@@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@\nIT IS \
            POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\nOffending ED25519 key in /known:3\n\
             Host key verification failed.\n";
        let (errno, line) = one_line(changed);
        assert_eq!(errno, Errno::Eperm);
        assert!(
            line.contains("not the one that is in /known") && line.ends_with("(Offending ED25519 key in /known:3)"),
            "{line}"
        );
        let unknown = "No ED25519 host key is known for [127.0.0.1]:2222 and you have requested strict \
            checking.\r\nHost key verification failed.\r\n";
        assert!(one_line(unknown).1.contains("the host's key is not in /known: connect once with ssh"));
        let denied = one_line("me@far: Permission denied (publickey,password).\r\n");
        assert_eq!(denied.0, Errno::Eperm);
        assert!(
            denied.1.ends_with("no key was accepted, and no password was given (the host offers publickey,password)")
        );
        let refused = one_line("ssh: connect to host far port 22: Connection refused\r\n");
        assert_eq!(refused, (Errno::Eio, "ssh: far: connect to host far port 22: Connection refused".to_owned()));
        assert_eq!(one_line(" \n").1, "ssh: far: ssh ended without a word");
    }
}
