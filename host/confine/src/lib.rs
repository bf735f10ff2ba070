//! The second wall: once the process has started it gives up what serving does not need.
//!
//! The first wall is the sandbox that filters run in. Should something get through it, or through a parser, what it finds is a process that
//! cannot open files but those that it serves, start programs, connect to anybody, or gain privileges:
//!
//! * **no new privileges**, so that no program with a set-user-id bit could help;
//! * **Landlock**, where the kernel has it: only the plugin's files ([`Reach`]), the directory of scratch files, the private directory of `--unix -`; no
//!   TCP connections but those to the plugin's ports, and no new TCP port to listen at; no sockets in the abstract name space;
//! * **seccomp**: only the system calls below. Others answer EPERM: what was forgotten here is an error of a request and not the end of the server.
//!   A process cannot be started, only a thread; a socket can only be a local one (the system log), unless the plugin needs the network.
//!
//! What was opened before stays open: listening sockets, the files in filters' parameters, the log. A command of `--run` was started before and is
//! free. So is the helper that starts a plugin's programs (`rbdkit_launcher`): what breaks into the server can have those started once more that the
//! operator named, and no others. A plugin that does not say what it reaches ([`Plugin::reach`](rbdkit_plugin_api::Plugin::reach) is none), because it
//! starts programs by itself or because nobody thought about it, is not confined.
//!
//! **Threads.** Landlock restricts the thread that asks, and those that it starts from then on. So every thread that is there already has to ask: the
//! runtime's workers when they are next woken, its blocking threads by being kept busy all at once, the epoch's at its next tick ([`enter`]). Plugins start
//! theirs when they are first needed, which is later. seccomp has a way to restrict all of them.

mod file_size;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Barrier, OnceLock};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use rbdkit_plugin_api::{Network, Reach};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

pub use file_size::survive_the_file_size_limit;

/// What the server needs besides its plugin.
#[derive(Clone, Debug, Default)]
pub struct Grounds {
    /// Scratch files are made here.
    pub scratch: Option<PathBuf>,
    /// It is removed with what is in it when the server ends.
    pub private: Option<PathBuf>,
    /// A command runs that signals are passed on to.
    pub captive: bool,
}

static RULES: OnceLock<RulesetCreated> = OnceLock::new();

thread_local! {
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// Confines this thread if the process is confined. One load if there is nothing to do.
pub fn enter() {
    let Some(rules) = RULES.get() else { return };
    if ENTERED.replace(true) {
        return;
    }
    let entered = rules.try_clone().map_err(|e| e.to_string()).and_then(|rules| restrict(rules).map(drop));
    if let Err(why) = entered {
        tracing::error!("a thread could not be confined: {why}");
    }
}

fn restrict(rules: RulesetCreated) -> Result<RestrictionStatus, String> {
    rules.restrict_self().map_err(|e| e.to_string())
}

/// Confines the process. Call it on the main thread within its runtime. Answers what is in force, for people, or why nothing is.
pub async fn raise(reach: std::io::Result<Option<Reach>>, grounds: &Grounds) -> String {
    let reach = &match reach {
        Ok(Some(reach)) => reach,
        Ok(None) => return "not confined: the plugin does not say what it reaches".into(),
        Err(why) => return format!("not confined: the plugin's programs cannot be started by a helper: {why}"),
    };
    let files = match landlock(reach, grounds) {
        Ok(rules) => {
            // Before the wall, which /proc is behind.
            let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
            let _ = RULES.set(rules);
            let raised = raise_here();
            everywhere(threads).await;
            raised
        }
        Err(why) => format!("no Landlock ({why})"),
    };
    let calls = match seccomp(SERVING, &conditions(reach, grounds)) {
        Ok(count) => format!("{count} system calls"),
        Err(why) => format!("no seccomp ({why})"),
    };
    format!("confined: no new privileges; {files}; {calls}")
}

/// The child that compiles: nothing but computing and its pipes.
pub fn of_compiler() {
    if let Ok(rules) = ruleset(&Network::Nobody, true).and_then(|rules| rules.create().map_err(|e| e.to_string())) {
        let _ = restrict(rules);
    }
    // Without it the limits still hold.
    let _ = seccomp(COMPUTING, &[(libc::SYS_clone, thread_only())]);
}

fn ruleset(network: &Network, signals: bool) -> Result<Ruleset, String> {
    let abi = ABI::V6;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::BindTcp))
        .and_then(|rules| rules.scope(Scope::AbstractUnixSocket))
        .map_err(|e| e.to_string())?;
    if *network != Network::Anybody {
        rules = rules.handle_access(AccessNet::ConnectTcp).map_err(|e| e.to_string())?;
    }
    if signals {
        rules = rules.scope(Scope::Signal).map_err(|e| e.to_string())?;
    }
    Ok(rules)
}

