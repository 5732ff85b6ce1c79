//! The eBPF data plane: plain LISP (RFC 9300) by programs in tc and XDP, `killick.bpf.c`.
//!
//! A prefix is one entry of a map, a group is one word of another; the programs find both with two
//! lookups. Hosts (/32, /128) are in hash maps, which are 2 to 3 times faster than the longest-match
//! tries that hold the rest.
//!
//! Maps and links are pinned, so packets are forwarded while the daemon restarts; the next process
//! finds the maps filled and puts its own programs into the links, each in one step.
//!
//! An entry for a whole pool, or for everything, also covers the addresses of this node in it (the
//! gateway that hosts use): those need native entries, as what is attached here does.
//!
//! The entries of a prefix keep their counts when they change. Reading the old ones and writing the
//! new entry are two calls; packets in between (about a microsecond) are forwarded but not counted.

pub(super) mod attach;
pub(super) mod layout;
pub(super) mod table;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::PathBuf;

use aya::maps::{MapData, RingBuf};
use aya::programs::Program;
use aya::{EbpfLoader, include_bytes_aligned};

pub use attach::{AttachError, Attached, Hook, Role};
use attach::{Links, whole};
use layout::{
    ANY_IID, Config, EVENT_FIRST, EVENT_LATE, EVENT_MISS, Entry, Event, LAYOUT, LINKS, Link, Path,
    Totals as CpuTotals, ip_of, key_of, octets_of, octets_of_mut, prefix_of, reason, words6,
};
use table::Table;

use super::encap::{Caps, DropReason, EncapError, Encapsulator, Families, REWRITING, Totals};
use crate::types::lisp::{
    EncapChange, EncapEvent, EntryAction, EntryCount, GroupId, GroupPath, InstanceId,
};
use crate::types::{Family, Locator, Prefix};

/// What clang made of `killick.bpf.c` (`make bpf`).
static OBJECT: &[u8] = include_bytes_aligned!("killick.bpf.o");

/// Events read at a time; the kernel keeps some 3,500 and drops what is more.
const EVENTS_AT_ONCE: usize = 256;
/// Lines of a list at a time.
const DUMP_AT_ONCE: usize = 256;

/// The tables. Each is full on its own: [`EncapError::Full`] for what does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// /32 and, as many again, /128.
    pub hosts: u32,
    /// Shorter prefixes, per family.
    pub networks: u32,
    pub groups: u32,
}

