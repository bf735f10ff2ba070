//! `dev`: builds a filter, serves with it, and at each change of the project's files builds it
//! again and reloads it into the running server.
//!
//! The server's log appears as it comes. A build that fails is shown, and the server serves on with
//! the last version that could be built. So does a server that refuses the new version.

mod server;
mod watched;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::build;
use crate::error::{Error, Result};
use crate::languages::Keep;
use crate::output::complain;
use server::DevServer;
use watched::Watched;

/// How often the project's files are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// How long the files have to stay as they are before a build. An editor that saves several files
/// takes some milliseconds.
const REST: Duration = Duration::from_millis(100);

/// Builds, serves and reloads until Control-C. `rest` is the plugin with its words and further
/// options of the server, `params` are the filter's parameters.
pub fn dev(dir: &Path, params: &[String], rest: &[OsString]) -> Result<()> {
    if let Some(wrong) = params.iter().find(|param| !param.contains('=')) {
        return Err(Error::NoParameter(wrong.clone()));
    }
    let dir = dir.canonicalize().map_err(Error::file("cannot open", dir))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(Loop::new(dir, params, rest)?.run());
    // A build that is under way ends on its own: Control-C reaches it as well.
    runtime.shutdown_background();
    result
}

struct Loop<'a> {
    dir: PathBuf,
    params: &'a [String],
    rest: &'a [OsString],
    watched: Watched,
    server: Option<DevServer>,
    /// The server was not ready when a new version was built.
    owes_reload: bool,
    /// For the server's pid file.
    private: tempfile::TempDir,
}

impl<'a> Loop<'a> {
    fn new(dir: PathBuf, params: &'a [String], rest: &'a [OsString]) -> Result<Loop<'a>> {
        let (watched, private) = (Watched::new(&dir), tempfile::TempDir::new()?);
        Ok(Loop { dir, params, rest, watched, server: None, owes_reload: false, private })
    }

    async fn run(mut self) -> Result<()> {
        let mut end = Ends { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? };
        tokio::select! {
            result = self.serve() => result?,
            () = end.next() => {}
        }
        let Some(mut server) = self.server.take() else { return Ok(()) };
        say!("ending the server");
        server.stop();
        tokio::select! {
            () = async { while server.ended().is_none() { sleep(REST).await } } => {}
            // A second signal ends the server at once.
            () = end.next() => server.stop(),
        }
        Ok(())
    }

    async fn serve(&mut self) -> Result<()> {
        self.build().await?;
        loop {
            sleep(POLL_INTERVAL).await;
            self.look_after_the_server();
            if self.watched.has_changed() {
                while {
                    sleep(REST).await;
                    self.watched.has_changed()
                } {}
                self.build().await?;
            }
        }
    }

    /// Says so if the server has ended, and asks for a reload that it could not do earlier.
    fn look_after_the_server(&mut self) {
        let Some(server) = &mut self.server else { return };
        if let Some(status) = server.ended() {
            say!("the server has ended ({status}): the next change starts it again");
            self.server = None;
        } else if self.owes_reload && server.is_ready() {
            server.reload();
            self.owes_reload = false;
        }
    }

    /// Builds until the files stay as they are, and gives the component to the server.
    async fn build(&mut self) -> Result<()> {
        loop {
            let dir = self.dir.clone();
            let built = tokio::task::spawn_blocking(move || build::build(&dir, Keep::Names))
                .await
                .map_err(std::io::Error::other)?;
            if self.watched.has_changed_during_a_build() {
                continue;
            }
            return match built {
                Ok(component) => self.give(&component),
                Err(error) => {
                    complain(&error.with_causes());
                    let serves = if self.server.is_some() { ": the last version serves on" } else { "" };
                    say!("waiting for a change{serves}");
                    Ok(())
                }
            };
        }
    }

    /// Starts the server, or makes it reload.
    fn give(&mut self, component: &Path) -> Result<()> {
        self.look_after_the_server();
        if self.server.is_some() {
            self.owes_reload = true;
            self.look_after_the_server();
        } else {
            self.owes_reload = false;
            self.server = Some(DevServer::start(component, self.rest, self.params, self.private.path())?);
        }
        Ok(())
    }
}

/// The signals that end `dev`.
struct Ends {
    int: Signal,
    term: Signal,
}

impl Ends {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}
