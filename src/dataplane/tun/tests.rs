use super::*;
use crate::types::lisp::GroupPath::Encap;

const RLOC: &str = "192.0.2.9";
const IID: InstanceId = InstanceId(77);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn config(used_for: Use) -> Config {
    Config {
        used_for,
        iid: Some(IID),
        source4: Some(Ipv4Addr::new(192, 0, 2, 1)),
        source6: Some("2001:db8::1".parse().unwrap()),
        underlay_mtu: 1500,
        hold: HoldLimits::default(),
        first_packets: Vec::new(),
    }
}

struct Bench {
    engine: Engine,
    now: Instant,
}

impl Bench {
    fn new(used_for: Use) -> Self {
        Self { engine: Engine::new(config(used_for)), now: at(10_000) }
    }

    fn apply(&mut self, change: EncapChange) {
        self.engine.apply(&change, self.now).unwrap();
    }

    fn group(&mut self, group: u32, members: &[(&str, u8)]) {
        let members = members.iter().map(|&(addr, weight)| (ip(addr), weight)).collect();
        let path = Encap { members, iid: IID };
        self.apply(EncapChange::SetGroup { group: GroupId(group), path });
    }

    fn entry(&mut self, text: &str, action: EntryAction) {
        self.apply(EncapChange::SetEntry { prefix: prefix(text), action });
    }

    /// What becomes of a packet from the inside: the datagram, or the verdict.
    fn inner(&mut self, packet: &[u8]) -> Result<Vec<u8>, Inner> {
        let mut slot = vec![0; HEADROOM];
        slot.extend_from_slice(packet);
        match self.engine.handle_inner(&mut slot, packet.len(), self.now) {
            Inner::Encapsulated { start, len, .. } => Ok(slot[start..start + len].to_vec()),
            other => Err(other),
        }
    }

    /// What becomes of a packet in the tunnel: the packet, or the verdict.
    fn outer(&mut self, ttl: u8, class: u8, packet: &[u8]) -> Result<Vec<u8>, FromTunnel> {
        let mut payload = vec![8, 0, 0, 0, 0, 0, 77, 0];
        payload.extend_from_slice(packet);
        match self.engine.handle_outer(ip(RLOC), ttl, class, &mut payload, self.now) {
            FromTunnel::Deliver { start, len } => Ok(payload[start..start + len].to_vec()),
            other => Err(other),
        }
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.engine.counters().totals.dropped[reason as usize]
    }

    fn events(&mut self) -> Vec<EncapEvent> {
        std::iter::from_fn(|| self.engine.pop_event()).collect()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.engine.pop_output()).collect()
    }
}

/// A UDP packet with a right header checksum, TTL 60, traffic class `class`.
fn packet(from: &str, to: &str, port: u16, class: u8, payload: usize) -> Vec<u8> {
    let mut octets = Vec::new();
    let len = 8 + payload as u16;
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            octets.extend_from_slice(&[0x45, class]);
            octets.extend_from_slice(&(20 + len).to_be_bytes());
            octets.extend_from_slice(&[1, 2, 0, 0, 60, 17, 0, 0]);
            octets.extend_from_slice(&from.octets());
            octets.extend_from_slice(&to.octets());
            let sum = checksum(&octets);
            octets[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            octets.extend_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
            octets.extend_from_slice(&len.to_be_bytes());
            octets.extend_from_slice(&[17, 60]);
            octets.extend_from_slice(&from.octets());
            octets.extend_from_slice(&to.octets());
        }
        _ => panic!("two families"),
    }
    octets.extend_from_slice(&port.to_be_bytes());
    octets.extend_from_slice(&[0, 9]);
    octets.extend_from_slice(&len.to_be_bytes());
    octets.extend_from_slice(&[0, 0]);
    octets.resize(octets.len() + payload, 7);
    octets
}

