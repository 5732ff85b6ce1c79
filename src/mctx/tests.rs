//! Two and three FE_MCTX with a hall that only remembers, one clock, and a network that may lose,
//! delay, repeat and reorder; anchors restart. The messages are the real octets.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::proto::cxtp::{Incoming, signal_message, understand};
use crate::types::seam::ContextPrefix;
use crate::types::transfer::{AttributesPart, Part, Refusal, ReportBatch, Transfer};
use crate::types::{Lifetime, Locator};
use crate::wire::cxtp::next_message;

const A: AnchorId = AnchorId(1);
const B: AnchorId = AnchorId(2);
const C: AnchorId = AnchorId(3);

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn mn(n: u8) -> MnId {
    MnId::new(&format!("mn{n}")).unwrap()
}

fn v4(n: u8) -> Prefix {
    format!("10.0.0.{n}/32").parse().unwrap()
}

fn v6(n: u8) -> Prefix {
    format!("2001:db8::{n}/128").parse().unwrap()
}

fn context(n: u8, generation: u32, anchor: AnchorId) -> Context {
    let prefix = |prefix| ContextPrefix { prefix, home: Some(A), lifetime_s: None };
    Context {
        mn: mn(n),
        generation: Generation(generation),
        anchor,
        prefixes: vec![prefix(v4(n)), prefix(v6(n))],
        attributes: vec![(7, vec![n; 3])],
        path: None,
    }
}

fn trust_all() -> Vec<Trust> {
    let pools: Vec<Prefix> = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    [A, B, C].map(|anchor| Trust { anchor, may_claim: pools.clone() }).to_vec()
}

fn mctx(own: AnchorId) -> Mctx {
    Mctx::new(MctxConfig::new(own, trust_all()), u64::from(own.0))
}

/// With links to the two others.
fn linked(own: AnchorId) -> Mctx {
    let (mut mctx, mut out) = (mctx(own), Vec::new());
    for peer in [A, B, C].into_iter().filter(|peer| *peer != own) {
        mctx.handle_link_up(peer, false, at(0), &mut out);
    }
    assert_eq!(out, []);
    mctx
}

fn assert_empty(mctx: &Mctx) {
    assert_eq!(mctx.active(), 0, "{mctx:#?}");
    assert!(mctx.timers.is_empty() && mctx.import_of.is_empty(), "{mctx:#?}");
    assert!(mctx.predicted_of.is_empty() && mctx.exports_of.is_empty(), "{mctx:#?}");
}

fn sends(out: &[Output]) -> Vec<(AnchorId, Signal)> {
    let send = |output: &Output| match output {
        Output::Send { to, signal } => Some((*to, signal.clone())),
        _ => None,
    };
    out.iter().filter_map(send).collect()
}

/// The one CT-Req in there.
fn request(out: &[Output]) -> (AnchorId, u32, bool) {
    let found: Vec<_> = sends(out)
        .into_iter()
        .filter_map(|(to, signal)| match signal {
            Signal::Request { sequence, insist, .. } => Some((to, sequence, insist)),
            _ => None,
        })
        .collect();
    assert_eq!(found.len(), 1, "{out:?}");
    found[0]
}

fn imported(out: &[Output]) -> Option<&Result<Imported, NoContext>> {
    out.iter().find_map(|output| match output {
        Output::Imported { result, .. } => Some(result),
        _ => None,
    })
}

fn attach(mctx: &mut Mctx, n: u8, from: &[AnchorId], ms: u64) -> Vec<Output> {
    let mut out = Vec::new();
    let known = Generation::NONE;
    let attach = mctx.handle_attached(&mn(n), v4(n), from, known, at(ms), &mut out);
    assert_eq!(attach, Attach::Started);
    out
}

fn signal(mctx: &mut Mctx, from: AnchorId, signal: Signal, ms: u64) -> Vec<Output> {
    let mut out = Vec::new();
    mctx.handle_signal(from, signal, at(ms), &mut out);
    out
}

fn timeout(mctx: &mut Mctx, ms: u64) -> Vec<Output> {
    let mut out = Vec::new();
    mctx.handle_timeout(at(ms), &mut out);
    out
}

fn refusal(n: u8, sequence: u32, why: Refusal) -> Signal {
    Signal::Refusal { addr: v4(n).addr(), sequence, why }
}

fn transfer(n: u8, sequence: u32, context: Context) -> Signal {
    let mut context = context;
    let attributes = AttributesPart::Whole(std::mem::take(&mut context.attributes));
    Signal::Transfer(Box::new(Transfer {
        addr: v4(n).addr(),
        sequence,
        elapsed_ms: 0,
        predictive: false,
        context: Some(context),
        attributes,
    }))
}

fn predictive(n: u8, sequence: u32, context: Context) -> Signal {
    match transfer(n, sequence, context) {
        Signal::Transfer(transfer) => {
            Signal::Transfer(Box::new(Transfer { predictive: true, ..*transfer }))
        }
        other => other,
    }
}

/// RFC 4067 §5.2: CT-Req, CTD, CTDR; the pMA releases after the last.
#[test]
fn reactive() {
    let (mut pma, mut nma) = (linked(A), linked(B));
    let (to, sequence, _) = request(&attach(&mut nma, 1, &[A], 0));
    assert_eq!(to, A);
    let ask = Signal::Request { prefix: v4(1), sequence, insist: false };
    let out = signal(&mut pma, B, ask, 1);
    assert_eq!(out, [Output::ExportWanted { prefix: v4(1), to: B, sequence }]);
    let mut out = Vec::new();
    pma.reply_context(v4(1), B, sequence, Ok(context(1, 4, A)), at(1), &mut out);
    let [(to, ctd)] = &sends(&out)[..] else { panic!("{out:?}") };
    assert_eq!(*to, B);
    let out = signal(&mut nma, A, ctd.clone(), 2);
    let expected = Imported {
        context: context(1, 4, A),
        from: A,
        mode: Mode::Reactive,
        late: false,
        without_attributes: false,
    };
    assert_eq!(imported(&out), Some(&Ok(expected)));
    let mut out = Vec::new();
    nma.handle_installed(&mn(1), Ok(()), at(3), &mut out);
    let addr = v4(1).addr();
    let ctdr = Signal::Reply { addr, failed: vec![] };
    assert_eq!(out, [Output::Send { to: A, signal: ctdr.clone() }]);
    let out = signal(&mut pma, B, ctdr.clone(), 4);
    let (prefixes, generation) = (vec![v4(1), v6(1)], Generation(4));
    assert_eq!(out, [Output::Transferred { mn: mn(1), prefixes, to: B, generation }]);
    assert_empty(&pma);
    // A CTD that comes again only means that the CTDR was lost.
    let out = signal(&mut nma, A, ctd.clone(), 5);
    assert_eq!(sends(&out), [(A, ctdr)]);
    timeout(&mut nma, 10_003);
    assert_empty(&nma);
    assert_eq!(nma.transfers(at(0), 10)[0].status, "done");
}

