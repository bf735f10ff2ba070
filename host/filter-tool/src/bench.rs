//! `bench`: the processor time that a filter adds to a request.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{Buffer, Flags, Span};

use crate::chain::{chain, make_ready, open};
use crate::error::{Error, Result};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Read => "pread",
            Operation::Write => "pwrite",
        }
    }
}

/// Rounds with and without the filter, in alternation. The medians of both are compared.
const ROUNDS: usize = 7;

/// Measures the processor time that the filter adds to a request, at 4 KiB and 1 MiB.
pub fn bench(file: &Path, params: &[String], requests: u32) -> Result<()> {
    // One thread, so that all processor time is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let with = prepare(Some((file, params))).await?;
        let without = prepare(None).await?;
        say!("{:<24} {:>12} {:>12} {:>12}", "request", "without", "with", "the filter");
        for (operation, length) in [(Operation::Read, 4 << 10), (Operation::Read, 1 << 20), (Operation::Write, 4 << 10)]
        {
            if operation == Operation::Write && !with.can().write {
                continue;
            }
            let count = if length > 65536 { requests / 50 } else { requests }.max(1);
            let (mut filtered, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                filtered.push(round(&with, operation, length, count).await?);
                plain.push(round(&without, operation, length, count).await?);
            }
            let (with_median, without_median) = (median(filtered), median(plain));
            let name = format!("{} {}", operation.name(), if length < 1 << 20 { "4 KiB" } else { "1 MiB" });
            say!(
                "{name:<24} {:>9} ns {:>9} ns {:>9} ns",
                without_median.as_nanos(),
                with_median.as_nanos(),
                with_median.saturating_sub(without_median).as_nanos()
            );
        }
        Ok(())
    })
}

async fn prepare(filter: Option<(&Path, &[String])>) -> Result<Arc<Hop>> {
    let chain = chain(filter)?;
    make_ready(&chain).await?;
    open(&chain, 1).await
}

async fn round(hop: &Arc<Hop>, operation: Operation, length: u32, count: u32) -> Result<Duration> {
    let places = (hop.size() / u64::from(length)).max(1);
    let mut buffer = Buffer::from_vec(vec![1; length as usize]);
    let begun = processor_time();
    for i in 0..count {
        // 7919 is a prime number, so this stride visits all blocks, out of order.
        let offset = (u64::from(i) * 7919 % places) * u64::from(length);
        let span = Span::new(0, length);
        let (returned, result) = match operation {
            Operation::Read => hop.pread(buffer, span, offset).await,
            Operation::Write => hop.pwrite(buffer, span, offset, Flags::NONE).await,
        };
        result.map_err(|source| Error::Operation { operation: operation.name(), source })?;
        buffer = returned;
    }
    Ok((processor_time() - begun) / count)
}

/// The processor time of this thread, which other programs on the machine do not change.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