/// RFC 1071, the plain way; 0 over octets whose checksum is right.
fn checksum(octets: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in octets.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// RFC 9300 §5.1, §5.3: octet by octet; identification and checksum are left to the kernel.
#[test]
fn ipv4_in_ipv4_is_as_the_figure_says() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    bench.entry("10.1.0.0/16", EntryAction::Group(GroupId(0)));
    let inner = packet("10.9.0.1", "10.1.0.7", 5, 0xb9, 4);
    let datagram = bench.inner(&inner).unwrap();
    let port = [datagram[20], datagram[21]];
    let mut expected = vec![0x45, 0xb9, 0, 68, 0, 0, 0x40, 0, 60, 17, 0, 0];
    expected.extend_from_slice(&[192, 0, 2, 1, 192, 0, 2, 9]);
    expected.extend_from_slice(&[port[0], port[1], 0x10, 0xf5, 0, 48, 0, 0]);
    expected.extend_from_slice(&[0x08, 0, 0, 0, 0, 0, 77, 0]);
    expected.extend_from_slice(&inner);
    assert_eq!(datagram, expected);
    assert!(u16::from_be_bytes(port) >= 0xc000, "a dynamic port");
    let count = bench.engine.counters().totals.encapsulated;
    assert_eq!(count, EntryCount { packets: 1, octets: inner.len() as u64 });
    assert_eq!(bench.events(), [EncapEvent::FirstPacket { prefix: prefix("10.1.0.0/16") }]);
    bench.inner(&inner).unwrap();
    assert_eq!(bench.events(), []);
}

/// RFC 9300 §5.2, and §8: without the I bit the instance is 0.
#[test]
fn ipv6_in_ipv6_is_as_the_figure_says() {
    let mut bench = Bench::new(Use::Encapsulate);
    let members = vec![(ip("2001:db8::9"), 1)];
    let path = Encap { members, iid: InstanceId(0) };
    bench.apply(EncapChange::SetGroup { group: GroupId(3), path });
    bench.entry("fd01::7/128", EntryAction::Group(GroupId(3)));
    let inner = packet("fd09::1", "fd01::7", 5, 0x2c, 3);
    let datagram = bench.inner(&inner).unwrap();
    assert_eq!((datagram[0], datagram[1] >> 4), (0x62, 0xc), "the traffic class");
    assert_eq!(datagram[4..8], [0, 16 + 51, 17, 60]);
    assert_eq!(datagram[8..24], "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(datagram[24..40], "2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(datagram[42..48], [0x10, 0xf5, 0, 67, 0, 0]);
    assert_eq!(datagram[48..56], [0; 8]);
    assert_eq!(datagram[56..], inner);
}

/// RFC 9300 §12: one flow stays on one locator and port, many flows are shared by weight.
#[test]
fn flows_are_shared_by_weight() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[("192.0.2.8", 25), ("192.0.2.9", 75), ("2001:db8::9", 0)]);
    bench.entry("10.1.0.0/16", EntryAction::Group(GroupId(0)));
    let mut ports = std::collections::BTreeSet::new();
    let mut to_eight = 0;
    for port in 0..4_000 {
        let inner = packet("10.9.0.1", "10.1.0.7", port, 0, 1);
        let datagram = bench.inner(&inner).unwrap();
        assert_eq!(bench.inner(&inner).unwrap(), datagram);
        to_eight += u32::from(datagram[19] == 8);
        ports.insert([datagram[20], datagram[21]]);
    }
    assert!((850..1150).contains(&to_eight), "{to_eight} of 4000, expected about 1000");
    assert!(ports.len() > 3_000, "{} source ports", ports.len());
}

#[test]
fn a_group_moves_all_its_entries_at_once() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    for n in 0..100 {
        bench.entry(&format!("10.1.0.{n}/32"), EntryAction::Group(GroupId(0)));
    }
    bench.group(0, &[("192.0.2.200", 1)]);
    for n in 0..100 {
        let datagram = bench.inner(&packet("10.9.0.1", &format!("10.1.0.{n}"), 1, 0, 1)).unwrap();
        assert_eq!(datagram[16..20], [192, 0, 2, 200]);
    }
    let path = GroupPath::Unreachable;
    bench.apply(EncapChange::SetGroup { group: GroupId(0), path });
    let unreachable = Err(Inner::Dropped(DropReason::Unreachable));
    assert_eq!(bench.inner(&packet("10.9.0.1", "10.1.0.1", 1, 0, 1)), unreachable);
    bench.apply(EncapChange::RemoveGroup { group: GroupId(0) });
    assert_eq!(bench.inner(&packet("10.9.0.1", "10.1.0.1", 1, 0, 1)), unreachable);
    let change = EncapChange::SetEntry {
        prefix: prefix("10.1.0.1/32"),
        action: EntryAction::Group(GroupId(0)),
    };
    assert_eq!(bench.engine.apply(&change, bench.now), Err(EncapError::NoGroup));
}