/// RFC 4067 §5.1: PCTD first; used at once when the node is there.
#[test]
fn predictive_waits_for_its_node() {
    let (mut pma, mut nma) = (linked(A), linked(B));
    let mut out = Vec::new();
    pma.move_to(context(1, 4, A), B, at(0), &mut out).unwrap();
    let (_, pctd) = sends(&out).remove(0);
    let out = signal(&mut nma, A, pctd, 1);
    let prefixes = vec![v4(1), v6(1)];
    assert_eq!(out, [Output::Predicted { mn: mn(1), prefixes, from: A }]);
    // By the other family, under another name, and with nobody to ask.
    let mut out = Vec::new();
    let name = MnId::new("02:00:00:00:00:01").unwrap();
    nma.handle_attached(&name, v6(1), &[], Generation(4), at(500), &mut out);
    let Some(Ok(got)) = imported(&out) else { panic!("{out:?}") };
    assert_eq!((got.mode, &got.context), (Mode::Predictive, &context(1, 4, A)));
    let mut out = Vec::new();
    nma.handle_installed(&name, Ok(()), at(501), &mut out);
    let (_, ctdr) = sends(&out).remove(0);
    assert_eq!(ctdr, Signal::Reply { addr: v4(1).addr(), failed: vec![] });
    let out = signal(&mut pma, B, ctdr, 502);
    assert!(matches!(out[..], [Output::Transferred { to: B, .. }]), "{out:?}");
    assert_empty(&pma);
    timeout(&mut nma, 20_000);
    assert_empty(&nma);
}

#[test]
fn a_predicted_node_that_does_not_come_is_cancelled() {
    let (mut pma, mut nma) = (linked(A), linked(B));
    let mut out = Vec::new();
    pma.move_to(context(1, 4, A), B, at(0), &mut out).unwrap();
    signal(&mut nma, A, sends(&out).remove(0).1, 1);
    let out = timeout(&mut nma, 10_001);
    let ctc = Signal::Cancel { addr: v4(1).addr() };
    assert_eq!(sends(&out), [(A, ctc.clone())]);
    assert_empty(&nma);
    // The pMA's own deadline is the same; whichever is first, the hall hears it once.
    let out = signal(&mut pma, B, ctc, 9_999);
    let how = ExportEnd::Cancelled;
    assert_eq!(out, [Output::ExportEnded { mn: mn(1), to: B, how }]);
    assert_empty(&pma);
}

/// A context that waits is no use when the node has been elsewhere meanwhile.
#[test]
fn an_old_prediction_gives_way_to_the_newer_anchor() {
    let mut nma = linked(B);
    signal(&mut nma, A, predictive(1, 9, context(1, 4, A)), 0);
    let mut out = Vec::new();
    nma.handle_attached(&mn(1), v4(1), &[C], Generation(5), at(10), &mut out);
    assert!(sends(&out).contains(&(A, Signal::Cancel { addr: v4(1).addr() })));
    assert_eq!(request(&out).0, C);
}

/// Every answer to a CT-Req, and what follows from it.
#[test]
fn answers_of_candidates() {
    use NoContext::{GenerationOld, NotAuthorised, Timeout, Unknown};
    enum Answer {
        Refuse(Refusal),
        Old,
        Silent,
    }
    use Answer::{Old, Refuse, Silent};
    let referral = |to| Refuse(Refusal::Referral(to));
    let unknown = || Refuse(Refusal::Unknown);
    // Candidates are A and C; B asks. What each answers in turn, whom it asks, how it ends.
    let cases: Vec<(Vec<Answer>, Vec<AnchorId>, NoContext)> = vec![
        (vec![unknown(), unknown()], vec![A, C], Unknown),
        (vec![Silent, unknown()], vec![A, C], Unknown),
        (vec![unknown(), Silent], vec![A, C], Timeout),
        (vec![unknown(), Refuse(Refusal::NotAuthorised)], vec![A, C], NotAuthorised),
        (vec![Old, Old], vec![A, C], GenerationOld),
        // A refers to C, C knows nothing: A is asked once more, then C as candidate.
        (vec![referral(C), unknown(), unknown(), unknown()], vec![A, C, A, C], Unknown),
        // Referred to ourselves: insist at once.
        (vec![referral(B), unknown(), unknown()], vec![A, A, C], Unknown),
        // Each refers to the other, for ever.
        (
            vec![
                referral(C),
                referral(A),
                referral(C),
                referral(A),
                referral(C),
                unknown(),
                unknown(),
                unknown(),
                unknown(),
                unknown(),
            ],
            vec![A, C, A, C, A, C, A, C, A, C],
            Unknown,
        ),
    ];
    for (number, (answers, expected, end)) in cases.into_iter().enumerate() {
        let (mut nma, mut ms) = (linked(B), 0);
        let mut out = Vec::new();
        nma.handle_attached(&mn(1), v4(1), &[A, B, C], Generation(7), at(0), &mut out);
        let mut asked = Vec::new();
        for answer in answers {
            if imported(&out).is_some() {
                break;
            }
            let (to, sequence, _) = request(&out);
            asked.push(to);
            ms += 1;
            out = match answer {
                Refuse(why) => signal(&mut nma, to, refusal(1, sequence, why), ms),
                Old => signal(&mut nma, to, transfer(1, sequence, context(1, 6, to)), ms),
                Silent => {
                    ms += 200;
                    timeout(&mut nma, ms)
                }
            };
        }
        assert_eq!(imported(&out), Some(&Err(end)), "case {number}");
        assert!(asked.len() <= 12, "case {number}");
        assert_eq!(asked[..], expected[..asked.len()], "case {number}");
        // Whatever happened, it is over in time.
        let mut steps = 0;
        while nma.poll_timeout() != Instant::FAR_FUTURE {
            let now = nma.poll_timeout();
            nma.handle_timeout(now, &mut out);
            steps += 1;
            assert!(steps < 100 && now <= at(60_000), "case {number}");
        }
        assert_empty(&nma);
    }
}

