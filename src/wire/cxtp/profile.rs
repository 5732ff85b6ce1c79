//! Private feature profiles: what killick puts into context data blocks.
//!
//! RFC 4065 keeps the FPT registry for Expert Review and has no private range; these are from
//! 0xFF00, far from the one assigned number (1, MLD), and a peer that does not know them skips them.
//! A message that is about no mobile node (hello, reports) has the unspecified address as MN.
//!
//! | FPT    | profile    | in          | data |
//! |--------|------------|-------------|------|
//! | 0xFF01 | binding    | CTD, PCTD   | [`BindingBlock`], one per prefix |
//! | 0xFF02 | attributes | CTD, PCTD   | [`AttributesPiece`], all pieces in one message |
//! | 0xFF03 | report     | CTD (no MN) | a [`BindingBlock`] again |
//! | 0xFF04 | batch      | CTD (no MN) | [`BatchBlock`], before the reports it numbers |
//! | 0xFF05 | batch ack  | CTD (no MN) | [`BatchBlock`], flags 0 |
//! | 0xFF06 | refusal    | CTD         | [`RefusalBlock`]: RFC 4067 §2.4 "an error indication" |
//! | 0xFF07 | transfer   | CTD, PCTD   | [`TransferBlock`]: which request is answered |
//! | 0xFF08 | hello      | CTD (no MN) | [`HelloBlock`], the first message in both directions |
//! | 0xFF09 | newer      | CTD         | [`NewerBlock`]: somebody has a newer claim of your prefix |
//! | 0xFF0A | path end   | CTD (no MN) | [`PathEndBlock`], with the hello of one who holds packets |
//! | 0xFF0B | path key   | CTD, PCTD   | [`PathKeyBlock`]: the node's packets are held here |
//! | 0xFF01 | binding    | CT-Req      | [`RequestBlock`] |
//!
//! The keepalive is a CTDR with S = 1, the unspecified MN and no status: it acknowledges nothing.

use std::net::IpAddr;

use super::Block;
use crate::types::transfer::ATTRIBUTES_LEN_MAX;
use crate::types::transient::{PathEnd, PathKey};
use crate::types::{AnchorId, Generation, Locator, MnId, Prefix};
use crate::wire::{Reader, WireError};

pub const FPT_BINDING: u16 = 0xff01;
pub const FPT_ATTRIBUTES: u16 = 0xff02;
pub const FPT_REPORT: u16 = 0xff03;
pub const FPT_BATCH: u16 = 0xff04;
pub const FPT_BATCH_ACK: u16 = 0xff05;
pub const FPT_REFUSAL: u16 = 0xff06;
pub const FPT_TRANSFER: u16 = 0xff07;
pub const FPT_HELLO: u16 = 0xff08;
pub const FPT_NEWER: u16 = 0xff09;
pub const FPT_PATH_END: u16 = 0xff0a;
pub const FPT_PATH_KEY: u16 = 0xff0b;

/// Version of these profiles, said in the hello. A peer with another one is refused.
pub const PROFILE_VERSION: u8 = 1;

/// Lifetime on the wire for "as long as it is attached" (also the default when absent).
const LIFETIME_WHILE_ATTACHED: u32 = u32::MAX;

const FLAG_PREFIX_V4: u8 = 0x80;
const FLAG_GONE: u8 = 0x40;

/// Bit of the n-th field (from 1) in a presence vector: the RFC gives the order, not the end from
/// which it counts; here the first field has the most significant bit.
const fn field(n: u32) -> u32 {
    1 << (32 - n)
}

const HAS_HOME: u32 = field(4);
const HAS_LIFETIME: u32 = field(5);
const HAS_FE_E_V4: u32 = field(6);
const HAS_FE_E_V6: u32 = field(7);
/// Fields 1 to 3, 8 and 9 have no default.
const HAS_ALWAYS: u32 = field(1) | field(2) | field(3) | field(8) | field(9);