#[test]
fn each_entry_does_what_it_says() {
    let mut bench = Bench::new(Use::Encapsulate);
    let to = |to: &str| packet("10.9.0.1", to, 1, 0, 1);
    bench.entry("10.1.0.0/16", EntryAction::Punt);
    bench.entry("10.1.1.0/24", EntryAction::Drop);
    bench.entry("10.1.2.0/24", EntryAction::Native);
    assert_eq!(bench.inner(&to("10.1.0.1")), Err(Inner::Held));
    assert_eq!(bench.inner(&to("10.1.1.1")), Err(Inner::Dropped(DropReason::Policy)));
    assert_eq!(bench.inner(&to("10.1.2.1")), Err(Inner::Dropped(DropReason::Unreachable)));
    assert_eq!(bench.inner(&to("10.2.0.1")), Err(Inner::Dropped(DropReason::Unreachable)));
    assert_eq!(bench.inner(&to("224.0.0.1")), Err(Inner::Ignored));
    for cut in [0, 1, 19, 28] {
        let malformed = Err(Inner::Dropped(DropReason::Malformed));
        assert_eq!(bench.inner(&to("10.1.0.1")[..cut]), malformed, "{cut}");
    }
    bench.apply(EncapChange::RemoveEntry { prefix: prefix("10.1.1.0/24") });
    assert_eq!(bench.inner(&to("10.1.1.1")), Err(Inner::Held));
    assert_eq!(bench.engine.entries(), 2);
}

#[test]
fn held_packets_leave_in_order_when_the_entry_is_set_and_before_any_other() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    bench.entry("10.1.0.0/16", EntryAction::Punt);
    for n in 0..5 {
        assert_eq!(bench.inner(&packet("10.9.0.1", "10.1.0.7", n, 0, 1)), Err(Inner::Held));
        assert_eq!(bench.inner(&packet("10.9.0.1", "10.1.0.8", n, 0, 1)), Err(Inner::Held));
    }
    let (source, destination) = (ip("10.9.0.1"), ip("10.1.0.7"));
    let miss = EncapEvent::Miss { source, destination };
    let other = EncapEvent::Miss { source, destination: ip("10.1.0.8") };
    assert_eq!(bench.events(), [miss, other]);
    bench.entry("10.1.0.7/32", EntryAction::Group(GroupId(0)));
    let ports: Vec<u8> = bench
        .outputs()
        .into_iter()
        .map(|output| match output {
            Output::Datagram { to, octets } if to == ip(RLOC) => octets[36 + 21],
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ports, [0, 1, 2, 3, 4]);
    assert_eq!(bench.engine.counters().totals.held, 5, "those to the other destination");
    assert_eq!(bench.engine.poll_timeout(), bench.now + Duration::from_secs(2));
    bench.now += Duration::from_secs(2);
    bench.engine.handle_timeout(bench.now);
    let counters = bench.engine.counters();
    assert_eq!((counters.expired, counters.released, counters.totals.held), (5, 5, 0));
    assert_eq!(bench.dropped(DropReason::NotHeld), 5);
}

