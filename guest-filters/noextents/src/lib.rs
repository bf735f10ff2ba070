//! Hides which parts of the disk are holes: everything counts as data.

use rbdkit_filter_sdk::prelude::*;

/// The filter.
pub struct Noextents;

impl Filter for Noextents {
    type Params = ();

    fn describe() -> Description {
        Description::new("noextents", env!("CARGO_PKG_VERSION"), "hides which parts of the disk are holes")
            .help("Clients see a disk that is data everywhere.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Noextents)
    }
}

impl Features for Noextents {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { extents: false, ..below })
    }
}

rbdkit_filter_sdk::export!(Noextents: features);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn only_extents_are_withdrawn_and_the_layer_below_is_not_asked_for_them() {
        let host = Host::new(Disk::zeroes(8192)).serve::<Noextents>(&[]).unwrap();
        let client = host.connect().unwrap();
        host.take_calls();
        assert!(!client.can().extents && client.can().trim && client.can().write);
        let data = Extent { offset: 0, length: 8192, kind: ExtentType::empty() };
        assert_eq!(client.extents(0, 8192, CommandFlags::empty()).unwrap(), [data]);
        client.zero(0, 10, CommandFlags::empty()).unwrap();
        assert_eq!(host.take_calls(), ["zero 0 10"]);
    }
}
