//! The decision process: RFC 4271 §9.1.2.2 with the additions of RFC 4456 §9.
//!
//! MED is compared between routes of the same neighbour AS only, so "better" is not a total order
//! and comparing one after the other would make the result depend on the order. With more than two
//! paths the RFC's own way is taken: each rule in turn strikes out those that lose, then the next
//! one.

use std::cmp::{Ordering, Reverse};
use std::net::IpAddr;

use super::Reason;

/// All that the rules look at, of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rank {
    /// The next hop is not known to be unreachable (RFC 4271 §9.1.2).
    pub eligible: bool,
    /// Originated here: preferred among equals by LOCAL_PREF. Not above it: a newer claim of
    /// another anchor has to win here as it wins at every router.
    pub local: bool,
    pub local_pref: u32,
    pub as_path_len: u16,
    pub origin: u8,
    pub neighbor_as: u32,
    pub med: u32,
    pub external: bool,
    pub metric: u32,
    /// ORIGINATOR_ID, or the router id of the peer.
    pub router_id: u32,
    pub cluster_list_len: u16,
    pub peer_addr: IpAddr,
}

/// `Less`: `a` is better. The reason is the rule that decided.
pub(super) fn compare(a: &Rank, b: &Rank) -> (Ordering, Reason) {
    let same_neighbor = a.neighbor_as == b.neighbor_as;
    let rules = [
        (b.eligible.cmp(&a.eligible), Reason::NextHopUnreachable),
        (b.local_pref.cmp(&a.local_pref), Reason::LocalPref),
        (b.local.cmp(&a.local), Reason::Local),
        (a.as_path_len.cmp(&b.as_path_len), Reason::AsPathLength),
        (a.origin.cmp(&b.origin), Reason::Origin),
        (if same_neighbor { a.med.cmp(&b.med) } else { Ordering::Equal }, Reason::Med),
        (b.external.cmp(&a.external), Reason::ExternalOverInternal),
        (a.metric.cmp(&b.metric), Reason::NextHopMetric),
        (a.router_id.cmp(&b.router_id), Reason::RouterId),
        (a.cluster_list_len.cmp(&b.cluster_list_len), Reason::ClusterListLength),
        (a.peer_addr.cmp(&b.peer_addr), Reason::PeerAddress),
    ];
    rules
        .into_iter()
        .find(|(order, _)| *order != Ordering::Equal)
        .unwrap_or((Ordering::Equal, Reason::PeerAddress))
}

/// Position of the best of `ranks`, which must not be empty. Of complete equals, the first.
pub(super) fn select(ranks: &[Rank]) -> usize {
    if let [a, b] = ranks {
        return usize::from(compare(a, b).0 == Ordering::Greater);
    }
    let mut alive: Vec<usize> = (0..ranks.len()).collect();
    keep_least(&mut alive, |i| Reverse(ranks[i].eligible));
    keep_least(&mut alive, |i| Reverse(ranks[i].local_pref));
    keep_least(&mut alive, |i| Reverse(ranks[i].local));
    keep_least(&mut alive, |i| ranks[i].as_path_len);
    keep_least(&mut alive, |i| ranks[i].origin);
    strike_by_med(&mut alive, ranks);
    keep_least(&mut alive, |i| Reverse(ranks[i].external));
    keep_least(&mut alive, |i| ranks[i].metric);
    keep_least(&mut alive, |i| ranks[i].router_id);
    keep_least(&mut alive, |i| ranks[i].cluster_list_len);
    keep_least(&mut alive, |i| ranks[i].peer_addr);
    alive[0]
}

fn keep_least<K: Ord>(alive: &mut Vec<usize>, key: impl Fn(usize) -> K) {
    if alive.len() > 1
        && let Some(least) = alive.iter().map(|&i| key(i)).min()
    {
        alive.retain(|&i| key(i) == least);
    }
}

