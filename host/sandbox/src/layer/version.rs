//! One version of a filter's code, and the instances that are made of it.
//!
//! A filter begins with one version. Each reload makes another one. What uses a version has an
//! `Arc` of it: a pool that makes new instances of it, and every instance. When the last of them is
//! dropped, nothing runs this code any more, and [`VersionEnd::unused`] is set.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use rbdkit_plugin_api::text::one_line_within;
use rbdkit_plugin_api::{ConfigError, Flag, ThreadModel, lock};

use crate::connection::bindings::host::types as wit;
use crate::connection::counters::{Counted, Counters};
use crate::connection::shared::FilterShared;
use crate::guest::export_calls::{ConfigureCall, ExportCall, ThreadModelCall};
use crate::guest::exported::Exported;
use crate::guest::instance::{Instance, Recipe};

/// The parts of a component's description that the layer acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilterTraits {
    pub(crate) exported: Exported,
    pub(crate) model: ThreadModel,
    pub(crate) recovery: wit::Recovery,
    /// It may replace the layer below.
    pub(crate) reopens: bool,
    /// It imports functions on the state of scopes.
    pub(crate) keeps_state: bool,
    /// It may flush the layers below of all its connections.
    pub(crate) flushes_others: bool,
    /// It may hold the requests before its layer.
    pub(crate) has_gate: bool,
}

impl FilterTraits {
    /// Whether connections need nothing that is in an instance's own memory.
    pub(super) fn is_stateless(&self) -> bool {
        self.recovery == wit::Recovery::Stateless
    }

    /// Whether a connection's state is lost with the instance that held it.
    pub(super) fn loses_state_with_instance(&self) -> bool {
        self.recovery == wit::Recovery::Lost
    }
}

/// A version of a filter's code.
pub(super) struct Version {
    pub(super) traits: FilterTraits,
    pub(super) recipe: Arc<Recipe>,
    pub(super) end: Arc<VersionEnd>,
}

/// What is known of a version when nothing uses it any more.
pub(super) struct VersionEnd {
    /// No pool and no instance uses the version.
    pub(super) unused: Flag,
    /// The instance that was discarded last, for the call of `cleanup`. None if the filter does not
    /// export that.
    last: Mutex<Option<Instance>>,
    /// Who uses its instances ([`VersionInstance::set_user`]).
    users: Mutex<Vec<Weak<AtomicU64>>>,
    _counted: Counted,
}

/// The version that a reload has replaced.
pub(super) struct Replacement {
    /// Set once nothing runs it any more.
    pub(super) gone: Arc<Flag>,
    pub(super) end: Weak<VersionEnd>,
}

/// Who has an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// It is free.
    Nobody,
    /// A request of the connection with this id, which is not 0.
    Connection(u64),
    /// A call that opens or closes a connection, or that belongs to none.
    Other,
}

impl User {
    const OTHER: u64 = u64::MAX;

    fn number(self) -> u64 {
        match self {
            User::Nobody => 0,
            User::Connection(id) => id,
            User::Other => User::OTHER,
        }
    }
}

/// The users of a version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Users {
    pub(super) connections: BTreeSet<u64>,
    /// Calls run that are no requests.
    pub(super) others: bool,
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// How many connections are named.
        const NAMED: usize = 5;
        let named: Vec<String> = self.connections.iter().take(NAMED).map(u64::to_string).collect();
        let more = self.connections.len() - named.len();
        match (&named[..], more) {
            ([], _) if self.others => f.write_str("a call that opens or closes a connection"),
            ([], _) => f.write_str("nothing"),
            ([one], _) => write!(f, "connection {one}"),
            ([before @ .., last], 0) => write!(f, "connections {} and {last}", before.join(", ")),
            (named, more) => write!(f, "connections {} and {more} more", named.join(", ")),
        }
    }
}

impl VersionEnd {
    fn new(counters: &Counters) -> Arc<VersionEnd> {
        let counted = Counted::new(&counters.versions);
        counters.most_versions.fetch_max(counters.versions.load(Relaxed), Relaxed);
        let (unused, last, users) = (Flag::default(), Mutex::default(), Mutex::default());
        Arc::new(VersionEnd { unused, last, users, _counted: counted })
    }

    /// Whose calls run on its instances.
    pub(super) fn users(&self) -> Users {
        let mut users = Users::default();
        for user in lock(&self.users).iter().filter_map(Weak::upgrade) {
            match user.load(Relaxed) {
                0 => {}
                User::OTHER => users.others = true,
                id => _ = users.connections.insert(id),
            }
        }
        users
    }

    /// Takes the instance that was discarded last.
    pub(super) fn take_last(&self) -> Option<Instance> {
        lock(&self.last).take()
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        self.end.unused.set();
    }
}

/// An instance, and the version that it was made of.
pub(super) struct VersionInstance {
    pub(super) instance: Instance,
    /// Another instance may take its place at any time. It is here, and not in the version, because
    /// every request reads it.
    pub(super) is_replaceable: bool,
    version: Arc<Version>,
    /// [`User::number`].
    user: Arc<AtomicU64>,
}

