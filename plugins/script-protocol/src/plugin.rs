//! The calls that concern all connections.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use rbdkit_plugin_api::{
    BoxFuture, Client, ConfigError, DISK_FUNCTIONS, Errno, Error, ExportEntry, Handle, OpenArgs, Param, Plugin, Result,
    StopScope, ThreadModel, run_abandonable,
};
use tokio::sync::Notify;

use crate::answers;
use crate::handle::ScriptHandle;
use crate::scripts::{Caller, Scripts};
use crate::status::{Failure, MAX_KNOWN_STATUS};

/// How a command line becomes [`Scripts`]: the part in which the sh and the eval plugin differ.
pub trait Configure: Default + Send + Sync + 'static {
    /// Takes one `key=value`, a parameter of the plugin or of the scripts.
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError>;

    /// The scripts so far; none if there is no program yet.
    fn scripts(&self) -> Option<&Scripts>;

    /// The end of the configuration.
    fn complete(self) -> Result<Scripts, ConfigError>;
}

/// A plugin that is run by scripts.
pub enum ScriptPlugin<C> {
    /// Until the configuration is complete.
    Configuring {
        /// The parameters so far.
        configure: C,
        /// What is notified to end the server.
        shutdown: Arc<Notify>,
    },
    /// From then on.
    Complete {
        /// Shared with every connection.
        scripts: Arc<Scripts>,
        /// The thread model that the script asks for.
        model: ThreadModel,
    },
}

impl<C: Configure> Default for ScriptPlugin<C> {
    fn default() -> Self {
        ScriptPlugin::Configuring { configure: C::default(), shutdown: Arc::default() }
    }
}

impl<C: Configure> ScriptPlugin<C> {
    fn scripts(&self) -> Option<&Scripts> {
        match self {
            ScriptPlugin::Configuring { configure, .. } => configure.scripts(),
            ScriptPlugin::Complete { scripts, .. } => Some(scripts),
        }
    }

    /// The scripts after the configuration.
    fn running(&self) -> Result<&Arc<Scripts>> {
        match self {
            ScriptPlugin::Complete { scripts, .. } => Ok(scripts),
            ScriptPlugin::Configuring { .. } => Err(Error::new(Errno::Enxio, "used before it was configured")),
        }
    }

    /// Runs a call on a thread that may block. Its programs are killed if the answer is dropped.
    fn with_scripts<T: Send + Unpin + 'static>(
        &self,
        call: impl FnOnce(Caller<'_>) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let scripts = self.running().map(Arc::clone);
        Box::pin(async move {
            let scripts = scripts?;
            run_abandonable(move |abandoned| call(scripts.caller_until(abandoned))).await
        })
    }

    /// A method without arguments whose failure ends the start.
    fn start(&self, method: &str) -> Result<(), ConfigError> {
        if let Some(scripts) = self.scripts() {
            scripts.caller().call_plain(method, &[])?;
        }
        Ok(())
    }
}

/// The thread model of a script without a thread_model method, or whose method prints something
/// else.
const DEFAULT_MODEL: ThreadModel = ThreadModel::SerializeAllRequests;

fn ask_thread_model(scripts: &Scripts) -> Result<ThreadModel, Failure> {
    let Some(text) = scripts.read("thread_model", &[])? else { return Ok(DEFAULT_MODEL) };
    let word = answers::line(&text);
    Ok(ThreadModel::parse(&word.to_ascii_lowercase()).unwrap_or_else(|| {
        tracing::debug!("{}: ignoring unrecognized thread model: {word}", scripts.label("thread_model"));
        DEFAULT_MODEL
    }))
}

/// A boolean argument of a script.
fn word(value: bool) -> &'static OsStr {
    OsStr::new(if value { "true" } else { "false" })
}