#[test]
fn busy_is_asked_again_within_the_time_of_the_candidate() {
    let mut nma = linked(B);
    let (_, sequence, _) = request(&attach(&mut nma, 1, &[A], 0));
    let mut asked_at = Vec::new();
    signal(&mut nma, A, refusal(1, sequence, Refusal::Busy), 1);
    loop {
        let now = nma.poll_timeout();
        let mut out = Vec::new();
        nma.handle_timeout(now, &mut out);
        if imported(&out).is_some() {
            assert_eq!(now, at(200));
            break;
        }
        assert_eq!(request(&out), (A, sequence, false), "the same request");
        asked_at.push(now.as_micros() / 1000);
        signal(&mut nma, A, refusal(1, sequence, Refusal::Busy), asked_at[asked_at.len() - 1]);
    }
    assert_eq!(asked_at, [21, 61, 141]);
}

/// RFC 4067 §3.2, §4: CT_REQUEST_RETRY 2 s, doubling, until CT_RETRY_MAX 15 s.
#[test]
fn who_did_not_answer_is_asked_again() {
    let mut nma = linked(B);
    let (_, first, _) = request(&attach(&mut nma, 1, &[A], 0));
    let out = timeout(&mut nma, 200);
    assert_eq!(imported(&out), Some(&Err(NoContext::Timeout)), "the hall need not wait longer");
    let mut asked_at = Vec::new();
    let mut last = first;
    while nma.poll_timeout() != Instant::FAR_FUTURE {
        let now = nma.poll_timeout();
        let mut out = Vec::new();
        nma.handle_timeout(now, &mut out);
        assert_eq!(imported(&out), None, "the hall has been told once");
        if out.iter().any(|o| matches!(o, Output::Send { signal: Signal::Request { .. }, .. })) {
            asked_at.push(now.as_micros() / 1000);
            last = request(&out).1;
        }
        if asked_at.len() == 2 {
            break;
        }
    }
    assert_eq!(asked_at, [2_200, 6_400]);
    // The answer to the very first request is as good as that to the last.
    assert_ne!(first, last);
    let out = signal(&mut nma, A, transfer(1, first, context(1, 4, A)), 6_500);
    let Some(Ok(got)) = imported(&out) else { panic!("{out:?}") };
    assert!(got.late);
}

#[test]
fn a_link_that_comes_up_ends_the_wait() {
    let (mut nma, mut out) = (mctx(B), Vec::new());
    let first = attach(&mut nma, 1, &[A], 0);
    assert_eq!(imported(&first), Some(&Err(NoContext::Unreachable)));
    assert_eq!(sends(&first), []);
    nma.handle_link_up(A, false, at(700), &mut out);
    assert_eq!(request(&out).0, A);
    out.clear();
    nma.handle_link_down(A, at(800), &mut out);
    assert_eq!(imported(&out), None);
    while nma.poll_timeout() != Instant::FAR_FUTURE {
        nma.handle_timeout(nma.poll_timeout(), &mut out);
    }
    assert_empty(&nma);
}

#[test]
fn one_transfer_per_node_at_a_time() {
    let mut nma = linked(B);
    attach(&mut nma, 1, &[A], 0);
    let mut out = Vec::new();
    let joined = nma.handle_attached(&mn(1), v6(1), &[A], Generation::NONE, at(1), &mut out);
    assert_eq!((joined, &out[..]), (Attach::Joined, &[][..]));
    // Another node with the same address: the newer one counts, and the old one is not forgotten
    // in silence.
    let out = {
        nma.handle_attached(&mn(2), v4(1), &[C], Generation::NONE, at(2), &mut out);
        out
    };
    assert_eq!(imported(&out), Some(&Err(NoContext::Superseded)));
    assert_eq!(sends(&out)[0], (A, Signal::Cancel { addr: v4(1).addr() }));
    assert_eq!(request(&out).0, C);
    assert_eq!(nma.active(), 1);
    nma.handle_left(&mn(2), at(3), &mut Vec::new());
    assert_empty(&nma);
}

/// The configured trust, at each of the four doors.
#[test]
fn only_what_an_anchor_may_claim() {
    let only = |anchor, pool: &str| Trust { anchor, may_claim: vec![pool.parse().unwrap()] };
    let trust = vec![only(A, "10.0.0.0/24"), only(B, "10.0.0.0/24")];
    let config = |own| MctxConfig::new(own, trust.clone());
    let mut pma = Mctx::new(config(A), 1);
    let not_authorised =
        |sequence| Signal::Refusal { addr: v4(1).addr(), sequence, why: Refusal::NotAuthorised };
    // An anchor that is not configured asks.
    let ask = |sequence| Signal::Request { prefix: v4(1), sequence, insist: true };
    assert_eq!(sends(&signal(&mut pma, C, ask(1), 0)), [(C, not_authorised(1))]);
    // The node has a prefix beside the one asked for that the asker may not claim.
    signal(&mut pma, B, ask(2), 0);
    let mut out = Vec::new();
    pma.reply_context(v4(1), B, 2, Ok(context(1, 4, A)), at(0), &mut out);
    assert_eq!(sends(&out), [(B, not_authorised(2))]);
    // It cannot be sent there either.
    let moved = pma.move_to(context(1, 4, A), B, at(0), &mut out);
    assert_eq!(moved, Err(MoveRefused::NotAuthorised));
    assert_empty(&pma);
    // A peer offers what it may not have.
    let mut nma = Mctx::new(config(B), 1);
    let out = signal(&mut nma, A, predictive(1, 3, context(1, 4, A)), 0);
    let failed = vec![(Part::Bindings, TransferStatus::NotAuthorised)];
    assert_eq!(sends(&out), [(A, Signal::Reply { addr: v4(1).addr(), failed })]);
    assert_eq!((nma.counters().not_authorised, nma.active()), (1, 0));
}

#[test]
fn a_context_on_its_way_to_another_is_a_referral_unless_insisted() {
    let mut pma = linked(A);
    let ask = |insist, sequence| Signal::Request { prefix: v4(1), sequence, insist };
    let give = |pma: &mut Mctx, to, sequence| {
        let mut out = Vec::new();
        pma.reply_context(v4(1), to, sequence, Ok(context(1, 4, A)), at(1), &mut out);
        out
    };
    signal(&mut pma, B, ask(false, 1), 0);
    give(&mut pma, B, 1);
    signal(&mut pma, C, ask(false, 2), 1);
    let out = give(&mut pma, C, 2);
    assert_eq!(sends(&out), [(C, refusal(1, 2, Refusal::Referral(B)))]);
    signal(&mut pma, C, ask(true, 3), 2);
    let out = give(&mut pma, C, 3);
    let superseded = Output::ExportEnded { mn: mn(1), to: B, how: ExportEnd::Superseded };
    assert_eq!(out[0], superseded);
    assert!(matches!(sends(&out)[..], [(C, Signal::Transfer(_))]));
    // The same request again: the cached CTD, without asking the hall.
    let out = signal(&mut pma, C, ask(true, 3), 3);
    assert!(matches!(sends(&out)[..], [(C, Signal::Transfer(_))]), "{out:?}");
    // If B has it after all, the node is not ours any more.
    let reply = || Signal::Reply { addr: v4(1).addr(), failed: vec![] };
    let out = signal(&mut pma, B, reply(), 4);
    assert!(matches!(
        out[..],
        [Output::ExportEnded { to: C, .. }, Output::Transferred { to: B, .. }]
    ));
    let out = signal(&mut pma, C, reply(), 5);
    assert!(matches!(out[..], [Output::Transferred { to: C, .. }]), "the last word");
    assert_empty(&pma);
}

