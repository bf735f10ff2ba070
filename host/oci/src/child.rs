//! The child process that talks to registries, and the connection to it.
//!
//! A registry may be hostile, and what it sends goes through libcurl and a TLS library. So the
//! program starts itself again with a hidden argument. The child's processor time, memory and
//! descriptors are limited (rlimits), its environment has only what names proxies and
//! certificates, and it can open nothing but the files of name resolution and certificates
//! ([`rbdkit_confine`]). It gets the credentials of this registry and of no other. The parent
//! believes the child nothing: it compares all digests and signatures itself. However the child
//! ends, the parent has what it asked for, or one line that says why not.

use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rbdkit_plugin_api::{AccessRights, Network, find_own_program, own_program};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
    setrlimit,
};

use crate::credentials::{self, Found};
use crate::digest::Digest;
use crate::error::{Error, shown};
use crate::frame::{self, PlainHttp, Reply, Request, Session};
use crate::manifest::{Blob, MANIFEST, MAX_COMPONENT_BYTES, MAX_MANIFEST_BYTES, referrers_tag};
use crate::reference::Reference;
use crate::registry::{self, Registry};

/// The hidden argument.
const ARGUMENT: &str = "--rbdkit-registry";

/// The variables that the child keeps: those of proxies, and of the certificates that are trusted.
const VARIABLES: [&str; 9] = [
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Seconds of processor time. TLS and copying of 64 MiB take about one.
const MAX_CPU_SECONDS: u64 = 60;

/// Bytes of address space: the libraries, and a component three times.
const MAX_MEMORY: u64 = 1 << 30;

/// Descriptors: the pipes, some connections, files of name resolution.
const MAX_DESCRIPTORS: u64 = 64;

/// How long the child may take after the deadline to say that it has passed.
const GRACE: Duration = Duration::from_secs(2);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
}

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Whether TLS may be missing on other machines.
    pub plain_http: PlainHttp,
    /// How long everything may take.
    pub timeout: Duration,
}

impl Default for Access {
    /// Five minutes: 64 MiB at 220 KB/s.
    fn default() -> Access {
        Access { plain_http: PlainHttp::Refused, timeout: Duration::from_secs(300) }
    }
}

/// A connection to a registry, through the child.
pub(crate) struct Connection {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    timeout: Duration,
    timed_out: Arc<AtomicBool>,
    /// Dropped with the connection, which ends the thread that watches the deadline.
    _watched: mpsc::Sender<()>,
    host: String,
    hint: &'static str,
}