/// The location of one prefix of a node, in FPT 0xFF01 and 0xFF03, always with presence vector.
///
/// ```text
/// 1 |4|G| Reserved  | Prefix Length | MN-ID Length  |   Reserved    |
/// 2 |                          Generation                           |
/// 3 |                            Anchor                             |
/// 4 |              Home Anchor (default: there is none)             |
/// 5 |  Remaining Lifetime in seconds (default: while it is attached)|
/// 6 |              FE_E IPv4 Address (default: none)                |
/// 7 ~        FE_E IPv6 Address, 16 octets (default: none)           ~
/// 8 ~       Prefix: 4 octets (if 4) or 16, bits past length zero    ~
/// 9 ~                 MN-ID (an NAI, RFC 4283 §3.1)                 ~
/// ```
///
/// 4: the prefix is IPv4. G (reports only): the binding is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingBlock {
    pub mn: MnId,
    pub prefix: Prefix,
    pub generation: Generation,
    pub anchor: AnchorId,
    pub home: Option<AnchorId>,
    pub fe_e: Locator,
    /// `None`: while it is attached.
    pub lifetime_s: Option<u32>,
    pub gone: bool,
}

impl BindingBlock {
    pub fn encode(&self, fpt: u16) -> Block {
        let mut presence = HAS_ALWAYS;
        let flags = if matches!(self.prefix, Prefix::V4 { .. }) { FLAG_PREFIX_V4 } else { 0 }
            | if self.gone { FLAG_GONE } else { 0 };
        let mn = self.mn.as_str();
        let mn_len = u8::try_from(mn.len()).expect("MnId has at most 255 octets");
        let mut data = Vec::with_capacity(64 + mn.len());
        data.extend_from_slice(&[flags, self.prefix.len(), mn_len, 0]);
        data.extend_from_slice(&self.generation.0.to_be_bytes());
        data.extend_from_slice(&self.anchor.0.to_be_bytes());
        if let Some(home) = self.home {
            presence |= HAS_HOME;
            data.extend_from_slice(&home.0.to_be_bytes());
        }
        if let Some(lifetime_s) = self.lifetime_s {
            presence |= HAS_LIFETIME;
            data.extend_from_slice(&lifetime_s.min(LIFETIME_WHILE_ATTACHED - 1).to_be_bytes());
        }
        if let Some(addr) = self.fe_e.ipv4 {
            presence |= HAS_FE_E_V4;
            data.extend_from_slice(&addr.octets());
        }
        if let Some(addr) = self.fe_e.ipv6 {
            presence |= HAS_FE_E_V6;
            data.extend_from_slice(&addr.octets());
        }
        match self.prefix {
            Prefix::V4 { addr, .. } => data.extend_from_slice(&addr.to_be_bytes()),
            Prefix::V6 { addr, .. } => data.extend_from_slice(&addr.to_be_bytes()),
        }
        data.extend_from_slice(mn.as_bytes());
        Block { fpt, presence: Some(presence), data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        let presence = block.presence.ok_or(WireError::BadValue)?;
        if presence & HAS_ALWAYS != HAS_ALWAYS {
            return Err(WireError::BadValue);
        }
        let mut input = Reader::new(&block.data);
        let has = |bit: u32| presence & bit != 0;
        let [flags, len, mn_len, _reserved] = input.array()?;
        let generation = Generation(input.u32()?);
        let anchor = AnchorId(input.u32()?);
        let home = if has(HAS_HOME) { Some(AnchorId(input.u32()?)) } else { None };
        let lifetime_s = if has(HAS_LIFETIME) { Some(input.u32()?) } else { None };
        let fe_e = Locator {
            ipv4: if has(HAS_FE_E_V4) { Some(input.array::<4>()?.into()) } else { None },
            ipv6: if has(HAS_FE_E_V6) { Some(input.array::<16>()?.into()) } else { None },
        };
        let prefix = if flags & FLAG_PREFIX_V4 != 0 {
            Prefix::v4(input.u32()?, len)
        } else {
            Prefix::v6(input.u128()?, len)
        };
        let mn = input.bytes(usize::from(mn_len))?;
        let mn = std::str::from_utf8(mn).ok().and_then(|text| MnId::new(text).ok());
        if anchor.0 == 0 || home == Some(AnchorId(0)) {
            return Err(WireError::BadValue);
        }
        Ok(Self {
            mn: mn.ok_or(WireError::BadValue)?,
            prefix: prefix.ok_or(WireError::BadValue)?,
            generation,
            anchor,
            home,
            fe_e,
            lifetime_s: lifetime_s.filter(|&s| s != LIFETIME_WHILE_ATTACHED),
            gone: flags & FLAG_GONE != 0,
        })
    }
}

/// A piece of the attributes of a node (FPT 0xFF02): one block holds at most 2040 octets and the
/// RFC does not order blocks of one type, so each says where it belongs. All pieces together are a
/// list of type (2), length (2), value.
///
/// ```text
/// |     Index     |     Total     |      Octets of this piece     |
/// ~                             Piece                             ~
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AttributesPiece;

const PIECE_LEN_MAX: usize = super::DATA_LEN_MAX - 4;
const _: () = assert!(ATTRIBUTES_LEN_MAX.div_ceil(PIECE_LEN_MAX) <= 255);

impl AttributesPiece {
    /// Octets that these attributes take.
    pub fn octets_len(attributes: &[(u16, Vec<u8>)]) -> usize {
        attributes.iter().map(|(_, value)| 4 + value.len()).sum()
    }

