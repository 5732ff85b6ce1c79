//! [`Signal`] ↔ [`Message`]: which RFC 4067 message says what.
//!
//! A plain host shares no key with its anchor, so no CTAR ever comes and there is no key to send: a
//! CT-Req with token 0 is answered by a CTD, and a PCTD carries a key of length 0. What authorises
//! a transfer is the certificate of the asking anchor and the configured trust, not a token.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::types::seam::{Context, ContextPrefix};
use crate::types::transfer::{
    AttributesPart, Part, Refusal, Report, ReportBatch, Signal, Transfer, TransferStatus,
};
use crate::types::transient::PathEnd;
use crate::types::{
    AnchorId, Binding, Claim, Instant, Lifetime, Locator, Prefix, limits::PREFIXES_PER_NODE_MAX,
};
use crate::wire::WireError;
use crate::wire::cxtp::profile::{
    AttributesPiece, BatchBlock, BindingBlock, FPT_ATTRIBUTES, FPT_BATCH, FPT_BATCH_ACK,
    FPT_BINDING, FPT_HELLO, FPT_NEWER, FPT_PATH_END, FPT_PATH_KEY, FPT_REFUSAL, FPT_REPORT,
    FPT_TRANSFER, HelloBlock, NewerBlock, PROFILE_VERSION, PathEndBlock, PathKeyBlock,
    RefusalBlock, RequestBlock, TransferBlock,
};
use crate::wire::cxtp::{ALGORITHM_HMAC_SHA1, Block, FeatureStatus, Message, RequestBlocks, Token};

/// The MN field of a message that is about no node.
const NO_NODE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What a peer says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub anchor: AnchorId,
    pub role: super::Role,
    pub profile: u8,
    /// `None`: it holds no packets.
    pub path_end: Option<PathEnd>,
}

/// A message, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Hello(Hello),
    Keepalive,
    Signal(Signal),
    /// Well-formed, but not for this interface (CTAR, CTAA belong between node and router), or a
    /// CTD with nothing in it that we know.
    Foreign,
}

pub fn hello_message(anchor: AnchorId, role: super::Role, path_end: Option<PathEnd>) -> Message {
    let block = HelloBlock {
        anchor,
        is_anchor: role.is_anchor(),
        is_controller: role.is_controller(),
        profile: PROFILE_VERSION,
    };
    let path_end = path_end.map(|end| PathEndBlock(end).encode());
    node_less(std::iter::once(block.encode()).chain(path_end).collect())
}

pub fn keepalive_message() -> Message {
    Message::Ctdr { success: true, mn: NO_NODE, statuses: Vec::new() }
}

fn node_less(blocks: Vec<Block>) -> Message {
    Message::Ctd { acknowledge: false, elapsed_ms: 0, mn: NO_NODE, blocks }
}

fn status_code(status: TransferStatus) -> u8 {
    match status {
        TransferStatus::Ok => 0,
        TransferStatus::BadChecksum => 0x01, // RFC 4067 §4
        TransferStatus::Unknown => 0x80,
        TransferStatus::NotAuthorised => 0x81,
        TransferStatus::GenerationOld => 0x82,
        TransferStatus::Busy => 0x83,
        TransferStatus::NoResources => 0x84,
        TransferStatus::Malformed => 0x85,
        TransferStatus::Incomplete => 0x86,
        TransferStatus::NotInstalled => 0x87,
        TransferStatus::Referral => 0x88,
        TransferStatus::Other(code) => code,
    }
}

fn status_of(code: u8) -> TransferStatus {
    match code {
        0 => TransferStatus::Ok,
        0x01 => TransferStatus::BadChecksum,
        0x80 => TransferStatus::Unknown,
        0x81 => TransferStatus::NotAuthorised,
        0x82 => TransferStatus::GenerationOld,
        0x83 => TransferStatus::Busy,
        0x84 => TransferStatus::NoResources,
        0x85 => TransferStatus::Malformed,
        0x86 => TransferStatus::Incomplete,
        0x87 => TransferStatus::NotInstalled,
        0x88 => TransferStatus::Referral,
        code => TransferStatus::Other(code),
    }
}

