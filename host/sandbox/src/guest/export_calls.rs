//! One type for each function that a filter exports, with its arguments and the type of its answer.
//!
//! Reads and writes are not among them: see [`Instance::begin`](super::instance::Instance::begin).

use std::future::Future;

use rbdkit_plugin_api::Extents;
use wasmtime::{Result, Store};

use super::call::{CallKind, Phase, Setup};
use super::context::Context;
use super::exports::{ExportedFunctions, interface};
use super::fault::mistake;
use super::imports::flags;
use crate::connection::bindings::host::types as wit;

/// What a guest's function returned. Functions that cannot answer an errno always return `Ok`.
pub(crate) type Returned<T> = std::result::Result<T, wit::Errno>;

/// A call of one exported function.
pub(crate) trait ExportCall: Send + Sync {
    /// What the function answers if it succeeds.
    type Answer: Send;

    /// The function's name, for messages.
    const NAME: &'static str;

    /// The phase in which it is called.
    const PHASE: Phase;

    /// The part of the connection's life that the call belongs to.
    const KIND: CallKind = CallKind::Ordinary;

    /// What the call begins with.
    fn setup(&self) -> Setup {
        Setup { kind: Self::KIND, ..Setup::new(Self::PHASE) }
    }

    /// The offset of the request, for messages.
    fn offset(&self) -> Option<u64> {
        None
    }

    /// The arguments that say what the call is about, for a record.
    fn arguments(&self) -> String {
        self.offset().map(|offset| format!("offset={offset}")).unwrap_or_default()
    }

    /// Runs the guest.
    ///
    /// # Errors
    /// It trapped, reached a limit, or gave an invalid answer.
    fn run(
        &self,
        functions: &ExportedFunctions,
        store: &mut Store<Context>,
    ) -> impl Future<Output = Result<Returned<Self::Answer>>> + Send;
}

/// `filter.describe`.
pub(crate) struct DescribeCall;

impl ExportCall for DescribeCall {
    type Answer = wit::Description;
    const NAME: &'static str = "describe";
    const PHASE: Phase = Phase::CONFIGURE;

    async fn run(
        &self,
        functions: &ExportedFunctions,
        store: &mut Store<Context>,
    ) -> Result<Returned<wit::Description>> {
        Ok(Ok(functions.filter.call_describe(store).await?))
    }
}

/// `wishes.limits`.
pub(crate) struct WishesCall;

impl ExportCall for WishesCall {
    type Answer = Vec<(String, u64)>;
    const NAME: &'static str = "limits";
    const PHASE: Phase = Phase::CONFIGURE;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        Ok(Ok(interface(&functions.wishes)?.call_limits(store).await?))
    }
}

/// `filter.configure`. The answer is a line for the user if the guest refuses a parameter.
pub(crate) struct ConfigureCall<'a> {
    pub(crate) params: &'a [(String, String)],
}

impl ExportCall for ConfigureCall<'_> {
    type Answer = std::result::Result<(), String>;
    const NAME: &'static str = "configure";
    const PHASE: Phase = Phase::CONFIGURE;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        Ok(Ok(functions.filter.call_configure(store, self.params).await?))
    }
}

/// `threading.thread-model`.
pub(crate) struct ThreadModelCall;

impl ExportCall for ThreadModelCall {
    type Answer = wit::ThreadModel;
    const NAME: &'static str = "thread-model";
    const PHASE: Phase = Phase::CONFIGURE;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        Ok(Ok(interface(&functions.threading)?.call_thread_model(store).await?))
    }
}

/// `lifecycle.get-ready`. The answer is a line for the user if the guest fails.
pub(crate) struct GetReadyCall;

impl ExportCall for GetReadyCall {
    type Answer = std::result::Result<(), String>;
    const NAME: &'static str = "get-ready";
    const PHASE: Phase = Phase::READY;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        Ok(Ok(interface(&functions.lifecycle)?.call_get_ready(store).await?))
    }
}

/// `lifecycle.after-fork`. The answer is a line for the user if the guest fails.
pub(crate) struct AfterForkCall;

impl ExportCall for AfterForkCall {
    type Answer = std::result::Result<(), String>;
    const NAME: &'static str = "after-fork";
    const PHASE: Phase = Phase::READY;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        Ok(Ok(interface(&functions.lifecycle)?.call_after_fork(store).await?))
    }
}