/// What first packets do is said for each prefix: wait, take the ordinary routes, or be dropped. The
/// mapping system is asked for all of them, once a second.
#[test]
fn first_packets_wait_or_go_around_or_are_dropped() {
    for used_for in [Use::Encapsulate, Use::Punt] {
        let first_packets = vec![
            (prefix("10.1.0.0/16"), FirstPackets::Triangle),
            (prefix("10.1.2.0/24"), FirstPackets::Drop),
            (prefix("10.1.3.0/24"), FirstPackets::Hold),
        ];
        let engine = Engine::new(Config { first_packets, ..config(used_for) });
        let mut bench = Bench { engine, now: at(10_000) };
        bench.entry("10.1.0.0/16", EntryAction::Punt);
        bench.entry("10.1.2.0/24", EntryAction::Punt);
        bench.entry("10.1.3.0/24", EntryAction::Punt);
        let source = ip("10.9.0.1");
        for (to, verdict) in [
            ("10.1.0.7", Inner::Around),
            ("10.1.2.7", Inner::Dropped(DropReason::FirstPacket)),
            ("10.1.3.7", Inner::Held),
        ] {
            let sent = packet("10.9.0.1", to, 1, 0, 1);
            let miss = EncapEvent::Miss { source, destination: ip(to) };
            for asked in [&[miss][..], &[]] {
                assert_eq!(bench.inner(&sent), Err(verdict), "{to}");
                assert_eq!(bench.events(), asked, "{to}");
            }
            bench.now += Duration::from_secs(1);
            assert_eq!(bench.inner(&sent), Err(verdict), "{to}");
            assert_eq!(bench.events().len(), 1, "{to}: nobody has answered");
        }
        let totals = bench.engine.counters().totals;
        assert_eq!((totals.around.packets, totals.around.octets), (3, 3 * 29));
        assert_eq!((bench.dropped(DropReason::FirstPacket), totals.held), (3, 3));
    }
    // With a mapping there is no difference any more.
    let first_packets = vec![(prefix("10.1.0.0/16"), FirstPackets::Triangle)];
    let engine = Engine::new(Config { first_packets, ..config(Use::Encapsulate) });
    let mut bench = Bench { engine, now: at(10_000) };
    bench.entry("10.1.0.0/16", EntryAction::Punt);
    bench.group(0, &[(RLOC, 1)]);
    bench.entry("10.1.0.7/32", EntryAction::Group(GroupId(0)));
    assert!(bench.inner(&packet("10.9.0.1", "10.1.0.7", 1, 0, 1)).is_ok());
    assert_eq!(bench.inner(&packet("10.9.0.1", "10.1.0.8", 1, 0, 1)), Err(Inner::Around));
}

/// A refusal by the mapping system ends the waiting too.
#[test]
fn held_packets_are_dropped_when_the_answer_is_no() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.entry("10.1.0.0/16", EntryAction::Punt);
    assert_eq!(bench.inner(&packet("10.9.0.1", "10.1.0.7", 1, 0, 1)), Err(Inner::Held));
    bench.entry("10.1.0.0/24", EntryAction::Drop);
    assert_eq!((bench.dropped(DropReason::Policy), bench.outputs().len()), (1, 0));
    assert_eq!(bench.engine.counters().totals.held, 0);
}

#[test]
fn as_punt_only_packets_go_back_to_the_kernel_for_a_while() {
    let mut bench = Bench::new(Use::Punt);
    let first = packet("10.9.0.1", "10.1.0.7", 1, 0, 1);
    assert_eq!(bench.inner(&first), Err(Inner::Dropped(DropReason::NotHeld)), "nothing punted");
    bench.entry("10.1.0.0/16", EntryAction::Punt);
    assert_eq!(bench.inner(&first), Err(Inner::Held));
    // Groups are the other mechanism's.
    bench.entry("10.1.0.7/32", EntryAction::Group(GroupId(9)));
    assert_eq!(bench.outputs(), [Output::Back { octets: first.clone() }]);
    assert_eq!(bench.inner(&first), Err(Inner::Back), "was on its way already");
    bench.now += BACK_FOR;
    assert_eq!(bench.inner(&first), Err(Inner::Held), "its route is missing");
    bench.engine.handle_timeout(bench.now);
    bench.entry("10.1.0.7/32", EntryAction::Native);
    assert_eq!(bench.outputs(), [Output::Back { octets: first.clone() }]);
    bench.apply(EncapChange::RemoveEntry { prefix: prefix("10.1.0.7/32") });
    assert_eq!(bench.inner(&first), Err(Inner::Held));
    bench.entry("10.1.0.0/16", EntryAction::Native);
    assert_eq!(bench.outputs(), [Output::Back { octets: first.clone() }]);
    assert_eq!(bench.inner(&first), Err(Inner::Back));
    bench.now += BACK_FOR;
    bench.engine.handle_timeout(bench.now);
    assert_eq!(bench.inner(&first), Err(Inner::Dropped(DropReason::NotHeld)));
    assert_eq!(bench.engine.poll_timeout(), Instant::FAR_FUTURE);
}

