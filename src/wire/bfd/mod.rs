//! BFD control packets (RFC 5880 §4).
//!
//! ```text
//! |Vers |  Diag   |Sta|P|F|C|A|D|M|  Detect Mult  |    Length     |
//! |                       My Discriminator                        |
//! |                      Your Discriminator                       |
//! |                    Desired Min TX Interval                    |
//! |                   Required Min RX Interval                    |
//! |                 Required Min Echo RX Interval                 |
//! |   Auth Type   |   Auth Len    |    Authentication Data...     |
//! ```
//!
//! [`Control::decode`] applies those rules of §6.8.6 that the octets alone decide, in the order of
//! that section, so that a packet with several faults is counted under the first. Which session a
//! packet belongs to, and whether its authentication section is the right one, is asked later.

mod section;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use section::{AUTH_LEN_MAX, Digest, Section, SectionError};

use super::Reader;

/// UDP port of single-hop sessions (RFC 5881 §4).
pub const SINGLE_HOP_PORT: u16 = 3784;
/// UDP port of multihop sessions (RFC 5883 §5).
pub const MULTIHOP_PORT: u16 = 4784;
/// RFC 5881 §4: a session sends from one of these, and keeps to it.
pub const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

const VERSION: u8 = 1;
/// Of the mandatory part.
pub const HEAD_LEN: usize = 24;
/// With the two octets that every authentication section begins with.
const HEAD_WITH_AUTH_LEN: usize = 26;
/// The longest packet that we send or read; what follows the packet's own length is not looked at.
pub const PACKET_LEN_MAX: usize = HEAD_LEN + AUTH_LEN_MAX;

const POLL: u8 = 1 << 5;
const FINAL: u8 = 1 << 4;
const CONTROL_PLANE_INDEPENDENT: u8 = 1 << 3;
const AUTHENTICATION: u8 = 1 << 2;
const DEMAND: u8 = 1 << 1;
const MULTIPOINT: u8 = 1;

/// §4.1, Sta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    AdminDown,
    Down,
    Init,
    Up,
}

impl State {
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AdminDown => "admin-down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// §4.1, Diag: why the state was left. Five bits; numbers that nobody has named yet are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    pub const NONE: Self = Self(0);
    pub const DETECTION_TIME_EXPIRED: Self = Self(1);
    pub const ECHO_FAILED: Self = Self(2);
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Self(3);
    pub const FORWARDING_PLANE_RESET: Self = Self(4);
    pub const PATH_DOWN: Self = Self(5);
    pub const CONCATENATED_PATH_DOWN: Self = Self(6);
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);
    pub const REVERSE_CONCATENATED_PATH_DOWN: Self = Self(8);

    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NONE => "no diagnostic",
            Self::DETECTION_TIME_EXPIRED => "detection time expired",
            Self::ECHO_FAILED => "echo function failed",
            Self::NEIGHBOR_SIGNALED_DOWN => "neighbor signaled session down",
            Self::FORWARDING_PLANE_RESET => "forwarding plane reset",
            Self::PATH_DOWN => "path down",
            Self::CONCATENATED_PATH_DOWN => "concatenated path down",
            Self::ADMINISTRATIVELY_DOWN => "administratively down",
            Self::REVERSE_CONCATENATED_PATH_DOWN => "reverse concatenated path down",
            Self(_) => return None,
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "diagnostic {}", self.0),
        }
    }
}

/// Why a packet is discarded by its octets alone; the rules of §6.8.6 in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum ControlError {
    /// Too short for the fields that the rules ask about.
    #[error("truncated")]
    Truncated,
    #[error("not version 1")]
    Version,
    #[error("the length is less than the smallest, or more than the payload")]
    Length,
    #[error("a detection multiplier of 0")]
    DetectMult,
    #[error("the multipoint bit is set")]
    Multipoint,
    #[error("its own discriminator is 0")]
    MyDiscriminator,
    #[error("no discriminator of ours, in a state that knows it")]
    YourDiscriminator,
    /// Not in §6.8.6, but no packet of that kind can pass its authentication (§6.7).
    #[error("the authentication section cannot be read")]
    Section,
}

