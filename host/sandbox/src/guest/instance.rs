//! One instance: a store, and the functions that its component exports.
//!
//! [`Instance::serve`] is the way in. It installs the call, runs the guest on its fiber and takes the call out again. What comes back is
//! the guest's answer, or a fault, after which the instance must not be used again. Reads and writes do the same in three steps
//! ([`Instance::begin`], [`Instance::run`], [`Instance::finish`]), of which only the middle one is a future.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rbdkit_plugin_api::{Buffer, Errno, Error, Extents, Result, Span};
use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, InstancePre, TypedFunc};

use super::buffers::Access;
use super::call::{Call, Phase, Setup};
use super::context::Context;
use super::exported::Exported;
use super::extents::ExtentsAnswer;
use super::fault::Fault;
use crate::connection::bindings::guest;
use crate::connection::bindings::host::types as wit;
use crate::connection::conn::Connection;
use crate::connection::shared::FilterShared;

/// `reads.pread` or `writes.pwrite`, which look alike. The generated binding would put a future of its own around this one's.
type TransferFunction = TypedFunc<(u64, u32, wit::CommandFlags), (std::result::Result<(), wit::Errno>,)>;

macro_rules! exports {
    ($($transfer:ident.$function:ident),*; $($name:ident),*; in order: $($any:ident),*) => {
        /// Which interfaces a component exports, and where.
        pub(crate) struct Exports {
            filter: guest::filter::GuestIndices,
            $($transfer: Option<ComponentExportIndex>,)*
            $(pub(crate) $name: Option<guest::$name::GuestIndices>,)*
        }

        /// An instance's functions.
        struct Functions {
            $($transfer: Option<TransferFunction>,)*
            filter: guest::filter::Guest,
            $($name: Option<guest::$name::Guest>,)*
        }

        impl Exports {
            /// Looks for each interface of the contract.
            ///
            /// # Errors
            /// One line: `filter` is missing, or an interface lacks a function.
            pub(crate) fn probe(pre: &InstancePre<Context>) -> std::result::Result<Exports, String> {
                Ok(Exports {
                    filter: guest::filter::GuestIndices::new(pre)
                        .map_err(|_| "it does not export rbdkit:filter/filter: it is not a filter".to_string())?,
                    $($transfer: {
                        let interface = concat!("rbdkit:filter/", stringify!($transfer), "@0.1.0");
                        match pre.component().get_export_index(None, interface) {
                            None => None,
                            Some(at) => {
                                // Looks whether it is all there, and as it has to be.
                                guest::$transfer::GuestIndices::new(pre).map_err(|e| format!("{e:#}"))?;
                                pre.component().get_export_index(Some(&at), stringify!($function))
                            }
                        }
                    },)*
                    $($name: {
                        let interface = concat!("rbdkit:filter/", stringify!($name), "@0.1.0");
                        match pre.component().get_export_index(None, interface) {
                            None => None,
                            Some(_) => Some(
                                guest::$name::GuestIndices::new(pre).map_err(|e| format!("{e:#}"))?
                            ),
                        }
                    },)*
                })
            }

            /// Which there are, for the layer and by name.
            pub(crate) fn what(&self) -> (Exported, Vec<&'static str>) {
                let exported = Exported {
                    transparent: false,
                    $($transfer: self.$transfer.is_some(),)*
                    $($name: self.$name.is_some(),)*
                };
                let mut names = vec!["filter"];
                $(if exported.$any {
                    names.push(stringify!($any));
                })*
                (exported, names)
            }

            fn load(
                &self,
                store: &mut Store<Context>,
                instance: &wasmtime::component::Instance,
            ) -> wasmtime::Result<Functions> {
                Ok(Functions {
                    $($transfer: match &self.$transfer {
                        Some(index) => Some(instance.get_typed_func(&mut *store, index)?),
                        None => None,
                    },)*
                    filter: self.filter.load(&mut *store, instance)?,
                    $($name: match &self.$name {
                        Some(indices) => Some(indices.load(&mut *store, instance)?),
                        None => None,
                    },)*
                })
            }
        }
    };
}

