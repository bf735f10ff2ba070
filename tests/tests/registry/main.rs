//! Filters in OCI registries: Debian's docker-registry, and one that lies ([`hostile`]).
//!
//! Each test starts its own registry on a free port of 127.0.0.1, with its data in a directory of
//! the test's own.

mod bundles;
mod fake;
mod hostile;
mod interop;
mod shared;
mod signed;
mod tools;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rbdkit_tests::server::{filter, program};
use rbdkit_tests::wait::{self, Lines};
use rbdkit_tests::{Launch, TempDir};

/// How long a run of the tool may take. A push compiles the component.
const LIMIT: Duration = Duration::from_secs(300);

/// A directory for the test's files, its cache and its configuration of docker.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        let dir = TempDir::new();
        std::fs::create_dir(dir.join("docker")).expect("a directory");
        Place(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        self.0.file(name, bytes)
    }

    /// Runs `rbdkit-filter` in the directory.
    pub fn tool(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program().with_file_name("rbdkit-filter"));
        command.args(arguments).current_dir(self.0.path());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("DOCKER_CONFIG", self.path("docker"));
        command.env_remove("REGISTRY_AUTH_FILE");
        // Of the one test with TLS.
        if self.path("localhost.pem").exists() {
            command.env("SSL_CERT_FILE", self.path("localhost.pem"));
        }
        wait::output_within(LIMIT, &mut command)
    }

    /// Standard output of a run that succeeds.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.tool(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The one line of a run that fails, without what is the same in all of them.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.tool(arguments);
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let line = said.strip_prefix("rbdkit-filter: error: ").and_then(|said| said.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("not one line of ours: {said:?}"));
        assert!(!line.chars().any(char::is_control) && line.len() < 1500, "{line:?}");
        line.to_owned()
    }

    /// A launch of the server with the same environment.
    pub fn launch(&self, arguments: &[&str]) -> Launch {
        let launch = Launch::new(arguments).env("XDG_CACHE_HOME", self.path("cache"));
        launch.env("DOCKER_CONFIG", self.path("docker"))
    }

    pub fn forget(&self) {
        let _ = std::fs::remove_dir_all(self.path("cache"));
    }
}

/// Debian's registry.
pub struct Registry {
    child: Child,
    /// Host and port.
    pub host: String,
}

impl Registry {
    pub(crate) fn start(place: &Place) -> Registry {
        Registry::with(place, "")
    }

    /// With a further part of its configuration.
    pub(crate) fn with(place: &Place, more: &str) -> Registry {
        let data = place.path("registry");
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:0\"}}\n{more}",
            data.display()
        );
        let config = place.file("registry.yml", config.as_bytes());
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry starts (run make setup)");
        let lines = Lines::of(child.stderr.take().expect("a pipe"));
        let host = loop {
            let line = lines.next("the registry listens").expect("the registry goes on");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split('"').next().expect("an address").to_owned();
            }
        };
        // The thread reads on, so that the registry can write its log.
        Registry { child, host }
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A reference of this registry.
    pub fn at(&self, rest: &str) -> String {
        format!("oci://{}/{rest}", self.host)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn component(name: &str) -> String {
    filter(name).to_str().expect("UTF-8").to_owned()
}

/// The value behind a label in what the tool prints.
pub fn labelled(text: &str, label: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.unwrap_or_else(|| panic!("no '{label}' in {text}")).trim().to_owned()
}
