use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::Duration;

use super::session::Random;
use super::*;
use crate::auth::{BfdKey, Secret};
use crate::types::Instant;
use crate::wire::bfd::{Control, ControlError, Diagnostic, Section, State};

const MS: Duration = Duration::from_millis(1);
const FAST: Duration = Duration::from_millis(100);

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn config() -> SessionConfig {
    SessionConfig::new(FAST, FAST, 3)
}

/// One table with one session to 192.0.2.2, and a hand-made peer.
struct Bench {
    table: Table,
    session: u32,
    now: Instant,
    changes: Vec<Change>,
    /// When each packet was sent, and the packet.
    sent: Vec<(Instant, Control)>,
}

impl Bench {
    fn new(config: SessionConfig) -> Self {
        let mut table = Table::new(7);
        let path = Path::new(Hops::Single, addr("192.0.2.2"));
        let session = table.add(path, config, Instant::ZERO).unwrap();
        Self { table, session, now: Instant::ZERO, changes: Vec::new(), sent: Vec::new() }
    }

    fn take(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send { octets, .. } => {
                    self.sent.push((self.now, Control::decode(&octets).unwrap().0));
                }
                Output::Changed { change, .. } => self.changes.push(change),
            }
        }
    }

    /// Timers until then, each at its time.
    fn run_until(&mut self, until: Instant) {
        while self.table.poll_timeout() <= until {
            self.now = self.table.poll_timeout().max(self.now);
            let mut out = Vec::new();
            self.table.handle_timeout(self.now, &mut out);
            self.take(out);
        }
        self.now = until;
    }

    fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn arrive(&mut self, ttl: Option<u8>, octets: &[u8]) {
        let arrival = Arrival {
            hops: Hops::Single,
            from: addr("192.0.2.2"),
            to: Some(addr("192.0.2.1")),
            ttl,
            interface: None,
        };
        let mut out = Vec::new();
        self.table.handle_datagram(arrival, octets, self.now, &mut out);
        self.take(out);
    }

    fn hear(&mut self, packet: &Control) {
        let mut octets = Vec::new();
        packet.encode(&mut octets);
        self.arrive(Some(255), &octets);
    }

    /// What the peer says in this state, to our discriminator unless it does not know it.
    fn peer(&self, state: State) -> Control {
        Control {
            diagnostic: Diagnostic::NONE,
            state,
            poll: false,
            is_final: false,
            control_plane_independent: false,
            demand: false,
            detect_mult: 3,
            my_discriminator: 99,
            your_discriminator: self.session,
            desired_min_tx_us: 100_000,
            required_min_rx_us: 100_000,
            required_min_echo_rx_us: 0,
            section: None,
        }
    }

    fn state(&self) -> State {
        self.table.state(self.session).unwrap()
    }

    fn view(&self) -> SessionView {
        self.table.views().next().unwrap()
    }

    fn up(config: SessionConfig) -> Self {
        let mut bench = Self::new(config);
        bench.hear(&Control { your_discriminator: 0, ..bench.peer(State::Down) });
        bench.hear(&bench.peer(State::Init));
        assert_eq!(bench.state(), State::Up);
        // The answer to our Poll Sequence (§6.8.3).
        bench.hear(&Control { is_final: true, ..bench.peer(State::Up) });
        bench.changes.clear();
        bench.sent.clear();
        bench
    }

    fn last(&self) -> &Control {
        &self.sent.last().expect("something was sent").1
    }
}