    /// Empty when there are no attributes. `None` when they are larger than [`ATTRIBUTES_LEN_MAX`].
    pub fn encode_all(attributes: &[(u16, Vec<u8>)]) -> Option<Vec<Block>> {
        if Self::octets_len(attributes) > ATTRIBUTES_LEN_MAX {
            return None;
        }
        let mut octets = Vec::new();
        for (kind, value) in attributes {
            octets.extend_from_slice(&kind.to_be_bytes());
            octets.extend_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
            octets.extend_from_slice(value);
        }
        let total = u8::try_from(octets.chunks(PIECE_LEN_MAX).len()).ok()?;
        let piece = |(index, chunk): (u8, &[u8])| {
            let mut data = vec![index, total];
            let len = u16::try_from(chunk.len()).expect("PIECE_LEN_MAX fits 16 bits");
            data.extend_from_slice(&len.to_be_bytes());
            data.extend_from_slice(chunk);
            Block { fpt: FPT_ATTRIBUTES, presence: None, data }
        };
        Some((0..total).zip(octets.chunks(PIECE_LEN_MAX)).map(piece).collect())
    }

    /// `None` when a piece is missing, twice there with other content, or malformed.
    pub fn decode_all<'a>(blocks: impl Iterator<Item = &'a Block>) -> Option<Vec<(u16, Vec<u8>)>> {
        let mut pieces: Vec<Option<&[u8]>> = Vec::new();
        for block in blocks {
            let mut input = Reader::new(&block.data);
            let [index, total] = input.array().ok()?;
            let len = usize::from(input.u16().ok()?);
            let piece = input.bytes(len).ok()?;
            if pieces.is_empty() {
                pieces = vec![None; usize::from(total)];
            }
            if usize::from(total) != pieces.len() {
                return None;
            }
            let slot = pieces.get_mut(usize::from(index))?;
            if slot.is_some_and(|there| there != piece) {
                return None;
            }
            *slot = Some(piece);
        }
        let octets: Vec<u8> = pieces.into_iter().collect::<Option<Vec<_>>>()?.concat();
        if octets.len() > ATTRIBUTES_LEN_MAX {
            return None;
        }
        let (mut input, mut attributes) = (Reader::new(&octets), Vec::new());
        while !input.is_empty() {
            let kind = input.u16().ok()?;
            let len = usize::from(input.u16().ok()?);
            attributes.push((kind, input.bytes(len).ok()?.to_vec()));
        }
        Some(attributes)
    }
}

/// Number of a batch of reports (FPT 0xFF04), or of the last one taken (FPT 0xFF05).
///
/// ```text
/// |                             Epoch                             |
/// |                             Batch                             |
/// |E|                          Reserved                           |
/// ```
///
/// E: end of synchronisation; everything has been reported once in this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchBlock {
    pub epoch: u32,
    pub batch: u32,
    pub sync_end: bool,
}

