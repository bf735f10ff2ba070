//! Serializes requests.
//!
//! A call of the filter holds its instance until the layer below has answered. With one instance,
//! for each connection or for all, one request at a time is under way below. So the filter exports
//! every operation: what it did not export would pass around its instance.

use locks::{Held, Mode};
use rbdkit_filter_sdk::prelude::*;

/// What is serialized.
#[derive(Clone, Copy, PartialEq)]
enum Serialize {
    Requests,
    AllRequests,
    Connections,
}

impl Choice for Serialize {
    const CHOICES: &'static [(&'static str, Serialize)] = &[
        ("requests", Serialize::Requests),
        ("all-requests", Serialize::AllRequests),
        ("all_requests", Serialize::AllRequests),
        ("connections", Serialize::Connections),
    ];
}

params! {
    /// The parameters.
    pub struct Settings {
        /// What is serialized: the requests of each client, those of all clients, or the clients.
        serialize: Serialize = Serialize::Requests,
    }
}

/// The filter.
pub struct Noparallel {
    settings: Settings,
}

impl Noparallel {
    /// Waits for requests whose clients have left. The layer below still works on them, but their
    /// calls have ended and hold no instance. They keep their locks.
    ///
    /// With `requests` nobody is left who could wait for them, and with `connections` the next
    /// client waits for them before it opens the disk.
    fn wait_for_others(&self) -> Result<(), Errno> {
        if self.settings.serialize == Serialize::AllRequests {
            let _held = Held::new(Scope::Server, 0, u64::MAX, Mode::Exclusive)?;
        }
        Ok(())
    }
}

impl Filter for Noparallel {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("noparallel", env!("CARGO_PKG_VERSION"), "serializes requests")
            .help("The layers below get one request at a time, of each client or of all.")
            .thread_model(ThreadModel::SerializeRequests)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Noparallel { settings })
    }
}

impl Threading for Noparallel {
    fn thread_model(&self) -> ThreadModel {
        match self.settings.serialize {
            Serialize::Requests => ThreadModel::SerializeRequests,
            Serialize::AllRequests => ThreadModel::SerializeAllRequests,
            Serialize::Connections => ThreadModel::SerializeConnections,
        }
    }
}

impl Reads for Noparallel {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.wait_for_others()?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Noparallel {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.wait_for_others()?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Flushes for Noparallel {
    fn flush(&self) -> Result<(), Errno> {
        self.wait_for_others()?;
        next::flush()
    }
}

impl Trims for Noparallel {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.wait_for_others()?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for Noparallel {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.wait_for_others()?;
        next::zero(offset, length, flags)
    }
}

impl Mapping for Noparallel {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.wait_for_others()?;
        next::extents_forward_until(offset, length, u64::MAX, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for Noparallel {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.wait_for_others()?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(
    Noparallel: threading, reads, writes, flushes, trims, zeroes, mapping, caching
);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn the_thread_model_follows_the_parameter() {
        let model = |serialize| Noparallel { settings: Settings { serialize } }.thread_model();
        assert_eq!(model(Serialize::Requests), ThreadModel::SerializeRequests);
        assert_eq!(model(Serialize::AllRequests), ThreadModel::SerializeAllRequests);
        assert_eq!(model(Serialize::Connections), ThreadModel::SerializeConnections);
    }

    #[test]
    fn every_operation_enters_the_filter_and_passes_unchanged() {
        for word in ["serialize=requests", "serialize=all-requests", "serialize=all_requests", "serialize=connections"]
        {
            let host = Host::new(Disk::pattern(8192)).serve::<Noparallel>(&[word]).unwrap();
            let client = host.connect().unwrap();
            let fua = CommandFlags::FUA;
            host.take_calls();
            assert_eq!(client.pread(5, 7).unwrap(), host.disk()[5..12]);
            client.pwrite(1, b"x", fua).unwrap();
            client.flush().unwrap();
            client.trim(2, 3, fua).unwrap();
            client.zero(0, 8192, fua | CommandFlags::MAY_TRIM).unwrap();
            client.cache(4, 5).unwrap();
            client.extents(6, 7, CommandFlags::REQ_ONE).unwrap();
            assert_eq!(
                host.take_calls(),
                [
                    "pread 5 7",
                    "pwrite 1 1 fua",
                    "flush",
                    "trim 2 3 fua",
                    "zero 0 8192 fua may-trim",
                    "cache 4 5",
                    "extents 6 7 req-one"
                ]
            );
        }
        assert!(Host::new(Disk::zeroes(1)).serve::<Noparallel>(&["serialize=x"]).is_err());
    }
}
