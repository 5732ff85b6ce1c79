//! Rewriting instead of tunnelling: by programs in tc, `rewrite.bpf.c`, a packet to an EID away from
//! home gets the locator that the host has at its new network as its destination (FE_I), and there
//! the EID again (FE_E). It has no octet more on the way, and nothing is known of flows: the mapping
//! is one entry at either end.
//!
//! All entries are in one table, by destination: an EID leads to a locator elsewhere, a locator of
//! our own pools to its EID. What is sent to such a pool and has no entry is dropped and counted.
//! A packet to a locator of ours whose host has left finds both entries, and goes on.
//!
//! After the change of destination the routes of the kernel lead on, so it is the kernel that ages
//! packets, knows MTUs and tells sources. In the ICMP errors that come back through here about a
//! locator the EID is put back, or their sources would not know whom they are about.
//!
//! Maps and links are pinned, as those of [`ebpf`](crate::dataplane::ebpf).

mod layout;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::PathBuf;

use aya::maps::{MapData, RingBuf};
use aya::programs::{Program, TcAttachType};
use aya::{EbpfLoader, include_bytes_aligned};
use layout::{Config, Entry, LAYOUT, Totals as CpuTotals, reason};

use super::ebpf::attach::{self, AttachError, Links, whole};
use super::ebpf::layout::{
    EVENT_FIRST, EVENT_MISS, Event, Words6, ip_of, key_of, octets_of, octets_of_mut, prefix_of,
};
use super::ebpf::table::Table;
use super::ebpf::{OpenError, boot_time_ms, forget_maps, kernel, missing, refused};
use super::encap::{Caps, DropReason, EncapError, Encapsulator, Families, Totals};
use crate::types::lisp::{EncapChange, EncapEvent, EntryAction, EntryCount, may_stand_for};
use crate::types::{Family, Prefix};

/// What clang made of `rewrite.bpf.c` (`make bpf`).
static OBJECT: &[u8] = include_bytes_aligned!("rewrite.bpf.o");

/// Events read at a time; the kernel keeps some 3,500 and drops what is more.
const EVENTS_AT_ONCE: usize = 256;
/// Lines of a list at a time.
const DUMP_AT_ONCE: usize = 256;

const TUNNEL: &str = "a tunnel";

/// The tables. Each is full on its own: [`EncapError::Full`] for what does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// /32 and, as many again, /128.
    pub hosts: u32,
    /// Shorter prefixes, per family.
    pub networks: u32,
}

impl Default for Sizes {
    /// Memory is taken as entries come.
    fn default() -> Self {
        Self { hosts: 1 << 20, networks: 1 << 16 }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    /// A directory of this daemon's own on the file system of BPF; that is mounted when it is not.
    pub pin: PathBuf,
    /// Where our own locators are from.
    pub pools: Vec<Prefix>,
    pub sizes: Sizes,
    /// By filters of `clsact` even where the kernel has better.
    pub clsact: bool,
}

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Towards sources, hosts, or other networks: all are the same here.
    Outside,
    /// Where the routes of mobile prefixes lead in the kernel; what it sends itself comes by there.
    Punt,
}

impl Role {
    const fn programs(self) -> &'static [(&'static str, TcAttachType)] {
        match self {
            Self::Outside => {
                &[("translate_in", TcAttachType::Ingress), ("errors_out", TcAttachType::Egress)]
            }
            Self::Punt => &[("translate_out", TcAttachType::Egress)],
        }
    }
}

/// The maps, in the order in which they are listed.
#[derive(Debug)]
struct Tables {
    entries: [Table; 4],
    back4: Table,
    back6: Table,
    totals: Table,
    config: Table,
}

const ENTRIES: [&str; 4] = ["HOST4", "NET4", "HOST6", "NET6"];
const BACK: [&str; 2] = ["BACK4", "BACK6"];

const fn table_of(prefix: Prefix) -> usize {
    match (prefix.family(), prefix.is_host()) {
        (Family::Ipv4, true) => 0,
        (Family::Ipv4, false) => 1,
        (Family::Ipv6, true) => 2,
        (Family::Ipv6, false) => 3,
    }
}

fn is_v4(prefix: Prefix) -> bool {
    prefix.family() == Family::Ipv4
}

pub struct Rewrite {
    object: aya::Ebpf,
    options: Options,
    links: Links,
    tables: Tables,
    config: Config,
    events: RingBuf<MapData>,
    cpus: usize,
    /// Of the sweep of [`Encapsulator::used`] before this one.
    epoch_before: u32,
    /// How far a list has come; `None` when it is at its end.
    dump: Option<(usize, Option<Vec<u8>>)>,
}

