//! Limits how long a client may be connected.

use std::time::Duration;

use rbdkit_filter_sdk::client::Ending;
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The filter's parameters.
    pub struct Settings {
        /// How long a client may be connected.
        time_limit: Duration = Duration::from_secs(60),
    }
}

/// The alarm at the limit: the requests under way are still answered.
const LIMIT: u32 = 0;

/// The alarm after that: the connection is closed.
const END: u32 = 1;

/// How long the requests under way may take after the limit.
const GRACE: Duration = Duration::from_secs(1);

/// The filter.
pub struct TimeLimit {
    limit: Duration,
}

impl Filter for TimeLimit {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("time-limit", env!("CARGO_PKG_VERSION"), "limits how long a client may be connected")
            .help("Requests that are under way at the limit get one more second.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        match settings.time_limit {
            Duration::ZERO => Err("time-limit=0: has to be longer than 0".into()),
            limit => Ok(TimeLimit { limit }),
        }
    }
}

impl Connection for TimeLimit {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        if !replayed {
            alarms::set_after(Scope::Connection, LIMIT, self.limit)?;
        }
        next_open::open(readonly, exportname)?;
        Ok(0)
    }
}

impl OnAlarm for TimeLimit {
    fn alarm(&self, _scope: Scope, id: u32) {
        if id == LIMIT {
            info!("connection {}: it has reached the time limit of {:?}", request::connection(), self.limit);
            // Without the right to do so the host has told the operator how to grant it.
            let _ = client::disconnect(Ending::AfterAnswers);
            let _ = alarms::set_after(Scope::Connection, END, GRACE);
        } else {
            let _ = client::disconnect(Ending::AtOnce);
        }
    }
}

rbdkit_filter_sdk::export!(TimeLimit: connection, on_alarm);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn each_connection_ends_at_its_own_limit_and_at_once_a_second_later() {
        let host = Host::new(Disk::pattern(512)).serve::<TimeLimit>(&["time-limit=10"]).unwrap();
        let one = host.connect().unwrap();
        host.pass_time(4 * SECOND);
        let two = host.connect().unwrap();
        host.pass_time(6 * SECOND - 1);
        assert_eq!((one.disconnected(), two.disconnected()), (None, None));
        host.pass_time(1);
        assert_eq!((one.disconnected(), two.disconnected()), (Some(Ending::AfterAnswers), None));
        host.pass_time(SECOND);
        assert_eq!((one.disconnected(), two.disconnected()), (Some(Ending::AtOnce), None));
        one.close().unwrap();
        two.close().unwrap();
        host.take_log();
        host.pass_time(100 * SECOND);
        assert_eq!(host.take_log(), [""; 0], "the alarms of a connection end with it");
    }

    #[test]
    fn the_limit_is_a_time_longer_than_nothing() {
        let refused = Host::new(Disk::pattern(512)).serve::<TimeLimit>(&["time-limit=0"]);
        assert_eq!(refused.err(), Some("time-limit: time-limit=0: has to be longer than 0".into()));
        let host = Host::new(Disk::pattern(512)).serve::<TimeLimit>(&[]).unwrap();
        let client = host.connect().unwrap();
        host.pass_time(60 * SECOND - 1);
        assert_eq!(client.disconnected(), None);
        host.pass_time(1);
        assert_eq!(client.disconnected(), Some(Ending::AfterAnswers));
        assert_eq!(host.take_log(), ["info: connection 1: it has reached the time limit of 60s"]);
    }
}