impl BatchBlock {
    pub fn encode(self, fpt: u16) -> Block {
        let mut data = Vec::with_capacity(12);
        data.extend_from_slice(&self.epoch.to_be_bytes());
        data.extend_from_slice(&self.batch.to_be_bytes());
        data.extend_from_slice(&[if self.sync_end { 0x80 } else { 0 }, 0, 0, 0]);
        Block { fpt, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        let mut input = Reader::new(&block.data);
        Ok(Self {
            epoch: input.u32()?,
            batch: input.u32()?,
            sync_end: input.u32()? & 0x8000_0000 != 0,
        })
    }
}

/// Why there is no context (FPT 0xFF06).
///
/// ```text
/// |  Status code  |                   Reserved                    |
/// |       Sequence Number of the CT-Req that is answered          |
/// |    Referral: the anchor to ask instead, or 0                  |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalBlock {
    pub status: u8,
    pub sequence: u32,
    pub referral: Option<AnchorId>,
}

impl RefusalBlock {
    pub fn encode(self) -> Block {
        let mut data = vec![self.status, 0, 0, 0];
        data.extend_from_slice(&self.sequence.to_be_bytes());
        data.extend_from_slice(&self.referral.map_or(0, |anchor| anchor.0).to_be_bytes());
        Block { fpt: FPT_REFUSAL, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        let mut input = Reader::new(&block.data);
        let [status, ..] = input.array::<4>()?;
        let sequence = input.u32()?;
        let referral = input.u32()?;
        Ok(Self { status, sequence, referral: (referral != 0).then_some(AnchorId(referral)) })
    }
}

/// Which request a CTD answers (FPT 0xFF07), because CTD itself has no sequence number.
///
/// ```text
/// |                        Sequence Number                        |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferBlock {
    pub sequence: u32,
}

impl TransferBlock {
    pub fn encode(self) -> Block {
        let data = self.sequence.to_be_bytes().to_vec();
        Block { fpt: FPT_TRANSFER, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        Ok(Self { sequence: Reader::new(&block.data).u32()? })
    }
}

/// Who speaks (FPT 0xFF08).
///
/// ```text
/// |                           Anchor Id                           |
/// |A|C| Reserved  |    Profile    |           Reserved            |
/// ```
///
/// A: is an anchor. C: is a controller, wants reports. Profile: [`PROFILE_VERSION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloBlock {
    pub anchor: AnchorId,
    pub is_anchor: bool,
    pub is_controller: bool,
    pub profile: u8,
}

