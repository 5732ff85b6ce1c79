//! The data plane of a relocation at work: a TUN device that packets of moving nodes are led to, a
//! second one for sources that are not authorised yet, the sockets of transient paths, and a thread
//! that moves packets between them through [`Engine`].
//!
//! As in the user-space data plane of LISP, the engine is shared with the routing thread under a
//! lock that is held for one batch of packets and never during a system call. A change is in force,
//! and its route in the kernel, when [`Transient::apply`] returns: the caller writes the route, so
//! that nobody waits for a thread to wake up. Whoever changes what has a route holds the lock of the
//! kernel's part from the decision until the kernel has it; that lock is taken first.
//!
//! The devices are not persistent: they end with the process, and their routes with them. So no
//! end of the process leaves a black hole.

mod device;
mod worker;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time;

use self::worker::Worker;
use super::lisp::tun::Bell;
use crate::dataplane::OpError;
use crate::dataplane::netlink::{Diversion, DiversionOptions};
use crate::dataplane::transient::{Config, Engine, PathView, TransientError, TransientTotals};
use crate::types::transient::{TransientChange, TransientEvent};
use crate::types::{Instant, Prefix};

/// The device, unless told otherwise.
pub const DEVICE: &str = "killick-hold";

/// The device of sources that are not authorised yet.
pub const UPLINK_DEVICE: &str = "killick-uplink";

/// Events told to the routing thread in one go.
const EVENTS_PER_CALL: usize = 256;

#[derive(Clone, Debug)]
pub struct Settings {
    pub engine: Config,
    pub device: String,
    /// Holds packets of sources that are not authorised yet; they come marked
    /// ([`DiversionOptions::mark`]), see `dataplane::filter`. `None`: nobody marks them.
    pub uplink: Option<String>,
    pub diversion: DiversionOptions,
}

impl Settings {
    pub fn new(engine: Config) -> Self {
        Self {
            engine,
            device: DEVICE.to_owned(),
            uplink: Some(UPLINK_DEVICE.to_owned()),
            diversion: DiversionOptions::default(),
        }
    }
}

/// What both threads hold.
struct Shared {
    kernel: Mutex<Kernel>,
    engine: Mutex<Engine>,
    /// For the data thread.
    wake: Bell,
    /// For the routing thread: there are events.
    told: Bell,
    stop: AtomicBool,
    started: time::Instant,
}

/// The routes to the device.
struct Kernel {
    diversion: Diversion,
    diverted: BTreeSet<Prefix>,
}

impl Kernel {
    fn add(&mut self, prefix: Prefix) -> Result<(), OpError> {
        if !self.diverted.contains(&prefix) {
            self.diversion.add(prefix)?;
            self.diverted.insert(prefix);
        }
        Ok(())
    }

    fn remove(&mut self, prefix: Prefix) {
        self.diverted.remove(&prefix);
        // The thread gives back to the kernel what comes for a prefix without a state.
        if let Err(error) = self.diversion.remove(prefix) {
            tracing::error!(%prefix, %error, "a route of the transient table stays");
        }
    }
}

impl Shared {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        // A panic ends the data thread, which `events` tells; the routing thread goes on.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(micros)
    }
}

/// The data plane of relocations, as the routing thread sees it. Dropped, the devices are gone and
/// the routes with them.
pub struct Transient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    devices: Vec<String>,
    /// The device of sources that are not authorised yet; the thread has it.
    uplink: Option<RawFd>,
}

/// Whether there is a packet. The descriptor may be anything: then the answer is of no use, but
/// nothing is read.
fn is_readable(fd: RawFd) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer describes `entry`, which outlives the call.
    let rc = unsafe { libc::poll(&raw mut entry, 1, 0) };
    rc == 1
}

