//! The structures that `rewrite.bpf.c` shares with us, field for field.

use std::net::IpAddr;

use crate::dataplane::ebpf::layout::{Plain, ip_of, words_of};
use crate::types::lisp::{EntryAction, EntryCount};

/// Changes whenever a structure in a pinned map does, so that an older killick's maps are not taken
/// for ours.
pub const LAYOUT: &str = "rewrite-v1";

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub epoch: u32,
    pub hosts4: u32,
    pub hosts6: u32,
}
// SAFETY: three words.
unsafe impl Plain for Config {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    action: u32,
    restore: u32,
    pub used: u32,
    len: u32,
    packets: u64,
    octets: u64,
    to: [u32; 4],
}
// SAFETY: four words, two double words, four words: 48 octets.
unsafe impl Plain for Entry {}

const ACTION_REWRITE: u32 = 1;
const ACTION_PUNT: u32 = 2;
const ACTION_NATIVE: u32 = 3;
const ACTION_DROP: u32 = 4;
const ACTION_CLOSED: u32 = 5;

impl Entry {
    /// As it is when it has just been set: not used, counts as before. `restore`: the prefix is a
    /// locator of ours. `None` for what these programs cannot do.
    pub fn new(action: EntryAction, restore: bool, len: u8, before: EntryCount) -> Option<Self> {
        let (action, to) = match action {
            EntryAction::Rewrite(to) => (ACTION_REWRITE, words_of(to).1),
            EntryAction::Punt => (ACTION_PUNT, [0; 4]),
            EntryAction::Native => (ACTION_NATIVE, [0; 4]),
            EntryAction::Drop => (ACTION_DROP, [0; 4]),
            EntryAction::Group(_) => return None,
        };
        let EntryCount { packets, octets } = before;
        let restore = u32::from(restore);
        Some(Self { action, restore, used: 0, len: len.into(), packets, octets, to })
    }

    /// A pool of our own locators: what of it leads to nobody is dropped.
    pub fn closed(len: u8) -> Self {
        Self { action: ACTION_CLOSED, len: len.into(), ..Self::default() }
    }

    pub fn is_closed(&self) -> bool {
        self.action == ACTION_CLOSED
    }

    /// Of an entry of this family. `None`: a closed pool, or not written by this version.
    pub fn action(&self, is_v4: bool) -> Option<EntryAction> {
        match self.action {
            ACTION_REWRITE => Some(EntryAction::Rewrite(ip_of(if is_v4 { 4 } else { 6 }, self.to))),
            ACTION_PUNT => Some(EntryAction::Punt),
            ACTION_NATIVE => Some(EntryAction::Native),
            ACTION_DROP => Some(EntryAction::Drop),
            _ => None,
        }
    }

    /// The locator elsewhere that it leads to: errors about that come back.
    pub fn locator(&self, is_v4: bool) -> Option<IpAddr> {
        match self.action(is_v4) {
            Some(EntryAction::Rewrite(to)) if self.restore == 0 => Some(to),
            _ => None,
        }
    }

    /// Whether it does the same, whatever it has counted.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.action, self.restore, self.to) == (other.action, other.restore, other.to)
    }

    pub fn count(&self) -> EntryCount {
        EntryCount { packets: self.packets, octets: self.octets }
    }
}

/// Indices into [`Totals::reason`].
pub mod reason {
    pub const NOT_ALLOWED: usize = 0;
    pub const MALFORMED: usize = 1;
    pub const POLICY: usize = 2;
    pub const TOO_BIG: usize = 3;
    pub const UNDERLAY: usize = 4;
    pub const PUNTED: usize = 5;
    pub const EVENT_LOST: usize = 6;
    pub const ERRORS: usize = 7;
    pub const COUNT: usize = 8;
}

/// Of one processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Rewritten, restored, late: packets and octets of each.
    pub counts: [[u64; 2]; 3],
    pub reason: [u64; reason::COUNT],
}
// SAFETY: double words.
unsafe impl Plain for Totals {}
