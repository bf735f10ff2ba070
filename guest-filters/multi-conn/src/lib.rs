//! Sets whether clients are told that a flush covers other connections, makes it so, and drops
//! flushes that change nothing.
//!
//! What is counted stands in slots of the host: for each export, and for each connection.
//!
//! To emulate multi-conn, a flush goes to all connections below that have written. A connection
//! below may also hold bytes that it has read and that are old by now. It is flushed before its
//! next read, so that a connection that does not read costs nothing.

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
        /// A flush that is emulated goes only to the connections to the same disk.
        multi_conn_exportname: bool = false,
    }
}

impl Choice for Mode {
    const CHOICES: &'static [(&'static str, Mode)] = &[
        ("auto", Mode::Auto),
        ("emulate", Mode::Emulate),
        ("plugin", Mode::Plugin),
        ("disable", Mode::Disable),
        ("unsafe", Mode::Unsafe),
    ];
}

impl Choice for TrackDirty {
    const CHOICES: &'static [(&'static str, TrackDirty)] =
        &[("fast", TrackDirty::Fast), ("connection", TrackDirty::Connection), ("off", TrackDirty::Off)];
}

/// The slot of what is counted for all connections. Word a: the writes that have ended. Word b: how
/// many of them a flush of any connection covers. Word c: how many flushes went to all connections.
const EXPORT: u32 = 0;

/// Word a: the reads and writes that have ended. Words b and c: word a of this slot and of
/// [`EXPORT`] when the last flush of the connection began that succeeded. Word d: word c of
/// [`EXPORT`] up to which the connection sees what others have written.
const CONNECTION: Slot = Slot { scope: Scope::Connection, index: 0 };

/// The filter.
pub struct MultiConn {
    mode: Mode,
    track: TrackDirty,
    /// The connections that belong together when multi-conn is emulated.
    group: Scope,
}

/// What next does.
fn below(can: Capabilities) -> Below {
    let one_at_a_time = server::thread_model_below() == ThreadModel::SerializeConnections;
    Below { multi_conn: can.multi_conn, flush: can.flush, one_at_a_time }
}

/// How this connection is tracked.
fn tracking() -> Tracking {
    Tracking::from_handle(request::handle())
}

impl MultiConn {
    /// The slot of what is counted for all connections. A flush that goes to one connection covers
    /// one disk; an emulated one covers the group.
    fn export(&self, tracking: Tracking) -> Slot {
        let scope = if tracking.is_emulated() { self.group } else { Scope::Exportname };
        Slot { scope, index: EXPORT }
    }

    /// Counts a change. It counts after it has ended, also if it failed: part of it may be done.
    /// With FUA an emulated flush follows, which covers the other connections.
    fn has_written(&self, result: Result<(), Errno>, flags: CommandFlags) -> Result<(), Errno> {
        let tracking = tracking();
        if tracking.counts_connection() {
            slots::add(CONNECTION.scope, CONNECTION.index, 1);
        }
        if tracking.counts_export() {
            let slot = self.export(tracking);
            slots::add(slot.scope, slot.index, 1);
        }
        result?;
        if flags.contains(CommandFlags::FUA) && tracking.is_emulated() { self.flush() } else { Ok(()) }
    }

    /// Reads with `read`, which the connection below may answer from what it has read before.
    fn reads(&self, read: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let tracking = tracking();
        if tracking.is_emulated() {
            let counted = self.counts(tracking);
            if counted.epoch != counted.epoch_seen {
                if counted.may_be_stale() {
                    next::flush()?;
                }
                self.has_flushed(tracking, &counted, counted.epoch);
            }
        }
        let result = read();
        if tracking.counts_connection() {
            slots::add(CONNECTION.scope, CONNECTION.index, 1);
        }
        result
    }

    /// What was counted so far.
    fn counts(&self, tracking: Tracking) -> Counts {
        let (export, connection) = (self.export(tracking).get(), CONNECTION.get());
        Counts {
            export: export.a,
            export_flushed: export.b,
            epoch: export.c,
            connection: connection.a,
            connection_flushed: connection.b,
            export_seen: connection.c,
            epoch_seen: connection.d,
        }
    }

    /// Remembers that a flush of this connection has covered what was counted when it began, and up
    /// to which epoch it sees the writes of others. A flush that began later may have ended before.
    fn has_flushed(&self, tracking: Tracking, counted: &Counts, epoch: u64) {
        loop {
            let old = CONNECTION.get();
            // The writes that an emulated flush covers are marked for all connections.
            let seen = if tracking.is_emulated() { old.c } else { old.c.max(counted.export) };
            if CONNECTION.replace(old, [old.a, old.b.max(counted.connection), seen, old.d.max(epoch)]) {
                return;
            }
        }
    }

    /// Remembers that the writes are covered that were counted when a flush began. Returns the
    /// epoch, which is a new one if the flush went to all connections.
    fn has_covered(&self, tracking: Tracking, counted: &Counts) -> u64 {
        let slot = self.export(tracking);
        loop {
            let old = slot.get();
            let epoch = old.c + u64::from(tracking.is_emulated());
            if slot.replace(old, [old.a, old.b.max(counted.export), epoch, 0]) {
                return epoch;
            }
        }
    }
}

