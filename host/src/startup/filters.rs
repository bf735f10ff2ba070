//! Loads filters into the sandbox, and gives them powers and limits.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rbdkit_chain::MAX_FILTERS;
use rbdkit_parameters::Stack;
use rbdkit_plugin_api::{ConfigError, hex};
use rbdkit_sandbox::{
    Compiler, FilterLimits, Host, Limits, Module, OnFault, Options, Power, Powers, ServerLimits, read_component,
};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::pulled::Registries;
use crate::cli::{self, FilterAllow, FilterFault, FilterLimit, FilterSource, Plan};
use crate::registry;

/// What layers notify to end the server.
#[derive(Clone, Default)]
pub struct Ends {
    /// A filter failed, and `--filter-on-fault=exit` is given.
    pub fatal: Arc<Notify>,
    /// The plugin, or a filter that may do so, has asked the server to end.
    pub shutdown: Arc<Notify>,
}

/// A filter that was loaded, and the digest of its file if it came from one.
pub type Loaded = (Module, Option<cli::Sha256>);

/// Loads filters, for all chains of the server.
pub struct Loader<'a> {
    plan: &'a Plan,
    ends: &'a Ends,
    /// Without filters the sandbox is not set up.
    sandbox: OnceLock<(Arc<Host>, Registries)>,
    loaded: usize,
}

impl<'a> Loader<'a> {
    /// Loads with the options of this plan.
    pub fn new(plan: &'a Plan, ends: &'a Ends) -> Loader<'a> {
        Loader { plan, ends, sandbox: OnceLock::new(), loaded: 0 }
    }

    /// Loads filters in this order.
    ///
    /// # Errors
    /// One line that names the filter, or there are more than a server can have.
    pub fn load(&mut self, sources: &[FilterSource]) -> Result<Vec<Loaded>, ConfigError> {
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        self.loaded += sources.len();
        if self.loaded > MAX_FILTERS {
            return Err(ConfigError::new(format!("{} filters are given (at most {MAX_FILTERS})", self.loaded)));
        }
        let (host, registries) = self.sandbox()?;
        sources.iter().map(|source| load_one(host, source, registries)).collect()
    }

    fn sandbox(&self) -> Result<&(Arc<Host>, Registries), ConfigError> {
        if let Some(sandbox) = self.sandbox.get() {
            return Ok(sandbox);
        }
        let limits = server_limits(&self.plan.filter_limits)?;
        let compiler = Compiler::Child(limits.compile);
        let on_fault = match self.plan.filter_on_fault {
            FilterFault::Error => OnFault::Error,
            FilterFault::Disconnect => OnFault::Disconnect,
            FilterFault::Exit => OnFault::Exit(Arc::clone(&self.ends.fatal)),
        };
        let shutdown = Some(Arc::clone(&self.ends.shutdown));
        let host = Host::new(Options { on_fault, shutdown, compiler, limits, ..Options::default() })?;
        let registries = Registries::new(&self.plan.registries)?;
        Ok(self.sandbox.get_or_init(|| (host, registries)))
    }
}

/// Grants the filters that clients reach what the operator allows.
///
/// # Errors
/// One line: there is no such filter or no such power.
pub fn grant(loaded: &mut [Loaded], allows: &[FilterAllow]) -> Result<(), ConfigError> {
    if let (Some(allow), true) = (allows.first(), loaded.is_empty()) {
        return Err(ConfigError::new(format!(
            "--filter-allow {}:{}: no filter is given",
            allow.target,
            allow.powers.join(",")
        )));
    }
    for FilterAllow { target, powers } in allows {
        let named = |(module, _): &&mut Loaded| module.description().name == target.name;
        let filter = loaded.iter_mut().filter(named).nth(target.instance - 1);
        let Some((filter, _)) = filter else {
            let names: Vec<&str> = loaded.iter().map(|(module, _)| module.description().name.as_str()).collect();
            let there_are = names.join(", ");
            return Err(ConfigError::new(format!(
                "--filter-allow {target}:{}: there is no such filter, only {there_are}",
                powers.join(",")
            )));
        };
        for word in powers {
            let power = Power::parse(word).ok_or_else(|| {
                let known = Power::ALL.map(Power::name).join(" and ");
                ConfigError::new(format!("--filter-allow {target}:{word}: there is no such power, only {known}"))
            })?;
            filter.grant(Powers::default().with(power));
        }
    }
    for (module, _) in loaded {
        let powers: Vec<&str> = module.powers().names().collect();
        if !powers.is_empty() {
            tracing::debug!("{}: may use: {}", module.description().name, powers.join(", "));
        }
    }
    Ok(())
}

