//! From the plan to the chain: loads filters into the sandbox, distributes parameters, and
//! configures plugin and filters.
//!
//! A [`Builder`] makes all chains of the server: the one that clients reach, and those of the disks
//! that parameters of filters name. They share the sandbox, the pool of buffers and the bounds.

use std::ffi::{OsStr, OsString};
use std::path::{Path, absolute};
use std::sync::Arc;

use rbdkit_chain::{Chain, ExtraDisk, Layer};
use rbdkit_parameters::{FilterSide, Missing, PluginSide, Stack, assign};
use rbdkit_plugin_api::schema::{CHAIN_PREFIX, ParamKind, ParamValue};
use rbdkit_plugin_api::secrets::without_userinfo;
use rbdkit_plugin_api::{ConfigError, Param, Plugin, PluginInfo, Pool};
use rbdkit_record::Recorder;
use rbdkit_record::format::GivenParameter;
use rbdkit_sandbox::{GivenDisk, Module, Reloader};
use tokio::sync::Notify;

use super::filters::{Ends, Loaded, Loader, grant, limits, server_limits};
use super::reload::{ReloadedFile, Reloads};
use super::{log, record};
use crate::cli::{self, ChainPlan, FilterLimit, FilterSource, Plan};
use crate::registry::{self, ForeignOptions, Found};

/// How deep disks may be nested: a disk's filter has a disk, whose filter has a disk.
const MAX_DEPTH: usize = 8;

/// The most disks of a server. Each may need a descriptor, and 224 are free for all layers.
const MAX_DISKS: usize = 128;

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
    let mut builder = Builder::new(plan, ends);
    let mut parts = builder.parts(&plan.chain(), Position::Top)?;
    log::warn_of_unknown_flags(plan, builder.has_foreign, &builder.names);
    let reloaders = std::mem::take(&mut parts.reloaders);
    let reloads = plan.reload.then(|| reloads(plan, reloaders)).transpose()?;
    let given = std::mem::take(&mut parts.given);
    let recorder = plan.record.as_ref();
    let recorder = recorder.map(|option| record::insert(option, &mut parts.layers, given, parts.plugin_name));
    let recorder = recorder.transpose()?;
    Ok(Layers { chain: parts.chain(&builder.pool), recorder, reloads })
}

/// What reads the files of filters again.
fn reloads(plan: &Plan, reloaders: Vec<(Reloader, Option<cli::Sha256>)>) -> Result<Reloads, ConfigError> {
    let mut files = Vec::new();
    for (source, (reloader, digest)) in plan.filters.iter().zip(reloaders) {
        if let (FilterSource::File { path, sha256 }, Some(running)) = (source, digest) {
            // The server changes its directory when it goes into the background.
            let path = absolute(path).map_err(|error| ConfigError::new(format!("--reload: {error}")))?;
            files.push(ReloadedFile { path, demanded: *sha256, running, reloader: Arc::new(reloader) });
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
    let mut loaded = Loader::new(plan, ends).load(&plan.filters)?;
    grant(&mut loaded, &plan.filter_allows)?;
    Ok(loaded.into_iter().map(|(module, _)| module).collect())
}

/// The declarations of the layers.
pub fn declared<'a>(modules: impl IntoIterator<Item = &'a Module>, found: Found) -> Stack<'a> {
    let filters = modules.into_iter().map(Module::description);
    let filters = filters.map(|told| FilterSide { name: &told.name, specs: &told.params }).collect();
    let first_key = found.foreign.and_then(|foreign| foreign.first_key());
    Stack { filters, plugin: PluginSide { first_key, ..PluginSide::new(found.info) } }
}

/// Where a chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Clients reach it.
    Top,
    /// It is a disk of a filter, so many levels below the chain that clients reach.
    Disk(usize),
}

/// Makes the chains of a server.
struct Builder<'a> {
    plan: &'a Plan,
    ends: &'a Ends,
    loader: Loader<'a>,
    pool: Pool,
    /// How many disks there are.
    disks: usize,
    /// The names of all layers.
    names: Vec<String>,
    /// A plugin of nbdkit is among them.
    has_foreign: bool,
}

/// The configured layers of one chain.
struct Parts {
    layers: Vec<Arc<dyn Layer>>,
    /// What replaces the code of each filter, and the digest of its file.
    reloaders: Vec<(Reloader, Option<cli::Sha256>)>,
    /// The parameters of each filter, for a record.
    given: Vec<Vec<GivenParameter>>,
    plugin_name: &'static str,
    plugin: Box<dyn Plugin>,
    disks: Vec<ExtraDisk>,
}

impl Parts {
    fn chain(self, pool: &Pool) -> Arc<Chain> {
        Chain::with_disks(self.layers, self.plugin_name, self.plugin, pool.clone(), self.disks)
    }
}

