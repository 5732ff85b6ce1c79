//! A containerlab topology file, as far as this runner honours it.
//!
//! The schema of containerlab is larger; the test suite holds the files against the schema itself,
//! so what is read here is read leniently. Inheritance is containerlab's: a node takes from its
//! group, that from its kind, that from `defaults`; lists are joined, the nearest scalar wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Result;

/// What runs in a node. containerlab knows it from the image; here the group of the same name says
/// it, because the programs are the installed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Killick,
    Frr,
    Bird,
    Gobgp,
    Host,
}

#[derive(Debug)]
pub struct Topology {
    pub name: String,
    pub nodes: BTreeMap<String, Node>,
    pub links: Vec<[Endpoint; 2]>,
}

#[derive(Debug)]
pub struct Node {
    pub role: Role,
    pub binds: Vec<Bind>,
    /// Run by `sh -c` in the node when its links are there.
    pub exec: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    pub env: BTreeMap<String, String>,
}

#[derive(Debug)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
}

#[derive(Debug)]
pub struct Endpoint {
    pub node: String,
    pub interface: String,
}

#[derive(Deserialize)]
struct File {
    name: String,
    topology: Section,
}

#[derive(Deserialize)]
struct Section {
    #[serde(default)]
    defaults: Spec,
    #[serde(default)]
    kinds: BTreeMap<String, Spec>,
    #[serde(default)]
    groups: BTreeMap<String, Spec>,
    nodes: BTreeMap<String, Spec>,
    #[serde(default)]
    links: Vec<Link>,
}

#[derive(Default, Deserialize)]
struct Spec {
    kind: Option<String>,
    group: Option<String>,
    #[serde(default)]
    binds: Vec<String>,
    #[serde(default)]
    exec: Vec<String>,
    #[serde(default)]
    sysctls: BTreeMap<String, String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Link {
    endpoints: [String; 2],
}

impl Topology {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder).map_err(|e| format!("{}: {e}", path.display()).into())
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let file: File = serde_saphyr::from_str(text)?;
        let section = file.topology;
        let mut nodes = BTreeMap::new();
        for (name, spec) in &section.nodes {
            nodes.insert(
                name.clone(),
                section.resolve(spec, folder).map_err(|e| format!("node {name}: {e}"))?,
            );
        }
        let mut links = Vec::new();
        for Link { endpoints: [left, right] } in &section.links {
            links.push([endpoint(left, &nodes)?, endpoint(right, &nodes)?]);
        }
        Ok(Self { name: file.name, nodes, links })
    }
}

impl Section {
    fn resolve(&self, spec: &Spec, folder: &Path) -> Result<Node> {
        let group_name =
            spec.group.as_deref().ok_or("no group, so nothing says what runs in it")?;
        let group = self.groups.get(group_name).ok_or_else(|| format!("no group {group_name}"))?;
        let kind = [spec, group, &self.defaults].iter().find_map(|s| s.kind.as_deref());
        if kind != Some("linux") {
            return Err(format!("kind {kind:?} cannot be built from namespaces").into());
        }
        let role = match group_name {
            "killick" => Role::Killick,
            "frr" => Role::Frr,
            "bird" => Role::Bird,
            "gobgp" => Role::Gobgp,
            "host" => Role::Host,
            other => return Err(format!("nothing is known to run in group {other}").into()),
        };
        let mut node = Node {
            role,
            binds: Vec::new(),
            exec: Vec::new(),
            sysctls: BTreeMap::new(),
            env: BTreeMap::new(),
        };
        let layers = [Some(&self.defaults), self.kinds.get("linux"), Some(group), Some(spec)];
        for layer in layers.into_iter().flatten() {
            for text in &layer.binds {
                node.binds.push(bind(text, folder)?);
            }
            node.exec.extend(layer.exec.iter().cloned());
            node.sysctls.extend(layer.sysctls.clone());
            node.env.extend(layer.env.clone());
        }
        Ok(node)
    }
}

fn bind(text: &str, folder: &Path) -> Result<Bind> {
    let mut parts = text.split(':');
    match (parts.next(), parts.next()) {
        (Some(source), Some(target)) if target.starts_with('/') => {
            Ok(Bind { source: folder.join(source), target: PathBuf::from(target) })
        }
        _ => Err(format!("bind {text:?} is not source:/target[:options]").into()),
    }
}

fn endpoint(text: &str, nodes: &BTreeMap<String, Node>) -> Result<Endpoint> {
    match text.split_once(':') {
        Some((node, interface)) if nodes.contains_key(node) => {
            Ok(Endpoint { node: node.into(), interface: interface.into() })
        }
        _ => Err(format!("endpoint {text:?} is not node:interface of a node of this file").into()),
    }
}
