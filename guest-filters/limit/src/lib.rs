//! Limits how many clients are connected at once.
//!
//! The count is a slot in the host. A client counts from the moment at which it opens an export,
//! and the host takes it off the count when its connection ends, however it ends. A client that
//! comes while the limit is reached is refused at once, before the handshake. Of clients that come
//! at the same moment as many get in as there are places, and the others are refused when they open
//! an export.

mod count;

use count::Limit;
use locks::{Held, Mode};
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

params! {
    /// The parameters.
    pub struct Settings {
        /// How many clients may be connected at once; 0 means any number.
        limit: u32 = 1,
    }
}

/// Word a: how many clients are connected.
const CONNECTED: Slot = Slot { scope: Scope::Server, index: 0 };

/// The filter.
pub struct LimitFilter {
    limit: Limit,
}

impl LimitFilter {
    /// Refuses a client for which there is no place.
    fn check(&self, connected: u64) -> Result<(), Errno> {
        if self.limit.admits_another(connected) {
            return Ok(());
        }
        if let Limit::AtMost(most) = self.limit {
            error!("limit={most}: a client was refused, because as many are connected");
        }
        Err(Errno::Eperm)
    }

    /// Counts the client, or refuses it.
    fn admit(&self) -> Result<(), Errno> {
        if self.limit == Limit::Unlimited {
            return Ok(());
        }
        // Clients that come at the same time are counted one after another. Without the lock two of
        // them could take the last place.
        let turn = Held::new(CONNECTED.scope, 0, 1, Mode::Exclusive)?;
        let connected = CONNECTED.get().a;
        if self.limit.admits_another(connected) {
            slots::add_until_close(CONNECTED.scope, CONNECTED.index, 1);
        }
        turn.release();
        self.check(connected)
    }
}

impl Filter for LimitFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("limit", env!("CARGO_PKG_VERSION"), "limits how many clients are connected at once")
            .help("A client beyond the limit is refused. It may try again later.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(LimitFilter { limit: Limit::new(settings.limit) })
    }
}

impl Admission for LimitFilter {
    fn preconnect(&self, readonly: bool) -> Result<(), Errno> {
        self.check(CONNECTED.get().a)?;
        next_open::preconnect(readonly)
    }
}

impl Connection for LimitFilter {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        if !replayed {
            self.admit()?;
        }
        next_open::open(readonly, exportname)?;
        Ok(0)
    }
}

rbdkit_filter_sdk::export!(LimitFilter: admission, connection);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_place_is_free_again_when_a_client_leaves_or_cannot_open_the_disk() {
        let host = Host::new(Disk::pattern(512)).serve::<LimitFilter>(&["limit=2"]).unwrap();
        let first = host.connect().unwrap();
        let second = host.connect().unwrap();
        host.take_calls();
        assert_eq!(host.connect().err(), Some(Errno::Eperm));
        assert_eq!(host.take_log(), ["error: limit=2: a client was refused, because as many are connected"]);
        assert_eq!(host.take_calls(), Vec::<String>::new(), "nothing below hears of it");
        drop(first);
        host.fail_next("open", Errno::Enoent);
        assert_eq!(host.connect().err(), Some(Errno::Enoent));
        let third = host.connect().unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eperm));
        drop((second, third));
        assert!(host.connect().is_ok());
    }

    #[test]
    fn one_client_is_the_default_and_0_lets_any_number_in() {
        let host = Host::new(Disk::pattern(512)).serve::<LimitFilter>(&[]).unwrap();
        let _first = host.connect().unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eperm));
        let host = Host::new(Disk::pattern(512)).serve::<LimitFilter>(&["limit=0"]).unwrap();
        let clients: Vec<_> = (0..100).map(|_| host.connect().unwrap()).collect();
        assert_eq!(clients.len(), 100);
    }
}
