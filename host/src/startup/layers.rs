//! From the plan to the chain: loads filters into the sandbox, distributes parameters, and
//! configures plugin and filters.

use std::ffi::OsString;
use std::path::{Path, absolute};
use std::sync::Arc;

use rbdkit_chain::{Chain, Layer, MAX_FILTERS};
use rbdkit_parameters::{FilterSide, Missing, PluginSide, Stack, assign};
use rbdkit_plugin_api::schema::ParamValue;
use rbdkit_plugin_api::{ConfigError, Param, Plugin, PluginInfo, Pool, hex};
use rbdkit_record::Recorder;
use rbdkit_sandbox::{
    Compiler, FilterLimits, Host, Limits, Module, OnFault, Options, Power, Powers, Reloader, ServerLimits,
    read_component,
};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::reload::{ReloadedFile, Reloads};
use super::{log, record};
use crate::cli::{self, FilterAllow, FilterFault, FilterLimit, FilterSource, Plan};
use crate::registry::{self, ForeignOptions, Found};
use crate::startup::pulled::Registries;

/// What layers notify to end the server.
#[derive(Clone, Default)]
pub struct Ends {
    /// A filter failed, and `--filter-on-fault=exit` is given.
    pub fatal: Arc<Notify>,
    /// The plugin, or a filter that may do so, has asked the server to end.
    pub shutdown: Arc<Notify>,
}

/// The configured layers, and what belongs to them.
pub struct Layers {
    pub chain: Arc<Chain>,
    /// What records (`--record`).
    pub recorder: Option<Arc<Recorder>>,
    /// What reads the files of filters again (`--reload`).
    pub reloads: Option<Reloads>,
}

/// Makes the configured layers. The plugin is ready to serve; the filters' `get-ready` has not run
/// yet. The record has no file yet.
///
/// # Errors
/// One line that says what cannot be loaded, or which parameter is wrong.
pub fn layers(plan: &Plan, ends: &Ends) -> Result<Layers, ConfigError> {
    let found = find_plugin(plan, plan.plugin.as_deref().unwrap_or_default())?;
    let info = found.info;
    let loaded = load_with_digests(plan, ends)?;
    let (modules, digests): (Vec<Module>, Vec<Option<cli::Sha256>>) = loaded.into_iter().unzip();
    let filters = modules.iter().map(|module| module.description().name.as_str());
    log::warn_of_unknown_flags(plan, found.foreign.is_some(), &filters.chain([info.name]).collect::<Vec<_>>());
    let stack = declared(&modules, found);
    let assignment = assign(&stack, &plan.params, &plan.filter_params, Missing::Refused)?;
    let limits = limits(&stack, &plan.filter_limits)?;
    for warning in &assignment.warnings {
        tracing::warn!("{warning}");
    }
    let plugin = plugin(info, &assignment.plugin, &ends.shutdown)?;
    let given = stack.filters.iter().zip(&assignment.filters);
    let given: Vec<_> = given.map(|(filter, values)| record::given(filter.specs, values)).collect();
    let (mut layers, reloaders): (Vec<_>, Vec<_>) = configure(modules, assignment.filters, limits)?.into_iter().unzip();
    let reloads = plan.reload.then(|| reloads(plan, reloaders, &digests)).transpose()?;
    let recorder =
        plan.record.as_ref().map(|option| record::insert(option, &mut layers, given, info.name)).transpose()?;
    Ok(Layers { chain: Chain::new(layers, info.name, plugin, Pool::default()), recorder, reloads })
}

/// What reads the files of filters again.
fn reloads(plan: &Plan, reloaders: Vec<Reloader>, digests: &[Option<cli::Sha256>]) -> Result<Reloads, ConfigError> {
    let mut files = Vec::new();
    for ((source, reloader), digest) in plan.filters.iter().zip(reloaders).zip(digests) {
        if let (FilterSource::File { path, sha256 }, Some(running)) = (source, digest) {
            // The server changes its directory when it goes into the background.
            let path = absolute(path).map_err(|error| ConfigError::new(format!("--reload: {error}")))?;
            files.push(ReloadedFile { path, demanded: *sha256, running: *running, reloader: Arc::new(reloader) });
        }
    }
    Ok(Reloads::new(files, server_limits(&plan.filter_limits)?.compile))
}

/// The plugin that the command line names. One of nbdkit's is loaded.
///
/// # Errors
/// One line: there is no such plugin, or it cannot be loaded.
pub fn find_plugin(plan: &Plan, name: &str) -> Result<Found, ConfigError> {
    let flags = plan.debug_flags.iter();
    let options = ForeignOptions {
        directory: plan.plugindir.clone(),
        verbose: plan.verbose,
        threads: plan.threads,
        background: !plan.foreground,
        debug_flags: flags.map(|flag| (flag.name.clone(), flag.flag.clone(), flag.value as i32)).collect(),
    };
    registry::find_plugin(name, &options)
}

