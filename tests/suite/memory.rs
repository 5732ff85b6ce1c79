//! What a binding costs: the location database and the FE_IEC of a controller or Map-Server, where
//! there is one of each per registered EID.
//!
//! Counted are the chunks that a `malloc` with 16-octet grains and 8 octets of its own gives, per
//! thread, so that other tests do not disturb. The tables are powers of two: 62 500 bindings fill
//! them exactly as 1 000 000 do, and 57 345 are the least that need that size (the worst case).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use killick::iec::{Evidence, Iec, IecConfig, Scope};
use killick::location::Location;
use killick::types::{
    AnchorId, Binding, Generation, Instant, Lifetime, Locator, MacAddr, MnId, Prefix,
};

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn chunk(size: usize) -> isize {
    isize::try_from((size + 8).next_multiple_of(16).max(32)).expect("a Layout fits")
}

fn note(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call goes to the system's allocator as it came; counting touches only cells of the
// thread that need no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(chunk(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-chunk(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(chunk(size) - chunk(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Octets per binding.
#[derive(Debug)]
struct Cost {
    at_rest: f64,
    /// While every route is still a claim, and with what growing took for a moment.
    peak: f64,
}

fn cost(bindings: impl Iterator<Item = (Prefix, MnId)>) -> Cost {
    let (before, mut count) = (HELD.get(), 0u32);
    PEAK.set(before);
    let config = IecConfig {
        scope: Scope::Controller,
        settle_delay: Duration::from_secs(5),
        settle_unconfirmed: Duration::from_secs(180),
        prepare_max: Duration::from_millis(50),
    };
    let (mut location, mut iec) = (Location::new(1), Iec::new(config, 2));
    let (mut changes, mut said) = (Vec::new(), Vec::new());
    let evidence = Evidence { held_elsewhere: false, confirmed: true, attachment: None };
    for (prefix, mn) in bindings {
        // Thousand anchors; one node in ten is at home.
        let anchor = AnchorId(count % 1_000 + 1);
        let binding = Binding {
            prefix,
            mn,
            anchor,
            fe_e: Locator { ipv4: Some((0xc000_0200 + anchor.0).into()), ipv6: None },
            home: (count % 10 == 0).then_some(anchor),
            generation: Generation(1),
            lifetime: Lifetime::WhileAttached,
        };
        location.apply(binding, &mut changes).expect("there is room");
        for change in changes.drain(..) {
            iec.handle_change(&change, evidence, Instant::from_micros(count.into()), &mut said);
        }
        said.clear();
        count += 1;
    }
    let peak = PEAK.get() - before;
    while iec.poll_timeout().is_some() {
        iec.handle_timeout(Instant::FAR_FUTURE, &mut said);
        said.clear();
    }
    drop((changes, said));
    assert_eq!(location.len(), count as usize);
    let at_rest = HELD.get() - before;
    let each = |octets: isize| octets as f64 / f64::from(count);
    Cost { at_rest: each(at_rest), peak: each(peak) }
}

fn v4(i: u32) -> Prefix {
    Prefix::v4(0x0a00_0000 + i, 32).expect("a length of IPv4")
}

fn v6(i: u32) -> Prefix {
    let addr = 0x2001_0db8_0001_0002_0a00_27ff_fe00_0000 + u128::from(i);
    Prefix::v6(addr, 128).expect("a length of IPv6")
}

fn eid(prefix: Prefix) -> (Prefix, MnId) {
    (prefix, MnId::new(&format!("eid:{prefix}")).expect("printable"))
}

fn mac(i: u32) -> MnId {
    let [a, b, c, d] = i.to_be_bytes();
    MnId::from_mac(MacAddr([2, 0, a, b, c, d]))
}

#[test]
fn a_binding_fits_its_budget() {
    for (count, name) in [(62_500, "as at 1 000 000"), (57_345, "at worst")] {
        let say = |what: &str, cost: Cost, at_rest_max: f64| {
            println!(
                "{what}, {name}: {:.1} octets at rest, {:.1} at peak",
                cost.at_rest, cost.peak
            );
            assert!(cost.at_rest <= at_rest_max, "{what} {name}: {cost:?}");
        };
        say("IPv4 EID", cost((0..count).map(|i| eid(v4(i)))), 166.0);
        say("IPv4, by MAC", cost((0..count).map(|i| (v4(i), mac(i)))), 166.0);
        say("IPv6 EID", cost((0..count).map(|i| eid(v6(i)))), 242.0);
        say("IPv6, by MAC", cost((0..count).map(|i| (v6(i), mac(i)))), 178.0);
        let both = |i| [(v4(i), mac(i)), (v6(i), mac(i))];
        say("both, by MAC", cost((0..count / 2).flat_map(both)), 230.0);
    }
}
