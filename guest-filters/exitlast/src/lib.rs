//! Ends the server when the last client has left.

use rbdkit_filter_sdk::prelude::*;

/// Word a is 1 once a client has connected.
const CONNECTED: slots::Slot = slots::Slot { scope: Scope::Server, index: 0 };

/// The filter.
pub struct Exitlast;

impl Filter for Exitlast {
    type Params = ();

    fn describe() -> Description {
        Description::new("exitlast", env!("CARGO_PKG_VERSION"), "ends the server when the last client has left")
            .help("The server does not end before the first client has connected.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Exitlast)
    }
}

impl OnConnection for Exitlast {
    fn opened(&self, _connection: u64) {
        let old = CONNECTED.get();
        // Only events change the slot, and they are called one at a time.
        CONNECTED.replace(old, [1, 0, 0, 0]);
    }

    fn closed(&self, _connection: u64) {
        if CONNECTED.get().a == 1 && server::connections() == 0 && server::shutdown().is_ok() {
            debug!("the last client has left: the server ends");
        }
    }
}

rbdkit_filter_sdk::export!(Exitlast: on_connection);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn the_server_ends_with_its_last_client_and_not_before_the_first() {
        let host = Host::new(Disk::pattern(8192)).serve::<Exitlast>(&[]).unwrap();
        host.pass_time(1 << 40);
        assert!(!host.shutdown_asked());
        let one = host.connect().unwrap();
        let two = host.connect().unwrap();
        one.close().unwrap();
        assert!(!host.shutdown_asked());
        assert_eq!(two.pread(5, 7).unwrap(), host.disk()[5..12]);
        two.close().unwrap();
        assert!(host.shutdown_asked());
    }

    #[test]
    fn a_client_that_could_not_connect_does_not_count() {
        let host = Host::new(Disk::pattern(512)).serve::<Exitlast>(&[]).unwrap();
        host.fail_next("open", Errno::Enoent);
        assert_eq!(host.connect().err(), Some(Errno::Enoent));
        assert!(!host.shutdown_asked());
        host.connect().unwrap().close().unwrap();
        assert!(host.shutdown_asked());
    }
}