impl Rewrite {
    /// Loads the programs; nothing is attached yet. What an earlier process has pinned is adopted.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        attach::prepare(&options.pin)?;
        let (mut object, tables) = load(&options)?;
        let events = object.take_map("EVENTS").ok_or_else(|| missing("EVENTS"))?;
        let events = RingBuf::try_from(events).map_err(|e| OpenError::Load(whole(&e)))?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let links = Links::new(options.pin.join(LAYOUT), options.clsact);
        let used = |table: &Table| table.next(None).map(|first| u32::from(first.is_some()));
        let epoch = boot_time_ms();
        let rewrite = Self {
            config: Config {
                epoch,
                hosts4: used(&tables.entries[0])?,
                hosts6: used(&tables.entries[2])?,
            },
            object,
            links,
            tables,
            events,
            cpus,
            epoch_before: epoch,
            dump: None,
            options,
        };
        rewrite.close_pools()?;
        rewrite.write_config()?;
        Ok(rewrite)
    }

    /// Our pools, and no others that an earlier process had.
    fn close_pools(&self) -> io::Result<()> {
        for table in [1, 3] {
            let table = &self.tables.entries[table];
            let mut after: Option<Vec<u8>> = None;
            let mut gone = Vec::new();
            while let Some(key) = table.next(after.as_deref())? {
                let is_pool = prefix_of(&key).is_some_and(|p| self.options.pools.contains(&p));
                let entry: Option<Entry> = table.find(&key)?;
                if entry.is_some_and(|entry| entry.is_closed()) && !is_pool {
                    gone.push(key.clone());
                }
                after = Some(key);
            }
            gone.iter().try_for_each(|key| table.remove(key))?;
        }
        for &pool in &self.options.pools {
            self.tables.entries[table_of(pool)].set(&key_of(pool), &Entry::closed(pool.len()))?;
        }
        Ok(())
    }

    fn write_config(&self) -> io::Result<()> {
        self.tables.config.set(octets_of(&0_u32), &self.config)
    }

    /// In the network namespace of the interface. May be repeated, also for one that was removed and
    /// made again.
    pub fn attach(&mut self, link: &str, role: Role) -> Result<(), AttachError> {
        if attach::ifindex(link) == 0 {
            return Err(AttachError::NoLink(link.to_owned()));
        }
        for &(name, direction) in role.programs() {
            let done = self.links.attach_program(&mut self.object, link, name, direction);
            done.map_err(|error| AttachError::other(link, error))?;
        }
        Ok(())
    }

    /// In the network namespace of the interface.
    pub fn detach(&mut self, link: &str, role: Role) -> io::Result<()> {
        role.programs()
            .iter()
            .try_for_each(|&(name, direction)| self.links.detach_program(link, name, direction))
    }

    /// What is attached, from before a restart too: the driver detaches what is no longer wanted.
    pub fn attached(&self) -> io::Result<Vec<(String, Role)>> {
        let mut found = Vec::new();
        for (link, program) in self.links.programs()? {
            for role in [Role::Outside, Role::Punt] {
                if role.programs().iter().any(|(name, _)| *name == program) {
                    found.push((link.clone(), role));
                }
            }
        }
        found.dedup();
        Ok(found)
    }

    /// Takes everything away: links, then maps. Without this all goes on when the process ends.
    pub fn remove(mut self) -> io::Result<()> {
        for (link, role) in self.attached()? {
            self.detach(&link, role)?;
        }
        let pins = self.options.pin.join(LAYOUT);
        forget_maps(&pins)?;
        fs::remove_dir(&pins)
    }

    /// What is counted beyond [`Totals`], by name.
    pub fn details(&self) -> io::Result<[(&'static str, u64); 3]> {
        let sum = self.sum()?;
        Ok([
            ("errors_translated", sum.reason[reason::ERRORS]),
            ("punted", sum.reason[reason::PUNTED]),
            ("events_lost", sum.reason[reason::EVENT_LOST]),
        ])
    }

    fn sum(&self) -> io::Result<CpuTotals> {
        let mut sum = CpuTotals::default();
        let each = self.tables.totals.find_of_each_cpu(octets_of(&0_u32), self.cpus)?;
        for cpu in each {
            let cpu: CpuTotals = cpu;
            for (sum, count) in sum.counts.iter_mut().flatten().zip(cpu.counts.iter().flatten()) {
                *sum = sum.wrapping_add(*count);
            }
            for (sum, count) in sum.reason.iter_mut().zip(cpu.reason) {
                *sum = sum.wrapping_add(count);
            }
        }
        Ok(sum)
    }

    fn is_ours(&self, addr: IpAddr) -> bool {
        self.options.pools.iter().any(|pool| pool.contains_addr(addr))
    }

    fn apply_one(&mut self, change: &EncapChange) -> Result<(), EncapError> {
        match *change {
            EncapChange::SetEntry { prefix, action } => self.set_entry(prefix, action),
            EncapChange::RemoveEntry { prefix } => self.remove_entry(prefix),
            EncapChange::SetGroup { .. } => Err(EncapError::Unsupported(TUNNEL)),
            EncapChange::AllowDecap { .. } => Err(EncapError::Unsupported(TUNNEL)),
            // There is none.
            EncapChange::RemoveGroup { .. } | EncapChange::ForbidDecap { .. } => Ok(()),
        }
    }

    fn set_entry(&mut self, prefix: Prefix, action: EntryAction) -> Result<(), EncapError> {
        if self.options.pools.contains(&prefix) {
            return Err(EncapError::Unsupported("an entry for a pool of locators"));
        }
        let to = match action {
            EntryAction::Rewrite(to) => {
                if !prefix.is_host() {
                    return Err(EncapError::Unsupported("rewriting more than one address"));
                }
                if !may_stand_for(to, prefix.addr()) {
                    return Err(EncapError::Unsupported("a locator of another checksum"));
                }
                Some(to)
            }
            EntryAction::Punt | EntryAction::Native | EntryAction::Drop => None,
            EntryAction::Group(_) => return Err(EncapError::Unsupported(TUNNEL)),
        };
        let restore = prefix.is_host() && self.is_ours(prefix.addr());
        let key = key_of(prefix);
        let before: Option<Entry> =
            self.tables.entries[table_of(prefix)].find(&key).map_err(kernel)?;
        let count = before.map_or_else(EntryCount::default, |entry| entry.count());
        let entry = Entry::new(action, restore, prefix.len(), count);
        let entry = entry.ok_or(EncapError::Unsupported(TUNNEL))?;
        if before.is_some_and(|before| before.is_same(&entry)) {
            return Ok(());
        }
        // The way back first: an error may come as soon as there is a packet.
        if let Some(locator) = to.filter(|_| !restore) {
            self.set_back(locator, prefix.addr())?;
        }
        self.tables.entries[table_of(prefix)].set(&key, &entry).map_err(kernel)?;
        let old = before.and_then(|before| before.locator(is_v4(prefix)));
        if let Some(old) = old.filter(|old| Some(*old) != to) {
            self.remove_back(old, prefix.addr())?;
        }
        self.look_into(prefix)
    }

    fn remove_entry(&mut self, prefix: Prefix) -> Result<(), EncapError> {
        let table = &self.tables.entries[table_of(prefix)];
        let key = key_of(prefix);
        let before: Option<Entry> = table.find(&key).map_err(kernel)?;
        let Some(before) = before.filter(|entry| !entry.is_closed()) else { return Ok(()) };
        table.remove(&key).map_err(kernel)?;
        match before.locator(is_v4(prefix)) {
            Some(locator) => self.remove_back(locator, prefix.addr()),
            None => Ok(()),
        }
    }

    fn set_back(&self, locator: IpAddr, eid: IpAddr) -> Result<(), EncapError> {
        let key = key_of(Prefix::host(locator));
        match eid {
            IpAddr::V4(v4) => self.tables.back4.set(&key, &u32::from(v4).to_be()),
            IpAddr::V6(v6) => self.tables.back6.set(&key, &Words6::from(v6)),
        }
        .map_err(kernel)
    }

    /// Unless it is another's already.
    fn remove_back(&self, locator: IpAddr, eid: IpAddr) -> Result<(), EncapError> {
        let key = key_of(Prefix::host(locator));
        let (table, is_its) = match eid {
            IpAddr::V4(v4) => {
                let found: Option<u32> = self.tables.back4.find(&key).map_err(kernel)?;
                (&self.tables.back4, found == Some(u32::from(v4).to_be()))
            }
            IpAddr::V6(v6) => {
                let found: Option<Words6> = self.tables.back6.find(&key).map_err(kernel)?;
                (&self.tables.back6, found == Some(Words6::from(v6)))
            }
        };
        if is_its { table.remove(&key).map_err(kernel) } else { Ok(()) }
    }

    /// From now on the programs look into this table, which has its first entry.
    fn look_into(&mut self, prefix: Prefix) -> Result<(), EncapError> {
        let flag = match table_of(prefix) {
            0 => &mut self.config.hosts4,
            2 => &mut self.config.hosts6,
            _ => return Ok(()),
        };
        if std::mem::replace(flag, 1) == 1 {
            return Ok(());
        }
        self.write_config().map_err(kernel)
    }

    /// Entries from behind `after` on, at most `limit`.
    fn walk(
        &self,
        after: Option<Prefix>,
        limit: usize,
        mut visit: impl FnMut(Prefix, &Entry),
    ) -> Result<Option<Prefix>, EncapError> {
        let mut table = after.map_or(0, table_of);
        let mut key = after.map(key_of);
        let mut last = after;
        let mut seen = 0;
        while let Some(entries) = self.tables.entries.get(table) {
            if seen == limit {
                return Ok(last);
            }
            let Some(next) = entries.next(key.as_deref()).map_err(kernel)? else {
                table += 1;
                key = None;
                continue;
            };
            seen += 1;
            if let (Some(entry), Some(prefix)) =
                (entries.find::<Entry>(&next).map_err(kernel)?, prefix_of(&next))
            {
                if !entry.is_closed() {
                    visit(prefix, &entry);
                }
                last = Some(prefix);
            }
            key = Some(next);
        }
        Ok(None)
    }
}