/// `lifecycle.cleanup`.
pub(crate) struct CleanupCall;

impl ExportCall for CleanupCall {
    type Answer = ();
    const NAME: &'static str = "cleanup";
    const PHASE: Phase = Phase::READY;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        Ok(Ok(interface(&functions.lifecycle)?.call_cleanup(store).await?))
    }
}

/// `admission.preconnect`.
pub(crate) struct PreconnectCall {
    pub(crate) readonly: bool,
}

impl ExportCall for PreconnectCall {
    type Answer = ();
    const NAME: &'static str = "preconnect";
    const PHASE: Phase = Phase::BEFORE;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        interface(&functions.admission)?.call_preconnect(store, self.readonly).await
    }
}

/// `names.list-exports`.
pub(crate) struct ListExportsCall {
    pub(crate) readonly: bool,
    pub(crate) tls: bool,
}

impl ExportCall for ListExportsCall {
    type Answer = Vec<wit::ExportEntry>;
    const NAME: &'static str = "list-exports";
    const PHASE: Phase = Phase::BEFORE;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        interface(&functions.names)?.call_list_exports(store, self.readonly, self.tls).await
    }
}

/// `names.default-export`.
pub(crate) struct DefaultExportCall {
    pub(crate) readonly: bool,
    pub(crate) tls: bool,
}

impl ExportCall for DefaultExportCall {
    type Answer = String;
    const NAME: &'static str = "default-export";
    const PHASE: Phase = Phase::BEFORE;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<String>> {
        interface(&functions.names)?.call_default_export(store, self.readonly, self.tls).await
    }
}

/// `connection.open`. Answers the guest's handle.
pub(crate) struct OpenCall<'a> {
    pub(crate) readonly: bool,
    pub(crate) exportname: &'a str,
    pub(crate) tls: bool,
    pub(crate) replayed: bool,
}

impl ExportCall for OpenCall<'_> {
    type Answer = u64;
    const NAME: &'static str = "open";
    const PHASE: Phase = Phase::OPEN;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<u64>> {
        let connection = interface(&functions.connection)?;
        connection.call_open(store, self.readonly, self.exportname, self.tls, self.replayed).await
    }
}

/// `connection.prepare`.
pub(crate) struct PrepareCall;

impl ExportCall for PrepareCall {
    type Answer = ();
    const NAME: &'static str = "prepare";
    const PHASE: Phase = Phase::OPEN;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        interface(&functions.connection)?.call_prepare(store).await
    }
}

/// `connection.finalize`.
pub(crate) struct FinalizeCall;

impl ExportCall for FinalizeCall {
    type Answer = ();
    const NAME: &'static str = "finalize";
    const PHASE: Phase = Phase::OPEN;
    const KIND: CallKind = CallKind::Ending;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        interface(&functions.connection)?.call_finalize(store).await
    }
}

/// `connection.close`.
pub(crate) struct CloseCall;

impl ExportCall for CloseCall {
    type Answer = ();
    const NAME: &'static str = "close";
    const PHASE: Phase = Phase::OPEN;
    const KIND: CallKind = CallKind::Ending;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        Ok(Ok(interface(&functions.connection)?.call_close(store).await?))
    }
}

/// `info.get-size`.
pub(crate) struct GetSizeCall;

impl ExportCall for GetSizeCall {
    type Answer = u64;
    const NAME: &'static str = "get-size";
    const PHASE: Phase = Phase::OPEN;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<u64>> {
        interface(&functions.info)?.call_get_size(store).await
    }
}

/// `info.block-size`. ENOTSUP means that the filter names no block sizes.
pub(crate) struct BlockSizeCall;

impl ExportCall for BlockSizeCall {
    type Answer = wit::BlockSizes;
    const NAME: &'static str = "block-size";
    const PHASE: Phase = Phase::OPEN;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        interface(&functions.info)?.call_block_size(store).await
    }
}

/// `info.export-description`.
pub(crate) struct ExportDescriptionCall;

impl ExportCall for ExportDescriptionCall {
    type Answer = Option<String>;
    const NAME: &'static str = "export-description";
    const PHASE: Phase = Phase::OPEN;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        Ok(Ok(interface(&functions.info)?.call_export_description(store).await?))
    }
}

