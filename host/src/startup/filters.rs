//! From what the command line says of filters to layers: reading components, loading them in the sandbox, giving them parameters.

use std::path::Path;
use std::sync::Arc;

use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::schema::ParamValue;
use sha2::{Digest, Sha256};

use crate::cli::assign::{Filter, find};
use crate::cli::{self, FilterLimit, FilterSource};
use crate::registry;
use rbdkit_chain::Layer;
use rbdkit_sandbox::{Compiler, FilterLimits, Host, Limits, Module, OnFault, Options, read_component};

/// Loads the filters in the order of the command line. Without any nothing of the sandbox is set up.
///
/// # Errors
/// One line that names the filter.
pub fn load(sources: &[FilterSource], changes: &[FilterLimit], on_fault: OnFault) -> Result<Vec<Module>, ConfigError> {
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let mut limits = Limits::default();
    for change in changes.iter().filter(|change| change.target.is_none()) {
        limits.set(None, &change.resource, &change.value)?;
    }
    let limits = limits.server;
    let compiler = Compiler::Child(limits.compile);
    let host = Host::new(Options { on_fault, compiler, limits, ..Options::default() })?;
    sources.iter().map(|source| load_one(&host, source)).collect()
}

fn load_one(host: &Arc<Host>, source: &FilterSource) -> Result<Module, ConfigError> {
    match source {
        FilterSource::Named(name) => host.load(name, registry::filter(name)?),
        FilterSource::File { path, sha256 } => {
            let component = read_component(path)
                .map_err(|why| ConfigError::new(format!("cannot open filter '{}': {why}", path.display())))?;
            check_digest(path, &component, sha256.as_ref())?;
            host.load(&path.display().to_string(), &component)
        }
    }
}

fn check_digest(path: &Path, component: &[u8], expected: Option<&cli::Sha256>) -> Result<(), ConfigError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let digest: cli::Sha256 = Sha256::digest(component).into();
    if digest == *expected {
        return Ok(());
    }
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(ConfigError::new(format!(
        "filter '{}' is not the file that was named: its SHA-256 digest is {hex}",
        path.display()
    )))
}

/// What the distribution of parameters needs to know of a filter.
pub fn declared(module: &Module) -> Filter<'_> {
    let told = module.description();
    Filter { name: &told.name, specs: &told.params }
}

/// Gives each filter its parameters and limits.
///
/// # Errors
/// One line: the filter's own about a parameter, or that a limit does not exist or is given to a filter that is not there.
pub fn configure(
    modules: Vec<Module>,
    params: Vec<Vec<(String, ParamValue)>>,
    changes: &[FilterLimit],
) -> Result<Vec<Arc<dyn Layer>>, ConfigError> {
    let limits = limits(&modules, changes)?;
    // The filter nearest the plugin first, as nbdkit does.
    let mut layers = modules
        .into_iter()
        .zip(params)
        .zip(limits)
        .rev()
        .map(|((module, params), limits)| module.configure(params, limits))
        .collect::<Result<Vec<_>, _>>()?;
    layers.reverse();
    Ok(layers)
}

fn limits(modules: &[Module], changes: &[FilterLimit]) -> Result<Vec<FilterLimits>, ConfigError> {
    let declared: Vec<Filter<'_>> = modules.iter().map(declared).collect();
    let mut limits = vec![Limits::default(); modules.len()];
    if let ([change, ..], true) = (changes, modules.is_empty()) {
        return Err(ConfigError::new(format!(
            "--filter-limit {}={}: no filter is given",
            change.resource, change.value
        )));
    }
    // What is said of all filters first: what is said of one filter is more particular.
    for change in changes.iter().filter(|change| change.target.is_none()) {
        for each in &mut limits {
            each.set(None, &change.resource, &change.value)?;
        }
    }
    for change in changes {
        if let Some(target) = &change.target {
            let filter = &mut limits[find(&declared, target, "--filter-limit")?];
            filter.set(Some(&target.to_string()), &change.resource, &change.value)?;
        }
    }
    Ok(limits.into_iter().map(|each| each.filter).collect())
}
