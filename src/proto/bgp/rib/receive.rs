//! UPDATEs into the Adj-RIB-In (RFC 4271 §9.1, RFC 7606).
//!
//! Most UPDATEs repeat an attribute block that was walked before: then only the bounds of the
//! attributes are looked at, to set MP_REACH_NLRI and its prefixes apart from what they share.
//! Whatever is irregular in any way takes the long way, which is the codec's.

use super::attr_store::{AttrId, LOOP_AS, LOOP_CLUSTER, LOOP_ORIGINATOR};
use super::key::{Addr, Key};
use super::table::{Shared, Table};
use super::{PeerId, PeerKind, Rib, UpdateOutcome};
use crate::types::{Family, Instant};
use crate::wire::bgp::{Action, Attributes, Nlri, Sections, Update};

const MP_REACH_NLRI: u8 = 14;
const MP_UNREACH_NLRI: u8 = 15;
/// Optional, non-transitive; and the same with an extended length (RFC 4271 §4.3).
const OPTIONAL: u8 = 0x80;
const EXTENDED_LEN: u8 = 0x10;

/// Kept for their memory.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    v4: Vec<Key<u32>>,
    v4_out: Vec<Key<u32>>,
    v6: Vec<Key<[u8; 16]>>,
    v6_out: Vec<Key<[u8; 16]>>,
    block: Vec<u8>,
}

/// An attribute block by its bounds only.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outline<'a> {
    /// Next hop and NLRI of IPv6 unicast.
    reach: Option<(&'a [u8], &'a [u8])>,
    unreach: Option<&'a [u8]>,
    others: bool,
}

/// `None` when anything is unusual. `rest` becomes all other attributes, when there is an MP
/// attribute.
fn outline<'a>(block: &'a [u8], rest: &mut Vec<u8>) -> Option<Outline<'a>> {
    let mut found = Outline::default();
    rest.clear();
    let mut at = 0;
    while at < block.len() {
        let [flags, code] = *block[at..].first_chunk::<2>()?;
        let (start, len) = if flags & EXTENDED_LEN == 0 {
            (at + 3, usize::from(*block.get(at + 2)?))
        } else {
            (at + 4, usize::from(u16::from_be_bytes(*block.get(at + 2..)?.first_chunk()?)))
        };
        let value = block.get(start..start + len)?;
        let end = start + len;
        match code {
            MP_REACH_NLRI => {
                let [0, 2, 1, next_hop_len, tail @ ..] = value else { return None };
                let (next_hop, tail) = tail.split_at_checked(usize::from(*next_hop_len))?;
                let nlri = tail.get(1..)?;
                if flags & !EXTENDED_LEN != OPTIONAL || found.reach.is_some() || nlri.is_empty() {
                    return None;
                }
                if rest.is_empty() {
                    rest.extend_from_slice(&block[..at]);
                }
                found.reach = Some((next_hop, nlri));
            }
            MP_UNREACH_NLRI => {
                let [0, 2, 1, nlri @ ..] = value else { return None };
                if flags & !EXTENDED_LEN != OPTIONAL || found.unreach.is_some() || nlri.is_empty() {
                    return None;
                }
                found.unreach = Some(nlri);
            }
            _ => {
                found.others = true;
                if found.reach.is_some() {
                    rest.extend_from_slice(&block[at..end]);
                }
            }
        }
        at = end;
    }
    if let Some((next_hop, _)) = found.reach {
        // The length at the end tells where the next hop begins: no two blocks look alike.
        rest.extend_from_slice(next_hop);
        rest.push(next_hop.len() as u8);
    }
    Some(found)
}

/// What a peer's attributes become here. RFC 4271 §5.1.5 and RFC 4456 §8: some attributes mean
/// nothing when they come from outside the AS.
fn accept(mut attributes: Attributes, kind: PeerKind, local_pref: Option<u32>) -> Attributes {
    match kind {
        PeerKind::External => {
            attributes.local_pref = None;
            attributes.originator_id = None;
            attributes.cluster_list.clear();
        }
        PeerKind::Client | PeerKind::NonClient => {}
    }
    if local_pref.is_some() {
        attributes.local_pref = local_pref;
    }
    attributes
}

