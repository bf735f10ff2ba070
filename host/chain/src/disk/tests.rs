//! Which disk a hop serves, over plugins and a filter that tell names apart in each way.

use std::sync::Arc;

use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, Client, ConfigError, Disk, DiskId, Done, ExportEntry, Handle, Op, OpenArgs, Param,
    Peer, Plugin, Pool, Result, Span, ThreadModel,
};

use crate::{Chain, Layer, NextLayer};

struct Named(Option<Disk>);

impl Handle for Named {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(1 << 20))
    }
    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        let by_default = Disk::ByListedName(DiskId::DEFAULT);
        Box::pin(async { Ok(self.0.clone().unwrap_or(by_default)) })
    }
    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities::READ_ONLY))
    }
    fn pread(&self, buffer: Buffer, _: Span, _: u64) -> Op<Done> {
        Op::Ready((buffer, Ok(())))
    }
}

/// Lists these exports, of which the first is the default.
struct Exports(&'static [&'static str], Option<Disk>);

impl Plugin for Exports {
    fn config(&mut self, param: Param<'_>) -> std::result::Result<(), ConfigError> {
        Err(param.unknown("exports"))
    }
    fn list_exports(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        let entry = |name: &&str| ExportEntry { name: (*name).to_string(), description: None };
        Box::pin(async move { Ok(Some(self.0.iter().map(entry).collect())) })
    }
    fn default_export(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<String>> {
        Box::pin(async { Ok(self.0[0].to_string()) })
    }
    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async { Ok(Arc::new(Named(self.1.clone())) as Arc<dyn Handle>) })
    }
}

/// Opens next under one name, whatever the client's is.
struct Renames(&'static str);

impl Layer for Renames {
    fn name(&self) -> &'static str {
        "renames"
    }
    fn thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }
    fn open(&self, args: OpenArgs, next: NextLayer) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            let next = next.open(args.readonly, self.0).await?;
            Ok(Arc::new(Named(Some(Disk::Is(next.disk().await?)))) as Arc<dyn Handle>)
        })
    }
}

/// The disk of a name.
fn disk(chain: &Arc<Chain>, name: &str) -> Result<DiskId> {
    let top = chain.top(Arc::new(Client::new(1, Peer::Unix, None, false)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async { top.open(true, name).await.expect("an export").disk().await })
}

/// Whether two names are one disk of a chain.
fn are_one(chain: &Arc<Chain>, one: &str, other: &str) -> bool {
    disk(chain, one).expect("a disk") == disk(chain, other).expect("a disk")
}

#[test]
fn a_name_is_a_disk_of_its_own_only_if_the_layer_says_so() {
    let by_name = Some(Disk::ByName(DiskId::DEFAULT));
    let this = Some(Disk::Is(DiskId::named("this")));
    // The exports, how the plugin tells them apart, two names, and whether they are one disk.
    let cases = [
        (&[""][..], None, "", "invented", true),
        (&[""], None, "one", "another", true),
        (&["a", "b"], None, "a", "b", false),
        (&["a", "b"], None, "", "a", true),
        (&["a", "b"], by_name.clone(), "b", "invented", false),
        (&["a", "b"], by_name.clone(), "one", "another", false),
        (&["a", "b"], by_name, "", "a", true),
        (&["a", "b"], this, "a", "b", true),
    ];
    for (exports, disk, one, other, same) in cases {
        let plugin = Box::new(Exports(exports, disk.clone()));
        let chain = Chain::new(Vec::new(), "exports", plugin, Pool::new());
        assert_eq!(are_one(&chain, one, other), same, "{exports:?} {disk:?}: {one:?} and {other:?}");
    }
}

#[test]
fn a_filter_that_opens_next_under_another_name_has_the_disk_of_that_name() {
    let chain = Chain::new(vec![Arc::new(Renames("b"))], "exports", Box::new(Exports(&["a", "b"], None)), Pool::new());
    assert!(are_one(&chain, "a", "b"));
    assert!(are_one(&chain, "", "invented"));
}

#[test]
fn a_name_that_a_list_of_names_does_not_have_is_no_disk() {
    let chain = Chain::new(Vec::new(), "exports", Box::new(Exports(&["a", "b"], None)), Pool::new());
    let error = disk(&chain, "invented").expect_err("no disk").to_string();
    assert!(error.starts_with("export 'invented' is not listed"), "{error}");
}