impl Default for Sizes {
    /// Memory is taken as entries come, but for 200 octets twice for each group.
    fn default() -> Self {
        Self { hosts: 1 << 20, networks: 1 << 16, groups: 1 << 14 }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    /// A directory of this daemon's own on the file system of BPF; that is mounted when it is not.
    pub pin: PathBuf,
    /// Outer source, and what a packet from the tunnel must be addressed to.
    pub local: Locator,
    /// The only instance that is taken out of a tunnel; `None`: any.
    pub iid: Option<InstanceId>,
    /// What the underlay carries. The MTU of a route is observed too, where it is less. The routes
    /// of mobile prefixes need this less [`overhead`].
    pub mtu_bytes: u32,
    pub sizes: Sizes,
    /// By filters of `clsact` even where the kernel has better.
    pub clsact: bool,
}

/// Octets that a tunnel adds.
pub const fn overhead(outer: Family) -> u32 {
    match outer {
        Family::Ipv4 => 20 + 8 + 8,
        Family::Ipv6 => 40 + 8 + 8,
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot pin in {}: {error}", path.display())]
    Pin { path: PathBuf, error: io::Error },
    #[error("not permitted: CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed")]
    NotPermitted,
    #[error("the kernel refuses the programs: {0}")]
    Load(String),
    #[error("a table cannot be read: {0}")]
    Table(#[from] io::Error),
}

/// The maps, in the order in which they are listed.
#[derive(Debug)]
struct Tables {
    entries: [Table; 4],
    decap: [Table; 4],
    groups: Table,
    paths: Table,
    totals: Table,
    links: Table,
    config: Table,
}

const ENTRIES: [&str; 4] = ["HOST4", "NET4", "HOST6", "NET6"];
const DECAP: [&str; 4] = ["DECAP_HOST4", "DECAP_NET4", "DECAP_HOST6", "DECAP_NET6"];

const fn table_of(prefix: Prefix) -> usize {
    match (prefix.family(), prefix.is_host()) {
        (Family::Ipv4, true) => 0,
        (Family::Ipv4, false) => 1,
        (Family::Ipv6, true) => 2,
        (Family::Ipv6, false) => 3,
    }
}

/// How far a list has come.
#[derive(Debug)]
enum Dump {
    Groups(usize),
    Entries(usize, Option<Vec<u8>>),
    Decap(usize, Option<Vec<u8>>),
    Done,
}

pub struct Ebpf {
    object: aya::Ebpf,
    options: Options,
    links: Links,
    tables: Tables,
    config: Config,
    events: RingBuf<MapData>,
    cpus: usize,
    /// Path of each group, counted from 1; 0: none. As in the kernel.
    group_paths: Vec<u32>,
    /// Oldest first, so that a program that still reads a path that was given up is long done when
    /// it is written again.
    free_paths: VecDeque<u32>,
    last_serial: u32,
    /// Of the sweep of [`Encapsulator::used`] before this one.
    epoch_before: u32,
    dump: Dump,
}

impl Ebpf {
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
        let mut ebpf = Self {
            config: Config {
                iid: options.iid.map_or(ANY_IID, |iid| iid.0),
                mtu: options.mtu_bytes,
                epoch,
                underlay: 1,
                hosts4: used(&tables.entries[0])?,
                hosts6: used(&tables.entries[2])?,
                decap_hosts4: used(&tables.decap[0])?,
                decap_hosts6: used(&tables.decap[2])?,
                ..Config::default()
            },
            object,
            links,
            tables,
            events,
            cpus,
            group_paths: Vec::new(),
            free_paths: VecDeque::new(),
            last_serial: 0,
            epoch_before: epoch,
            dump: Dump::Done,
            options,
        };
        ebpf.adopt_groups()?;
        ebpf.set_local(ebpf.options.local)?;
        Ok(ebpf)
    }

    fn adopt_groups(&mut self) -> Result<(), OpenError> {
        let paths = 2 * self.options.sizes.groups;
        let mut taken = vec![false; paths as usize];
        for group in 0..self.options.sizes.groups {
            let path = self.tables.groups.find::<u32>(octets_of(&group))?.unwrap_or(0);
            self.group_paths.push(path);
            let Some(at) = path.checked_sub(1) else { continue };
            if let Some(taken) = taken.get_mut(at as usize) {
                *taken = true;
            }
            let path: Path = self.tables.paths.find(octets_of(&at))?.unwrap_or_default();
            self.last_serial = self.last_serial.max(path.serial);
        }
        self.free_paths = (0..paths).filter(|&at| !taken[at as usize]).collect();
        Ok(())
    }

    /// Other addresses of this node. Groups that were set before keep the members that were usable
    /// then, until they are set again.
    pub fn set_local(&mut self, local: Locator) -> io::Result<()> {
        self.config.local4 = local.ipv4.map_or(0, |v4| u32::from(v4).to_be());
        self.config.local6 = local.ipv6.map_or([0; 4], words6);
        self.options.local = local;
        self.write_config()
    }

    /// Routes or neighbours of the underlay have changed: look them up again at once, and not within
    /// the next 100 ms.
    pub fn underlay_changed(&mut self) -> io::Result<()> {
        self.config.underlay = self.config.underlay.wrapping_add(1);
        self.write_config()
    }

    fn write_config(&self) -> io::Result<()> {
        self.tables.config.set(octets_of(&0_u32), &self.config)
    }

    /// In the network namespace of the interface. May be repeated, also for one that was removed and
    /// made again.
    pub fn attach(&mut self, link: &str, role: Role, hook: Hook) -> Result<Attached, AttachError> {
        if hook == Hook::Xdp {
            self.note_mac(link)?;
        }
        self.links.attach(&mut self.object, link, role, hook)
    }

    /// XDP sees the frames of others too and takes those to this address.
    fn note_mac(&self, link: &str) -> Result<(), AttachError> {
        let error = |e: io::Error| AttachError::other(link, e);
        let ifindex = attach::ifindex(link);
        if ifindex == 0 {
            return Err(AttachError::NoLink(link.to_owned()));
        }
        let at = ifindex % LINKS;
        let there: Link =
            self.tables.links.find(octets_of(&at)).map_err(error)?.unwrap_or_default();
        if there.ifindex != 0 && there.ifindex != ifindex {
            return Err(AttachError::Place(link.to_owned()));
        }
        let mac = attach::mac_of(link).map_err(error)?;
        let value = Link { ifindex, mac, pad: [0; 2] };
        self.tables.links.set(octets_of(&at), &value).map_err(error)
    }

    /// In the network namespace of the interface.
    pub fn detach(&mut self, link: &str, role: Role) -> io::Result<()> {
        self.links.detach(link, role)
    }

    /// What is attached, from before a restart too: the driver detaches what is no longer wanted.
    pub fn attached(&self) -> io::Result<Vec<(String, Role)>> {
        self.links.list()
    }

    /// Takes everything away: links, then maps. Without this all goes on when the process ends.
    pub fn remove(self) -> io::Result<()> {
        for (link, role) in self.links.list()? {
            self.links.detach(&link, role)?;
        }
        discard(&self.options)
    }

    /// What is counted beyond [`Totals`], by name: punted packets, events that did not fit.
    pub fn details(&self) -> io::Result<[(&'static str, u64); 4]> {
        let sum = self.sum()?;
        Ok([
            ("punted", sum.reason[reason::PUNTED]),
            ("events_lost", sum.reason[reason::EVENT_LOST]),
            ("congestion_unmarkable", sum.reason[reason::ECN]),
            ("inner_malformed", sum.reason[reason::BAD_INNER]),
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

    fn apply_one(&mut self, change: &EncapChange) -> Result<(), EncapError> {
        match change {
            EncapChange::SetGroup { group, path } => self.set_group(*group, path),
            EncapChange::RemoveGroup { group } => self.remove_group(*group),
            EncapChange::SetEntry { prefix, action } => self.set_entry(*prefix, *action),
            EncapChange::RemoveEntry { prefix } => {
                let table = &self.tables.entries[table_of(*prefix)];
                table.remove(&key_of(*prefix)).map_err(kernel)
            }
            EncapChange::AllowDecap { prefix } => {
                self.tables.decap[table_of(*prefix)]
                    .set(&key_of(*prefix), &1_u32)
                    .map_err(kernel)?;
                self.look_into(match table_of(*prefix) {
                    0 => |config| &mut config.decap_hosts4,
                    2 => |config| &mut config.decap_hosts6,
                    _ => return Ok(()),
                })
            }
            EncapChange::ForbidDecap { prefix } => {
                self.tables.decap[table_of(*prefix)].remove(&key_of(*prefix)).map_err(kernel)
            }
        }
    }

    fn set_group(&mut self, group: GroupId, path: &GroupPath) -> Result<(), EncapError> {
        let Some(&before) = self.group_paths.get(group.0 as usize) else {
            return Err(EncapError::Full);
        };
        let local = &self.options.local;
        let usable = |addr: IpAddr| match addr {
            IpAddr::V4(_) => local.ipv4.is_some(),
            IpAddr::V6(_) => local.ipv6.is_some(),
        };
        self.last_serial = self.last_serial.wrapping_add(1);
        let made = Path::new(path, self.last_serial, usable);
        let at = self.free_paths.pop_front().ok_or(EncapError::Full)?;
        let written = self
            .tables
            .paths
            .set(octets_of(&at), &made)
            .and_then(|()| self.tables.groups.set(octets_of(&group.0), &(at + 1)));
        if let Err(error) = written {
            self.free_paths.push_back(at);
            return Err(kernel(error));
        }
        self.group_paths[group.0 as usize] = at + 1;
        self.free_paths.extend(before.checked_sub(1));
        Ok(())
    }

    fn remove_group(&mut self, group: GroupId) -> Result<(), EncapError> {
        let Some(&before) = self.group_paths.get(group.0 as usize) else { return Ok(()) };
        let Some(path) = before.checked_sub(1) else { return Ok(()) };
        self.tables.groups.set(octets_of(&group.0), &0_u32).map_err(kernel)?;
        self.group_paths[group.0 as usize] = 0;
        self.free_paths.push_back(path);
        Ok(())
    }

    fn set_entry(&mut self, prefix: Prefix, action: EntryAction) -> Result<(), EncapError> {
        if let EntryAction::Group(group) = action
            && self.group_paths.get(group.0 as usize).is_none_or(|&path| path == 0)
        {
            return Err(EncapError::NoGroup);
        }
        let table = &self.tables.entries[table_of(prefix)];
        let key = key_of(prefix);
        let before: Option<Entry> = table.find(&key).map_err(kernel)?;
        if before.is_some_and(|entry| entry.action() == Some(action)) {
            return Ok(());
        }
        let count = before.map_or_else(EntryCount::default, |entry| entry.count());
        let entry = Entry::new(action, prefix.len(), count);
        let entry = entry.ok_or(EncapError::Unsupported(REWRITING))?;
        table.set(&key, &entry).map_err(kernel)?;
        self.look_into(match table_of(prefix) {
            0 => |config| &mut config.hosts4,
            2 => |config| &mut config.hosts6,
            _ => return Ok(()),
        })
    }

    /// From now on the programs look into this table, which has its first entry.
    fn look_into(&mut self, flag: fn(&mut Config) -> &mut u32) -> Result<(), EncapError> {
        if std::mem::replace(flag(&mut self.config), 1) == 1 {
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
        while table < self.tables.entries.len() {
            if seen == limit {
                return Ok(last);
            }
            let entries = &self.tables.entries[table];
            let Some(next) = entries.next(key.as_deref()).map_err(kernel)? else {
                table += 1;
                key = None;
                continue;
            };
            seen += 1;
            if let (Some(entry), Some(prefix)) =
                (entries.find::<Entry>(&next).map_err(kernel)?, prefix_of(&next))
            {
                visit(prefix, &entry);
                last = Some(prefix);
            }
            key = Some(next);
        }
        Ok(None)
    }

    fn event(&self, event: &Event) -> Option<EncapEvent> {
        let source = ip_of(event.family, event.from);
        let destination = ip_of(event.family, event.to);
        match event.kind {
            EVENT_MISS => Some(EncapEvent::Miss { source, destination }),
            EVENT_LATE => Some(EncapEvent::Late {
                rloc: ip_of(event.rloc_family, event.rloc),
                iid: InstanceId(event.iid),
                source,
                destination,
            }),
            EVENT_FIRST => {
                let prefix = Prefix::new(destination, u8::try_from(event.len).ok()?)?;
                Some(EncapEvent::FirstPacket { prefix })
            }
            _ => None, // our own programs say nothing else
        }
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
    let Sizes { hosts, networks, groups } = options.sizes;
    let mut loader = EbpfLoader::new();
    loader.map_pin_path(&pins);
    for (table, name) in ENTRIES.iter().enumerate().chain(DECAP.iter().enumerate()) {
        loader.set_max_entries(name, if table % 2 == 0 { hosts } else { networks });
    }
    loader.set_max_entries("GROUPS", groups).set_max_entries("PATHS", 2 * groups);
    let mut object = loader.load(OBJECT).map_err(|error| refused(&error))?;
    // Before the maps are taken out, whose descriptors the programs still name.
    load_programs(&mut object)?;
    let tables = Tables::take(&mut object)?;
    Ok((object, tables))
}

fn load_programs(object: &mut aya::Ebpf) -> Result<(), OpenError> {
    for (_, program) in object.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => continue, // there are no others in the object
        };
        loaded.map_err(|error| refused(&error))?;
    }
    Ok(())
}

impl Tables {
    fn take(object: &mut aya::Ebpf) -> Result<Self, OpenError> {
        let mut take = |name: &'static str| {
            let map = object.take_map(name).ok_or_else(|| missing(name))?;
            Table::new(map).map_err(OpenError::Table)
        };
        let four = |names: [&'static str; 4], take: &mut dyn FnMut(&'static str) -> _| {
            let [a, b, c, d] = names;
            Ok::<_, OpenError>([take(a)?, take(b)?, take(c)?, take(d)?])
        };
        Ok(Self {
            entries: four(ENTRIES, &mut take)?,
            decap: four(DECAP, &mut take)?,
            groups: take("GROUPS")?,
            paths: take("PATHS")?,
            totals: take("TOTALS")?,
            links: take("LINKS_OF")?,
            config: take(".bss")?,
        })
    }

    fn fit(&self, options: &Options) -> bool {
        let value = size_of::<Entry>();
        let Sizes { hosts, networks, groups } = options.sizes;
        let fit_all = |tables: &[Table; 4], value| {
            tables
                .iter()
                .zip([4, 8, 16, 20])
                .zip([hosts, networks].iter().cycle())
                .all(|((table, key), &size)| table.fits(key, value, size))
        };
        fit_all(&self.entries, value)
            && fit_all(&self.decap, size_of::<u32>())
            && self.groups.fits(4, size_of::<u32>(), groups)
            && self.paths.fits(4, size_of::<Path>(), 2 * groups)
            && self.totals.fits(4, size_of::<CpuTotals>(), 1)
            && self.config.fits(4, size_of::<Config>(), 1)
    }
}

/// Removes the pins of maps and leaves those of links.
pub(super) fn forget_maps(pins: &std::path::Path) -> io::Result<()> {
    for file in fs::read_dir(pins)? {
        let file = file?;
        if !file.file_name().to_string_lossy().contains(':') {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

fn discard(options: &Options) -> io::Result<()> {
    let pins = options.pin.join(LAYOUT);
    forget_maps(&pins)?;
    fs::remove_dir(&pins)
}

pub(super) fn missing(name: &str) -> OpenError {
    OpenError::Load(format!("the object has no {name}"))
}

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.raw_os_error() == Some(libc::EPERM)
        // EACCES is what the verifier says
        {
            return true;
        }
        cause = error.source();
    }
    false
}

pub(super) fn refused(error: &(dyn std::error::Error + 'static)) -> OpenError {
    if is_permission(error) { OpenError::NotPermitted } else { OpenError::Load(whole(error)) }
}

pub(super) fn kernel(error: io::Error) -> EncapError {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => EncapError::Full,
        Some(libc::EPERM | libc::EACCES) => EncapError::NotPermitted,
        _ => EncapError::Other(error.to_string()),
    }
}

/// Never 0. The epochs of a process begin above those of the process before it, which counted from
/// an earlier time and less than once a millisecond.
pub(super) fn boot_time_ms() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live value.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let ms = time.tv_sec.wrapping_mul(1000).wrapping_add(time.tv_nsec / 1_000_000);
    u32::try_from(ms & 0xffff_ffff).expect("masked").max(1)
}

impl Encapsulator for Ebpf {
    fn caps(&self) -> Caps {
        let Sizes { hosts, groups, .. } = self.options.sizes;
        let local = &self.options.local;
        Caps {
            name: "ebpf",
            inner: Families::BOTH,
            outer: Families { ipv4: local.ipv4.is_some(), ipv6: local.ipv6.is_some() },
            counts_entries: true,
            holds_packets: false,
            tells_late: true,
            entries_max: hosts as usize,
            groups_max: groups,
            decap_max: hosts as usize,
        }
    }

    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>) {
        for change in changes {
            let result = self.apply_one(change);
            results.push(result);
        }
    }

    fn begin_dump(&mut self) -> Result<(), EncapError> {
        self.dump = Dump::Groups(0);
        Ok(())
    }

    fn continue_dump(&mut self, out: &mut Vec<EncapChange>) -> Result<bool, EncapError> {
        let end = out.len() + DUMP_AT_ONCE;
        while out.len() < end {
            match std::mem::replace(&mut self.dump, Dump::Done) {
                Dump::Groups(group) => {
                    let Some(path) = self.group_paths.get(group) else {
                        self.dump = Dump::Entries(0, None);
                        continue;
                    };
                    self.dump = Dump::Groups(group + 1);
                    let Some(at) = path.checked_sub(1) else { continue };
                    let path: Option<Path> =
                        self.tables.paths.find(octets_of(&at)).map_err(kernel)?;
                    let path = path.unwrap_or_default().group_path();
                    let group = GroupId(u32::try_from(group).expect("groups are counted in u32"));
                    out.push(EncapChange::SetGroup { group, path });
                }
                Dump::Entries(table, after) => {
                    let Some(entries) = self.tables.entries.get(table) else {
                        self.dump = Dump::Decap(0, None);
                        continue;
                    };
                    let Some(key) = entries.next(after.as_deref()).map_err(kernel)? else {
                        self.dump = Dump::Entries(table + 1, None);
                        continue;
                    };
                    let entry: Option<Entry> = entries.find(&key).map_err(kernel)?;
                    if let (Some(prefix), Some(action)) =
                        (prefix_of(&key), entry.and_then(|entry| entry.action()))
                    {
                        out.push(EncapChange::SetEntry { prefix, action });
                    }
                    self.dump = Dump::Entries(table, Some(key));
                }
                Dump::Decap(table, after) => {
                    let Some(decap) = self.tables.decap.get(table) else { return Ok(false) };
                    let Some(key) = decap.next(after.as_deref()).map_err(kernel)? else {
                        self.dump = Dump::Decap(table + 1, None);
                        continue;
                    };
                    out.extend(prefix_of(&key).map(|prefix| EncapChange::AllowDecap { prefix }));
                    self.dump = Dump::Decap(table, Some(key));
                }
                Dump::Done => return Ok(false),
            }
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

    fn count(&mut self, prefix: Prefix) -> Option<EntryCount> {
        let entries = &self.tables.entries[table_of(prefix)];
        let entry = entries.find::<Entry>(&key_of(prefix)).ok().flatten()?;
        // The tables of networks answer by the longest match.
        (entry.len == u32::from(prefix.len())).then(|| entry.count())
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
            DropReason::Malformed => {
                sum.reason[reason::BAD_HEADER]
                    + sum.reason[reason::BAD_INNER]
                    + sum.reason[reason::ECN]
            }
            DropReason::Instance => sum.reason[reason::INSTANCE],
            DropReason::Policy => sum.reason[reason::POLICY],
            DropReason::Unreachable => sum.reason[reason::UNREACHABLE],
            // The one behind the punt device has them, and counts.
            DropReason::NotHeld | DropReason::FirstPacket => 0,
            DropReason::TooBig => sum.reason[reason::TOO_BIG],
            DropReason::TimeToLive => sum.reason[reason::TTL],
            DropReason::Underlay => sum.reason[reason::UNDERLAY],
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
            events.extend(self.event(&event));
        }
        Ok(true)
    }
}
