//! The options about filters: which filters to load, their parameters and their limits.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbdkit_oci::{PlainHttp, Reference};
use rbdkit_parameters::{Parameter, Target, TargetedParameter};
use rbdkit_plugin_api::secrets::without_userinfo;
use rbdkit_plugin_api::{ConfigError, hex};

use super::options::{FilterOption, Options};
use super::values::{error, path};
use crate::registry;

/// What ends besides the request when a filter has a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterFault {
    /// Nothing.
    Error,
    /// The connection.
    Disconnect,
    /// The server.
    Exit,
}

/// A SHA-256 digest.
pub type Sha256 = [u8; 32];

/// Where a filter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterSource {
    /// One that is embedded in the program.
    Named(String),
    /// A component in a file.
    File {
        /// The file.
        path: PathBuf,
        /// The digest that the file must have.
        sha256: Option<Sha256>,
    },
    /// A component in a registry.
    Registry(Reference),
}

/// How filters in registries are got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryOptions {
    /// The file of the key that has to have signed filters.
    pub filter_key: Option<PathBuf>,
    /// Whether TLS may be missing on other machines.
    pub plain_http: PlainHttp,
}

/// A change of a filter's limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterLimit {
    /// The filter; none for all of them.
    pub target: Option<Target>,
    /// The resource's name. The sandbox checks whether it exists.
    pub resource: String,
    /// The value.
    pub value: String,
}

/// Powers that the operator grants a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterAllow {
    /// The filter.
    pub target: Target,
    /// The words of the powers. The sandbox knows which there are.
    pub powers: Vec<String>,
}

/// The filters, in the order of the command line.
pub(super) fn filters(given: &Options) -> Result<Vec<FilterSource>, ConfigError> {
    let source = |filter: &FilterOption| match filter {
        FilterOption::Named(value) => named_filter(value),
        FilterOption::File(value) => match value.to_str().filter(|text| Reference::is_meant_by(text)) {
            Some(reference) => registry_filter(reference),
            None => filter_file("--wasm-filter", value),
        },
    };
    given.filters.iter().map(source).collect()
}

/// A filter given by its name or, as in nbdkit, by a path.
fn named_filter(value: &OsStr) -> Result<FilterSource, ConfigError> {
    let name = value.to_string_lossy();
    if name.ends_with(".so") {
        let instead = match registry::filter_like(Path::new(value)) {
            Some(filter) => format!(" (--filter={filter} is the built-in one of that name)"),
            None => String::new(),
        };
        return Err(error(format!(
            "--filter={name}: filters of nbdkit cannot be loaded, because filters run in a sandbox as WebAssembly \
                components{instead}"
        )));
    }
    if name.contains('/') || name.ends_with(".wasm") {
        return filter_file("--filter", value);
    }
    match name.is_empty() {
        true => Err(error("--filter: the name of the filter is empty")),
        false => Ok(FilterSource::Named(name.into_owned())),
    }
}

fn filter_file(option: &str, value: &OsStr) -> Result<FilterSource, ConfigError> {
    const MARK: &str = "@sha256:";
    let Some((file, digest)) = value.to_str().and_then(|text| text.rsplit_once(MARK)) else {
        return Ok(FilterSource::File { path: path(option, value)?, sha256: None });
    };
    let sha256 = hex::decode(digest)
        .ok_or_else(|| error(format!("{option}: '{digest}' is not a SHA-256 digest: 64 hexadecimal digits")))?;
    Ok(FilterSource::File { path: path(option, OsStr::new(file))?, sha256: Some(sha256) })
}

/// Whether the files of filters are read again.
///
/// # Errors
/// There is no such file.
pub(super) fn reload(given: &Options) -> Result<bool, ConfigError> {
    let is_file = |source: &FilterSource| matches!(source, FilterSource::File { .. });
    if given.reload && !filters(given)?.iter().any(is_file) {
        return Err(error("--reload: no filter is in a file (--wasm-filter FILE)"));
    }
    Ok(given.reload)
}

fn registry_filter(text: &str) -> Result<FilterSource, ConfigError> {
    let reference = Reference::parse(text).map_err(|why| error(format!("--wasm-filter: {why}")))?;
    Ok(FilterSource::Registry(reference))
}

pub(super) fn registries(given: &Options) -> Result<RegistryOptions, ConfigError> {
    let filter_key = given.filter_key.as_ref().map(|file| path("--filter-key", file)).transpose()?;
    let plain_http = if given.plain_http { PlainHttp::Allowed } else { PlainHttp::Refused };
    Ok(RegistryOptions { filter_key, plain_http })
}

pub(super) fn plugin_param(value: &OsStr) -> Result<Parameter, ConfigError> {
    Parameter::for_plugin(value).ok_or_else(|| {
        let shown = without_userinfo(&value.to_string_lossy());
        error(format!("--plugin-param: '{shown}' is not KEY=VALUE, for example size=1G"))
    })
}

pub(super) fn filter_param(value: &OsStr) -> Result<TargetedParameter, ConfigError> {
    let wrong = || {
        let shown = value.to_string_lossy();
        error(format!("--filter-param: '{shown}' is not FILTER:KEY=VALUE, for example cow:cow-on-read=true"))
    };
    let (target, key, value) = TargetedParameter::split(value).ok_or_else(wrong)?;
    Ok(TargetedParameter { target: filter_name("--filter-param", &target)?, key, value })
}

fn filter_name(option: &str, text: &str) -> Result<Target, ConfigError> {
    Target::parse(text)
        .ok_or_else(|| error(format!("{option}: '{text}' does not name a filter: NAME, or NAME#2 for the second")))
}

pub(super) fn filter_on_fault(given: &Options) -> Result<FilterFault, ConfigError> {
    let Some(value) = &given.filter_on_fault else { return Ok(FilterFault::Error) };
    match value.to_str() {
        Some("error") => Ok(FilterFault::Error),
        Some("disconnect") => Ok(FilterFault::Disconnect),
        Some("exit") => Ok(FilterFault::Exit),
        _ => {
            let shown = value.to_string_lossy();
            Err(error(format!("--filter-on-fault: '{shown}' is not one of error, disconnect, exit")))
        }
    }
}

pub(super) fn filter_allow(value: &OsStr) -> Result<FilterAllow, ConfigError> {
    let shown = value.to_string_lossy();
    let wrong = || error(format!("--filter-allow: '{shown}' is not FILTER:POWER,POWER, for example exitlast:shutdown"));
    let (target, powers) = shown.split_once(':').ok_or_else(wrong)?;
    let powers: Vec<String> = powers.split(',').map(str::to_string).collect();
    if powers.iter().any(String::is_empty) {
        return Err(wrong());
    }
    Ok(FilterAllow { target: filter_name("--filter-allow", target)?, powers })
}

pub(super) fn filter_limit(value: &OsStr) -> Result<FilterLimit, ConfigError> {
    let shown = value.to_string_lossy();
    let wrong = || {
        error(format!(
            "--filter-limit: '{shown}' is not RESOURCE=VALUE or FILTER:RESOURCE=VALUE, for example cow:memory=128M"
        ))
    };
    let (what, amount) = shown.split_once('=').ok_or_else(wrong)?;
    let (target, resource) = match what.split_once(':') {
        Some((target, resource)) => (Some(filter_name("--filter-limit", target)?), resource),
        None => (None, what),
    };
    if resource.is_empty() || amount.is_empty() {
        return Err(wrong());
    }
    Ok(FilterLimit { target, resource: resource.to_string(), value: amount.to_string() })
}