/// A control packet. Intervals are in microseconds, as on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub diagnostic: Diagnostic,
    pub state: State,
    pub poll: bool,
    pub is_final: bool,
    pub control_plane_independent: bool,
    pub demand: bool,
    /// Never 0.
    pub detect_mult: u8,
    /// Never 0.
    pub my_discriminator: u32,
    pub your_discriminator: u32,
    pub desired_min_tx_us: u32,
    pub required_min_rx_us: u32,
    pub required_min_echo_rx_us: u32,
    pub section: Option<Section>,
}

impl Control {
    pub const fn desired_min_tx(&self) -> Duration {
        Duration::from_micros(self.desired_min_tx_us as u64)
    }

    pub const fn required_min_rx(&self) -> Duration {
        Duration::from_micros(self.required_min_rx_us as u64)
    }

    /// The packet, and how many of the octets are its own: what a digest covers.
    pub fn decode(payload: &[u8]) -> Result<(Self, usize), ControlError> {
        let Some(&[first, flags, detect_mult, length]) = payload.first_chunk() else {
            return Err(ControlError::Truncated);
        };
        if first >> 5 != VERSION {
            return Err(ControlError::Version);
        }
        let authenticated = flags & AUTHENTICATION != 0;
        let length = usize::from(length);
        let least = if authenticated { HEAD_WITH_AUTH_LEN } else { HEAD_LEN };
        if length < least || length > payload.len() {
            return Err(ControlError::Length);
        }
        if detect_mult == 0 {
            return Err(ControlError::DetectMult);
        }
        if flags & MULTIPOINT != 0 {
            return Err(ControlError::Multipoint);
        }
        let mut rest = Reader::new(&payload[4..length]);
        let mut word = || rest.u32().map_err(|_| ControlError::Truncated);
        let [my_discriminator, your_discriminator] = [word()?, word()?];
        let [desired_min_tx_us, required_min_rx_us, required_min_echo_rx_us] =
            [word()?, word()?, word()?];
        if my_discriminator == 0 {
            return Err(ControlError::MyDiscriminator);
        }
        let state = State::from_bits(flags >> 6);
        if your_discriminator == 0 && !matches!(state, State::Down | State::AdminDown) {
            return Err(ControlError::YourDiscriminator);
        }
        let section = match authenticated {
            true => Some(Section::decode(&mut rest).map_err(|_| ControlError::Section)?),
            false => None,
        };
        let control = Self {
            diagnostic: Diagnostic(first & 0x1f),
            state,
            poll: flags & POLL != 0,
            is_final: flags & FINAL != 0,
            control_plane_independent: flags & CONTROL_PLANE_INDEPENDENT != 0,
            demand: flags & DEMAND != 0,
            detect_mult,
            my_discriminator,
            your_discriminator,
            desired_min_tx_us,
            required_min_rx_us,
            required_min_echo_rx_us,
            section,
        };
        Ok((control, length))
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let section_len = self.section.as_ref().map_or(0, Section::len);
        out.push(VERSION << 5 | self.diagnostic.0 & 0x1f);
        out.push(
            self.state.bits() << 6
                | flag(self.poll, POLL)
                | flag(self.is_final, FINAL)
                | flag(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
                | flag(self.section.is_some(), AUTHENTICATION)
                | flag(self.demand, DEMAND),
        );
        out.push(self.detect_mult);
        out.push(u8::try_from(HEAD_LEN + section_len).expect("a section has at most 28 octets"));
        for word in [
            self.my_discriminator,
            self.your_discriminator,
            self.desired_min_tx_us,
            self.required_min_rx_us,
            self.required_min_echo_rx_us,
        ] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        if let Some(section) = &self.section {
            section.encode(out);
        }
    }
}