/// §9.1.2.2 c): of each neighbour AS, those with the lowest MED stay.
fn strike_by_med(alive: &mut Vec<usize>, ranks: &[Rank]) {
    if alive.len() < 2 {
        return;
    }
    let mut lowest: Vec<(u32, u32)> =
        alive.iter().map(|&i| (ranks[i].neighbor_as, ranks[i].med)).collect();
    lowest.sort_unstable();
    lowest.dedup_by_key(|(neighbor_as, _)| *neighbor_as);
    alive.retain(|&i| lowest.binary_search(&(ranks[i].neighbor_as, ranks[i].med)).is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Rank = Rank {
        eligible: true,
        local: false,
        local_pref: 100,
        as_path_len: 2,
        origin: 1,
        neighbor_as: 65001,
        med: 10,
        external: false,
        metric: 10,
        router_id: 20,
        cluster_list_len: 2,
        peer_addr: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 20)),
    };

    /// One row per rule, in the order of RFC 4271 §9.1.2.2 and RFC 4456 §9. `better` wins by this
    /// rule although all later rules are made to say the opposite.
    #[test]
    fn each_rule_decides_before_the_later_ones() {
        type Change = fn(&mut Rank);
        let rows: [(Reason, Change); 11] = [
            (Reason::NextHopUnreachable, |r| r.eligible = false),
            (Reason::LocalPref, |r| r.local_pref = 99),
            (Reason::Local, |r| r.local = false),
            (Reason::AsPathLength, |r| r.as_path_len = 3),
            (Reason::Origin, |r| r.origin = 2),
            (Reason::Med, |r| r.med = 11),
            (Reason::ExternalOverInternal, |r| r.external = false),
            (Reason::NextHopMetric, |r| r.metric = 11),
            (Reason::RouterId, |r| r.router_id = 21),
            (Reason::ClusterListLength, |r| r.cluster_list_len = 3),
            (Reason::PeerAddress, |r| r.peer_addr = "192.0.2.21".parse().unwrap()),
        ];
        let all_good = Rank { local: true, external: true, ..BASE };
        for (at, (reason, worsen)) in rows.iter().enumerate() {
            let (mut better, mut worse) = (all_good, all_good);
            worsen(&mut worse);
            for (_, later) in &rows[at + 1..] {
                later(&mut better);
            }
            assert_eq!(compare(&better, &worse), (Ordering::Less, *reason));
            assert_eq!(compare(&worse, &better), (Ordering::Greater, *reason));
            assert_eq!(select(&[worse, better]), 1, "{reason:?}");
            assert_eq!(select(&[worse, better, worse]), 1, "{reason:?}, three");
        }
    }

    /// RFC 4271 §9.1.2.2 c).
    #[test]
    fn med_of_different_neighbors_is_not_compared() {
        let a = Rank { med: 5, router_id: 30, ..BASE };
        let b = Rank { med: 900, neighbor_as: 65002, ..BASE };
        assert_eq!(compare(&b, &a), (Ordering::Less, Reason::RouterId));
    }

    /// The classic example in which one-by-one comparison goes round in a circle.
    #[test]
    fn the_result_does_not_depend_on_the_order() {
        let a = Rank { neighbor_as: 1, med: 10, metric: 10, router_id: 1, ..BASE };
        let b = Rank { neighbor_as: 1, med: 5, metric: 30, router_id: 2, ..BASE };
        let c = Rank { neighbor_as: 2, med: 0, metric: 20, router_id: 3, ..BASE };
        assert_eq!(compare(&a, &c).0, Ordering::Less);
        assert_eq!(compare(&c, &b).0, Ordering::Less);
        assert_eq!(compare(&b, &a).0, Ordering::Less, "a circle");
        for order in [[a, b, c], [a, c, b], [b, a, c], [b, c, a], [c, a, b], [c, b, a]] {
            assert_eq!(order[select(&order)], c);
        }
    }
}
