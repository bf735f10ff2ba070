use std::ffi::OsStr;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Client, Flags, Handle, OpenArgs, Param, Peer, Plugin, Result, Span};

use fake_server::{Server, serve};

mod extended;
mod fake_server;
mod handshake;
mod hostile_replies;
mod parameters;
mod requests;
mod stopping;

/// How long a test waits for the other side before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn plugin(params: &[(&str, &OsStr)]) -> Result<Box<dyn Plugin>, String> {
    let mut plugin = (crate::INFO.make)();
    for (key, value) in params {
        plugin.config(Param { key, value }).map_err(|error| error.to_string())?;
    }
    plugin.config_complete().map_err(|error| error.to_string())?;
    Ok(plugin)
}

fn at(place: &Path) -> Box<dyn Plugin> {
    plugin(&[("socket", place.as_os_str())]).unwrap()
}

fn client() -> Arc<Client> {
    Arc::new(Client::new(1, Peer::Unix, None, false))
}

async fn open(plugin: &dyn Plugin, export: &str) -> Result<Arc<dyn Handle>> {
    plugin.open(OpenArgs { readonly: false, exportname: export.to_owned(), client: client() }).await
}

/// Opens the fake server's export.
async fn handle(script: impl FnOnce(&mut Server) + Send + 'static) -> (Arc<dyn Handle>, JoinHandle<()>) {
    let (place, thread) = serve(script);
    (open(&*at(&place.path), "").await.unwrap(), thread)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(async { tokio::time::timeout(DEADLINE, future).await });
    result.expect("the client's requests are answered before the deadline")
}

async fn pread(handle: &dyn Handle, offset: u64, length: u32) -> Result<Vec<u8>> {
    let (mut buffer, result) = handle.pread(Buffer::new(length + 8), Span::new(4, length), offset).await;
    assert_eq!(buffer.len(), length + 8, "the request's own buffer");
    result.map(|()| buffer.bytes(Span::new(4, length)).to_vec())
}

async fn pwrite(handle: &dyn Handle, offset: u64, bytes: &[u8], flags: Flags) -> Result<()> {
    let buffer = Buffer::from_vec(bytes.to_vec());
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, flags).await.1
}
