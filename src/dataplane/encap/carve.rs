//! Entries as routes in a table that has routes of others, too.
//!
//! In one table the longest prefix decides, whoever made its route. Two things are not like that:
//!
//! * A **native** entry within a wider one that is not (a negative answer within a pool that is asked
//!   about) leaves its prefix to the routes of others, which may be shorter than the wider entry's. So
//!   the wider entry has no route of its own then, but one for each piece of what is left of it:
//!   10.0.0.0/8 without 10.64.0.0/10 is 10.0.0.0/10 and 10.128.0.0/9.
//! * A piece may have the prefix of another entry, or of somebody's route. So pieces have metrics of
//!   their own, worse than entries and than others' routes, and the better the longer the entry
//!   they are of.
//!
//! Entries of single hosts are not kept here: nothing is within them, and there are a million.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};

use crate::types::{Family, Prefix};

/// Of entries: after what is delivered here (10), before routing daemons (20 and more).
pub const METRIC: u32 = 15;
/// Of pieces, less the length of the entry that they are of.
const PIECES: u32 = 0x4b00_0000 + 128;

/// Routes of pieces, all together: a native host costs at most 31, of IPv6 127, and less beside
/// others. A native entry that would need more is refused.
pub const PIECES_MAX: usize = 1 << 18;

/// One route to write; `to` is none for one to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<T> {
    pub prefix: Prefix,
    pub metric: u32,
    pub to: Option<T>,
}

/// What an entry should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<T> {
    Route(T),
    Native,
    /// Native, and somebody has a route of exactly this prefix: nothing need be cut.
    Spared,
    Gone,
}

#[derive(Debug)]
pub struct Carver<T> {
    /// Entries with routes, without those of hosts.
    wide: BTreeMap<Prefix, T>,
    /// Native entries, of hosts too.
    natives: BTreeSet<Prefix>,
    /// Native entries that nothing is cut for.
    spared: BTreeSet<Prefix>,
    pieces: usize,
}

impl<T> Default for Carver<T> {
    fn default() -> Self {
        let (wide, natives, spared) = Default::default();
        Self { wide, natives, spared, pieces: 0 }
    }
}

type Routes = BTreeSet<(Prefix, u32)>;

impl<T: Copy + PartialEq> Carver<T> {
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// The routes to write, in an order in which no packet finds less than before or after. False
    /// when there are too many pieces; nothing has changed then.
    pub fn set(&mut self, prefix: Prefix, entry: Entry<T>, out: &mut Vec<Write<T>>) -> bool {
        let was_native = self.natives.contains(&prefix);
        self.spared.remove(&prefix);
        match entry {
            Entry::Route(to) => {
                // Its routes first, then what leaves its place.
                if prefix.is_host() {
                    out.push(Write { prefix, metric: METRIC, to: Some(to) });
                } else {
                    let new = self.wide.insert(prefix, to).is_none();
                    let routes = self.routes_of(prefix);
                    if new {
                        self.pieces += pieces_in(&routes);
                    }
                    let set = |&(prefix, metric)| Write { prefix, metric, to: Some(to) };
                    out.extend(routes.iter().map(set));
                }
                if was_native {
                    self.fill(prefix, out);
                }
            }
            Entry::Native => {
                if !was_native && !self.cut(prefix, out) {
                    return false;
                }
                self.drop_routes(prefix, out);
            }
            Entry::Spared | Entry::Gone => {
                if was_native {
                    self.fill(prefix, out);
                } else {
                    self.drop_routes(prefix, out);
                }
                if entry == Entry::Spared {
                    self.spared.insert(prefix);
                }
            }
        }
        true
    }

    fn drop_routes(&mut self, prefix: Prefix, out: &mut Vec<Write<T>>) {
        let routes = match self.wide.contains_key(&prefix) {
            true => self.routes_of(prefix),
            false => Routes::from([(prefix, METRIC)]),
        };
        if self.wide.remove(&prefix).is_some() {
            self.pieces -= pieces_in(&routes);
        }
        out.extend(routes.iter().map(|&(prefix, metric)| Write { prefix, metric, to: None }));
    }

