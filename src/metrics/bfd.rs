//! Path liveness: names, labels and help.

use prometheus::{IntCounter, IntGauge};

use super::catalogue::{Direction, Maker};
use super::label::{Label, Per, label};
use crate::proto::bfd::Discard;
use crate::wire::bfd::{ControlError, State};

label!(
    /// RFC 5880 §4.1.
    BfdState = "state" { AdminDown = "admin_down", Down = "down", Init = "init", Up = "up" }
);
label!(
    /// Why a packet was discarded: RFC 5880 §6.8.6 and §6.7, RFC 5881 §5.
    BfdDiscard = "reason" {
        /// Longer than any packet with anything behind it.
        TooLong = "too_long",
        /// From farther away than the session reaches.
        Ttl = "ttl",
        Truncated = "truncated",
        Version = "version",
        Length = "length",
        DetectMult = "detect_mult",
        Multipoint = "multipoint",
        MyDiscriminator = "my_discriminator",
        YourDiscriminator = "your_discriminator",
        Section = "auth_section",
        UnknownSession = "unknown_session",
        AuthUnexpected = "auth_unexpected",
        AuthMissing = "auth_missing",
        AuthType = "auth_type",
        AuthKeyId = "auth_key_id",
        AuthSequence = "auth_sequence",
        AuthDigest = "auth_digest",
        AdminDown = "admin_down",
    }
);

impl From<State> for BfdState {
    fn from(state: State) -> Self {
        match state {
            State::AdminDown => Self::AdminDown,
            State::Down => Self::Down,
            State::Init => Self::Init,
            State::Up => Self::Up,
        }
    }
}

impl From<Discard> for BfdDiscard {
    fn from(why: Discard) -> Self {
        match why {
            Discard::Ttl => Self::Ttl,
            Discard::Malformed(error) => match error {
                ControlError::Truncated => Self::Truncated,
                ControlError::Version => Self::Version,
                ControlError::Length => Self::Length,
                ControlError::DetectMult => Self::DetectMult,
                ControlError::Multipoint => Self::Multipoint,
                ControlError::MyDiscriminator => Self::MyDiscriminator,
                ControlError::YourDiscriminator => Self::YourDiscriminator,
                ControlError::Section => Self::Section,
            },
            Discard::UnknownSession => Self::UnknownSession,
            Discard::AuthUnexpected => Self::AuthUnexpected,
            Discard::AuthMissing => Self::AuthMissing,
            Discard::AuthType => Self::AuthType,
            Discard::AuthKeyId => Self::AuthKeyId,
            Discard::AuthSequence => Self::AuthSequence,
            Discard::AuthDigest => Self::AuthDigest,
            Discard::AdminDown => Self::AdminDown,
        }
    }
}

pub struct BfdMetrics {
    pub sessions: Per<BfdState, IntGauge>,
    pub transitions: Per<BfdState, IntCounter>,
    /// In: those that were not discarded.
    pub packets: Per<Direction, IntCounter>,
    pub discards: Per<BfdDiscard, IntCounter>,
    pub send_errors: IntCounter,
    pub receive_errors: IntCounter,
}

impl BfdMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            sessions: make.gauges("killick_bfd_sessions", "BFD sessions by their state"),
            transitions: make
                .counters("killick_bfd_transitions_total", "BFD sessions that entered a state"),
            packets: make.counters(
                "killick_bfd_packets_total",
                "BFD packets that were sent, and that were received and believed",
            ),
            discards: make
                .counters("killick_bfd_discards_total", "BFD packets that were discarded, and why"),
            send_errors: make.counter(
                "killick_bfd_send_errors_total",
                "BFD packets that the kernel did not take",
            ),
            receive_errors: make.counter(
                "killick_bfd_receive_errors_total",
                "Times a BFD socket could not be read",
            ),
        }
    }
}