impl Rib {
    /// One UPDATE without its header. From a peer that is not up it is ignored.
    pub fn handle_update(&mut self, peer: PeerId, body: &[u8], _now: Instant) -> UpdateOutcome {
        if self.shared.peers.get_up(peer).is_none() {
            return UpdateOutcome::default();
        }
        let sections = match Sections::split(body) {
            Ok(sections) => sections,
            Err(error) => return UpdateOutcome { error: Some(error), ..Default::default() },
        };
        let outcome = match self.receive_known(peer, &sections) {
            Known::Done(outcome) => outcome,
            Known::No { block_class } => self.receive_any(peer, body, &sections, block_class),
        };
        let counters = &mut self.shared.counters;
        counters.announced += u64::from(outcome.announced);
        counters.withdrawn += u64::from(outcome.withdrawn);
        counters.rejected += u64::from(outcome.rejected);
        outcome
    }

    /// The short way.
    fn receive_known(&mut self, peer: PeerId, sections: &Sections<'_>) -> Known {
        let Self { shared: sh, v4, v6, scratch, .. } = self;
        let no = Known::No { block_class: None };
        let Some(p) = sh.peers.get_up(peer) else { return no };
        let (negotiated, class) = (p.info.negotiated, p.class);
        let Some(outline) = outline(sections.attributes, &mut scratch.block) else { return no };
        let uses_v4 = !sections.withdrawn.is_empty() || !sections.nlri.is_empty();
        let uses_v6 = outline.reach.is_some() || outline.unreach.is_some();
        if uses_v4 && !negotiated.ipv4 || uses_v6 && !negotiated.ipv6 {
            return no;
        }
        let announced = match (sections.nlri, outline.reach) {
            ([], None) if outline.others || !uses_v4 && !uses_v6 => return no,
            ([], None) => None,
            (_, None) => Some((class * 2, sections.attributes)),
            ([], Some(_)) => Some((class * 2 + 1, scratch.block.as_slice())),
            (_, Some(_)) => return no,
        };
        let attrs = match announced {
            None => None,
            Some((class, block)) => match sh.attrs.find_block(class, block) {
                Some(id) => {
                    sh.counters.attribute_cache_hits += 1;
                    Some(id)
                }
                // A block with withdrawals in it is not worth remembering: the prefixes are part of
                // it.
                None if outline.unreach.is_some() => return no,
                None => return Known::No { block_class: Some(class) },
            },
        };
        scratch.v4.clear();
        scratch.v4_out.clear();
        scratch.v6.clear();
        scratch.v6_out.clear();
        let (_, nlri_v6) = outline.reach.unwrap_or_default();
        if !u32::parse(sections.withdrawn, &mut scratch.v4_out)
            || !u32::parse(sections.nlri, &mut scratch.v4)
            || !Addr::parse(outline.unreach.unwrap_or_default(), &mut scratch.v6_out)
            || !Addr::parse(nlri_v6, &mut scratch.v6)
        {
            return no;
        }
        let mut outcome = UpdateOutcome::default();
        withdraw(sh, v4, peer, &scratch.v4_out, &mut outcome);
        withdraw(sh, v6, peer, &scratch.v6_out, &mut outcome);
        if let Some(id) = attrs {
            announce(sh, v4, peer, id, &mut scratch.v4, &mut outcome);
            announce(sh, v6, peer, id, &mut scratch.v6, &mut outcome);
        }
        Known::Done(outcome)
    }

