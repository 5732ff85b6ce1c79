//! The thread that moves packets.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::Socket;

use super::Shared;
use super::device::DEVICE_QUEUE_PACKETS;
use crate::dataplane::transient::{HEADROOM, Octets, Output};
use crate::driver::lisp::mmsg::{BATCH, Outgoing, Receiver, Sender};
use crate::types::{Instant, Prefix};

/// The largest packet; and a distance between slots, or all would begin in the same few sets of
/// the processor's cache.
const SLOT: usize = HEADROOM + 65_536;
const STRIDE: usize = SLOT + 192 - SLOT % 64;

/// Batches from one source before the others get their turn.
const BATCHES_MAX: usize = 4;

/// A full send buffer is waited for: by then a link of 100 Mbit/s has sent half of it.
const SEND_WAIT_MS: libc::c_int = 50;

/// The rules stay a while after the last prefix: nodes come and go in groups.
const RULES_LINGER: Duration = Duration::from_secs(5);

/// When the kernel's lock for changes of routes is free, it takes less than this to find that out.
const QUICK: Duration = Duration::from_micros(50);

/// Packets of the prefix come, if the last one came within this.
const BUSY: Duration = Duration::from_millis(20);

/// When it is never free, we wait for it as everybody does.
const QUICK_TRIES: u32 = 64;

/// Which slots an output speaks of.
#[derive(Clone, Copy)]
enum Slots {
    Device,
    Receiver,
}

/// Which device packets are read from.
#[derive(Clone, Copy)]
enum Which {
    Hold,
    Uplink,
}

