//! A running lab.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Result;
use super::daemon::{self, Daemon};
use super::guard::Guard;
use super::namespace::{self, Namespace};
use super::tls;
use super::topology::{Role, Topology};

pub struct Lab {
    pub topology: Topology,
    pub nodes: BTreeMap<String, Running>,
    pub folder: PathBuf,
    /// Last, because it is dropped last.
    _guard: Guard,
}

pub struct Running {
    pub role: Role,
    pub daemons: Vec<Daemon>,
    pub namespace: Namespace,
}

/// Of the interfaces of a lab; above those that namespaces and host.sh give by themselves.
const FIRST_INDEX: u32 = 101;

/// Labs of one process, so that tests which run side by side do not meet.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// `containerlab/<lab>/<lab>.clab.yml` of this repository.
pub fn file_of(lab: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("containerlab/{lab}/{lab}.clab.yml"))
}

pub fn folder_of_labs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab")
}

impl Lab {
    /// Builds the lab and starts the daemons, the anchors' last and only `with_killick`.
    pub fn up(lab: &str, with_killick: bool) -> Result<Self> {
        let mut built = Self::build(lab)?;
        for role in [Role::Frr, Role::Bird, Role::Gobgp, Role::Killick] {
            if role != Role::Killick || with_killick {
                let names: Vec<String> = built.with_role(role).map(str::to_owned).collect();
                names.iter().try_for_each(|name| built.start(name))?;
            }
        }
        Ok(built)
    }

    /// Nodes, links and addresses, no daemon.
    fn build(lab: &str) -> Result<Self> {
        let topology = Topology::read(&file_of(lab))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = match count {
            0 => format!("{}-{}", topology.name, std::process::id()),
            _ => format!("{}-{}_{count}", topology.name, std::process::id()),
        };
        let folder = folder_of_labs().join(&id);
        fs::create_dir_all(&folder)?;
        let prefix = format!("kl-{id}-");
        let guard = Guard::start(&prefix, &folder)?;
        tls::write(&topology, &folder.join("tls"))?;

        let mut nodes = BTreeMap::new();
        for (name, node) in &topology.nodes {
            let mut binds = Vec::new();
            for bind in &node.binds {
                binds.push(tls::redirect(bind, &folder.join("tls")));
            }
            let namespace =
                Namespace::create(format!("{prefix}{name}"), folder.join(name), &binds)?;
            for (key, value) in &node.sysctls {
                namespace.sh(&format!("sysctl -qw {key}={value}"))?;
            }
            let daemons = daemon::of_role(node.role, &namespace)?;
            nodes.insert(name.clone(), Running { role: node.role, daemons, namespace });
        }
        for ([a, b], index) in topology.links.iter().zip((FIRST_INDEX..).step_by(2)) {
            namespace::link(
                (&nodes[&a.node].namespace, &a.interface),
                (&nodes[&b.node].namespace, &b.interface),
                index,
            )?;
        }
        for (name, node) in &topology.nodes {
            for script in &node.exec {
                nodes[name].namespace.sh(script)?;
            }
        }
        Ok(Self { topology, nodes, folder, _guard: guard })
    }

    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(move |(_, node)| node.role == role).map(|(name, _)| name.as_str())
    }

    /// Starts all daemons of a node.
    pub fn start(&mut self, node: &str) -> Result<()> {
        let running = self.nodes.get_mut(node).ok_or_else(|| format!("no node {node}"))?;
        for daemon in &mut running.daemons {
            daemon.start(&running.namespace)?;
        }
        daemon::after_start(running.role, &running.namespace)
    }

    pub fn namespace(&self, node: &str) -> Result<&Namespace> {
        Ok(&self.nodes.get(node).ok_or_else(|| format!("no node {node}"))?.namespace)
    }

    /// `sh -c` in a node; its standard output.
    pub fn sh(&self, node: &str, script: &str) -> Result<String> {
        self.namespace(node)?.sh(script)
    }

    pub fn vtysh(&self, node: &str, command: &str) -> Result<String> {
        namespace::run(self.namespace(node)?.command("vtysh").args(["-c", command]))
    }

    pub fn vtysh_json(&self, node: &str, command: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.vtysh(node, command)?)?)
    }

    pub fn birdc(&self, node: &str, command: &str) -> Result<String> {
        let mut birdc = self.namespace(node)?.command("birdc");
        namespace::run(birdc.args(["-r", "-s", "/run/bird/bird.ctl"]).args(command.split(' ')))
    }

    pub fn gobgp_json(&self, node: &str, command: &str) -> Result<Value> {
        let mut gobgp = self.namespace(node)?.command("gobgp");
        let text = namespace::run(gobgp.arg("-j").args(command.split(' ')))?;
        // Where there is nothing to tell it answers in prose.
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// What the CLI of a node's killick answers, without its envelope.
    pub fn killick_json(&self, node: &str, command: &str) -> Result<Value> {
        let mut killick = self.namespace(node)?.command(&daemon::killick_program()?);
        let text = namespace::run(killick.args(["-o", "json"]).args(command.split(' ')))?;
        let told: Value = serde_json::from_str(&text)?;
        Ok(told["data"].clone())
    }

    /// The states of the BGP sessions of a node by neighbour, as its own tools tell them.
    pub fn bgp_sessions(&self, node: &str) -> Result<BTreeMap<String, bool>> {
        match self.nodes.get(node).map(|running| running.role) {
            Some(Role::Frr) => {
                let summary = self.vtysh_json(node, "show bgp ipv4 unicast summary json")?;
                let peers = summary["peers"].as_object().ok_or("no peers in the summary")?;
                Ok(peers
                    .iter()
                    .map(|(peer, state)| (peer.clone(), state["state"] == "Established"))
                    .collect())
            }
            Some(Role::Bird) => {
                let table = self.birdc(node, "show protocols")?;
                Ok(table
                    .lines()
                    .map(|line| line.split_whitespace().collect::<Vec<_>>())
                    .filter(|cells| cells.get(1) == Some(&"BGP"))
                    .map(|cells| (cells[0].to_owned(), cells.contains(&"Established")))
                    .collect())
            }
            Some(Role::Gobgp) => {
                let peers = self.gobgp_json(node, "neighbor")?;
                let peers = peers.as_array().ok_or("no list of neighbours")?;
                Ok(peers
                    .iter()
                    .map(|peer| {
                        let address = peer["state"]["neighbor_address"].as_str().unwrap_or("?");
                        (address.to_owned(), peer["state"]["session_state"] == 6)
                    })
                    .collect())
            }
            other => Err(format!("{node}: {other:?} has no BGP sessions to ask for").into()),
        }
    }
}

/// Polls until there is a value; an error of `poll` counts as "not yet" and is told at the end.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut poll: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let outcome = poll();
        match outcome {
            Ok(Some(value)) => return Ok(value),
            Ok(None) if Instant::now() < deadline => {}
            Err(_) if Instant::now() < deadline => {}
            Ok(None) => return Err(format!("not within {limit:?}: {what}").into()),
            Err(e) => return Err(format!("not within {limit:?}: {what}: {e}").into()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