/// RFC 9300 §5.3 (TTL, DSCP) and every pair of RFC 6040 §4.2, figure 4.
#[test]
fn what_happened_on_the_way_is_taken_over() {
    const NOT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    let table = [
        (NOT, [(NOT, Some(NOT)), (ECT0, Some(NOT)), (ECT1, Some(NOT)), (CE, None)]),
        (ECT0, [(NOT, Some(ECT0)), (ECT0, Some(ECT0)), (ECT1, Some(ECT1)), (CE, Some(CE))]),
        (ECT1, [(NOT, Some(ECT1)), (ECT0, Some(ECT1)), (ECT1, Some(ECT1)), (CE, Some(CE))]),
        (CE, [(NOT, Some(CE)), (ECT0, Some(CE)), (ECT1, Some(CE)), (CE, Some(CE))]),
    ];
    let mut bench = Bench::new(Use::Encapsulate);
    for allowed in ["10.1.0.0/16", "fd01::/64"] {
        bench.apply(EncapChange::AllowDecap { prefix: prefix(allowed) });
    }
    for (from, to) in [("10.9.0.1", "10.1.0.7"), ("fd09::1", "fd01::7")] {
        for (inner, row) in table {
            for (outer, expected) in row {
                let sent = packet(from, to, 1, 0x40 | inner, 5);
                let received = bench.outer(50, 0xb8 | outer, &sent);
                let Some(expected) = expected else {
                    assert_eq!(received, Err(FromTunnel::Dropped(DropReason::Malformed)));
                    continue;
                };
                let received = received.unwrap();
                let head = Head::of(&received).unwrap();
                assert_eq!((head.ttl, head.traffic_class), (50, 0xb8 | expected));
                if head.source.is_ipv4() {
                    assert_eq!(checksum(&received[..20]), 0);
                }
                let head_len = received.len() - 13;
                assert_eq!(received[head_len..], sent[head_len..]);
            }
        }
        let received = bench.outer(200, 0x40, &packet(from, to, 1, 0x40, 5)).unwrap();
        assert_eq!(received, packet(from, to, 1, 0x40, 5), "a TTL never grows");
    }
}

#[test]
fn a_late_packet_is_forwarded_and_told_and_anything_else_is_not_let_in() {
    let mut bench = Bench::new(Use::Encapsulate);
    let late = packet("10.9.0.1", "10.1.0.7", 1, 0, 1);
    let not_allowed = Err(FromTunnel::Dropped(DropReason::NotAllowed));
    assert_eq!(bench.outer(60, 0, &late), not_allowed);
    bench.group(0, &[("2001:db8::9", 1)]);
    bench.entry("10.1.0.7/32", EntryAction::Group(GroupId(0)));
    assert_eq!(bench.outer(60, 0, &late), not_allowed, "an entry of FE_I opens nothing");
    bench.apply(EncapChange::AllowDecap { prefix: prefix("10.1.0.0/16") });
    for _ in 0..3 {
        assert_eq!(bench.outer(60, 0, &late), Err(FromTunnel::Forwarded));
    }
    let (source, destination) = (ip("10.9.0.1"), ip("10.1.0.7"));
    let told = EncapEvent::Late { rloc: ip(RLOC), iid: IID, source, destination };
    assert!(bench.events().contains(&told));
    let outputs = bench.outputs();
    assert_eq!(outputs.len(), 3);
    let Output::Datagram { to, octets } = &outputs[0] else { panic!("{outputs:?}") };
    assert_eq!((*to, octets[7]), (ip("2001:db8::9"), 59));
    let inner = Head::of(&octets[HEADROOM..]).unwrap();
    assert_eq!((inner.ttl, inner.destination), (59, destination));
    assert_eq!(checksum(&octets[HEADROOM..HEADROOM + 20]), 0);
    assert_eq!(bench.engine.counters().totals.late.packets, 3);
    assert_eq!(bench.outer(1, 0, &late), Err(FromTunnel::Dropped(DropReason::TimeToLive)));
    let Some(Output::Datagram { to, octets }) = bench.engine.pop_output() else { panic!() };
    assert_eq!((to, octets[20]), (source, 11), "time exceeded");
    // A neighbour, which is attached here.
    assert!(bench.outer(60, 0, &packet("10.9.0.1", "10.1.0.8", 1, 0, 1)).is_ok());
    // A shorter entry is not about a node that was here.
    bench.apply(EncapChange::AllowDecap { prefix: prefix("10.2.0.7/32") });
    bench.entry("10.2.0.0/16", EntryAction::Group(GroupId(0)));
    assert!(bench.outer(60, 0, &packet("10.9.0.1", "10.2.0.7", 1, 0, 1)).is_ok());
    bench.apply(EncapChange::ForbidDecap { prefix: prefix("10.2.0.7/32") });
    assert_eq!(bench.outer(60, 0, &packet("10.9.0.1", "10.2.0.7", 1, 0, 1)), not_allowed);
}