impl<'a> Builder<'a> {
    fn new(plan: &'a Plan, ends: &'a Ends) -> Builder<'a> {
        let loader = Loader::new(plan, ends);
        Builder { plan, ends, loader, pool: Pool::default(), disks: 0, names: Vec::new(), has_foreign: false }
    }

    /// Makes the layers of a chain, and the disks of its filters.
    ///
    /// # Errors
    /// One line that says what cannot be loaded, or which parameter is wrong.
    fn parts(&mut self, chain: &ChainPlan, position: Position) -> Result<Parts, ConfigError> {
        let found = find_plugin(self.plan, &chain.plugin)?;
        let mut loaded = self.loader.load(&chain.filters)?;
        if position == Position::Top {
            grant(&mut loaded, &self.plan.filter_allows)?;
        }
        let names = loaded.iter().map(|(module, _)| module.description().name.clone());
        self.names.extend(names.chain([found.info.name.to_string()]));
        self.has_foreign |= found.foreign.is_some();
        let stack = declared(loaded.iter().map(|(module, _)| module), found);
        let assignment = assign(&stack, &chain.params, &chain.filter_params, Missing::Refused)?;
        let limits = limits(&stack, &self.limit_changes(position, &loaded))?;
        for warning in &assignment.warnings {
            tracing::warn!("{warning}");
        }
        let given = stack.filters.iter().zip(&assignment.filters);
        let given = given.map(|(filter, values)| record::given(filter.specs, values)).collect();
        let plugin = plugin(found.info, &assignment.plugin, &self.ends.shutdown)?;
        let mut disks = Vec::new();
        for ((module, _), values) in loaded.iter_mut().zip(&assignment.filters) {
            let of_filter = self.disks(module, values, position)?;
            for given in &of_filter {
                let name = account(&disks, &module.description().name, given);
                disks.push(ExtraDisk { name, chain: Arc::clone(&given.chain) });
            }
            module.give_disks(of_filter);
        }
        // The filter nearest the plugin is configured first, as in nbdkit.
        let configured = loaded.into_iter().zip(assignment.filters).zip(limits).rev();
        let configured = configured.map(|(((module, digest), params), limits)| {
            let (layer, reloader) = module.configure_to_reload(params, limits)?;
            Ok((layer, (reloader, digest)))
        });
        let mut configured = configured.collect::<Result<Vec<_>, ConfigError>>()?;
        configured.reverse();
        let (layers, reloaders) = configured.into_iter().unzip();
        Ok(Parts { layers, reloaders, given, plugin_name: found.info.name, plugin, disks })
    }

    /// The changes of limits that hold for the filters of a chain. Options name only filters that
    /// clients reach.
    fn limit_changes(&self, position: Position, loaded: &[Loaded]) -> Vec<FilterLimit> {
        let changes = self.plan.filter_limits.iter();
        match position {
            Position::Top => changes.cloned().collect(),
            Position::Disk(_) if loaded.is_empty() => Vec::new(),
            Position::Disk(_) => changes.filter(|change| change.target.is_none()).cloned().collect(),
        }
    }

    /// The disks that the parameters of a filter name.
    fn disks(
        &mut self,
        module: &Module,
        values: &[(String, ParamValue)],
        position: Position,
    ) -> Result<Vec<GivenDisk>, ConfigError> {
        let specs = &module.description().params;
        let is_disk = |name: &str| specs.iter().any(|spec| spec.name == *name && spec.kind == ParamKind::Disk);
        let named = values.iter().filter(|(name, _)| is_disk(name));
        let named = named.filter_map(|(name, value)| value.path.as_deref().map(|value| (name, value)));
        named.map(|(param, value)| self.disk(param, value, position)).collect()
    }

    /// Makes the chain of a disk.
    fn disk(&mut self, param: &str, value: &OsStr, position: Position) -> Result<GivenDisk, ConfigError> {
        let plan = cli::disk(value);
        let shown = shown(param, value, plan.as_ref().ok());
        let make = || {
            let depth = match position {
                Position::Top => 1,
                Position::Disk(depth) => depth + 1,
            };
            if depth > MAX_DEPTH {
                return Err(ConfigError::new(format!("disks are nested more than {MAX_DEPTH} deep")));
            }
            self.disks += 1;
            if self.disks > MAX_DISKS {
                return Err(ConfigError::new(format!("more than {MAX_DISKS} disks are given")));
            }
            Ok(self.parts(&plan?, Position::Disk(depth))?.chain(&self.pool))
        };
        let chain = make().map_err(|error| refused(&shown, value, &error))?;
        Ok(GivenDisk { param: param.to_string(), shown, chain })
    }
}

/// The name of a disk in the names of accounts. None of `known` has it.
fn account(known: &[ExtraDisk], filter: &str, disk: &GivenDisk) -> String {
    let name = format!("{filter}:{}", disk.param);
    let same = known.iter().filter(|known| known.name.split('#').next() == Some(&name)).count();
    if same == 0 { name } else { format!("{name}#{}", same + 1) }
}

/// A parameter and the disk that it names, for messages. Of a chain only the plugin is shown:
/// values of parameters may be secret.
fn shown(param: &str, value: &OsStr, chain: Option<&ChainPlan>) -> String {
    let value = value.to_string_lossy();
    match (value.starts_with(CHAIN_PREFIX), chain) {
        (false, _) => format!("{param}={}", without_userinfo(&value)),
        (true, None) => format!("{param}={CHAIN_PREFIX}..."),
        (true, Some(chain)) => format!("{param}={CHAIN_PREFIX}... {} ...", without_userinfo(&chain.plugin)),
    }
}

/// The error about a disk. The file plugin's error begins with its own parameter, which the user
/// has not written.
fn refused(shown: &str, value: &OsStr, error: &ConfigError) -> ConfigError {
    let error = error.to_string();
    let own = [Path::new(value).canonicalize().ok(), Some(value.into())];
    let own = own.into_iter().flatten().find_map(|file| error.strip_prefix(&format!("file={}: ", file.display())));
    ConfigError::new(format!("{shown}: {}", own.unwrap_or(&error)))
}