impl Transient {
    /// Makes the devices and opens the sockets, in the network namespace of the calling thread.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let (device, link) = device::open(&settings.device)?;
        let uplink = settings.uplink.as_deref().map(device::open).transpose()?;
        let sockets = device::sockets(&settings.engine)?;
        let mut diversion = Diversion::open(settings.diversion, (link, settings.device.clone()))
            .map_err(io::Error::other)?;
        let uplink = match uplink {
            Some((device, link)) => {
                diversion.divert_marked(link).map_err(io::Error::other)?;
                Some(device)
            }
            None => {
                diversion.forget_marked().map_err(io::Error::other)?;
                None
            }
        };
        let shared = Arc::new(Shared {
            kernel: Mutex::new(Kernel { diversion, diverted: BTreeSet::new() }),
            engine: Mutex::new(Engine::new(settings.engine.clone())),
            wake: Bell::new()?,
            told: Bell::new()?,
            stop: AtomicBool::new(false),
            started: time::Instant::now(),
        });
        let uplink_fd = uplink.as_ref().map(AsRawFd::as_raw_fd);
        let mut worker = Worker::new(Arc::clone(&shared), device, uplink, sockets);
        let thread = std::thread::Builder::new()
            .name("killick-hold".to_owned())
            .spawn(move || worker.run())?;
        let devices = [Some(&settings.device), settings.uplink.as_ref()];
        let devices = devices.into_iter().flatten().cloned().collect();
        Ok(Self { shared, thread: Some(thread), devices, uplink: uplink_fd })
    }

    /// In force, and in the kernel, when this returns.
    pub fn apply(&mut self, change: &TransientChange) -> Result<(), TransientError> {
        let mut kernel = self.shared.kernel();
        let now = self.shared.now();
        if let TransientChange::Pass { prefix } = *change {
            self.keep_shut(&mut kernel, prefix, now);
        }
        let wanted = self.shared.engine().apply(change, now)?;
        let done = match wanted.map(|prefix| (prefix, kernel.add(prefix))) {
            None => Ok(()),
            Some((prefix, Ok(()))) => {
                match change {
                    TransientChange::Hold { .. } | TransientChange::Gate { .. } => {
                        self.shared.engine().tell_holding(prefix);
                        self.shared.told.ring();
                    }
                    TransientChange::Forward { .. }
                    | TransientChange::Release { .. }
                    | TransientChange::Pass { .. }
                    | TransientChange::Refuse { .. } => {}
                }
                Ok(())
            }
            Some((prefix, Err(error))) => {
                self.shared.engine().give_up(prefix, now);
                Err(error.into())
            }
        };
        drop(kernel);
        // There is something to send, or a new time to wake up at.
        self.shared.wake.ring();
        done
    }

    /// The kernel is about to deliver to the prefix, and with that lets its packets pass: not before
    /// those that it has sent already.
    fn keep_shut(&self, kernel: &mut Kernel, prefix: Prefix, now: Instant) {
        let Some(uplink) = self.uplink else { return };
        if !self.shared.engine().holds_source(prefix) && !is_readable(uplink) {
            return;
        }
        match kernel.diversion.shut(prefix) {
            Ok(()) => self.shared.engine().note_shut(prefix, now),
            Err(error) => tracing::warn!(%prefix, %error, "packets may overtake those that waited"),
        }
    }

    /// Readable when there are events.
    pub fn event_fd(&self) -> RawFd {
        self.shared.told.fd()
    }

    /// Fetches events; true when there are more. An error when the data thread has ended: nothing
    /// is held any more, and the kernel delivers as if this were not there once it is dropped.
    pub fn events(&mut self, events: &mut Vec<TransientEvent>) -> Result<bool, TransientError> {
        // Silenced first: an event that comes meanwhile rings again.
        self.shared.told.silence();
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            return Err(TransientError::Other("the thread of transient paths has ended".into()));
        }
        let mut engine = self.shared.engine();
        for _ in 0..EVENTS_PER_CALL {
            match engine.pop_event() {
                Some(event) => events.push(event),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    pub fn totals(&self) -> TransientTotals {
        let device_dropped = device::dropped(&self.devices);
        TransientTotals { device_dropped, ..self.shared.engine().totals() }
    }

    /// In order of prefixes, those after `after`.
    pub fn paths(&self, after: Option<Prefix>, limit: usize) -> Vec<PathView> {
        self.shared.engine().paths(after, limit)
    }

    /// By the clock of [`PathView::since`].
    pub fn now(&self) -> Instant {
        self.shared.now()
    }
}

impl Drop for Transient {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake.ring();
        if let Some(thread) = self.thread.take() {
            // It has said what there was to say when it panicked.
            let _ = thread.join();
        }
    }
}
