//! Filters: WebAssembly components in a sandbox. Only this crate names wasmtime.
//!
//! A component is loaded once ([`Host::load`]), described, and given its parameters
//! ([`Module::configure`]). Then it is a layer of the chain like any other: the chain sees no
//! difference between a filter and a plugin. `wit/filter.wit` is the contract with the guest.
//!
//! A request takes these steps: [`layer::handle`] checks whether the filter exports the operation.
//! If not, the operation goes to the layer below without entering a guest. Otherwise
//! [`layer::calls`] takes an instance from the pool ([`layer::pool`]) and installs the call with
//! its buffer in the instance's store ([`guest::call`]), and the guest runs on a fiber
//! ([`guest::instance`]). What the guest imports ([`guest::imports`]) acts on that call:
//! `next.pread` moves the buffer on to the gate below and back.
//!
//! A folder imports only from folders after it in this list: this file, `layer` and `wasi`,
//! `guest`, `load`, `connection`, `state`.
//!
//! Invariants:
//! * **One call, one [`guest::call::Call`].** It is filled when a guest is entered and emptied when
//!   the guest returns, traps or is dropped. Nothing else in a store belongs to a request. Emptying
//!   it releases the call's lock, drops its held-back changes and undoes its undoable changes.
//! * **Publish, unlock, answer**, in this order, when a call succeeds.
//! * **A fault costs its own request.** The instance is dropped, the request gets EIO, and the next
//!   call finds a fresh instance. A place in the pool belongs to a lease, and dropping the lease
//!   gives it back, whatever happened to the instance.
//! * **When a client leaves, its calls end**, except finalize, close and the operations that these
//!   start below. An operation below cannot be cancelled: it keeps the call's lock, its buffer and
//!   the layer below until it has ended ([`connection::detached`]).
//! * **Waiting is not computing.** Time in next, locks and sleep does not count as the guest's
//!   ([`guest::clock`]).
//! * **A payload crosses into a guest only by `buffer.read` and `buffer.write`**, and every byte
//!   that does is counted.
//! * **Instances are taken downwards.** A layer that waits for an instance holds only instances of
//!   layers above, and no layer below waits for those.
//! * **Every call keeps the layer below that it began with.** A layer that was replaced ends after
//!   its last user.
//! * **Before the runtime starts, guest code runs** only in `describe` and `configure`, which can
//!   wait for nothing. [`Module::configure`] may be called with or without a runtime.

mod connection;
mod guest;
mod layer;
mod load;
mod options;
pub mod state;
mod wasi;

use std::sync::{Arc, Mutex, Weak};

use rbdkit_plugin_api::schema::{ParamKind, ParamValue};
use rbdkit_plugin_api::{ConfigError, lock};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use connection::bindings::host::types as wit;
pub use connection::counters::Counters;
pub use connection::disks::GivenDisk;
use connection::disks::GivenDisks;
pub use connection::engine::CodeExtras;
pub use connection::limit_options::Limits;
pub use connection::limits::{CompileLimits, FilterLimits, ServerLimits};
pub use connection::on_fault::OnFault;
pub use connection::powers::{Power, Powers};
pub use connection::profile::{Profile, ProfileNode, Samples};
use connection::pulse::Pulse;
pub use connection::shared::Reuse;
use connection::shared::{FilterShared, HostShared, Purpose};
use connection::siblings::Siblings;
use connection::trace::Recording;
pub use connection::trace::{GuestCall, HostCall, Trace};
use connection::wishes;
pub use connection::wishes::Wish;
use guest::block_on::block_on;
use guest::context::Context;
use guest::export_calls::{DescribeCall, ExportCall, WishesCall};
use guest::exported::Exported;
use guest::exports::{ExportIndices, KNOWN_EXPORTS};
use guest::instance::{Instance, Recipe};
use layer::filter::Filter;
use layer::filter_layer::FilterLayer;
pub use layer::reload::Replaced;
use layer::version::FilterTraits;
pub use load::compile::MAX_CODE_BYTES;
pub use load::compile::{Compiler, serve_if_asked};
use load::component::{LinkedImports, check_format};
pub use load::describe::Description;
pub use load::error::LoadError;
use load::error::one_line;
pub use load::file::{MAX_COMPONENT_BYTES, read_component};
use load::footprint::{Footprint, FootprintError};
use load::mismatch;
pub use load::precompiled::Precompiled;
use load::replacement::{self, Given};
pub use options::Options;
use rbdkit_chain::Layer;
use state::{ParamFiles, Quota};
pub use wasi::grants as wasi_grants;

