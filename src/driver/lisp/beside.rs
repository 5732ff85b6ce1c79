//! What a data plane of the kernel lacks, put beside it: the TUN device that holds first packets,
//! and the sensor of late ones. To the outside it is one data plane.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::late::{DEPARTED_MAX, LateCounters, LateSensor};
use super::tun::Tun;
use crate::dataplane::encap::{Caps, DropReason, EncapError, Encapsulator, Totals};
use crate::dataplane::tun::{Table, Use};
use crate::types::lisp::{EncapChange, EncapEvent, EntryAction, EntryCount};
use crate::types::{Instant, Prefix};

/// Another mechanism, which owns UDP 4341, with what it lacks.
///
/// * Packets that its routes (or those of the TUN's settings) lead into the device of `tun` are held,
///   and go back to the kernel when their entry leads somewhere.
/// * A prefix that is within one that FE_E takes out of the tunnel, and has an entry that leads
///   to a group, has departed: packets that still come for it are told as [`EncapEvent::Late`].
pub struct Beside<E> {
    inner: E,
    tun: Tun,
    /// `None` when the mechanism itself tells of late packets.
    late: Option<Late>,
    epoll: OwnedFd,
}

struct Late {
    sensor: LateSensor,
    allowed: Table<()>,
    /// Entries that lead to a group: some may be departed because of a prefix that is allowed
    /// later (in the list after a restart). [`DEPARTED_MAX`] at most, the others are not.
    entries: BTreeSet<Prefix>,
    /// Rings when the sensor may read on.
    timer: OwnedFd,
}

impl<E: Encapsulator> Beside<E> {
    /// `tun` was opened with [`Use::Punt`].
    pub fn new(inner: E, tun: Tun) -> io::Result<Self> {
        assert_eq!(tun.used_for(), Use::Punt, "one of two encapsulates");
        // SAFETY: plain integers; the result is checked.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a new descriptor that nobody else owns.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        for fd in [inner.event_fd(), tun.event_fd()].into_iter().flatten() {
            watch(&epoll, fd)?;
        }
        let late = match inner.caps().tells_late {
            true => None,
            false => Some(Late::new()?),
        };
        if let Some(late) = &late {
            watch(&epoll, late.timer.as_raw_fd())?;
        }
        Ok(Self { inner, tun, late, epoll })
    }

    pub fn inner(&self) -> &E {
        &self.inner
    }

    pub fn tun(&self) -> &Tun {
        &self.tun
    }

    /// `None` when the mechanism itself tells of late packets.
    pub fn late_counters(&mut self) -> Option<LateCounters> {
        self.late.as_mut().map(|late| late.sensor.counters())
    }

    fn update_sensor(&mut self) {
        let Some(late) = &mut self.late else { return };
        // Forwarding does not depend on it: senders with an old mapping learn of the move later.
        let updated = late.sensor.update().and_then(|opened| match opened {
            Some(fd) => watch(&self.epoll, fd),
            None => Ok(()),
        });
        if let Err(error) = updated {
            tracing::warn!(%error, "late packets cannot be sensed");
        }
    }
}

