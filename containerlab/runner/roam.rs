//! Many moves of one talking host, and how long killick took for each: from the first sign of the
//! node at its new anchor until its routes are handed to the BGP sessions (or to the controllers).
//! What the routers take afterwards is the demo's to tell.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Result;
use super::demo::{phases, trace};
use super::lab::{Lab, wait_until};
use super::scene::Scene;
use super::signals;
use super::traffic::{Flows, Plan};

const PACE: Duration = Duration::from_millis(1);
const CONNECTED_LIMIT: Duration = Duration::from_secs(30);
const MOVE_LIMIT: Duration = Duration::from_secs(5);
/// Between two moves: more would meet CT_REQUEST_RATE (RFC 4067 §4), ten requests a second.
const PAUSE: Duration = Duration::from_millis(250);
const PORT: u16 = 21_000;

pub fn run(name: &str, moves: usize) -> Result<()> {
    signals::exit_on_signal()?;
    let lab = Lab::up(name, true)?;
    let scene = Scene::of(&lab)?;
    scene.wait_until_connected(&lab, CONNECTED_LIMIT)?;
    let (host, known) = scene.hosts.iter().next().ok_or("no host")?;
    let correspondent = scene.correspondent_of(host)?;
    let plans: Vec<Plan<'_>> = known
        .addresses
        .iter()
        .zip(correspondent.addresses)
        .map(|(here, there)| {
            let at = |address: IpAddr| SocketAddr::new(address, PORT);
            Ok(Plan {
                from: (lab.namespace(host)?, at(*here)),
                to: (lab.namespace(&correspondent.name)?, at(there)),
            })
        })
        .collect::<Result<_>>()?;
    let _flows = Flows::start(&plans, PACE)?;
    let anchors: Vec<&String> = scene.anchors.keys().collect();
    let mut took = Vec::new();
    for at in 1..=moves {
        let to = anchors[at % anchors.len()];
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        scene.move_host(&lab, host, to)?;
        took.push(wait_until(&format!("move {at} to {to} is announced"), MOVE_LIMIT, || {
            let (_, sighted_us, steps) = trace(&lab, to, &known.mac)?;
            if u128::from(sighted_us) < since {
                return Ok(None); // of an earlier visit
            }
            let of = |address: &IpAddr| {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                phases(&steps, &format!("{address}/{bits}")).1
            };
            // Both prefixes of the node, or it is not done.
            let both: Option<Vec<u64>> = known.addresses.iter().map(of).collect();
            Ok(both.and_then(|both| both.into_iter().max()))
        })?);
        std::thread::sleep(PAUSE);
    }
    took.sort_unstable();
    let rank = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)] as f64 / 1e3;
    println!(
        "{name}: {moves} moves of {host}, from the sighting to the announcement of both prefixes:"
    );
    println!("  p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", rank(50), rank(99), rank(100));
    Ok(())
}