impl Connection {
    /// Starts the child.
    ///
    /// # Errors
    /// It cannot be started, the credentials cannot be read, or the registry cannot be reached.
    pub(crate) fn open(reference: &Reference, access: Access, purpose: Purpose) -> Result<Connection, Error> {
        let (credentials, hint) = match credentials::find(&reference.host)? {
            Found::Credentials(credentials) => (Some(credentials), ""),
            Found::Nothing => (None, ""),
            Found::Helper => (None, " (a helper program has them, which is not started; put them into 'auths')"),
        };
        let session = Session {
            host: reference.host.clone(),
            name: reference.name.clone(),
            push: purpose == Purpose::Push,
            plain_http: access.plain_http,
            credentials,
            timeout_ms: u64::try_from(access.timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let program = own_program().map_err(Error::child("cannot start a process for the registry"))?;
        let mut child = Command::new(program)
            .arg(ARGUMENT)
            .env_clear()
            .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::child("cannot start a process for the registry"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Child("the process for the registry has no pipes".into()));
        };
        let timed_out = Arc::new(AtomicBool::new(false));
        let watched = watch(&child, access.timeout.saturating_add(GRACE), &timed_out);
        let mut connection = Connection {
            child,
            input,
            output: BufReader::new(output),
            timeout: access.timeout,
            timed_out,
            _watched: watched,
            host: reference.host.clone(),
            hint,
        };
        match connection.ask(&Request::Open(session), &[], 0)? {
            (Reply::Done, _) => Ok(connection),
            _ => Err(connection.confused()),
        }
    }

    /// A manifest by its tag or digest. None if there is none.
    ///
    /// # Errors
    /// The registry does not give it, or gives something else.
    pub(crate) fn manifest(&mut self, which: &str) -> Result<Option<Vec<u8>>, Error> {
        let (answer, bytes) = self.ask(&Request::Manifest(which.to_owned()), &[], MAX_MANIFEST_BYTES as u64)?;
        let (media_type, digest) = match answer {
            Reply::Found { media_type, digest } => (media_type, digest),
            Reply::Missing => return Ok(None),
            _ => return Err(self.confused()),
        };
        let media_type = media_type.unwrap_or_default();
        if registry::media_type(&media_type) != MANIFEST {
            let (host, found) = (&self.host, shown(&media_type));
            return Err(Error::registry(format!(
                "{host} answers with '{found}' where the manifest of a component should be"
            )));
        }
        let found = Digest::of(&bytes);
        match digest.filter(|digest| Digest::parse(digest) != Some(found)) {
            Some(said) => {
                let said = shown(&said);
                Err(Error::content(format!("{} says that the manifest is {said}, and sends {found}", self.host)))
            }
            None => Ok(Some(bytes)),
        }
    }

    /// The index of the manifests that are about the one with this digest. None if there is none.
    ///
    /// # Errors
    /// The registry does not give it, or gives something else.
    pub(crate) fn referrers(&mut self, manifest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let request = Request::Referrers(manifest.to_string(), referrers_tag(manifest));
        match self.ask(&request, &[], MAX_MANIFEST_BYTES as u64)? {
            (Reply::Found { .. }, bytes) => Ok(Some(bytes)),
            (Reply::Missing, _) => Ok(None),
            _ => Err(self.confused()),
        }
    }

    /// A blob. Its size and digest have been checked.
    ///
    /// # Errors
    /// The registry does not give it, or gives something else.
    pub(crate) fn blob(&mut self, blob: &Blob) -> Result<Vec<u8>, Error> {
        let limit = blob.size.min(MAX_COMPONENT_BYTES);
        let (answer, bytes) = self.ask(&Request::Blob(blob.digest.to_string(), limit), &[], limit)?;
        let Reply::Found { .. } = answer else { return Err(self.confused()) };
        let (found, host) = (Blob::of(&bytes), &self.host);
        if found.size != blob.size {
            let (size, right) = (found.size, blob.size);
            return Err(Error::content(format!("{host} sends {size} bytes where the manifest says {right}")));
        }
        if found.digest != blob.digest {
            let (digest, right) = (found.digest, blob.digest);
            return Err(Error::content(format!("{host} sends {digest} where the manifest says {right}")));
        }
        Ok(bytes)
    }

    /// Puts a blob.
    ///
    /// # Errors
    /// The registry refuses it.
    pub(crate) fn put_blob(&mut self, bytes: &[u8]) -> Result<Blob, Error> {
        let blob = Blob::of(bytes);
        match self.ask(&Request::PutBlob(blob.digest.to_string()), bytes, 0)? {
            (Reply::Done, _) => Ok(blob),
            _ => Err(self.confused()),
        }
    }

    /// Puts a manifest under a tag, and looks whether it is there.
    ///
    /// # Errors
    /// The registry refuses it, or does not keep it.
    pub(crate) fn put_manifest(&mut self, tag: &str, bytes: &[u8]) -> Result<Digest, Error> {
        let (answer, _) = self.ask(&Request::PutManifest(tag.to_owned()), bytes, 0)?;
        let Reply::Done = answer else { return Err(self.confused()) };
        if self.manifest(tag)?.is_none_or(|kept| kept != bytes) {
            return Err(Error::registry(format!("{} took the manifest, but does not have it under {tag}", self.host)));
        }
        Ok(Digest::of(bytes))
    }

    fn ask(&mut self, request: &Request, bytes: &[u8], limit: u64) -> Result<(Reply, Vec<u8>), Error> {
        let answer = frame::write(&mut self.input, request, bytes).and_then(|()| frame::read(&mut self.output, limit));
        match answer {
            Ok(Some((Reply::Failed(why), _))) => {
                Err(Error::registry(format!("{}{}", shown_line(&why), self.hint_for(&why))))
            }
            Ok(Some(answer)) => Ok(answer),
            _ if self.timed_out.load(Ordering::Relaxed) => {
                Err(Error::registry(format!("{} takes longer than {:?}", self.host, self.timeout)))
            }
            _ => Err(Error::Child(format!(
                "the process that talks to {} has ended: it crashed, or needed more than {MAX_CPU_SECONDS} s of \
                 processor time or {} MiB of memory",
                self.host,
                MAX_MEMORY >> 20
            ))),
        }
    }

    fn hint_for(&self, why: &str) -> &'static str {
        if why.ends_with("has no credentials for it") { self.hint } else { "" }
    }