exports!(
    reads.pread, writes.pwrite;
    threading, lifecycle, admission, names, connection, info, features, flushes, trims, zeroes, mapping, caching,
    background;
    in order: threading, lifecycle, admission, names, connection, info, features, reads, writes, flushes, trims, zeroes,
    mapping, caching, background
);

/// What a guest is asked.
pub(crate) enum Ask {
    Describe,
    Configure(Arc<[(String, String)]>),
    ThreadModel,
    GetReady,
    AfterFork,
    Cleanup,
    Preconnect { readonly: bool },
    ListExports { readonly: bool, tls: bool },
    DefaultExport { readonly: bool, tls: bool },
    Open { readonly: bool, exportname: String, tls: bool, replayed: bool },
    Prepare,
    Finalize,
    Close,
    Size,
    BlockSize,
    Description,
    Can(wit::Capabilities),
    Flush,
    Trim { offset: u64, length: u64, flags: wit::CommandFlags },
    Zero { offset: u64, length: u64, flags: wit::CommandFlags },
    Extents { offset: u64, length: u64, flags: wit::CommandFlags },
    Cache { offset: u64, length: u64 },
    NextRange,
}

impl Ask {
    /// The function's name, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Ask::Describe => "describe",
            Ask::Configure(_) => "configure",
            Ask::ThreadModel => "thread-model",
            Ask::GetReady => "get-ready",
            Ask::AfterFork => "after-fork",
            Ask::Cleanup => "cleanup",
            Ask::Preconnect { .. } => "preconnect",
            Ask::ListExports { .. } => "list-exports",
            Ask::DefaultExport { .. } => "default-export",
            Ask::Open { .. } => "open",
            Ask::Prepare => "prepare",
            Ask::Finalize => "finalize",
            Ask::Close => "close",
            Ask::Size => "get-size",
            Ask::BlockSize => "block-size",
            Ask::Description => "export-description",
            Ask::Can(_) => "can",
            Ask::Flush => "flush",
            Ask::Trim { .. } => "trim",
            Ask::Zero { .. } => "zero",
            Ask::Extents { .. } => "extents",
            Ask::Cache { .. } => "cache",
            Ask::NextRange => "next-range",
        }
    }

    /// Where the request is, for messages.
    pub(crate) fn offset(&self) -> Option<u64> {
        match self {
            Ask::Trim { offset, .. }
            | Ask::Zero { offset, .. }
            | Ask::Extents { offset, .. }
            | Ask::Cache { offset, .. } => Some(*offset),
            _ => None,
        }
    }
}

/// A request with a payload, which is what most calls are. It has a way of its own: [`Ask`] and [`Reply`] have room for everything that
/// can be asked and answered, and moving them about took a quarter of a call.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) write: bool,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) flags: wit::CommandFlags,
}

impl Transfer {
    /// The function's name, for messages.
    pub(crate) fn name(&self) -> &'static str {
        if self.write { "pwrite" } else { "pread" }
    }
}

/// What a guest answered.
pub(crate) enum Reply {
    Described(Box<wit::Description>),
    /// Of functions whose error is a line for the user.
    Line(std::result::Result<(), String>),
    Model(wit::ThreadModel),
    Exports(Result<Vec<wit::ExportEntry>>),
    Name(Result<String>),
    Number(Result<u64>),
    BlockSize(Result<wit::BlockSizes>),
    Text(Option<String>),
    Can(Result<wit::Capabilities>),
    Done(Result<()>),
    /// As the guest gave it.
    Extents(Result<Vec<wit::Extent>>),
    /// With what the guest had forwarded, checked.
    Whole(Extents),
    /// Offset and length.
    Range(Option<(u64, u64)>),
}