/// The message that says this. Reports carry remaining lifetimes, hence `now`.
pub fn signal_message(signal: &Signal, now: Instant) -> Message {
    match signal {
        Signal::Request { prefix, sequence, insist } => {
            let block = RequestBlock { prefix_len: prefix.len(), insist: *insist }.encode();
            Message::CtReq {
                mn: prefix.addr(),
                sequence: *sequence,
                token: Token::NONE,
                requests: RequestBlocks::new(&[block]),
            }
        }
        Signal::Transfer(transfer) => transfer_message(transfer),
        Signal::Refusal { addr, sequence, why } => {
            let (status, referral) = match *why {
                Refusal::Unknown => (TransferStatus::Unknown, None),
                Refusal::NotAuthorised => (TransferStatus::NotAuthorised, None),
                Refusal::Busy => (TransferStatus::Busy, None),
                Refusal::Referral(anchor) => (TransferStatus::Referral, Some(anchor)),
            };
            let block = RefusalBlock { status: status_code(status), sequence: *sequence, referral };
            let blocks = vec![block.encode()];
            Message::Ctd { acknowledge: false, elapsed_ms: 0, mn: *addr, blocks }
        }
        Signal::Reply { addr, failed } => {
            let entry = |&(part, status): &(Part, TransferStatus)| {
                let fpt = match part {
                    Part::Bindings => FPT_BINDING,
                    Part::Attributes => FPT_ATTRIBUTES,
                };
                FeatureStatus { fpt, status: status_code(status) }
            };
            let statuses = failed.iter().map(entry).collect();
            Message::Ctdr { success: failed.is_empty(), mn: *addr, statuses }
        }
        Signal::Cancel { addr } => Message::Ctc { mn: *addr },
        Signal::Reports(batch) => {
            let head =
                BatchBlock { epoch: batch.epoch, batch: batch.batch, sync_end: batch.sync_end };
            let mut blocks = vec![head.encode(FPT_BATCH)];
            blocks.extend(batch.reports.iter().map(|report| report_block(report, now)));
            node_less(blocks)
        }
        Signal::ReportAck { epoch, batch } => {
            let ack = BatchBlock { epoch: *epoch, batch: *batch, sync_end: false };
            node_less(vec![ack.encode(FPT_BATCH_ACK)])
        }
        Signal::Newer { prefix, claim } => {
            let Claim { generation, anchor } = *claim;
            let block = NewerBlock { prefix_len: prefix.len(), generation, anchor };
            let blocks = vec![block.encode()];
            Message::Ctd { acknowledge: false, elapsed_ms: 0, mn: prefix.addr(), blocks }
        }
    }
}

fn transfer_message(transfer: &Transfer) -> Message {
    let mut blocks = vec![TransferBlock { sequence: transfer.sequence }.encode()];
    if let Some(context) = &transfer.context {
        blocks.extend(context.prefixes.iter().map(|prefix| {
            BindingBlock {
                mn: context.mn.clone(),
                prefix: prefix.prefix,
                generation: context.generation,
                anchor: context.anchor,
                home: prefix.home,
                fe_e: Locator::default(),
                lifetime_s: prefix.lifetime_s,
                gone: false,
            }
            .encode(FPT_BINDING)
        }));
        blocks.extend(context.path.map(|key| PathKeyBlock(key).encode()));
    }
    match &transfer.attributes {
        AttributesPart::Absent | AttributesPart::Broken => {}
        // `mctx` refuses contexts whose attributes are too large before they get here.
        AttributesPart::Whole(all) => {
            blocks.extend(AttributesPiece::encode_all(all).unwrap_or_default());
        }
    }
    let (elapsed_ms, mn) = (transfer.elapsed_ms, transfer.addr);
    if transfer.predictive {
        let (algorithm, key) = (ALGORITHM_HMAC_SHA1, Vec::new());
        Message::Pctd { acknowledge: true, elapsed_ms, mn, algorithm, key, blocks }
    } else {
        Message::Ctd { acknowledge: true, elapsed_ms, mn, blocks }
    }
}

