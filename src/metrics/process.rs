//! The usual `process_*` metrics, read from `/proc/self` at each scrape.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{AtomicF64, GenericCounter};
use prometheus::{Gauge, IntGauge};

use super::catalogue::Maker;

/// `USER_HZ`, a constant of Linux's user-space interface (proc_pid_stat(5)).
const TICKS_PER_SECOND: f64 = 100.0;

pub struct Process {
    cpu: GenericCounter<AtomicF64>,
    resident: IntGauge,
    open_fds: IntGauge,
}

impl Process {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        let start: Gauge = make.float_gauge(
            "process_start_time_seconds",
            "When the daemon was started, in seconds since 1970",
        );
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        start.set(since.as_secs_f64());
        Self {
            cpu: make.float_counter(
                "process_cpu_seconds_total",
                "Processor time of all threads, user and system",
            ),
            resident: make
                .gauge("process_resident_memory_bytes", "Memory of the daemon that is in RAM"),
            open_fds: make.gauge("process_open_fds", "Open file descriptors"),
        }
    }

    /// What cannot be read keeps its last value.
    pub fn read(&self) {
        if let Some(cpu) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_of) {
            self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
        }
        if let Some(kib) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(rss_of)
        {
            self.resident.set(kib * 1024);
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory being read.
            self.open_fds.set(i64::try_from(fds.count()).unwrap_or(i64::MAX) - 1);
        }
    }
}

/// Fields 14 and 15, counted after the command name, which may hold anything but `)`.
fn cpu_of(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// In KiB.
fn rss_of(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1 1";
        assert_eq!(cpu_of(stat), Some(3.0));
        assert_eq!(cpu_of("42 (x) S 1"), None);
        assert_eq!(rss_of("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2048));
        assert_eq!(rss_of("Name:\tx\n"), None);
    }
}
