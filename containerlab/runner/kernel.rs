//! When a router's kernel gets a route: `ip monitor route` in its namespace, each line with the time
//! at which it came.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Result;
use super::lab::Lab;

/// Lines kept; a demo makes some hundred. Later ones are not kept.
const LINES_MAX: usize = 100_000;

pub struct KernelWatch {
    pub router: String,
    child: Child,
    lines: Arc<Mutex<Vec<(u64, String)>>>,
}

impl KernelWatch {
    pub fn start(lab: &Lab, router: &str) -> Result<Self> {
        let mut command = lab.namespace(router)?.command("ip");
        command.args(["monitor", "route"]).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("no output to read")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(|line| line.ok()) {
                let mut kept = kept.lock().unwrap_or_else(|broken| broken.into_inner());
                if kept.len() < LINES_MAX {
                    kept.push((unix_us(), line));
                }
            }
        });
        Ok(Self { router: router.to_owned(), child, lines })
    }

    /// Microseconds from `since_us` (after 1970) until the first change of the route to `address`.
    pub fn first_change(&self, address: IpAddr, since_us: u64) -> Option<u64> {
        let lines = self.lines.lock().unwrap_or_else(|broken| broken.into_inner());
        let address = address.to_string();
        let of_route = |line: &str| line.split_whitespace().next() == Some(address.as_str());
        lines
            .iter()
            .find(|(at, line)| *at >= since_us && of_route(line))
            .map(|(at, _)| at - since_us)
    }
}

impl Drop for KernelWatch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