impl Reply {
    /// The error, if that is what it answered.
    fn error(&mut self) -> Option<&mut Error> {
        match self {
            Reply::Exports(result) => result.as_mut().err(),
            Reply::Name(result) => result.as_mut().err(),
            Reply::Number(result) => result.as_mut().err(),
            Reply::BlockSize(result) => result.as_mut().err(),
            Reply::Can(result) => result.as_mut().err(),
            Reply::Done(result) => result.as_mut().err(),
            Reply::Extents(result) => result.as_mut().err(),
            Reply::Line(_)
            | Reply::Described(_)
            | Reply::Model(_)
            | Reply::Text(_)
            | Reply::Whole(_)
            | Reply::Range(_) => None,
        }
    }

    /// An answer that cannot be is a fault like any other: nothing of the call is published, and whoever gave it is not asked again.
    fn checked(self, ask: &Ask, call: &mut Call) -> std::result::Result<Reply, Fault> {
        let (own, (offset, length, flags)) = match (self, ask) {
            (Reply::Extents(Ok(own)), Ask::Extents { offset, length, flags }) => (own, (*offset, *length, *flags)),
            (reply, _) => return Ok(reply),
        };
        let answer = call.extents.take().unwrap_or_else(|| ExtentsAnswer::new(offset));
        let list = answer.finish(own, offset, length, flags.contains(wit::CommandFlags::REQ_ONE));
        list.map(Reply::Whole).map_err(|lie| Fault::false_answer(&lie))
    }

    /// Settles what the call held back. An errno that the guest passes on from the layer below keeps that layer's words.
    fn settle(&mut self, call: &mut Call) {
        let refused = matches!(self, Reply::Line(Err(_)));
        match self.error() {
            None if !refused => call.changes.succeed(),
            None => call.changes.fail(),
            Some(error) => {
                call.changes.fail();
                if let Some(known) = call.words_for(error.errno()) {
                    *error = known;
                }
            }
        }
    }

    /// The answer of a function that answers nothing else.
    pub(crate) fn done(self) -> Result<()> {
        match self {
            Reply::Done(result) => result,
            _ => Err(Errno::Eio.into()),
        }
    }
}

/// One instance of a filter.
pub(crate) struct Instance {
    store: Store<Context>,
    functions: Functions,
    /// What its memory took once it was configured.
    settled: u64,
}

/// How to make instances.
pub(crate) struct Recipe {
    pub(crate) pre: InstancePre<Context>,
    pub(crate) exports: Exports,
}

impl Recipe {
    /// A fresh instance, not configured.
    pub(crate) async fn instantiate(&self, shared: &Arc<FilterShared>) -> std::result::Result<Instance, Fault> {
        let mut store = Store::new(self.pre.engine(), Context::new(Arc::clone(shared)));
        store.limiter(|context| &mut context.memory);
        store.set_hostcall_fuel(usize::try_from(shared.limits.transfer).unwrap_or(usize::MAX));
        store.epoch_deadline_callback(|context| {
            context.data().still_wanted()?;
            Ok(context.data().clock.tick()?)
        });
        enter(&mut store, Phase::CONFIGURE);
        shared.counters.instances.fetch_add(1, Relaxed);
        let made = async {
            let instance = self.pre.instantiate_async(&mut store).await?;
            self.exports.load(&mut store, &instance)
        };
        let functions = made.await.map_err(|error| Fault::new(&error))?;
        Ok(Instance { store, functions, settled: 0 })
    }
}

fn enter(store: &mut Store<Context>, phase: Phase) {
    let context = store.data();
    let shared = &context.shared;
    shared.pulse.enter(store.engine());
    let limits = &shared.limits;
    context.clock.begin(if phase == Phase::DATA { limits.of_a_request() } else { limits.of_a_setup() });
    store.set_epoch_deadline(1);
}

