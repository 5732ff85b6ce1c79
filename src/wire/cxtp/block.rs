//! Context data blocks (RFC 4067 §2.4).
//!
//! ```text
//! |   Feature Profile Type (FPT)  |    Length     |P|  Reserved   |
//! |                   Presence Vector (if P = 1)                  |
//! ~                     Data, zero-padded to 8                    ~
//! ```
//!
//! Length counts words of 8 octets, with the first 4 octets: a block has at most 2040.

use crate::wire::{Reader, WireError};

const FLAG_PRESENCE: u8 = 0x80;

/// Data of a block without presence vector; 4 less with one.
pub const DATA_LEN_MAX: usize = 255 * 8 - 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub fpt: u16,
    /// One bit per field of the profile, the first field in the most significant bit.
    pub presence: Option<u32>,
    /// As received it has its padding: only the profile knows where the fields end.
    pub data: Vec<u8>,
}

impl Block {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let fpt = input.u16()?;
        let words = usize::from(input.u8()?);
        let flags = input.u8()?; // reserved bits are ignored on receipt
        let mut body = match words.checked_sub(1) {
            Some(more) => input.sub(more * 8 + 4)?,
            None => return Err(WireError::BadLength),
        };
        let presence = match flags & FLAG_PRESENCE {
            0 => None,
            _ => Some(body.u32()?),
        };
        Ok(Self { fpt, presence, data: body.rest().to_vec() })
    }

    /// Blocks up to the end of the message.
    pub fn decode_all(input: &mut Reader<'_>) -> Result<Vec<Self>, WireError> {
        let mut blocks = Vec::new();
        while !input.is_empty() {
            blocks.push(Self::decode(input)?);
        }
        Ok(blocks)
    }

    /// Data beyond what Length can say is cut; the profiles never build such a block.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let vector_len = if self.presence.is_some() { 4 } else { 0 };
        let data = &self.data[..self.data.len().min(DATA_LEN_MAX - vector_len)];
        let words = (4 + vector_len + data.len()).div_ceil(8);
        out.extend_from_slice(&self.fpt.to_be_bytes());
        out.push(u8::try_from(words).expect("DATA_LEN_MAX fits 255 words"));
        out.push(if self.presence.is_some() { FLAG_PRESENCE } else { 0 });
        if let Some(presence) = self.presence {
            out.extend_from_slice(&presence.to_be_bytes());
        }
        out.extend_from_slice(data);
        out.resize(out.len() + words * 8 - 4 - vector_len - data.len(), 0);
    }
}

/// The request blocks of CTAR and CT-Req, as octets: a CT-Req has them "verbatim from the CTAR"
/// (§2.5.6), and the token is computed over them. Well-formed by construction; none means "all".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestBlocks(Vec<u8>);

impl RequestBlocks {
    pub fn new(blocks: &[Block]) -> Self {
        let mut octets = Vec::new();
        for block in blocks {
            block.encode(&mut octets);
        }
        Self(octets)
    }

    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let octets = input.rest();
        while !input.is_empty() {
            Self::next(input)?;
        }
        Ok(Self(octets.to_vec()))
    }

    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    pub fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        let mut input = Reader::new(&self.0);
        std::iter::from_fn(move || {
            (!input.is_empty()).then(|| Self::next(&mut input).expect("checked when it was built"))
        })
    }

    fn next(input: &mut Reader<'_>) -> Result<Block, WireError> {
        match *input.rest() {
            // Length 0: the 4 octets alone. A presence vector would have no room.
            [a, b, 0, flags, ..] => {
                input.bytes(4)?;
                if flags & FLAG_PRESENCE != 0 {
                    return Err(WireError::BadLength);
                }
                Ok(Block { fpt: u16::from_be_bytes([a, b]), presence: None, data: Vec::new() })
            }
            _ => Block::decode(input),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4067 §2.4: Length counts 8-octet words with the first 4 octets; data is zero-padded.
    #[test]
    fn lengths_are_words_and_padding_is_zero() {
        for (presence, data_len, words) in [
            (None, 0, 1),
            (None, 4, 1),
            (None, 5, 2),
            (Some(1), 0, 1),
            (Some(1), 1, 2),
            (Some(1), 8, 2),
            (None, DATA_LEN_MAX, 255),
            (Some(u32::MAX), DATA_LEN_MAX - 4, 255),
        ] {
            let block = Block { fpt: 0xff01, presence, data: vec![7; data_len] };
            let mut octets = Vec::new();
            block.encode(&mut octets);
            assert_eq!(octets.len(), words * 8, "{data_len}");
            assert_eq!(usize::from(octets[2]), words);
            let back = Block::decode(&mut Reader::new(&octets)).unwrap();
            assert_eq!(back.presence, presence);
            assert_eq!(back.data[..data_len], block.data[..]);
            assert!(back.data[data_len..].iter().all(|&b| b == 0));
        }
    }

    /// RFC 4067 §2.4 against §2.5.1: "4 octets" cannot be said in words; both forms are read.
    #[test]
    fn a_request_block_may_be_four_octets() {
        let octets = [0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0];
        let requests = RequestBlocks::decode(&mut Reader::new(&octets)).unwrap();
        assert_eq!(requests.iter().map(|b| b.fpt).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(requests.octets(), octets);
        let bad = RequestBlocks::decode(&mut Reader::new(&[0, 1, 0, 0x80]));
        assert_eq!(bad, Err(WireError::BadLength));
        assert_eq!(Block::decode(&mut Reader::new(&[0, 1, 0, 0])), Err(WireError::BadLength));
    }
}
