//! The user-space data plane at work: a TUN device, the sockets of UDP 4341, and a thread that
//! moves packets between them through [`Engine`].
//!
//! The engine is shared with the routing thread under a lock that is held for one batch of
//! packets, some microseconds, and never during a system call. So a change is in force when
//! `apply` returns, its result is the true one, and counters are read where they are. What a
//! change sets free (held packets) is sent by the data thread, before any later packet.
//!
//! **Sending.** Outer headers are written whole and go out by a raw socket of each family (raw(7),
//! `IP_HDRINCL`). So the source port says the flow with all its 14 bits (RFC 9300 §12), TTL, DSCP
//! and ECN are copied packet by packet without ancillary data, and the UDP checksum is 0; a set of
//! UDP sockets would give a few ports only, and need ancillary data for each packet.
//!
//! **Receiving.** One UDP socket of each family on port 4341, asked for TTL and traffic class.
//!
//! **Two uses** (see [`Use`]). Alone it is the mechanism `tun`. [`super::Beside`] puts it beside
//! another mechanism, which owns UDP 4341; only packets without a mapping come here then.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time;

use socket2::{Domain, Protocol, Socket, Type};

use super::mmsg::{BATCH, Outgoing, Receiver, Sender};
use super::udp::{set_on, set_option, set_receive_buffer};
use crate::dataplane::OpError;
use crate::dataplane::encap::{Caps, EncapError, Encapsulator, Families, Totals};
use crate::dataplane::netlink::{Dumped, ENCAP_RULE, ENCAP_TABLE, Step, To, Tunnels, Via};
use crate::dataplane::tun::{
    Config, Counters, DECAP_MAX, ENTRIES_MAX, Engine, FirstPackets, FromTunnel, GROUPS_MAX,
    HEADROOM, Inner, Output, Table, Use,
};
use crate::types::lisp::{EncapChange, EncapEvent, EntryAction, EntryCount};
use crate::types::seam::IfIndex;
use crate::types::{Family, Instant, Prefix};
use crate::wire::encap::Head;
use crate::wire::lisp::DATA_PORT;

/// The device, unless told otherwise.
pub const DEVICE: &str = "killick0";

/// Packets that wait in the device. When full, the kernel drops the newest. A tenth of a second
/// at 100,000 per second: longer than the thread is ever kept from the processor on a machine that
/// is fit for it.
const DEVICE_QUEUE_PACKETS: libc::c_int = 16_384;

/// Datagrams that wait in the kernel, as above.
const RECEIVE_BUFFER_BYTES: usize = 32 << 20;
const SEND_BUFFER_BYTES: libc::c_int = 8 << 20;

/// The largest packet of either side: jumbo frames.
const PACKET_BYTES_MAX: usize = 9_216;

/// Batches from one source before the other gets its turn.
const BATCHES_MAX: usize = 4;

/// Events told to the routing thread in one go.
const EVENTS_PER_CALL: usize = 256;

#[derive(Clone, Debug)]
pub struct Settings {
    pub device: String,
    pub engine: Config,
    /// Makes the routes of entries. `None`: somebody else does.
    pub routes: Option<RouteOptions>,
    /// For packets that go around the tunnels.
    pub around: AroundOptions,
}

/// How packets are told from others that should not look into our table.
#[derive(Clone, Debug)]
pub struct AroundOptions {
    pub protocol: u8,
    /// Priority of the first of two rules; before those of the routes.
    pub rule: u32,
    /// Of these packets, by which the rules know them.
    pub mark: u32,
}

impl Default for AroundOptions {
    fn default() -> Self {
        // Behind it the second one.
        Self { protocol: 107, rule: ENCAP_RULE - 3, mark: 0x6b69_6c6c }
    }
}

#[derive(Clone, Debug)]
pub struct RouteOptions {
    pub protocol: u8,
    pub metric: u32,
    /// Priority of the rule that has packets look into our table; before the main one (32766).
    pub rule: u32,
}

impl Default for RouteOptions {
    fn default() -> Self {
        Self { protocol: 107, metric: 150, rule: ENCAP_RULE }
    }
}

impl Settings {
    pub fn new(engine: Config) -> Self {
        Self {
            device: DEVICE.to_owned(),
            engine,
            routes: Some(RouteOptions::default()),
            around: AroundOptions::default(),
        }
    }
}

