//! Opens the layer below once for each disk, however many clients connect.

use rbdkit_filter_sdk::prelude::*;

/// The filter.
pub struct Openonce;

impl Filter for Openonce {
    type Params = ();

    fn describe() -> Description {
        Description::new("openonce", env!("CARGO_PKG_VERSION"), "opens the layer below once for all clients")
            .help("For plugins that take long to open. The layer below stays open until the server ends.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Openonce)
    }
}

impl Connection for Openonce {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open_shared(readonly, exportname)?;
        Ok(0)
    }
}

rbdkit_filter_sdk::export!(Openonce: connection);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn requests_pass_through() {
        let host = Host::new(Disk::pattern(4096)).serve::<Openonce>(&[]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!(client.pread(5, 7).unwrap(), host.disk()[5..12]);
    }
}
