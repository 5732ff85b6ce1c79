//! The encapsulating data plane: what FE_I puts into the tunnel and what FE_E takes out.
//!
//! The control plane speaks in [`EncapChange`]s and hears [`EncapEvent`]s; between it and a back
//! end stands the [`Reconciler`], which keeps what should be there, tries again what failed, and
//! adopts after a restart what the back end still has. A back end is one [`Encapsulator`].
//!
//! What all back ends have in common, so that the control plane need not know which one it is:
//!
//! * **FE_I.** The longest entry decides. A packet to no entry, or to one that is
//!   [`EntryAction::Native`](crate::types::lisp::EntryAction::Native), goes by the routes of
//!   others; so what is attached here, within a pool that is punted, is a native entry.
//! * **FE_E.** A packet from the tunnel to a prefix that is not allowed is dropped and counted. One
//!   that is allowed is then forwarded like any other packet: if the longest entry leads to a group
//!   (the node has left, and the entry says where it is now), it goes there by tunnel, and a back
//!   end that can tell says [`EncapEvent::Late`]; otherwise the kernel's routes deliver it.
//! * A group that is unreachable, and an entry that is dropped, count what they drop.

mod carve;
pub mod fake;
pub mod gpe;
mod guard;
pub mod reconcile;

pub use reconcile::Reconciler;

use super::OpError;
use crate::types::lisp::{EncapChange, EncapEvent, EntryCount};
use crate::types::{Instant, Prefix};

/// What a back end can do; constant once it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// `gpe`, `ebpf`, `tun`, `fake`: the label in listings and metrics.
    pub name: &'static str,
    /// Families of EIDs, inside.
    pub inner: Families,
    /// Families of locators, outside. A member of a group that is not usable is left out.
    pub outer: Families,
    /// [`Encapsulator::counters`] and [`Encapsulator::used`] know each entry.
    pub counts_entries: bool,
    /// Packets to a punted entry are held until it leads somewhere, and then sent there.
    pub holds_packets: bool,
    /// [`EncapEvent::Late`] is told.
    pub tells_late: bool,
    pub entries_max: usize,
    /// Group numbers below this are understood.
    pub groups_max: u32,
    pub decap_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Families {
    pub const BOTH: Self = Self { ipv4: true, ipv6: true };
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncapError {
    /// Of the back end or of the kernel: no room for this entry, group or prefix.
    #[error("the table is full")]
    Full,
    #[error("there is no such group")]
    NoGroup,
    #[error("{0} is not possible with this data plane")]
    Unsupported(&'static str),
    #[error("the interface is down or gone")]
    LinkDown,
    #[error("not permitted: CAP_NET_ADMIN is needed")]
    NotPermitted,
    #[error("{0}")]
    Other(String),
}

/// What encapsulating back ends say to [`EntryAction::Rewrite`](crate::types::lisp::EntryAction).
pub(super) const REWRITING: &str = "rewriting";

impl From<OpError> for EncapError {
    fn from(error: OpError) -> Self {
        match error {
            OpError::LinkDown => Self::LinkDown,
            OpError::NotPermitted => Self::NotPermitted,
            OpError::Exists | OpError::Missing => Self::Other(error.to_string()),
            OpError::Other(text) => Self::Other(text),
        }
    }
}

/// Why a packet was dropped; a label in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// From the tunnel, to a prefix that FE_E has not been told about.
    NotAllowed,
    /// From the tunnel: no LISP header, or one of an unknown kind, or no IP packet behind it.
    Malformed,
    /// From the tunnel, of an instance that is not ours.
    Instance,
    /// To an entry that says drop.
    Policy,
    /// To a group without a reachable locator.
    Unreachable,
    /// To a punted entry, and could not be held.
    NotHeld,
    /// Larger than the tunnel carries; its source was told.
    TooBig,
    /// Its time to live is over; its source was told.
    TimeToLive,
    /// The underlay did not take it.
    Underlay,
    /// To a punted entry whose first packets are not wanted.
    FirstPacket,
}

impl DropReason {
    pub const ALL: [Self; 10] = [
        Self::NotAllowed,
        Self::Malformed,
        Self::Instance,
        Self::Policy,
        Self::Unreachable,
        Self::NotHeld,
        Self::TooBig,
        Self::TimeToLive,
        Self::Underlay,
        Self::FirstPacket,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Malformed => "malformed",
            Self::Instance => "instance",
            Self::Policy => "policy",
            Self::Unreachable => "unreachable",
            Self::NotHeld => "not_held",
            Self::TooBig => "too_big",
            Self::TimeToLive => "time_to_live",
            Self::Underlay => "underlay",
            Self::FirstPacket => "first_packet",
        }
    }
}

