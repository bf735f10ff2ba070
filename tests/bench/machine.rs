//! The kind of machine that was measured, without anything that identifies it.

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split(':').nth(1)?.trim().to_owned())
}

/// Processor, cores, memory and kernel.
pub fn description() -> String {
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| {
        let kib: u64 = text.split_whitespace().next()?.parse().ok()?;
        Some(format!("{} GiB of memory", (kib + (1 << 19)) >> 20))
    });
    // Only the version: what distributions append to it says nothing about speed.
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.split('-').next().unwrap_or_default().trim().to_owned();
    let parts = [model, format!("{cores} cores"), memory.unwrap_or_default(), format!("Linux {kernel}")];
    parts.join(", ")
}

/// The ticks that all cores together were busy, and all ticks, since the machine started.
fn parse_stat(text: &str) -> Option<(f64, f64)> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    // User, nice, system, idle, waiting for disks, two kinds of interrupts, stolen by the host. The
    // fields behind these are part of the first.
    let ticks: Vec<f64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    Some((all - ticks.get(3)? - ticks.get(4)?, all))
}

/// Measures the processor time of everything on this machine.
pub struct Busy {
    cores: f64,
    before: (f64, f64),
}

impl Busy {
    /// Begins now. `None` if the kernel does not tell.
    pub fn start() -> Option<Busy> {
        let cores = std::thread::available_parallelism().map_or(1.0, |count| usize::from(count) as f64);
        Some(Busy { cores, before: parse_stat(&read("/proc/stat"))? })
    }

    /// How many cores were busy on average since then, less `known` of them.
    pub fn others(&self, known: f64) -> Option<f64> {
        let (busy, all) = parse_stat(&read("/proc/stat"))?;
        let (busy, all) = (busy - self.before.0, all - self.before.1);
        (all > 0.0).then(|| (busy / all * self.cores - known).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_idle_or_waits_for_a_disk_is_not_busy() {
        let text = "cpu  10 20 30 400 50 1 2 3 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(parse_stat(text), Some((66.0, 516.0)));
        assert_eq!(parse_stat("cpu  10 20"), None);
        assert_eq!(parse_stat(""), None);
    }
}
