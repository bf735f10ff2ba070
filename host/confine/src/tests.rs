//! Tests of what a confined process may do.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rbdkit_plugin_api::{AccessRights, Network};

use super::system_calls::SERVER;
use super::{ConfinementNeeds, confine_process, confine_thread};

#[test]
fn no_call_is_listed_twice_and_none_starts_a_program() {
    let mut calls: Vec<i64> = SERVER.iter().copied().flatten().copied().collect();
    calls.sort_unstable();
    let count = calls.len();
    calls.dedup();
    assert_eq!(calls.len(), count);
    let forbidden = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_bpf,
        libc::SYS_mount,
        libc::SYS_kill,
        libc::SYS_clone,
        libc::SYS_socket,
        libc::SYS_bind,
        libc::SYS_setuid,
        libc::SYS_io_uring_setup,
        libc::SYS_process_vm_writev,
        libc::SYS_userfaultfd,
        libc::SYS_open_by_handle_at,
    ];
    assert!(forbidden.iter().all(|call| !calls.contains(call)));
}

/// Confined for a plugin that reads one file and connects to one port. This needs a process of its
/// own, because confinement cannot be undone.
#[test]
#[ignore = "run by the test below in a process of its own"]
fn in_a_process_of_its_own() {
    use std::io::ErrorKind::PermissionDenied;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    let Some(within) = std::env::var_os("RBDKIT_WITHIN_REACH").map(PathBuf::from) else { return };
    let beside = within.with_file_name("beside");
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (near, far) = (listener(), listener());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let network = Network::Ports(vec![port(&near), rbdkit_plugin_api::DNS_PORT]);
    let reach = AccessRights { read: vec![within.clone()], network, ..AccessRights::default() }.with_name_lookup();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_unpark(confine_thread).build().unwrap();
    let said = runtime.block_on(confine_process(Ok(Some(reach)), &ConfinementNeeds::default()));
    assert!(said.starts_with("confined: no new privileges; "), "{said}");
    // The rest needs Landlock.
    let landlock = said.contains("; Landlock; ");
    let check = move || {
        assert_eq!(Command::new("true").spawn().unwrap_err().kind(), PermissionDenied);
        assert_eq!(
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CONT),
            Err(rustix::io::Errno::PERM)
        );
        std::fs::read(&within).unwrap();
        TcpStream::connect(("localhost", port(&near))).unwrap();
        // As a name lookup does.
        UdpSocket::bind("127.0.0.1:0").unwrap();
        if !landlock {
            return;
        }
        let refused = |what: &str, result: std::io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), PermissionDenied, "{what}");
        };
        refused("another file", std::fs::read(&beside).map(drop));
        refused("writing", std::fs::write(&within, "x"));
        refused("a new file", std::fs::write(within.with_file_name("new"), "x"));
        refused("root's secrets", std::fs::read("/etc/shadow").map(drop));
        refused("another port", TcpStream::connect(("127.0.0.1", port(&far))).map(drop));
        refused("listening", TcpListener::bind("127.0.0.1:0").map(drop));
    };
    check();
    // On another thread, which existed before.
    runtime.block_on(async { tokio::spawn(async move { check() }).await.unwrap() });
}

#[test]
fn only_what_a_plugin_named_is_within_reach() {
    let dir = std::env::temp_dir().join(format!("rbdkit-confine-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    for name in ["within", "beside"] {
        std::fs::write(dir.join(name), "x").unwrap();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::in_a_process_of_its_own", "--ignored", "--nocapture"])
        .env("RBDKIT_WITHIN_REACH", dir.join("within"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    let output = end.recv_timeout(Duration::from_secs(60));
    std::fs::remove_dir_all(&dir).unwrap();
    let output = output.unwrap_or_else(|_| {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        panic!("the confined test process has not ended after 60 s");
    });
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
