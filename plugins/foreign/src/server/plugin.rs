//! The plugin, as the chain sees it.

use std::ffi::OsString;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rbdkit_launcher::{Launcher, Order, Program};
use rbdkit_plugin_api::text::plain;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Client, ConfigError, Errno, Error, ExportEntry, Handle, OpenArgs, Param, Plugin, Result,
    StopScope, ThreadModel, lock,
};

use tokio::sync::Notify;

use super::channel::{Answer, MAX_ANSWER, Request};
use super::handle::{ForeignHandle, Session};
use super::module::Module;
use super::running::Running;
use super::start::{NAME, START, Words};
use crate::memory::op;
use crate::wire::{Fields, Packet, kind};

/// How long the plugin may clean up. The server has its own bound, which is shorter if it stops.
const CLEANUP_TIME: Duration = Duration::from_secs(10);

/// The most exports of a list: nbdkit's limit.
const MAX_EXPORTS: u64 = 10_000;

/// See the module.
pub(crate) struct ForeignPlugin {
    /// None if the program made a plugin without loading one.
    module: Option<&'static Module>,
    words: Option<Words>,
    thread_model: ThreadModel,
    /// Starts the process anew. None before it runs.
    launcher: OnceLock<Arc<Launcher>>,
    /// The process.
    running: Mutex<Option<Arc<Running>>>,
    /// One start at a time.
    starting: tokio::sync::Mutex<()>,
    stopped: Mutex<Option<StopScope>>,
    shutdown: Arc<Notify>,
}

impl ForeignPlugin {
    pub(crate) fn new(module: Option<&'static Module>) -> ForeignPlugin {
        ForeignPlugin {
            module,
            words: module.map(|module| module.words.clone()),
            thread_model: module.map_or(ThreadModel::SerializeConnections, |module| module.max_thread_model),
            launcher: OnceLock::new(),
            running: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            stopped: Mutex::default(),
            shutdown: Arc::default(),
        }
    }

    fn module(&self) -> Result<&'static Module, ConfigError> {
        self.module.ok_or_else(|| ConfigError::new("no foreign plugin is loaded"))
    }

    fn name(&self) -> &'static str {
        self.module.map_or(NAME, |module| module.name)
    }

    /// Whether the plugin has this function.
    fn has(&self, function: &str) -> bool {
        self.module.is_some_and(|module| module.hello.has(function))
    }

    /// The process. It is started anew if it has ended.
    async fn running(&self) -> Result<Arc<Running>> {
        let known = || lock(&self.running).clone().filter(|running| !running.has_ended());
        if let Some(running) = known() {
            return Ok(running);
        }
        let _one_at_a_time = self.starting.lock().await;
        if let Some(running) = known() {
            return Ok(running);
        }
        if lock(&self.stopped).is_some() {
            return Err(Errno::Eshutdown.into());
        }
        let launcher = self.launcher.get().cloned().ok_or(Errno::Eio)?;
        let name = self.name();
        let failed = move |error: std::io::Error| {
            Error::new(Errno::Eio, format!("{name}: the plugin's process cannot be started anew: {}", plain(&error)))
        };
        let started = tokio::task::spawn_blocking(move || launcher.launch("the plugin", &Order::default()));
        let (mut ends, program) = started.await.map_err(|_| Errno::Eio)?.map_err(failed)?;
        let control = ends.pop().ok_or(Errno::Eio)?;
        tracing::debug!("{name}: the plugin's process was started anew");
        self.take_over(control, program).map_err(failed)
    }

    fn take_over(&self, control: std::os::fd::OwnedFd, program: Program) -> std::io::Result<Arc<Running>> {
        let running = Running::new(self.name(), control, program, Arc::clone(&self.shutdown))?;
        *lock(&self.running) = Some(Arc::clone(&running));
        // A stop that came meanwhile has not reached it.
        if let Some(scope) = *lock(&self.stopped) {
            running.stop(scope);
        }
        Ok(running)
    }

    /// Asks something about a client that has no handle yet.
    async fn ask_about(&self, client: &Arc<Client>, request: Request<'_>) -> Result<Answer> {
        let session = self.running().await?.connect(client)?;
        session.channel().ask(request).await
    }

    async fn open_session(&self, args: &OpenArgs) -> Result<Session> {
        let session = self.running().await?.connect(&args.client)?;
        let name = Packet::fields().text(args.exportname.as_bytes());
        let count = name.bytes().len() as u32;
        let request =
            Request { op: op::OPEN, flags: args.readonly.into(), count, payload: name.bytes(), ..Request::default() };
        session.channel().ask(request).await?.result()?;
        Ok(session)
    }
}