fn plugin(
    info: &PluginInfo,
    params: &[(String, OsString)],
    shutdown: &Arc<Notify>,
) -> Result<Box<dyn Plugin>, ConfigError> {
    let mut plugin = (info.make)();
    plugin.set_shutdown(Arc::clone(shutdown));
    for (key, value) in params {
        tracing::debug!(target: log::CONTROL, "{}: config key={key}", info.name);
        plugin.config(Param { key, value })?;
    }
    tracing::debug!(target: log::CONTROL, "{}: config_complete", info.name);
    plugin.config_complete()?;
    tracing::debug!(target: log::CONTROL, "{}: get_ready", info.name);
    plugin.get_ready()?;
    // The process has forked already, so this is the process that serves.
    tracing::debug!(target: log::CONTROL, "{}: after_fork", info.name);
    plugin.after_fork()?;
    Ok(plugin)
}

/// Loads the filters in the order of the command line. Without filters the sandbox is not set up.
///
/// # Errors
/// One line that names the filter.
pub fn load(plan: &Plan, ends: &Ends) -> Result<Vec<Module>, ConfigError> {
    let loaded = load_with_digests(plan, ends)?;
    Ok(loaded.into_iter().map(|(module, _)| module).collect())
}

/// [`load`], with the digest of each file.
fn load_with_digests(plan: &Plan, ends: &Ends) -> Result<Vec<(Module, Option<cli::Sha256>)>, ConfigError> {
    let (sources, changes) = (&plan.filters, &plan.filter_limits);
    if let (Some(allow), true) = (plan.filter_allows.first(), sources.is_empty()) {
        return Err(ConfigError::new(format!(
            "--filter-allow {}:{}: no filter is given",
            allow.target,
            allow.powers.join(",")
        )));
    }
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    if sources.len() > MAX_FILTERS {
        return Err(ConfigError::new(format!("{} filters are given (at most {MAX_FILTERS})", sources.len())));
    }
    let limits = server_limits(changes)?;
    let compiler = Compiler::Child(limits.compile);
    let on_fault = match plan.filter_on_fault {
        FilterFault::Error => OnFault::Error,
        FilterFault::Disconnect => OnFault::Disconnect,
        FilterFault::Exit => OnFault::Exit(Arc::clone(&ends.fatal)),
    };
    let shutdown = Some(Arc::clone(&ends.shutdown));
    let host = Host::new(Options { on_fault, shutdown, compiler, limits, ..Options::default() })?;
    let registries = Registries::new(&plan.registries)?;
    let loaded = sources.iter().map(|source| load_one(&host, source, &registries));
    let mut loaded: Vec<_> = loaded.collect::<Result<_, ConfigError>>()?;
    grant(&mut loaded, &plan.filter_allows)?;
    Ok(loaded)
}

/// Grants what the operator allows.
///
/// # Errors
/// One line: there is no such filter or no such power.
fn grant<T>(loaded: &mut [(Module, T)], allows: &[FilterAllow]) -> Result<(), ConfigError> {
    for FilterAllow { target, powers } in allows {
        let named = |(module, _): &&mut (Module, T)| module.description().name == target.name;
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
fn server_limits(changes: &[FilterLimit]) -> Result<ServerLimits, ConfigError> {
    let mut limits = Limits::default();
    for change in changes.iter().filter(|change| change.target.is_none()) {
        limits.set(None, &change.resource, &change.value)?;
    }
    Ok(limits.server)
}

fn load_one(
    host: &Arc<Host>,
    source: &FilterSource,
    registries: &Registries,
) -> Result<(Module, Option<cli::Sha256>), ConfigError> {
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

/// The declarations of the layers.
pub fn declared(modules: &[Module], found: Found) -> Stack<'_> {
    let filters = modules.iter().map(Module::description);
    let filters = filters.map(|told| FilterSide { name: &told.name, specs: &told.params }).collect();
    let first_key = found.foreign.and_then(|foreign| foreign.first_key());
    Stack { filters, plugin: PluginSide { first_key, ..PluginSide::new(found.info) } }
}

/// A filter's layer, and what replaces its code.
type ReloadableLayer = (Arc<dyn Layer>, Reloader);

/// Gives each filter its parameters and limits.
///
/// # Errors
/// The line with which a filter refuses a parameter.
fn configure(
    modules: Vec<Module>,
    params: Vec<Vec<(String, ParamValue)>>,
    limits: Vec<FilterLimits>,
) -> Result<Vec<ReloadableLayer>, ConfigError> {
    // The filter nearest the plugin is configured first, as in nbdkit.
    let mut layers = modules
        .into_iter()
        .zip(params)
        .zip(limits)
        .rev()
        .map(|((module, params), limits)| module.configure_to_reload(params, limits))
        .collect::<Result<Vec<_>, _>>()?;
    layers.reverse();
    Ok(layers)
}

/// The limits of each filter.
///
/// # Errors
/// One line: the limit does not exist, or its filter does not.
fn limits(stack: &Stack<'_>, changes: &[FilterLimit]) -> Result<Vec<FilterLimits>, ConfigError> {
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
