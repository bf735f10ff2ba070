//! How the host of filters is set up.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;

use super::connection::engine::CodeExtras;
use super::connection::limits::ServerLimits;
use super::connection::on_fault::OnFault;
use super::connection::profile::Profile;
use super::connection::shared::Reuse;
use super::connection::trace::Trace;
use super::load::compile::Compiler;

/// How the host of filters is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where to compile components that are not in the cache.
    pub compiler: Compiler,
    /// What a fault costs besides its own request.
    pub on_fault: OnFault,
    /// What `server.shutdown` notifies.
    pub shutdown: Option<Arc<Notify>>,
    /// The directory for compiled code. None: `$XDG_CACHE_HOME/rbdkit`, `/var/cache/rbdkit` for
    /// root or `~/.cache/rbdkit`. If it cannot be created or is not private, there is no cache,
    /// which only makes starting slower.
    pub cache_dir: Option<PathBuf>,
    /// What all filters may take together.
    pub limits: ServerLimits,
    /// What compiled code has beyond what a server needs.
    pub extras: CodeExtras,
    /// Where the calls of guests are recorded. Recording makes every call slower.
    pub trace: Option<Arc<Trace>>,
    /// Where guests are sampled.
    pub profile: Option<Arc<Profile>>,
    /// Whether an instance serves more than one call.
    pub reuse: Reuse,
}
