//! Disks that filters read beside next: when they start and end, and what they add.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, Errno, Handle, Network, OpenArgs, Param, Plugin, Pool, Result, StopScope,
    ThreadModel, Usage,
};
use tokio::time::Instant;

use crate::{Chain, ExtraDisk, Layer, NextLayer};

type Log = Arc<Mutex<Vec<String>>>;

/// A layer or a plugin of this name that writes down what happens to it.
struct Noted {
    name: &'static str,
    log: Log,
    reach: Option<AccessRights>,
}

impl Noted {
    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(format!("{} {what}", self.name));
    }
}

impl Layer for Noted {
    fn name(&self) -> &str {
        self.name
    }
    fn thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }
    fn get_ready(&self, _: ThreadModel) -> BoxFuture<'_, Result<(), ConfigError>> {
        self.note("get_ready");
        Box::pin(async { Ok(()) })
    }
    fn after_fork(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        self.note("after_fork");
        Box::pin(async { Ok(()) })
    }
    fn open(&self, _: OpenArgs, _: NextLayer) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async { Err(Errno::Eio.into()) })
    }
    fn usage(&self) -> Vec<Usage> {
        vec![Usage { account: "maps".into(), limit: 1, used: 0, peak: 0 }]
    }
    fn shared_usage(&self) -> Vec<Usage> {
        vec![Usage { account: "memory-all".into(), limit: 1, used: 0, peak: 0 }]
    }
    fn stop(&self) {
        self.note("stop");
    }
    fn cleanup(&self, _: Instant) -> BoxFuture<'_, ()> {
        self.note("cleanup");
        Box::pin(async {})
    }
}

impl Plugin for Noted {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        Err(param.unknown("noted"))
    }
    fn begin_serving(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        self.note("begin_serving");
        Box::pin(async { Ok(()) })
    }
    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async { Err(Errno::Eio.into()) })
    }
    fn before_confinement(&self) -> std::io::Result<()> {
        self.note("before_confinement");
        Ok(())
    }
    fn access_rights(&self) -> Option<AccessRights> {
        self.reach.clone()
    }
    fn stop(&self, scope: StopScope) {
        self.note(&format!("stop {scope:?}"));
    }
    fn cleanup(&self) {
        self.note("cleanup");
    }
}

fn reach(path: &str, network: Network) -> Option<AccessRights> {
    Some(AccessRights { read: vec![PathBuf::from(path)], network, ..AccessRights::default() })
}

/// A filter over a plugin, with a disk; the disk has a filter with a disk. `innermost` is what the
/// innermost plugin opens.
fn nested(log: &Log, innermost: Option<AccessRights>) -> Arc<Chain> {
    let chain = |filter, plugin, reach: Option<AccessRights>, disks: Vec<ExtraDisk>| {
        let noted = |name, reach| Noted { name, log: Arc::clone(log), reach };
        let layers: Vec<Arc<dyn Layer>> = vec![Arc::new(noted(filter, None))];
        Chain::with_disks(layers, plugin, Box::new(noted(plugin, reach)), Pool::new(), disks)
    };
    let disk = |name: &str, chain| vec![ExtraDisk { name: name.into(), chain }];
    let inner = chain("f3", "p3", innermost, Vec::new());
    let middle = chain("f2", "p2", reach("/2", Network::Ports(vec![2])), disk("f2:base", inner));
    chain("f1", "p1", reach("/1", Network::None), disk("f1:base", middle))
}

#[tokio::test]
async fn a_chain_starts_and_ends_its_disks() {
    let log = Log::default();
    let chain = nested(&log, reach("/3", Network::Ports(vec![3])));
    let seen = || std::mem::take(&mut *log.lock().unwrap());
    chain.get_ready().await.unwrap();
    assert_eq!(seen(), ["f3 get_ready", "f2 get_ready", "f1 get_ready"]);
    chain.after_fork().await.unwrap();
    let started = ["p3 begin_serving", "f3 after_fork", "p2 begin_serving", "f2 after_fork"];
    assert_eq!(seen(), [&started[..], &["p1 begin_serving", "f1 after_fork"]].concat());
    chain.begin_stop();
    assert_eq!(seen(), ["f1 stop", "f2 stop", "f3 stop"]);
    chain.abandon(StopScope::Reads);
    assert_eq!(seen(), ["p1 stop Reads", "p2 stop Reads", "p3 stop Reads"]);
    chain.cleanup(Instant::now() + Duration::from_secs(60)).await;
    let ended = seen();
    // A plugin and the disks beside it end at once. A filter ends before both.
    let place = |what: &str| ended.iter().position(|line| line == what).unwrap_or_else(|| panic!("{what}: {ended:?}"));
    for (before, after) in [("f1", "p1"), ("f1", "f2"), ("f2", "p2"), ("f2", "f3"), ("f3", "p3")] {
        assert!(place(&format!("{before} cleanup")) < place(&format!("{after} cleanup")), "{ended:?}");
    }
    assert_eq!(ended.len(), 6, "{ended:?}");
}

#[test]
fn a_chain_reaches_what_its_disks_reach() {
    let log = Log::default();
    let all = nested(&log, reach("/3", Network::Ports(vec![3]))).reach().unwrap().unwrap();
    assert_eq!(all.read, ["/1", "/2", "/3"].map(PathBuf::from));
    assert_eq!(all.network, Network::Ports(vec![2, 3]));
    assert_eq!(log.lock().unwrap().len(), 3, "each plugin prepares");
    let any = nested(&log, reach("/3", Network::Any)).reach().unwrap().unwrap();
    assert_eq!(any.network, Network::Any);
    assert_eq!(nested(&log, None).reach().unwrap(), None, "one plugin that does not say is enough");
}

#[test]
fn accounts_of_disks_have_the_names_of_their_parameters() {
    let chain = nested(&Log::default(), None);
    let names: Vec<String> = chain.usage().into_iter().map(|usage| usage.account).collect();
    assert_eq!(names, ["f1:maps", "f1:base/f2:maps", "f1:base/f2:base/f3:maps", "memory-all"]);
}
