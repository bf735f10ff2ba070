//! `wasi:filesystem` and `wasi:sockets`: defined only so that components link.
//!
//! There is no open directory, and every request for a socket or a host name is denied. So no
//! handle of most of these types ever exists.

use wasmtime::Result;
use wasmtime::component::{ComponentType, Lift, Lower, Resource};

use super::define::{Functions, Store, resource, unreachable};
use crate::guest::wasi_handles::WasiHandle;

struct Descriptor;
struct DirectoryEntryStream;
struct Network;
struct TcpSocket;
struct UdpSocket;
struct IncomingDatagrams;
struct OutgoingDatagrams;
struct Addresses;

/// The error codes of `wasi:sockets`: all of them, because the engine compares types. Only
/// `access-denied` is ever answered.
#[derive(ComponentType, Lower, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "the engine compares the whole type")]
enum NetworkError {
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "not-supported")]
    NotSupported,
    #[component(name = "invalid-argument")]
    InvalidArgument,
    #[component(name = "out-of-memory")]
    OutOfMemory,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "concurrency-conflict")]
    ConcurrencyConflict,
    #[component(name = "not-in-progress")]
    NotInProgress,
    #[component(name = "would-block")]
    WouldBlock,
    #[component(name = "invalid-state")]
    InvalidState,
    #[component(name = "new-socket-limit")]
    NewSocketLimit,
    #[component(name = "address-not-bindable")]
    AddressNotBindable,
    #[component(name = "address-in-use")]
    AddressInUse,
    #[component(name = "remote-unreachable")]
    RemoteUnreachable,
    #[component(name = "connection-refused")]
    ConnectionRefused,
    #[component(name = "connection-reset")]
    ConnectionReset,
    #[component(name = "connection-aborted")]
    ConnectionAborted,
    #[component(name = "datagram-too-large")]
    DatagramTooLarge,
    #[component(name = "name-unresolvable")]
    NameUnresolvable,
    #[component(name = "temporary-resolver-failure")]
    TemporaryResolverFailure,
    #[component(name = "permanent-resolver-failure")]
    PermanentResolverFailure,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "the engine compares the whole type")]
enum AddressFamily {
    #[component(name = "ipv4")]
    Ipv4,
    #[component(name = "ipv6")]
    Ipv6,
}

/// The answer to every request for the network.
type Denied<T> = (std::result::Result<Resource<T>, NetworkError>,);

fn denied<T>() -> Result<Denied<T>> {
    Ok((Err(NetworkError::AccessDenied),))
}

pub(super) fn preopens(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("get-directories", |_: Store<'_>, ()| Ok((Vec::<(Resource<Descriptor>, String)>::new(),)))
}

pub(super) fn files(functions: &mut Functions<'_>) -> Result<()> {
    resource::<Descriptor>(functions, "descriptor")?;
    resource::<DirectoryEntryStream>(functions, "directory-entry-stream")?;
    unreachable(
        functions,
        &[
            "[method]descriptor.advise",
            "[method]descriptor.append-via-stream",
            "[method]descriptor.create-directory-at",
            "[method]descriptor.get-flags",
            "[method]descriptor.get-type",
            "[method]descriptor.is-same-object",
            "[method]descriptor.link-at",
            "[method]descriptor.metadata-hash",
            "[method]descriptor.metadata-hash-at",
            "[method]descriptor.open-at",
            "[method]descriptor.read",
            "[method]descriptor.read-directory",
            "[method]descriptor.read-via-stream",
            "[method]descriptor.readlink-at",
            "[method]descriptor.remove-directory-at",
            "[method]descriptor.rename-at",
            "[method]descriptor.set-size",
            "[method]descriptor.set-times",
            "[method]descriptor.set-times-at",
            "[method]descriptor.stat",
            "[method]descriptor.stat-at",
            "[method]descriptor.symlink-at",
            "[method]descriptor.sync",
            "[method]descriptor.sync-data",
            "[method]descriptor.unlink-file-at",
            "[method]descriptor.write",
            "[method]descriptor.write-via-stream",
            "[method]directory-entry-stream.read-directory-entry",
            // It takes an error of a stream, and streams have no errors here.
            "filesystem-error-code",
        ],
    )
}

pub(super) fn network(functions: &mut Functions<'_>) -> Result<()> {
    resource::<Network>(functions, "network")
}

pub(super) fn instance_network(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("instance-network", |mut store: Store<'_>, ()| {
        Ok((store.data_mut().handles.add::<Network>(WasiHandle::Network)?,))
    })
}