impl<C: Configure> Plugin for ScriptPlugin<C> {
    fn set_shutdown(&mut self, ends: Arc<Notify>) {
        if let ScriptPlugin::Configuring { shutdown, .. } = self {
            *shutdown = ends;
        }
    }

    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match self {
            ScriptPlugin::Configuring { configure, .. } => configure.config(param),
            ScriptPlugin::Complete { .. } => Err(param.error("comes too late")),
        }
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        let ScriptPlugin::Configuring { configure, shutdown } = self else { return Ok(()) };
        let mut scripts = std::mem::take(configure).complete()?;
        scripts.set_shutdown(Arc::clone(shutdown));
        scripts.caller().call_plain("config_complete", &[])?;
        let model = ask_thread_model(&scripts)?;
        scripts.set_thread_model(model);
        *self = ScriptPlugin::Complete { scripts: Arc::new(scripts), model };
        Ok(())
    }

    fn thread_model(&self) -> ThreadModel {
        match self {
            ScriptPlugin::Complete { model, .. } => *model,
            // For `--dump-plugin`: without a program there is no constraint.
            ScriptPlugin::Configuring { configure, .. } => match configure.scripts() {
                Some(scripts) => ask_thread_model(scripts).unwrap_or(DEFAULT_MODEL),
                None => ThreadModel::Parallel,
            },
        }
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        self.start("get_ready")
    }

    fn after_fork(&mut self) -> Result<(), ConfigError> {
        self.start("after_fork")
    }

    fn preconnect(&self, _: &Arc<Client>, readonly: bool) -> BoxFuture<'_, Result<()>> {
        self.with_scripts(move |scripts| {
            scripts.call_plain("preconnect", &[word(readonly)])?;
            Ok(())
        })
    }

    fn list_exports(&self, client: &Arc<Client>, readonly: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        let tls = client.is_tls();
        self.with_scripts(move |scripts| {
            let list = scripts.read("list_exports", &[word(readonly), word(tls)])?;
            let exports = |text: Vec<u8>| answers::exports(&text).map_err(|wrong| scripts.fault("list_exports", wrong));
            Ok(list.map(exports).transpose()?)
        })
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> BoxFuture<'_, Result<String>> {
        let tls = client.is_tls();
        self.with_scripts(move |scripts| {
            let Some(text) = scripts.read("default_export", &[word(readonly), word(tls)])? else {
                return Ok(String::new());
            };
            let exports = answers::exports(&text).map_err(|wrong| scripts.fault("default_export", wrong))?;
            Ok(exports.into_iter().next().map(|entry| entry.name).unwrap_or_default())
        })
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let all = self.running().map(Arc::clone);
        self.with_scripts(move |scripts| {
            let words = [word(args.readonly), OsStr::new(&args.exportname), word(args.client.is_tls())];
            let scripts = scripts.for_client(&args.client);
            let mut handle = scripts.read("open", &words)?.unwrap_or_default();
            if handle.last() == Some(&b'\n') {
                handle.pop();
            }
            let handle = OsString::from_vec(handle);
            tracing::debug!("handle: {handle:?}");
            Ok(Arc::new(ScriptHandle::new(all?, handle, &args)) as Arc<dyn Handle>)
        })
    }

    /// The highest exit status with a meaning of its own, and the lines that the script prints.
    fn optional_functions(&self) -> Vec<&'static str> {
        let own = [
            "load",
            "unload",
            "dump_plugin",
            "thread_model",
            "get_ready",
            "after_fork",
            "preconnect",
            "list_exports",
            "default_export",
            "close",
            "export_description",
            "block_size",
            "can_write",
            "can_flush",
            "is_rotational",
        ];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        let mut lines = vec![("max_known_status".to_string(), MAX_KNOWN_STATUS.to_string())];
        let Some(scripts) = self.scripts() else { return lines };
        match scripts.read("dump_plugin", &[]) {
            Ok(Some(text)) => {
                let text = answers::line(&text);
                let pairs = text.lines().filter_map(|line| line.split_once('='));
                lines.extend(pairs.map(|(key, value)| (key.to_string(), value.to_string())));
            }
            Ok(None) => {}
            Err(failure) => tracing::error!("{failure}"),
        }
        lines
    }

    fn stop(&self, scope: StopScope) {
        if let Some(scripts) = self.scripts() {
            scripts.stop(scope);
        }
    }

    fn cleanup(&self) {
        if let Some(scripts) = self.scripts() {
            scripts.unload();
        }
    }
}
