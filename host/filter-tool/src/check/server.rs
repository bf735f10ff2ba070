//! A server in this process: the filter over the disk, with its connections.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rbdkit_chain::{Chain, Hop};
use rbdkit_plugin_api::{Client, Peer, ThreadModel};
use rbdkit_sandbox::{CodeExtras, Host, Options, Reuse};
use tokio::time::{Instant, timeout};

use super::disk::{self, Disk};
use super::generate::Export;
use super::steps::CONNECTIONS;
use crate::chain::{make_ready, open_for, over};
use crate::component::{self, Trust};
use crate::error::{Error, Result};

/// The disk below the filter, if the parameters give no other size: room for a request of 32 MiB
/// at several offsets.
const SIZE: &str = "48M";

/// The most bytes of an export that are tested, from its beginning.
const MAX_TESTED: u64 = 64 << 20;

/// The filter, as often as it is started.
pub struct Filter {
    host: Arc<Host>,
    label: String,
    bytes: Vec<u8>,
    params: Vec<String>,
}

impl Filter {
    /// Fetches the component.
    ///
    /// # Errors
    /// It cannot be read or pulled, or WebAssembly does not run here.
    pub fn fetch(file: &Path, trust: &Trust, params: &[String]) -> Result<Filter> {
        let bytes = trust.fetch(file)?.bytes;
        let host = component::host(Options { extras: CodeExtras::Lines, ..Options::default() })?;
        Ok(Filter { host, label: file.display().to_string(), bytes, params: params.to_vec() })
    }

    /// The same filter, which gets a fresh instance for each call.
    ///
    /// # Errors
    /// WebAssembly does not run here.
    pub fn with_fresh_instances(&self) -> Result<Filter> {
        let options = Options { extras: CodeExtras::Lines, reuse: Reuse::Nothing, ..Options::default() };
        let host = component::host(options)?;
        Ok(Filter { host, label: self.label.clone(), bytes: self.bytes.clone(), params: self.params.clone() })
    }

    /// Whether it says that its instances hold no state.
    ///
    /// # Errors
    /// It is refused.
    pub fn is_stateless(&self) -> Result<bool> {
        Ok(self.host.load(&self.label, &self.bytes)?.description().recovery == "stateless")
    }

    /// What it exports that no host calls.
    ///
    /// # Errors
    /// It is refused.
    pub fn check_exports(&self) -> Result<()> {
        match self.host.load(&self.label, &self.bytes)?.unknown_exports() {
            [] => Ok(()),
            unknown => Err(Error::Found(unknown.join("; "))),
        }
    }
}

/// A running server.
pub struct Server {
    host: Arc<Host>,
    chain: Arc<Chain>,
    /// The filter's name in its description.
    pub name: String,
    /// How long opening, finalizing and cleaning up may take.
    patience: Duration,
    connections: [Option<Connection>; CONNECTIONS as usize],
    opened: u64,
}

/// A connection.
pub struct Connection {
    pub hop: Arc<Hop>,
    client: Arc<Client>,
}

/// Why a server does not do what it should.
#[derive(Debug)]
pub enum Trouble {
    /// It does not come to an end: this call.
    Hangs(&'static str),
    /// It fails.
    Fails(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Fails(error)
    }
}

impl Server {
    /// Loads the filter, gives it its parameters, and makes it ready over the disk.
    ///
    /// # Errors
    /// The component or its parameters are refused.
    pub async fn start(filter: &Filter, disk: &Arc<Disk>, patience: Duration) -> Result<Server, Trouble> {
        let host = Arc::clone(&filter.host);
        let module = host.load(&filter.label, &filter.bytes).map_err(Error::from)?;
        let name = module.description().name.clone();
        let chain = over(Some((module, &filter.params)), &disk::INFO, disk.plugin(), SIZE)?;
        timeout(patience, make_ready(&chain)).await.map_err(|_| Trouble::Hangs("get-ready"))??;
        Ok(Server { host, chain, name, patience, connections: [const { None }; CONNECTIONS as usize], opened: 0 })
    }

    /// Calls that ended in a trap or at a limit.
    pub fn faults(&self) -> u64 {
        // The last one is the filter of this server: earlier ones may not have ended.
        self.host.statistics().last().map_or(0, |(_, counters)| counters.faults.load(Ordering::Relaxed))
    }

    /// The connection of this number, which is opened if it is not.
    ///
    /// # Errors
    /// The filter does not open it.
    pub async fn connection(&mut self, number: u8) -> Result<Arc<Hop>, Trouble> {
        let place = usize::from(number.clamp(1, CONNECTIONS)) - 1;
        if let Some(connection) = &self.connections[place] {
            return Ok(Arc::clone(&connection.hop));
        }
        self.opened += 1;
        let client = Arc::new(Client::new(self.opened, Peer::Unknown, None, false));
        let opening = timeout(self.patience, open_for(&self.chain, Arc::clone(&client))).await;
        let Ok(opened) = opening else {
            client.set_gone();
            return Err(Trouble::Hangs("open"));
        };
        let hop = opened?;
        self.connections[place] = Some(Connection { hop: Arc::clone(&hop), client });
        Ok(hop)
    }

    /// What a test can do with the export.
    ///
    /// # Errors
    /// The filter does not open it.
    pub async fn export(&mut self) -> Result<Export, Trouble> {
        let hop = self.connection(1).await?;
        let can = hop.can();
        let block_sizes = timeout(self.patience, async { hop.block_sizes().await }).await;
        let block_sizes = block_sizes.map_err(|_| Trouble::Hangs("block-size"))?;
        let one_at_a_time = self.thread_model() == ThreadModel::SerializeConnections;
        // Without multi-conn a connection need not see the writes of another one.
        let connections = if one_at_a_time || (can.write && !can.multi_conn) { 1 } else { CONNECTIONS };
        Ok(Export { size: hop.size().min(MAX_TESTED), can, block_sizes, connections })
    }

    /// The thread model of the filter with its parameters.
    pub fn thread_model(&self) -> ThreadModel {
        self.chain.top(self.client()).thread_model()
    }

    fn client(&self) -> Arc<Client> {
        Arc::new(Client::new(0, Peer::Unknown, None, false))
    }

    /// Finalizes and closes a connection, if it is open.
    ///
    /// # Errors
    /// Finalize fails.
    pub async fn close(&mut self, number: u8) -> Result<(), Trouble> {
        let Some(Connection { hop, client }) = self.connections[usize::from(number) - 1].take() else { return Ok(()) };
        let ended = timeout(self.patience, async {
            let finalized = hop.finalize().await;
            hop.close().await;
            finalized
        })
        .await;
        client.set_gone();
        match ended {
            Err(_) => Err(Trouble::Hangs("finalize")),
            Ok(Err(source)) => Err(Trouble::Fails(Error::Operation { operation: "finalize", source })),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// Drops the instances that no call needs, as a server does when it is idle.
    pub fn free_instances(&self) {
        // The first call may find that they were needed since the last one.
        self.chain.free_spare();
        self.chain.free_spare();
    }

    /// Closes all connections and ends the filter. Returns the first error.
    ///
    /// # Errors
    /// Those of [`Server::close`].
    pub async fn end(mut self) -> Result<(), Trouble> {
        let mut result = Ok(());
        for number in 1..=CONNECTIONS {
            let closed = self.close(number).await;
            result = result.and(closed);
        }
        self.chain.cleanup(Instant::now() + self.patience).await;
        result
    }

    /// Gives up calls that do not end.
    pub fn abandon(self) {
        for connection in self.connections.iter().flatten() {
            connection.client.set_gone();
        }
        self.chain.begin_stop();
    }
}
