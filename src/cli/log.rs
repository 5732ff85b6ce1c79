//! Where the daemon's log goes: standard output, as text on a terminal and as JSON otherwise.
//!
//! A thread writes it. If the reader of a pipe stops reading, lines are dropped and counted, and
//! routing goes on.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, Node};

/// Lines that wait to be written; the next is dropped.
const LINES_WAITING_MAX: usize = 8_192;

/// How long the end of the daemon waits for its last lines to be read.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Keeps the writing thread; dropping it writes what is left.
pub struct Guard {
    closing: Arc<AtomicBool>,
    written: Receiver<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        // If nobody reads, the last lines are lost, and the daemon ends all the same.
        let _ = self.written.recv_timeout(LAST_WORDS_MAX);
    }
}

/// To be called once.
pub fn start(node: &Node) -> io::Result<Guard> {
    let text = match node.log_format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => io::stdout().is_terminal(),
    };
    let (writer, guard) = lossy(io::stdout())?;
    let filter = EnvFilter::try_new(directives(&node.log_level)).map_err(io::Error::other)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let started = match text {
        true => builder.with_ansi(io::stdout().is_terminal()).try_init(),
        false => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(io::Error::other)?;
    Ok(guard)
}

/// A level alone is about killick. What libraries find worth an `info` is of no interest to an
/// operator; their warnings are. A part that names a library is left as it is.
fn directives(configured: &str) -> String {
    let mut libraries = "warn";
    let mut parts = Vec::new();
    for part in configured.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.to_ascii_lowercase().as_str() {
            level @ ("trace" | "debug" | "info" | "warn") => parts.push(format!("killick={level}")),
            "error" => libraries = "error",
            "off" => libraries = "off",
            _ => parts.push(part.to_owned()),
        }
    }
    parts.insert(0, libraries.to_owned());
    parts.join(",")
}

fn lossy(out: impl Write + Send + 'static) -> io::Result<(Lossy, Guard)> {
    let (sender, lines) = sync_channel(LINES_WAITING_MAX);
    let (done, written) = sync_channel(1);
    let lossy = Lossy { sender, dropped: Arc::default() };
    let dropped = Arc::clone(&lossy.dropped);
    let closing: Arc<AtomicBool> = Arc::default();
    let guard = Guard { closing: Arc::clone(&closing), written };
    std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        write(&lines, &dropped, &closing, out);
        // The end may have given up waiting.
        let _ = done.send(());
    })?;
    Ok((lossy, guard))
}

fn write(
    lines: &Receiver<Vec<u8>>,
    dropped: &AtomicU64,
    closing: &AtomicBool,
    mut out: impl Write,
) {
    loop {
        // The subscriber keeps its sender for ever, so the end has to be looked for.
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                // Nobody to tell when this fails.
                let _ = out.write_all(&line).and_then(|()| out.flush());
            }
            Err(RecvTimeoutError::Timeout) if closing.load(Ordering::Relaxed) => return,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ =
                writeln!(out, "{{\"level\":\"WARN\",\"message\":\"{lost} log lines dropped\"}}");
        }
    }
}

#[derive(Clone)]
struct Lossy {
    sender: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

impl Write for Lossy {
    /// The subscriber writes each event whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !line.is_empty() && self.sender.try_send(line.to_vec()).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lossy {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn libraries_are_quiet_unless_they_are_named() {
        assert_eq!(directives("info"), "warn,killick=info");
        assert_eq!(directives("error"), "error");
        let rooms = "DEBUG, killick::proto=trace,axum=info";
        assert_eq!(directives(rooms), "warn,killick=debug,killick::proto=trace,axum=info");
        for text in ["info", "error", "off", rooms] {
            EnvFilter::try_new(directives(text)).unwrap();
        }
    }

    /// Writes nothing before it is told to.
    struct Stuck(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().unwrap().extend_from_slice(octets);
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_no_time() {
        let (go, wait) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut lossy, guard) = lossy(Stuck(wait, Arc::clone(&written))).unwrap();
        for n in 0..LINES_WAITING_MAX + 100 {
            lossy.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        // One line may be in the writer's hand.
        let dropped = lossy.dropped.load(Ordering::Relaxed);
        assert!((99..=100).contains(&dropped), "{dropped}");
        drop(go);
        drop(guard);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.contains("log lines dropped"), "{text}");
        assert!(text.starts_with("line 0\n") && text.contains("\nline 8191\n"));
    }
}
