//! `--reload`: SIGHUP makes the server read the files of its filters again.
//!
//! Each file has a task. When the signal comes, the task waits until nothing runs the version any
//! more that the last reload replaced, has the file compiled ([`CompileHelper`]), and replaces the
//! filter's code ([`Reloader`]). Whatever fails on the way is a line in the log, and the running
//! version serves on.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::{ConfigError, hex};
use rbdkit_sandbox::{CompileLimits, Reloader, Replaced};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::compile_helper::{Answer, CompileHelper};
use crate::cli;

/// How long a reload waits for the version before the running one until the log says so.
const QUIET_WAIT: Duration = Duration::from_secs(1);

/// How many digits of a digest the log shows.
const DIGEST_DIGITS: usize = 12;

/// A filter that was loaded from a file.
pub struct ReloadedFile {
    /// The file, as an absolute path.
    pub path: PathBuf,
    /// The digest that the command line demands.
    pub demanded: Option<cli::Sha256>,
    /// The digest of the component that is running.
    pub running: cli::Sha256,
    /// Replaces the filter's code.
    pub reloader: Arc<Reloader>,
}

/// The filters that are read again.
pub struct Reloads {
    files: Vec<ReloadedFile>,
    /// What compiling a file may take.
    limits: CompileLimits,
    asked: Arc<Notify>,
}

impl Reloads {
    /// These files, in the order of the command line.
    pub fn new(files: Vec<ReloadedFile>, limits: CompileLimits) -> Reloads {
        Reloads { files, limits, asked: Arc::default() }
    }

    /// What starts a reload when it is notified.
    pub fn asked(&self) -> Arc<Notify> {
        Arc::clone(&self.asked)
    }

    /// Starts the helper, before the server confines itself. Dropping the tasks ends reloading.
    ///
    /// # Errors
    /// The helper cannot be started.
    pub fn start(self) -> io::Result<JoinSet<()>> {
        let paths: Vec<PathBuf> = self.files.iter().map(|file| file.path.clone()).collect();
        let helper = Arc::new(Mutex::new(CompileHelper::start(&paths, self.limits)?));
        let mut tasks = JoinSet::new();
        let mut wakers = Vec::new();
        for (number, file) in (0..).zip(self.files) {
            let waker = Arc::new(Notify::new());
            wakers.push(Arc::clone(&waker));
            tasks.spawn(file.reload_when(waker, number, Arc::clone(&helper)));
        }
        tasks.spawn(async move {
            loop {
                self.asked.notified().await;
                wakers.iter().for_each(|waker| waker.notify_one());
            }
        });
        Ok(tasks)
    }
}

impl ReloadedFile {
    async fn reload_when(mut self, asked: Arc<Notify>, number: u32, helper: Arc<Mutex<CompileHelper>>) {
        loop {
            asked.notified().await;
            let name = self.reloader.name();
            if timeout(QUIET_WAIT, self.reloader.until_replaced()).await.is_err() {
                let users = self.reloader.users_of_replaced().map(|users| format!(": it is used by {users}"));
                tracing::info!(
                    "reload: {name}: waits until the version before the running one is not used any more{}",
                    users.unwrap_or_default()
                );
                self.reloader.until_replaced().await;
            }
            let reloaded = self.reload(number, &helper).await;
            if let Err(why) = reloaded {
                tracing::warn!("reload: {why}; version {} serves on", short(&self.running));
            }
        }
    }

    async fn reload(&mut self, number: u32, helper: &Mutex<CompileHelper>) -> Result<(), ConfigError> {
        let path = self.reloader.label();
        let answer = helper.lock().await.compile(number, &self.running).await;
        let Answer::Compiled(component) = answer.map_err(|why| ConfigError::new(format!("{path}: {why}")))? else {
            tracing::info!("reload: {}: unchanged", self.reloader.name());
            return Ok(());
        };
        let digest: cli::Sha256 = Sha256::digest(component.component()).into();
        if self.demanded.is_some_and(|demanded| demanded != digest) {
            let digest = hex::encode(digest);
            return Err(ConfigError::new(format!(
                "{path} is not the file that was named: its SHA-256 digest is {digest}"
            )));
        }
        let Replaced { moved, draining, why } = self.reloader.reload(component).await?;
        let (earlier, now) = (short(&self.running), short(&digest));
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        tracing::info!(
            "reload: {}: {earlier} -> {now}: connections: {moved} moved, {draining} stay with the old version{why}",
            self.reloader.name()
        );
        self.running = digest;
        Ok(())
    }
}

/// The first digits of a digest.
fn short(digest: &cli::Sha256) -> String {
    let mut digits = hex::encode(digest);
    digits.truncate(DIGEST_DIGITS);
    digits
}
