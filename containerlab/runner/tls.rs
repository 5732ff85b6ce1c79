//! Certificates for the anchors of a lab: made when the lab is, never committed.
//!
//! In a topology file their place is a bind from `tls/<node>`, a folder which the runner replaces by
//! a fresh one and which `lab certs <lab>` writes for containerlab.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use super::Result;
use super::topology::{Bind, Role, Topology};

/// Writes `<folder>/<node>/{ca,cert,key}.pem` for every killick node.
pub fn write(topology: &Topology, folder: &Path) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, format!("lab {}", topology.name));
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);
    for (name, node) in &topology.nodes {
        if node.role != Role::Killick {
            continue;
        }
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new([name.clone()])?;
        leaf.distinguished_name.push(DnType::CommonName, name.as_str());
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = leaf.signed_by(&key, &issuer)?;
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("ca.pem"), &ca_pem)?;
        fs::write(folder.join("cert.pem"), cert.pem())?;
        fs::write(folder.join("key.pem"), key.serialize_pem())?;
    }
    Ok(())
}

/// A bind of the topology file, with `…/tls/<node>` taken from `folder`.
pub fn redirect(bind: &Bind, folder: &Path) -> Bind {
    let mut parts = bind.source.components().rev();
    let (node, parent) = (parts.next(), parts.next());
    let source = match (node, parent) {
        (Some(node), Some(parent)) if parent.as_os_str() == "tls" => folder.join(node),
        _ => bind.source.clone(),
    };
    Bind { source, target: bind.target.clone() }
}
