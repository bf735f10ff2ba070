//! Sets whether clients are told that a flush covers other connections, and drops flushes that
//! change nothing.
//!
//! What is counted stands in slots of the host: for each export, and for each connection.

mod tracking;

use rbdkit_filter_sdk::prelude::*;
use slots::Slot;
use tracking::{Below, Counts, Mode, TrackDirty, Tracking};

params! {
    /// The parameters.
    pub struct Settings {
        /// Whether clients are told that a flush covers the writes of other connections.
        multi_conn_mode: Mode = Mode::Auto,
        /// Which flushes are dropped because nothing was written.
        multi_conn_track_dirty: TrackDirty = TrackDirty::Connection,
        /// Accepted for scripts that give it; it tunes a mode that is not supported in this version.
        multi_conn_exportname: bool = false,
    }
}

impl Choice for Mode {
    const CHOICES: &'static [(&'static str, Mode)] =
        &[("auto", Mode::Auto), ("plugin", Mode::Plugin), ("disable", Mode::Disable), ("unsafe", Mode::Unsafe)];
}

impl Choice for TrackDirty {
    const CHOICES: &'static [(&'static str, TrackDirty)] =
        &[("fast", TrackDirty::Fast), ("connection", TrackDirty::Connection), ("off", TrackDirty::Off)];
}

/// Word a: the writes that have ended. Word b: how many of them a flush of any connection covers.
const EXPORT: Slot = Slot { scope: Scope::Exportname, index: 0 };

/// Word a: the reads and writes that have ended. Words b and c: word a of this slot and of
/// [`EXPORT`] when the last flush of the connection began that succeeded.
const CONNECTION: Slot = Slot { scope: Scope::Connection, index: 0 };

/// The filter.
pub struct MultiConn {
    mode: Mode,
    track: TrackDirty,
}

/// What a flush below covers.
fn below(can: Capabilities) -> Below {
    if can.multi_conn { Below::AllConnections } else { Below::OwnConnection }
}

/// Counts a read, whose bytes the connection below may keep.
fn has_read() {
    if Tracking::from_handle(request::handle()).counts_connection() {
        slots::add(CONNECTION.scope, CONNECTION.index, 1);
    }
}

/// Counts a change. It counts after it has ended, also if it failed: part of it may be done.
fn has_written(result: Result<(), Errno>) -> Result<(), Errno> {
    let tracking = Tracking::from_handle(request::handle());
    if tracking.counts_connection() {
        slots::add(CONNECTION.scope, CONNECTION.index, 1);
    }
    if tracking.counts_export() {
        slots::add(EXPORT.scope, EXPORT.index, 1);
    }
    result
}

/// What was counted so far.
fn counts() -> Counts {
    let (export, connection) = (EXPORT.get(), CONNECTION.get());
    Counts {
        export: export.a,
        export_flushed: export.b,
        connection: connection.a,
        connection_flushed: connection.b,
        export_seen: connection.c,
    }
}

/// Remembers that a flush has covered what was counted when it began. A flush that began later may
/// have ended before.
fn has_flushed(counted: &Counts) {
    loop {
        let old = EXPORT.get();
        if EXPORT.replace(old, [old.a, old.b.max(counted.export), 0, 0]) {
            break;
        }
    }
    loop {
        let old = CONNECTION.get();
        let new = [old.a, old.b.max(counted.connection), old.c.max(counted.export), 0];
        if CONNECTION.replace(old, new) {
            break;
        }
    }
}

impl Filter for MultiConn {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("multi-conn", env!("CARGO_PKG_VERSION"), "sets whether a flush covers other connections")
            .help("auto and plugin offer what the layer below offers. unsafe may lose data.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(MultiConn { mode: settings.multi_conn_mode, track: settings.multi_conn_track_dirty })
    }
}

impl Connection for MultiConn {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        Ok(Tracking::new(self.mode, self.track, below(next::can()?)).to_handle())
    }
}

impl Features for MultiConn {
    fn can(&self, can: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { multi_conn: self.mode.offers(below(can)), ..can })
    }
}

impl Reads for MultiConn {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let result = next::pread(offset, length, PAYLOAD, 0);
        has_read();
        result
    }
}

