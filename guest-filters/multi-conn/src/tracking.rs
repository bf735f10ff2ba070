//! Which flushes have something to do.
//!
//! The layer below is dirty from the end of a write until a flush that began later has succeeded.
//! Writes are counted, and a flush remembers how many had ended when it began.

/// What the operator chose for `multi-conn-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As the layer below, as far as that is possible.
    Auto,
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

/// Whether a flush of the layer below covers the writes of all its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    AllConnections,
    OwnConnection,
}

impl Mode {
    /// Whether the filter tells clients that a flush covers all connections.
    pub fn offers(self, below: Below) -> bool {
        match self {
            Mode::Disable => false,
            Mode::Unsafe => true,
            Mode::Auto | Mode::Plugin => below == Below::AllConnections,
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
}

impl Tracking {
    /// What has to be tracked.
    pub fn new(mode: Mode, track: TrackDirty, below: Below) -> Tracking {
        match (track, below) {
            (TrackDirty::Off, _) => Tracking::Nothing,
            (TrackDirty::Fast, _) | (TrackDirty::Connection, Below::AllConnections) => Tracking::Export,
            // A connection below may hold writes of its own, and bytes it read that are old by now. A
            // client that believes in multi-conn flushes on any connection.
            (TrackDirty::Connection, Below::OwnConnection) => match mode.offers(below) {
                true => Tracking::Both,
                false => Tracking::Connection,
            },
        }
    }

    /// As the handle of a connection.
    pub fn to_handle(self) -> u64 {
        match self {
            Tracking::Nothing => 0,
            Tracking::Export => 1,
            Tracking::Connection => 2,
            Tracking::Both => 3,
        }
    }

    /// From the handle of a connection.
    pub fn from_handle(handle: u64) -> Tracking {
        match handle {
            1 => Tracking::Export,
            2 => Tracking::Connection,
            3 => Tracking::Both,
            _ => Tracking::Nothing,
        }
    }

    /// Whether the export counts its writes.
    pub fn counts_export(self) -> bool {
        matches!(self, Tracking::Export | Tracking::Both)
    }

    /// Whether the connection counts its reads and writes.
    pub fn counts_connection(self) -> bool {
        matches!(self, Tracking::Connection | Tracking::Both)
    }

    /// Whether a flush has something to do.
    pub fn is_dirty(self, counted: &Counts) -> bool {
        let export = counted.export != counted.export_flushed;
        let connection = counted.connection != counted.connection_flushed;
        let others = counted.export != counted.export_seen;
        match self {
            Tracking::Nothing => true,
            Tracking::Export => export,
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
    /// Reads and writes of the connection.
    pub connection: u64,
    /// Those before the connection's last flush.
    pub connection_flushed: u64,
    /// Writes of all connections before the connection's last flush.
    pub export_seen: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multi_conn_is_offered_as_the_mode_says() {
        for (mode, expected) in [
            (Mode::Auto, [true, false]),
            (Mode::Plugin, [true, false]),
            (Mode::Disable, [false, false]),
            (Mode::Unsafe, [true, true]),
        ] {
            assert_eq!([Below::AllConnections, Below::OwnConnection].map(|below| mode.offers(below)), expected);
        }
    }

    #[test]
    fn what_is_tracked_follows_from_what_a_flush_below_covers() {
        let tracking =
            |track, mode| [Below::AllConnections, Below::OwnConnection].map(|below| Tracking::new(mode, track, below));
        assert_eq!(tracking(TrackDirty::Off, Mode::Auto), [Tracking::Nothing; 2]);
        assert_eq!(tracking(TrackDirty::Fast, Mode::Plugin), [Tracking::Export; 2]);
        assert_eq!(tracking(TrackDirty::Connection, Mode::Plugin), [Tracking::Export, Tracking::Connection]);
        assert_eq!(tracking(TrackDirty::Connection, Mode::Unsafe), [Tracking::Export, Tracking::Both]);
        for each in [Tracking::Nothing, Tracking::Export, Tracking::Connection, Tracking::Both] {
            assert_eq!(Tracking::from_handle(each.to_handle()), each);
        }
    }

    #[test]
    fn a_flush_passes_if_something_was_counted_since_the_last() {
        let clean = Counts { export: 5, export_flushed: 5, connection: 3, connection_flushed: 3, export_seen: 5 };
        for each in [Tracking::Export, Tracking::Connection, Tracking::Both] {
            assert!(!each.is_dirty(&clean), "{each:?}");
        }
        assert!(Tracking::Nothing.is_dirty(&clean));
        let written_elsewhere = Counts { export: 6, ..clean };
        assert!(Tracking::Export.is_dirty(&written_elsewhere) && Tracking::Both.is_dirty(&written_elsewhere));
        assert!(!Tracking::Connection.is_dirty(&written_elsewhere));
        let flushed_elsewhere = Counts { export: 6, export_flushed: 6, ..clean };
        assert!(Tracking::Both.is_dirty(&flushed_elsewhere), "that flush was on another connection below");
        let read = Counts { connection: 4, ..clean };
        assert!(Tracking::Connection.is_dirty(&read) && Tracking::Both.is_dirty(&read));
    }
}