    /// A new native entry: out of everything around it.
    fn cut(&mut self, prefix: Prefix, out: &mut Vec<Write<T>>) -> bool {
        let changes = self.around_changed(prefix, |this| {
            this.natives.insert(prefix);
        });
        let (more, less) = changes.iter().fold((0, 0), |(more, less), (_, before, after)| {
            (more + pieces_in(after), less + pieces_in(before))
        });
        if self.pieces + more > PIECES_MAX + less {
            self.natives.remove(&prefix);
            return false;
        }
        self.write(&changes, out);
        true
    }

    /// It is native no longer.
    fn fill(&mut self, prefix: Prefix, out: &mut Vec<Write<T>>) {
        let changes = self.around_changed(prefix, |this| {
            this.natives.remove(&prefix);
        });
        self.write(&changes, out);
    }

    fn write(&mut self, changes: &[(T, Routes, Routes)], out: &mut Vec<Write<T>>) {
        for (to, before, after) in changes {
            self.pieces = (self.pieces + pieces_in(after)).saturating_sub(pieces_in(before));
            let write = |&(prefix, metric): &(Prefix, u32), to| Write { prefix, metric, to };
            out.extend(after.difference(before).map(|route| write(route, Some(*to))));
            out.extend(before.difference(after).map(|route| write(route, None)));
        }
    }

    /// Of all around it the routes that a change of this native entry concerns, before and after.
    fn around_changed(
        &mut self,
        native: Prefix,
        change: impl FnOnce(&mut Self),
    ) -> Vec<(T, Routes, Routes)> {
        let around: Vec<(Prefix, T)> =
            if native.len() == 0 { Vec::new() } else { self.around(native).collect() };
        let regions: Vec<_> = around
            .into_iter()
            .filter_map(|(entry, to)| Some((entry, self.region(entry, native)?, to)))
            .collect();
        let routes = |this: &Self| -> Vec<Routes> {
            let of = |&(entry, region, _): &(Prefix, Prefix, T)| this.routes_in(entry, region);
            regions.iter().map(of).collect()
        };
        let before = routes(self);
        change(self);
        let after = routes(self);
        regions
            .iter()
            .zip(before)
            .zip(after)
            .map(|((r, before), after)| (r.2, before, after))
            .collect()
    }

    /// The greatest part of an entry in which nothing is native but `native` and what is within it.
    /// None when another one is around it.
    fn region(&self, entry: Prefix, native: Prefix) -> Option<Prefix> {
        let mut wider = parent(native);
        while let Some(at) = wider.filter(|&at| at != entry) {
            if self.natives.contains(&at) {
                return None;
            }
            wider = parent(at);
        }
        let mut part = entry;
        while part != native && self.has_others(part, entry, native) {
            part = child_towards(part, native);
        }
        Some(part)
    }

    fn has_others(&self, part: Prefix, entry: Prefix, native: Prefix) -> bool {
        let before = self.natives.range(part..native).any(|&n| n != entry);
        let behind = || self.natives.range((Excluded(last(native)), Unbounded)).next().copied();
        before || behind().is_some_and(|n| part.contains(n))
    }

    fn routes_of(&self, entry: Prefix) -> Routes {
        self.routes_in(entry, entry)
    }

    /// The routes of an entry within a part of it that no native entry is around.
    fn routes_in(&self, entry: Prefix, region: Prefix) -> Routes {
        let mut routes = Routes::new();
        if self.native_in(entry, entry).is_none() {
            if region == entry {
                routes.insert((entry, METRIC));
            }
            return routes;
        }
        let metric = PIECES - u32::from(entry.len());
        let mut open = vec![region];
        while let Some(part) = open.pop() {
            match self.native_in(part, entry) {
                None => {
                    routes.insert((part, metric));
                }
                Some(native) if native == part => {}
                Some(_) => open.extend(halves(part)),
            }
        }
        routes
    }

    /// The first native entry in a part of an entry. The entry's own prefix is not one of them.
    fn native_in(&self, part: Prefix, entry: Prefix) -> Option<Prefix> {
        let inside = self.natives.range(part..).take_while(|native| part.contains(**native));
        inside.copied().find(|native| *native != entry)
    }

