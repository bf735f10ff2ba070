//! The seccomp filter: which system calls the process may make, and with which arguments.

use std::collections::BTreeMap;

use rbdkit_plugin_api::Network;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::error::Error;
use super::needs::ConfinementNeeds;
use super::system_calls::{COMPILER, SERVER};

/// A system call and the rules for its arguments; without a rule all arguments are allowed.
type Call = (i64, Vec<SeccompRule>);

/// Installs the server's filter in all threads. Returns how many system calls it allows.
pub(super) fn for_server(network: &Network, needs: &ConfinementNeeds) -> Result<usize, Error> {
    let mut calls = vec![(libc::SYS_clone, threads_only()?)];
    let mut families = vec![libc::AF_UNIX];
    if *network != Network::None {
        // The C library asks the kernel for the machine's addresses over a netlink socket, which it
        // binds. Landlock limits TCP ports.
        families.extend([libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK]);
        calls.push((libc::SYS_bind, Vec::new()));
    }
    let families = families.iter().map(|family| first_argument(SeccompCmpOp::Eq, *family as u64));
    calls.push((libc::SYS_socket, families.collect::<Result<_, _>>()?));
    if needs.runs_command {
        calls.push((libc::SYS_pidfd_send_signal, Vec::new()));
    }
    install(SERVER, calls)
}

/// Installs the filter of the child that compiles.
pub(super) fn for_compiler() -> Result<usize, Error> {
    install(COMPILER, vec![(libc::SYS_clone, threads_only()?)])
}

fn install(any_arguments: &[&[i64]], calls: Vec<Call>) -> Result<usize, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    rules.extend(any_arguments.iter().copied().flatten().map(|call| (*call, Vec::new())));
    rules.extend(calls);
    let count = rules.len();
    let arch = std::env::consts::ARCH.try_into()?;
    // A filter cannot read the flags of clone3. If clone3 returns ENOSYS, the C library calls
    // clone.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    apply(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?;
    apply(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?;
    Ok(count)
}

fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    if_listed: SeccompAction,
    arch: TargetArch,
) -> Result<(), Error> {
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, if_listed, arch)?.try_into()?;
    Ok(apply_filter_all_threads(&program)?)
}

/// `clone` may start threads, not processes.
fn threads_only() -> Result<Vec<SeccompRule>, Error> {
    let flags = libc::CLONE_THREAD as u64;
    Ok(vec![first_argument(SeccompCmpOp::MaskedEq(flags), flags)?])
}

fn first_argument(operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}
