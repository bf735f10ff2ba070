//! The plugin against the slow server, which does to it what real servers do and worse.

use std::ffi::OsStr;
use std::future::Future;
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Client, Fill, Flags, Peer, Span};
use rbdkit_slow_server::{Content, Rules, SlowServer};

use super::*;

mod bounds;
mod faults;
mod habits;
mod parameters;
mod requests;
mod routes;
mod secrets;
mod tokens;

/// How long a test waits for the plugin before it fails.
const DEADLINE: Duration = Duration::from_secs(120);

const SIZE: u64 = (1 << 20) + 777;

const SEED: u64 = 1;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(async { tokio::time::timeout(DEADLINE, future).await });
    result.expect("the requests are answered before the deadline")
}

fn configured(params: &[(&str, &str)]) -> Result<Curl, ConfigError> {
    let mut plugin = Curl::default();
    for (key, value) in params {
        plugin.config(Param { key, value: OsStr::new(value) })?;
    }
    plugin.config_complete()?;
    Ok(plugin)
}

fn serving(params: &[(&str, &str)]) -> Curl {
    let mut plugin = configured(params).unwrap();
    plugin.after_fork().unwrap();
    plugin
}

async fn open(plugin: &Curl, readonly: bool) -> Result<Arc<dyn Handle>> {
    let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
    plugin.open(OpenArgs { readonly, exportname: String::new(), client }).await
}

async fn refused(plugin: &Curl) -> String {
    open(plugin, true).await.err().expect("a refusal").to_string()
}

/// Reads into the middle of a larger buffer.
async fn read(handle: &dyn Handle, offset: u64, length: u32) -> Result<Vec<u8>> {
    let span = Span::new(7, length);
    let (mut buffer, result) = handle.pread(Buffer::new(length + 9), span, offset).await;
    result?;
    assert!(
        buffer.fills().filter(|(run, _)| run.at < 7 || run.at >= 7 + length).all(|(_, fill)| fill == Fill::Unfilled)
    );
    Ok(buffer.bytes(span).to_vec())
}

async fn write(handle: &dyn Handle, offset: u64, bytes: Vec<u8>) -> Result<()> {
    let buffer = Buffer::from_vec(bytes);
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, Flags::NONE).await.1
}

fn pattern(offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    Content::Pattern { seed: SEED, size: SIZE }.read(&mut bytes, offset).unwrap();
    bytes
}

fn server(rules: Rules) -> SlowServer {
    SlowServer::start(Content::Pattern { seed: SEED, size: SIZE }, rules, None).unwrap()
}

fn plain() -> SlowServer {
    server(Rules::default())
}

fn url(server: &SlowServer) -> String {
    format!("{}/disk.img", server.url())
}

/// A plugin for this server with more parameters.
fn plugin_for(server: &SlowServer, params: &[(&str, &str)]) -> Curl {
    let url = url(server);
    let mut all = vec![("url", url.as_str())];
    all.extend(params);
    serving(&all)
}

/// Waits until the condition holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn reads_right(plugin: &Curl) {
    let handle = open(plugin, true).await.unwrap();
    assert_eq!(handle.get_size().await.unwrap(), SIZE);
    assert_eq!(read(&*handle, 1000, 5000).await.unwrap(), pattern(1000, 5000));
    handle.close().await;
}
