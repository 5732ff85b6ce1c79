//! The eBPF data plane with real packets: a source, FE_I, two FE_E and a node between namespaces.
//!
//! ```text
//!  [s] s0 -- i0 [i] u1 -- u1 [e] m0 -- x [m]     FE_I at i, FE_E at e and f, the node at m;
//!                |  u2 -- u1 [f] m0 -- y [m]     locators are on lo
//!                            e u3 -- u3 f
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use killick::dataplane::ebpf::{Attached, Ebpf, Hook, OpenError, Options, Role, Sizes, overhead};
use killick::dataplane::encap::{DropReason, Encapsulator};
use killick::types::lisp::{
    EncapChange, EncapEvent, EntryAction, EntryCount, GroupId, GroupPath, InstanceId,
};
use killick::types::{Family, Locator, Prefix};

const IID: InstanceId = InstanceId(77);
const NODES: [&str; 5] = ["s", "i", "e", "f", "m"];
const NODE4: &str = "10.9.0.7";
const NODE6: &str = "2001:db8:9::7";
const SOURCE4: &str = "10.8.0.2";
const SOURCE6: &str = "2001:db8:8::2";
const LIMIT: Duration = Duration::from_secs(10);

struct Lab {
    number: u32,
    folder: PathBuf,
    _punt: OwnedFd,
}

fn name_of(number: u32, node: &str) -> String {
    format!("ke-{node}-{}-{number}", std::process::id())
}

/// Past the capture of the test harness.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED netns_ebpf: {why}");
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    // SAFETY: a descriptor of a namespace; affects only the calling thread.
    let rc = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
}