/// `features.can`.
pub(crate) struct CanCall {
    /// What the layer below offers.
    pub(crate) below: wit::Capabilities,
}

impl ExportCall for CanCall {
    type Answer = wit::Capabilities;
    const NAME: &'static str = "can";
    const PHASE: Phase = Phase::OPEN;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        interface(&functions.features)?.call_can(store, self.below).await
    }
}

/// `flushes.flush`.
pub(crate) struct FlushCall;

impl ExportCall for FlushCall {
    type Answer = ();
    const NAME: &'static str = "flush";
    const PHASE: Phase = Phase::DATA;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        interface(&functions.flushes)?.call_flush(store).await
    }
}

/// `trims.trim`.
pub(crate) struct TrimCall {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) flags: wit::CommandFlags,
}

impl ExportCall for TrimCall {
    type Answer = ();
    const NAME: &'static str = "trim";
    const PHASE: Phase = Phase::DATA;

    fn offset(&self) -> Option<u64> {
        Some(self.offset)
    }

    fn arguments(&self) -> String {
        format!("offset={}, length={}, flags={}", self.offset, self.length, flags(self.flags))
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        interface(&functions.trims)?.call_trim(store, self.offset, self.length, self.flags).await
    }
}

/// `zeroes.zero`.
pub(crate) struct ZeroCall {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) flags: wit::CommandFlags,
}

impl ExportCall for ZeroCall {
    type Answer = ();
    const NAME: &'static str = "zero";
    const PHASE: Phase = Phase::DATA;

    fn offset(&self) -> Option<u64> {
        Some(self.offset)
    }

    fn arguments(&self) -> String {
        format!("offset={}, length={}, flags={}", self.offset, self.length, flags(self.flags))
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        interface(&functions.zeroes)?.call_zero(store, self.offset, self.length, self.flags).await
    }
}

/// `mapping.extents`. The answer is what the guest forwarded followed by its own list, checked.
pub(crate) struct ExtentsCall {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) flags: wit::CommandFlags,
}

impl ExportCall for ExtentsCall {
    type Answer = Extents;
    const NAME: &'static str = "extents";
    const PHASE: Phase = Phase::DATA;

    fn setup(&self) -> Setup {
        Setup { extents_of: Some((self.offset, self.length)), ..Setup::new(Self::PHASE) }
    }

    fn offset(&self) -> Option<u64> {
        Some(self.offset)
    }

    fn arguments(&self) -> String {
        format!("offset={}, length={}, flags={}", self.offset, self.length, flags(self.flags))
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Extents>> {
        let mapping = interface(&functions.mapping)?;
        let own = match mapping.call_extents(&mut *store, self.offset, self.length, self.flags).await? {
            Ok(own) => own,
            Err(errno) => return Ok(Err(errno)),
        };
        let forwarded = store.data_mut().call.extents.take();
        let forwarded = forwarded.ok_or_else(|| wasmtime::format_err!("an answer of extents that was taken"))?;
        let one = self.flags.contains(wit::CommandFlags::REQ_ONE);
        // An invalid list is a fault, and nothing of the call is published.
        let list = forwarded.finish(own, self.offset, self.length, one);
        Ok(Ok(list.map_err(|error| mistake(error.context().unwrap_or("a list of extents that is not allowed")))?))
    }
}

/// `caching.cache`.
pub(crate) struct CacheCall {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl ExportCall for CacheCall {
    type Answer = ();
    const NAME: &'static str = "cache";
    const PHASE: Phase = Phase::DATA;

    fn offset(&self) -> Option<u64> {
        Some(self.offset)
    }

    fn arguments(&self) -> String {
        format!("offset={}, length={}", self.offset, self.length)
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        interface(&functions.caching)?.call_cache(store, self.offset, self.length).await
    }
}

/// `background.next-range`. Answers an offset and a length.
pub(crate) struct NextRangeCall;

impl ExportCall for NextRangeCall {
    type Answer = Option<(u64, u64)>;
    const NAME: &'static str = "next-range";
    const PHASE: Phase = Phase::DATA;

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Self::Answer>> {
        let range = interface(&functions.background)?.call_next_range(store).await?;
        Ok(Ok(range.map(|range| (range.offset, range.length))))
    }
}