impl Instance {
    /// Runs one call, of a connection or of none. On success what it held back is published, then its lock is released, and only then is
    /// there an answer.
    pub(crate) async fn serve(
        &mut self,
        setup: Setup,
        conn: Option<&Arc<Connection>>,
        ask: &Ask,
    ) -> std::result::Result<Reply, Fault> {
        let phase = setup.phase;
        self.store.data_mut().call.begin(setup, conn);
        enter(&mut self.store, phase);
        // A payload before it may have raised this.
        self.limit_lists(0);
        self.store.data().shared.counters.calls.fetch_add(1, Relaxed);
        let result = self.functions.run(&mut self.store, ask).await;
        self.store.data().clock.over();
        let call = &mut self.store.data_mut().call;
        let mut result = result.map_err(|error| Fault::new(&error)).and_then(|reply| reply.checked(ask, call));
        match &mut result {
            Ok(reply) => reply.settle(call),
            Err(_) => call.changes.fail(),
        }
        call.end();
        result
    }

    /// Installs a request and its payload; [`Instance::run`] and [`Instance::finish`] have to follow.
    pub(crate) fn begin(&mut self, conn: &Arc<Connection>, transfer: &Transfer, buffer: Buffer, span: Span) {
        let access = if transfer.write { Access::Read } else { Access::Write };
        self.store.data_mut().call.begin_transfer(conn, buffer, span, access);
        enter(&mut self.store, Phase::DATA);
        self.limit_lists(span.len);
        self.store.data().shared.counters.calls.fetch_add(1, Relaxed);
    }

    /// `buffer.write` of the whole payload is nothing unusual, however long that is; wasmtime counts it as any other list.
    fn limit_lists(&mut self, payload: u32) {
        let bytes = self.store.data().shared.limits.transfer.max(payload.into());
        let most = usize::try_from(bytes).unwrap_or(usize::MAX);
        if self.store.hostcall_fuel() != most {
            self.store.set_hostcall_fuel(most);
        }
    }

    /// Runs the guest on what was installed.
    pub(crate) async fn run(&mut self, transfer: Transfer) -> wasmtime::Result<std::result::Result<(), wit::Errno>> {
        let function = exported(if transfer.write { &self.functions.writes } else { &self.functions.reads })?;
        let (answer,) =
            function.call_async(&mut self.store, (transfer.offset, transfer.length, transfer.flags)).await?;
        Ok(answer)
    }

    /// Takes a request out again and settles it, as [`Instance::serve`] does. The payload comes back unless an operation below has it still
    /// ([`crate::connection::detached`]).
    pub(crate) fn finish(
        &mut self,
        answer: wasmtime::Result<std::result::Result<(), wit::Errno>>,
    ) -> (Option<Buffer>, std::result::Result<Result<()>, Box<Fault>>) {
        self.store.data().clock.over();
        let call = &mut self.store.data_mut().call;
        let result = match answer {
            Ok(Ok(())) => {
                if !call.changes.is_empty() {
                    call.changes.succeed();
                }
                Ok(Ok(()))
            }
            Ok(Err(errno)) => {
                call.changes.fail();
                let errno = Errno::from(errno);
                Ok(Err(call.words_for(errno).unwrap_or_else(|| errno.into())))
            }
            Err(error) => {
                call.changes.fail();
                Err(Box::new(Fault::new(&error)))
            }
        };
        (call.end_transfer(), result)
    }

    /// Its memory as it is now is what it needs.
    pub(crate) fn settle(&mut self) {
        self.settled = self.store.data().memory.used();
    }

    /// Whether its memory has grown by more than half of what was left: some guest languages never give any back.
    pub(crate) fn has_grown(&self) -> bool {
        let limit = self.store.data().shared.limits.memory;
        let mark = self.settled + limit.saturating_sub(self.settled) / 2;
        self.store.data().memory.used() > mark
    }
}

/// A function that is asked for only where it is exported.
fn exported<T>(interface: &Option<T>) -> wasmtime::Result<&T> {
    interface.as_ref().ok_or_else(|| wasmtime::format_err!("the filter does not export this function"))
}