/// Until it is closed.
fn watch(epoll: &OwnedFd, fd: RawFd) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: the pointer describes `event`, which outlives the call.
    let rc = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Late {
    fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: plain integers; the result is checked.
        let raw = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            sensor: LateSensor::default(),
            allowed: Table::default(),
            entries: BTreeSet::new(),
            // SAFETY: `raw` is a new descriptor that nobody else owns.
            timer: unsafe { OwnedFd::from_raw_fd(raw) },
        })
    }

    fn read(&mut self, now: Instant, events: &mut Vec<EncapEvent>) -> io::Result<()> {
        self.sensor.read(now, events)?;
        // Set anew, a timer is silent until it rings; set to zero, it never does.
        let wait = match self.sensor.poll_timeout() {
            Instant::FAR_FUTURE => Duration::ZERO,
            at => at.saturating_since(now).max(Duration::from_millis(1)),
        };
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        let spec = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the pointer describes `spec`, which outlives the call; the old value is not asked.
        let rc = unsafe {
            libc::timerfd_settime(self.timer.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut())
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn follow(&mut self, change: &EncapChange) {
        match *change {
            EncapChange::AllowDecap { prefix } => {
                self.allowed.insert(prefix, ());
                let inside = self.entries.range(prefix..).take_while(|p| prefix.contains(**p));
                inside.for_each(|&departed| self.sensor.add(departed));
            }
            // Late packets are dropped and counted from now on, unless a prefix around this one
            // is allowed too.
            EncapChange::ForbidDecap { prefix } => {
                self.allowed.remove(prefix);
                let inside = self.entries.range(prefix..).take_while(|p| prefix.contains(**p));
                for entry in inside.copied().collect::<Vec<_>>() {
                    if !self.is_allowed(entry) {
                        self.sensor.remove(entry);
                    }
                }
            }
            EncapChange::SetEntry { prefix, action } => match action {
                EntryAction::Group(_) => {
                    if self.entries.len() < DEPARTED_MAX {
                        self.entries.insert(prefix);
                    }
                    if self.is_allowed(prefix) {
                        self.sensor.add(prefix);
                    }
                }
                EntryAction::Punt
                | EntryAction::Native
                | EntryAction::Drop
                | EntryAction::Rewrite(_) => self.forget(prefix),
            },
            EncapChange::RemoveEntry { prefix } => self.forget(prefix),
            EncapChange::SetGroup { .. } | EncapChange::RemoveGroup { .. } => {}
        }
    }

    fn forget(&mut self, prefix: Prefix) {
        self.entries.remove(&prefix);
        self.sensor.remove(prefix);
    }

    fn is_allowed(&mut self, prefix: Prefix) -> bool {
        let around = self.allowed.lookup_mut(prefix.addr());
        around.is_some_and(|(allowed, ())| allowed.contains(prefix))
    }
}

fn is_punt(change: &EncapChange) -> bool {
    matches!(change, EncapChange::SetEntry { action: EntryAction::Punt, .. })
}

fn is_native(change: &EncapChange) -> bool {
    matches!(change, EncapChange::SetEntry { action: EntryAction::Native, .. })
}

impl<E: Encapsulator> Encapsulator for Beside<E> {
    fn caps(&self) -> Caps {
        Caps { holds_packets: true, tells_late: true, ..self.inner.caps() }
    }

    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>) {
        let base = results.len();
        // The device knows what is punted before a packet is led into it, and sets free what it
        // holds after there is a way for it. What the mechanism is about to leave to the ordinary
        // routes is no longer led into the device, where nobody would take it.
        let mut ignored = Vec::new();
        for change in changes.iter().filter(|change| is_punt(change) || is_native(change)) {
            self.tun.apply(std::slice::from_ref(change), &mut ignored);
        }
        self.inner.apply(changes, results);
        for (change, result) in changes.iter().zip(&mut results[base..]) {
            if result.is_err() {
                continue;
            }
            if let Some(late) = &mut self.late {
                late.follow(change);
            }
            match change {
                EncapChange::SetEntry { .. } | EncapChange::RemoveEntry { .. } => {
                    ignored.clear();
                    self.tun.apply(std::slice::from_ref(change), &mut ignored);
                    *result = ignored.pop().unwrap_or(Ok(()));
                }
                EncapChange::SetGroup { .. }
                | EncapChange::RemoveGroup { .. }
                | EncapChange::AllowDecap { .. }
                | EncapChange::ForbidDecap { .. } => {}
            }
        }
        self.update_sensor();
    }

    fn begin_dump(&mut self) -> Result<(), EncapError> {
        self.inner.begin_dump()
    }

    fn continue_dump(&mut self, out: &mut Vec<EncapChange>) -> Result<bool, EncapError> {
        let base = out.len();
        let more = self.inner.continue_dump(out)?;
        // What outlived the process is known to the mechanism, and now here too.
        for change in &out[base..] {
            if let Some(late) = &mut self.late {
                late.follow(change);
            }
            // Its routes went with the device of the process before.
            if let EncapChange::SetEntry { .. } = change {
                self.tun.apply(std::slice::from_ref(change), &mut Vec::new());
            }
        }
        self.update_sensor();
        Ok(more)
    }

    fn counters(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Result<Option<Prefix>, EncapError> {
        self.inner.counters(after, limit, out)
    }

    fn count(&mut self, prefix: Prefix) -> Option<EntryCount> {
        self.inner.count(prefix)
    }

    fn used(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<Prefix>,
    ) -> Result<Option<Prefix>, EncapError> {
        self.inner.used(after, limit, out)
    }

    fn totals(&mut self) -> Result<Totals, EncapError> {
        let mut totals = self.inner.totals()?;
        let held = self.tun.totals()?;
        totals.held += held.held;
        totals.around = held.around;
        for reason in [DropReason::NotHeld, DropReason::FirstPacket] {
            totals.dropped[reason as usize] += held.dropped[reason as usize];
        }
        Ok(totals)
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn handle_readable(&mut self, events: &mut Vec<EncapEvent>) -> Result<bool, EncapError> {
        let mut more = self.inner.handle_readable(events)?;
        more |= self.tun.handle_readable(events)?;
        let now = self.tun.now();
        if let Some(late) = &mut self.late {
            late.read(now, events).map_err(|e| EncapError::Other(e.to_string()))?;
        }
        Ok(more)
    }

    fn poll_timeout(&self) -> Instant {
        self.inner.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant, events: &mut Vec<EncapEvent>) {
        self.inner.handle_timeout(now, events);
    }
}
