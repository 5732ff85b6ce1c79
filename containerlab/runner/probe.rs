//! One UDP flow by hand, for a node that this program did not make: `lab recv` at one end, `lab
//! send` at the other.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::Result;
use super::signals;
use super::traffic::{Packet, Record, monotonic_ns, receive_all, receiving_socket, sleep_until};

pub fn send(to: SocketAddr, pace: Duration, seconds: u64) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    let (start, mut packet) = (monotonic_ns(), Packet::new());
    let count = Duration::from_secs(seconds).as_nanos() / pace.as_nanos().max(1);
    for sequence in 0..count as u64 {
        sleep_until(start + sequence * pace.as_nanos() as u64);
        // What cannot be sent is lost, and the other end says so.
        let _ = socket.send_to(packet.numbered(sequence), to);
    }
    println!("sent {count}");
    Ok(())
}

/// Until nothing came for `idle`, or until Ctrl-C.
pub fn recv(at: SocketAddr, idle: Duration) -> Result<()> {
    let interrupt = signals::receiver()?;
    let socket = receiving_socket(at)?;
    let mut arrivals = Vec::new();
    let mut last = (monotonic_ns(), 0);
    loop {
        let interrupted = interrupt.recv_timeout(Duration::from_millis(5)).is_ok();
        receive_all(&socket, &mut arrivals);
        if arrivals.len() > last.1 {
            last = (monotonic_ns(), arrivals.len());
        }
        let silence = Duration::from_nanos(monotonic_ns() - last.0);
        if interrupted || (!arrivals.is_empty() && silence > idle) {
            break;
        }
    }
    let (Some((_, first)), Some((_, last))) = (arrivals.first(), arrivals.last()) else {
        return Err("nothing arrived".into());
    };
    // The sender's times are not known here; all that is told of them is in which window they are.
    let (window, highest) = (*first..last + 1, arrivals.iter().map(|(n, _)| *n).max());
    let sent_ns = vec![window.start; highest.map_or(0, |n| n as usize + 1)];
    let report = Record { sent_ns, arrivals }.report(window);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