/// The limits of all filters together.
pub fn server_limits(changes: &[FilterLimit]) -> Result<ServerLimits, ConfigError> {
    let mut limits = Limits::default();
    for change in changes.iter().filter(|change| change.target.is_none()) {
        limits.set(None, &change.resource, &change.value)?;
    }
    Ok(limits.server)
}

fn load_one(host: &Arc<Host>, source: &FilterSource, registries: &Registries) -> Result<Loaded, ConfigError> {
    match source {
        FilterSource::Named(name) => {
            let mut module = host.load(name, registry::filter(name)?)?;
            module.grant(registry::powers(name));
            Ok((module, None))
        }
        FilterSource::Registry(reference) => {
            let component = registries.pull(reference)?;
            let module = host.load(&reference.to_string(), &component)?;
            warn_of_a_known_name(&module.description().name, &reference.to_string(), &component);
            Ok((module, None))
        }
        FilterSource::File { path, sha256 } => {
            registries.refuse_file(path)?;
            let component = read_component(path)
                .map_err(|why| ConfigError::new(format!("cannot open filter '{}': {why}", path.display())))?;
            let digest = check_digest(path, &component, sha256.as_ref())?;
            let module = host.load(&path.display().to_string(), &component)?;
            warn_of_a_known_name(&module.description().name, &path.display().to_string(), &component);
            Ok((module, Some(digest)))
        }
    }
}

/// A file may take the name of a built-in filter, for example to try out a change of it. Then its
/// messages look like those of the built-in filter, so the log says once which file it is.
fn warn_of_a_known_name(name: &str, from: &str, component: &[u8]) {
    let is_another = registry::filter(name).is_ok_and(|built_in| built_in != component);
    if is_another {
        tracing::warn!(
            "filter '{from}' (sha256:{}) calls itself {name}, and is not the built-in filter of that name",
            hex::encode(Sha256::digest(component))
        );
    }
}

/// The digest of a file, checked against the one that the command line demands.
fn check_digest(path: &Path, component: &[u8], expected: Option<&cli::Sha256>) -> Result<cli::Sha256, ConfigError> {
    let digest: cli::Sha256 = Sha256::digest(component).into();
    if expected.is_none_or(|expected| digest == *expected) {
        return Ok(digest);
    }
    Err(ConfigError::new(format!(
        "filter '{}' is not the file that was named: its SHA-256 digest is {}",
        path.display(),
        hex::encode(digest)
    )))
}

/// The limits of each filter.
///
/// # Errors
/// One line: the limit does not exist, or its filter does not.
pub fn limits(stack: &Stack<'_>, changes: &[FilterLimit]) -> Result<Vec<FilterLimits>, ConfigError> {
    let mut limits = vec![Limits::default(); stack.filters.len()];
    if let ([change, ..], true) = (changes, stack.filters.is_empty()) {
        return Err(ConfigError::new(format!(
            "--filter-limit {}={}: no filter is given",
            change.resource, change.value
        )));
    }
    // Limits of all filters first, because limits of one filter override them.
    for change in changes.iter().filter(|change| change.target.is_none()) {
        for each in &mut limits {
            each.set(None, &change.resource, &change.value)?;
        }
    }
    for change in changes {
        if let Some(target) = &change.target {
            let filter = &mut limits[stack.find(target, "--filter-limit")?];
            filter.set(Some(&target.to_string()), &change.resource, &change.value)?;
        }
    }
    Ok(limits.into_iter().map(|each| each.filter).collect())
}