impl HelloBlock {
    pub fn encode(self) -> Block {
        let mut data = self.anchor.0.to_be_bytes().to_vec();
        let roles = u8::from(self.is_anchor) << 7 | u8::from(self.is_controller) << 6;
        data.extend_from_slice(&[roles, self.profile, 0, 0]);
        Block { fpt: FPT_HELLO, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        let mut input = Reader::new(&block.data);
        let anchor = AnchorId(input.u32()?);
        let [roles, profile, ..] = input.array::<4>()?;
        let (is_anchor, is_controller) = (roles & 0x80 != 0, roles & 0x40 != 0);
        Ok(Self { anchor, is_anchor, is_controller, profile })
    }
}

/// Where the speaker takes packets of transient paths (FPT 0xFF0A).
///
/// ```text
/// |           UDP Port            |4|6|         Reserved          |
/// |                  IPv4 Address (if 4)                          |
/// ~                  IPv6 Address, 16 octets (if 6)               ~
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathEndBlock(pub PathEnd);

impl PathEndBlock {
    pub fn encode(self) -> Block {
        let PathEnd { locator, port } = self.0;
        let mut data = port.to_be_bytes().to_vec();
        let families =
            u8::from(locator.ipv4.is_some()) << 7 | u8::from(locator.ipv6.is_some()) << 6;
        data.extend_from_slice(&[families, 0]);
        data.extend(locator.ipv4.iter().flat_map(|addr| addr.octets()));
        data.extend(locator.ipv6.iter().flat_map(|addr| addr.octets()));
        Block { fpt: FPT_PATH_END, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        let mut input = Reader::new(&block.data);
        let port = input.u16()?;
        let [families, _reserved] = input.array()?;
        let locator = Locator {
            ipv4: if families & 0x80 != 0 { Some(input.array::<4>()?.into()) } else { None },
            ipv6: if families & 0x40 != 0 { Some(input.array::<16>()?.into()) } else { None },
        };
        if port == 0 || locator == Locator::default() {
            return Err(WireError::BadValue);
        }
        Ok(Self(PathEnd { locator, port }))
    }
}

/// The key of the transient path of the node (FPT 0xFF0B), 16 octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathKeyBlock(pub PathKey);

impl PathKeyBlock {
    pub fn encode(self) -> Block {
        let data = self.0.0.to_be_bytes().to_vec();
        Block { fpt: FPT_PATH_KEY, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        Ok(Self(PathKey(Reader::new(&block.data).u128()?)))
    }
}

/// A newer claim of a prefix whose address is the MN field of the message (R_XC, to an anchor).
///
/// ```text
/// | prefix length |             0 (3 octets)              |
/// |                     generation                        |
/// |                      anchor id                        |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewerBlock {
    pub prefix_len: u8,
    pub generation: Generation,
    pub anchor: AnchorId,
}

impl NewerBlock {
    pub fn encode(self) -> Block {
        let mut data = vec![self.prefix_len, 0, 0, 0];
        data.extend_from_slice(&self.generation.0.to_be_bytes());
        data.extend_from_slice(&self.anchor.0.to_be_bytes());
        Block { fpt: FPT_NEWER, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        let mut input = Reader::new(&block.data);
        let [prefix_len, ..] = input.array::<4>()?;
        let generation = Generation(input.u32()?);
        Ok(Self { prefix_len, generation, anchor: AnchorId(input.u32()?) })
    }
}

/// The request block of killick's CT-Req (FPT 0xFF01): the length of the prefix whose address is in
/// the MN field. A CT-Req without it means the host address.
///
/// ```text
/// | Prefix Length |I|                 Reserved                    |
/// ```
///
/// I: insist; the anchor that was referred to does not have the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBlock {
    pub prefix_len: u8,
    pub insist: bool,
}

impl RequestBlock {
    pub fn encode(self) -> Block {
        let data = vec![self.prefix_len, u8::from(self.insist) << 7, 0, 0];
        Block { fpt: FPT_BINDING, presence: None, data }
    }

    pub fn decode(block: &Block) -> Result<Self, WireError> {
        let [prefix_len, flags, ..] = Reader::new(&block.data).array::<4>()?;
        Ok(Self { prefix_len, insist: flags & 0x80 != 0 })
    }