/// An eventfd: wakes who waits on it.
pub(in crate::driver) struct Bell(OwnedFd);

impl Bell {
    pub(in crate::driver) fn new() -> io::Result<Self> {
        // SAFETY: plain integers; the result is checked.
        let raw = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    pub(in crate::driver) fn ring(&self) {
        let count = 1_u64;
        // SAFETY: the pointer and the length describe an integer that outlives the call. It only
        // fails when it was rung very often and nobody came.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const count).cast(), 8) };
    }

    pub(in crate::driver) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(in crate::driver) fn silence(&self) {
        let mut count = 0_u64;
        // SAFETY: as above.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

/// What both threads hold.
struct Shared {
    engine: Mutex<Engine>,
    /// For the data thread.
    wake: Bell,
    /// For the routing thread: there are events.
    told: Bell,
    stop: AtomicBool,
    started: time::Instant,
}

impl Shared {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        // A panic in the middle of a batch leaves a table that is whole: changes are made by the
        // other thread. The data thread is gone then, which its descriptor tells.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(micros)
    }
}

/// The user-space data plane, as the routing thread sees it. Dropped, the device is gone and its
/// routes with it.
pub struct Tun {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    routes: Option<Routes>,
    link: IfIndex,
    used_for: Use,
    outer: Families,
}

impl Tun {
    /// Makes the device and opens the sockets, in the network namespace of the calling thread.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let config = &settings.engine;
        let device = open_device(&settings.device)?;
        let link = set_up_device(&settings.device, config)?;
        let tunnel = match config.used_for {
            Use::Encapsulate => Tunnel::open(config)?,
            Use::Punt => Tunnel::default(),
        };
        let around = match config.first_packets.iter().any(|(_, f)| *f == FirstPackets::Triangle) {
            true => Around::open(&settings.around)?,
            false => Around::default(),
        };
        let routes = match &settings.routes {
            Some(options) => Some(Routes::open(options, link)?),
            None => None,
        };
        let shared = Arc::new(Shared {
            engine: Mutex::new(Engine::new(config.clone())),
            wake: Bell::new()?,
            told: Bell::new()?,
            stop: AtomicBool::new(false),
            started: time::Instant::now(),
        });
        let mut worker = Worker::new(Arc::clone(&shared), device, tunnel, around);
        let thread = std::thread::Builder::new()
            .name("killick-tun".to_owned())
            .spawn(move || worker.run())?;
        let thread = Some(thread);
        let (used_for, outer) = (config.used_for, config.outer());
        Ok(Self { shared, thread, routes, link, used_for, outer })
    }

    /// The device, for routes that others make into it.
    pub fn link(&self) -> IfIndex {
        self.link
    }

    /// By the clock of this data plane.
    pub(super) fn now(&self) -> Instant {
        self.shared.now()
    }

    pub fn used_for(&self) -> Use {
        self.used_for
    }

    /// All counters, also those that [`Totals`] has no room for.
    pub fn all_counters(&self) -> Counters {
        self.shared.engine().counters()
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake.ring();
        if let Some(thread) = self.thread.take() {
            // It has said what there was to say when it panicked.
            let _ = thread.join();
        }
    }
}

impl Encapsulator for Tun {
    fn caps(&self) -> Caps {
        Caps {
            name: "tun",
            inner: Families::BOTH,
            outer: self.outer,
            counts_entries: self.used_for == Use::Encapsulate,
            holds_packets: true,
            tells_late: self.used_for == Use::Encapsulate,
            entries_max: ENTRIES_MAX,
            groups_max: GROUPS_MAX,
            decap_max: DECAP_MAX,
        }
    }

    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>) {
        let now = self.shared.now();
        // In pieces, so that packets do not wait for a whole table.
        for piece in changes.chunks(BATCH) {
            let base = results.len();
            let mut engine = self.shared.engine();
            results.extend(piece.iter().map(|change| engine.apply(change, now)));
            let freed = engine.has_outputs();
            let told = engine.has_events();
            drop(engine);
            // Route after entry: no packet comes before it is known what to do with it.
            if let Some(routes) = &mut self.routes {
                for (change, result) in piece.iter().zip(&mut results[base..]) {
                    if result.is_ok() {
                        *result = routes.follow(change, &self.shared);
                    }
                }
            }
            if freed {
                self.shared.wake.ring();
            }
            if told {
                self.shared.told.ring();
            }
        }
    }