/// RFC 4067 §2.5.3, §3.1: backoff, elapsed time from the first transmission, then CT_MAX_HANDOVER.
#[test]
fn an_unconfirmed_context_is_sent_again_and_kept() {
    let (mut pma, mut out) = (linked(A), Vec::new());
    pma.move_to(context(1, 4, A), B, at(1000), &mut out).unwrap();
    let mut sent = Vec::new();
    let ended = loop {
        for (_, signal) in sends(&out) {
            let Signal::Transfer(transfer) = signal else { panic!("{signal:?}") };
            sent.push(transfer.elapsed_ms);
        }
        let ended = out.iter().find(|output| matches!(output, Output::ExportEnded { .. }));
        if let Some(ended) = ended {
            break ended.clone();
        }
        out.clear();
        let now = pma.poll_timeout();
        pma.handle_timeout(now, &mut out);
    };
    assert_eq!(sent, [0, 2000, 6000]);
    assert_eq!(ended, Output::ExportEnded { mn: mn(1), to: B, how: ExportEnd::Expired });
    assert_empty(&pma);
    // A link that comes back does not wait for the timer.
    pma.move_to(context(1, 4, A), B, at(20_000), &mut out).unwrap();
    out.clear();
    pma.handle_link_down(B, at(20_100), &mut out);
    pma.handle_link_up(B, false, at(20_500), &mut out);
    assert!(matches!(sends(&out)[..], [(B, Signal::Transfer(_))]), "{out:?}");
}

/// RFC 4067 §2.5.4: CTDR with S = 0 names what failed; only that is sent again.
#[test]
fn only_the_part_that_failed_is_sent_again() {
    let (mut pma, mut nma) = (linked(A), linked(B));
    let (_, sequence, _) = request(&attach(&mut nma, 1, &[A], 0));
    signal(&mut pma, B, Signal::Request { prefix: v4(1), sequence, insist: false }, 1);
    let mut out = Vec::new();
    pma.reply_context(v4(1), B, sequence, Ok(context(1, 4, A)), at(1), &mut out);
    let Signal::Transfer(whole) = sends(&out).remove(0).1 else { panic!() };
    let broken = Transfer { attributes: AttributesPart::Broken, ..*whole };
    let out = signal(&mut nma, A, Signal::Transfer(Box::new(broken.clone())), 2);
    assert_eq!(imported(&out), None);
    let (_, ctdr) = sends(&out).remove(0);
    let out = signal(&mut pma, B, ctdr, 3);
    let Signal::Transfer(part) = sends(&out).remove(0).1 else { panic!() };
    assert_eq!(part.context, None);
    let out = signal(&mut nma, A, Signal::Transfer(part), 4);
    let Some(Ok(got)) = imported(&out) else { panic!("{out:?}") };
    assert_eq!((got.context.clone(), got.without_attributes), (context(1, 4, A), false));

    // If the rest never comes, the bindings are worth having.
    let mut nma = linked(B);
    let (_, sequence, _) = request(&attach(&mut nma, 1, &[A], 0));
    let broken = Transfer { sequence, ..broken };
    signal(&mut nma, A, Signal::Transfer(Box::new(broken)), 2);
    let out = timeout(&mut nma, 200);
    let Some(Ok(got)) = imported(&out) else { panic!("{out:?}") };
    assert!(got.without_attributes && got.context.attributes.is_empty());
}

#[test]
fn a_refused_context_stays_with_the_pma() {
    let (mut pma, mut out) = (linked(A), Vec::new());
    for (failed, retries) in [
        (vec![(Part::Bindings, TransferStatus::NotInstalled)], 0),
        (vec![(Part::Bindings, TransferStatus::GenerationOld)], 0),
        (vec![(Part::Bindings, TransferStatus::BadChecksum)], 3),
    ] {
        pma.move_to(context(1, 4, A), B, at(0), &mut out).unwrap();
        let reply = Signal::Reply { addr: v4(1).addr(), failed: failed.clone() };
        for _ in 0..retries {
            let out = signal(&mut pma, B, reply.clone(), 1);
            assert!(matches!(sends(&out)[..], [(B, Signal::Transfer(_))]), "{out:?}");
        }
        let out = signal(&mut pma, B, reply, 1);
        let how = ExportEnd::Refused(failed[0].1);
        assert_eq!(out, [Output::ExportEnded { mn: mn(1), to: B, how }]);
        assert_empty(&pma);
    }
}

/// The nMA has restarted: it knows nothing of what it asked, and says so.
#[test]
fn a_context_that_nobody_waits_for_is_cancelled() {
    let mut nma = linked(B);
    let out = signal(&mut nma, A, transfer(1, 5, context(1, 4, A)), 0);
    assert_eq!(sends(&out), [(A, Signal::Cancel { addr: v4(1).addr() })]);
    assert_empty(&nma);
}

#[test]
fn tables_have_their_limits() {
    let mut nma = linked(B);
    let many: Trust = Trust { anchor: A, may_claim: vec!["10.0.0.0/8".parse().unwrap()] };
    nma.set_config(MctxConfig::new(B, vec![many]));
    let nth = |n: u32| Context {
        mn: MnId::new(&format!("m{n}")).unwrap(),
        prefixes: vec![ContextPrefix {
            prefix: Prefix::v4(0x0a00_0000 + n, 32).unwrap(),
            home: None,
            lifetime_s: None,
        }],
        ..context(1, 1, A)
    };
    let limit = u32::try_from(PREDICTED_MAX).unwrap();
    let mut last = Vec::new();
    for n in 0..=limit {
        last = signal(&mut nma, A, predictive(1, n, nth(n)), 0);
    }
    assert_eq!(nma.predicted.len(), PREDICTED_MAX);
    let failed = vec![(Part::Bindings, TransferStatus::NoResources)];
    assert_eq!(sends(&last), [(A, Signal::Reply { addr: v4(1).addr(), failed })]);
    // A newer one of a node that is there already finds its place.
    let out =
        signal(&mut nma, A, predictive(1, 7, Context { generation: Generation(9), ..nth(7) }), 0);
    assert_eq!(out, []);
    timeout(&mut nma, 10_000);
    assert_empty(&nma);
    assert_eq!(nma.finished.len(), FINISHED_MAX);
}