fn errno<T>(result: std::result::Result<T, wit::Errno>) -> Result<T> {
    result.map_err(|errno| Errno::from(errno).into())
}

impl Functions {
    async fn run(&self, store: &mut Store<Context>, ask: &Ask) -> wasmtime::Result<Reply> {
        Ok(match ask {
            Ask::Flush => Reply::Done(errno(exported(&self.flushes)?.call_flush(store).await?)),
            Ask::Trim { offset, length, flags } => {
                Reply::Done(errno(exported(&self.trims)?.call_trim(store, *offset, *length, *flags).await?))
            }
            Ask::Zero { offset, length, flags } => {
                Reply::Done(errno(exported(&self.zeroes)?.call_zero(store, *offset, *length, *flags).await?))
            }
            Ask::Cache { offset, length } => {
                Reply::Done(errno(exported(&self.caching)?.call_cache(store, *offset, *length).await?))
            }
            Ask::Extents { offset, length, flags } => {
                Reply::Extents(errno(exported(&self.mapping)?.call_extents(store, *offset, *length, *flags).await?))
            }
            // The rest happens a few times a connection: boxed, so that it does not make the future of a request larger.
            rare => Box::pin(self.run_rare(store, rare)).await?,
        })
    }

    async fn run_rare(&self, store: &mut Store<Context>, ask: &Ask) -> wasmtime::Result<Reply> {
        Ok(match ask {
            Ask::Describe => Reply::Described(Box::new(self.filter.call_describe(store).await?)),
            Ask::Configure(params) => Reply::Line(self.filter.call_configure(store, params).await?),
            Ask::ThreadModel => Reply::Model(exported(&self.threading)?.call_thread_model(store).await?),
            Ask::GetReady => Reply::Line(exported(&self.lifecycle)?.call_get_ready(store).await?),
            Ask::AfterFork => Reply::Line(exported(&self.lifecycle)?.call_after_fork(store).await?),
            Ask::Cleanup => {
                exported(&self.lifecycle)?.call_cleanup(store).await?;
                Reply::Done(Ok(()))
            }
            Ask::Preconnect { readonly } => {
                Reply::Done(errno(exported(&self.admission)?.call_preconnect(store, *readonly).await?))
            }
            Ask::ListExports { readonly, tls } => {
                Reply::Exports(errno(exported(&self.names)?.call_list_exports(store, *readonly, *tls).await?))
            }
            Ask::DefaultExport { readonly, tls } => {
                Reply::Name(errno(exported(&self.names)?.call_default_export(store, *readonly, *tls).await?))
            }
            Ask::Open { readonly, exportname, tls, replayed } => {
                let connection = exported(&self.connection)?;
                Reply::Number(errno(connection.call_open(store, *readonly, exportname, *tls, *replayed).await?))
            }
            Ask::Prepare => Reply::Done(errno(exported(&self.connection)?.call_prepare(store).await?)),
            Ask::Finalize => Reply::Done(errno(exported(&self.connection)?.call_finalize(store).await?)),
            Ask::Close => {
                exported(&self.connection)?.call_close(store).await?;
                Reply::Done(Ok(()))
            }
            Ask::Size => Reply::Number(errno(exported(&self.info)?.call_get_size(store).await?)),
            Ask::BlockSize => Reply::BlockSize(errno(exported(&self.info)?.call_block_size(store).await?)),
            Ask::Description => Reply::Text(exported(&self.info)?.call_export_description(store).await?),
            Ask::Can(below) => Reply::Can(errno(exported(&self.features)?.call_can(store, *below).await?)),
            Ask::NextRange => {
                let range = exported(&self.background)?.call_next_range(store).await?;
                Reply::Range(range.map(|range| (range.offset, range.length)))
            }
            _ => return Err(wasmtime::format_err!("a request among the rare calls")),
        })
    }
}
