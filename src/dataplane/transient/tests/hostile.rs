//! What is not from the other end of a path, or not as it should be.

use super::*;

const KEY: PathKey = PathKey(77);

fn gated() -> Bench {
    let mut bench = Bench::new(config(2));
    let change = TransientChange::Gate { prefix: node(), key: KEY, from: end(1) };
    bench.apply(change, at_ms(0));
    bench
}

fn data(key: PathKey, sequence: u32, packet: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    Datagram { key, sequence, hops: 0, body: Body::Data(packet) }.encode(&mut octets);
    octets
}

#[test]
fn each_way_to_be_wrong_has_its_reason() {
    use TransientDrop as Why;
    let good = &numbered(1, 0)[HEADROOM..];
    let elsewhere = &packet_of(correspondent(1), [10, 1, 0, 8].into(), 0, 4)[HEADROOM..];
    let version = {
        let mut octets = data(KEY, 0, good);
        octets[0] ^= 0x20;
        octets
    };
    let control = |body| {
        let mut octets = Vec::new();
        Datagram { key: KEY, sequence: 0, hops: 0, body }.encode(&mut octets);
        octets
    };
    let flow = Flow { source: correspondent(1), destination: NODE.parse().unwrap() };
    let strange = Flow { destination: [10, 1, 0, 8].into(), ..flow };
    let other_prefix = "10.1.0.0/24".parse().unwrap();
    for (why, from, octets) in [
        (Why::UnknownKey, address(1), data(PathKey(78), 0, good)),
        (Why::WrongSource, address(3), data(KEY, 0, good)),
        (Why::WrongPrefix, address(1), data(KEY, 0, elsewhere)),
        (Why::Malformed, address(1), data(KEY, 0, &good[..good.len() - 1])),
        (Why::Malformed, address(1), data(KEY, 0, b"")),
        (Why::Malformed, address(1), data(KEY, 0, b"\x60 not a packet")),
        (Why::Malformed, address(1), version),
        (Why::Malformed, address(1), Vec::new()),
        // The other half of the path asks; we are asked.
        (Why::WrongPrefix, address(1), control(Body::Request(flow))),
        (Why::WrongPrefix, address(1), control(Body::Answer(strange))),
        (Why::WrongSource, address(3), control(Body::Answer(flow))),
        (Why::WrongSource, address(3), control(Body::Noted(flow))),
        (Why::WrongSource, address(3), control(Body::End(node()))),
        (Why::WrongPrefix, address(1), control(Body::End(other_prefix))),
        (Why::WrongPrefix, address(1), control(Body::EndAck(node()))),
    ] {
        let mut bench = gated();
        bench.path(from, octets.clone(), at_ms(1));
        bench.run(at_ms(1));
        assert_eq!(bench.taken(), [], "{why:?}");
        let totals = bench.engine.totals();
        assert_eq!((totals.dropped(why), totals.all_dropped()), (1, 1), "{why:?} {octets:x?}");
    }
}

#[test]
fn what_came_before_does_not_come_again() {
    let mut bench = gated();
    for (sequence, number) in [(0, 0), (2, 2), (2, 2), (1, 1), (0, 0), (5000, 3), (3, 4)] {
        bench.path(address(1), data(KEY, sequence, &numbered(1, number)[HEADROOM..]), at_ms(1));
    }
    assert_eq!(bench.written(), [0, 2, 1, 3]);
    let totals = bench.engine.totals();
    assert_eq!(totals.dropped(TransientDrop::Duplicate), 2);
    assert_eq!(totals.dropped(TransientDrop::Stale), 1);
    assert_eq!(totals.reordered, 1);
}

#[test]
fn octets_behind_a_packet_do_not_go_on() {
    let mut bench = gated();
    let packet = numbered(1, 0);
    let mut octets = data(KEY, 0, &packet[HEADROOM..]);
    octets.extend_from_slice(b"behind");
    bench.path(address(1), octets, at_ms(1));
    assert_eq!(bench.taken(), [Done::Wrote(packet[HEADROOM..].to_vec())]);
}

/// Truncations and changed octets of every message, at an engine in every state.
#[test]
fn nothing_that_comes_makes_it_panic() {
    let flow = Flow { source: correspondent(1), destination: NODE.parse().unwrap() };
    let packet = numbered(1, 0);
    let bodies = [
        Body::Data(&packet[HEADROOM..]),
        Body::Request(flow),
        Body::Noted(flow),
        Body::Answer(flow),
        Body::End(node()),
        Body::EndAck(node()),
    ];
    for state in 0..4 {
        for body in bodies {
            let mut octets = Vec::new();
            Datagram { key: KEY, sequence: 1, hops: 0, body }.encode(&mut octets);
            for at in 0..octets.len() {
                let mut bench = Bench::new(config(2));
                let (prefix, key) = (node(), KEY);
                match state {
                    0 => {}
                    1 => bench.apply(TransientChange::Hold { prefix, key }, at_ms(0)),
                    2 => {
                        bench.apply(TransientChange::Forward { prefix, key, to: end(1) }, at_ms(0))
                    }
                    _ => bench.apply(TransientChange::Gate { prefix, key, from: end(1) }, at_ms(0)),
                }
                bench.device(numbered(1, 5), at_ms(0));
                bench.path(address(1), octets[..at].to_vec(), at_ms(1));
                for bit in 0..8 {
                    let mut changed = octets.clone();
                    changed[at] ^= 1 << bit;
                    bench.path(address(1), changed, at_ms(1));
                }
                bench.run(at_ms(2));
                (1..20).for_each(|n| bench.run(at_ms(n * 10_000)));
                assert!(bench.engine.is_idle() && bench.diverted.is_empty());
                assert_eq!(bench.engine.poll_timeout(), Instant::FAR_FUTURE);
            }
        }
    }
}
