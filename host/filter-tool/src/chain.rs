//! A chain of a filter over a disk.

use std::sync::Arc;

use rbdkit_chain::{Chain, ExtraDisk, Hop, Layer};
use rbdkit_parameters::{AssignError, Assignment, FilterSide, Missing, Parameter, PluginSide, Stack, assign};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{Client, Param, Peer, Plugin, PluginInfo, Pool};
use rbdkit_sandbox::{FilterLimits, Module};

use crate::error::{Error, Result};
use crate::file_disk::given_disks;

/// Makes a chain of the filter, or of no filter, over a plugin that has this size if the parameters
/// give no other.
pub fn over(
    filter: Option<(Module, &[String])>,
    info: &PluginInfo,
    plugin: Box<dyn Plugin>,
    size: &str,
) -> Result<Arc<Chain>> {
    let assigned = |(module, params): (Module, &[String])| {
        assigned(&module, params, info, Missing::Refused).map(|assignment| (module, assignment))
    };
    assembled(filter.map(assigned).transpose()?, info, plugin, size)
}

/// [`over`] with parameters that have been read.
pub fn assembled(
    filter: Option<(Module, Assignment)>,
    info: &PluginInfo,
    mut plugin: Box<dyn Plugin>,
    size: &str,
) -> Result<Arc<Chain>> {
    let mut layers: Vec<Arc<dyn Layer>> = Vec::new();
    let mut disk = vec![("size".to_string(), size.into())];
    let mut disks = Vec::new();
    if let Some((mut module, assignment)) = filter {
        let values = assignment.filters.into_iter().next().unwrap_or_default();
        let given = given_disks(&module, &values)?;
        disks
            .extend(given.iter().map(|given| ExtraDisk { name: given.shown.clone(), chain: Arc::clone(&given.chain) }));
        module.give_disks(given);
        layers.push(module.configure(values, FilterLimits::default())?);
        disk.extend(assignment.plugin);
    }
    disk.iter()
        .try_for_each(|(key, value)| plugin.config(Param { key, value }))
        .and_then(|()| plugin.config_complete())
        .and_then(|()| plugin.get_ready())
        .and_then(|()| plugin.after_fork())?;
    Ok(Chain::with_disks(layers, info.name, plugin, Pool::new(), disks))
}

/// Gives the filter and the disk below it their parameters, as rbdkit does.
pub fn assigned(module: &Module, params: &[String], disk: &PluginInfo, missing: Missing) -> Result<Assignment> {
    let told = module.description();
    let filter = FilterSide { name: &told.name, specs: &told.params };
    let stack = Stack { filters: vec![filter], plugin: PluginSide::new(disk) };
    let params = params
        .iter()
        .map(|word| match Parameter::new(word.into()) {
            Parameter::Bare(_) => Err(Error::NoParameter(word.clone())),
            keyed => Ok(keyed),
        })
        .collect::<Result<Vec<_>>>()?;
    assign(&stack, &params, &[], missing).map_err(|error| match error {
        AssignError::UnknownKey { key, .. } => {
            let names =
                |specs: &[ParamSpec]| specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
            Error::UnknownParameter { key, known: names(&told.params), disk: names(&(disk.params)()) }
        }
        error => Error::Parameters(error),
    })
}

/// Opens a connection of a client.
pub async fn open(chain: &Arc<Chain>, id: u64) -> Result<Arc<Hop>> {
    open_for(chain, Arc::new(Client::new(id, Peer::Unknown, None, false))).await
}

/// Opens a connection of this client.
pub async fn open_for(chain: &Arc<Chain>, client: Arc<Client>) -> Result<Arc<Hop>> {
    let top = chain.top(client);
    top.preconnect(false).await.map_err(|source| Error::Operation { operation: "preconnect", source })?;
    top.open(false, "").await.map_err(|source| Error::Operation { operation: "open", source })
}

/// Makes the chain ready for connections.
pub async fn make_ready(chain: &Arc<Chain>) -> Result<()> {
    chain.get_ready().await?;
    chain.after_fork().await?;
    Ok(())
}