    fn confused(&self) -> Error {
        Error::Child(format!("the process that talks to {} answers something else", self.host))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of the child's. It has a registry's words in it, and two addresses.
fn shown_line(line: &str) -> String {
    rbdkit_plugin_api::text::one_line_within(line, 1000)
}

/// Ends the child if the returned sender still exists after this time.
fn watch(child: &Child, timeout: Duration, timed_out: &Arc<AtomicBool>) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel::<()>();
    let process = Pid::from_raw(child.id().cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let timed_out = Arc::clone(timed_out);
    let wait = move |process: OwnedFd| {
        if receiver.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout) {
            timed_out.store(true, Ordering::Relaxed);
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    };
    if let Some(process) = process {
        std::thread::spawn(move || wait(process));
    }
    sender
}

/// A program calls this before anything else. If the program was started as the child, this serves
/// its parent, and the program has to exit with the returned status.
pub fn serve_if_asked() -> Option<ExitCode> {
    find_own_program();
    if std::env::args_os().nth(1)? != ARGUMENT {
        return None;
    }
    std::panic::set_hook(Box::new(|_| {}));
    Some(if serve().is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The child's part. None if it cannot go on.
fn serve() -> Option<()> {
    // A transfer would go on to its deadline without the parent.
    set_parent_process_death_signal(Some(Signal::KILL)).ok()?;
    limit(Resource::Cpu, MAX_CPU_SECONDS)?;
    limit(Resource::As, MAX_MEMORY)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, MAX_DESCRIPTORS)?;
    let certificates = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    // A registry may redirect to any port.
    let reach = AccessRights { read: certificates.collect(), network: Network::Any, ..AccessRights::default() };
    rbdkit_confine::confine_child(&reach.with_name_lookup().with_certificates());
    curl::init();
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut registry = None;
    while let Some((request, bytes)) = frame::read(&mut input, MAX_COMPONENT_BYTES).ok()? {
        let (answer, bytes) = match answer(&mut registry, request, &bytes) {
            Ok(answer) => answer,
            Err(why) => (Reply::Failed(why), Vec::new()),
        };
        frame::write(&mut output, &answer, &bytes).ok()?;
    }
    Some(())
}

fn answer(registry: &mut Option<Registry>, request: Request, bytes: &[u8]) -> Result<(Reply, Vec<u8>), String> {
    if let Request::Open(session) = request {
        *registry = Some(Registry::open(session)?);
        return Ok((Reply::Done, Vec::new()));
    }
    let registry = registry.as_mut().ok_or("no registry is named")?;
    let found = |answer: crate::http::Answer| {
        let header = |name: &str| answer.header(name).map(shown);
        let (media_type, digest) = (header("content-type"), header("docker-content-digest"));
        (Reply::Found { media_type, digest }, answer.body)
    };
    match request {
        Request::Open(_) => Err("a registry is named already".into()),
        Request::Manifest(which) => Ok(registry.manifest(&which)?.map_or((Reply::Missing, Vec::new()), found)),
        Request::Referrers(digest, tag) => {
            Ok(registry.referrers(&digest, &tag)?.map_or((Reply::Missing, Vec::new()), found))
        }
        Request::Blob(digest, size) => {
            let size = usize::try_from(size).map_err(|_| "the blob is too large")?;
            registry.blob(&digest, size).map(found)
        }
        Request::PutBlob(digest) => registry.put_blob(&digest, bytes).map(|()| (Reply::Done, Vec::new())),
        Request::PutManifest(tag) => registry.put_manifest(&tag, bytes).map(|()| (Reply::Done, Vec::new())),
    }
}

fn limit(resource: Resource, limit: u64) -> Option<()> {
    // An existing lower limit stays.
    let limit = rustix::process::getrlimit(resource).maximum.map_or(limit, |there| there.min(limit));
    setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) }).ok()
}