/// RFC 5880 §6.2, §6.8.6: each state, each state of the peer.
#[test]
fn the_table_of_states() {
    use State::{AdminDown, Down, Init, Up};
    let signaled = Diagnostic::NEIGHBOR_SIGNALED_DOWN;
    for (from, heard, to) in [
        (Down, AdminDown, Down),
        (Down, Down, Init),
        (Down, Init, Up),
        (Down, Up, Down),
        (Init, AdminDown, Down),
        (Init, Down, Init),
        (Init, Init, Up),
        (Init, Up, Up),
        (Up, AdminDown, Down),
        (Up, Down, Down),
        (Up, Init, Up),
        (Up, Up, Up),
    ] {
        let mut bench = Bench::new(config());
        match from {
            Init => bench.hear(&bench.peer(Down)),
            Up => bench = Bench::up(config()),
            AdminDown | Down => {}
        }
        assert_eq!(bench.state(), from);
        bench.hear(&bench.peer(heard));
        assert_eq!(bench.state(), to, "{from} hears {heard}");
        if from != Down && to == Down {
            assert_eq!(bench.view().diagnostic, signaled, "{from} hears {heard}");
        }
    }
}

/// RFC 5882 §4.2: only a failure is one.
#[test]
fn what_a_failure_is() {
    let mut bench = Bench::up(config());
    bench.hear(&bench.peer(State::AdminDown));
    assert!(bench.changes.iter().all(|c| !c.is_failure() && c.is_administrative()));

    let mut bench = Bench::up(config());
    bench.hear(&bench.peer(State::Down));
    assert!(bench.changes[0].is_failure());
    // What was a failure is an operator's wish from now on: told once, and no change of state.
    bench.changes.clear();
    for _ in 0..2 {
        bench.hear(&bench.peer(State::AdminDown));
    }
    assert_eq!(bench.changes.len(), 1, "{:?}", bench.changes);
    assert!(bench.changes.iter().all(Change::is_administrative));
}

