//! Prefetches the whole disk, from its start to its end, while clients are connected.
//!
//! The host's prefetch workers do the work: they ask for the next range whenever they have nothing
//! else to do. The position of the scan is in a slot of the export, so that all connections share
//! one scan.

mod scan_plan;

use rbdkit_filter_sdk::prelude::*;
use scan_plan::ScanPlan;
use slots::Slot;

/// Word a: the position of the scan. Word b: where it started, or where a client last moved it.
const POSITION: Slot = Slot { scope: Scope::Exportname, index: 0 };

/// The slot that counts the connections to the export.
const CONNECTIONS: u32 = 1;

params! {
    /// The parameters.
    pub struct Settings {
        /// Skip forward to where clients read.
        scan_ahead: bool = true,
        /// Continue where the scan stopped when clients come back.
        scan_clock: bool = true,
        /// Start again at the end of the disk.
        scan_forever: bool = false,
        /// Bytes of one prefetch: a power of two from 512 to 32M.
        #[param(check = step_size)]
        scan_size: Size = Size(2 << 20),
    }
}

fn step_size(size: &Size) -> Result<(), String> {
    match size.0.is_power_of_two() && (512..=32 << 20).contains(&size.0) {
        true => Ok(()),
        false => Err("not a power of two from 512 to 32M".into()),
    }
}

/// The filter.
pub struct Scan {
    plan: ScanPlan,
    /// Whether to continue where the scan stopped when clients come back.
    resume: bool,
}

impl Scan {
    fn after_read(&self, end: u64) {
        let old = POSITION.get();
        let position = self.plan.after_read(old.a, end);
        if position != old.a {
            // If another call changed it meanwhile, it moved forward as well.
            POSITION.replace(old, [position, position, 0, 0]);
        }
    }

    /// Called when the first client connects.
    fn start(&self) {
        loop {
            let old = POSITION.get();
            let position = if self.resume { self.plan.resume(old.a, old.b) } else { 0 };
            if POSITION.replace(old, [position, old.b.min(position), 0, 0]) {
                return;
            }
        }
    }
}

impl Filter for Scan {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("scan", env!("CARGO_PKG_VERSION"), "prefetches the whole disk while clients are connected")
            .help("The plugin or a filter after this one must be able to cache: use --filter=scan --filter=cache.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .state_version(1)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let plan = ScanPlan { step: settings.scan_size.0, ahead: settings.scan_ahead, forever: settings.scan_forever };
        Ok(Scan { plan, resume: settings.scan_clock })
    }
}

impl Connection for Scan {
    /// The handle is 1 if something below can cache, else 0.
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let can_cache = next::can()?.cache == Support::Native;
        if !can_cache && !replayed {
            warn!("nothing below can cache, so nothing is prefetched: add --filter=cache after --filter=scan");
        }
        Ok(can_cache.into())
    }

    fn prepare(&self) -> Result<(), Errno> {
        if slots::add_until_close(Scope::Exportname, CONNECTIONS, 1) == 1 {
            self.start();
        }
        Ok(())
    }
}

impl Reads for Scan {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        // Where nothing below can cache there is no scan, and asking for the handle is cheaper than
        // for the position.
        if request::handle() > 0 {
            self.after_read(offset.saturating_add(length.into()));
        }
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Background for Scan {
    fn next_range(&self) -> Option<(u64, u64)> {
        if request::handle() == 0 {
            return None;
        }
        let size = next::get_size().ok()?;
        loop {
            let old = POSITION.get();
            let (from, length) = self.plan.next_range(old.a, size)?;
            // If this fails, another connection took the range or a read moved the position.
            if POSITION.replace(old, [from + length, old.b.min(from), 0, 0]) {
                return Some((from, length));
            }
        }
    }
}

rbdkit_filter_sdk::export!(Scan: connection, reads, background);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn connections_share_one_scan_which_goes_on_when_clients_come_back() {
        let host = Host::new(Disk::zeroes(8192)).serve::<Scan>(&["scan-size=1k"]).unwrap();
        let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
        assert_eq!((one.next_range(), two.next_range()), (Some((0, 1024)), Some((1024, 1024))));
        one.pread(4096, 100).unwrap();
        assert_eq!(two.next_range(), Some((4196, 924)));
        drop((one, two));
        // It may repeat what was in progress, but nothing from before a client moved it.
        assert_eq!(host.connect().unwrap().next_range(), Some((4196, 924)));
    }
}