impl Filter for MultiConn {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("multi-conn", env!("CARGO_PKG_VERSION"), "sets whether a flush covers other connections")
            .help("auto emulates multi-conn if the layer below does not offer it. unsafe may lose data.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(MultiConn {
            mode: settings.multi_conn_mode,
            track: settings.multi_conn_track_dirty,
            group: if settings.multi_conn_exportname { Scope::Exportname } else { Scope::Server },
        })
    }
}

impl Connection for MultiConn {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let below = below(next::can()?);
        if self.mode == Mode::Emulate && !below.flush {
            error!("multi-conn-mode=emulate: the layer below cannot flush");
            return Err(Errno::Enotsup);
        }
        Ok(Tracking::new(self.mode, self.track, below).to_handle())
    }
}

impl Features for MultiConn {
    fn can(&self, can: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { multi_conn: self.mode.offers(below(can)), ..can })
    }
}

impl Reads for MultiConn {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.reads(|| next::pread(offset, length, PAYLOAD, 0))
    }
}

impl Writes for MultiConn {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.has_written(next::pwrite(offset, length, PAYLOAD, 0, flags), flags)
    }
}

impl Flushes for MultiConn {
    fn flush(&self) -> Result<(), Errno> {
        let tracking = tracking();
        if tracking == Tracking::Nothing {
            return next::flush();
        }
        let counted = self.counts(tracking);
        if !tracking.is_dirty(&counted) {
            return Ok(());
        }
        if tracking.is_emulated() {
            next::flush_all(self.group)?;
        } else {
            next::flush()?;
        }
        let epoch = self.has_covered(tracking, &counted);
        let seen = if tracking.is_emulated() { counted.seen_after(epoch) } else { 0 };
        self.has_flushed(tracking, &counted, seen);
        Ok(())
    }
}

impl Trims for MultiConn {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.has_written(next::trim(offset, length, flags), flags)
    }
}

impl Zeroes for MultiConn {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.has_written(next::zero(offset, length, flags), flags)
    }
}

impl Caching for MultiConn {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.reads(|| next::cache(offset, length))
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
        let host = serve(false, &["multi-conn-track-dirty=fast", "multi-conn-mode=plugin"]);
        let (a, b) = (host.connect().unwrap(), host.connect().unwrap());
        a.pwrite(0, b"x", CommandFlags::empty()).unwrap();
        b.flush().unwrap();
        a.flush().unwrap();
        assert_eq!(flushes(&host), 1);
    }

    /// The flushes that the layer below has seen since the last time.
    fn flushed(host: &Served<MultiConn>) -> Vec<String> {
        let calls = host.take_calls().into_iter().filter(|call| call.starts_with("flush"));
        calls.map(|call| call.replace("scope::", "")).collect()
    }

    #[test]
    fn an_emulated_flush_goes_to_all_and_a_connection_that_has_read_is_flushed_before_it_reads_again() {
        let host = serve(false, &[]);
        let (a, b, c) = (host.connect().unwrap(), host.connect().unwrap(), host.connect().unwrap());
        assert!(a.can().multi_conn);
        a.flush().unwrap();
        b.pread(0, 1).unwrap();
        assert_eq!(flushed(&host), Vec::<String>::new());
        a.pwrite(0, b"x", CommandFlags::empty()).unwrap();
        a.flush().unwrap();
        a.flush().unwrap();
        assert_eq!(flushed(&host), ["flush-all server"]);
        a.pread(0, 1).unwrap();
        c.pread(0, 1).unwrap();
        assert_eq!(flushed(&host), Vec::<String>::new(), "a was flushed, and c had read nothing");
        b.pread(0, 1).unwrap();
        b.pread(0, 1).unwrap();
        assert_eq!(flushed(&host), ["flush"], "b may have kept what it read");
        b.pwrite(0, b"y", CommandFlags::FUA).unwrap();
        c.cache(0, 1).unwrap();
        assert_eq!(flushed(&host), ["flush-all server", "flush"]);
    }

    #[test]
    fn an_emulated_flush_can_keep_to_one_disk_and_needs_a_layer_that_flushes() {
        let words = ["multi-conn-mode=emulate", "multi-conn-exportname=true", "multi-conn-track-dirty=off"];
        let host = serve(true, &words);
        host.connect().unwrap().flush().unwrap();
        assert_eq!(flushed(&host), ["flush-all exportname"]);
        let disk = || Disk::pattern(512).can(|can| (can.flush, can.multi_conn) = (false, false));
        let host = Host::new(disk()).serve::<MultiConn>(&words).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Enotsup));
        let host = Host::new(disk()).serve::<MultiConn>(&[]).unwrap();
        assert!(!host.connect().unwrap().can().multi_conn);
    }

    #[test]
    fn multi_conn_can_be_disabled() {
        assert!(serve(true, &[]).connect().unwrap().can().multi_conn);
        assert!(!serve(true, &["multi-conn-mode=disable"]).connect().unwrap().can().multi_conn);
        assert!(!serve(false, &["multi-conn-mode=plugin"]).connect().unwrap().can().multi_conn);
    }
}