fn report_block(report: &Report, now: Instant) -> Block {
    let binding = &report.binding;
    let lifetime_s = binding.lifetime.remaining(now).map(ceil_s);
    BindingBlock {
        mn: binding.mn.clone(),
        prefix: binding.prefix,
        generation: binding.generation,
        anchor: binding.anchor,
        home: binding.home,
        fe_e: binding.fe_e,
        lifetime_s,
        gone: !report.present,
    }
    .encode(FPT_REPORT)
}

/// Whole seconds, rounded up: a lease does not end at the controller before it ends at the anchor.
fn ceil_s(left: Duration) -> u32 {
    u32::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// What a message means. An error: well-framed, but its blocks are not what their profile says.
pub fn understand(message: Message, now: Instant) -> Result<Incoming, WireError> {
    Ok(match message {
        Message::Ctar { .. } | Message::Ctaa { .. } => Incoming::Foreign,
        Message::Ctdr { success: true, mn, .. } if mn.is_unspecified() => Incoming::Keepalive,
        Message::Ctdr { success, mn, statuses } => {
            Incoming::Signal(Signal::Reply { addr: mn, failed: failed_parts(success, &statuses) })
        }
        Message::Ctc { mn } => Incoming::Signal(Signal::Cancel { addr: mn }),
        Message::CtReq { mn, sequence, token: _, requests } => {
            let block = match requests.iter().find(|block| block.fpt == FPT_BINDING) {
                Some(block) => RequestBlock::decode(&block)?,
                None => RequestBlock { prefix_len: Prefix::host(mn).len(), insist: false },
            };
            let (prefix, insist) = (block.prefix(mn)?, block.insist);
            Incoming::Signal(Signal::Request { prefix, sequence, insist })
        }
        Message::Ctd { mn, blocks, .. } if mn.is_unspecified() => node_less_signal(&blocks, now)?,
        Message::Ctd { elapsed_ms, mn, blocks, .. } => {
            match blocks.iter().find(|block| block.fpt == FPT_REFUSAL) {
                Some(block) => refusal_signal(mn, RefusalBlock::decode(block)?)?,
                None => transfer_signal(mn, elapsed_ms, false, &blocks)?,
            }
        }
        Message::Pctd { elapsed_ms, mn, blocks, .. } => {
            transfer_signal(mn, elapsed_ms, true, &blocks)?
        }
    })
}

/// Empty: all is well. A CTDR with S = 0 that names no profile of ours means everything.
fn failed_parts(success: bool, statuses: &[FeatureStatus]) -> Vec<(Part, TransferStatus)> {
    if success {
        return Vec::new();
    }
    let mut failed: Vec<(Part, TransferStatus)> = Vec::new();
    for entry in statuses.iter().filter(|entry| entry.status != 0) {
        let part = match entry.fpt {
            FPT_BINDING => Part::Bindings,
            FPT_ATTRIBUTES => Part::Attributes,
            _ => continue,
        };
        if !failed.iter().any(|&(known, _)| known == part) {
            failed.push((part, status_of(entry.status)));
        }
    }
    if failed.is_empty() {
        failed.push((Part::Bindings, TransferStatus::Malformed));
    }
    failed
}

fn refusal_signal(addr: IpAddr, block: RefusalBlock) -> Result<Incoming, WireError> {
    let why = match (status_of(block.status), block.referral) {
        (TransferStatus::Referral, Some(anchor)) => Refusal::Referral(anchor),
        (TransferStatus::Referral, None) => return Err(WireError::BadValue),
        (TransferStatus::NotAuthorised, _) => Refusal::NotAuthorised,
        (TransferStatus::Busy | TransferStatus::NoResources, _) => Refusal::Busy,
        // Whatever else it says, the peer has no context for us.
        (
            TransferStatus::Ok
            | TransferStatus::BadChecksum
            | TransferStatus::Unknown
            | TransferStatus::GenerationOld
            | TransferStatus::Malformed
            | TransferStatus::Incomplete
            | TransferStatus::NotInstalled
            | TransferStatus::Other(_),
            _,
        ) => Refusal::Unknown,
    };
    Ok(Incoming::Signal(Signal::Refusal { addr, sequence: block.sequence, why }))
}

fn transfer_signal(
    addr: IpAddr,
    elapsed_ms: u32,
    predictive: bool,
    blocks: &[Block],
) -> Result<Incoming, WireError> {
    let of = |fpt| blocks.iter().filter(move |block: &&Block| block.fpt == fpt);
    if let Some(block) = of(FPT_NEWER).next() {
        let NewerBlock { prefix_len, generation, anchor } = NewerBlock::decode(block)?;
        let prefix = Prefix::new(addr, prefix_len).ok_or(WireError::BadValue)?;
        let claim = Claim { generation, anchor };
        return Ok(Incoming::Signal(Signal::Newer { prefix, claim }));
    }
    let Some(head) = of(FPT_TRANSFER).next() else { return Ok(Incoming::Foreign) };
    let sequence = TransferBlock::decode(head)?.sequence;
    let mut context: Option<Context> = None;
    for block in of(FPT_BINDING) {
        let binding = BindingBlock::decode(block)?;
        let context = context.get_or_insert_with(|| Context {
            mn: binding.mn.clone(),
            generation: binding.generation,
            anchor: binding.anchor,
            prefixes: Vec::new(),
            attributes: Vec::new(),
            path: None,
        });
        // One context is one node at one moment.
        let same = context.mn == binding.mn
            && context.generation == binding.generation
            && context.anchor == binding.anchor
            && context.prefixes.iter().all(|known| known.prefix != binding.prefix);
        if !same || context.prefixes.len() == PREFIXES_PER_NODE_MAX {
            return Err(WireError::BadValue);
        }
        let (prefix, home, lifetime_s) = (binding.prefix, binding.home, binding.lifetime_s);
        context.prefixes.push(ContextPrefix { prefix, home, lifetime_s });
    }
    if let (Some(context), Some(block)) = (&mut context, of(FPT_PATH_KEY).next()) {
        context.path = Some(PathKeyBlock::decode(block)?.0);
    }
    let attributes = match of(FPT_ATTRIBUTES).next() {
        None => AttributesPart::Absent,
        Some(_) => match AttributesPiece::decode_all(of(FPT_ATTRIBUTES)) {
            Some(all) => AttributesPart::Whole(all),
            None => AttributesPart::Broken,
        },
    };
    let transfer = Transfer { addr, sequence, elapsed_ms, predictive, context, attributes };
    Ok(Incoming::Signal(Signal::Transfer(Box::new(transfer))))
}

fn node_less_signal(blocks: &[Block], now: Instant) -> Result<Incoming, WireError> {
    let Some(head) = blocks.first() else { return Ok(Incoming::Foreign) };
    match head.fpt {
        FPT_HELLO => {
            let hello = HelloBlock::decode(head)?;
            let role = super::Role::new(hello.is_anchor, hello.is_controller);
            let role = role.ok_or(WireError::BadValue)?;
            let path_end = blocks.iter().find(|block| block.fpt == FPT_PATH_END);
            let path_end = path_end.map(PathEndBlock::decode).transpose()?.map(|end| end.0);
            let HelloBlock { anchor, profile, .. } = hello;
            Ok(Incoming::Hello(Hello { anchor, role, profile, path_end }))
        }
        FPT_BATCH => {
            let BatchBlock { epoch, batch, sync_end } = BatchBlock::decode(head)?;
            let mut reports = Vec::new();
            for block in blocks.iter().filter(|block| block.fpt == FPT_REPORT) {
                reports.push(report_of(BindingBlock::decode(block)?, now));
            }
            Ok(Incoming::Signal(Signal::Reports(ReportBatch { epoch, batch, reports, sync_end })))
        }
        FPT_BATCH_ACK => {
            let BatchBlock { epoch, batch, .. } = BatchBlock::decode(head)?;
            Ok(Incoming::Signal(Signal::ReportAck { epoch, batch }))
        }
        _ => Ok(Incoming::Foreign),
    }
}

fn report_of(block: BindingBlock, now: Instant) -> Report {
    let lifetime = match block.lifetime_s {
        None => Lifetime::WhileAttached,
        Some(s) => Lifetime::Until(now + Duration::from_secs(s.into())),
    };
    let BindingBlock { mn, prefix, generation, anchor, home, fe_e, gone, .. } = block;
    let binding = Binding { prefix, mn, anchor, fe_e, home, generation, lifetime };
    Report { binding, present: !gone }
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;
    use crate::types::transient::PathKey;
    use crate::types::{Generation, MnId};

    fn context() -> Context {
        let prefix = |text: &str, home, lifetime_s| ContextPrefix {
            prefix: text.parse().unwrap(),
            home,
            lifetime_s,
        };
        Context {
            mn: MnId::new("02:00:5e:00:01:01").unwrap(),
            generation: Generation(4),
            anchor: AnchorId(1),
            prefixes: vec![
                prefix("10.1.0.7/32", Some(AnchorId(1)), None),
                prefix("2001:db8:a::/64", None, Some(60)),
            ],
            attributes: vec![],
            path: Some(PathKey(0x0102_0304_0506_0708)),
        }
    }

    fn transfer() -> Transfer {
        Transfer {
            addr: "10.1.0.7".parse().unwrap(),
            sequence: 77,
            elapsed_ms: 5,
            predictive: false,
            context: Some(context()),
            attributes: AttributesPart::Whole(vec![(7, vec![1; 2100])]),
        }
    }

    fn report(present: bool, lifetime: Lifetime) -> Report {
        let binding = Binding {
            prefix: "10.1.0.7/32".parse().unwrap(),
            mn: MnId::new("mn1").unwrap(),
            anchor: AnchorId(1),
            fe_e: Locator { ipv4: Some("192.0.2.1".parse().unwrap()), ipv6: None },
            home: Some(AnchorId(2)),
            generation: Generation(9),
            lifetime,
        };
        Report { binding, present }
    }

    fn signals() -> Vec<Signal> {
        let addr: IpAddr = "10.1.0.7".parse().unwrap();
        let until = Lifetime::Until(Instant::from_micros(7_000_000));
        vec![
            Signal::Request { prefix: Prefix::host(addr), sequence: 5, insist: false },
            Signal::Request {
                prefix: "2001:db8:a::/64".parse().unwrap(),
                sequence: u32::MAX,
                insist: true,
            },
            Signal::Transfer(Box::new(transfer())),
            Signal::Transfer(Box::new(Transfer { predictive: true, ..transfer() })),
            Signal::Transfer(Box::new(Transfer {
                attributes: AttributesPart::Absent,
                ..transfer()
            })),
            Signal::Transfer(Box::new(Transfer { context: None, ..transfer() })),
            Signal::Refusal { addr, sequence: 5, why: Refusal::Unknown },
            Signal::Refusal { addr, sequence: 5, why: Refusal::Referral(AnchorId(3)) },
            Signal::Refusal { addr, sequence: 5, why: Refusal::NotAuthorised },
            Signal::Refusal { addr, sequence: 5, why: Refusal::Busy },
            Signal::Reply { addr, failed: vec![] },
            Signal::Reply {
                addr,
                failed: vec![
                    (Part::Bindings, TransferStatus::GenerationOld),
                    (Part::Attributes, TransferStatus::Incomplete),
                ],
            },
            Signal::Cancel { addr },
            Signal::Reports(ReportBatch {
                epoch: 1,
                batch: 2,
                reports: vec![report(true, Lifetime::WhileAttached), report(false, until)],
                sync_end: true,
            }),
            Signal::ReportAck { epoch: 1, batch: 2 },
            Signal::Newer {
                prefix: "10.1.1.7/32".parse().unwrap(),
                claim: Claim { generation: crate::types::Generation(9), anchor: AnchorId(3) },
            },
        ]
    }

    fn octets(message: &Message) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(&mut out).unwrap();
        out
    }

    #[test]
    fn every_signal_arrives_as_it_was_sent() {
        let now = Instant::from_micros(2_000_000);
        for signal in signals() {
            let message = Message::decode(&octets(&signal_message(&signal, now))).unwrap();
            assert_eq!(understand(message, now), Ok(Incoming::Signal(signal)));
        }
    }

    #[test]
    fn hello_and_keepalive_are_no_signals() {
        let now = Instant::ZERO;
        let path_end = PathEnd {
            locator: Locator { ipv4: Some([192, 0, 2, 9].into()), ipv6: None },
            port: 47_300,
        };
        let hello = hello_message(AnchorId(7), Role::AnchorAndController, Some(path_end));
        let expected = Hello {
            path_end: Some(path_end),
            anchor: AnchorId(7),
            role: Role::AnchorAndController,
            profile: PROFILE_VERSION,
        };
        let decoded = Message::decode(&octets(&hello)).unwrap();
        assert_eq!(understand(decoded, now), Ok(Incoming::Hello(expected)));
        assert_eq!(octets(&keepalive_message()), [0x25, 0xc0, 0, 8, 0, 0, 0, 0]);
        assert_eq!(understand(keepalive_message(), now), Ok(Incoming::Keepalive));
    }

    /// RFC 4067 §2.5.6: a request of a peer without our profiles still means something.
    #[test]
    fn a_plain_request_means_the_host_address() {
        let mn = "192.0.2.9".parse().unwrap();
        let (token, requests) = (Token(9), RequestBlocks::default());
        let message = Message::CtReq { mn, sequence: 1, token, requests };
        let signal = Signal::Request { prefix: Prefix::host(mn), sequence: 1, insist: false };
        assert_eq!(understand(message, Instant::ZERO), Ok(Incoming::Signal(signal)));
    }

    #[test]
    fn contexts_of_two_nodes_in_one_message_are_refused() {
        let Message::Ctd { acknowledge, elapsed_ms, mn, mut blocks } =
            signal_message(&Signal::Transfer(Box::new(transfer())), Instant::ZERO)
        else {
            panic!("a reactive transfer is a CTD");
        };
        let mut other = BindingBlock::decode(&blocks[2]).unwrap();
        other.generation = Generation(5);
        blocks[2] = other.encode(FPT_BINDING);
        let message = Message::Ctd { acknowledge, elapsed_ms, mn, blocks };
        assert_eq!(understand(message, Instant::ZERO), Err(WireError::BadValue));
    }

    #[test]
    fn every_single_octet_change_is_understood_or_refused() {
        let now = Instant::from_micros(2_000_000);
        let mut outcomes = [0_u32; 3];
        for signal in signals() {
            let good = octets(&signal_message(&signal, now));
            // The long run of attribute values is all alike.
            for at in (0..good.len()).filter(|at| *at < 300 || at % 97 == 0) {
                for value in 0..=u8::MAX {
                    let mut changed = good.clone();
                    changed[at] = value;
                    let which = match Message::decode(&changed).map(|m| understand(m, now)) {
                        Ok(Ok(_)) => 0,
                        Ok(Err(_)) => 1,
                        Err(_) => 2,
                    };
                    outcomes[which] += 1;
                }
            }
        }
        assert!(outcomes.iter().all(|&n| n > 1000), "{outcomes:?}");
    }
}
