//! The programs against an independent calculation: packets of all kinds, with checksums over all
//! that they cover, through the program and back through the one of the other end.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::SchedClassifier;

use super::*;
use crate::gateway::Locators;
use crate::types::Instant;

const EID4: &str = "10.1.1.10";
const EID6: &str = "2001:db8:1:1::10";
const SOURCE4: [u8; 4] = [198, 51, 100, 9];
const SOURCE6: &str = "2001:db8:c::9";
const ROUTER4: [u8; 4] = [203, 0, 113, 1];

struct Planes {
    folder: PathBuf,
    fe_i: Rewrite,
    fe_e: Rewrite,
    locators: [IpAddr; 2],
}

impl Drop for Planes {
    fn drop(&mut self) {
        for node in ["i", "e"] {
            let path = self.folder.join(node);
            let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: a string that ends with a NUL; what is pinned there is ours alone.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `None`, said aloud, where the kernel or rights are missing.
fn planes() -> Option<Planes> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("killick-vectors-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    let pools: Vec<Prefix> =
        vec!["10.77.2.0/24".parse().unwrap(), "2001:db8:77::/64".parse().unwrap()];
    let open = |node: &str, pools: Vec<Prefix>| {
        let sizes = Sizes { hosts: 16, networks: 16 };
        Rewrite::open(Options { pin: folder.join(node), pools, sizes, clsact: false })
    };
    let (mut fe_i, mut fe_e) = match (open("i", Vec::new()), open("e", pools.clone())) {
        (Ok(i), Ok(e)) => (i, e),
        (Err(error), _) | (_, Err(error)) => {
            use std::io::Write as _;
            let _ = writeln!(io::stderr().lock(), "SKIPPED dataplane::rewrite: {error}");
            return None;
        }
    };
    let mut chosen = Locators::new(pools, &[], Instant::ZERO);
    let locators = [EID4, EID6].map(|eid| {
        let eid: IpAddr = eid.parse().unwrap();
        let locator = chosen.take(Prefix::host(eid), &mut Vec::new()).unwrap();
        fe_i.set_entry(Prefix::host(eid), EntryAction::Rewrite(locator)).unwrap();
        fe_e.set_entry(Prefix::host(locator), EntryAction::Rewrite(eid)).unwrap();
        locator
    });
    Some(Planes { folder, fe_i, fe_e, locators })
}

/// `union bpf_attr` of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    fd: u32,
    retval: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx: [u64; 3],
    flags: [u32; 4],
}

const PASSED: u32 = u32::MAX;
const SHOT: u32 = 2;

/// What a packet is after translate_in, and what that said.
fn run(plane: &mut Rewrite, packet: &[u8]) -> (u32, Vec<u8>) {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    // To the address that the loopback device of the run has.
    let frame = [&[0; 12][..], &kind, packet].concat();
    let mut out = vec![0; 4000];
    let program: &mut SchedClassifier =
        plane.object.program_mut("translate_in").unwrap().try_into().unwrap();
    let mut attr = TestRun {
        fd: program.fd().unwrap().as_fd().as_raw_fd().cast_unsigned(),
        size_in: frame.len().try_into().unwrap(),
        size_out: out.len().try_into().unwrap(),
        data_in: frame.as_ptr().addr() as u64,
        data_out: out.as_mut_ptr().addr() as u64,
        ..TestRun::default()
    };
    // SAFETY: both buffers are live and as long as is said.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, 10, &raw mut attr, size_of::<TestRun>()) };
    assert_eq!(rc, 0, "{}", io::Error::last_os_error());
    out.truncate(attr.size_out as usize);
    (attr.retval, out.split_off(14))
}

fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A generator of its own, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn octets(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A transport with the checksum that its whole needs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    proto: u8,
    header: usize,
    csum_at: Option<usize>,
    pseudo: bool,
    without: bool,
}

const fn kind(proto: u8, header: usize, at: usize, pseudo: bool) -> Kind {
    Kind { proto, header, csum_at: Some(at), pseudo, without: false }
}

const KINDS4: [Kind; 7] = [
    kind(6, 20, 16, true),
    kind(17, 8, 6, true),
    Kind { without: true, ..kind(17, 8, 6, true) },
    kind(136, 8, 6, true),
    kind(33, 16, 6, true),
    kind(1, 8, 2, false),
    Kind { proto: 50, header: 8, csum_at: None, pseudo: false, without: false },
];

const KINDS6: [Kind; 4] =
    [kind(6, 20, 16, true), kind(17, 8, 6, true), kind(58, 8, 2, true), kind(136, 8, 6, true)];

/// Header and payload; an echo where it is ICMP.
fn transport(kind: Kind, from: IpAddr, to: IpAddr, random: &mut Random) -> Vec<u8> {
    let len = kind.header + (random.next() % 64) as usize;
    let mut segment = random.octets(len);
    match kind.proto {
        1 => segment[0] = 8,
        58 => segment[0] = 128,
        17 => segment[4..6].copy_from_slice(&(len as u16).to_be_bytes()),
        6 => segment[12] = 5 << 4,
        _ => {}
    }
    let Some(at) = kind.csum_at else { return segment };
    segment[at..at + 2].fill(0);
    if !kind.without {
        let mut csum = !transport_sum(kind, from, to, &segment);
        if csum == 0 && kind.proto != 1 {
            csum = 0xffff;
        }
        segment[at..at + 2].copy_from_slice(&csum.to_be_bytes());
    }
    segment
}

/// 0xffff over a packet whose checksum is right.
fn transport_sum(kind: Kind, from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    if !kind.pseudo {
        return sum(&[segment]);
    }
    let len = (segment.len() as u32).to_be_bytes();
    sum(&[&octets(from), &octets(to), &len, &[0, kind.proto], segment])
}

fn packet4(kind: Kind, to: IpAddr, random: &mut Random, options: usize, frag: u16) -> Vec<u8> {
    let segment = transport(kind, SOURCE4.into(), to, random);
    let header = 20 + options;
    let mut packet = vec![0; header];
    packet[0] = 0x40 | (header / 4) as u8;
    packet[1] = random.next() as u8;
    packet[2..4].copy_from_slice(&((header + segment.len()) as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&random.octets(2));
    packet[6..8].copy_from_slice(&frag.to_be_bytes());
    packet[8] = 64;
    packet[9] = kind.proto;
    packet[12..16].copy_from_slice(&SOURCE4);
    packet[16..20].copy_from_slice(&octets(to));
    packet[20..].fill(1); // no operation
    let csum = !sum(&[&packet]);
    packet[10..12].copy_from_slice(&csum.to_be_bytes());
    [packet, segment].concat()
}

/// `extensions`: hop-by-hop and destination options before the transport, or a fragment header.
fn packet6(kind: Kind, to: IpAddr, random: &mut Random, extensions: &[u8]) -> Vec<u8> {
    let from: IpAddr = SOURCE6.parse().unwrap();
    let segment = transport(kind, from, to, random);
    let mut chain = Vec::new();
    for (at, extension) in extensions.iter().enumerate() {
        let next = *extensions.get(at + 1).unwrap_or(&kind.proto);
        match extension {
            44 => chain.extend([next, 0, 0, 1, 1, 2, 3, 4]), // the first of more
            _ => chain.extend([next, 0, 1, 4, 0, 0, 0, 0]),  // padding
        }
    }
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(((chain.len() + segment.len()) as u16).to_be_bytes());
    packet.extend([*extensions.first().unwrap_or(&kind.proto), 64]);
    packet.extend(octets(from));
    packet.extend(octets(to));
    [packet, chain, segment].concat()
}

/// +0 and -0 are one in ones' complement.
fn same_but_for_zero(a: &[u8], b: &[u8], csum_at: Option<usize>) -> bool {
    a.len() == b.len()
        && (0..a.len()).all(|at| {
            let in_csum = csum_at.is_some_and(|c| at == c || at == c + 1);
            in_csum || a[at] == b[at]
        })
        && csum_at.is_none_or(|c| {
            let word = |p: &[u8]| u16::from_be_bytes([p[c], p[c + 1]]) % 0xffff;
            word(a) == word(b)
        })
}

#[test]
fn packets_of_ipv4_have_right_checksums_on_the_way_and_are_the_same_behind_it() {
    let Some(mut planes) = planes() else { return };
    let random = &mut Random(4);
    let eid: IpAddr = EID4.parse().unwrap();
    let locator = planes.locators[0];
    for round in 0..2_000 {
        let kind = KINDS4[round % KINDS4.len()];
        let options = if round % 5 == 0 { 8 } else { 0 };
        // Whole, the first of more, DF, a later one.
        let frag = [0, 0x2000, 0x4000, 0x2010][random.next() as usize % 4];
        let packet = packet4(kind, eid, random, options, frag);
        let (verdict, sent) = run(&mut planes.fe_i, &packet);
        assert_eq!(verdict, PASSED);
        let header = 20 + options;
        let csum_at =
            kind.csum_at.filter(|_| kind.pseudo && frag & 0x1fff == 0).map(|at| header + at);
        assert_eq!(sum(&[&sent[..header]]), 0xffff, "{kind:?}");
        assert_eq!(sent[16..20], octets(locator)[..]);
        assert_eq!((&sent[..10], &sent[12..16]), (&packet[..10], &packet[12..16]));
        if kind.without {
            assert_eq!(sent[20..], packet[20..], "a checksum of 0 stays so");
        } else if csum_at.is_some() {
            assert_eq!(transport_sum(kind, SOURCE4.into(), locator, &sent[header..]), 0xffff);
            if kind.proto != 6 && kind.proto != 33 {
                assert_ne!(sent[header + 6..header + 8], [0, 0], "that would say none");
            }
        } else {
            assert_eq!(sent[20..], packet[20..], "{kind:?}, fragment {frag:x}");
        }
        let (verdict, restored) = run(&mut planes.fe_e, &sent);
        assert_eq!(verdict, PASSED);
        assert!(
            same_but_for_zero(&restored, &packet, csum_at),
            "{kind:?}\n{packet:02x?}\n{restored:02x?}"
        );
    }
}

#[test]
fn packets_of_ipv6_change_in_nothing_but_the_destination() {
    let Some(mut planes) = planes() else { return };
    let random = &mut Random(6);
    let eid: IpAddr = EID6.parse().unwrap();
    let locator = planes.locators[1];
    let chains: [&[u8]; 5] = [&[], &[0], &[0, 60], &[44], &[60, 44]];
    for round in 0..1_000 {
        let kind = KINDS6[round % KINDS6.len()];
        let chain = chains[random.next() as usize % chains.len()];
        let packet = packet6(kind, eid, random, chain);
        let (verdict, sent) = run(&mut planes.fe_i, &packet);
        assert_eq!(verdict, PASSED);
        assert_eq!(sent[24..40], octets(locator)[..]);
        assert_eq!((&sent[..24], &sent[40..]), (&packet[..24], &packet[40..]));
        let segment = &sent[40 + 8 * chain.len()..];
        let from = SOURCE6.parse().unwrap();
        assert_eq!(transport_sum(kind, from, locator, segment), 0xffff, "{kind:?} {chain:?}");
        assert_eq!(run(&mut planes.fe_e, &sent), (PASSED, packet));
    }
}

/// RFC 5508 §4.2: what is quoted is as its source has sent it, whatever part of it.
#[test]
fn errors_quote_what_the_source_has_sent() {
    let Some(mut planes) = planes() else { return };
    let random = &mut Random(1);
    let eid: IpAddr = EID4.parse().unwrap();
    for round in 0..2_000 {
        let kind = KINDS4[round % KINDS4.len()];
        let options = if round % 3 == 0 { 4 } else { 0 };
        let packet = packet4(kind, eid, random, options, 0);
        let (_, sent) = run(&mut planes.fe_i, &packet);
        let quoted = 20 + options + [8, 12, 18, 4000][random.next() as usize % 4];
        let quoted = quoted.min(sent.len());
        let mut icmp = vec![[3, 4, 5, 11, 12][round % 5], 0, 0, 0, 0, 0, 5, 0x14];
        icmp.extend(&sent[..quoted]);
        let csum = !sum(&[&icmp]);
        icmp[2..4].copy_from_slice(&csum.to_be_bytes());
        let mut error = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, 60, 1, 0, 0];
        error.extend([ROUTER4, SOURCE4].concat());
        let len = (20 + icmp.len()) as u16;
        error[2..4].copy_from_slice(&len.to_be_bytes());
        let csum = !sum(&[&error]);
        error[10..12].copy_from_slice(&csum.to_be_bytes());
        error.extend(&icmp);
        let (verdict, told) = run(&mut planes.fe_i, &error);
        assert_eq!(verdict, PASSED);
        assert_eq!(told[..22], error[..22]);
        assert_eq!(sum(&[&told[20..]]), 0xffff, "{kind:?}, {quoted} quoted");
        let there = kind.csum_at.map(|at| 20 + options + at).filter(|at| at + 2 <= quoted);
        let there = there.filter(|_| kind.pseudo);
        assert!(
            same_but_for_zero(&told[28..], &packet[..quoted], there),
            "{kind:?}, {quoted} quoted\n{packet:02x?}\n{told:02x?}"
        );
        // To somebody else, or about somebody else: not ours.
        for at in [16, 28 + 12, 28 + 16] {
            let mut other = error.clone();
            other[at] ^= 1;
            assert_eq!(run(&mut planes.fe_i, &other), (PASSED, other));
        }
    }
    let eid: IpAddr = EID6.parse().unwrap();
    let (router, source): (IpAddr, IpAddr) =
        ("2001:db8::1".parse().unwrap(), SOURCE6.parse().unwrap());
    for round in 0..1_000 {
        let packet = packet6(KINDS6[round % KINDS6.len()], eid, random, &[0]);
        let (_, sent) = run(&mut planes.fe_i, &packet);
        let quoted = sent.len().min(40 + random.next() as usize % 80);
        let mut icmp = vec![1 + (round % 4) as u8, 0, 0, 0, 0, 0, 5, 0x14];
        icmp.extend(&sent[..quoted]);
        let error6 = kind(58, 8, 2, true);
        let csum = !transport_sum(error6, router, source, &icmp);
        icmp[2..4].copy_from_slice(&csum.to_be_bytes());
        let mut error = vec![0x60, 0, 0, 0];
        error.extend((icmp.len() as u16).to_be_bytes());
        error.extend([58, 60]);
        error.extend([octets(router), octets(source), icmp].concat());
        let (verdict, told) = run(&mut planes.fe_i, &error);
        assert_eq!(verdict, PASSED);
        assert_eq!(transport_sum(error6, router, source, &told[40..]), 0xffff);
        assert_eq!(told[48..], packet[..quoted]);
        assert_eq!(told[..48], error[..48]);
    }
    assert!(planes.fe_i.details().unwrap()[0].1 >= 3_000);
}

/// Nothing that is cut or changed does harm: it goes on as it is, goes on with another destination, or
/// is dropped and counted.
#[test]
fn broken_packets_are_left_alone_or_dropped() {
    let Some(mut planes) = planes() else { return };
    let random = &mut Random(9);
    let (eid4, eid6): (IpAddr, IpAddr) = (EID4.parse().unwrap(), EID6.parse().unwrap());
    let mut shot = 0;
    for round in 0..3_000 {
        let mut packet = match round % 2 {
            0 => packet4(KINDS4[random.next() as usize % 7], eid4, random, 4, 0),
            _ => packet6(KINDS6[random.next() as usize % 4], eid6, random, &[0]),
        };
        if round % 3 == 0 {
            let at = random.next() as usize % packet.len();
            packet[at] = random.next() as u8;
        } else {
            // The run itself takes no less than a header.
            let spare = packet.len().saturating_sub(40) + 1;
            packet.truncate(40 + random.next() as usize % spare);
        }
        if !matches!(packet[0] >> 4, 4 | 6) {
            continue;
        }
        let (verdict, after) = run(&mut planes.fe_i, &packet);
        shot += u64::from(verdict == SHOT);
        assert!(verdict == PASSED || verdict == SHOT, "{verdict}");
        assert_eq!(after.len(), packet.len());
    }
    let at = DropReason::ALL.iter().position(|r| *r == DropReason::Malformed).unwrap();
    assert_eq!(planes.fe_i.totals().unwrap().dropped[at], shot);
    // A header of TCP that ends before its checksum: nothing that is right could come out.
    let tcp = packet4(KINDS4[0], eid4, random, 20, 0);
    assert_eq!(run(&mut planes.fe_i, &tcp[..40 + 17]).0, SHOT);
    // And one to a locator of nobody.
    let nobody = packet4(KINDS4[0], "10.77.2.0".parse().unwrap(), random, 0, 0);
    assert_eq!(run(&mut planes.fe_e, &nobody), (SHOT, nobody));
}
