//! From the settings to an open file: starts `ssh`, agrees on the version of SFTP, opens the file
//! and finds its size.

use std::sync::Arc;
use std::time::Duration;

use rbdkit_launcher::Launcher;
use rbdkit_plugin_api::{Errno, Error, Result, run_blocking};
use rbdkit_stream::{ConnectionError, Input, Socket};

use crate::config::{Create, Settings};
use crate::device;
use crate::explain;
use crate::launch::{Launched, launch};
use crate::replies::header;
use crate::session::{Limits, Session};
use crate::wire::{self, Attributes, FSYNC, LIMITS, Packet, Reader, attr, kind};

/// How long opening the file may take, unless `timeout=` allows more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// The most data in one request, in bytes: OpenSSH takes 255 KiB. 252 KiB are whole pages, so the
/// server's reads and writes stay aligned.
const LARGEST_PIECE: u64 = 252 << 10;

/// The longest handle that the protocol allows, in bytes.
const MAX_HANDLE: usize = 256;

/// How the file is opened.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    ReadOnly,
    /// Falls back to reading if the server refuses writing.
    ReadWrite,
    /// Creates the file, or empties it.
    Create(Create),
}

/// A session, and the file that is open in it.
pub(crate) struct Opened {
    pub(crate) session: Arc<Session>,
    /// The server's handle for the file.
    pub(crate) handle: Vec<u8>,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) writable: bool,
}

/// Connects and opens the file.
pub(crate) async fn open(launcher: &Arc<Launcher>, settings: &Settings, access: Access) -> Result<Opened> {
    let allowed = settings.timeout.map(|seconds| Duration::from_secs(seconds.into()) * 2);
    let timeout = allowed.map_or(OPEN_TIMEOUT, |allowed| OPEN_TIMEOUT.max(allowed));
    let session = connect(launcher, settings, timeout).await?;
    let opened = tokio::time::timeout(timeout, open_file(&session, settings, access));
    let result = opened.await.unwrap_or_else(|_| Err(timed_out(settings, timeout)));
    match result {
        Ok(opened) => Ok(opened),
        Err(error) => {
            session.close(None).await;
            Err(error)
        }
    }
}

fn timed_out(settings: &Settings, timeout: Duration) -> Error {
    Error::new(Errno::Etimedout, format!("ssh: {}: no answer within {} s", settings.host, timeout.as_secs()))
}

async fn connect(launcher: &Arc<Launcher>, settings: &Settings, timeout: Duration) -> Result<Arc<Session>> {
    let Launched { socket, program, stderr } = launch(launcher, settings).await?;
    let mut input = Input::new(Arc::clone(&socket));
    let greeted = tokio::time::timeout(timeout, greet(&socket, &mut input)).await;
    let problem = match greeted {
        Ok(Ok(fsync)) => {
            stderr.connected();
            program.release();
            return Ok(Session::start(socket, input, Some(program), settings.host.clone(), fsync));
        }
        Ok(Err(broken)) => Some(broken),
        Err(_elapsed) => None,
    };
    // ssh ends when its socket is closed.
    socket.shut();
    let ended = run_blocking(move || {
        // How it ends does not matter: what it printed says what was wrong.
        let _ = program.end();
        Ok(())
    });
    match problem {
        // What ssh printed explains more than that the connection ended.
        Some(broken) => {
            let printed = stderr.last().await;
            ended.await?;
            match printed.trim().is_empty() {
                true => Err(Error::new(Errno::Eio, format!("ssh: {}: {broken}", settings.host))),
                false => Err(explain::error(settings, &printed)),
            }
        }
        None => {
            ended.await?;
            Err(timed_out(settings, timeout))
        }
    }
}

/// Agrees on the version. Answers whether the server has the fsync extension.
pub(crate) async fn greet(socket: &Socket, input: &mut Input) -> Result<bool, ConnectionError> {
    socket.send(&Packet::new(kind::INIT).u32(3).finish(0), &[]).await?;
    let (kind, length) = header(input).await?;
    let wrong = || ConnectionError::new("this is not an SFTP server: it does not begin with its version");
    if kind != kind::VERSION {
        return Err(wrong());
    }
    let body = input.vec(length as usize).await?;
    let mut reader = Reader(&body);
    let version = reader.u32().ok_or_else(wrong)?;
    if version != 3 {
        return Err(ConnectionError::new(format!("the server speaks version {version} of SFTP, not 3")));
    }
    let mut fsync = false;
    while let Some((name, value)) = reader.string().zip(reader.string()) {
        fsync |= name == FSYNC && value == b"1";
    }
    Ok(fsync)
}