    /// The long way, which knows what to do about everything that may be wrong.
    fn receive_any(
        &mut self,
        peer: PeerId,
        body: &[u8],
        sections: &Sections<'_>,
        block_class: Option<u32>,
    ) -> UpdateOutcome {
        let Self { shared: sh, v4, v6, scratch, .. } = self;
        let mut outcome = UpdateOutcome::default();
        let Some(p) = sh.peers.get_up(peer) else { return outcome };
        let (kind, local_pref) = (p.info.kind, p.info.import.local_pref);
        let mut update = match Update::decode(body, &p.info.negotiated) {
            Ok(update) => update,
            Err(error) => return UpdateOutcome { error: Some(error), ..outcome },
        };
        outcome.end_of_rib = update.end_of_rib;
        let clean = update.walk.errors.is_empty();
        outcome.attribute_errors = std::mem::take(&mut update.walk.errors);

        withdraw_nlri(sh, v4, v6, scratch, peer, update.withdrawn, &mut outcome);
        if let Some(unreach) = update.walk.mp_unreach {
            withdraw_nlri(sh, v4, v6, scratch, peer, unreach.nlri, &mut outcome);
        }
        let announced = [
            (!update.nlri.is_empty()).then_some((update.nlri, None)),
            update.walk.mp_reach.map(|reach| (reach.nlri, Some(reach.next_hop))),
        ]
        .map(|one| one.filter(|(nlri, _)| !nlri.is_empty()));
        let mut left = announced.iter().flatten().count();
        let usable = match update.walk.action {
            Action::None | Action::AttributeDiscard => update.walk.attributes,
            // A reset is an `Err` above; were it here, no route of this message could be kept
            // either.
            Action::TreatAsWithdraw | Action::SessionReset(_) => None,
        };
        let mut usable = usable.map(|attributes| accept(attributes, kind, local_pref));
        for (nlri, next_hop) in announced.into_iter().flatten() {
            left -= 1;
            let one = if left == 0 { usable.take() } else { usable.clone() };
            let Some(mut attributes) = one else {
                withdraw_nlri(sh, v4, v6, scratch, peer, nlri, &mut outcome);
                continue;
            };
            if let Some(next_hop) = next_hop {
                attributes.next_hop = next_hop;
            }
            let Some(id) = sh.attrs.intern(attributes) else {
                // Full: what the peer said before is no longer true either.
                let withdrawn = outcome.withdrawn;
                withdraw_nlri(sh, v4, v6, scratch, peer, nlri, &mut outcome);
                outcome.full += outcome.withdrawn - withdrawn;
                outcome.withdrawn = withdrawn;
                sh.counters.full_attributes += 1;
                continue;
            };
            if let Some(class) = block_class
                && clean
            {
                sh.counters.attribute_cache_misses += 1;
                let block =
                    if class % 2 == 0 { sections.attributes } else { scratch.block.as_slice() };
                sh.attrs.remember_block(class, block, id);
            }
            match nlri.family() {
                Family::Ipv4 => {
                    fill(nlri, &mut scratch.v4);
                    announce(sh, v4, peer, id, &mut scratch.v4, &mut outcome);
                }
                Family::Ipv6 => {
                    fill(nlri, &mut scratch.v6);
                    announce(sh, v6, peer, id, &mut scratch.v6, &mut outcome);
                }
            }
            sh.attrs.release(id);
        }
        outcome
    }
}

enum Known {
    Done(UpdateOutcome),
    /// Take the long way. `block_class`: then remember the block under this class, if nothing is
    /// wrong with it.
    No {
        block_class: Option<u32>,
    },
}

fn fill<A: Addr>(nlri: Nlri<'_>, keys: &mut Vec<Key<A>>) {
    keys.clear();
    keys.extend(nlri.iter().filter_map(A::of));
}

fn withdraw_nlri(
    sh: &mut Shared,
    v4: &mut Table<u32>,
    v6: &mut Table<[u8; 16]>,
    scratch: &mut Scratch,
    peer: PeerId,
    nlri: Nlri<'_>,
    outcome: &mut UpdateOutcome,
) {
    match nlri.family() {
        Family::Ipv4 => {
            fill(nlri, &mut scratch.v4);
            withdraw(sh, v4, peer, &scratch.v4, outcome);
        }
        Family::Ipv6 => {
            fill(nlri, &mut scratch.v6);
            withdraw(sh, v6, peer, &scratch.v6, outcome);
        }
    }
}