    /// Entries with routes that are wider than this prefix, from the inside out.
    fn around(&self, prefix: Prefix) -> impl Iterator<Item = (Prefix, T)> {
        let mut at = parent(prefix);
        std::iter::from_fn(move || {
            loop {
                let within = at?;
                let (&found, &to) = self.wide.range(..=within).next_back()?;
                if found.contains(within) {
                    at = parent(found);
                    return Some((found, to));
                }
                // What is around both is all that can be left.
                at = common(found, within);
            }
        })
    }

    /// What a list of the table has shown, without entries of hosts: takes over what an earlier
    /// process has left, and says which entries are there and what has to be written.
    ///
    /// An entry of which routes are missing is not among them: it has to be set again.
    pub fn adopt(
        &mut self,
        family: Family,
        seen: &BTreeMap<(Prefix, u32), T>,
        writes: &mut Vec<Write<T>>,
    ) -> Vec<(Prefix, Entry<T>)> {
        let mut divided: BTreeMap<Prefix, Vec<(Prefix, T)>> = BTreeMap::new();
        for (&(prefix, metric), &to) in seen {
            let len = PIECES.checked_sub(metric).and_then(|len| u8::try_from(len).ok());
            if metric == METRIC {
                self.wide.entry(prefix).or_insert(to);
            } else if let Some(entry) = len.and_then(|len| Prefix::new(prefix.addr(), len)) {
                divided.entry(entry).or_default().push((prefix, to));
            }
        }
        for (entry, pieces) in divided {
            let to = pieces[0].1;
            if self.wide.contains_key(&entry) || pieces.iter().any(|&(_, other)| other != to) {
                continue;
            }
            self.wide.insert(entry, to);
            let pieces = pieces.into_iter().map(|(prefix, _)| prefix).collect();
            left_out(entry, &pieces, &mut self.natives);
        }
        let mut found = Vec::new();
        let mut expected = BTreeSet::new();
        self.pieces = 0;
        for (&entry, &to) in &self.wide {
            let routes = self.routes_of(entry);
            self.pieces += pieces_in(&routes);
            if entry.family() != family {
                continue;
            }
            let there: Vec<_> = routes.iter().filter_map(|route| seen.get(route)).collect();
            match there.first() {
                Some(&&of) if there.len() == routes.len() && there.iter().all(|&&t| t == of) => {
                    found.push((entry, Entry::Route(of)));
                }
                None if routes.is_empty() => found.push((entry, Entry::Route(to))),
                _ => {} // to be set again
            }
            expected.extend(routes);
        }
        for &(entry, of) in &found {
            if let (Entry::Route(to), Some(known)) = (of, self.wide.get_mut(&entry)) {
                *known = to;
            }
        }
        let stale = seen.keys().filter(|route| !expected.contains(*route));
        writes.extend(stale.map(|&(prefix, metric)| Write { prefix, metric, to: None }));
        let natives = self.natives.iter().chain(&self.spared);
        let natives = natives.filter(|native| native.family() == family);
        found.extend(natives.map(|&native| (native, Entry::Native)));
        found
    }
}

fn pieces_in(routes: &Routes) -> usize {
    routes.iter().filter(|(_, metric)| *metric != METRIC).count()
}

/// The greatest parts of an entry that no piece is in.
fn left_out(entry: Prefix, pieces: &BTreeSet<Prefix>, out: &mut BTreeSet<Prefix>) {
    let mut open = vec![entry];
    while let Some(part) = open.pop() {
        match pieces.range(part..).next() {
            Some(&piece) if piece == part => {}
            Some(&piece) if part.contains(piece) => open.extend(halves(part)),
            _ => {
                out.insert(part);
            }
        }
    }
}

fn truncated(addr: IpAddr, len: u8) -> Prefix {
    Prefix::new(addr, len).expect("shorter than what it is of")
}

fn parent(prefix: Prefix) -> Option<Prefix> {
    Some(truncated(prefix.addr(), prefix.len().checked_sub(1)?))
}

fn bits(prefix: Prefix) -> u128 {
    match prefix {
        Prefix::V4 { addr, .. } => u128::from(addr) << 96,
        Prefix::V6 { addr, .. } => addr,
    }
}

