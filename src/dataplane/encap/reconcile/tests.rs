use std::net::IpAddr;

use super::*;
use crate::dataplane::encap::fake::{Fake, Fate};
use crate::types::lisp::InstanceId;

const IID: InstanceId = InstanceId(7);

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn path(members: &[&str]) -> GroupPath {
    let members = members.iter().map(|ip| (ip.parse::<IpAddr>().unwrap(), 1)).collect();
    GroupPath::Encap { members, iid: IID }
}

fn set_group(group: u32, members: &[&str]) -> EncapChange {
    EncapChange::SetGroup { group: GroupId(group), path: path(members) }
}

fn set_entry(text: &str, group: u32) -> EncapChange {
    EncapChange::SetEntry { prefix: prefix(text), action: EntryAction::Group(GroupId(group)) }
}

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

/// With the time given, until there is nothing to do.
fn settle(reconciler: &mut Reconciler<Fake>, now: Instant) {
    for _ in 0..100_000 {
        if reconciler.poll_timeout() > now {
            return;
        }
        reconciler.handle_timeout(now, &mut Vec::new());
    }
    panic!("never at rest");
}

fn opened(fake: Fake) -> Reconciler<Fake> {
    let mut reconciler = Reconciler::new(fake, Instant::ZERO);
    settle(&mut reconciler, Instant::ZERO);
    reconciler
}