impl Writes for MultiConn {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        has_written(next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Flushes for MultiConn {
    fn flush(&self) -> Result<(), Errno> {
        let tracking = Tracking::from_handle(request::handle());
        if tracking == Tracking::Nothing {
            return next::flush();
        }
        let counted = counts();
        if !tracking.is_dirty(&counted) {
            return Ok(());
        }
        next::flush()?;
        has_flushed(&counted);
        Ok(())
    }
}

impl Trims for MultiConn {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        has_written(next::trim(offset, length, flags))
    }
}

impl Zeroes for MultiConn {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        has_written(next::zero(offset, length, flags))
    }
}

impl Caching for MultiConn {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let result = next::cache(offset, length);
        has_read();
        result
    }
}

rbdkit_filter_sdk::export!(MultiConn: connection, features, reads, writes, flushes, trims, zeroes, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host, Served};

    fn serve(can_multi_conn: bool, words: &[&str]) -> Served<MultiConn> {
        let disk = Disk::pattern(8192).can(|can| can.multi_conn = can_multi_conn);
        Host::new(disk).serve::<MultiConn>(words).unwrap()
    }

    /// How often the layer below was flushed since the last time.
    fn flushes(host: &Served<MultiConn>) -> usize {
        host.take_calls().iter().filter(|call| *call == "flush").count()
    }

    #[test]
    fn a_flush_passes_only_if_something_was_written_that_none_has_covered() {
        let host = serve(true, &["multi-conn-mode=plugin"]);
        let (a, b) = (host.connect().unwrap(), host.connect().unwrap());
        let none = CommandFlags::empty();
        a.flush().unwrap();
        assert_eq!(flushes(&host), 0);
        a.pwrite(0, b"x", none).unwrap();
        b.flush().unwrap();
        a.flush().unwrap();
        assert_eq!(flushes(&host), 1, "the flush of b covers the write of a");
        a.zero(0, 512, none).unwrap();
        host.fail_next("flush", Errno::Eio);
        assert_eq!(a.flush(), Err(Errno::Eio));
        b.flush().unwrap();
        assert_eq!(flushes(&host), 2, "what failed is done again");
        a.trim(0, 512, none).unwrap();
        a.pread(0, 512).unwrap();
        b.flush().unwrap();
        b.flush().unwrap();
        assert_eq!(flushes(&host), 1);
    }

    #[test]
    fn where_each_connection_has_to_flush_each_one_is_tracked() {
        let host = serve(false, &["multi-conn-mode=plugin"]);
        let (a, b) = (host.connect().unwrap(), host.connect().unwrap());
        assert!(!a.can().multi_conn);
        a.pwrite(0, b"x", CommandFlags::empty()).unwrap();
        b.flush().unwrap();
        assert_eq!(flushes(&host), 0, "b has done nothing");
        a.flush().unwrap();
        b.pread(0, 1).unwrap();
        b.flush().unwrap();
        assert_eq!(flushes(&host), 2, "b may have read something that was old");
        b.flush().unwrap();
        assert_eq!(flushes(&host), 0);
    }

    #[test]
    fn an_unsafe_server_flushes_for_the_writes_of_any_connection() {
        let host = serve(false, &["multi-conn-mode=unsafe"]);
        let (a, b) = (host.connect().unwrap(), host.connect().unwrap());
        assert!(a.can().multi_conn);
        a.pwrite(0, b"x", CommandFlags::empty()).unwrap();
        b.flush().unwrap();
        a.flush().unwrap();
        assert_eq!(flushes(&host), 2);
    }

    #[test]
    fn without_tracking_every_flush_passes_and_with_fast_one_is_enough() {
        let host = serve(false, &["multi-conn-track-dirty=off", "multi-conn-mode=disable"]);
        let a = host.connect().unwrap();
        a.flush().unwrap();
        a.flush().unwrap();
        assert_eq!(flushes(&host), 2);
        let host = serve(false, &["multi-conn-track-dirty=fast"]);
        let (a, b) = (host.connect().unwrap(), host.connect().unwrap());
        a.pwrite(0, b"x", CommandFlags::empty()).unwrap();
        b.flush().unwrap();
        a.flush().unwrap();
        assert_eq!(flushes(&host), 1);
    }

    #[test]
    fn multi_conn_can_be_disabled() {
        assert!(serve(true, &[]).connect().unwrap().can().multi_conn);
        assert!(!serve(true, &["multi-conn-mode=disable"]).connect().unwrap().can().multi_conn);
        assert!(!serve(false, &[]).connect().unwrap().can().multi_conn);
    }
}