#[test]
fn late_is_told_once_a_second_for_each_pair() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    bench.apply(EncapChange::AllowDecap { prefix: prefix("10.1.0.0/16") });
    bench.entry("10.1.0.7/32", EntryAction::Group(GroupId(0)));
    let late = packet("10.9.0.1", "10.1.0.7", 1, 0, 1);
    for _ in 0..25 {
        assert_eq!(bench.outer(60, 0, &late), Err(FromTunnel::Forwarded));
        bench.now += Duration::from_millis(100);
    }
    let told = bench.events().into_iter().filter(|e| matches!(e, EncapEvent::Late { .. })).count();
    assert_eq!(told, 3);
}

/// RFC 9300 §7.1.
#[test]
fn what_is_too_long_is_split_or_told() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    bench.entry("10.1.0.0/16", EntryAction::Group(GroupId(0)));
    bench.entry("fd01::/64", EntryAction::Group(GroupId(0)));
    // 1464 octets fit, with 36 before them.
    assert_eq!(bench.inner(&packet("10.9.0.1", "10.1.0.7", 1, 0, 1436)).unwrap().len(), 1500);
    let long = packet("10.9.0.1", "10.1.0.7", 1, 0, 1437);
    assert_eq!(bench.inner(&long), Err(Inner::Replaced));
    let parts = bench.outputs();
    let mut payload = Vec::new();
    for (part, last) in parts.iter().zip([false, true]) {
        let Output::Datagram { octets, .. } = part else { panic!("{part:?}") };
        let inner = &octets[36..];
        assert_eq!(checksum(&inner[..20]), 0);
        assert_eq!(usize::from(u16::from_be_bytes([inner[2], inner[3]])), inner.len());
        let fragment = u16::from_be_bytes([inner[6], inner[7]]);
        assert_eq!(usize::from(fragment & 0x1fff) * 8, payload.len());
        assert_eq!(fragment & 0x2000 == 0, last, "more fragments");
        payload.extend_from_slice(&inner[20..]);
    }
    assert_eq!((parts.len(), &payload[..]), (2, &long[20..]));

    let mut stubborn = long;
    stubborn[6] = 0x40;
    stubborn[10..12].copy_from_slice(&[0, 0]);
    assert_eq!(bench.inner(&stubborn), Err(Inner::Dropped(DropReason::TooBig)));
    let Some(Output::Datagram { to, octets }) = bench.engine.pop_output() else { panic!() };
    assert_eq!((to, octets.len()), (ip("10.9.0.1"), 576));
    assert_eq!((octets[9], &octets[20..22], &octets[26..28]), (1, &[3, 4][..], &[5, 184][..]));
    assert_eq!(checksum(&octets[20..]), 0);

    let long = packet("fd09::1", "fd01::7", 1, 0, 1437);
    assert_eq!(bench.inner(&long), Err(Inner::Dropped(DropReason::TooBig)));
    let Some(Output::Datagram { to, octets }) = bench.engine.pop_output() else { panic!() };
    assert_eq!((to, octets.len(), octets[6]), (ip("fd09::1"), 1280, 58));
    assert_eq!((&octets[40..42], &octets[44..48]), (&[2, 0][..], &1464_u32.to_be_bytes()[..]));
    let mut pseudo = octets[8..40].to_vec();
    pseudo.extend_from_slice(&[0, 0, 4, 216, 0, 0, 0, 58]);
    pseudo.extend_from_slice(&octets[40..]);
    assert_eq!(checksum(&pseudo), 0);
    assert_eq!(bench.dropped(DropReason::TooBig), 2);
}

#[test]
fn icmp_errors_are_limited_and_never_about_icmp_errors() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    bench.entry("fd01::/64", EntryAction::Group(GroupId(0)));
    let long = packet("fd09::1", "fd01::7", 1, 0, 1437);
    for _ in 0..1_000 {
        bench.inner(&long).unwrap_err();
    }
    assert_eq!(bench.outputs().len(), ICMP_BURST as usize);
    bench.now += Duration::from_secs(3);
    let mut error = long;
    (error[6], error[40]) = (58, 1);
    bench.inner(&error).unwrap_err();
    assert_eq!(bench.outputs(), []);
    error[40] = 128;
    bench.inner(&error).unwrap_err();
    assert_eq!(bench.outputs().len(), 1, "about an echo request");
}

