//! Limits the bandwidth of reads and of writes, of each connection and of all together.
//!
//! The buckets are slots in the host, so that all instances and all connections share them.

mod bucket;

use std::time::Duration;

use bucket::{SECOND, cost, take};
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

params! {
    /// The parameters.
    pub struct Settings {
        /// Limit of all connections together, in bits per second.
        rate: Option<Size>,
        /// Limit of each connection, in bits per second.
        connection_rate: Option<Size>,
        /// A file with a rate that replaces rate; it may change while the server runs.
        rate_file: Option<CurrentFile>,
        /// A file with a rate that replaces connection-rate.
        connection_rate_file: Option<CurrentFile>,
        /// How long a client may exceed the limit after a pause.
        burstiness: Duration = Duration::from_secs(2),
    }
}

/// A limit: its parameters, and the scope of its buckets.
struct Limit {
    /// Bits per second; 0 for no limit.
    rate: u64,
    /// The file that replaces the rate.
    file: Option<CurrentFile>,
    scope: Scope,
}

/// The slot of the bucket for reads, in each scope. Word a: when the bucket will be full.
const READ_BUCKET: u32 = 0;

/// The same for writes.
const WRITE_BUCKET: u32 = 1;

/// The slot of the rate that was read from the file, in each scope. Word a: the rate plus one, or 0
/// before the first time. Word b: when it was read.
const FILE_RATE: u32 = 2;

/// How often to read the file again, in nanoseconds.
const FILE_INTERVAL: u64 = SECOND / 4;

/// The filter.
pub struct Rate {
    connection: Limit,
    server: Limit,
    /// Nanoseconds.
    burst: u64,
}

impl Limit {
    /// The rate at the time `now`, in bits per second.
    fn rate_at(&self, now: u64) -> u64 {
        let Some(file) = &self.file else { return self.rate };
        let slot = Slot { scope: self.scope, index: FILE_RATE };
        let known = slot.get();
        if known.a != 0 && now < known.b.saturating_add(FILE_INTERVAL) {
            return known.a - 1;
        }
        let last = if known.a == 0 { self.rate } else { known.a - 1 };
        let text = file.read(0, 64).unwrap_or_default();
        let rate = match std::str::from_utf8(&text).ok().map(str::trim).filter(|text| !text.is_empty()) {
            None => last,
            Some(text) => parse_rate(text).unwrap_or_else(|| {
                let file = file.param();
                warn!("{file}: this is not a rate: write a number, followed by k, M or G if needed");
                last
            }),
        };
        slot.replace(known, [rate.saturating_add(1), now, 0, 0]);
        rate
    }

    /// Takes the tokens for a request of `length` bytes. Returns how long the request must wait.
    fn take(&self, index: u32, length: u32, burst: u64) -> u64 {
        if self.rate == 0 && self.file.is_none() {
            return 0;
        }
        let slot = Slot { scope: self.scope, index };
        loop {
            let now = clock::monotonic();
            let rate = self.rate_at(now);
            if rate == 0 {
                return 0;
            }
            let old = slot.get();
            let (full, wait) = take(old.a, now, burst, cost(u64::from(length) * 8, rate));
            if slot.replace(old, [full, 0, 0, 0]) {
                return wait;
            }
        }
    }
}

/// Parses a rate in bits per second, written like a size: `512`, `10k`, `1M`.
fn parse_rate(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let shift = match &text[digits..] {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Rate {
    fn wait(&self, index: u32, length: u32) -> Result<(), Errno> {
        let wait = self.connection.take(index, length, self.burst).max(self.server.take(index, length, self.burst));
        if wait == 0 { Ok(()) } else { server::sleep(wait) }
    }
}

impl Filter for Rate {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("rate", env!("CARGO_PKG_VERSION"), "limits the bandwidth of reads and of writes")
            .help(
                "Rates are in bits per second; k, M and G multiply by 1024, 1024^2 and 1024^3. \
                 Reads and writes have separate limits.",
            )
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let limit = |rate: Option<Size>, file, scope| Limit { rate: rate.unwrap_or_default().0, file, scope };
        Ok(Rate {
            connection: limit(settings.connection_rate, settings.connection_rate_file, Scope::Connection),
            server: limit(settings.rate, settings.rate_file, Scope::Server),
            burst: settings.burstiness.as_nanos() as u64,
        })
    }
}

impl Reads for Rate {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.wait(READ_BUCKET, length)?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Rate {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.wait(WRITE_BUCKET, length)?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

rbdkit_filter_sdk::export!(Rate: reads, writes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn rates_in_a_file_have_the_same_form_as_on_the_command_line() {
        for (text, rate) in [("512", Some(512)), ("10k", Some(10 << 10)), ("1M", Some(1 << 20)), ("0", Some(0))] {
            assert_eq!(parse_rate(text), rate);
        }
        for text in ["", "M", "1.5", "1MB", "-1", "99999999999999999999", "18446744073709551615k"] {
            assert_eq!(parse_rate(text), None, "{text}");
        }
    }

    #[test]
    fn a_client_that_exceeds_its_limit_waits() {
        // 8 MiBit a second are 1 MiB a second.
        let host = Host::new(Disk::zeroes(4 << 20)).serve::<Rate>(&["rate=8M", "burstiness=1"]).unwrap();
        let client = host.connect().unwrap();
        for _ in 0..4 {
            client.pread(0, 1 << 20).unwrap();
        }
        assert_eq!(host.time(), 3 * SECOND);
        // Writes have a bucket of their own.
        client.pwrite(0, &[0; 1 << 20], CommandFlags::empty()).unwrap();
        assert_eq!(host.time(), 3 * SECOND);
    }

    #[test]
    fn a_file_replaces_the_limit_while_the_server_runs() {
        let host = Host::new(Disk::zeroes(1 << 20)).file("/rate", b"8M\n");
        let host = host.serve::<Rate>(&["rate-file=/rate", "burstiness=0"]).unwrap();
        let client = host.connect().unwrap();
        client.pread(0, 1 << 20).unwrap();
        assert_eq!(host.time(), SECOND);
        host.set_file("/rate", Some(b"slow"));
        client.pread(0, 1 << 20).unwrap();
        assert_eq!(host.time(), 2 * SECOND);
        let warning = "warning: rate-file: this is not a rate: write a number, followed by k, M or G if needed";
        assert_eq!(host.take_log(), [warning]);
        host.set_file("/rate", Some(b"0"));
        host.pass_time(SECOND);
        client.pread(0, 1 << 20).unwrap();
        assert_eq!(host.time(), 3 * SECOND);
    }
}
