//! The routers of the labs by themselves: what is asserted about killick elsewhere rests on this.

use std::time::Duration;

use super::lab::{Lab, wait_until};
use super::{Result, may_build_labs};

#[test]
fn the_routers_of_ibgp_flat_come_up_without_anchors() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let lab = Lab::up("ibgp-flat", false)?;
    for (router, expected) in
        [("c1", vec!["10.0.0.10"]), ("c2", vec!["10.0.0.10"]), ("rr", vec!["c1", "c2"])]
    {
        wait_until(&format!("sessions of {router}"), Duration::from_secs(20), || {
            let sessions = lab.bgp_sessions(router)?;
            let up: Vec<&str> =
                sessions.iter().filter(|(_, up)| **up).map(|(peer, _)| peer.as_str()).collect();
            Ok((up == expected).then_some(()))
        })?;
    }
    // The underlay carries both families from end to end.
    for loopback in
        ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "2001:db8::2", "2001:db8::3"]
    {
        wait_until(&format!("cn reaches {loopback}"), Duration::from_secs(10), || {
            lab.sh("cn", &format!("ping -c 1 -W 1 {loopback}")).map(Some)
        })?;
    }
    Ok(())
}

/// Nothing of a lab outlives it, and two labs of one process do not meet.
#[test]
fn a_dropped_lab_leaves_nothing_behind() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let lab = Lab::up("ibgp-flat", false)?;
    let folder = lab.folder.clone();
    let namespaces: Vec<String> =
        lab.nodes.values().map(|node| format!("/run/netns/{}", node.namespace.name)).collect();
    assert_eq!(namespaces.len(), 9);
    assert!(namespaces.iter().all(|path| std::path::Path::new(path).exists()));
    drop(lab);
    assert!(namespaces.iter().all(|path| !std::path::Path::new(path).exists()));
    assert!(!folder.exists());
    Ok(())
}