#[test]
fn a_host_moves_by_one_write_and_a_group_by_one() {
    let mut reconciler = opened(Fake::default());
    reconciler.apply(
        &[
            set_group(40, &["192.0.2.2"]),
            set_group(50, &["192.0.2.3"]),
            set_entry("10.0.0.1", 40),
            set_entry("10.0.0.2", 40),
        ],
        at(0),
    );
    let before = reconciler.plane_mut().log.len();
    reconciler.apply(&[set_entry("10.0.0.1", 50)], at(1));
    reconciler.apply(&[set_group(40, &["192.0.2.4"])], at(1));
    assert_eq!(reconciler.plane_mut().log.len(), before + 2);
    let mut send = |to: &str| {
        let destination = to.parse().unwrap();
        match reconciler.plane_mut().send("10.8.0.1".parse().unwrap(), destination) {
            Fate::Encapsulated { members, .. } => members[0].0.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(send("10.0.0.1"), "192.0.2.3");
    assert_eq!(send("10.0.0.2"), "192.0.2.4");
    // What is as it should be is not written again.
    reconciler.apply(&[set_entry("10.0.0.1", 50)], at(2));
    assert_eq!(reconciler.plane_mut().log.len(), before + 2);
    assert_eq!(reconciler.entries(None).next().unwrap().wanted, Some(to(50)));
}

fn to(group: u32) -> EntryAction {
    EntryAction::Group(GroupId(group))
}

#[test]
fn a_group_is_removed_after_its_last_entry_and_its_slot_is_used_again() {
    let mut reconciler = opened(Fake::default());
    reconciler.apply(&[set_group(1, &["192.0.2.2"]), set_entry("10.0.0.1", 1)], at(0));
    reconciler.apply(&[EncapChange::RemoveGroup { group: GroupId(1) }], at(0));
    settle(&mut reconciler, at(0));
    assert_eq!(reconciler.plane_mut().groups.len(), 1);
    reconciler.apply(&[EncapChange::RemoveEntry { prefix: prefix("10.0.0.1") }], at(0));
    settle(&mut reconciler, at(0));
    assert!(reconciler.plane_mut().groups.is_empty() && reconciler.plane_mut().entries.is_empty());
    reconciler.apply(&[set_group(2, &["192.0.2.3"])], at(0));
    assert_eq!(reconciler.plane_mut().groups.keys().copied().collect::<Vec<_>>(), [GroupId(0)]);
    // Never set: refused, not guessed.
    reconciler.apply(&[set_entry("10.0.0.1", 1)], at(0));
    assert_eq!((reconciler.counters().no_group, reconciler.summary().entries), (1, 0));
}

#[test]
fn what_fails_is_tried_again_each_time_later() {
    let mut reconciler = opened(Fake::default());
    reconciler.plane_mut().broken_groups.insert(GroupId(0));
    reconciler.apply(&[set_group(1, &["192.0.2.2"]), set_entry("10.0.0.1", 1)], at(0));
    // The entry fails with its group.
    assert_eq!(reconciler.summary().failed, 2);
    let view = reconciler.entries(None).next().unwrap();
    assert_eq!((view.installed, view.error.as_deref()), (false, Some("there is no such group")));
    assert_eq!(reconciler.poll_timeout(), at(100));
    settle(&mut reconciler, at(100));
    assert_eq!(reconciler.poll_timeout(), at(300), "100 ms, then 200 ms");
    reconciler.plane_mut().broken_groups.clear();
    settle(&mut reconciler, at(300));
    assert_eq!((reconciler.summary().failed, reconciler.plane_mut().entries.len()), (0, 1));
    assert!(reconciler.entries(None).all(|view| view.installed && view.error.is_none()));
}

/// The control plane numbers its groups anew; those that are the same keep their slots, and their
/// entries are not touched.
#[test]
fn after_a_restart_what_is_there_is_adopted_and_the_rest_pruned() {
    let mut reconciler = opened(Fake::default());
    reconciler.apply(
        &[
            set_group(0, &["192.0.2.2"]),
            set_group(1, &["192.0.2.3", "2001:db8::3"]),
            set_group(2, &["192.0.2.4"]),
            set_entry("10.0.0.1", 0),
            set_entry("10.0.0.2", 1),
            set_entry("10.0.0.3", 2),
            EncapChange::AllowDecap { prefix: prefix("10.1.0.1") },
            EncapChange::AllowDecap { prefix: prefix("10.1.0.2") },
        ],
        at(0),
    );
    settle(&mut reconciler, at(0));
    let mut fake = std::mem::take(reconciler.plane_mut());
    fake.log.clear();

    let mut reconciler = opened(fake);
    assert_eq!(reconciler.counters().adopted, 8);
    reconciler.apply(
        &[
            set_group(0, &["2001:db8::3", "192.0.2.3"]),
            set_group(1, &["192.0.2.9"]),
            set_entry("10.0.0.2", 0),
            set_entry("10.0.0.3", 1),
            EncapChange::AllowDecap { prefix: prefix("10.1.0.1") },
        ],
        at(1),
    );
    // A new slot, because number 1 is still in use by what was found.
    let moved = [
        EncapChange::SetGroup { group: GroupId(3), path: path(&["192.0.2.9"]) },
        set_entry("10.0.0.3", 3),
    ];
    assert_eq!(reconciler.plane_mut().log, moved);
    reconciler.prune();
    settle(&mut reconciler, at(1));
    let fake = reconciler.plane_mut();
    assert_eq!(fake.groups.keys().map(|g| g.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(fake.entries.len(), 2);
    assert_eq!(fake.decap.len(), 1);
}

#[test]
fn what_somebody_takes_away_or_changes_comes_back() {
    let mut reconciler = opened(Fake::default());
    reconciler.apply(
        &[
            set_group(0, &["192.0.2.2"]),
            set_entry("10.0.0.1", 0),
            set_entry("10.0.0.2", 0),
            EncapChange::AllowDecap { prefix: prefix("10.1.0.1") },
        ],
        at(0),
    );
    reconciler.prune();
    settle(&mut reconciler, at(0));
    let wanted = {
        let fake = reconciler.plane_mut();
        (fake.groups.clone(), fake.entries.clone(), fake.decap.clone())
    };
    let fake = reconciler.plane_mut();
    fake.groups.insert(GroupId(0), path(&["192.0.2.66"]));
    fake.groups.insert(GroupId(9), path(&["192.0.2.67"]));
    fake.entries.insert(prefix("10.0.0.1"), EntryAction::Drop);
    fake.entries.insert(prefix("10.0.0.9"), EntryAction::Drop);
    fake.entries.remove(&prefix("10.0.0.2"));
    fake.decap.clear();
    reconciler.handle_doubt(at(1));
    settle(&mut reconciler, at(1));
    let fake = reconciler.plane_mut();
    assert_eq!((fake.groups.clone(), fake.entries.clone(), fake.decap.clone()), wanted);
    // The device is taken away, and everything with it.
    let fake = reconciler.plane_mut();
    fake.groups.clear();
    fake.entries.clear();
    fake.decap.clear();
    settle(&mut reconciler, at(61_000));
    let fake = reconciler.plane_mut();
    assert_eq!((fake.groups.clone(), fake.entries.clone(), fake.decap.clone()), wanted);
}

/// RFC 9301 §5.4 on weights; a locator of a family that the back end has not is left out.
#[test]
fn a_path_is_made_usable() {
    let mut caps = Fake::default().caps;
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let (a, b, c) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"));
    let encap = |members: &[(IpAddr, u8)]| GroupPath::Encap { members: members.to_vec(), iid: IID };
    assert_eq!(usable(&encap(&[(b, 0), (a, 0)]), &caps), encap(&[(a, 1), (b, 1)]));
    assert_eq!(usable(&encap(&[(c, 9), (b, 0), (a, 5)]), &caps), encap(&[(a, 5), (c, 9)]));
    caps.outer.ipv6 = false;
    assert_eq!(usable(&encap(&[(c, 9)]), &caps), GroupPath::Unreachable);
}

#[test]
fn tables_have_limits() {
    let mut fake = Fake::default();
    (fake.caps.entries_max, fake.caps.groups_max, fake.caps.decap_max) = (1, 1, 1);
    let mut reconciler = opened(fake);
    for number in 0..3_u32 {
        let text = format!("10.0.0.{number}");
        reconciler.apply(&[set_group(number, &["192.0.2.2"]), set_entry(&text, 0)], at(0));
        reconciler.apply(&[EncapChange::AllowDecap { prefix: prefix(&text) }], at(0));
    }
    assert_eq!(reconciler.counters().full, 6);
    let summary = reconciler.summary();
    assert_eq!((summary.groups, summary.entries, summary.decap), (1, 1, 1));
}

/// Any order of changes, refusals, theft and restarts: in the end the back end has what was asked last.
#[test]
fn it_ends_with_what_was_asked() {
    for seed in 1..60_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        let mut groups: BTreeMap<u32, GroupPath> = BTreeMap::new();
        let mut entries: BTreeMap<Prefix, EntryAction> = BTreeMap::new();
        let mut decap: BTreeSet<Prefix> = BTreeSet::new();
        let mut reconciler = Reconciler::new(Fake::default(), at(0));
        let mut now = at(0);
        for _ in 0..400 {
            let host = Prefix::v4(0x0a00_0000 + u32::try_from(random(12)).unwrap(), 32).unwrap();
            let number = u32::try_from(random(4)).unwrap();
            let change = match random(12) {
                0..=2 => {
                    let path = path(&[&format!("192.0.2.{}", 1 + random(5))]);
                    groups.insert(number, path.clone());
                    EncapChange::SetGroup { group: GroupId(number), path }
                }
                3 if !entries.values().any(|&action| action == to(number)) => {
                    groups.remove(&number);
                    EncapChange::RemoveGroup { group: GroupId(number) }
                }
                3..=6 => {
                    let known = groups.contains_key(&number);
                    let action = if known { to(number) } else { EntryAction::Punt };
                    entries.insert(host, action);
                    EncapChange::SetEntry { prefix: host, action }
                }
                7 => {
                    entries.remove(&host);
                    EncapChange::RemoveEntry { prefix: host }
                }
                8 => {
                    decap.insert(host);
                    EncapChange::AllowDecap { prefix: host }
                }
                9 => {
                    decap.remove(&host);
                    EncapChange::ForbidDecap { prefix: host }
                }
                10 => {
                    let fake = reconciler.plane_mut();
                    match random(4) {
                        0 => (fake.entries.clear(), fake.groups.clear()).0,
                        1 => fake.decap.clear(),
                        2 => drop(fake.broken.insert(host)),
                        _ => fake.broken.clear(),
                    }
                    reconciler.handle_doubt(now);
                    continue;
                }
                _ => {
                    now += Duration::from_millis(random(500));
                    for _ in 0..random(4) {
                        reconciler.handle_timeout(now, &mut Vec::new());
                    }
                    if random(10) == 0 {
                        // A restart; the control plane says everything again, and then prunes.
                        reconciler = Reconciler::new(std::mem::take(reconciler.plane_mut()), now);
                        let said = groups.iter().map(|(&number, path)| EncapChange::SetGroup {
                            group: GroupId(number),
                            path: path.clone(),
                        });
                        let said: Vec<_> =
                            said.chain(entries.iter().map(|(&prefix, &action)| {
                                EncapChange::SetEntry { prefix, action }
                            }))
                            .chain(decap.iter().map(|&prefix| EncapChange::AllowDecap { prefix }))
                            .collect();
                        reconciler.apply(&said, now);
                        reconciler.prune();
                    }
                    continue;
                }
            };
            reconciler.apply(&[change], now);
        }
        reconciler.prune();
        reconciler.plane_mut().broken.clear();
        for _ in 0..3 {
            now += Duration::from_secs(120);
            settle(&mut reconciler, now);
        }
        assert_eq!(reconciler.counters().no_group, 0, "seed {seed}");
        let views: Vec<_> = reconciler.entries(None).collect();
        let fake = reconciler.plane_mut();
        assert_eq!(fake.decap, decap, "seed {seed}");
        assert_eq!(fake.groups.len(), groups.len(), "seed {seed}");
        assert_eq!(fake.entries.len(), entries.len(), "seed {seed}: {views:?}");
        for (prefix, action) in &entries {
            let found = match fake.entries[prefix] {
                EntryAction::Group(slot) => fake.groups.get(&slot),
                _ => None,
            };
            let wanted = match action {
                EntryAction::Group(GroupId(number)) => groups.get(number),
                _ => None,
            };
            assert_eq!(found, wanted, "seed {seed}: {prefix}");
        }
    }
}