/// §6.8.4, with the peer's multiplier and the slower of what it offers and what we allow.
#[test]
fn silence_ends_a_session_at_the_detection_time() {
    let mut bench = Bench::up(config());
    bench.hear(&Control { detect_mult: 5, desired_min_tx_us: 150_000, ..bench.peer(State::Up) });
    assert_eq!(bench.view().detection_time, 750 * MS);
    let heard_at = bench.now;
    bench.run_until(heard_at + 749 * MS);
    assert_eq!(bench.state(), State::Up);
    bench.run_until(heard_at + 750 * MS);
    assert_eq!(bench.state(), State::Down);
    let change = bench.changes[0];
    assert_eq!(change.diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
    assert!(change.is_failure());
    // §6.8.1: the peer's discriminator is forgotten; §6.8.7: the news leaves at once.
    let (at, packet) = bench.sent.last().unwrap();
    assert_eq!(*at, heard_at + 750 * MS);
    assert_eq!((packet.state, packet.your_discriminator), (State::Down, 0));
    assert_eq!(packet.diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
    assert!(!packet.poll, "nobody could answer");
}

/// §6.8.7: 75 to 100 % of the interval, 75 to 90 % with a multiplier of 1, evenly; §6.8.3: a
/// second at least while not Up.
#[test]
fn jitter_and_slow_start() {
    for (multiplier, up, low, high) in
        [(3, false, 750, 1000), (1, false, 750, 900), (3, true, 75, 100), (1, true, 75, 90)]
    {
        let config = SessionConfig::new(FAST, FAST, multiplier);
        let mut bench = if up { Bench::up(config) } else { Bench::new(config) };
        let mut last = None;
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for _ in 0..4000 {
            let next = bench.table.poll_timeout();
            bench.sent.clear();
            if up {
                bench.hear(&bench.peer(State::Up)); // goes on being there
            }
            bench.run_until(next);
            let Some((at, _)) = bench.sent.first() else { continue };
            if let Some(last) = last.replace(*at) {
                least = least.min(*at - last);
                most = most.max(*at - last);
            }
        }
        let what = format!("multiplier {multiplier}, up {up}: {least:?} to {most:?}");
        assert!(least >= low * MS && most <= high * MS, "{what}");
        assert!(least < low * MS * 102 / 100 && most > high * MS * 98 / 100, "{what}");
    }
}

/// §6.8.7: the slower of what we want and what the peer can take; 0 is not at all.
#[test]
fn the_peer_limits_how_fast_we_send() {
    let mut bench = Bench::up(config());
    bench.hear(&Control { required_min_rx_us: 400_000, ..bench.peer(State::Up) });
    assert_eq!(bench.view().transmit_interval, 400 * MS);
    // §6.8.3: a lower limit is honoured at once.
    bench.run(250 * MS);
    bench.hear(&bench.peer(State::Up));
    bench.sent.clear();
    bench.run(MS);
    assert_eq!(bench.sent.len(), 1, "more than 100 ms have passed since the last");

    bench.hear(&Control { required_min_rx_us: 0, ..bench.peer(State::Up) });
    bench.sent.clear();
    bench.run(250 * MS);
    assert!(bench.sent.is_empty());
    // A poll is answered all the same (§6.8.7).
    bench.hear(&Control { required_min_rx_us: 0, poll: true, ..bench.peer(State::Up) });
    assert!(bench.last().is_final);
    // When it is gone, its wish is, too.
    bench.run(400 * MS);
    bench.sent.clear();
    bench.run(1100 * MS);
    assert!(!bench.sent.is_empty());
}

/// §6.5, §6.8.3.
#[test]
fn becoming_faster_is_polled_and_a_final_ends_it() {
    let mut bench = Bench::new(config());
    bench.hear(&Control { your_discriminator: 0, ..bench.peer(State::Down) });
    assert_eq!(bench.last().desired_min_tx_us, 1_000_000);
    // A Final that nobody has asked for is none.
    bench.hear(&Control { is_final: true, ..bench.peer(State::Init) });
    assert_eq!(bench.state(), State::Up);
    let first = bench.last().clone();
    assert_eq!((first.poll, first.is_final, first.desired_min_tx_us), (true, false, 100_000));
    bench.hear(&bench.peer(State::Up));
    bench.run(FAST);
    assert!(bench.last().poll, "until it is answered");
    // The answer to the peer's poll has F and never P.
    bench.hear(&Control { poll: true, ..bench.peer(State::Up) });
    assert_eq!((bench.last().poll, bench.last().is_final), (false, true));
    bench.hear(&Control { is_final: true, ..bench.peer(State::Up) });
    bench.run(FAST);
    assert!(!bench.last().poll);

    // Slower again: what we do not do before the Final is to send less often (§6.8.3).
    let entry = config();
    assert_eq!(bench.view().transmit_interval, FAST);
    bench
        .table
        .add(bench.view().path, SessionConfig { min_rx: 50 * MS, ..entry }, bench.now)
        .unwrap();
    bench.hear(&Control { desired_min_tx_us: 10_000, ..bench.peer(State::Up) });
    assert_eq!(bench.view().detection_time, 300 * MS, "the old limit counts");
    bench.run(FAST);
    assert_eq!((bench.last().poll, bench.last().required_min_rx_us), (true, 50_000));
    bench.hear(&Control { is_final: true, desired_min_tx_us: 10_000, ..bench.peer(State::Up) });
    assert_eq!(bench.view().detection_time, 150 * MS);
}

/// §6.6, §6.8.7: a peer in demand mode hears nothing but polls.
#[test]
fn demand_mode_of_the_peer_is_honoured() {
    let mut bench = Bench::up(config());
    let demand = Control { demand: true, ..bench.peer(State::Up) };
    bench.hear(&demand);
    bench.sent.clear();
    bench.run(250 * MS);
    assert!(bench.sent.is_empty());
    bench.hear(&Control { poll: true, ..demand.clone() });
    assert!(bench.last().is_final && !bench.last().demand);
    // Not when its session is not Up.
    bench.hear(&Control { demand: true, ..bench.peer(State::Init) });
    bench.sent.clear();
    bench.run(FAST);
    assert!(!bench.sent.is_empty());
}

/// §6.1, §6.8.7.
#[test]
fn a_passive_one_waits_to_be_spoken_to() {
    let mut bench = Bench::new(SessionConfig { passive: true, ..config() });
    bench.run(Duration::from_secs(10));
    assert!(bench.sent.is_empty());
    bench.hear(&Control { your_discriminator: 0, ..bench.peer(State::Down) });
    assert_eq!((bench.last().state, bench.last().your_discriminator), (State::Init, 99));
    bench.hear(&bench.peer(State::Up));
    assert_eq!(bench.state(), State::Up);
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.state(), State::Down);
    bench.sent.clear();
    bench.run(Duration::from_secs(10));
    assert!(bench.sent.is_empty(), "it has forgotten whom it spoke to");
}

/// §6.8.16.
#[test]
fn an_administrative_end_is_told_and_nothing_is_heard_after_it() {
    let mut bench = Bench::up(config());
    let mut out = Vec::new();
    bench.table.shut_down(bench.now, &mut out);
    bench.table.shut_down(bench.now, &mut out);
    bench.take(out);
    assert_eq!(bench.sent.len(), 2);
    let said = bench.last();
    assert_eq!(said.state, State::AdminDown);
    assert_eq!(said.diagnostic, Diagnostic::ADMINISTRATIVELY_DOWN);
    assert!(bench.changes.iter().all(|c| !c.is_failure()));
    bench.sent.clear();
    bench.hear(&Control { poll: true, ..bench.peer(State::Down) });
    assert_eq!((bench.state(), bench.sent.len()), (State::AdminDown, 0));
    assert_eq!(bench.table.counters().discarded(Discard::AdminDown), 1);
}

/// RFC 5881 §5, and the rules of §6.8.6 that need the table.
#[test]
fn what_is_not_for_a_session_is_discarded_and_counted() {
    let mut bench = Bench::up(config());
    let mut octets = Vec::new();
    bench.peer(State::Up).encode(&mut octets);
    for ttl in [None, Some(254), Some(0)] {
        bench.arrive(ttl, &octets);
    }
    assert_eq!(bench.table.counters().discarded(Discard::Ttl), 3);
    bench.hear(&Control { your_discriminator: bench.session ^ 1, ..bench.peer(State::Up) });
    assert_eq!(bench.table.counters().discarded(Discard::UnknownSession), 1);
    bench.hear(&Control { detect_mult: 0, ..bench.peer(State::Up) });
    let why = Discard::Malformed(ControlError::DetectMult);
    assert_eq!(bench.table.counters().discarded(why), 1);
    let section = Section::Simple { key_id: 1, password: b"x".to_vec() };
    bench.hear(&Control { section: Some(section), ..bench.peer(State::Up) });
    assert_eq!(bench.table.counters().discarded(Discard::AuthUnexpected), 1);
    // None of them was a sign of life.
    bench.run(300 * MS);
    assert_eq!(bench.state(), State::Down);
    assert!(Discard::ALL.iter().enumerate().all(|(at, d)| d.index() == at));
}

/// RFC 5881 §4, RFC 5883 §4: a first packet finds its session by addresses, port and link.
#[test]
fn a_packet_without_our_discriminator_finds_its_session() {
    let mut table = Table::new(1);
    let now = Instant::ZERO;
    let local = Some(addr("192.0.2.1"));
    let paths = [
        Path::new(Hops::Single, addr("192.0.2.2")),
        Path { interface: Some("eth1".into()), ..Path::new(Hops::Single, addr("192.0.2.3")) },
        Path { local, ..Path::new(Hops::Multi, addr("192.0.2.2")) },
        Path { ttl_min: 250, ..Path::new(Hops::Multi, addr("2001:db8::2")) },
    ];
    let added: Vec<u32> =
        paths.iter().map(|p| table.add(p.clone(), config(), now).unwrap()).collect();
    let mut octets = Vec::new();
    let bench = Bench::new(config());
    Control { your_discriminator: 0, ..bench.peer(State::Down) }.encode(&mut octets);
    /// Port, source, destination, TTL and link; and which of the paths it is.
    type Case = (Hops, &'static str, &'static str, u8, Option<&'static str>, Option<usize>);
    let cases: [Case; 9] = [
        (Hops::Single, "192.0.2.2", "192.0.2.9", 255, None, Some(0)),
        (Hops::Single, "::ffff:192.0.2.2", "192.0.2.9", 255, None, Some(0)),
        (Hops::Single, "192.0.2.3", "192.0.2.1", 255, Some("eth1"), Some(1)),
        (Hops::Single, "192.0.2.3", "192.0.2.1", 255, Some("eth2"), None),
        (Hops::Multi, "192.0.2.2", "192.0.2.1", 1, None, Some(2)),
        (Hops::Multi, "192.0.2.2", "192.0.2.9", 1, None, None),
        (Hops::Multi, "2001:db8::2", "2001:db8::1", 250, None, Some(3)),
        (Hops::Multi, "2001:db8::2", "2001:db8::1", 249, None, None),
        (Hops::Multi, "192.0.2.3", "192.0.2.1", 255, Some("eth1"), None),
    ];
    for (hops, from, to, ttl, interface, wanted) in cases {
        let before: Vec<u64> = table.views().map(|v| v.counters.received).collect();
        let arrival =
            Arrival { hops, from: addr(from), to: Some(addr(to)), ttl: Some(ttl), interface };
        table.handle_datagram(arrival, &octets, now, &mut Vec::new());
        let grown = table.views().zip(before).find(|(v, b)| v.counters.received > *b);
        let found = grown.map(|(v, _)| added.iter().position(|d| *d == v.discriminator).unwrap());
        assert_eq!(found, wanted, "{hops:?} {from} {to} {ttl} {interface:?}");
    }
}

/// RFC 5882 §4.1: one session for all who want it, as fast as the fastest; and a limit.
#[test]
fn a_path_is_watched_once_and_there_is_an_end() {
    let mut table = Table::with_sessions_max(1, 2);
    let now = Instant::ZERO;
    let path = |n: u8| Path::new(Hops::Multi, IpAddr::from([192, 0, 2, n]));
    let first = table.add(path(2), SessionConfig::new(FAST, 3 * FAST, 5), now).unwrap();
    let again = table.add(path(2), SessionConfig::new(2 * FAST, FAST, 3), now).unwrap();
    assert_eq!((first, table.len()), (again, 1));
    let view = table.views().next().unwrap();
    assert_eq!(view.multiplier, 3);
    let named = Path { local: Some(addr("192.0.2.1")), ..path(2) };
    assert_eq!(table.add(named, config(), now), Err(AddError::Different));
    let key = BfdKey::new(1, true, Secret::new(b"k".to_vec()));
    assert_eq!(
        table.add(path(2), SessionConfig { key, ..config() }, now),
        Err(AddError::Different)
    );
    table.add(path(3), config(), now).unwrap();
    assert_eq!(table.add(path(4), config(), now), Err(AddError::TooMany));
    assert!(table.views().all(|v| v.discriminator != 0));
}

fn keyed(meticulous: bool, secret: &[u8]) -> SessionConfig {
    let key = BfdKey::new(4, meticulous, Secret::new(secret.to_vec()));
    SessionConfig { key, ..config() }
}

/// §6.7.4.
#[test]
fn what_a_key_keeps_out() {
    let count = |bench: &Bench, why| bench.table.counters().discarded(why);
    for meticulous in [false, true] {
        let config = keyed(meticulous, b"secret");
        let key = config.key.clone().unwrap();
        let mut bench = Bench::new(config);
        let hear = |bench: &mut Bench, key: &BfdKey, state, sequence| {
            let mut octets = Vec::new();
            key.seal(bench.peer(state), sequence, &mut octets);
            bench.arrive(Some(255), &octets);
            octets
        };
        bench.hear(&bench.peer(State::Down));
        assert_eq!(count(&bench, Discard::AuthMissing), 1);
        let other = BfdKey::new(4, meticulous, Secret::new(b"Secret".to_vec())).unwrap();
        // A forged first number is not kept (or nobody else would be heard any more).
        hear(&mut bench, &other, State::Down, 5_000);
        assert_eq!(count(&bench, Discard::AuthDigest), 1);
        let wrong_id = BfdKey::new(5, meticulous, Secret::new(b"secret".to_vec())).unwrap();
        hear(&mut bench, &wrong_id, State::Down, 10);
        assert_eq!(count(&bench, Discard::AuthKeyId), 1);
        let wrong_kind = BfdKey::new(4, !meticulous, Secret::new(b"secret".to_vec())).unwrap();
        hear(&mut bench, &wrong_kind, State::Down, 10);
        assert_eq!(count(&bench, Discard::AuthType), 1);
        assert_eq!(bench.state(), State::Down);

        // Around the end of the numbers.
        let first = u32::MAX - 1;
        let octets = hear(&mut bench, &key, State::Down, first);
        assert_eq!(bench.state(), State::Init);
        let replays = count(&bench, Discard::AuthSequence);
        bench.arrive(Some(255), &octets);
        let is_replay = u64::from(meticulous);
        assert_eq!(count(&bench, Discard::AuthSequence), replays + is_replay);
        let replays = count(&bench, Discard::AuthSequence);
        hear(&mut bench, &key, State::Up, first.wrapping_add(9));
        assert_eq!(bench.state(), State::Up);
        hear(&mut bench, &key, State::Up, first.wrapping_add(8));
        hear(&mut bench, &key, State::Up, first.wrapping_add(9 + 10));
        assert_eq!(count(&bench, Discard::AuthSequence), replays + 2);
        assert!(bench.view().authenticated);

        // §6.8.1: after twice the detection time of silence any number is taken.
        bench.run(650 * MS);
        hear(&mut bench, &key, State::Down, 77);
        assert_eq!(bench.state(), State::Init);

        // Ours: another number for each packet; or for each content.
        bench.sent.clear();
        hear(&mut bench, &key, State::Up, 78);
        bench.run(FAST);
        let number = |c: &Control| match c.section {
            Some(Section::Keyed { sequence, .. }) => sequence,
            _ => panic!("no section"),
        };
        hear(&mut bench, &key, State::Up, 79);
        bench.run(FAST);
        let numbers: Vec<u32> = bench.sent.iter().map(|(_, c)| number(c)).collect();
        assert!(numbers.len() >= 3, "{numbers:?}");
        let last = &numbers[numbers.len() - 2..];
        assert_eq!(last[1].wrapping_sub(last[0]), u32::from(meticulous), "{numbers:?}");
    }
}

/// Any octet of any packet changed, and any cut: no panic, and all that came is accounted for.
#[test]
fn mutations_are_survived_and_counted() {
    let mut random = Random(11);
    for config in [config(), keyed(true, b"k"), keyed(false, b"twenty octets of key")] {
        let key = config.key.clone();
        let mut bench = Bench::new(config);
        let (mut came, mut sequence) = (0, 1);
        for round in 0..30_000_u32 {
            let state = State::ALL[(random.next() % 4) as usize];
            let mut packet = bench.peer(state);
            packet.poll = random.next().is_multiple_of(4);
            packet.is_final = random.next().is_multiple_of(4);
            let mut octets = Vec::new();
            sequence += 1;
            match &key {
                Some(key) => key.seal(packet, sequence, &mut octets),
                None => packet.encode(&mut octets),
            }
            for _ in 0..random.next() % 3 {
                let at = (random.next() % octets.len() as u64) as usize;
                octets[at] = random.next() as u8;
            }
            if round % 5 == 0 {
                octets.truncate((random.next() % 60) as usize);
            }
            bench.arrive(Some(255), &octets);
            came += 1;
            bench.run(Duration::from_micros(random.next() % 20_000));
            bench.sent.clear();
            bench.changes.clear();
        }
        let c = bench.table.counters();
        let discarded: u64 = Discard::ALL.iter().map(|d| c.discarded(*d)).sum();
        assert_eq!(c.received + discarded, came);
        assert!(c.received > 1000 && discarded > 1000, "{c:?}");
    }
}

// ---- two machines and a bad wire --------------------------------------------------------------

/// When it arrives, a number of its own, at which side, and what.
type Packet = (Instant, u64, usize, Vec<u8>);

/// Two tables, one wire: packets are lost, delayed and so overtaken, at random by a seed.
struct Wire {
    tables: [Table; 2],
    sessions: [u32; 2],
    now: Instant,
    random: Random,
    /// Per mille.
    loss: u64,
    delay_max: Duration,
    /// Packets may overtake others.
    reorders: bool,
    last: [Instant; 2],
    cut: [bool; 2],
    flying: BinaryHeap<Reverse<Packet>>,
    serial: u64,
    failures: [u32; 2],
    changes: Vec<(Instant, usize, Change)>,
}

impl Wire {
    fn new(seed: u64, configs: [SessionConfig; 2]) -> Self {
        let mut random = Random(seed);
        let mut tables = [Table::new(random.next()), Table::new(random.next())];
        let addresses = [addr("192.0.2.2"), addr("192.0.2.1")];
        let mut sessions = [0; 2];
        for (side, config) in configs.into_iter().enumerate() {
            let path = Path::new(Hops::Multi, addresses[side]);
            sessions[side] = tables[side].add(path, config, Instant::ZERO).unwrap();
        }
        Self {
            tables,
            sessions,
            now: Instant::ZERO,
            random,
            loss: 0,
            delay_max: MS,
            reorders: false,
            last: [Instant::ZERO; 2],
            cut: [false; 2],
            flying: BinaryHeap::new(),
            serial: 0,
            failures: [0; 2],
            changes: Vec::new(),
        }
    }

    fn carry(&mut self, side: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send { octets, .. } => {
                    if self.cut[side] || self.random.next() % 1000 < self.loss {
                        continue;
                    }
                    let most = u64::try_from(self.delay_max.as_micros()).unwrap();
                    let delay = Duration::from_micros(self.random.next() % (most + 1));
                    self.serial += 1;
                    let mut at = self.now + delay;
                    if !self.reorders {
                        at = at.max(self.last[side]);
                        self.last[side] = at;
                    }
                    let packet = (at, self.serial, 1 - side, octets);
                    self.flying.push(Reverse(packet));
                }
                Output::Changed { change, .. } => {
                    self.failures[side] += u32::from(change.is_failure());
                    self.changes.push((self.now, side, change));
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let packet = self.flying.peek().map_or(Instant::FAR_FUTURE, |p| p.0.0);
            let timers = self.tables.iter().map(Table::poll_timeout).min().unwrap();
            let next = packet.min(timers);
            if next > until {
                self.now = until;
                return;
            }
            self.now = next.max(self.now);
            if packet <= timers {
                let Reverse((_, _, side, octets)) = self.flying.pop().unwrap();
                let from = [addr("192.0.2.2"), addr("192.0.2.1")][side];
                let arrival =
                    Arrival { hops: Hops::Multi, from, to: None, ttl: Some(60), interface: None };
                let mut out = Vec::new();
                self.tables[side].handle_datagram(arrival, &octets, self.now, &mut out);
                self.carry(side, out);
            } else {
                for side in 0..2 {
                    let mut out = Vec::new();
                    self.tables[side].handle_timeout(self.now, &mut out);
                    self.carry(side, out);
                }
            }
        }
    }

    fn states(&self) -> [State; 2] {
        [0, 1].map(|side| self.tables[side].state(self.sessions[side]).unwrap())
    }
}

const UP: [State; 2] = [State::Up; 2];
const DOWN: [State; 2] = [State::Down; 2];

fn configs(random: &mut Random) -> [SessionConfig; 2] {
    let authenticated = random.next() % 3;
    let passive = random.next() % 3;
    [0, 1].map(|side| {
        let mut ms =
            |least: u64, spread: u64| Duration::from_millis(least + random.next() % spread);
        let mut config = SessionConfig::new(ms(20, 300), ms(20, 300), 3);
        config.multiplier = 3 + (random.next() % 3) as u8;
        config.passive = passive == side;
        config.key = match authenticated {
            0 => None,
            kind => BfdKey::new(1, kind == 1, Secret::new(b"both know".to_vec())),
        };
        config
    })
}

/// Whatever the timers of the two: both are up in seconds, agree on the intervals, stay up while
/// less is lost than the multiplier forgives, see a cut in the detection time, and come back.
#[test]
fn two_machines_find_each_other_lose_each_other_and_meet_again() {
    for seed in 0..200 {
        let mut wire = Wire::new(seed, configs(&mut Random(seed)));
        wire.run(Duration::from_secs(5));
        assert_eq!(wire.states(), UP, "seed {seed}");
        let views: Vec<SessionView> =
            wire.tables.iter().map(|t| t.views().next().unwrap()).collect();
        for (view, other) in [(&views[0], &views[1]), (&views[1], &views[0])] {
            let agreed = other.transmit_interval * u32::from(other.multiplier);
            assert_eq!(view.detection_time, agreed, "seed {seed}");
        }
        wire.run(Duration::from_secs(60));
        assert_eq!((wire.failures, wire.states()), ([0, 0], UP), "seed {seed}: nothing was lost");

        // One direction, or both: the deaf one notices, and tells the other if it can.
        wire.cut = [[true, true], [true, false], [false, true]][(seed % 3) as usize];
        wire.changes.clear();
        let at = wire.now;
        let longest = views.iter().map(|v| v.detection_time).max().unwrap();
        // A passive end that has become deaf may not say so (§6.8.7): the other notices by itself.
        wire.run(longest * 2 + 2 * MS);
        assert!(wire.failures.iter().all(|n| *n == 1), "seed {seed}: {:?}", wire.failures);
        for (when, side, _) in wire.changes.iter().filter(|(_, _, c)| c.is_failure()) {
            let is_deaf = wire.cut[1 - side];
            let limit = if is_deaf { views[*side].detection_time } else { longest * 2 } + 2 * MS;
            assert!(*when - at <= limit, "seed {seed}: {side} after {:?}", *when - at);
        }
        assert!(!wire.states().contains(&State::Up), "seed {seed}");
        wire.run(Duration::from_secs(10));
        // The one that is heard may wait in Init for an answer that does not come.
        assert!(!wire.states().contains(&State::Up), "seed {seed}");
        wire.cut = [false; 2];
        wire.run(Duration::from_secs(5));
        assert_eq!(wire.states(), UP, "seed {seed}");
        assert_eq!(wire.failures, [1, 1], "seed {seed}");
    }
}

/// Under loss, delay and reordering states go on being agreed on: when the wire is good again,
/// both are up, and no machine has been busier than its timers allow.
#[test]
fn a_bad_wire_is_survived() {
    for seed in 1000..1150 {
        let mut random = Random(seed);
        let mut wire = Wire::new(seed, configs(&mut random));
        for _ in 0..20 {
            wire.reorders = random.next().is_multiple_of(2);
            wire.loss = random.next() % 900;
            wire.delay_max = Duration::from_millis(1 + random.next() % 400);
            wire.run(Duration::from_millis(random.next() % 5000));
        }
        (wire.loss, wire.delay_max, wire.reorders) = (1000, MS, false);
        wire.run(Duration::from_secs(20));
        assert_eq!(wire.states(), DOWN, "seed {seed}");
        wire.loss = 0;
        wire.run(Duration::from_secs(8));
        assert_eq!(wire.states(), UP, "seed {seed}");
        let before: Vec<u64> = wire.tables.iter().map(|t| t.counters().sent).collect();
        wire.run(Duration::from_secs(10));
        for (table, before) in wire.tables.iter().zip(before) {
            let view = table.views().next().unwrap();
            let sent = u32::try_from(table.counters().sent - before).unwrap();
            let least = Duration::from_secs(10).as_micros() / view.transmit_interval.as_micros();
            let range = least..=least * 4 / 3 + 2;
            assert!(range.contains(&u128::from(sent)), "seed {seed}: {sent} in 10 s, {range:?}");
        }
    }
}