#[test]
fn sequence_numbers_rest_for_seven_seconds() {
    let mut mctx = mctx(A);
    let mut seen = BTreeSet::new();
    for i in 0..3000 {
        assert!(seen.insert(mctx.next_sequence(at(i))));
    }
    assert!(mctx.recent_sequences.len() <= SEQUENCES_MAX);
    mctx.next_sequence(at(20_000));
    assert_eq!(mctx.recent_sequences.len(), 1);
}

// R_XC

fn binding(n: u8, generation: u32) -> Binding {
    Binding {
        prefix: v4(n),
        mn: mn(n),
        anchor: A,
        fe_e: Locator::default(),
        home: Some(A),
        generation: Generation(generation),
        lifetime: Lifetime::WhileAttached,
    }
}

fn controller() -> Mctx {
    Mctx::new(MctxConfig { is_controller: true, ..MctxConfig::new(C, trust_all()) }, 3)
}

fn batches(out: &[Output]) -> Vec<ReportBatch> {
    let batch = |(_, signal)| match signal {
        Signal::Reports(batch) => Some(batch),
        _ => None,
    };
    sends(out).into_iter().filter_map(batch).collect()
}

#[test]
fn reports_are_synchronised_then_incremental() {
    let (mut anchor, mut controller, mut out) = (mctx(A), controller(), Vec::new());
    for n in 0..200 {
        anchor.report(v4(n), Some(binding(n, 1)), at(0), &mut out);
    }
    assert_eq!(out, [], "nobody listens");
    anchor.handle_link_up(C, true, at(1), &mut out);
    controller.handle_link_up(A, false, at(1), &mut Vec::new());
    let sync = batches(&out);
    assert_eq!(
        sync.iter().map(|b| (b.batch, b.reports.len(), b.sync_end)).collect::<Vec<_>>(),
        [(1, 128, false), (2, 72, true)]
    );
    let mut heard = Vec::new();
    for batch in sync {
        heard.extend(signal(&mut controller, A, Signal::Reports(batch), 2));
    }
    assert_eq!(heard[0], Output::SyncStart { from: A });
    assert!(heard.contains(&Output::SyncEnd { from: A }));
    for (_, ack) in sends(&heard) {
        assert_eq!(signal(&mut anchor, C, ack, 3), []);
    }
    assert!(anchor.reporters()[0].synchronised);
    assert_eq!(anchor.poll_timeout(), Instant::FAR_FUTURE);
    // A change leaves at once; a removal says what is removed.
    out.clear();
    anchor.report(v4(7), Some(binding(7, 2)), at(4), &mut out);
    anchor.report(v4(7), None, at(4), &mut out);
    let changes = batches(&out);
    assert_eq!(changes[0].reports, [Report { binding: binding(7, 2), present: true }]);
    assert_eq!(changes[1].reports, [Report { binding: binding(7, 2), present: false }]);
    for batch in changes {
        heard = signal(&mut controller, A, Signal::Reports(batch), 5);
    }
    let Signal::ReportAck { epoch, batch } = sends(&heard)[0].1 else { panic!("{heard:?}") };
    signal(&mut anchor, C, Signal::ReportAck { epoch, batch }, 6);
    assert!(anchor.reporter.views()[0].unacknowledged_batches == 0);
}

#[test]
fn a_storm_without_acks_keeps_only_the_newest_state() {
    let (mut anchor, mut out) = (mctx(A), Vec::new());
    anchor.handle_link_up(C, true, at(0), &mut out);
    for generation in 0..10_000 {
        anchor.report(v4(1), Some(binding(1, generation)), at(1), &mut out);
    }
    assert_eq!(batches(&out).len(), 64, "the window");
    let view = anchor.reporters()[0];
    assert_eq!((view.unacknowledged_batches, view.waiting_changes), (64, 1));
    out.clear();
    anchor.handle_timeout(anchor.poll_timeout(), &mut out);
    let newest = Report { binding: binding(1, 9_999), present: true };
    assert!(batches(&out).iter().skip(1).all(|batch| batch.reports == [newest.clone()]));
    assert_eq!(anchor.reporters()[0].unacknowledged_batches, 64);
}

#[test]
fn reports_in_another_anchors_name_are_not_believed() {
    let (mut controller, mut anchor) = (controller(), mctx(B));
    controller.handle_link_up(A, false, at(0), &mut Vec::new());
    let reports = vec![
        Report { binding: Binding { anchor: B, ..binding(1, 1) }, present: true },
        Report {
            binding: Binding { prefix: "11.0.0.0/8".parse().unwrap(), ..binding(2, 1) },
            present: true,
        },
        Report { binding: binding(3, 1), present: true },
    ];
    let batch = ReportBatch { epoch: 5, batch: 1, reports, sync_end: false };
    let out = signal(&mut controller, A, Signal::Reports(batch.clone()), 0);
    let reports = vec![Report { binding: binding(3, 1), present: true }];
    assert!(out.contains(&Output::Reported { from: A, reports }));
    assert_eq!(controller.report_counters().reports_not_authorised, 2);
    assert_eq!(signal(&mut anchor, A, Signal::Reports(batch), 0), [], "no controller");
}

// The simulation

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// A hall that holds nodes, and answers.
struct Site {
    mctx: Mctx,
    /// Generation of each node that is here.
    held: BTreeMap<u8, u32>,
    /// Where nodes went.
    went: BTreeMap<u8, AnchorId>,
    /// Attaches without an outcome so far.
    pending: BTreeMap<MnId, Instant>,
    /// Contexts given away without an outcome so far.
    moving: BTreeSet<MnId>,
}