fn landlock(reach: &Reach, grounds: &Grounds) -> Result<RulesetCreated, String> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let scratch = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let own = AccessFs::ReadDir | AccessFs::RemoveFile;
    let parent = grounds.private.as_ref().and_then(|directory| directory.parent()).map(PathBuf::from);
    let mut rules = ruleset(&reach.network, !grounds.captive)?.create().map_err(|e| e.to_string())?;
    if let Network::Ports(ports) = &reach.network {
        let ports = ports.iter().map(|port| Ok(NetPort::new(*port, AccessNet::ConnectTcp)));
        rules = rules.add_rules(ports).map_err(|e: landlock::RulesetError| e.to_string())?;
    }
    let grants: [(&mut dyn Iterator<Item = &PathBuf>, BitFlags<AccessFs>); 5] = [
        (&mut reach.read.iter(), read),
        (&mut reach.write.iter(), write),
        (&mut grounds.scratch.iter(), scratch),
        (&mut grounds.private.iter(), own),
        (&mut parent.iter(), AccessFs::RemoveDir.into()),
    ];
    for (paths, access) in grants {
        // What is not there is left out.
        rules = rules.add_rules(path_beneath_rules(paths, access)).map_err(|e| e.to_string())?;
    }
    Ok(rules)
}

/// The main thread; says what came of it.
fn raise_here() -> String {
    ENTERED.set(true);
    let Some(Ok(rules)) = RULES.get().map(RulesetCreated::try_clone) else { return "no Landlock".into() };
    match restrict(rules) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::NotEnforced, .. }) => "no Landlock in this kernel".into(),
        Ok(RestrictionStatus { ruleset: RulesetStatus::PartiallyEnforced, .. }) => {
            "Landlock, as far as this kernel has it".into()
        }
        Ok(_) => "Landlock".into(),
        Err(why) => format!("no Landlock ({why})"),
    }
}

/// Blocking threads that are there: as many tasks as there are threads, none of which ends before all have begun, are on all of them.
async fn everywhere(threads: usize) {
    let threads = threads.min(MOST_THREADS);
    let all = Arc::new(Barrier::new(threads));
    let tasks: Vec<_> = (0..threads)
        .map(|_| {
            let all = Arc::clone(&all);
            tokio::task::spawn_blocking(move || {
                enter();
                all.wait();
            })
        })
        .collect();
    for task in tasks {
        // A panic in there is not possible; and it would have been said.
        let _ = task.await;
    }
}

/// At the time of starting there are some: workers, the epoch's, what plugins needed to get ready.
const MOST_THREADS: usize = 64;

fn thread_only() -> Vec<SeccompRule> {
    let flags = libc::CLONE_THREAD as u64;
    only(0, SeccompCmpOp::MaskedEq(flags), flags)
}

fn only(argument: u8, operator: SeccompCmpOp, value: u64) -> Vec<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
    // They are constants; one that could not be made would allow nothing, as an impossible condition does.
    rule.map(|rule| vec![rule]).unwrap_or_default()
}