/// What all filters share: the engine and the cache of compiled code.
pub struct Host {
    engine: Engine,
    linker: Linker<Context>,
    cache: Option<load::cache::CodeCache>,
    compiler: Compiler,
    extras: CodeExtras,
    shared: HostShared,
    /// The limit of `shared.memory` once a filter is configured. While filters are only described,
    /// the default holds, so that `--help` works under any limit.
    memory_all: u64,
    configured: Mutex<Vec<Weak<FilterShared>>>,
}

/// A component that was loaded and has described itself.
pub struct Module {
    host: Arc<Host>,
    label: String,
    recipe: Recipe,
    traits: FilterTraits,
    description: Description,
    wishes: Vec<Wish>,
    asks_for: Powers,
    powers: Powers,
    disks: Vec<GivenDisk>,
    unknown_exports: Vec<String>,
}

impl Host {
    /// Makes the engine.
    ///
    /// # Errors
    /// WebAssembly does not run on this machine.
    pub fn new(options: Options) -> Result<Arc<Host>, ConfigError> {
        let engine = connection::engine::engine(options.extras)?;
        if options.profile.is_some() {
            Profile::tick(&engine).map_err(|error| ConfigError::new(format!("cannot sample guests: {error}")))?;
        }
        // Code that counts instructions gets its fuel with the record of a call.
        let counts = options.extras == CodeExtras::LinesAndCount;
        let trace = options.trace.or_else(|| counts.then(Arc::default));
        let recording = if trace.is_some() { Recording::On } else { Recording::Off };
        let linker = linker(&engine, recording)
            .map_err(|e| ConfigError::new(format!("the filter interface cannot be set up: {e:#}")))?;
        let cache = load::cache::CodeCache::open(options.cache_dir, options.extras);
        Ok(Arc::new(Host {
            engine,
            linker,
            cache,
            compiler: options.compiler,
            extras: options.extras,
            shared: HostShared {
                pulse: Pulse::new(),
                memory: Arc::new(Quota::new(ServerLimits::default().memory)),
                on_fault: options.on_fault,
                shutdown: options.shutdown,
                trace,
                profile: options.profile,
                reuse: options.reuse,
            },
            memory_all: options.limits.memory,
            configured: Mutex::default(),
        }))
    }

    /// Loads a component and asks it to describe itself. Until then, messages call it `label`, the
    /// file's name.
    ///
    /// # Errors
    /// One line that begins with the label: it is not a component, uses a feature that is off,
    /// imports what is not granted, is not a filter, or has an invalid description.
    pub fn load(self: &Arc<Self>, label: &str, component: &[u8]) -> Result<Module, ConfigError> {
        let load = || {
            let (compiled, footprint) = self.compile_checked(component)?;
            self.described(label, compiled, footprint)
        };
        load().map_err(|why| ConfigError::new(format!("{label}: {why}")))
    }

    /// Compiles a component for another process of this program, which loads it with
    /// [`Reloader::reload`].
    ///
    /// # Errors
    /// One line, without the component's name.
    pub fn precompile(&self, component: &[u8]) -> Result<Vec<u8>, LoadError> {
        let (compiled, _) = self.compile_checked(component)?;
        compiled.serialize().map_err(|error| LoadError::Compiler(one_line(&error)))
    }