impl Site {
    fn new(own: AnchorId, seed: u64) -> Self {
        Self {
            mctx: Mctx::new(MctxConfig::new(own, trust_all()), seed),
            held: BTreeMap::new(),
            went: BTreeMap::new(),
            pending: BTreeMap::new(),
            moving: BTreeSet::new(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Weather {
    loss: u64,
    repeat: u64,
    delay_us: u64,
    restart: u64,
    flap: u64,
    bgp_late: u64,
}

#[derive(Default, Debug)]
struct Tally {
    attached: u64,
    good: u64,
    late: u64,
    bad: BTreeMap<&'static str, u64>,
    transferred: u64,
    ended: u64,
}

struct Sim {
    random: Random,
    weather: Weather,
    now: Instant,
    sites: BTreeMap<AnchorId, Site>,
    up: BTreeSet<(AnchorId, AnchorId)>,
    /// (when, order) → (from, to, octets).
    flight: BTreeMap<(Instant, u64), (AnchorId, AnchorId, Vec<u8>)>,
    sent: u64,
    /// Highest generation of each node anywhere, and where: what BGP would tell.
    newest: BTreeMap<u8, (u32, AnchorId)>,
    /// (node, pMA, nMA) of each installation.
    installed: BTreeSet<(MnId, AnchorId, AnchorId)>,
    tally: Tally,
}

fn number(mn: &MnId) -> u8 {
    mn.as_str()[2..].parse().unwrap()
}

fn number_of(prefix: Prefix) -> u8 {
    match prefix {
        Prefix::V4 { addr, .. } => (addr & 0xff) as u8,
        // v6(12) is written ::12, the same digits in hexadecimal.
        Prefix::V6 { addr, .. } => format!("{:x}", addr & 0xff).parse().unwrap(),
    }
}

impl Sim {
    fn new(seed: u64, weather: Weather) -> Self {
        let mut sim = Self {
            random: Random(seed),
            weather,
            now: at(1),
            sites: [A, B, C].map(|id| (id, Site::new(id, seed ^ u64::from(id.0)))).into(),
            up: BTreeSet::new(),
            flight: BTreeMap::new(),
            sent: 0,
            newest: BTreeMap::new(),
            installed: BTreeSet::new(),
            tally: Tally::default(),
        };
        for (a, b) in [(A, B), (A, C), (B, C)] {
            sim.link(a, b, true);
        }
        for n in 0..4 {
            let home = [A, B, C][usize::from(n) % 3];
            sim.sites.get_mut(&home).unwrap().held.insert(n, 1);
            sim.newest.insert(n, (1, home));
        }
        sim
    }

    fn with<R>(
        &mut self,
        id: AnchorId,
        f: impl FnOnce(&mut Site, Instant, &mut Vec<Output>) -> R,
    ) -> R {
        let mut out = Vec::new();
        let now = self.now;
        let result = f(self.sites.get_mut(&id).unwrap(), now, &mut out);
        self.carry_out(id, out);
        result
    }

    fn link(&mut self, a: AnchorId, b: AnchorId, up: bool) {
        let changed = if up { self.up.insert((a, b)) } else { self.up.remove(&(a, b)) };
        if !changed {
            return;
        }
        self.flight.retain(|_, (from, to, _)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
        for (own, peer) in [(a, b), (b, a)] {
            self.with(own, |site, now, out| match up {
                true => site.mctx.handle_link_up(peer, false, now, out),
                false => site.mctx.handle_link_down(peer, now, out),
            });
        }
    }

    fn carry_out(&mut self, id: AnchorId, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send { to, signal } => self.send(id, to, &signal),
                Output::Imported { mn, result, .. } => self.imported(id, &mn, result),
                Output::Predicted { .. } => {}
                Output::ExportWanted { prefix, to, sequence } => {
                    let n = number_of(prefix);
                    self.with(id, |site, now, out| {
                        let answer = match (site.held.get(&n), site.went.get(&n)) {
                            (Some(&generation), _) => Ok(context(n, generation, id)),
                            (None, Some(&went)) => Err(Refusal::Referral(went)),
                            (None, None) => Err(Refusal::Unknown),
                        };
                        site.mctx.reply_context(prefix, to, sequence, answer, now, out);
                    });
                }
                Output::Transferred { mn, to, .. } => {
                    let known = self.installed.contains(&(mn.clone(), id, to));
                    assert!(known, "{mn} released by {id} before {to} had it");
                    self.tally.transferred += 1;
                    let site = self.sites.get_mut(&id).unwrap();
                    site.moving.remove(&mn);
                    site.held.remove(&number(&mn));
                    site.went.insert(number(&mn), to);
                }
                Output::ExportEnded { mn, .. } => {
                    self.tally.ended += 1;
                    self.sites.get_mut(&id).unwrap().moving.remove(&mn);
                }
                Output::SyncStart { .. } | Output::Reported { .. } | Output::SyncEnd { .. } => {
                    panic!("no controller here");
                }
            }
        }
    }

    fn imported(&mut self, id: AnchorId, mn: &MnId, result: Result<Imported, NoContext>) {
        let n = number(mn);
        let site = self.sites.get_mut(&id).unwrap();
        let late = matches!(&result, Ok(imported) if imported.late);
        let was_pending = site.pending.remove(mn).is_some();
        assert!(was_pending || late, "{mn} at {id}: an outcome that nobody waits for");
        let newest = self.newest.entry(n).or_insert((0, id));
        let generation = match &result {
            Ok(imported) => {
                assert_eq!(imported.context.prefixes.len(), 2);
                assert_eq!(imported.context.attributes, [(7, vec![n; 3])]);
                self.installed.insert((mn.clone(), imported.from, id));
                if late {
                    self.tally.late += 1
                } else {
                    self.tally.good += 1
                }
                let claimed = site.held.get(&n).copied().unwrap_or(0);
                claimed.max(imported.context.generation.0 + 1)
            }
            Err(reason) => {
                let label: &'static str = match reason {
                    NoContext::NoCandidate => "no candidate",
                    NoContext::Unknown => "unknown",
                    NoContext::Timeout => "timeout",
                    NoContext::Unreachable => "unreachable",
                    NoContext::NotAuthorised => "not authorised",
                    NoContext::GenerationOld => "generation old",
                    NoContext::TableFull => "table full",
                    NoContext::Superseded => "superseded",
                };
                *self.tally.bad.entry(label).or_default() += 1;
                newest.0 + 1
            }
        };
        site.held.insert(n, generation);
        site.went.remove(&n);
        *newest = (*newest).max((generation, id));
        if result.is_ok() {
            self.with(id, |site, now, out| {
                site.mctx.handle_installed(&self::mn(n), Ok(()), now, out);
            });
        }
    }

    fn send(&mut self, from: AnchorId, to: AnchorId, signal: &Signal) {
        if !self.up.contains(&(from.min(to), from.max(to)))
            || self.random.percent(self.weather.loss)
        {
            return;
        }
        let mut octets = Vec::new();
        signal_message(signal, self.now).encode(&mut octets).unwrap();
        let copies = if self.random.percent(self.weather.repeat) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = Duration::from_micros(100 + self.random.below(self.weather.delay_us));
            self.sent += 1;
            self.flight.insert((self.now + delay, self.sent), (from, to, octets.clone()));
        }
    }

    /// Time passes until `until`.
    fn run(&mut self, until: Instant) {
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 20_000, "it does not come to rest");
            let delivery = self.flight.keys().next().map_or(Instant::FAR_FUTURE, |(at, _)| *at);
            let timer = self.sites.values().map(|s| s.mctx.poll_timeout()).min().unwrap();
            let next = delivery.min(timer);
            if next > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(next);
            if delivery <= timer {
                let (_, (from, to, octets)) = self.flight.pop_first().unwrap();
                let (message, len) = next_message(&octets).unwrap().unwrap();
                assert_eq!(len, octets.len());
                let Ok(Incoming::Signal(signal)) = understand(message, self.now) else {
                    panic!("a signal stays one");
                };
                self.with(to, |site, now, out| site.mctx.handle_signal(from, signal, now, out));
            } else {
                for id in [A, B, C] {
                    self.with(id, |site, now, out| site.mctx.handle_timeout(now, out));
                }
            }
        }
    }

    /// The node appears at `id`.
    fn attach(&mut self, n: u8, id: AnchorId) {
        if self.sites[&id].held.contains_key(&n) {
            return;
        }
        let (generation, last) = self.newest[&n];
        // BGP may be late: the generation that is known, and the order of candidates.
        let late = self.random.percent(self.weather.bgp_late);
        let known = if late { 0 } else { generation };
        let mut candidates = vec![last, A, B, C];
        if self.random.percent(30) {
            candidates.rotate_left(1);
        }
        self.tally.attached += 1;
        self.with(id, |site, now, out| {
            let known = Generation(known);
            let attach = site.mctx.handle_attached(&mn(n), v4(n), &candidates, known, now, out);
            if attach == Attach::Started {
                site.pending.insert(mn(n), now);
            } else {
                assert!(
                    site.pending.contains_key(&mn(n)) || site.mctx.imports.contains_key(&mn(n))
                );
            }
        });
    }

    /// The node is told to go to `to`, by the anchor that holds it.
    fn predict(&mut self, n: u8, to: AnchorId) {
        let holder = [A, B, C].into_iter().find(|id| self.sites[id].held.contains_key(&n));
        let Some(holder) = holder.filter(|holder| *holder != to) else { return };
        self.with(holder, |site, now, out| {
            let context = context(n, site.held[&n], holder);
            site.mctx.move_to(context, to, now, out).unwrap();
        });
        self.sites.get_mut(&holder).unwrap().moving.insert(mn(n));
    }

    fn restart(&mut self, id: AnchorId, keeps: bool) {
        for other in [A, B, C].into_iter().filter(|other| *other != id) {
            self.link(id.min(other), id.max(other), false);
        }
        let seed = self.random.below(u64::MAX >> 33);
        let old = self.sites.insert(id, Site::new(id, seed)).unwrap();
        if keeps {
            let site = self.sites.get_mut(&id).unwrap();
            (site.held, site.went) = (old.held, old.went);
        }
    }

    fn others_up(&mut self) {
        for (a, b) in [(A, B), (A, C), (B, C)] {
            self.link(a, b, true);
        }
    }
}