/// Packets of all entries together, since the back end was opened (or, where the kernel counts, since
/// the counters were made). What a back end cannot count stays 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Put into a tunnel.
    pub encapsulated: EntryCount,
    /// Taken out of one and forwarded.
    pub decapsulated: EntryCount,
    /// Taken out and put into a tunnel again: the node has left.
    pub late: EntryCount,
    /// To a punted entry, and sent by the ordinary routes meanwhile.
    pub around: EntryCount,
    /// Held for a punted entry, now.
    pub held: u64,
    /// In the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
}

/// A back end. All calls finish at once, on the routing thread.
///
/// Group numbers that come here are the [`Reconciler`]'s: dense from 0, and one that is still
/// in use by adopted entries is not given to another group. So they may index an array.
pub trait Encapsulator {
    fn caps(&self) -> Caps;

    /// Applies the changes in order; `results` receives one result for each.
    ///
    /// Each change may be repeated: setting what is set and removing what is not there succeed. A
    /// set replaces without a moment in between in which packets are lost. The group of an entry is
    /// set before the entry, and removed after its last one. Members of a group come as
    /// [`reconcile::usable`] leaves them, and are listed so.
    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>);

    /// Begins to list what is there, from before a restart too; where nothing outlives the
    /// process the list is empty.
    fn begin_dump(&mut self) -> Result<(), EncapError>;

    /// A piece of the list (some hundred, so that it takes well below a millisecond), as the changes
    /// that would make it: all groups first. True when there is more.
    fn continue_dump(&mut self, out: &mut Vec<EncapChange>) -> Result<bool, EncapError>;

    /// Counts of up to `limit` entries, in an order of the back end's own, from behind `after` on.
    /// The cursor for the next call, `None` at the end; a cursor whose entry is gone meanwhile may
    /// begin anew. [`EncapError::Unsupported`] unless [`Caps::counts_entries`].
    fn counters(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Result<Option<Prefix>, EncapError>;

    /// The counts of one entry; `None` when it is not there, or cannot be counted.
    fn count(&mut self, _prefix: Prefix) -> Option<EntryCount> {
        None
    }

    /// Of up to `limit` entries looked at, those that carried packets since they were last looked at
    /// here (or since they were set). As [`Self::counters`] otherwise.
    fn used(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<Prefix>,
    ) -> Result<Option<Prefix>, EncapError>;

    fn totals(&mut self) -> Result<Totals, EncapError>;

    /// Readable when [`Self::handle_readable`] has something to do; asked once, after opening.
    fn event_fd(&self) -> Option<std::os::fd::RawFd>;

    /// Reads what there is, up to a bound; true when there may be more.
    fn handle_readable(&mut self, events: &mut Vec<EncapEvent>) -> Result<bool, EncapError>;

    /// When to call [`Self::handle_timeout`] next: packets are not held for ever.
    fn poll_timeout(&self) -> Instant {
        Instant::FAR_FUTURE
    }

    fn handle_timeout(&mut self, _now: Instant, _events: &mut Vec<EncapEvent>) {}
}

/// The driver chooses the back end by configuration.
impl<E: Encapsulator + ?Sized> Encapsulator for Box<E> {
    fn caps(&self) -> Caps {
        (**self).caps()
    }

    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>) {
        (**self).apply(changes, results);
    }

    fn begin_dump(&mut self) -> Result<(), EncapError> {
        (**self).begin_dump()
    }

    fn continue_dump(&mut self, out: &mut Vec<EncapChange>) -> Result<bool, EncapError> {
        (**self).continue_dump(out)
    }

    fn counters(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Result<Option<Prefix>, EncapError> {
        (**self).counters(after, limit, out)
    }

    fn count(&mut self, prefix: Prefix) -> Option<EntryCount> {
        (**self).count(prefix)
    }

    fn used(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<Prefix>,
    ) -> Result<Option<Prefix>, EncapError> {
        (**self).used(after, limit, out)
    }

    fn totals(&mut self) -> Result<Totals, EncapError> {
        (**self).totals()
    }

    fn event_fd(&self) -> Option<std::os::fd::RawFd> {
        (**self).event_fd()
    }

    fn handle_readable(&mut self, events: &mut Vec<EncapEvent>) -> Result<bool, EncapError> {
        (**self).handle_readable(events)
    }

    fn poll_timeout(&self) -> Instant {
        (**self).poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant, events: &mut Vec<EncapEvent>) {
        (**self).handle_timeout(now, events);
    }
}
