//! Says whether the disk has slow seeks.

use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// Whether seeks are slow, as on a spinning disk.
        rotational: bool = true,
    }
}

/// The filter.
pub struct Rotational {
    settings: Settings,
}

impl Filter for Rotational {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("rotational", env!("CARGO_PKG_VERSION"), "says whether the disk has slow seeks")
            .help("A client may order its requests by it.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Rotational { settings })
    }
}

impl Features for Rotational {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { rotational: self.settings.rotational, ..below })
    }
}

rbdkit_filter_sdk::export!(Rotational: features);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn the_parameter_counts_whatever_the_layer_below_says() {
        for (words, expected) in [(&[][..], true), (&["rotational=false"], false), (&["rotational=1"], true)] {
            for below in [false, true] {
                let disk = Disk::zeroes(512).can(|can| can.rotational = below);
                let host = Host::new(disk).serve::<Rotational>(words).unwrap();
                assert_eq!(host.connect().unwrap().can().rotational, expected);
            }
        }
    }
}
