use super::*;
use crate::types::transient::PathCounts;

const KEY: PathKey = PathKey(77);

fn hold() -> TransientChange {
    TransientChange::Hold { prefix: node(), key: KEY }
}

fn forward() -> TransientChange {
    TransientChange::Forward { prefix: node(), key: KEY, to: end(2) }
}

fn gate(key: PathKey, from: u8) -> TransientChange {
    TransientChange::Gate { prefix: node(), key, from: end(from) }
}

fn endings(bench: &mut Bench) -> Vec<PathEnding> {
    let ended = |event| match event {
        TransientEvent::Ended { how, .. } => Some(how),
        TransientEvent::Holding { .. } | TransientEvent::Flushed { .. } => None,
    };
    std::mem::take(&mut bench.events).into_iter().filter_map(ended).collect()
}

fn sent(bench: &mut Bench) -> Vec<(u32, u8, String)> {
    let each = |done| match done {
        Done::Wrote(packet) => panic!("written: {:?}", read(&packet)),
        Done::Sent(to, octets) => {
            assert_eq!(to, address(2));
            let datagram = Datagram::decode(&octets).unwrap();
            assert_eq!(datagram.key, KEY);
            let what = match datagram.body {
                Body::Data(packet) => format!("data {}", read(packet).1),
                Body::Answer(_) => "answer".to_owned(),
                Body::End(_) => "end".to_owned(),
                other => format!("{other:?}"),
            };
            (datagram.sequence, datagram.hops, what)
        }
    };
    bench.taken().into_iter().map(each).collect()
}

fn datagram(key: PathKey, sequence: u32, hops: u8, body: Body<'_>) -> Vec<u8> {
    let mut octets = Vec::new();
    Datagram { key, sequence, hops, body }.encode(&mut octets);
    octets
}

fn flow(n: u8) -> Flow {
    Flow { source: correspondent(n), destination: NODE.parse().unwrap() }
}

#[test]
fn a_hold_that_hears_nothing_more_gives_back_what_it_has() {
    let mut bench = Bench::new(config(1));
    bench.apply(hold(), at_ms(0));
    for n in 0..5 {
        bench.device(numbered(1, n), at_ms(u64::from(n)));
    }
    bench.run(at_ms(1999));
    assert_eq!((bench.written(), bench.engine.totals().waiting), (vec![], 5));
    bench.run(at_ms(2000));
    assert_eq!(bench.written(), [0, 1, 2, 3, 4]);
    assert_eq!(endings(&mut bench), [PathEnding::Silent]);
    assert!(bench.diverted.is_empty() && bench.engine.is_idle());
    assert_eq!(bench.engine.poll_timeout(), Instant::FAR_FUTURE);
    // What was in the device still: back, with the hop that this detour has cost.
    let packet = numbered(1, 9);
    let ttl = packet[HEADROOM + 8];
    bench.device(packet, at_ms(2001));
    let Done::Wrote(octets) = &bench.taken()[0] else { panic!("it is written") };
    assert_eq!((read(octets).1, octets[8]), (9, ttl.saturating_add(1)));
}

#[test]
fn a_queue_is_flushed_at_its_pace_and_what_comes_later_stays_behind() {
    let mut bench = Bench::new(config(1));
    bench.apply(hold(), at_ms(0));
    for n in 0..1000 {
        bench.device(numbered(1, n), at_ms(1));
    }
    bench.apply(forward(), at_ms(10));
    let mut all = Vec::new();
    for us in (10_000..14_000).step_by(100) {
        bench.run(Instant::from_micros(us));
        bench.device(numbered(1, 1000 + (us as u32 - 10_000) / 100), Instant::from_micros(us));
        let now = sent(&mut bench);
        assert!(us > 10_000 || now.len() < 600, "not all at once: {}", now.len());
        all.extend(now);
    }
    assert!(all.iter().enumerate().all(|(at, (sequence, hops, what))| {
        (*sequence, *hops, what.as_str()) == (at as u32, 0, format!("data {at}").as_str())
    }));
    assert_eq!(all.len(), 1040);
    let flushed = bench.events.iter().any(
        |event| matches!(event, TransientEvent::Flushed { counts, .. } if counts.held >= 1000),
    );
    assert!(flushed, "{:?}", bench.events);
}