fn withdraw<A: Addr>(
    sh: &mut Shared,
    table: &mut Table<A>,
    peer: PeerId,
    keys: &[Key<A>],
    outcome: &mut UpdateOutcome,
) {
    outcome.withdrawn += keys.len() as u32;
    table.withdraw(sh, peer.0, keys);
}

/// Loop checks and import policy, then into the table. A prefix that is refused loses its former
/// path, because the peer has replaced it (RFC 4271 §9.1.4: implicit withdrawal).
fn announce<A: Addr>(
    sh: &mut Shared,
    table: &mut Table<A>,
    peer: PeerId,
    id: AttrId,
    keys: &mut Vec<Key<A>>,
    outcome: &mut UpdateOutcome,
) {
    if keys.is_empty() {
        return;
    }
    let looped = sh.attrs.key(id).flags & (LOOP_AS | LOOP_ORIGINATOR | LOOP_CLUSTER);
    if looped != 0 {
        let count = keys.len() as u64;
        if looped & LOOP_AS != 0 {
            sh.counters.looped_as_path += count;
        } else if looped & LOOP_ORIGINATOR != 0 {
            sh.counters.looped_originator += count;
        } else {
            sh.counters.looped_cluster += count;
        }
        outcome.looped += keys.len() as u32;
        table.withdraw(sh, peer.0, keys);
        return;
    }
    let accept_all =
        sh.peers.get(peer).is_some_and(|p| p.accept_all[super::peers::slot(A::FAMILY)]);
    if !accept_all {
        let mut refused = Vec::new();
        if let Some(p) = sh.peers.get(peer) {
            keys.retain(|key| {
                let permitted = p.info.import.filter.permits(key.prefix());
                if !permitted {
                    refused.push(*key);
                }
                permitted
            });
        }
        outcome.rejected += refused.len() as u32;
        table.withdraw(sh, peer.0, &refused);
    }
    let full = table.announce(sh, peer.0, id, keys);
    sh.counters.full_routes += u64::from(full);
    outcome.full += full;
    outcome.announced += keys.len() as u32 - full;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_takes_the_mp_attributes_out() {
        let block = [
            0x40, 1, 1, 0, // ORIGIN
            0x80, 14, 10, 0, 2, 1, 2, 0xaa, 0xbb, 0, 16, 0x20, 1, // MP_REACH_NLRI
            0x40, 5, 4, 0, 0, 0, 100, // LOCAL_PREF
        ];
        let mut rest = Vec::new();
        let found = outline(&block, &mut rest).unwrap();
        assert_eq!(found.reach, Some((&[0xaa, 0xbb][..], &[16, 0x20, 1][..])));
        assert_eq!(found.unreach, None);
        assert_eq!(rest, [0x40, 1, 1, 0, 0x40, 5, 4, 0, 0, 0, 100, 0xaa, 0xbb, 2]);
    }

    #[test]
    fn an_outline_of_anything_irregular_is_refused() {
        let mut rest = Vec::new();
        for block in [
            &[0x40, 1, 2, 0][..],                                // overrun
            &[0x40, 1],                                          // truncated header
            &[0x50, 1, 0],                                       // truncated extended length
            &[0xc0, 14, 6, 0, 2, 1, 0, 0, 0],                    // transitive MP_REACH_NLRI
            &[0x80, 14, 6, 0, 1, 1, 0, 0, 0],                    // of IPv4
            &[0x80, 14, 5, 0, 2, 1, 9, 0],                       // next hop overruns
            &[0x80, 15, 4, 0, 2, 1, 0, 0x80, 15, 4, 0, 2, 1, 0], // twice
            &[0x80, 15, 3, 0, 2, 1],                             // End-of-RIB
        ] {
            assert_eq!(outline(block, &mut rest), None, "{block:?}");
        }
    }
}