pub(super) fn name_lookup(functions: &mut Functions<'_>) -> Result<()> {
    resource::<Addresses>(functions, "resolve-address-stream")?;
    functions
        .func_wrap("resolve-addresses", |_: Store<'_>, (_, _): (Resource<Network>, String)| denied::<Addresses>())?;
    let methods = ["[method]resolve-address-stream.resolve-next-address", "[method]resolve-address-stream.subscribe"];
    unreachable(functions, &methods)
}

pub(super) fn tcp_create(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("create-tcp-socket", |_: Store<'_>, (_,): (AddressFamily,)| denied::<TcpSocket>())
}

pub(super) fn udp_create(functions: &mut Functions<'_>) -> Result<()> {
    functions.func_wrap("create-udp-socket", |_: Store<'_>, (_,): (AddressFamily,)| denied::<UdpSocket>())
}

pub(super) fn tcp(functions: &mut Functions<'_>) -> Result<()> {
    resource::<TcpSocket>(functions, "tcp-socket")?;
    unreachable(
        functions,
        &[
            "[method]tcp-socket.accept",
            "[method]tcp-socket.address-family",
            "[method]tcp-socket.finish-bind",
            "[method]tcp-socket.finish-connect",
            "[method]tcp-socket.finish-listen",
            "[method]tcp-socket.hop-limit",
            "[method]tcp-socket.is-listening",
            "[method]tcp-socket.keep-alive-count",
            "[method]tcp-socket.keep-alive-enabled",
            "[method]tcp-socket.keep-alive-idle-time",
            "[method]tcp-socket.keep-alive-interval",
            "[method]tcp-socket.local-address",
            "[method]tcp-socket.receive-buffer-size",
            "[method]tcp-socket.remote-address",
            "[method]tcp-socket.send-buffer-size",
            "[method]tcp-socket.set-hop-limit",
            "[method]tcp-socket.set-keep-alive-count",
            "[method]tcp-socket.set-keep-alive-enabled",
            "[method]tcp-socket.set-keep-alive-idle-time",
            "[method]tcp-socket.set-keep-alive-interval",
            "[method]tcp-socket.set-listen-backlog-size",
            "[method]tcp-socket.set-receive-buffer-size",
            "[method]tcp-socket.set-send-buffer-size",
            "[method]tcp-socket.shutdown",
            "[method]tcp-socket.start-bind",
            "[method]tcp-socket.start-connect",
            "[method]tcp-socket.start-listen",
            "[method]tcp-socket.subscribe",
        ],
    )
}

pub(super) fn udp(functions: &mut Functions<'_>) -> Result<()> {
    resource::<UdpSocket>(functions, "udp-socket")?;
    resource::<IncomingDatagrams>(functions, "incoming-datagram-stream")?;
    resource::<OutgoingDatagrams>(functions, "outgoing-datagram-stream")?;
    unreachable(
        functions,
        &[
            "[method]incoming-datagram-stream.receive",
            "[method]incoming-datagram-stream.subscribe",
            "[method]outgoing-datagram-stream.check-send",
            "[method]outgoing-datagram-stream.send",
            "[method]outgoing-datagram-stream.subscribe",
            "[method]udp-socket.address-family",
            "[method]udp-socket.finish-bind",
            "[method]udp-socket.local-address",
            "[method]udp-socket.receive-buffer-size",
            "[method]udp-socket.remote-address",
            "[method]udp-socket.send-buffer-size",
            "[method]udp-socket.set-receive-buffer-size",
            "[method]udp-socket.set-send-buffer-size",
            "[method]udp-socket.set-unicast-hop-limit",
            "[method]udp-socket.start-bind",
            "[method]udp-socket.stream",
            "[method]udp-socket.subscribe",
            "[method]udp-socket.unicast-hop-limit",
        ],
    )
}