fn simulate(seed: u64, weather: Weather) -> Tally {
    let mut sim = Sim::new(seed, weather);
    for _ in 0..12 {
        let (n, id) = (sim.random.below(4) as u8, [A, B, C][sim.random.below(3) as usize]);
        if sim.random.percent(30) {
            sim.predict(n, id);
            let wait = Duration::from_micros(sim.random.below(50_000));
            sim.run(sim.now + wait);
        }
        sim.attach(n, id);
        if sim.random.percent(sim.weather.restart) {
            let wait = Duration::from_micros(sim.random.below(5_000));
            sim.run(sim.now + wait);
            let (id, keeps) = ([A, B, C][sim.random.below(3) as usize], sim.random.percent(50));
            sim.restart(id, keeps);
        }
        if sim.random.percent(sim.weather.flap) {
            sim.link(A, B, false);
        }
        // From a storm to moves with time between them.
        let wait = [2_000, 60_000, 800_000][sim.random.below(3) as usize];
        let wait = Duration::from_micros(sim.random.below(wait));
        sim.run(sim.now + wait);
        sim.others_up();
    }
    // Nothing of the weather ends here; only the moves do.
    sim.run(sim.now + Duration::from_secs(60));
    for site in sim.sites.values() {
        assert_eq!(site.pending, BTreeMap::new(), "seed {seed}: an attach without outcome");
        assert_eq!(site.moving, BTreeSet::new(), "seed {seed}: a move without outcome");
        assert_empty(&site.mctx);
        assert_eq!(site.mctx.poll_timeout(), Instant::FAR_FUTURE);
    }
    if weather.loss + weather.restart + weather.flap == 0 {
        for (n, newest) in &sim.newest {
            let holders: Vec<(u32, AnchorId)> =
                sim.sites.iter().filter_map(|(id, site)| Some((*site.held.get(n)?, *id))).collect();
            assert_eq!(holders, [*newest], "seed {seed}: mn{n} is at one anchor, the newest");
        }
    }
    sim.tally
}

fn season(seeds: std::ops::Range<u64>, weather: Weather) -> Tally {
    let mut sum = Tally::default();
    for seed in seeds {
        let tally = simulate(seed, weather);
        sum.attached += tally.attached;
        sum.good += tally.good;
        sum.late += tally.late;
        sum.transferred += tally.transferred;
        sum.ended += tally.ended;
        for (label, n) in tally.bad {
            *sum.bad.entry(label).or_default() += n;
        }
    }
    sum
}

const CALM: Weather =
    Weather { loss: 0, repeat: 0, delay_us: 900, restart: 0, flap: 0, bgp_late: 0 };

#[test]
fn simulation_calm() {
    let tally = season(0..1_000, CALM);
    assert!(tally.bad.is_empty() && tally.late == 0 && tally.good > 5000, "{tally:?}");
}

#[test]
fn simulation_lossy() {
    let weather = Weather { loss: 20, repeat: 20, delay_us: 30_000, bgp_late: 50, ..CALM };
    let tally = season(1_000..2_500, weather);
    assert!(tally.good > 1000 && tally.late > 10 && tally.ended > 10, "{tally:?}");
}

#[test]
fn simulation_restarts() {
    let weather =
        Weather { loss: 5, repeat: 5, delay_us: 5_000, restart: 30, flap: 20, bgp_late: 50 };
    let tally = season(3_000..4_500, weather);
    assert!(tally.good > 1000 && tally.bad.contains_key("unreachable"), "{tally:?}");
}