#[test]
fn a_forward_ends_when_it_is_quiet_and_says_so_until_it_is_heard() {
    let mut bench = Bench::new(config(1));
    bench.apply(forward(), at_ms(0));
    bench.device(numbered(1, 0), at_ms(100));
    bench.run(at_ms(599));
    assert_eq!(sent(&mut bench), [(0, 0, "data 0".to_owned())]);
    bench.run(at_ms(600));
    assert_eq!(endings(&mut bench), [PathEnding::Drained]);
    assert_eq!(sent(&mut bench), [(1, 0, "end".to_owned())]);
    assert!(bench.diverted.is_empty());
    // A question that comes late is answered, since nothing waits any more.
    bench.path(address(2), datagram(KEY, 0, 0, Body::Request(flow(1))), at_ms(610));
    assert_eq!(sent(&mut bench), [(1, 0, "answer".to_owned())]);
    bench.run(at_ms(650));
    assert_eq!(sent(&mut bench).len(), 1);
    let from_elsewhere = datagram(KEY, 0, 0, Body::EndAck(node()));
    bench.path(address(3), from_elsewhere.clone(), at_ms(651));
    bench.run(at_ms(700));
    assert_eq!(sent(&mut bench).len(), 1, "that was somebody else");
    bench.path(address(2), from_elsewhere, at_ms(701));
    bench.run(at_ms(10_000));
    assert_eq!(sent(&mut bench), []);
    assert_eq!(bench.engine.poll_timeout(), Instant::FAR_FUTURE);

    // Nobody hears.
    bench.apply(forward(), at_ms(20_000));
    let mut ends = 0;
    for ms in 20_000..24_000 {
        bench.run(at_ms(ms));
        ends += sent(&mut bench).len();
    }
    assert_eq!((ends, bench.engine.totals().ends_unanswered), (5, 1));
    assert_eq!(bench.engine.poll_timeout(), Instant::FAR_FUTURE);
}

#[test]
fn a_forward_that_is_never_quiet_ends_at_its_bound() {
    let mut bench = Bench::new(config(1));
    bench.apply(forward(), at_ms(0));
    for ms in (0..5000).step_by(100) {
        bench.device(numbered(1, ms), at_ms(u64::from(ms)));
        bench.run(at_ms(u64::from(ms)));
        assert!(!bench.diverted.is_empty(), "{ms}");
    }
    bench.run(at_ms(5000));
    assert_eq!(endings(&mut bench), [PathEnding::Bound]);
    let last = sent(&mut bench).pop().unwrap();
    assert_eq!(last, (50, 0, "end".to_owned()));
}

#[test]
fn a_gate_lets_each_flow_go_with_its_marker() {
    let mut bench = Bench::new(config(2));
    bench.apply(gate(KEY, 1), at_ms(0));
    let path =
        |sequence, packet: &[u8]| datagram(KEY, sequence, 0, Body::Data(&packet[HEADROOM..]));
    bench.device(numbered(1, 10), at_ms(1));
    bench.device(numbered(2, 20), at_ms(1));
    bench.device(numbered(1, 11), at_ms(1));
    let asked: Vec<_> = bench.taken();
    assert_eq!(
        asked,
        [1, 2].map(|n| { Done::Sent(address(1), datagram(KEY, 0, 0, Body::Request(flow(n)))) })
    );
    bench.path(address(1), path(0, &numbered(1, 9)), at_ms(2));
    assert_eq!(bench.written(), [9], "from the path at once");
    bench.path(address(1), datagram(KEY, 1, 0, Body::Answer(flow(1))), at_ms(3));
    bench.run(at_ms(3));
    assert_eq!(bench.written(), [10, 11]);
    bench.device(numbered(1, 12), at_ms(4));
    assert_eq!(bench.written(), [12], "no longer waits");
    // The other one is asked for again, and again; the pMA is at it, which gives it time.
    bench.run(at_ms(16));
    assert_eq!(bench.taken().len(), 1);
    bench.path(address(1), datagram(KEY, 1, 0, Body::Noted(flow(2))), at_ms(90));
    bench.run(at_ms(150));
    assert!(bench.taken().iter().all(|done| matches!(done, Done::Sent(..))));
    bench.run(at_ms(190));
    let [.., Done::Wrote(packet)] = &bench.taken()[..] else { panic!("it waits no longer") };
    assert_eq!(read(packet).1, 20);
    assert_eq!(bench.engine.totals().flows_late, 1);
    // The end, and what is late for it.
    bench.device(numbered(3, 30), at_ms(200));
    bench.taken();
    let end = datagram(KEY, 3, 0, Body::End(node()));
    bench.path(address(1), end.clone(), at_ms(201));
    bench.run(at_ms(201));
    let [Done::Sent(_, acknowledgement), Done::Wrote(packet)] = &bench.taken()[..] else {
        panic!("acknowledged and let go")
    };
    assert_eq!(*acknowledgement, datagram(KEY, 0, 0, Body::EndAck(node())));
    assert_eq!(read(packet).1, 30);
    assert_eq!(endings(&mut bench), [PathEnding::Drained]);
    assert_eq!(bench.engine.totals().missing, 2, "of three that were sent, one came");
    bench.path(address(1), path(2, &numbered(1, 7)), at_ms(202));
    assert_eq!(bench.written(), [7], "late, and not lost");
    bench.path(address(1), end, at_ms(203));
    assert_eq!(bench.taken().len(), 1, "acknowledged again");
    bench.run(at_ms(5000));
    bench.path(address(1), path(3, &numbered(1, 8)), at_ms(5000));
    assert_eq!((bench.written(), bench.dropped(TransientDrop::UnknownKey)), (vec![], 1));
    assert_eq!(bench.engine.poll_timeout(), Instant::FAR_FUTURE);
}

