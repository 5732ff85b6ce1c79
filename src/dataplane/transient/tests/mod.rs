mod hostile;
mod model;
mod rules;

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::types::Locator;
use crate::wire::encap::ip::{Datagram as Udp, put_datagram};

/// Anchors have numbers from 1; their addresses end with them.
fn end(anchor: u8) -> PathEnd {
    let ipv4 = Some([192, 0, 2, anchor].into());
    let ipv6 = Some([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(anchor)].into());
    PathEnd { locator: Locator { ipv4, ipv6 }, port: 4790 }
}

fn address(anchor: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, anchor], 4790))
}

fn config(anchor: u8) -> Config {
    Config::new(end(anchor))
}

fn at_ms(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

const NODE: &str = "10.1.0.7";

fn node() -> Prefix {
    NODE.parse().unwrap()
}

fn correspondent(n: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, n])
}

/// A packet for the node with room before it.
fn packet_of(source: IpAddr, destination: IpAddr, number: u32, len: usize) -> Vec<u8> {
    let mut payload = vec![0; len.max(4)];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    let mut octets = vec![0; HEADROOM];
    put_datagram((source, 1000).into(), (destination, 2000).into(), &payload, &mut octets);
    octets
}

fn numbered(flow: u8, number: u32) -> Vec<u8> {
    packet_of(correspondent(flow), NODE.parse().unwrap(), number, 4)
}

/// Source and number of a packet that was written.
fn read(packet: &[u8]) -> (IpAddr, u32) {
    let udp = Udp::decode(packet).expect("whole, with its checksums");
    (udp.source.ip(), u32::from_be_bytes(*udp.payload.first_chunk().unwrap()))
}

/// An output with its octets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    Wrote(Vec<u8>),
    Sent(SocketAddr, Vec<u8>),
}

/// Takes outputs out of the slot that they may point to.
fn done(outputs: Vec<Output>, slot: &[u8]) -> Vec<Done> {
    let find = |octets: Octets| match octets {
        Octets::Slot { slot: 0, start, len } => slot[start..start + len].to_vec(),
        Octets::Slot { .. } => panic!("there is one slot"),
        Octets::Own { octets, start } => octets[start..].to_vec(),
    };
    let each = |output| match output {
        Output::Write(octets) => Done::Wrote(find(octets)),
        Output::Send { to, octets } => Done::Sent(to, find(octets)),
    };
    outputs.into_iter().map(each).collect()
}

/// An engine with the driver's part around it.
struct Bench {
    engine: Engine,
    diverted: BTreeSet<Prefix>,
    done: Vec<Done>,
    events: Vec<TransientEvent>,
}

impl Bench {
    fn new(config: Config) -> Self {
        let engine = Engine::new(config);
        Self { engine, diverted: BTreeSet::new(), done: Vec::new(), events: Vec::new() }
    }

    fn apply(&mut self, change: TransientChange, now: Instant) {
        if let Some(prefix) = self.engine.apply(&change, now).unwrap() {
            self.diverted.insert(prefix);
        }
    }

    fn device(&mut self, mut packet: Vec<u8>, now: Instant) {
        let mut out = Vec::new();
        self.engine.handle_device(0, &mut packet, now, &mut out);
        self.done.extend(done(out, &packet));
    }

    fn source(&mut self, mut packet: Vec<u8>, now: Instant) {
        let mut out = Vec::new();
        self.engine.handle_source(0, &mut packet, now, &mut out);
        self.done.extend(done(out, &packet));
    }

    fn path(&mut self, from: SocketAddr, mut datagram: Vec<u8>, now: Instant) {
        let mut out = Vec::new();
        self.engine.handle_path(0, from, &mut datagram, now, &mut out);
        self.done.extend(done(out, &datagram));
    }

    /// All that is due, as the thread does it.
    fn run(&mut self, now: Instant) {
        let mut out = Vec::new();
        for _ in 0..100_000 {
            if self.engine.poll_timeout() > now {
                self.done.extend(done(out, &[]));
                while let Some(event) = self.engine.pop_event() {
                    self.events.push(event);
                }
                return;
            }
            self.engine.handle_timeout(now, &mut out);
            self.engine.flush(64, now, &mut out);
            while let Some((prefix, _)) = self.engine.next_closing(now, &mut out) {
                if self.engine.may_finish(prefix) {
                    assert!(self.diverted.remove(&prefix));
                    self.engine.finish(prefix, now, &mut out);
                }
            }
        }
        panic!("it is never done");
    }

    fn taken(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.done)
    }

    /// Numbers of the packets that were written, and nothing else was done.
    fn written(&mut self) -> Vec<u32> {
        let number = |done| match done {
            Done::Wrote(packet) => read(&packet).1,
            Done::Sent(to, octets) => panic!("sent to {to}: {:?}", Datagram::decode(&octets)),
        };
        self.taken().into_iter().map(number).collect()
    }

    fn dropped(&mut self, why: TransientDrop) -> u64 {
        self.engine.totals().dropped(why)
    }
}
