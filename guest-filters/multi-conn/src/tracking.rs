//! Which flushes have something to do.
//!
//! The layer below is dirty from the end of a write until a flush that began later has succeeded.
//! Writes are counted, and a flush remembers how many had ended when it began.

/// What the operator chose for `multi-conn-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As the layer below, or emulated.
    Auto,
    /// Each flush covers all connections.
    Emulate,
    /// As the layer below.
    Plugin,
    /// Multi-conn is not offered.
    Disable,
    /// Multi-conn is offered, whether it is true or not.
    Unsafe,
}

/// What the operator chose for `multi-conn-track-dirty`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackDirty {
    /// One mark for all connections.
    Fast,
    /// What is needed so that no flush is left out that a client may rely on.
    Connection,
    /// Every flush passes.
    Off,
}

/// What the layer below does on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    /// A flush covers the writes of all connections.
    pub multi_conn: bool,
    /// It can flush.
    pub flush: bool,
    /// It serves one connection at a time.
    pub one_at_a_time: bool,
}

impl Mode {
    /// What is done over a layer: every mode but `Auto`.
    pub fn over(self, below: Below) -> Mode {
        match self {
            Mode::Auto if below.one_at_a_time => Mode::Disable,
            // Without flush there is nothing to emulate with.
            Mode::Auto if below.multi_conn || !below.flush => Mode::Plugin,
            Mode::Auto => Mode::Emulate,
            chosen => chosen,
        }
    }

    /// Whether the filter tells clients that a flush covers all connections.
    pub fn offers(self, below: Below) -> bool {
        match self.over(below) {
            Mode::Disable => false,
            Mode::Unsafe | Mode::Emulate => true,
            Mode::Auto | Mode::Plugin => below.multi_conn,
        }
    }
}

/// What decides whether a flush of one connection passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// It always passes.
    Nothing,
    /// Whether the export is dirty.
    Export,
    /// Whether the connection has read or written.
    Connection,
    /// Whether the connection has read or written, or any connection has written.
    Both,
    /// Whether any connection has written. The flush goes to all.
    All,
    /// It always passes, and goes to all.
    AllAlways,
}

impl Tracking {
    /// What has to be tracked.
    pub fn new(mode: Mode, track: TrackDirty, below: Below) -> Tracking {
        match (mode.over(below), track) {
            (Mode::Emulate, TrackDirty::Off) => Tracking::AllAlways,
            (Mode::Emulate, _) => Tracking::All,
            (_, TrackDirty::Off) => Tracking::Nothing,
            (_, TrackDirty::Fast) => Tracking::Export,
            (_, TrackDirty::Connection) if below.multi_conn => Tracking::Export,
            // A connection below may hold writes of its own, and bytes it read that are old by now.
            // A client that believes in multi-conn flushes on any connection.
            (Mode::Unsafe, TrackDirty::Connection) => Tracking::Both,
            (_, TrackDirty::Connection) => Tracking::Connection,
        }
    }

    /// As the handle of a connection.
    pub fn to_handle(self) -> u64 {
        self as u64
    }

    /// From the handle of a connection.
    pub fn from_handle(handle: u64) -> Tracking {
        use Tracking::{All, AllAlways, Both, Connection, Export, Nothing};
        let known = [Nothing, Export, Connection, Both, All, AllAlways];
        known.into_iter().find(|each| each.to_handle() == handle).unwrap_or(Nothing)
    }

    /// Whether a flush goes to all connections.
    pub fn is_emulated(self) -> bool {
        matches!(self, Tracking::All | Tracking::AllAlways)
    }

    /// Whether the export counts its writes.
    pub fn counts_export(self) -> bool {
        matches!(self, Tracking::Export | Tracking::Both | Tracking::All | Tracking::AllAlways)
    }

    /// Whether the connection counts its reads and writes.
    pub fn counts_connection(self) -> bool {
        matches!(self, Tracking::Connection | Tracking::Both | Tracking::All | Tracking::AllAlways)
    }

    /// Whether a flush has something to do.
    pub fn is_dirty(self, counted: &Counts) -> bool {
        let export = counted.export != counted.export_flushed;
        let connection = counted.connection != counted.connection_flushed;
        let others = counted.export != counted.export_seen;
        match self {
            Tracking::Nothing | Tracking::AllAlways => true,
            Tracking::Export | Tracking::All => export,
            Tracking::Connection => connection,
            Tracking::Both => connection || others,
        }
    }
}

/// What was counted when a flush begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes of all connections to the export.
    pub export: u64,
    /// Those that a flush of any connection has covered.
    pub export_flushed: u64,
    /// Flushes that went to all connections.
    pub epoch: u64,
    /// Reads and writes of the connection.
    pub connection: u64,
    /// Those before the connection's last flush.
    pub connection_flushed: u64,
    /// Writes of all connections before the connection's last flush.
    pub export_seen: u64,
    /// The last epoch whose writes the connection sees.
    pub epoch_seen: u64,
}