/// Calls that are allowed only with certain arguments.
fn conditions(reach: &Reach, grounds: &Grounds) -> Vec<(i64, Vec<SeccompRule>)> {
    let mut conditions = vec![(libc::SYS_clone, thread_only())];
    let mut families = vec![libc::AF_UNIX];
    if reach.network != Network::Nobody {
        // The C library asks the kernel for the machine's addresses over a netlink socket, which it binds; TCP ports are Landlock's affair.
        families.extend([libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK]);
        conditions.push((libc::SYS_bind, Vec::new()));
    }
    let families = families.iter().flat_map(|family| only(0, SeccompCmpOp::Eq, *family as u64));
    conditions.push((libc::SYS_socket, families.collect()));
    if grounds.captive {
        let calls = [libc::SYS_pidfd_send_signal, libc::SYS_wait4, libc::SYS_waitid];
        conditions.extend(calls.map(|call| (call, Vec::new())));
    }
    conditions
}

/// Installs a filter in all threads. How many calls it lets through.
fn seccomp(calls: &[&[i64]], conditions: &[(i64, Vec<SeccompRule>)]) -> Result<usize, String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    rules.extend(calls.iter().copied().flatten().map(|call| (*call, Vec::new())));
    rules.extend(conditions.iter().cloned());
    let count = rules.len();
    let arch = std::env::consts::ARCH.try_into().map_err(|e| format!("{e}"))?;
    let install = |rules, other, those| -> Result<(), String> {
        let filter = SeccompFilter::new(rules, other, those, arch).map_err(|e| e.to_string())?;
        let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
        apply_filter_all_threads(&program).map_err(|e| e.to_string())
    };
    // The C library takes the older call, whose flags can be looked at, if this one does not exist.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    install(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    install(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?;
    Ok(count)
}

/// Memory, threads, time, pipes.
const COMPUTE: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Files: which ones is Landlock's affair.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_memfd_create,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_sendfile,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
];

/// Clients, events, and the wall itself.
const CLIENTS: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_getuid,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_listen,
    libc::SYS_pselect6,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
];

const COMPUTING: &[&[i64]] = &[COMPUTE];
const SERVING: &[&[i64]] = &[COMPUTE, FILES, CLIENTS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice_and_none_starts_a_program() {
        let mut calls: Vec<i64> = SERVING.iter().copied().flatten().copied().collect();
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

    /// Behind the wall of a plugin that reads one file and connects to one port. Only as a process of its own, as there is no way back.
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
        let network = Network::Ports(vec![port(&near), rbdkit_plugin_api::DNS]);
        let reach = Reach { read: vec![within.clone()], network, ..Reach::default() }.to_names();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_unpark(enter).build().unwrap();
        let said = runtime.block_on(raise(Ok(Some(reach)), &Grounds::default()));
        assert!(said.starts_with("confined: no new privileges; "), "{said}");
        // Without Landlock there is nothing to see of the rest.
        let landlock = said.contains("; Landlock; ");
        let outside = move || {
            assert_eq!(std::process::Command::new("true").spawn().unwrap_err().kind(), PermissionDenied);
            assert_eq!(
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CONT),
                Err(rustix::io::Errno::PERM)
            );
            std::fs::read(&within).unwrap();
            TcpStream::connect(("localhost", port(&near))).unwrap();
            // Asking a name server.
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
        outside();
        // On another thread, which was there before.
        runtime.block_on(async { tokio::spawn(async move { outside() }).await.unwrap() });
    }

    #[test]
    fn only_what_a_plugin_named_is_within_reach() {
        let dir = std::env::temp_dir().join(format!("rbdkit-wall-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        for name in ["within", "beside"] {
            std::fs::write(dir.join(name), "x").unwrap();
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wall::tests::in_a_process_of_its_own", "--ignored", "--nocapture"])
            .env("RBDKIT_WITHIN_REACH", dir.join("within"))
            .output();
        std::fs::remove_dir_all(&dir).unwrap();
        let output = output.unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