    fn begin_dump(&mut self) -> Result<(), EncapError> {
        Ok(())
    }

    /// Nothing outlives the device.
    fn continue_dump(&mut self, _out: &mut Vec<EncapChange>) -> Result<bool, EncapError> {
        Ok(false)
    }

    fn counters(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Result<Option<Prefix>, EncapError> {
        Ok(self.shared.engine().entry_counts(after, limit, out))
    }

    fn count(&mut self, prefix: Prefix) -> Option<EntryCount> {
        self.shared.engine().entry_count(prefix)
    }

    fn used(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<Prefix>,
    ) -> Result<Option<Prefix>, EncapError> {
        Ok(self.shared.engine().used(after, limit, out))
    }

    fn totals(&mut self) -> Result<Totals, EncapError> {
        Ok(self.all_counters().totals)
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.shared.told.0.as_raw_fd())
    }

    fn handle_readable(&mut self, events: &mut Vec<EncapEvent>) -> Result<bool, EncapError> {
        // Silenced first: an event that comes meanwhile rings again.
        self.shared.told.silence();
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            return Err(EncapError::Other("the data thread has ended".to_owned()));
        }
        let mut engine = self.shared.engine();
        for _ in 0..EVENTS_PER_CALL {
            match engine.pop_event() {
                Some(event) => events.push(event),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

// ---- routes into the device -------------------------------------------------------------------

/// The kernel's routes of the entries, in the table that all encapsulating data planes use, and
/// which packets meet before the main one. Routes lead into the device; a native entry inside one
/// that does not is thrown on to the tables of others. An entry inside another of its kind needs
/// no route, so a pool has one, and hosts that are away have none.
struct Routes {
    tunnels: Tunnels,
    metric: u32,
    /// What has a route: into the device, or on to other tables.
    routed: Table<Into>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Into {
    Device,
    Others,
}

const TABLE: u8 = ENCAP_TABLE;

/// Of the nexthop objects that lead into the device; not in the range of LISP-GPE's.
fn nexthop(family: Family) -> u32 {
    const NEXTHOPS: u32 = 0x4b54_0000;
    match family {
        Family::Ipv4 => NEXTHOPS,
        Family::Ipv6 => NEXTHOPS + 1,
    }
}

impl Routes {
    fn open(options: &RouteOptions, link: IfIndex) -> io::Result<Self> {
        let tunnels = Tunnels::open(options.protocol)?;
        let mut this = Self { tunnels, metric: options.metric, routed: Table::default() };
        this.prune()?;
        for family in Family::ALL {
            let id = nexthop(family);
            let step = Step::SetNexthop { id, family, link, via: Via::Link };
            this.write(step).map_err(io::Error::other)?;
            let rule = this.tunnels.set_rule(family, options.rule, TABLE);
            rule.map_err(io::Error::other)?;
        }
        Ok(this)
    }

    /// What an earlier process has left: its routes into the device went with that, the others
    /// would lead past it.
    fn prune(&mut self) -> io::Result<()> {
        for family in Family::ALL {
            let mut found = Vec::new();
            self.tunnels.begin_routes(TABLE, family).map_err(io::Error::other)?;
            while self
                .tunnels
                .continue_dump(|dumped| {
                    if let Dumped::Route { prefix, metric, .. } = dumped {
                        found.push(Step::DeleteRoute { table: TABLE, prefix, metric });
                    }
                })
                .map_err(io::Error::other)?
            {}
            self.tunnels.apply(&found, &mut Vec::new());
        }
        Ok(())
    }

    /// Where packets to `prefix` go by what is around it.
    fn around(&mut self, prefix: Prefix) -> Into {
        let found = if prefix.is_host() && self.routed.find_mut(prefix).is_none() {
            self.routed.lookup_mut(prefix.addr()).map(|(_, into)| *into)
        } else {
            let around = (0..prefix.len()).rev().filter_map(|l| Prefix::new(prefix.addr(), l));
            around.filter_map(|around| self.routed.find_mut(around).copied()).next()
        };
        found.unwrap_or(Into::Others)
    }

    /// Makes true what the engine has accepted.
    fn follow(&mut self, change: &EncapChange, shared: &Shared) -> Result<(), EncapError> {
        match *change {
            EncapChange::SetEntry { prefix, action } => self.set(prefix, action),
            EncapChange::RemoveEntry { prefix } => {
                if self.remove(prefix)? {
                    // What was inside it needs routes of its own now.
                    let inside = shared.engine().entries_in(prefix);
                    for (inside, action) in inside {
                        self.set(inside, action)?;
                    }
                }
                Ok(())
            }
            EncapChange::SetGroup { .. }
            | EncapChange::RemoveGroup { .. }
            | EncapChange::AllowDecap { .. }
            | EncapChange::ForbidDecap { .. } => Ok(()),
        }
    }

    fn set(&mut self, prefix: Prefix, action: EntryAction) -> Result<(), EncapError> {
        let wanted = match action {
            EntryAction::Group(_)
            | EntryAction::Punt
            | EntryAction::Drop
            // There the kernel's own packets are rewritten.
            | EntryAction::Rewrite(_) => Into::Device,
            EntryAction::Native => Into::Others,
        };
        let as_is = match self.routed.find_mut(prefix) {
            Some(into) => *into,
            None => self.around(prefix),
        };
        if as_is == wanted {
            return Ok(());
        }
        let to = match wanted {
            Into::Device => To::Nexthop(nexthop(prefix.family())),
            Into::Others => To::Throw,
        };
        self.write(Step::SetRoute { table: TABLE, prefix, metric: self.metric, to })?;
        self.routed.insert(prefix, wanted);
        Ok(())
    }

    /// True when there was one.
    fn remove(&mut self, prefix: Prefix) -> Result<bool, EncapError> {
        if self.routed.remove(prefix).is_none() {
            return Ok(false);
        }
        let metric = self.metric;
        match self.write(Step::DeleteRoute { table: TABLE, prefix, metric }) {
            // Somebody has taken it away.
            Err(OpError::Missing) | Ok(()) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, step: Step) -> Result<(), OpError> {
        let mut results = Vec::with_capacity(1);
        self.tunnels.apply(&[step], &mut results);
        results.pop().expect("one result for each")
    }
}

// ---- the device and the sockets ---------------------------------------------------------------

pub(in crate::driver) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an interface name"));
    }
    // SAFETY: an ifreq is plain data, all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

pub(in crate::driver) fn open_device(name: &str) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    ioctl(&device, libc::TUNSETIFF, &request)?;
    Ok(device)
}

pub(in crate::driver) fn ioctl(
    fd: &impl AsRawFd,
    number: libc::Ioctl,
    request: &libc::ifreq,
) -> io::Result<()> {
    // SAFETY: `request` is what these requests take, and outlives the call.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), number, request) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_up_device(name: &str, config: &Config) -> io::Result<IfIndex> {
    set_sysctls(name, config.used_for)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = config.device_mtu().into();
    ioctl(&socket, libc::SIOCSIFMTU, &request)?;
    request.ifr_ifru.ifru_metric = DEVICE_QUEUE_PACKETS;
    ioctl(&socket, libc::SIOCSIFTXQLEN, &request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS, &request)?;
    let c_name = std::ffi::CString::new(name)?;
    // SAFETY: `c_name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(IfIndex(index)) }
}

/// Packets that come out of the tunnel have sources that no route leads to by this device.
fn set_sysctls(name: &str, used_for: Use) -> io::Result<()> {
    let set = |path: &str, value: &str| fs::write(format!("/proc/sys/net/{path}"), value);
    // The greater of `all` and the device's own counts: 2 (any interface) is more than 1 (strict).
    let all = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter")?;
    let own = if all.trim() == "0" { "0" } else { "2" };
    set(&format!("ipv4/conf/{name}/rp_filter"), own)?;
    // This machine's own packets go back to the kernel too when they were held; what comes out of
    // a tunnel must not have its addresses.
    let own_sources = if used_for == Use::Punt { "1" } else { "0" };
    set(&format!("ipv4/conf/{name}/accept_local"), own_sources)?;
    set(&format!("ipv4/conf/{name}/forwarding"), "1")?;
    set(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
    // No link-local address, and nothing to say on the device by the kernel itself.
    match set(&format!("ipv6/conf/{name}/addr_gen_mode"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            set(&format!("ipv6/conf/{name}/forwarding"), "1")?;
            set(&format!("ipv6/conf/{name}/accept_ra"), "0")
        }
    }
}

/// The sockets of the underlay; none of a family that has no locator of ours.
#[derive(Default)]
struct Tunnel {
    data: Vec<Socket>,
    raw4: Option<Socket>,
    raw6: Option<Socket>,
}

/// Where packets leave that go around the tunnels. Our rule would lead them back to the device, time
/// and again, since no kernel forwards them that counts hops; so they are marked, and have rules of
/// their own. Empty where no first packet takes the triangle.
#[derive(Default)]
struct Around {
    raw4: Option<Socket>,
    raw6: Option<Socket>,
}

impl Around {
    fn open(options: &AroundOptions) -> io::Result<Self> {
        let mut tunnels = Tunnels::open(options.protocol)?;
        for family in Family::ALL {
            let set = tunnels.set_mark_rules(family, options.rule, options.mark);
            set.map_err(io::Error::other)?;
        }
        let marked = |domain| {
            let socket = raw_socket(domain)?;
            socket.set_mark(options.mark)?;
            Ok::<_, io::Error>(socket)
        };
        Ok(Self { raw4: Some(marked(Domain::IPV4)?), raw6: Some(marked(Domain::IPV6)?) })
    }
}

/// linux/udp.h: a zero checksum is taken over IPv6 (RFC 6935), as RFC 9300 §5.3 wants.
const UDP_NO_CHECK6_RX: libc::c_int = 102;

impl Tunnel {
    fn open(config: &Config) -> io::Result<Self> {
        let mut tunnel = Self::default();
        if config.source4.is_some() {
            let any = SocketAddr::from(([0; 4], DATA_PORT));
            let options = [libc::IP_RECVTTL, libc::IP_RECVTOS];
            tunnel.data.push(data_socket(any, libc::IPPROTO_IP, &options)?);
            tunnel.raw4 = Some(raw_socket(Domain::IPV4)?);
        }
        if config.source6.is_some() {
            let any = SocketAddr::from(([0_u16; 8], DATA_PORT));
            let options = [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS];
            let socket = data_socket(any, libc::IPPROTO_IPV6, &options)?;
            set_on(&socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX)?;
            tunnel.data.push(socket);
            tunnel.raw6 = Some(raw_socket(Domain::IPV6)?);
        }
        Ok(tunnel)
    }
}

fn data_socket(bind: SocketAddr, level: i32, options: &[i32]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if bind.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    for &option in options {
        set_on(&socket, level, option)?;
    }
    set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
    socket.bind(&bind.into())?;
    Ok(socket)
}

/// `IPPROTO_RAW`: headers are ours, and nothing is ever received.
fn raw_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_nonblocking(true)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_BYTES)
        .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER_BYTES))?;
    Ok(socket)
}

