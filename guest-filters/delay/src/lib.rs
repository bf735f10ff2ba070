//! Waits before each request, to stand for a slow or distant server.
#![deny(unsafe_code)]

mod plan;

use plan::Plan;
use rbdkit_filter_sdk::prelude::*;

/// The filter.
pub struct Delay {
    plan: Plan,
    fast_zero: bool,
}

/// Waits. Time spent here is not counted against the filter; it ends early, with an error, when nobody waits for the answer any more.
fn wait(ns: u64) -> Result<(), Errno> {
    if ns == 0 { Ok(()) } else { server::sleep(ns) }
}

impl Filter for Delay {
    fn describe() -> Description {
        let param = |name: &str, help: &str| Param::duration(name).default("0").help(help);
        Description::new("delay", env!("CARGO_PKG_VERSION"), "delays requests")
            .help("Durations are seconds, or have a unit: 50ms.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .param(param("delay-read", "Waits before each read.").alias("rdelay"))
            .param(param("delay-write", "Waits before each write."))
            .param(param("delay-zero", "Waits before zeroes are written."))
            .param(param("delay-trim", "Waits before each trim."))
            .param(param("delay-extents", "Waits before extents are answered."))
            .param(param("delay-cache", "Waits before each cache request."))
            .param(param("wdelay", "Waits before each write, zero and trim."))
            .param(Param::bool("delay-fast-zero").default("true").help("False: fast zero requests fail at once."))
            .param(param("delay-open", "Waits before a connection is opened."))
            .param(param("delay-close", "Waits before a connection is closed, if the client takes leave."))
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let mut plan = Plan::default();
        for (name, value) in params.iter().filter(|(name, _)| *name != "delay-fast-zero") {
            let ns = value.parse().map_err(|_| format!("{name}={value}: not a duration"))?;
            plan.set(name, ns);
        }
        Ok(Delay { plan, fast_zero: params.bool("delay-fast-zero")?.unwrap_or(true) })
    }
}

impl Connection for Delay {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        if !replayed {
            wait(self.plan.open)?;
        }
        next_open::open(readonly, exportname)?;
        Ok(0)
    }

    fn finalize(&self) -> Result<(), Errno> {
        // A client that is gone already is not waited for, which is no failure.
        let _ = wait(self.plan.close);
        Ok(())
    }
}

impl Features for Delay {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        // Without delay-fast-zero the answer is given here, whatever the layer below can.
        Ok(Capabilities { fast_zero: below.fast_zero || !self.fast_zero, ..below })
    }
}

impl Reads for Delay {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        wait(self.plan.read)?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Delay {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        wait(self.plan.write)?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Trims for Delay {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        wait(self.plan.trim)?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for Delay {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        if flags.contains(CommandFlags::FAST_ZERO) && !self.fast_zero {
            return Err(Errno::Enotsup);
        }
        wait(self.plan.zero)?;
        next::zero(offset, length, flags)
    }
}

impl Mapping for Delay {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        wait(self.plan.extents)?;
        next::extents_forward(offset, length, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for Delay {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        wait(self.plan.cache)?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(Delay: connection, features, reads, writes, trims, zeroes, mapping, caching);
