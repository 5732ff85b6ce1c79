//! The streaming API's socket: JSON lines in, moves out, at the speed of the routing thread.
//!
//! Each read is one turn, so a client that writes one line gets one UPDATE at once, and one that
//! writes a thousand gets them packed. A client that asks for acknowledgements gets one when the
//! lines before it are in the store; one that does not read its answers is not read either, and one
//! that earns more than [`ANSWERS_MAX`] octets of them with one read is disconnected.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::core::Core;
use crate::api::stream::{LineError, LineFault, Op, StreamParser, Target};
use crate::metrics::{ApiMetrics, StreamOp};
use crate::node::{Node, Output, RequestError};
use crate::types::Instant;

const READ_MAX: usize = 64 * 1024;
const ANSWERS_MAX: usize = 1024 * 1024;

/// Binds a Unix socket, replacing what a killed process left behind.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

pub async fn run_listener(core: Rc<Core>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(serve(Rc::clone(&core), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a streaming client");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Counts the client as long as it is there.
async fn serve(core: Rc<Core>, stream: UnixStream) {
    core.metrics.api.stream_clients.inc();
    converse(&core, stream).await;
    core.metrics.api.stream_clients.dec();
}

async fn converse(core: &Rc<Core>, mut stream: UnixStream) {
    let mut client = Client::default();
    let mut buffer = vec![0; READ_MAX];
    loop {
        let n = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let answers = core
            .turn(|node, now, out| client.handle(&buffer[..n], node, &core.metrics.api, now, out));
        if answers.len() > ANSWERS_MAX {
            tracing::warn!("a streaming client makes too many mistakes at once: disconnected");
            return;
        }
        // The turn has committed: what is acknowledged survives.
        if !answers.is_empty() && stream.write_all(answers.as_bytes()).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[derive(Default)]
struct Client {
    parser: StreamParser,
    ack_every: u32,
    lines: u64,
    unacked: u32,
}

impl Client {
    fn handle(
        &mut self,
        octets: &[u8],
        node: &mut Node,
        metrics: &ApiMetrics,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> String {
        let mut answers = String::new();
        let Self { parser, ack_every, lines, unacked } = self;
        for op in parser.push(octets) {
            *lines += 1;
            *unacked += 1;
            if let Ok(op) = &op {
                metrics.stream_ops.get(label(op)).inc();
            }
            let refused = answers.len();
            match op {
                Ok(Op::AckEvery(every)) => {
                    *ack_every = every;
                    *unacked = 0;
                }
                Ok(op) => {
                    if let Err(error) = apply(node, op, now, out) {
                        let what = LineFault::Json(error.to_string());
                        answers.push_str(&LineError { line: *lines, what }.to_json());
                    }
                }
                Err(error) => answers.push_str(&error.to_json()),
            }
            if answers.len() > refused {
                metrics.stream_errors.inc();
            }
            if *ack_every > 0 && *unacked >= *ack_every {
                *unacked = 0;
                answers.push_str(&format!("{{\"ack\":{lines}}}\n"));
            }
        }
        answers
    }
}

fn label(op: &Op) -> StreamOp {
    match op {
        Op::Attach { .. } => StreamOp::Attach,
        Op::Move { .. } => StreamOp::Move,
        Op::Detach(_) => StreamOp::Detach,
        Op::AckEvery(_) => StreamOp::Ack,
    }
}

fn apply(node: &mut Node, op: Op, now: Instant, out: &mut Vec<Output>) -> Result<(), RequestError> {
    match op {
        Op::Attach { mn, prefix, anchor, fe_e, lifetime } => {
            let anchor = anchor.unwrap_or(node.own());
            node.place(&mn, prefix, anchor, fe_e, lifetime, now, out)?;
        }
        Op::Move { mn, anchor, fe_e } => node.move_node(&mn, anchor, fe_e, now, out)?,
        Op::Detach(Target::Mn(mn)) => node.detach(&mn, None, now, out)?,
        Op::Detach(Target::Prefix(prefix)) => node.detach_prefix(prefix, now, out)?,
        Op::AckEvery(_) => {}
    }
    Ok(())
}