    /// The prefix meant by this block and the MN field.
    pub fn prefix(self, mn: IpAddr) -> Result<Prefix, WireError> {
        let prefix = Prefix::new(mn, self.prefix_len).ok_or(WireError::BadValue)?;
        if prefix.addr() == mn { Ok(prefix) } else { Err(WireError::BadValue) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> BindingBlock {
        BindingBlock {
            mn: MnId::new("mn1@killick.example").unwrap(),
            prefix: "2001:db8:a::/64".parse().unwrap(),
            generation: Generation(7),
            anchor: AnchorId(0xc000_0201),
            home: Some(AnchorId(0xc000_0202)),
            fe_e: Locator {
                ipv4: Some("192.0.2.9".parse().unwrap()),
                ipv6: Some("2001:db8::9".parse().unwrap()),
            },
            lifetime_s: Some(300),
            gone: false,
        }
    }

    fn through_octets(block: &Block) -> Block {
        let mut octets = Vec::new();
        block.encode(&mut octets);
        Block::decode(&mut Reader::new(&octets)).unwrap()
    }

    #[test]
    fn defaults_are_left_out_and_come_back() {
        let full = binding();
        let none = Locator::default();
        let bare =
            BindingBlock { home: None, fe_e: none, lifetime_s: None, gone: true, ..binding() };
        let v4 = BindingBlock { prefix: "10.0.0.7/32".parse().unwrap(), ..binding() };
        for (binding, octets) in [(full, 8 + 4 * 6 + 16 + 16 + 19), (bare, 8 + 12 + 16 + 19)] {
            let block = binding.encode(FPT_BINDING);
            assert_eq!(block.data.len() + 8, octets);
            assert_eq!(BindingBlock::decode(&through_octets(&block)), Ok(binding));
        }
        assert_eq!(BindingBlock::decode(&through_octets(&v4.encode(FPT_REPORT))), Ok(v4));
    }

    #[test]
    fn a_binding_without_a_required_field_is_refused() {
        for missing in [field(1), field(2), field(3), field(8), field(9)] {
            let mut block = binding().encode(FPT_BINDING);
            block.presence = block.presence.map(|p| p & !missing);
            assert_eq!(BindingBlock::decode(&block), Err(WireError::BadValue));
        }
        let block = Block { presence: None, ..binding().encode(FPT_BINDING) };
        assert_eq!(BindingBlock::decode(&block), Err(WireError::BadValue));
    }

    #[test]
    fn attributes_are_split_and_joined_in_any_order() {
        let attributes = vec![(1, vec![1; 3000]), (2, vec![]), (0xffff, vec![9; 2500])];
        let mut blocks = AttributesPiece::encode_all(&attributes).unwrap();
        assert_eq!(blocks.len(), 3);
        blocks.reverse();
        let blocks: Vec<Block> = blocks.iter().map(through_octets).collect();
        assert_eq!(AttributesPiece::decode_all(blocks.iter()), Some(attributes));
        for missing in 0..3 {
            let some = blocks.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, b)| b);
            assert_eq!(AttributesPiece::decode_all(some), None);
        }
        assert_eq!(AttributesPiece::encode_all(&[]), Some(vec![]));
        assert_eq!(AttributesPiece::encode_all(&[(1, vec![0; ATTRIBUTES_LEN_MAX])]), None);
    }

    #[test]
    fn small_profiles_round_trip() {
        let batch = BatchBlock { epoch: 7, batch: 9, sync_end: true };
        assert_eq!(BatchBlock::decode(&through_octets(&batch.encode(FPT_BATCH))), Ok(batch));
        let refusal = RefusalBlock { status: 0x88, sequence: 5, referral: Some(AnchorId(3)) };
        assert_eq!(RefusalBlock::decode(&through_octets(&refusal.encode())), Ok(refusal));
        let transfer = TransferBlock { sequence: 0xdead_beef };
        assert_eq!(TransferBlock::decode(&through_octets(&transfer.encode())), Ok(transfer));
        for (ipv4, ipv6) in [(Some([192, 0, 2, 1].into()), None), (None, Some([9; 16].into()))] {
            let end = PathEndBlock(PathEnd { locator: Locator { ipv4, ipv6 }, port: 47_300 });
            assert_eq!(PathEndBlock::decode(&through_octets(&end.encode())), Ok(end));
        }
        let nowhere = PathEndBlock(PathEnd { locator: Locator::default(), port: 1 }).encode();
        assert_eq!(PathEndBlock::decode(&nowhere), Err(WireError::BadValue));
        let key = PathKeyBlock(PathKey(u128::MAX - 7));
        assert_eq!(PathKeyBlock::decode(&through_octets(&key.encode())), Ok(key));
        let hello =
            HelloBlock { anchor: AnchorId(9), is_anchor: true, is_controller: false, profile: 1 };
        assert_eq!(HelloBlock::decode(&through_octets(&hello.encode())), Ok(hello));
        let request = RequestBlock { prefix_len: 64, insist: true };
        assert_eq!(RequestBlock::decode(&through_octets(&request.encode())), Ok(request));
        assert_eq!(request.prefix("2001:db8::1".parse().unwrap()), Err(WireError::BadValue));
        assert!(request.prefix("2001:db8::".parse().unwrap()).is_ok());
    }
}