    /// Loads a component that another process of this program has compiled.
    fn load_precompiled(self: &Arc<Self>, label: &str, from: &Precompiled) -> Result<Module, LoadError> {
        let footprint = Footprint::of(from.component())?;
        #[allow(unsafe_code, reason = "wasmtime cannot know where precompiled code comes from")]
        // SAFETY: deserializing trusts the bytes. Who made `Precompiled` has promised that this
        // same program compiled them, and it makes its engine with the same settings in each
        // process.
        let compiled = unsafe { Component::deserialize(&self.engine, from.code()) };
        let compiled = compiled.map_err(|error| LoadError::Compiler(one_line(&error)))?;
        self.described(label, compiled, footprint)
    }

    /// Compiles a component, unless it is in the cache, and computes its footprint.
    fn compile_checked(&self, bytes: &[u8]) -> Result<(Component, Footprint), LoadError> {
        let footprint = Footprint::of(bytes);
        if let Err(why) = &footprint
            && *why != FootprintError::Malformed
        {
            return Err(why.clone().into());
        }
        let component = self.compile(bytes)?;
        Ok((component, footprint?))
    }

    /// Checks what a component imports and exports, and asks it to describe itself.
    fn described(
        self: &Arc<Self>,
        label: &str,
        component: Component,
        footprint: Footprint,
    ) -> Result<Module, LoadError> {
        let imports = LinkedImports::check(&component, &self.engine, wasi::granted)?;
        let pre = self.linker.instantiate_pre(&component).map_err(|e| {
            let why = mismatch::of_imports(&component, &self.engine).unwrap_or_else(|| one_line(&e));
            LoadError::mismatch(&why)
        })?;
        let exports = ExportIndices::find(&pre)?;
        let (mut exported, names) = exports.exported();
        let recipe = Recipe { pre, exports, footprint: footprint.bytes };
        // The types of the exports are checked only when an instance is made.
        let (described, wishes) = self.describe(label, &recipe, exported).map_err(|error| {
            let mismatch = mismatch::of_exports(&component, &self.engine);
            mismatch.map_or(error, |why| LoadError::mismatch(&why))
        })?;
        let keeps_state = imports.keep_state();
        let description = load::describe::checked(&described, names, imports.interfaces)?;
        exported.transparent = description.transparent;
        let traits = FilterTraits {
            exported,
            model: description.thread_model,
            recovery: described.recovery,
            reopens: imports.reopens,
            keeps_state,
            flushes_others: imports.flushes_others,
            has_gate: imports.has_gate,
        };
        Ok(Module {
            host: Arc::clone(self),
            label: label.to_string(),
            recipe,
            traits,
            description,
            wishes,
            asks_for: imports.asks_for,
            powers: Powers::default(),
            disks: Vec::new(),
            unknown_exports: mismatch::unknown_exports(&component, &self.engine, KNOWN_EXPORTS),
        })
    }

    fn compile(&self, bytes: &[u8]) -> Result<Component, LoadError> {
        check_format(bytes)?;
        match &self.cache {
            Some(cache) => cache.load(&self.engine, &self.compiler, bytes),
            None => self.compiler.compile(&self.engine, self.extras, bytes),
        }
    }

    fn describe(
        &self,
        label: &str,
        recipe: &Recipe,
        exported: Exported,
    ) -> Result<(wit::Description, Vec<Wish>), LoadError> {
        let limits = FilterLimits::for_describing();
        let shared =
            FilterShared::new(label, Purpose::Describe, limits, ParamFiles::default(), Powers::default(), &self.shared);
        block_on(async {
            let mut instance = recipe.instantiate(&shared).await.map_err(|fault| LoadError::Guest(fault.cause))?;
            let description = ask_first(&mut instance, DescribeCall).await?;
            let wishes = if exported.wishes { ask_first(&mut instance, WishesCall).await? } else { Vec::new() };
            let wishes = wishes::checked(&wishes, self.memory_all).map_err(LoadError::Description)?;
            Ok((description, wishes))
        })
    }