#[test]
fn a_gate_opens_at_its_bound() {
    for (heard, how) in [(false, PathEnding::Silent), (true, PathEnding::Bound)] {
        let mut bench = Bench::new(config(2));
        bench.apply(gate(KEY, 1), at_ms(0));
        if heard {
            bench.path(address(1), datagram(KEY, 0, 0, Body::Noted(flow(1))), at_ms(1));
        }
        bench.run(at_ms(7999));
        assert!(!bench.diverted.is_empty());
        bench.run(at_ms(8000));
        assert_eq!(endings(&mut bench), [how]);
        assert!(bench.diverted.is_empty());
    }
}

#[test]
fn what_is_full_drops_what_it_should_and_counts_it() {
    for (when_full, kept) in [(WhenFull::Newest, [0, 1, 2]), (WhenFull::Oldest, [2, 3, 4])] {
        let limits = TransientLimits { packets_per_prefix: 3, when_full, ..Default::default() };
        let mut bench = Bench::new(Config { limits, ..config(1) });
        bench.apply(hold(), at_ms(0));
        for n in 0..5 {
            bench.device(numbered(1, n), at_ms(0));
        }
        let totals = bench.engine.totals();
        assert_eq!((totals.all_dropped(), totals.waiting), (2, 3));
        let why = match when_full {
            WhenFull::Newest => TransientDrop::PrefixFull,
            WhenFull::Oldest => TransientDrop::Oldest,
        };
        assert_eq!(totals.dropped(why), 2);
        bench.run(at_ms(2000));
        assert_eq!(bench.written(), kept);
        assert!(matches!(
            bench.events[..],
            [TransientEvent::Ended { counts: PathCounts { dropped: 2, .. }, .. }]
        ));
        let totals = bench.engine.totals();
        assert_eq!((totals.waiting, totals.waiting_octets), (0, 0));
    }
    // In total, in octets; also what waits for a marker.
    let len = numbered(1, 0).len() - HEADROOM;
    let limits = TransientLimits { octets: 2 * len + 1, ..Default::default() };
    let mut bench = Bench::new(Config { limits, ..config(2) });
    bench.apply(gate(KEY, 1), at_ms(0));
    for n in 0..4 {
        bench.device(numbered(1, n), at_ms(0));
    }
    assert_eq!(bench.dropped(TransientDrop::TotalFull), 2);
}

#[test]
fn one_more_prefix_than_fit_is_refused() {
    let limits = TransientLimits { prefixes: 1, ..Default::default() };
    let mut engine = Engine::new(Config { limits, ..config(1) });
    assert_eq!(engine.apply(&hold(), at_ms(0)), Ok(Some(node())));
    let other = TransientChange::Hold { prefix: "10.1.0.8".parse().unwrap(), key: KEY };
    assert_eq!(engine.apply(&other, at_ms(0)), Err(TransientError::Full));
    assert_eq!(engine.apply(&forward(), at_ms(0)), Ok(Some(node())));
}

