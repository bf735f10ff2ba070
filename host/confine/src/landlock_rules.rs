//! Landlock's rules: which files may be opened, and which ports may be used.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use rbdkit_plugin_api::{AccessRights, Network};

use super::error::Error;
use super::needs::ConfinementNeeds;

/// Which processes the confined process may send signals to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signals {
    /// Only to itself.
    Own,
    /// To others as well, as far as the system allows.
    Others,
}

/// The rules of the server. Paths that do not exist are left out.
pub(super) fn for_server(reach: &AccessRights, needs: &ConfinementNeeds) -> Result<RulesetCreated, Error> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let make = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let clear = AccessFs::ReadDir | AccessFs::RemoveFile;
    let (scratch, private) = (needs.scratch.as_deref(), needs.private.as_deref());
    let signals = if needs.runs_command { Signals::Others } else { Signals::Own };
    let mut rules = ruleset(&reach.network, signals)?.create()?;
    if let Network::Ports(ports) = &reach.network {
        let ports = ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp)));
        rules = rules.add_rules(ports)?;
    }
    let parent = private.and_then(Path::parent);
    let grants: [(&mut dyn Iterator<Item = &Path>, BitFlags<AccessFs>); 6] = [
        (&mut reach.read.iter().map(AsRef::as_ref), read),
        (&mut reach.write.iter().map(AsRef::as_ref), write),
        (&mut reach.remove.iter().map(AsRef::as_ref), AccessFs::RemoveFile.into()),
        (&mut scratch.into_iter(), make),
        (&mut private.into_iter(), clear),
        (&mut parent.into_iter(), AccessFs::RemoveDir.into()),
    ];
    for (paths, access) in grants {
        rules = rules.add_rules(path_beneath_rules(paths, access))?;
    }
    Ok(rules)
}

/// The rules of the child that compiles: no files and no network.
pub(super) fn for_compiler() -> Result<RulesetCreated, Error> {
    Ok(ruleset(&Network::None, Signals::Own)?.create()?)
}

fn ruleset(network: &Network, signals: Signals) -> Result<Ruleset, Error> {
    let abi = ABI::V6;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket)?;
    if *network != Network::Any {
        rules = rules.handle_access(AccessNet::ConnectTcp)?;
    }
    if signals == Signals::Own {
        rules = rules.scope(Scope::Signal)?;
    }
    Ok(rules)
}

/// Puts the rules in force for this thread and those that it starts later.
pub(super) fn restrict_thread(rules: RulesetCreated) -> Result<RestrictionStatus, Error> {
    Ok(rules.restrict_self()?)
}