    /// Bytes of memory and tables of all instances that exist now.
    pub fn memory_used(&self) -> u64 {
        self.shared.memory.used()
    }

    /// The counters of the filters that are configured, with the filters' names, in the order in
    /// which they were configured.
    pub fn statistics(&self) -> Vec<(String, Arc<Counters>)> {
        let configured = lock(&self.configured);
        let filters = configured.iter().filter_map(Weak::upgrade);
        filters.map(|shared| (shared.name.clone(), Arc::clone(&shared.counters))).collect()
    }
}

/// Asks a guest about itself.
async fn ask_first<E: ExportCall>(instance: &mut Instance, call: E) -> Result<E::Answer, LoadError> {
    match instance.serve(call.setup(), None, &call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(LoadError::Guest(format!("{}: {error}", E::NAME))),
        Err(fault) => Err(LoadError::Guest(format!("{}: {}", E::NAME, fault.cause))),
    }
}

/// All that a filter may import: the contract, and the stubs of WASI.
fn linker(engine: &Engine, recording: Recording) -> wasmtime::Result<Linker<Context>> {
    let mut linker = guest::imports::linker(engine, recording)?;
    wasi::add_to_linker(&mut linker, recording)?;
    Ok(linker)
}

impl Module {
    /// The filter's description of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The label that it was loaded with.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What it exports of the contract that this host does not know and never calls: a line for
    /// each interface, without the filter's name.
    pub fn unknown_exports(&self) -> &[String] {
        &self.unknown_exports
    }

    /// The limits that it asks for.
    pub fn wishes(&self) -> &[Wish] {
        &self.wishes
    }

    /// The powers that the filter may ask for: it imports their functions.
    pub fn asks_for(&self) -> Powers {
        self.asks_for
    }

    /// Grants powers, besides those that it has.
    pub fn grant(&mut self, powers: Powers) {
        self.powers = self.powers.union(powers);
    }

    /// Gives it the disks that its parameters name: one for each value of the kind
    /// [`ParamKind::Disk`], in their order.
    pub fn give_disks(&mut self, disks: Vec<GivenDisk>) {
        self.disks = disks;
    }

    /// The powers that it has.
    pub fn powers(&self) -> Powers {
        self.powers
    }

    /// Gives the filter its parameters, by their declared names in the order of the command line,
    /// and makes it a layer. Opens the files that they name. The guest runs on this thread, inside
    /// a runtime or outside of one.
    ///
    /// # Errors
    /// The filter's own line about a parameter, or what was wrong with the filter.
    pub fn configure(
        self,
        params: Vec<(String, ParamValue)>,
        limits: FilterLimits,
    ) -> Result<Arc<dyn Layer>, ConfigError> {
        self.configure_to_reload(params, limits).map(|(layer, _)| layer)
    }

