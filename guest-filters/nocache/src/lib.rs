//! Changes how cache requests are handled.

use rbdkit_filter_sdk::prelude::*;

/// What happens to cache requests.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    None,
    Emulate,
    Nop,
}

impl Choice for Mode {
    const CHOICES: &'static [(&'static str, Mode)] =
        &[("none", Mode::None), ("emulate", Mode::Emulate), ("nop", Mode::Nop)];
}

params! {
    /// The parameters.
    pub struct Settings {
        /// What happens to cache requests.
        cachemode: Mode = Mode::None,
    }
}

/// The filter.
pub struct Nocache {
    mode: Mode,
}

impl Filter for Nocache {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("nocache", env!("CARGO_PKG_VERSION"), "changes how cache requests are handled")
            .help("Cache requests never reach the layer below.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Nocache { mode: settings.cachemode })
    }
}

impl Features for Nocache {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        let cache = match self.mode {
            Mode::None => Support::None,
            Mode::Emulate => Support::Emulate,
            Mode::Nop => Support::Native,
        };
        Ok(Capabilities { cache, ..below })
    }
}

impl Caching for Nocache {
    /// Called with `nop` only: in the other modes the host does not call it.
    fn cache(&self, _offset: u64, _length: u64) -> Result<(), Errno> {
        Ok(())
    }
}

rbdkit_filter_sdk::export!(Nocache: features, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_cache_request_fails_is_read_or_does_nothing() {
        for (word, answer, calls) in [
            ("cachemode=none", Err(Errno::Einval), &[][..]),
            ("cachemode=emulate", Ok(()), &["pread 0 512"]),
            ("cachemode=nop", Ok(()), &[]),
        ] {
            let host = Host::new(Disk::zeroes(512)).serve::<Nocache>(&[word]).unwrap();
            let client = host.connect().unwrap();
            host.take_calls();
            assert_eq!(client.cache(0, 512), answer, "{word}");
            assert_eq!(host.take_calls(), calls, "{word}");
        }
    }
}