pub struct Worker {
    shared: Arc<Shared>,
    device: File,
    uplink: Option<File>,
    /// IPv4, IPv6.
    sockets: [Option<Socket>; 2],
    slots: Vec<u8>,
    sender: Sender,
    receiver: Receiver,
    outputs: Vec<Output>,
    /// Whose state is over, and how often its end is put off yet.
    closing: Option<(Prefix, u32)>,
    idle_since: Option<Instant>,
    /// A source whose packets may take their own way, when there is a good moment.
    unshutting: Option<(Prefix, u32)>,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        device: File,
        uplink: Option<File>,
        sockets: [Option<Socket>; 2],
    ) -> Self {
        Self {
            shared,
            device,
            uplink,
            sockets,
            slots: vec![0; STRIDE * BATCH],
            sender: Sender::new(),
            receiver: Receiver::new(SLOT),
            outputs: Vec::new(),
            closing: None,
            idle_since: None,
            unshutting: None,
        }
    }

    pub fn run(&mut self) {
        // SAFETY: plain integers. Timers of some 100 µs are meant as such; when refused, they are
        // 50 µs late.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.wait() {
                Ok(ready) => self.turn(ready),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "the thread of transient paths cannot wait; it ends");
                    break;
                }
            }
        }
        if let Err(error) = self.shared.kernel().diversion.remove_rules() {
            tracing::warn!(%error, "rules of the transient table stay");
        }
        self.shared.told.ring();
    }

    /// Which of device, uplink device and sockets are readable, in this order.
    fn wait(&self) -> io::Result<[bool; 4]> {
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let socket = |at: usize| self.sockets[at].as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut entries = [
            entry(self.device.as_raw_fd()),
            entry(self.uplink.as_ref().map_or(-1, AsRawFd::as_raw_fd)), // below 0: left out
            entry(socket(0)),
            entry(socket(1)),
            entry(self.shared.wake.fd()),
        ];
        let mut until = self.shared.engine().poll_timeout();
        if self.closing.is_some() || self.unshutting.is_some() {
            until = Instant::ZERO;
        } else if let Some(since) = self.idle_since {
            until = until.min(since + RULES_LINGER);
        }
        let wait = until.saturating_since(self.shared.now());
        let timeout = libc::timespec {
            // Years are as good as for ever.
            tv_sec: libc::time_t::from(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX)),
            tv_nsec: libc::c_long::from(wait.subsec_nanos().cast_signed()),
        };
        // SAFETY: the pointers and the length describe `entries` and `timeout`, which outlive the
        // call; no signal mask is given.
        let rc = unsafe {
            libc::ppoll(
                entries.as_mut_ptr(),
                entries.len() as libc::nfds_t,
                &raw const timeout,
                std::ptr::null(),
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        // Somebody has deleted a device.
        if entries[..2].iter().any(|entry| entry.revents & libc::POLLERR != 0) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "a device is gone"));
        }
        let [device, uplink, first, second, wake] = entries.map(|entry| entry.revents != 0);
        if wake {
            self.shared.wake.silence();
        }
        Ok([device, uplink, first, second])
    }

    fn turn(&mut self, [device, uplink, first, second]: [bool; 4]) {
        for (ready, which) in [(device, Which::Hold), (uplink, Which::Uplink)] {
            for _ in 0..BATCHES_MAX {
                if !ready || self.read_device(which) < BATCH {
                    break;
                }
            }
        }
        for (at, ready) in [first, second].into_iter().enumerate() {
            for _ in 0..BATCHES_MAX {
                if !ready || self.receive(at) < BATCH {
                    break;
                }
            }
        }
        // Before it is drained: no later than what is found there.
        let now = self.shared.now();
        if self.shared.engine().is_asked() {
            self.drain_device();
        }
        let mut engine = self.shared.engine();
        engine.handle_timeout(now, &mut self.outputs);
        engine.flush(BATCH, now, &mut self.outputs);
        drop(engine);
        self.execute(Slots::Device);
        self.close_path();
        self.unshut();
        self.let_rules_go();
        if self.shared.engine().has_events() {
            self.shared.told.ring();
        }
    }

    /// Reads a batch; how many packets there were.
    fn read_device(&mut self, which: Which) -> usize {
        let mut device = match (which, &self.uplink) {
            (Which::Hold, _) => &self.device,
            (Which::Uplink, Some(uplink)) => uplink,
            (Which::Uplink, None) => return 0,
        };
        let mut lens = [0; BATCH];
        let mut count = 0;
        while count < BATCH {
            match device.read(&mut self.slots[count * STRIDE..][HEADROOM..SLOT]) {
                Ok(len) => {
                    lens[count] = len;
                    count += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Empty; or down, which somebody did on purpose.
                Err(_) => break,
            }
        }
        if count == 0 {
            return 0;
        }
        let mut engine = self.shared.engine();
        let now = self.shared.now();
        for (slot, &len) in lens[..count].iter().enumerate() {
            let octets = &mut self.slots[slot * STRIDE..][..HEADROOM + len];
            match which {
                Which::Hold => engine.handle_device(slot, octets, now, &mut self.outputs),
                Which::Uplink => engine.handle_source(slot, octets, now, &mut self.outputs),
            }
        }
        drop(engine);
        self.execute(Slots::Device);
        count
    }

    fn drain_device(&mut self) {
        self.drain(Which::Hold);
    }

    /// Until nothing is there; for as long as it takes to empty it once.
    fn drain(&mut self, which: Which) {
        for _ in 0..DEVICE_QUEUE_PACKETS / BATCH {
            if self.read_device(which) < BATCH {
                return;
            }
        }
    }

    fn receive(&mut self, at: usize) -> usize {
        let Some(socket) = &self.sockets[at] else { return 0 };
        // Errors are about packets sent, or the socket is empty.
        let Ok(count) = self.receiver.receive(socket.as_raw_fd()) else { return 0 };
        let mut engine = self.shared.engine();
        let now = self.shared.now();
        for slot in 0..count {
            match self.receiver.get(slot) {
                Some(got) => {
                    engine.handle_path(slot, got.from, got.octets, now, &mut self.outputs);
                }
                None => engine.count_malformed(),
            }
        }
        drop(engine);
        self.execute(Slots::Receiver);
        count
    }

    /// Writes and sends, each in order.
    fn execute(&mut self, which: Slots) {
        let Self { outputs, slots, receiver, sender, sockets, device, .. } = self;
        let octets = |octets| find(octets, which, slots, receiver);
        let mut refused = 0;
        for output in outputs.iter() {
            if let Output::Write(packet) = output {
                let mut device = &*device;
                refused += u64::from(device.write(octets(packet)).is_err());
            }
        }
        for (socket, ipv4) in sockets.iter().zip([true, false]) {
            let datagrams = outputs.iter().filter_map(|output| match output {
                Output::Send { to, octets: packet } if to.is_ipv4() == ipv4 => {
                    Some(Outgoing { to: *to, from: None, octets: octets(packet) })
                }
                Output::Send { .. } | Output::Write(_) => None,
            });
            refused += match socket {
                Some(socket) => {
                    sender.send_within(socket.as_raw_fd(), SEND_WAIT_MS, datagrams).refused
                }
                None => datagrams.count() as u64,
            };
        }
        outputs.clear();
        if refused > 0 {
            self.shared.engine().count_refused(refused);
        }
    }

    /// Ends a state that is over: the route first, then the state. One try in a turn, so that others
    /// do not wait.
    fn close_path(&mut self) {
        let now = self.shared.now();
        let Some((prefix, tries)) = self.closing.take().or_else(|| self.next_closing(now)) else {
            return;
        };
        // A packet that comes to the device after we have looked for the last time, and before its
        // route is gone, can be overtaken by one that comes right after. So this moment is made
        // short, undisturbed, and put right after a packet: then the next one is as far away as it
        // can be.
        if tries > 0 {
            await_packet(self.device.as_raw_fd());
            self.drain_device();
        }
        let shared = Arc::clone(&self.shared);
        let undisturbed = Undisturbed::begin();
        let mut kernel = shared.kernel();
        if tries > 0 {
            let begun = shared.now();
            kernel.diversion.await_lock(prefix);
            if shared.now() - begun > QUICK {
                self.closing = Some((prefix, tries - 1));
                return;
            }
        }
        let may = shared.engine().may_finish(prefix);
        if may {
            self.drain_device();
            kernel.remove(prefix);
            self.drain_device();
        }
        drop(undisturbed);
        if may {
            shared.engine().finish(prefix, shared.now(), &mut self.outputs);
            self.execute(Slots::Device);
        }
    }

    /// The next state to end, and how often to try to find a good moment for it.
    fn next_closing(&mut self, now: Instant) -> Option<(Prefix, u32)> {
        let closing = self.shared.engine().next_closing(now, &mut self.outputs);
        let (prefix, last_at) = closing?;
        self.execute(Slots::Device);
        Some((prefix, if now - last_at < BUSY { QUICK_TRIES } else { 0 }))
    }

    /// Packets of a source take their own way from now on, with the same care.
    fn unshut(&mut self) {
        let now = self.shared.now();
        let next = self.unshutting.take();
        let next = next.or_else(|| Some((self.shared.engine().next_unshut(now)?, QUICK_TRIES)));
        let Some((prefix, tries)) = next else { return };
        let Some(fd) = self.uplink.as_ref().map(AsRawFd::as_raw_fd) else { return };
        if tries > 0 {
            await_packet(fd);
            self.drain(Which::Uplink);
        }
        let shared = Arc::clone(&self.shared);
        let undisturbed = Undisturbed::begin();
        let mut kernel = shared.kernel();
        if tries > 0 {
            let begun = shared.now();
            kernel.diversion.await_lock(prefix);
            if shared.now() - begun > QUICK {
                self.unshutting = Some((prefix, tries - 1));
                return;
            }
        }
        self.drain(Which::Uplink);
        let done = kernel.diversion.unshut(prefix);
        self.drain(Which::Uplink);
        drop(undisturbed);
        if let Err(error) = done {
            tracing::error!(%prefix, %error, "packets of a source still take the detour");
        }
    }

    fn let_rules_go(&mut self) {
        let now = self.shared.now();
        if !self.shared.engine().is_idle() {
            self.idle_since = None;
            return;
        }
        let mut kernel = self.shared.kernel();
        if !kernel.diversion.has_rules() || !kernel.diverted.is_empty() {
            self.idle_since = None;
            return;
        }
        match self.idle_since {
            None => self.idle_since = Some(now),
            Some(since) if since + RULES_LINGER <= now => {
                self.idle_since = None;
                if let Err(error) = kernel.diversion.remove_rules() {
                    tracing::warn!(%error, "rules of the transient table stay");
                }
            }
            Some(_) => {}
        }
    }
}