#[test]
fn flows_beyond_the_limit_pass_at_once() {
    let limits = TransientLimits { flows_per_gate: 1, ..Default::default() };
    let mut bench = Bench::new(Config { limits, ..config(2) });
    bench.apply(gate(KEY, 1), at_ms(0));
    bench.device(numbered(1, 1), at_ms(0));
    bench.taken();
    bench.device(numbered(2, 2), at_ms(0));
    assert_eq!(bench.written(), [2]);
    assert_eq!(bench.engine.totals().flows_full, 1);
}

#[test]
fn a_packet_takes_eight_paths_and_no_more() {
    let mut bench = Bench::new(config(1));
    bench.apply(gate(PathKey(5), 3), at_ms(0));
    bench.apply(forward(), at_ms(1));
    for hops in 0..=HOPS_MAX {
        let packet = numbered(1, hops.into());
        let body = Body::Data(&packet[HEADROOM..]);
        bench.path(address(3), datagram(PathKey(5), hops.into(), hops, body), at_ms(2));
    }
    bench.run(at_ms(2));
    let hops: Vec<u8> = sent(&mut bench).into_iter().map(|(_, hops, _)| hops).collect();
    assert_eq!(hops, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(bench.dropped(TransientDrop::HopLimit), 2);
}

#[test]
fn a_node_that_returns_gets_what_waited_before_what_comes() {
    let mut bench = Bench::new(config(1));
    bench.apply(hold(), at_ms(0));
    bench.device(numbered(1, 0), at_ms(0));
    bench.device(numbered(1, 1), at_ms(0));
    bench.apply(gate(PathKey(5), 3), at_ms(1));
    let packet = numbered(1, 2);
    let body = Body::Data(&packet[HEADROOM..]);
    bench.path(address(3), datagram(PathKey(5), 0, 0, body), at_ms(1));
    bench.run(at_ms(1));
    assert_eq!(bench.written(), [0, 1, 2]);
    assert_eq!(endings(&mut bench), [PathEnding::Replaced]);
    assert_eq!(bench.engine.paths(None, 10)[0].state, PathState::Gate);
}

#[test]
fn a_release_lets_everything_go() {
    let mut bench = Bench::new(config(1));
    bench.apply(gate(PathKey(5), 3), at_ms(0));
    bench.device(numbered(1, 1), at_ms(0));
    bench.apply(hold(), at_ms(1));
    bench.device(numbered(2, 2), at_ms(1));
    bench.taken();
    bench.apply(TransientChange::Release { prefix: node() }, at_ms(2));
    bench.run(at_ms(2));
    assert_eq!(bench.written(), [1, 2]);
    assert_eq!(endings(&mut bench), [PathEnding::Replaced; 2]);
    assert!(bench.diverted.is_empty());
    bench.apply(TransientChange::Release { prefix: node() }, at_ms(3));
    bench.run(at_ms(3));
    assert_eq!(endings(&mut bench), []);
}

#[test]
fn the_same_words_again_change_nothing() {
    let mut bench = Bench::new(config(1));
    for change in [hold(), hold(), forward(), forward()] {
        bench.apply(change, at_ms(0));
        bench.device(numbered(1, 0), at_ms(0));
    }
    bench.run(at_ms(0));
    let sequences: Vec<u32> = sent(&mut bench).into_iter().map(|(sequence, ..)| sequence).collect();
    assert_eq!(sequences, [0, 1, 2, 3]);
    assert_eq!(endings(&mut bench), []);
    let view = bench.engine.paths(None, 10)[0];
    assert_eq!((view.state, view.counts.held, view.counts.forwarded), (PathState::Forward, 4, 4));
    assert_eq!(view.peer, Some(address(2)));
}

#[test]
fn a_path_that_begins_again_goes_on_counting() {
    let mut old = Bench::new(config(1));
    let mut new = Bench::new(config(2));
    for (round, ms) in [(0, 0), (1, 1000)] {
        let now = at_ms(ms);
        new.apply(gate(KEY, 1), now);
        old.apply(forward(), now);
        old.device(numbered(1, round), now);
        old.run(at_ms(ms + 500));
        for done in old.taken() {
            let Done::Sent(_, octets) = done else { panic!("nothing is for here") };
            new.path(address(1), octets, at_ms(ms + 500));
        }
        new.run(at_ms(ms + 500));
        let [Done::Wrote(packet), Done::Sent(..)] = &new.taken()[..] else {
            panic!("the packet, and the acknowledgement")
        };
        assert_eq!(read(packet).1, round);
        assert_eq!(endings(&mut new), [PathEnding::Drained]);
    }
    let totals = new.engine.totals();
    assert_eq!((totals.received, totals.missing, totals.all_dropped()), (2, 0, 0));
}

// ---- sources ----------------------------------------------------------------------------------

fn from_host(n: u8, number: u32) -> Vec<u8> {
    packet_of(IpAddr::from([10, 2, 0, n]), correspondent(1), number, 4)
}

fn host(n: u8) -> Prefix {
    Prefix::host(IpAddr::from([10, 2, 0, n]))
}

#[test]
fn a_source_waits_until_it_is_passed_or_refused_or_too_old() {
    let mut bench = Bench::new(config(1));
    for n in 0..3 {
        bench.source(from_host(1, n), at_ms(0));
        bench.source(from_host(2, 10 + n), at_ms(0));
        bench.source(from_host(3, 20 + n), at_ms(0));
    }
    bench.run(at_ms(500));
    assert!(bench.written().is_empty());
    bench.apply(TransientChange::Pass { prefix: host(1) }, at_ms(500));
    bench.source(from_host(1, 3), at_ms(500));
    bench.run(at_ms(500));
    bench.source(from_host(1, 4), at_ms(501));
    assert_eq!(bench.written(), [0, 1, 2, 3, 4]);
    bench.apply(TransientChange::Refuse { prefix: host(2) }, at_ms(600));
    assert_eq!(bench.dropped(TransientDrop::SourceRefused), 3);
    bench.run(at_ms(1000));
    assert_eq!((bench.written(), bench.dropped(TransientDrop::SourceAge)), (vec![], 3));
    bench.source(from_host(1, 5), at_ms(1001));
    assert!(bench.written().is_empty(), "the pass is over");
    bench.run(at_ms(3000));
    let totals = bench.engine.totals();
    assert_eq!((totals.sources, totals.dropped(TransientDrop::SourceAge)), (0, 4));
    assert_eq!(bench.engine.poll_timeout(), Instant::FAR_FUTURE);
}

#[test]
fn a_flood_of_forged_sources_is_bounded() {
    let limits = TransientLimits {
        sources: 10,
        packets_per_source: 3,
        source_packets: 20,
        ..Default::default()
    };
    let mut bench = Bench::new(Config { limits, ..config(1) });
    for n in 0..200 {
        for number in 0..5 {
            bench.source(from_host(n, number), at_ms(0));
        }
    }
    assert_eq!(bench.engine.totals().sources, 7, "three each, and two of the last");
    assert_eq!(bench.dropped(TransientDrop::SourceFull), 1000 - 20);
    bench.run(at_ms(1000));
    assert_eq!(bench.dropped(TransientDrop::SourceAge), 20);
    bench.source(from_host(1, 0), at_ms(1001));
    assert_eq!(bench.engine.totals().sources, 1);
}

#[test]
fn a_passed_packet_for_a_gate_waits_there() {
    let mut bench = Bench::new(config(2));
    bench.apply(gate(KEY, 1), at_ms(0));
    let source = IpAddr::from([10, 2, 0, 1]);
    bench.source(packet_of(source, NODE.parse().unwrap(), 5, 4), at_ms(0));
    bench.apply(TransientChange::Pass { prefix: host(1) }, at_ms(1));
    bench.run(at_ms(1));
    let flow = Flow { source, destination: NODE.parse().unwrap() };
    let asked = datagram(KEY, 0, 0, Body::Request(flow));
    assert_eq!(bench.taken(), [Done::Sent(address(1), asked)]);
    bench.path(address(1), datagram(KEY, 0, 0, Body::Answer(flow)), at_ms(2));
    bench.run(at_ms(2));
    assert_eq!(bench.written(), [5]);
}