/// The longest prefix that has both; none of two families.
fn common(a: Prefix, b: Prefix) -> Option<Prefix> {
    let same = (bits(a) ^ bits(b)).leading_zeros();
    let len = a.len().min(b.len()).min(u8::try_from(same).unwrap_or(u8::MAX));
    (a.family() == b.family()).then(|| truncated(a.addr(), len))
}

/// The half of a prefix that has this longer one.
fn child_towards(part: Prefix, inside: Prefix) -> Prefix {
    truncated(inside.addr(), part.len() + 1)
}

/// Of a prefix that is not of a host.
fn halves(prefix: Prefix) -> [Prefix; 2] {
    let len = prefix.len() + 1;
    [truncated(prefix.addr(), len), truncated(last(prefix).addr(), len)]
}

/// Its last address.
fn last(prefix: Prefix) -> Prefix {
    let host = |ones: u128| u128::MAX.checked_shr(ones as u32).unwrap_or(0);
    Prefix::host(match prefix {
        Prefix::V4 { addr, len } => {
            IpAddr::from((addr | u32::MAX.checked_shr(len.into()).unwrap_or(0)).to_be_bytes())
        }
        Prefix::V6 { addr, len } => IpAddr::from((addr | host(len.into())).to_be_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    /// A table as the kernel has it: of one prefix the best metric, of an address the longest.
    #[derive(Default)]
    struct Table(BTreeMap<(Prefix, u32), u32>);

    impl Table {
        fn write(&mut self, writes: &[Write<u32>]) {
            for write in writes {
                match write.to {
                    Some(to) => self.0.insert((write.prefix, write.metric), to),
                    None => self.0.remove(&(write.prefix, write.metric)),
                };
            }
        }

        fn find(&self, host: Prefix) -> Option<u32> {
            let around = self.0.iter().filter(|((prefix, _), _)| prefix.contains(host));
            let best = around.max_by_key(|((prefix, metric), _)| (prefix.len(), u32::MAX - metric));
            best.map(|(_, &to)| to)
        }
    }

    #[test]
    fn a_native_entry_is_cut_out_of_what_is_around_it() {
        let mut carver = Carver::default();
        let mut table = Table::default();
        let mut set = |carver: &mut Carver<u32>, text: &str, entry| {
            let mut writes = Vec::new();
            assert!(carver.set(prefix(text), entry, &mut writes));
            table.write(&writes);
            table.0.keys().map(|(p, m)| format!("{p} {}", m & 0xff)).collect::<Vec<_>>()
        };
        assert_eq!(set(&mut carver, "10.0.0.0/8", Entry::Route(1)), ["10.0.0.0/8 15"]);
        let routes = set(&mut carver, "10.64.0.0/10", Entry::Native);
        assert_eq!(routes, ["10.0.0.0/10 120", "10.128.0.0/9 120"]);
        assert_eq!(carver.pieces(), 2);
        // Another entry with the prefix of a piece.
        let routes = set(&mut carver, "10.128.0.0/9", Entry::Route(2));
        assert_eq!(routes, ["10.0.0.0/10 120", "10.128.0.0/9 15", "10.128.0.0/9 120"]);
        let routes = set(&mut carver, "10.64.0.0/10", Entry::Gone);
        assert_eq!(routes, ["10.0.0.0/8 15", "10.128.0.0/9 15"]);
        assert_eq!(carver.pieces(), 0);
        // Nothing is cut for a host that somebody has a route of.
        let routes = set(&mut carver, "10.0.0.7", Entry::Spared);
        assert_eq!(routes, ["10.0.0.0/8 15", "10.128.0.0/9 15"]);
        let routes = set(&mut carver, "::/0", Entry::Route(3));
        assert_eq!(routes.len(), 3);
        let routes = set(&mut carver, "2001:db8::1", Entry::Native);
        assert_eq!(routes.len(), 2 + 128);
        assert_eq!(set(&mut carver, "2001:db8::1", Entry::Gone).len(), 3);
    }

    /// Beside a model that is a list of entries, of which the longest decides.
    #[test]
    fn every_address_finds_what_its_longest_entry_says() {
        let mut random = 1_u32;
        let mut next = move |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % below
        };
        for v6 in [false, true] {
            let bits = if v6 { 128 } else { 32 };
            let make = |low: u32, len: u8| match v6 {
                false => Prefix::v4(0x0a00_0000 | low, len).unwrap(),
                true => Prefix::v6(0x2001_0db8_u128 << 96 | u128::from(low), len).unwrap(),
            };
            let mut carver = Carver::default();
            let mut table = Table::default();
            let mut model: BTreeMap<Prefix, Entry<u32>> = BTreeMap::new();
            for step in 0..600_u32 {
                let prefix = make(next(64), bits - next(7) as u8);
                let entry = match next(3) {
                    0 => Entry::Route(next(4)),
                    1 => Entry::Native,
                    _ => Entry::Gone,
                };
                let mut writes = Vec::new();
                assert!(carver.set(prefix, entry, &mut writes));
                table.write(&writes);
                model.insert(prefix, entry);
                model.retain(|_, entry| *entry != Entry::Gone);
                for low in 0..64 {
                    let host = make(low, bits);
                    let around = model.iter().filter(|(p, _)| p.contains(host));
                    let wanted = match around.max_by_key(|(p, _)| p.len()) {
                        Some((_, Entry::Route(to))) => Some(*to),
                        _ => None,
                    };
                    assert_eq!(table.find(host), wanted, "step {step}, {prefix} {entry:?}, {host}");
                }
                let pieces = table.0.keys().filter(|(_, metric)| *metric != METRIC).count();
                assert_eq!(carver.pieces(), pieces);
                if step % 100 == 0 {
                    let family = prefix.family();
                    let wide = |(&(prefix, metric), &to): (&(Prefix, u32), &u32)| {
                        (!prefix.is_host() || metric != METRIC).then_some(((prefix, metric), to))
                    };
                    let seen: BTreeMap<_, _> = table.0.iter().filter_map(wide).collect();
                    let mut writes = Vec::new();
                    // By the same process, and by the next one.
                    let found = carver.adopt(family, &seen, &mut writes);
                    let known: BTreeMap<_, _> = found.into_iter().collect();
                    let hosts = model.iter().filter(|(p, e)| !p.is_host() || **e == Entry::Native);
                    assert_eq!(known, hosts.map(|(p, e)| (*p, *e)).collect());
                    let mut later = Carver::default();
                    let found = later.adopt(family, &seen, &mut writes);
                    assert_eq!(writes, []);
                    assert_eq!(later.pieces(), carver.pieces());
                    let routes = |(_, entry): &&(Prefix, Entry<u32>)| *entry != Entry::Native;
                    for (prefix, entry) in found.iter().filter(routes) {
                        assert_eq!(model.get(prefix), Some(entry));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_lost_is_set_again_and_what_is_left_over_removed() {
        let mut carver = Carver::default();
        let mut writes = Vec::new();
        carver.set(prefix("10.0.0.0/8"), Entry::Route(1), &mut writes);
        carver.set(prefix("10.64.0.0/10"), Entry::Native, &mut writes);
        let mut table = Table::default();
        table.write(&writes);
        table.0.remove(&(prefix("10.0.0.0/10"), PIECES - 8));
        table.0.insert((prefix("10.0.0.0/8"), METRIC), 1);
        writes.clear();
        let found = carver.adopt(Family::Ipv4, &table.0, &mut writes);
        assert_eq!(found, [(prefix("10.64.0.0/10"), Entry::Native)]);
        assert_eq!(writes, [Write { prefix: prefix("10.0.0.0/8"), metric: METRIC, to: None }]);
        writes.clear();
        carver.set(prefix("10.0.0.0/8"), Entry::Route(1), &mut writes);
        assert_eq!(writes.len(), 2);
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let mut carver = Carver::default();
        let mut writes = Vec::new();
        carver.set(prefix("::/0"), Entry::Route(1), &mut writes);
        let host = |n: u32| Prefix::v6(u128::from(n.reverse_bits()) << 96, 128).unwrap();
        let mut n = 0;
        while carver.set(host(n), Entry::Native, &mut writes) {
            n += 1;
        }
        let pieces = carver.pieces();
        assert!(pieces <= PIECES_MAX && pieces > PIECES_MAX - 256);
        writes.clear();
        assert!(!carver.set(host(n), Entry::Native, &mut writes));
        assert_eq!((carver.pieces(), writes.len()), (pieces, 0));
    }
}
