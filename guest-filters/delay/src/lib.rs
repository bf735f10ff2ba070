//! Waits before each request, to simulate a slow or distant server.

mod delays;

use delays::Delays;
use rbdkit_filter_sdk::prelude::*;

/// The filter.
pub struct Delay {
    delays: Delays,
    fast_zero: bool,
    /// The file that must exist.
    trigger: Option<Watch>,
}

impl Delay {
    /// Whether the filter does anything now.
    fn is_on(&self) -> bool {
        // A file that cannot be looked at counts as missing.
        self.trigger.as_ref().is_none_or(|file| files::holds(file.param(), 0).unwrap_or(false))
    }

    /// Waits. The time does not count against the filter's limits. The wait ends early, with an
    /// error, if the client disconnects or the server stops.
    fn wait(&self, ns: u64) -> Result<(), Errno> {
        if ns == 0 || !self.is_on() { Ok(()) } else { server::sleep(ns) }
    }
}

/// By hand: of `wdelay` and the delays that it replaces, the later one wins.
impl Parameters for Delay {
    fn declare() -> Vec<Param> {
        let param = |name: &str, help: &str| Param::duration(name).default("0").help(help);
        vec![
            param("delay-read", "Time to wait before each read.").alias("delay-reads").alias("rdelay"),
            param("delay-write", "Time to wait before each write.").alias("delay-writes"),
            param("delay-zero", "Time to wait before each zero request.").alias("delay-zeroes"),
            param("delay-trim", "Time to wait before each trim.")
                .alias("delay-trims")
                .alias("delay-discard")
                .alias("delay-discards"),
            param("delay-extents", "Time to wait before each request for extents.").alias("delay-extent"),
            param("delay-cache", "Time to wait before each cache request."),
            param("wdelay", "Time to wait before each write, zero and trim."),
            Param::bool("delay-fast-zero")
                .default("true")
                .help("If false, fast zero requests fail at once with ENOTSUP."),
            param("delay-open", "Time to wait before a connection is opened."),
            param("delay-close", "Time to wait before a connection is closed, if the client disconnects properly."),
            Param::watch("delay-trigger").help("Nothing is delayed while this file does not exist."),
        ]
    }

    fn read(given: &Params) -> Result<Self, String> {
        let mut delays = Delays::default();
        let others = ["delay-fast-zero", "delay-trigger"];
        for (name, value) in given.iter().filter(|(name, _)| !others.contains(name)) {
            let ns = value.parse().map_err(|_| format!("{name}={value}: not a duration"))?;
            delays.set(name, ns);
        }
        Ok(Delay {
            delays,
            fast_zero: given.get::<Option<bool>>("delay-fast-zero")?.unwrap_or(true),
            trigger: given.get("delay-trigger")?,
        })
    }
}

impl Filter for Delay {
    type Params = Delay;

    fn describe() -> Description {
        Description::new("delay", env!("CARGO_PKG_VERSION"), "delays requests")
            .help("A time is a number of seconds, or has a unit: 50ms.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(delay: Delay) -> Result<Self, String> {
        Ok(delay)
    }
}

impl Connection for Delay {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        if !replayed {
            self.wait(self.delays.open)?;
        }
        next_open::open(readonly, exportname)?;
        Ok(0)
    }

    fn finalize(&self) -> Result<(), Errno> {
        // The wait ends early if the client has gone. That is not a failure.
        let _ = self.wait(self.delays.close);
        Ok(())
    }
}

impl Features for Delay {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        // With delay-fast-zero=false this filter answers fast zero itself, whatever next can do.
        Ok(Capabilities { fast_zero: below.fast_zero || !self.fast_zero, ..below })
    }
}

impl Reads for Delay {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.wait(self.delays.read)?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Delay {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.wait(self.delays.write)?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Trims for Delay {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.wait(self.delays.trim)?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for Delay {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        if flags.contains(CommandFlags::FAST_ZERO) && !self.fast_zero && self.is_on() {
            return Err(Errno::Enotsup);
        }
        self.wait(self.delays.zero)?;
        next::zero(offset, length, flags)
    }
}

impl Mapping for Delay {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.wait(self.delays.extents)?;
        next::extents_forward_until(offset, length, u64::MAX, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for Delay {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.wait(self.delays.cache)?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(Delay: connection, features, reads, writes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_request_waits_and_the_later_of_wdelay_and_delay_write_counts() {
        let words = ["delay-write=7ms", "rdelay=2", "wdelay=3ms", "delay-trim=1ns"];
        let host = Host::new(Disk::pattern(512)).serve::<Delay>(&words).unwrap();
        let client = host.connect().unwrap();
        host.take_calls();
        client.pread(0, 1).unwrap();
        client.pwrite(0, b"x", CommandFlags::empty()).unwrap();
        client.trim(0, 1, CommandFlags::empty()).unwrap();
        let calls = ["sleep 2000000000", "pread 0 1", "sleep 3000000", "pwrite 0 1", "sleep 1", "trim 0 1"];
        assert_eq!(host.take_calls(), calls);
    }

    #[test]
    fn nothing_is_delayed_while_the_file_does_not_exist() {
        let words = ["rdelay=1", "delay-open=1", "delay-fast-zero=no", "delay-trigger=/slow"];
        let disk = Disk::pattern(512).can(|can| can.fast_zero = true);
        let host = Host::new(disk).serve::<Delay>(&words).unwrap();
        let client = host.connect().unwrap();
        client.pread(0, 1).unwrap();
        assert_eq!((client.zero(0, 1, CommandFlags::FAST_ZERO), host.time()), (Ok(()), 0));
        host.set_file("/slow", Some(b""));
        client.pread(0, 1).unwrap();
        assert_eq!(client.zero(0, 1, CommandFlags::FAST_ZERO), Err(Errno::Enotsup));
        host.connect().unwrap();
        assert_eq!(host.time(), 2_000_000_000);
        host.set_file("/slow", None);
        client.pread(0, 1).unwrap();
        assert_eq!(host.time(), 2_000_000_000);
    }

    #[test]
    fn fast_zero_can_be_refused_at_once() {
        let host = Host::new(Disk::pattern(512)).serve::<Delay>(&["delay-fast-zero=no"]).unwrap();
        let zeroed = host.connect().unwrap().zero(0, 1, CommandFlags::FAST_ZERO);
        assert_eq!((zeroed, host.time()), (Err(Errno::Enotsup), 0));
    }
}