// ---- the data thread --------------------------------------------------------------------------

/// A datagram in a slot.
#[derive(Clone, Copy)]
struct Ready {
    slot: usize,
    start: usize,
    len: usize,
    rloc: IpAddr,
}

struct Worker {
    shared: Arc<Shared>,
    device: File,
    tunnel: Tunnel,
    around: Around,
    slots: Vec<u8>,
    sender: Sender,
    receiver: Receiver,
    /// Of the batch at hand, by family.
    ready4: Vec<Ready>,
    ready6: Vec<Ready>,
}

const SLOT: usize = HEADROOM + PACKET_BYTES_MAX + 184;

impl Worker {
    fn new(shared: Arc<Shared>, device: File, tunnel: Tunnel, around: Around) -> Self {
        Self {
            shared,
            device,
            tunnel,
            around,
            slots: vec![0; SLOT * BATCH],
            sender: Sender::new(),
            receiver: Receiver::new(PACKET_BYTES_MAX),
            ready4: Vec::with_capacity(BATCH),
            ready6: Vec::with_capacity(BATCH),
        }
    }

    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.wait() {
                Ok(ready) => self.turn(ready),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "the data thread cannot wait for packets; it ends");
                    break;
                }
            }
        }
        self.shared.told.ring();
    }

    /// Which of device and data sockets are readable, in this order.
    fn wait(&self) -> io::Result<[bool; 3]> {
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let data = |at: usize| self.tunnel.data.get(at).map_or(-1, AsRawFd::as_raw_fd);
        let mut entries = [
            entry(self.device.as_raw_fd()),
            entry(data(0)), // below 0: left out
            entry(data(1)),
            entry(self.shared.wake.0.as_raw_fd()),
        ];
        let until = self.shared.engine().poll_timeout();
        let timeout_ms = match until {
            Instant::FAR_FUTURE => -1,
            until => {
                let wait = until.saturating_since(self.shared.now()).as_millis() + 1;
                libc::c_int::try_from(wait).unwrap_or(libc::c_int::MAX)
            }
        };
        // SAFETY: the pointer and the length describe `entries`, which outlives the call.
        let rc =
            unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        let [device, first, second, wake] = entries.map(|entry| entry.revents != 0);
        if wake {
            self.shared.wake.silence();
        }
        Ok([device, first, second])
    }

    fn turn(&mut self, [device, first, second]: [bool; 3]) {
        let now = self.shared.now();
        self.shared.engine().handle_timeout(now);
        self.send_outputs();
        if device {
            for _ in 0..BATCHES_MAX {
                if self.encapsulate_batch() < BATCH {
                    break;
                }
            }
        }
        for (at, ready) in [first, second].into_iter().enumerate() {
            for _ in 0..BATCHES_MAX {
                if !ready || self.decapsulate_batch(at) < BATCH {
                    break;
                }
            }
        }
    }

    /// From the device to the underlay; how many packets there were.
    fn encapsulate_batch(&mut self) -> usize {
        let mut lens = [0; BATCH];
        let mut count = 0;
        while count < BATCH {
            let slot = &mut self.slots[count * SLOT..][HEADROOM..HEADROOM + PACKET_BYTES_MAX];
            match (&self.device).read(slot) {
                Ok(len) => {
                    lens[count] = len;
                    count += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Empty; or down, which somebody did on purpose.
                Err(_) => break,
            }
        }
        if count == 0 {
            return 0;
        }
        let mut back = [0; BATCH];
        let mut backs = 0;
        let mut around = Vec::new();
        // What was held goes before what came now, also when it was set free this moment.
        let shared = Arc::clone(&self.shared);
        let mut engine = shared.engine();
        while engine.has_outputs() {
            drop(engine);
            self.send_outputs();
            engine = shared.engine();
        }
        let now = self.shared.now();
        for (at, &len) in lens[..count].iter().enumerate() {
            let slot = &mut self.slots[at * SLOT..(at + 1) * SLOT];
            match engine.handle_inner(slot, len, now) {
                Inner::Encapsulated { start, len, rloc } => {
                    let ready = Ready { slot: at, start, len, rloc };
                    if rloc.is_ipv4() { &mut self.ready4 } else { &mut self.ready6 }.push(ready);
                }
                Inner::Back => {
                    back[backs] = at;
                    backs += 1;
                }
                Inner::Around => around.push(at),
                Inner::Held | Inner::Replaced | Inner::Ignored | Inner::Dropped(_) => {}
            }
        }
        let (outputs, events) = (engine.has_outputs(), engine.has_events());
        drop(engine);
        self.send_ready();
        for &at in &back[..backs] {
            self.write_back(&self.slots[at * SLOT..][HEADROOM..HEADROOM + lens[at]]);
        }
        if !around.is_empty() {
            let packets = around.iter().map(|&at| (at * SLOT + HEADROOM, lens[at])).collect();
            self.send_around(packets);
        }
        self.after_batch(outputs, events);
        count
    }

    /// Whole packets in the slots, for the ordinary routes.
    fn send_around(&mut self, packets: Vec<(usize, usize)>) {
        let mut refused = 0;
        for (version, socket) in [(4, &self.around.raw4), (6, &self.around.raw6)] {
            let slots = &self.slots;
            let datagrams = packets.iter().filter_map(|&(start, len)| {
                let octets = &slots[start..start + len];
                let to = Head::of(octets).ok().map(|head| head.destination)?;
                (octets[0] >> 4 == version).then_some(Outgoing {
                    to: SocketAddr::new(to, 0),
                    from: None,
                    octets,
                })
            });
            refused += match socket {
                Some(socket) => self.sender.send(socket.as_raw_fd(), datagrams).refused,
                None => datagrams.count() as u64,
            };
        }
        if refused > 0 {
            self.shared.engine().count_refused(refused);
        }
    }

    fn send_ready(&mut self) {
        let lists = [(&mut self.ready4, &self.tunnel.raw4), (&mut self.ready6, &self.tunnel.raw6)];
        let mut refused = 0;
        for (list, socket) in lists {
            if list.is_empty() {
                continue;
            }
            let slots = &self.slots;
            let datagrams = list.iter().map(|ready| Outgoing {
                to: SocketAddr::new(ready.rloc, 0),
                from: None,
                octets: &slots[ready.slot * SLOT + ready.start..][..ready.len],
            });
            refused += match socket {
                Some(socket) => self.sender.send(socket.as_raw_fd(), datagrams).refused,
                None => datagrams.count() as u64,
            };
            list.clear();
        }
        if refused > 0 {
            self.shared.engine().count_refused(refused);
        }
    }

    /// From the underlay to the device.
    fn decapsulate_batch(&mut self, at: usize) -> usize {
        let Some(socket) = self.tunnel.data.get(at) else { return 0 };
        // Errors are about packets sent, or the socket is empty.
        let Ok(count) = self.receiver.receive(socket.as_raw_fd()) else { return 0 };
        let mut deliver = [(0, 0, 0); BATCH];
        let mut delivers = 0;
        let mut engine = self.shared.engine();
        let now = self.shared.now();
        for datagram in 0..count {
            let Some(incoming) = self.receiver.get(datagram) else {
                engine.count_malformed();
                continue;
            };
            let (ttl, class) = (incoming.ttl.unwrap_or(u8::MAX), incoming.traffic_class);
            let from = incoming.from.ip();
            let class = class.unwrap_or(0);
            match engine.handle_outer(from, ttl, class, incoming.octets, now) {
                FromTunnel::Deliver { start, len } => {
                    deliver[delivers] = (datagram, start, len);
                    delivers += 1;
                }
                FromTunnel::Forwarded | FromTunnel::Dropped(_) => {}
            }
        }
        let (outputs, events) = (engine.has_outputs(), engine.has_events());
        drop(engine);
        for &(datagram, start, len) in &deliver[..delivers] {
            self.write_back(&self.receiver.octets(datagram)[start..start + len]);
        }
        self.after_batch(outputs, events);
        count
    }

    fn after_batch(&mut self, outputs: bool, events: bool) {
        if outputs {
            self.send_outputs();
        }
        if events {
            self.shared.told.ring();
        }
    }

    /// Held packets that are free, ICMP errors, packets for nodes that have left.
    fn send_outputs(&mut self) {
        loop {
            let mut batch = Vec::new();
            let mut engine = self.shared.engine();
            while batch.len() < BATCH
                && let Some(output) = engine.pop_output()
            {
                batch.push(output);
            }
            drop(engine);
            if batch.is_empty() {
                return;
            }
            let mut refused = 0;
            for (ipv4, socket) in [(true, &self.tunnel.raw4), (false, &self.tunnel.raw6)] {
                let datagrams = batch.iter().filter_map(|output| match output {
                    Output::Datagram { to, octets } if to.is_ipv4() == ipv4 => {
                        Some(Outgoing { to: SocketAddr::new(*to, 0), from: None, octets })
                    }
                    Output::Datagram { .. } | Output::Back { .. } => None,
                });
                refused += match socket {
                    Some(socket) => self.sender.send(socket.as_raw_fd(), datagrams).refused,
                    None => datagrams.count() as u64,
                };
            }
            if refused > 0 {
                self.shared.engine().count_refused(refused);
            }
            for output in &batch {
                if let Output::Back { octets } = output {
                    self.write_back(octets);
                }
            }
        }
    }

    /// To the kernel, which routes it. What it does not take it has counted itself.
    fn write_back(&self, packet: &[u8]) {
        let _ = (&self.device).write(packet);
    }
}