// R_XC under the same weather

/// An anchor and a controller; the controller's hall does what a location database does.
#[test]
fn simulation_of_reports() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let (mut anchor, mut listener) = (mctx(A), controller());
        let mut view: BTreeMap<Prefix, (Binding, bool)> = BTreeMap::new();
        let mut flight: BTreeMap<(Instant, u64), (bool, Signal)> = BTreeMap::new();
        let (mut up, mut sent, mut now) = (false, 0, at(0));
        // Batches are taken in order only, so reordering (which TLS does not do) makes it slow.
        let (loss, end) = (random.below(40), at(20_000));
        let mut next_change = now;
        while now < at(3_600_000) {
            let delivery = flight.keys().next().map_or(Instant::FAR_FUTURE, |(at, _)| *at);
            let change = if now < end { next_change } else { Instant::FAR_FUTURE };
            let (mut from_anchor, mut from_listener) = (Vec::new(), Vec::new());
            now = delivery.min(change).min(anchor.poll_timeout());
            if now == Instant::FAR_FUTURE {
                break;
            }
            if now == delivery {
                let (_, (to_anchor, signal)) = flight.pop_first().unwrap();
                match to_anchor {
                    true => anchor.handle_signal(C, signal, now, &mut from_anchor),
                    false => listener.handle_signal(A, signal, now, &mut from_listener),
                }
            } else if now == change {
                for _ in 0..=random.below(300) {
                    let n = random.below(255) as u8;
                    let generation = random.below(1000) as u32;
                    let present = random.percent(60).then(|| binding(n, generation));
                    anchor.report(v4(n), present, now, &mut from_anchor);
                }
                // The last changes come after the last synchronisation.
                if !up || (random.percent(10) && now < at(15_000)) {
                    flight.clear();
                    anchor.handle_link_down(C, now, &mut from_anchor);
                    listener.handle_link_down(A, now, &mut from_listener);
                    if random.percent(30) {
                        (listener, view) = (controller(), BTreeMap::new());
                    }
                    up = true;
                    from_anchor.clear();
                    anchor.handle_link_up(C, true, now, &mut from_anchor);
                    listener.handle_link_up(A, false, now, &mut from_listener);
                }
                next_change = now + Duration::from_micros(random.below(1_000_000));
            } else {
                anchor.handle_timeout(now, &mut from_anchor);
            }
            for output in &from_listener {
                match output {
                    Output::SyncStart { .. } => {
                        view.values_mut().for_each(|(_, stale)| *stale = true)
                    }
                    Output::SyncEnd { .. } => view.retain(|_, (_, stale)| !*stale),
                    Output::Reported { reports, .. } => {
                        for Report { binding, present } in reports {
                            match present {
                                true => view.insert(binding.prefix, (binding.clone(), false)),
                                false => view.remove(&binding.prefix),
                            };
                        }
                    }
                    _ => {}
                }
            }
            for (to_anchor, out) in [(false, from_anchor), (true, from_listener)] {
                for (_, signal) in sends(&out) {
                    for _ in 0..1 + random.below(2) {
                        if !random.percent(loss) {
                            sent += 1;
                            let delay = Duration::from_micros(100 + random.below(20_000));
                            flight.insert((now + delay, sent), (to_anchor, signal.clone()));
                        }
                    }
                }
            }
        }
        assert!(now == Instant::FAR_FUTURE, "seed {seed}: it does not come to rest");
        let told: BTreeMap<Prefix, Binding> =
            view.into_iter().map(|(prefix, (binding, _))| (prefix, binding)).collect();
        assert!(told == anchor.reporter.current, "seed {seed}: the controller's view is not true");
        let expected = ReporterView {
            controller: C,
            synchronised: true,
            unacknowledged_batches: 0,
            waiting_changes: 0,
            unacknowledged_removals: 0,
        };
        assert_eq!(anchor.reporters(), [expected], "seed {seed}");
    }
}

/// Changed octets of every kind of signal, into a room with something in every table.
#[test]
fn garbage_changes_nothing_that_a_peer_may_not_change() {
    let addr = v4(1).addr();
    let reports = vec![Report { binding: binding(1, 1), present: true }];
    let good = [
        Signal::Request { prefix: v4(3), sequence: 5, insist: false },
        transfer(1, 5, context(1, 4, A)),
        predictive(2, 6, context(2, 4, A)),
        refusal(1, 5, Refusal::Referral(C)),
        Signal::Reply { addr, failed: vec![(Part::Attributes, TransferStatus::Incomplete)] },
        Signal::Cancel { addr },
        Signal::Reports(ReportBatch { epoch: 1, batch: 1, reports, sync_end: true }),
        Signal::ReportAck { epoch: 1, batch: 1 },
    ];
    let mut taken = 0;
    for good in good {
        let mut octets = Vec::new();
        signal_message(&good, at(0)).encode(&mut octets).unwrap();
        let mut room = linked(B);
        room.set_config(MctxConfig { is_controller: true, ..MctxConfig::new(B, trust_all()) });
        room.handle_link_up(C, true, at(0), &mut Vec::new());
        attach(&mut room, 1, &[A, C], 0);
        room.move_to(context(3, 2, B), A, at(0), &mut Vec::new()).unwrap();
        let mut ms = 0;
        for at in 0..octets.len() {
            for value in 0..=u8::MAX {
                let mut changed = octets.clone();
                changed[at] = value;
                let message = next_message(&changed).ok().flatten();
                let understood = message.and_then(|(m, _)| understand(m, Instant::ZERO).ok());
                if let Some(Incoming::Signal(changed)) = understood {
                    taken += 1;
                    ms += 1;
                    let out = signal(&mut room, A, changed, ms);
                    assert!(out.len() < 20, "{out:?}");
                    for output in out {
                        if let Output::ExportWanted { prefix, to, sequence } = output {
                            let (mut out, now) = (Vec::new(), self::at(ms));
                            let why = Err(Refusal::Unknown);
                            room.reply_context(prefix, to, sequence, why, now, &mut out);
                        }
                    }
                }
            }
        }
        assert!(room.active() < 2000, "{}", room.active());
        for _ in 0..10_000 {
            match room.poll_timeout() {
                Instant::FAR_FUTURE => break,
                now if now > self::at(ms + 100_000) => break, // only the controller's silence is left
                now => room.handle_timeout(now, &mut Vec::new()),
            }
        }
        assert_empty(&room);
    }
    assert!(taken > 10_000, "{taken}");
}