impl VersionInstance {
    fn new(instance: Instance, version: &Arc<Version>) -> VersionInstance {
        let traits = &version.traits;
        let is_replaceable = !traits.loses_state_with_instance() || traits.model == ThreadModel::Parallel;
        let user = Arc::new(AtomicU64::new(User::Other.number()));
        let mut users = lock(&version.end.users);
        users.retain(|known| known.strong_count() > 0);
        users.push(Arc::downgrade(&user));
        drop(users);
        VersionInstance { instance, is_replaceable, version: Arc::clone(version), user }
    }

    /// Notes who has it.
    #[inline]
    pub(super) fn set_user(&self, user: User) {
        self.user.store(user.number(), Relaxed);
    }

    /// Whether it was made of this version.
    #[inline]
    pub(super) fn is_of(&self, version: &Arc<Version>) -> bool {
        Arc::ptr_eq(&self.version, version)
    }

    #[inline]
    pub(super) fn traits(&self) -> &FilterTraits {
        &self.version.traits
    }

    /// Drops an instance that no pool takes any more.
    pub(super) fn discard(self) {
        if self.version.traits.exported.lifecycle {
            let earlier = lock(&self.version.end.last).replace(self.instance);
            drop(earlier);
        }
    }
}

impl Version {
    /// Makes the first instance of the code, gives it the parameters and asks it for the thread
    /// model.
    ///
    /// # Errors
    /// The guest's own line, or what was wrong with it.
    pub(super) async fn first(
        shared: &Arc<FilterShared>,
        recipe: Arc<Recipe>,
        mut traits: FilterTraits,
        params: &Arc<[(String, String)]>,
    ) -> Result<(Arc<Version>, Box<VersionInstance>), ConfigError> {
        let name = &shared.name;
        let end = VersionEnd::new(&shared.counters);
        let mut instance = configured(&recipe, shared, params).await.map_err(|why| refused(name, &why))?;
        if traits.exported.threading {
            traits.model = thread_model(&mut instance).await.map_err(|why| refused(name, &why))?;
        }
        let version = Arc::new(Version { traits, recipe, end });
        let first = Box::new(VersionInstance::new(instance, &version));
        Ok((version, first))
    }

    /// A further instance, with the parameters. Its thread model has to be the first one's: calls
    /// are arranged for that.
    ///
    /// # Errors
    /// The guest's own line, or what was wrong with it.
    pub(super) async fn instance(
        self: &Arc<Version>,
        shared: &Arc<FilterShared>,
        params: &Arc<[(String, String)]>,
    ) -> Result<Box<VersionInstance>, String> {
        let mut instance = configured(&self.recipe, shared, params).await?;
        if self.traits.exported.threading {
            let (found, first) = (thread_model(&mut instance).await?, self.traits.model);
            if found != first {
                return Err(format!(
                    "its thread model is {found} in a new instance, and was {first} in the first one: it may depend on \
                     the parameters only"
                ));
            }
        }
        Ok(Box::new(VersionInstance::new(instance, self)))
    }
}

/// The error of a filter that refuses its configuration.
pub(super) fn refused(name: &str, line: &str) -> ConfigError {
    match one_line_within(line, 1000).trim() {
        "" => ConfigError::new(format!("{name}: it refuses its parameters, and does not say why")),
        line => ConfigError::new(format!("{name}: {line}")),
    }
}

/// Asks a configured instance for the thread model.
async fn thread_model(instance: &mut Instance) -> Result<ThreadModel, String> {
    match instance.serve(ThreadModelCall.setup(), None, &ThreadModelCall).await {
        Ok(Ok(answer)) => Ok(answer.into()),
        Ok(Err(error)) => Err(format!("thread-model: {error}")),
        Err(fault) => Err(format!("thread-model: {}", fault.cause)),
    }
}

/// Creates an instance and gives it the parameters.
pub(super) async fn configured(
    recipe: &Recipe,
    shared: &Arc<FilterShared>,
    params: &Arc<[(String, String)]>,
) -> Result<Instance, String> {
    let mut instance =
        recipe.instantiate(shared).await.map_err(|fault| format!("cannot be started: {}", fault.cause))?;
    let call = ConfigureCall { params };
    match instance.serve(call.setup(), None, &call).await {
        Ok(Ok(answer)) => answer?,
        Ok(Err(error)) => return Err(format!("configure: {error}")),
        Err(fault) => return Err(format!("configure: {}", fault.cause)),
    }
    instance.set_configured();
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_of_a_version_are_named_and_counted() {
        let users = |connections: &[u64], others| {
            Users { connections: connections.iter().copied().collect(), others }.to_string()
        };
        assert_eq!(users(&[7], true), "connection 7");
        assert_eq!(users(&[12, 3, 7], false), "connections 3, 7 and 12");
        assert_eq!(users(&[1, 2, 3, 4, 5], false), "connections 1, 2, 3, 4 and 5");
        assert_eq!(users(&[1, 2, 3, 4, 5, 6, 8], false), "connections 1, 2, 3, 4, 5 and 2 more");
        assert_eq!(users(&[], true), "a call that opens or closes a connection");
    }
}