#[test]
fn events_are_bounded_and_a_first_packet_is_told_later() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    bench.entry("10.0.0.0/8", EntryAction::Punt);
    for n in 0..EVENTS_MAX {
        let to = format!("10.1.{}.{}", n / 250, n % 250);
        assert_eq!(bench.inner(&packet("10.9.0.1", &to, 1, 0, 1)), Err(Inner::Held));
    }
    bench.entry("10.2.0.1/32", EntryAction::Group(GroupId(0)));
    bench.inner(&packet("10.9.0.1", "10.2.0.1", 1, 0, 1)).unwrap();
    assert_eq!(bench.events().len(), EVENTS_MAX);
    assert_eq!(bench.engine.counters().events_lost, 1);
    bench.inner(&packet("10.9.0.1", "10.2.0.1", 1, 0, 1)).unwrap();
    assert_eq!(bench.events(), [EncapEvent::FirstPacket { prefix: prefix("10.2.0.1/32") }]);
}

#[test]
fn counts_are_listed_in_pieces_and_used_says_each_once() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    for n in 0..100 {
        bench.entry(&format!("10.1.0.{n}/32"), EntryAction::Group(GroupId(0)));
    }
    for n in (0..100).step_by(2) {
        bench.apply(EncapChange::RemoveEntry { prefix: prefix(&format!("10.1.0.{n}/32")) });
    }
    for n in [1, 3, 3, 99] {
        bench.inner(&packet("10.9.0.1", &format!("10.1.0.{n}"), 1, 0, 1)).unwrap();
    }
    let mut counts = Vec::new();
    let mut after = None;
    loop {
        after = bench.engine.entry_counts(after, 7, &mut counts);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(counts.len(), 50);
    let carried: Vec<(String, u64)> = counts
        .iter()
        .filter(|(_, count)| count.packets > 0)
        .map(|(prefix, count)| (prefix.to_string(), count.octets))
        .collect();
    let line = |host: &str, octets: u64| (host.to_owned(), octets);
    assert_eq!(
        carried,
        [line("10.1.0.1/32", 29), line("10.1.0.3/32", 58), line("10.1.0.99/32", 29)]
    );
    let mut used = Vec::new();
    assert_eq!(bench.engine.used(None, 1_000, &mut used), None);
    assert_eq!(used.len(), 3);
    assert_eq!(bench.engine.used(None, 1_000, &mut used), None);
    assert_eq!(used.len(), 3);
}

/// Nothing that comes by the tunnel makes it panic.
#[test]
fn any_octets_are_survived() {
    let mut bench = Bench::new(Use::Encapsulate);
    bench.group(0, &[(RLOC, 1)]);
    for text in ["0.0.0.0/0", "::/0"] {
        bench.apply(EncapChange::AllowDecap { prefix: prefix(text) });
    }
    bench.entry("10.1.0.7/32", EntryAction::Group(GroupId(0)));
    for sample in [
        packet("10.9.0.1", "10.1.0.7", 1, 0, 20),
        packet("10.9.0.1", "10.1.0.8", 1, 0, 20),
        packet("fd09::1", "fd01::7", 1, 0, 20),
    ] {
        for cut in 0..sample.len() {
            let _ = bench.outer(9, 3, &sample[..cut]);
            let _ = bench.inner(&sample[..cut]);
        }
        for at in 0..sample.len() {
            for value in [0, 1, 0x0f, 0x40, 0x4f, 0x60, 0x80, 0xff] {
                let mut changed = sample.clone();
                changed[at] = value;
                let _ = bench.outer(9, 3, &changed);
                let _ = bench.inner(&changed);
                let _ = bench.outputs();
            }
        }
    }
    for len in 0..=9 {
        let mut payload = [8, 0, 0, 0, 0, 0, 77, 0, 0x45][..len].to_vec();
        let verdict = bench.engine.handle_outer(ip(RLOC), 9, 0, &mut payload, bench.now);
        assert_eq!(verdict, FromTunnel::Dropped(DropReason::Malformed));
    }
}