fn event_of(event: &Event) -> Option<EncapEvent> {
    let source = ip_of(event.family, event.from);
    let destination = ip_of(event.family, event.to);
    match event.kind {
        EVENT_MISS => Some(EncapEvent::Miss { source, destination }),
        EVENT_FIRST => {
            let prefix = Prefix::new(destination, u8::try_from(event.len).ok()?)?;
            Some(EncapEvent::FirstPacket { prefix })
        }
        _ => None, // our own programs say nothing else
    }
}

/// The maps of this layout, new or as they were pinned. Those of another layout or size are given
/// up: the programs of before go on with them until ours are attached.
fn load(options: &Options) -> Result<(aya::Ebpf, Tables), OpenError> {
    match load_once(options) {
        Ok((object, tables)) if tables.fit(options) => return Ok((object, tables)),
        Err(OpenError::NotPermitted) => return Err(OpenError::NotPermitted),
        // Programs may not fit the maps either.
        Ok(_) | Err(_) => forget_maps(&options.pin.join(LAYOUT))?,
    }
    let (object, tables) = load_once(options)?;
    if tables.fit(options) {
        Ok((object, tables))
    } else {
        Err(OpenError::Load("the pinned maps cannot be replaced".to_owned()))
    }
}

fn load_once(options: &Options) -> Result<(aya::Ebpf, Tables), OpenError> {
    let pins = options.pin.join(LAYOUT);
    fs::create_dir_all(&pins).map_err(|error| OpenError::Pin { path: pins.clone(), error })?;
    let Sizes { hosts, networks } = options.sizes;
    let mut loader = EbpfLoader::new();
    loader.map_pin_path(&pins);
    for (table, name) in ENTRIES.iter().enumerate() {
        loader.set_max_entries(name, if table % 2 == 0 { hosts } else { networks });
    }
    for name in BACK {
        loader.set_max_entries(name, hosts);
    }
    let mut object = loader.load(OBJECT).map_err(|error| refused(&error))?;
    // Before the maps are taken out, whose descriptors the programs still name.
    for (_, program) in object.programs_mut() {
        if let Program::SchedClassifier(program) = program {
            program.load().map_err(|error| refused(&error))?;
        }
    }
    let tables = Tables::take(&mut object)?;
    Ok((object, tables))
}