    /// [`Module::configure`], and what replaces the filter's code later.
    ///
    /// # Errors
    /// As [`Module::configure`].
    pub fn configure_to_reload(
        self,
        params: Vec<(String, ParamValue)>,
        mut limits: FilterLimits,
    ) -> Result<(Arc<dyn Layer>, Reloader), ConfigError> {
        let name = &self.description.name;
        for wish in limits.grant(&self.wishes) {
            let (limit, wanted, granted) = (wish.limit, wish.shown(wish.wanted), wish.shown(wish.granted));
            if wish.granted < wish.wanted {
                tracing::warn!(
                    "{name}: it asks for {limit}={wanted} and gets {granted} (--filter-limit {name}:{limit}={wanted} \
                     gives it)"
                );
            } else {
                tracing::debug!("{name}: it gets {limit}={granted}, as it asks for");
            }
        }
        let mut given: Vec<Given> = params
            .into_iter()
            .filter_map(|(name, value)| {
                let kind = self.description.params.iter().find(|spec| spec.name == name)?.kind;
                Some(Given { name, kind, value })
            })
            .collect();
        if let Some(param) = without_disk(&given, &self.disks) {
            return Err(ConfigError::new(format!("{name}: {param}=: this program cannot open disks")));
        }
        let files = ParamFiles::open(given.iter().map(|given| (given.name.as_str(), given.kind, &given.value)))?;
        // Read once. What the user wrote may be the secret itself.
        given.iter_mut().filter(|given| given.kind == ParamKind::Secret).for_each(|given| given.value.path = None);
        for unknown in &self.unknown_exports {
            tracing::warn!("{}: {unknown}", self.description.name);
        }
        self.host.shared.memory.set_limit(self.host.memory_all);
        let siblings = Siblings::new(GivenDisks::new(name, self.disks));
        let shared = FilterShared::new(name, Purpose::Serve, limits, files, self.powers, &self.host.shared);
        let mut configured = lock(&self.host.configured);
        configured.push(Arc::downgrade(&shared));
        drop(configured);
        let params = given.iter().map(|given| (given.name.clone(), given.value.text.clone())).collect();
        let filter = block_on(Filter::configure(shared, siblings, self.recipe, self.traits, params))?;
        let layer = Arc::new(FilterLayer(Arc::clone(&filter)));
        Ok((layer, Reloader { host: self.host, label: self.label, running: self.description, given, filter }))
    }
}

/// A parameter that names more disks than the filter was given.
fn without_disk<'a>(given: &'a [Given], disks: &[GivenDisk]) -> Option<&'a str> {
    let named = given.iter().filter(|given| given.kind == ParamKind::Disk).map(|given| given.name.as_str());
    let lacks = |param: &&str| {
        let values = given.iter().filter(|given| given.name == **param).count();
        disks.iter().filter(|disk| disk.param == **param).count() < values
    };
    named.into_iter().find(lacks)
}

/// Replaces the code of a filter that serves.
pub struct Reloader {
    host: Arc<Host>,
    label: String,
    /// The description that the server was started with. Its name, state-version and parameters
    /// hold for all versions.
    running: Description,
    given: Vec<Given>,
    filter: Arc<Filter>,
}

impl Reloader {
    /// The label that the filter was loaded with.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The filter's name.
    pub fn name(&self) -> &str {
        &self.running.name
    }

    /// Waits until nothing runs the version any more that the last reload replaced. Before that
    /// there is no further reload, so at most two versions exist. Returns at once if it is gone
    /// already.
    pub async fn until_replaced(&self) {
        if let Some(gone) = self.filter.replaced() {
            gone.wait().await;
        }
    }

    /// Who still uses that version, for a message: connections by their numbers, or calls. None if
    /// nobody does.
    pub fn users_of_replaced(&self) -> Option<String> {
        self.filter.users_of_replaced()
    }

    /// Replaces the filter's code by this component's. The parameters stay. Call it after
    /// [`Reloader::until_replaced`], within a runtime.
    ///
    /// # Errors
    /// One line that begins with the label: why the component cannot replace the running version,
    /// which serves on.
    pub async fn reload(self: &Arc<Self>, component: Precompiled) -> Result<Replaced, ConfigError> {
        let ours = Arc::clone(self);
        // Parsing and describing may take seconds for a large component.
        let load = move || {
            let module = ours.host.load_precompiled(&ours.label, &component)?;
            replacement::check(&ours.running, &module.description, &ours.given).map(|()| module)
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        let loaded = loaded.unwrap_or_else(|_| Err(LoadError::Compiler("loading it failed".into())));
        let module = loaded.map_err(|why| self.refused(&why))?;
        self.filter.replace(module.recipe, module.traits).await.map_err(|why| self.refused(&why))
    }

    fn refused(&self, why: &dyn std::fmt::Display) -> ConfigError {
        ConfigError::new(format!("{}: {why}", self.label))
    }
}

#[cfg(test)]
mod tests;