/// The exports of a list. None: it makes no sense.
fn exports(bytes: &[u8]) -> Option<Vec<ExportEntry>> {
    let mut fields = Fields::new(bytes);
    let count = fields.number().filter(|count| *count <= MAX_EXPORTS)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let entry = |_| {
        let (name, description) = (text(fields.text()?)?, fields.optional()?);
        Some(ExportEntry { name, description: description.and_then(text) })
    };
    (0..count).map(entry).collect()
}

impl Plugin for ForeignPlugin {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.module()?.config(param.key, param.value)?;
        if let Some(words) = &mut self.words {
            words.parameters.push((OsString::from(param.key), super::module::owned(param.value)));
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        let module = self.module()?;
        module.call(kind::CONFIG_COMPLETE)?;
        self.thread_model = module.thread_model()?;
        Ok(())
    }

    fn thread_model(&self) -> ThreadModel {
        self.thread_model
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        self.module()?.call(kind::GET_READY).map(drop)
    }

    fn set_shutdown(&mut self, shutdown: Arc<Notify>) {
        self.shutdown = shutdown;
    }

    fn begin_serving(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(async {
            let module = self.module()?;
            let ready = tokio::task::spawn_blocking(|| module.after_fork()).await;
            let (control, program) = ready.map_err(|error| ConfigError::new(error.to_string()))??;
            let words = self.words.clone().map(|words| Words { thread_model: self.thread_model.to_string(), ..words });
            let words = words.map(|words| words.to_vec()).unwrap_or_default();
            let _ = self.launcher.set(Arc::new(Launcher::new(NAME, START.1, words)));
            let failed = |error| ConfigError::new(format!("{}: {error}", self.name()));
            self.take_over(control, program).map(drop).map_err(failed)
        })
    }

    fn preconnect<'a>(&'a self, client: &'a Arc<Client>, readonly: bool) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.has("preconnect") {
                let request = Request { op: op::PRECONNECT, flags: readonly.into(), ..Request::default() };
                self.ask_about(client, request).await?.result()?;
            }
            Ok(())
        })
    }

    fn list_exports<'a>(
        &'a self,
        client: &'a Arc<Client>,
        readonly: bool,
    ) -> BoxFuture<'a, Result<Option<Vec<ExportEntry>>>> {
        Box::pin(async move {
            if !self.has("list_exports") {
                return Ok(None);
            }
            let (flags, room) = (readonly.into(), MAX_ANSWER as u32);
            let request = Request { op: op::LIST_EXPORTS, flags, room, ..Request::default() };
            let answer = self.ask_about(client, request).await?;
            answer.result()?;
            let wrong = || Error::new(Errno::Eio, format!("{}: a list of exports makes no sense", self.name()));
            exports(&answer.bytes()).map(Some).ok_or_else(wrong)
        })
    }

    fn default_export<'a>(&'a self, client: &'a Arc<Client>, readonly: bool) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            if !self.has("default_export") {
                return Ok(String::new());
            }
            let request =
                Request { op: op::DEFAULT_EXPORT, flags: readonly.into(), room: 64 << 10, ..Request::default() };
            let answer = self.ask_about(client, request).await?;
            answer.result()?;
            let wrong = |_| Error::new(Errno::Eio, format!("{}: the default export is not UTF-8", self.name()));
            String::from_utf8(answer.bytes()).map_err(wrong)
        })
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            let session = self.open_session(&args).await?;
            let names_are_disks = self.module.is_some_and(|module| module.hello.uses_export_name);
            Ok(Arc::new(ForeignHandle::new(session, self.name(), names_are_disks)) as Arc<dyn Handle>)
        })
    }

    fn before_confinement(&self) -> std::io::Result<()> {
        match self.launcher.get() {
            Some(launcher) => launcher.move_out().map(drop),
            None => Ok(()),
        }
    }

    /// The plugin's process is not confined. The server itself needs nothing.
    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn stop(&self, scope: StopScope) {
        let mut stopped = lock(&self.stopped);
        *stopped = (*stopped).max(Some(scope));
        drop(stopped);
        if let Some(running) = lock(&self.running).clone() {
            running.stop(scope);
        }
    }

    fn cleanup(&self) {
        let running = lock(&self.running).clone();
        if let Some(running) = running.filter(|running| !running.has_ended()) {
            running.clean_up(CLEANUP_TIME);
        }
    }
}