/// Opens the file in a session.
pub(crate) async fn open_file(session: &Arc<Session>, settings: &Settings, access: Access) -> Result<Opened> {
    session.set_limits(ask_limits(session).await?);
    let what = format!("cannot open {}", settings.path.to_string_lossy());
    let path = settings.path.as_encoded_bytes();
    let (handle, writable) = open_path(session, &what, path, access).await?;
    if let Access::Create(create) = access {
        let request = |id| Packet::request(kind::FSETSTAT, id).string(&handle).u32(attr::SIZE).u64(create.size);
        let reply = session.call(request).await?;
        session.expect_success(&format!("cannot make the file {} bytes long", create.size), reply)?;
    }
    let size = size(session, &what, &handle).await?;
    Ok(Opened { session: Arc::clone(session), handle, size, writable })
}

/// The server's handle for the file, and whether it is open for writing.
async fn open_path(session: &Session, what: &str, path: &[u8], access: Access) -> Result<(Vec<u8>, bool)> {
    const READ_WRITE: u32 = wire::open::READ | wire::open::WRITE;
    match access {
        Access::ReadOnly => Ok((send_open(session, what, path, wire::open::READ, None).await?, false)),
        Access::Create(create) => {
            let flags = READ_WRITE | wire::open::CREATE | wire::open::TRUNCATE;
            Ok((send_open(session, what, path, flags, Some(create.mode)).await?, true))
        }
        Access::ReadWrite => match send_open(session, what, path, READ_WRITE, None).await {
            // As in the file plugin, a file that cannot be written is served read-only.
            Err(error) if error.errno() == Errno::Eperm => {
                Ok((send_open(session, what, path, wire::open::READ, None).await?, false))
            }
            opened => Ok((opened?, true)),
        },
    }
}

async fn send_open(session: &Session, what: &str, path: &[u8], flags: u32, mode: Option<u32>) -> Result<Vec<u8>> {
    let reply = session.call(|id| {
        let packet = Packet::request(kind::OPEN, id).string(path).u32(flags);
        match mode {
            Some(mode) => packet.u32(attr::PERMISSIONS).u32(mode),
            None => packet.u32(0),
        }
    });
    let body = session.expect(what, kind::HANDLE, reply.await?)?;
    match Reader(&body).string().filter(|handle| handle.len() <= MAX_HANDLE) {
        Some(handle) => Ok(handle.to_owned()),
        None => Err(session.protocol_error(ConnectionError::new("the server sent a malformed handle"))),
    }
}

/// The size of an open file or block device, in bytes.
async fn size(session: &Arc<Session>, what: &str, handle: &[u8]) -> Result<u64> {
    const KIND: u32 = 0o170_000;
    const DIRECTORY: u32 = 0o040_000;
    const BLOCK_DEVICE: u32 = 0o060_000;
    let reply = session.call(|id| Packet::request(kind::FSTAT, id).string(handle)).await?;
    let body = session.expect(what, kind::ATTRS, reply)?;
    let attributes = Attributes::read(Reader(&body))
        .ok_or_else(|| session.protocol_error(ConnectionError::new("the server sent malformed attributes")))?;
    let refuse = |why: &str| Err(Error::new(Errno::Eio, format!("ssh: {}: {what}: {why}", session.host())));
    let kind = attributes.mode.map(|mode| mode & KIND);
    if kind == Some(DIRECTORY) {
        return refuse("it is a directory");
    }
    let size = match attributes.size {
        Some(0) if kind == Some(BLOCK_DEVICE) => {
            Some(device::measure(session, handle).await.map_err(|error| session.error(what, &error))?)
        }
        size => size,
    };
    match size {
        Some(size) if size <= i64::MAX as u64 => Ok(size),
        Some(_) => refuse("its size is beyond 2^63 - 1"),
        None => refuse("the server does not tell its size"),
    }
}

/// How long requests may be. A server that does not know the question has the usual limits.
async fn ask_limits(session: &Session) -> Result<Limits> {
    let reply = session.call(|id| Packet::request(kind::EXTENDED, id).string(LIMITS)).await?;
    if reply.kind != kind::EXTENDED_REPLY {
        return Ok(Limits::USUAL);
    }
    let mut reader = Reader(&reply.body);
    let limits = reader.u64().and_then(|_packet| reader.u64().zip(reader.u64()));
    let (read, write) =
        limits.ok_or_else(|| session.protocol_error(ConnectionError::new("the server sent malformed limits")))?;
    // 0 is "not told".
    let piece = |limit: u64, usual| match limit {
        0..=4095 => usual,
        limit => limit.min(LARGEST_PIECE) as u32,
    };
    Ok(Limits { read: piece(read, Limits::USUAL.read), write: piece(write, Limits::USUAL.write) })
}