/// For some microseconds, nobody else gets this processor. Without the right to that (CAP_SYS_NICE)
/// it is as it is.
struct Undisturbed {
    policy: libc::c_int,
}

impl Undisturbed {
    fn begin() -> Self {
        // SAFETY: plain integers.
        let policy = unsafe { libc::sched_getscheduler(0) };
        Self::set(libc::SCHED_FIFO, 1);
        Self { policy }
    }

    fn set(policy: libc::c_int, priority: libc::c_int) {
        let param = libc::sched_param { sched_priority: priority };
        // SAFETY: the pointer describes `param`, which outlives the call; 0 is this thread.
        unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        // A policy of real time that somebody else has given us is left to be.
        if self.policy == libc::SCHED_OTHER || self.policy == libc::SCHED_BATCH {
            Self::set(self.policy, 0);
        }
    }
}

/// Until a packet is there, or for a millisecond: whoever sends more often than that is known to
/// have sent then.
fn await_packet(fd: RawFd) {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer describes `entry`, which outlives the call. Its result does not matter.
    unsafe { libc::poll(&raw mut entry, 1, 1) };
}

fn find<'a>(octets: &'a Octets, which: Slots, slots: &'a [u8], receiver: &'a Receiver) -> &'a [u8] {
    match (octets, which) {
        (Octets::Slot { slot, start, len }, Slots::Device) => {
            &slots[slot * STRIDE + start..][..*len]
        }
        (Octets::Slot { slot, start, len }, Slots::Receiver) => {
            &receiver.octets(*slot)[*start..][..*len]
        }
        (Octets::Own { octets, start }, _) => &octets[*start..],
    }
}
