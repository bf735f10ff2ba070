//! Limits how many clients are connected at once.
//!
//! The count is a slot in the host. The host takes a client off the count when its connection ends,
//! however it ends.

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
    /// Counts the client, or refuses it.
    fn admit(&self) -> Result<(), Errno> {
        let Limit::AtMost(most) = self.limit else { return Ok(()) };
        // Clients that come at the same time are counted one after another. Without the lock two of
        // them could take the last place.
        let turn = Held::new(CONNECTED.scope, 0, 1, Mode::Exclusive)?;
        let admitted = self.limit.admits_another(CONNECTED.get().a);
        if admitted {
            slots::add_until_close(CONNECTED.scope, CONNECTED.index, 1);
        }
        turn.release();
        if !admitted {
            error!("limit={most}: a client was refused, because as many are connected");
            return Err(Errno::Eperm);
        }
        Ok(())
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

impl Connection for LimitFilter {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        if !replayed {
            self.admit()?;
        }
        next_open::open(readonly, exportname)?;
        Ok(0)
    }
}

rbdkit_filter_sdk::export!(LimitFilter: connection);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_place_is_free_again_when_a_client_leaves_or_cannot_open_the_disk() {
        let host = Host::new(Disk::pattern(512)).serve::<LimitFilter>(&["limit=2"]).unwrap();
        let first = host.connect().unwrap();
        let second = host.connect().unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eperm));
        assert_eq!(host.take_log(), ["error: limit=2: a client was refused, because as many are connected"]);
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