impl Counts {
    /// Whether the connection below may hold bytes that it read before the last flush of another
    /// connection. A read after that flush has to see what that connection has written.
    pub fn may_be_stale(&self) -> bool {
        self.epoch != self.epoch_seen && self.connection != self.connection_flushed
    }

    /// The epoch that the connection sees after its own flush has ended one more. `epoch` is that
    /// number. If another flush has ended as well, it may cover more.
    pub fn seen_after(&self, epoch: u64) -> u64 {
        if epoch == self.epoch.wrapping_add(1) { epoch } else { self.epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LACKS: Below = Below { multi_conn: false, flush: true, one_at_a_time: false };
    const HAS: Below = Below { multi_conn: true, ..LACKS };

    #[test]
    fn multi_conn_is_offered_as_the_mode_says() {
        for (mode, expected) in [
            (Mode::Auto, [true, true]),
            (Mode::Emulate, [true, true]),
            (Mode::Plugin, [true, false]),
            (Mode::Disable, [false, false]),
            (Mode::Unsafe, [true, true]),
        ] {
            assert_eq!([HAS, LACKS].map(|below| mode.offers(below)), expected, "{mode:?}");
        }
    }

    #[test]
    fn auto_emulates_only_where_it_has_to_and_can() {
        assert_eq!((Mode::Auto.over(HAS), Mode::Auto.over(LACKS)), (Mode::Plugin, Mode::Emulate));
        assert_eq!(Mode::Auto.over(Below { one_at_a_time: true, ..LACKS }), Mode::Disable);
        assert_eq!(Mode::Auto.over(Below { flush: false, ..LACKS }), Mode::Plugin);
        assert_eq!(Mode::Emulate.over(HAS), Mode::Emulate);
    }

    #[test]
    fn what_is_tracked_follows_from_what_a_flush_below_covers() {
        let tracking = |track, mode| [HAS, LACKS].map(|below| Tracking::new(mode, track, below));
        assert_eq!(tracking(TrackDirty::Off, Mode::Plugin), [Tracking::Nothing; 2]);
        assert_eq!(tracking(TrackDirty::Off, Mode::Auto), [Tracking::Nothing, Tracking::AllAlways]);
        assert_eq!(tracking(TrackDirty::Fast, Mode::Plugin), [Tracking::Export; 2]);
        assert_eq!(tracking(TrackDirty::Connection, Mode::Plugin), [Tracking::Export, Tracking::Connection]);
        assert_eq!(tracking(TrackDirty::Connection, Mode::Unsafe), [Tracking::Export, Tracking::Both]);
        assert_eq!(tracking(TrackDirty::Connection, Mode::Auto), [Tracking::Export, Tracking::All]);
        use Tracking::{All, AllAlways, Both, Connection, Export, Nothing};
        for each in [Nothing, Export, Connection, Both, All, AllAlways] {
            assert_eq!(Tracking::from_handle(each.to_handle()), each);
        }
        assert_eq!(Tracking::from_handle(77), Nothing);
    }

    #[test]
    fn a_flush_passes_if_something_was_counted_since_the_last() {
        let (export, connection) = (5, 3);
        let clean = Counts {
            export,
            export_flushed: export,
            connection,
            connection_flushed: connection,
            export_seen: export,
            ..Counts::default()
        };
        for each in [Tracking::Export, Tracking::Connection, Tracking::Both, Tracking::All] {
            assert!(!each.is_dirty(&clean), "{each:?}");
        }
        assert!(Tracking::Nothing.is_dirty(&clean) && Tracking::AllAlways.is_dirty(&clean));
        let written_elsewhere = Counts { export: 6, ..clean };
        assert!(Tracking::Export.is_dirty(&written_elsewhere) && Tracking::Both.is_dirty(&written_elsewhere));
        assert!(Tracking::All.is_dirty(&written_elsewhere) && !Tracking::Connection.is_dirty(&written_elsewhere));
        let flushed_elsewhere = Counts { export: 6, export_flushed: 6, ..clean };
        assert!(Tracking::Both.is_dirty(&flushed_elsewhere), "that flush was on another connection below");
        let read = Counts { connection: 4, ..clean };
        assert!(Tracking::Connection.is_dirty(&read) && Tracking::Both.is_dirty(&read));
    }

    #[test]
    fn a_connection_may_be_stale_if_it_has_read_before_the_flush_of_another() {
        let fresh = Counts { epoch: 7, epoch_seen: 6, ..Counts::default() };
        assert!(!fresh.may_be_stale(), "it has read nothing");
        let read = Counts { connection: 1, ..fresh };
        assert!(read.may_be_stale() && !Counts { epoch_seen: 7, ..read }.may_be_stale());
        assert_eq!(read.seen_after(8), 8);
        assert_eq!(read.seen_after(9), 7, "another flush has ended meanwhile");
    }
}