impl Lab {
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: no arguments, no memory.
        if unsafe { libc::geteuid() } != 0 {
            skip("namespaces and BPF need root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("killick-ebpf-{}-{number}", std::process::id()));
        let mut script = String::new();
        for node in NODES {
            let name = name_of(number, node);
            script += &format!(
                "ip netns add {name}; ip -n {name} link set lo up
                 ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                     net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                     net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
                 "
            );
        }
        let end = |node: &str| name_of(number, node);
        // (node, device) on both sides, and the third number of the link's addresses.
        for ((a, da), (b, db), net) in [
            (("s", "s0"), ("i", "i0"), 8),
            (("i", "u1"), ("e", "u1"), 101),
            (("i", "u2"), ("f", "u1"), 102),
            (("e", "u3"), ("f", "u3"), 103),
            (("e", "m0"), ("m", "x"), 104),
            (("f", "m0"), ("m", "y"), 105),
        ] {
            // The source has the address 2 on its link, as the far ends have on the others.
            let (first, second) = if net == 8 { (2, 1) } else { (1, 2) };
            let (na, nb) = (end(a), end(b));
            script += &format!(
                "ip link add {da} netns {na} type veth peer name {db} netns {nb}
                 ip -n {na} addr add 10.{net8}.0.{first}/24 dev {da}
                 ip -n {nb} addr add 10.{net8}.0.{second}/24 dev {db}
                 ip -n {na} addr add 2001:db8:{net}::{first}/64 dev {da} nodad
                 ip -n {nb} addr add 2001:db8:{net}::{second}/64 dev {db} nodad
                 ip -n {na} link set {da} up; ip -n {nb} link set {db} up
                 ",
                net8 = net
            );
        }
        for (node, at) in [("i", 1), ("e", 2), ("f", 3)] {
            let name = end(node);
            script += &format!(
                "ip -n {name} addr add 10.255.0.{at}/32 dev lo
                 ip -n {name} addr add 2001:db8:ff::{at}/128 dev lo nodad
                 "
            );
        }
        // To the locators, and back to the source by plain routes.
        for (node, to, via) in [
            ("i", "ff::2", "101::2"),
            ("i", "ff::3", "102::2"),
            ("e", "ff::1", "101::1"),
            ("e", "ff::3", "103::2"),
            ("f", "ff::1", "102::1"),
            ("f", "ff::2", "103::1"),
        ] {
            let name = end(node);
            let four = |text: &str| {
                let (net, host) = text.split_once("::").unwrap();
                format!("10.{}.0.{host}", if net == "ff" { "255" } else { net })
            };
            script += &format!(
                "ip -n {name} route add {}/32 via {}
                 ip -n {name} route add 2001:db8:{to}/128 via 2001:db8:{via}
                 ",
                four(to),
                four(via)
            );
        }
        for (node, net) in [("e", 101), ("f", 102)] {
            let name = end(node);
            script += &format!(
                "ip -n {name} route add 10.8.0.0/24 via 10.{net}.0.1
                 ip -n {name} route add 2001:db8:8::/64 via 2001:db8:{net}::1
                 "
            );
        }
        for (node, net) in [("e", 104), ("f", 105)] {
            let name = end(node);
            script += &format!(
                "ip -n {name} route add 10.9.0.0/24 via 10.{net}.0.2
                 ip -n {name} route add 2001:db8:9::/64 via 2001:db8:{net}::2
                 "
            );
        }
        let (s, i, m) = (end("s"), end("i"), end("m"));
        script += &format!(
            "ip -n {m} addr add {NODE4}/32 dev lo; ip -n {m} addr add {NODE6}/128 dev lo nodad
             ip -n {m} addr add 10.9.0.8/32 dev lo; ip -n {m} addr add 2001:db8:9::8/128 dev lo nodad
             ip -n {m} route add default via 10.104.0.1
             ip -n {m} route add default via 2001:db8:104::1
             ip -n {s} route add default via 10.8.0.1
             ip -n {s} route add default via 2001:db8:8::1
             ip -n {i} tuntap add punt mode tun
             ip -n {i} link set punt mtu {} up
             ip -n {i} route add 10.9.0.0/16 dev punt
             ip -n {i} route add 2001:db8:9::/48 dev punt
             ",
            1500 - overhead(Family::Ipv6),
        );
        std::fs::create_dir_all(&folder).unwrap();
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        if !output.status.success() {
            remove(number);
            skip(&format!(
                "this machine refuses the namespaces: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
            return None;
        }
        let punt = inside(&end("i"), || open_tun("punt"));
        Some(Self { number, folder, _punt: punt })
    }

    fn name(&self, node: &str) -> String {
        name_of(self.number, node)
    }

    fn options(&self, node: &str) -> Options {
        let at = NODES.iter().position(|&n| n == node).unwrap();
        Options {
            pin: self.folder.join(format!("bpf-{node}")),
            local: Locator {
                ipv4: Some(format!("10.255.0.{at}").parse().unwrap()),
                ipv6: Some(format!("2001:db8:ff::{at}").parse().unwrap()),
            },
            iid: Some(IID),
            mtu_bytes: 1500,
            sizes: Sizes { hosts: 1024, networks: 64, groups: 16 },
            clsact: false,
        }
    }

    /// `None`, said aloud, where the kernel or rights are missing.
    fn open(&self, node: &str) -> Option<Ebpf> {
        match Ebpf::open(self.options(node)) {
            Ok(ebpf) => Some(ebpf),
            Err(error @ (OpenError::NotPermitted | OpenError::Pin { .. })) => {
                skip(&error.to_string());
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn attach(&self, node: &str, ebpf: &mut Ebpf, link: &str, role: Role, hook: Hook) -> Attached {
        inside(&self.name(node), || ebpf.attach(link, role, hook).unwrap())
    }

    fn ip(&self, node: &str, command: &str) -> String {
        sh(&format!("ip -n {} {command}", self.name(node)))
    }

    fn pings(&self, to: &str, more: &str) -> bool {
        ping(&self.name("s"), to, more).0
    }

    /// Until it does; the first packets may wait for neighbours.
    fn pings_soon(&self, to: &str) {
        let begin = Clock::now();
        while !self.pings(to, "-c 1 -W 1") {
            assert!(begin.elapsed() < LIMIT, "{to} does not answer");
        }
    }

    /// The three gateways with tc, everything to the node led to e.
    fn gateways(&self, hook: Hook) -> Option<Gateways> {
        let (mut i, mut e, mut f) = (self.open("i")?, self.open("e")?, self.open("f")?);
        self.attach("i", &mut i, "i0", Role::Inside, hook);
        self.attach("i", &mut i, "punt", Role::Punt, Hook::Tc);
        for (node, ebpf, links) in [("e", &mut e, ["u1", "u3"]), ("f", &mut f, ["u1", "u3"])] {
            for link in links {
                self.attach(node, ebpf, link, Role::Underlay, hook);
            }
        }
        Some(Gateways { i, e, f })
    }
}

struct Gateways {
    i: Ebpf,
    e: Ebpf,
    f: Ebpf,
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove(self.number);
        for node in NODES {
            let _ = Command::new("umount")
                .args(["-l".as_ref(), self.folder.join(format!("bpf-{node}")).as_os_str()])
                .stderr(Stdio::null())
                .status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn remove(number: u32) {
    for node in NODES {
        let _ = Command::new("ip")
            .args(["netns", "del", &name_of(number, node)])
            .stderr(Stdio::null())
            .status();
    }
}

fn inside<T: Send>(namespace: &str, make: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            make()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn open_tun(name: &str) -> OwnedFd {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: an ifreq is plain data, all zero is valid.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the pointer is to a live value of the kind that this request takes.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut ifreq) };
    assert_eq!(rc, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file.into()
}

/// Whether all were answered, and what it said.
fn ping(namespace: &str, to: &str, more: &str) -> (bool, String) {
    let output = Command::new("sh")
        .args(["-c", &format!("ip netns exec {namespace} ping -n -i 0.05 {more} {to} 2>&1")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && text.contains(" 0% packet loss"), text)
}

fn apply(ebpf: &mut Ebpf, changes: &[EncapChange]) {
    let mut results = Vec::new();
    ebpf.apply(changes, &mut results);
    for (change, result) in changes.iter().zip(results) {
        assert_eq!(result, Ok(()), "{change:?}");
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn group(number: u32, members: &[(&str, u8)]) -> EncapChange {
    let members = members.iter().map(|&(addr, weight)| (addr.parse().unwrap(), weight)).collect();
    EncapChange::SetGroup { group: GroupId(number), path: GroupPath::Encap { members, iid: IID } }
}

fn entry(text: &str, action: EntryAction) -> EncapChange {
    EncapChange::SetEntry { prefix: prefix(text), action }
}

fn to_group(text: &str, number: u32) -> EncapChange {
    entry(text, EntryAction::Group(GroupId(number)))
}

fn allow(text: &str) -> EncapChange {
    EncapChange::AllowDecap { prefix: prefix(text) }
}

fn dropped(ebpf: &mut Ebpf, why: DropReason) -> u64 {
    let at = DropReason::ALL.iter().position(|&r| r == why).unwrap();
    ebpf.totals().unwrap().dropped[at]
}

fn count_of(ebpf: &mut Ebpf, text: &str) -> EntryCount {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        after = ebpf.counters(after, 3, &mut found).unwrap();
        if after.is_none() {
            break;
        }
    }
    found.into_iter().find(|(p, _)| *p == prefix(text)).unwrap().1
}

#[test]
fn thin() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    apply(&mut g.e, &[allow("10.9.0.0/24")]);
    apply(&mut g.i, &[group(0, &[("10.255.0.2", 1)]), to_group("10.9.0.7/32", 0)]);
    lab.pings_soon(NODE4);
    let t = g.i.totals().unwrap();
    println!("{t:?} {:?}", g.e.totals());
    assert!(t.encapsulated.packets > 0);
}