impl Tables {
    fn take(object: &mut aya::Ebpf) -> Result<Self, OpenError> {
        let mut take = |name: &'static str| {
            let map = object.take_map(name).ok_or_else(|| missing(name))?;
            Table::new(map).map_err(OpenError::Table)
        };
        let [a, b, c, d] = ENTRIES;
        Ok(Self {
            entries: [take(a)?, take(b)?, take(c)?, take(d)?],
            back4: take(BACK[0])?,
            back6: take(BACK[1])?,
            totals: take("TOTALS")?,
            config: take(".bss")?,
        })
    }

    fn fit(&self, options: &Options) -> bool {
        let Sizes { hosts, networks } = options.sizes;
        self.entries
            .iter()
            .zip([4, 8, 16, 20])
            .zip([hosts, networks].iter().cycle())
            .all(|((table, key), &size)| table.fits(key, size_of::<Entry>(), size))
            && self.back4.fits(4, 4, hosts)
            && self.back6.fits(16, 16, hosts)
            && self.totals.fits(4, size_of::<CpuTotals>(), 1)
            && self.config.fits(4, size_of::<Config>(), 1)
    }
}

impl Encapsulator for Rewrite {
    fn caps(&self) -> Caps {
        let hosts = self.options.sizes.hosts as usize;
        Caps {
            name: "rewrite",
            inner: Families::BOTH,
            // Of the same family as the EID.
            outer: Families::BOTH,
            counts_entries: true,
            holds_packets: false,
            // A packet does not say which FE_I has rewritten it.
            tells_late: false,
            entries_max: hosts,
            groups_max: 0,
            decap_max: 0,
        }
    }

    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>) {
        for change in changes {
            let result = self.apply_one(change);
            results.push(result);
        }
    }

    fn begin_dump(&mut self) -> Result<(), EncapError> {
        self.dump = Some((0, None));
        Ok(())
    }

    fn continue_dump(&mut self, out: &mut Vec<EncapChange>) -> Result<bool, EncapError> {
        // Also of what is not listed a bounded number.
        for _ in 0..DUMP_AT_ONCE {
            let Some((table, after)) = self.dump.take() else { return Ok(false) };
            let Some(entries) = self.tables.entries.get(table) else { return Ok(false) };
            let Some(key) = entries.next(after.as_deref()).map_err(kernel)? else {
                self.dump = Some((table + 1, None));
                continue;
            };
            let entry: Option<Entry> = entries.find(&key).map_err(kernel)?;
            if let (Some(prefix), Some(entry)) = (prefix_of(&key), entry)
                && let Some(action) = entry.action(is_v4(prefix))
            {
                out.push(EncapChange::SetEntry { prefix, action });
            }
            self.dump = Some((table, Some(key)));
        }
        Ok(true)
    }

    fn counters(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Result<Option<Prefix>, EncapError> {
        self.walk(after, limit, |prefix, entry| out.push((prefix, entry.count())))
    }

    /// Programs note the number of the sweep in each entry that carries a packet. A sweep takes
    /// milliseconds; a packet within these may be told by this sweep and by the next one.
    fn used(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<Prefix>,
    ) -> Result<Option<Prefix>, EncapError> {
        if after.is_none() {
            self.epoch_before = self.config.epoch;
            // 0 is "never".
            self.config.epoch = self.config.epoch.wrapping_add(1).max(1);
            self.write_config().map_err(kernel)?;
        }
        let since = self.epoch_before;
        self.walk(after, limit, |prefix, entry| {
            if entry.used != 0 && entry.used.wrapping_sub(since) < u32::MAX / 2 {
                out.push(prefix);
            }
        })
    }

    fn totals(&mut self) -> Result<Totals, EncapError> {
        let sum = self.sum().map_err(kernel)?;
        let count = |at: usize| {
            let [packets, octets] = sum.counts[at];
            EntryCount { packets, octets }
        };
        let dropped = DropReason::ALL.map(|why| match why {
            DropReason::NotAllowed => sum.reason[reason::NOT_ALLOWED],
            DropReason::Malformed => sum.reason[reason::MALFORMED],
            DropReason::Policy => sum.reason[reason::POLICY],
            DropReason::TooBig => sum.reason[reason::TOO_BIG],
            DropReason::Underlay => sum.reason[reason::UNDERLAY],
            // There are no instances and no groups on the wire; time to live and reachability are
            // the kernel's; the one behind the punt device holds and counts.
            DropReason::Instance
            | DropReason::Unreachable
            | DropReason::NotHeld
            | DropReason::FirstPacket
            | DropReason::TimeToLive => 0,
        });
        Ok(Totals {
            encapsulated: count(0),
            decapsulated: count(1),
            late: count(2),
            around: EntryCount::default(),
            held: 0,
            dropped,
        })
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.events.as_raw_fd())
    }

    fn handle_readable(&mut self, events: &mut Vec<EncapEvent>) -> Result<bool, EncapError> {
        for _ in 0..EVENTS_AT_ONCE {
            let Some(item) = self.events.next() else { return Ok(false) };
            let mut event = Event::default();
            let told: &[u8] = &item;
            let room = octets_of_mut(&mut event);
            let Some(told) = told.get(..room.len()) else { continue };
            room.copy_from_slice(told);
            drop(item);
            events.extend(event_of(&event));
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
