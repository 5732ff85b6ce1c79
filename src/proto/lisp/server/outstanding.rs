//! Map-Notify messages that wait for their acknowledgement (RFC 9301 §5.7): three retransmissions
//! at 3 s, three more at doubled intervals, then the receiver's next address, then the end.
//!
//! One per (whom, about what): a newer state takes the place of the one that was not acknowledged,
//! so what is retransmitted is never old. The table is bounded; when it is full a message is sent
//! once, without retransmission, and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::key::EidKey;
use super::sites::XtrIndex;
use super::{Output, SignWith};
use crate::types::Instant;
use crate::wire::lisp::{CONTROL_PORT, EidRecord, MapNotify, Message};

const RETRY: Duration = Duration::from_secs(3);
/// Retransmissions at [`RETRY`].
const RETRIES_EVEN: u8 = 3;
/// Retransmissions at all.
const RETRIES_MAX: u8 = 6;
/// Messages that wait; some 300 octets each.
pub(super) const OUTSTANDING_MAX: usize = 65_536;
/// Messages that are sent again in one turn, so that other work is done in between.
const TURN_MAX: usize = 1024;
/// Messages with one nonce whose digest is tried for one acknowledgement.
const ACK_TRIALS_MAX: usize = 4;

/// Number of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SubIndex(pub u32);

/// Whom a message is for, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whom {
    /// The answer to a subscription.
    Subscribing(SubIndex),
    /// A publication.
    Subscriber(SubIndex),
    /// What a new subscriber of an aggregate has to know beside it.
    CatchingUp(SubIndex),
    /// The xTR that had registered what is now elsewhere.
    OldXtr(XtrIndex),
}

/// What a message is about: an EID-prefix, or the traffic of some sources to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct About {
    pub key: EidKey,
    pub source: Option<EidKey>,
}

impl About {
    const FIRST: Self = Self { key: EidKey::FIRST, source: None };
    const LAST: Self = Self { key: EidKey::LAST, source: Some(EidKey::LAST) };
}

impl From<EidKey> for About {
    fn from(key: EidKey) -> Self {
        Self { key, source: None }
    }
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub whom: Whom,
    pub about: About,
    pub notify: MapNotify,
    pub sign_with: SignWith,
    /// Its addresses, the one in use first.
    pub addrs: Vec<IpAddr>,
}

struct Place {
    waiting: Waiting,
    tried: u8,
    addr: usize,
    due: Instant,
}

#[derive(Default)]
pub(super) struct Outstanding {
    slab: Vec<Option<Place>>,
    free: Vec<u32>,
    by_subject: BTreeMap<(Whom, About), u32>,
    by_nonce: BTreeSet<(u64, u32)>,
    by_due: BTreeSet<(Instant, u32)>,
    /// Sent without being remembered, because the table was full.
    pub unwatched: u64,
    pub retransmitted: u64,
}

impl Outstanding {
    pub fn len(&self) -> usize {
        self.by_subject.len()
    }

    /// How many messages wait for one subscriber's acknowledgement.
    pub fn of_subscription(&self, sub: SubIndex) -> usize {
        let whom = [Whom::Subscribing(sub), Whom::Subscriber(sub), Whom::CatchingUp(sub)];
        let of = |whom| self.by_subject.range((whom, About::FIRST)..=(whom, About::LAST));
        whom.into_iter().map(|whom| of(whom).count()).sum()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.by_due.first().map(|&(due, _)| due)
    }

    pub fn find(&self, whom: Whom, about: impl Into<About>) -> Option<&Waiting> {
        let at = *self.by_subject.get(&(whom, about.into()))?;
        self.slab[at as usize].as_ref().map(|p| &p.waiting)
    }

    /// Sends a message now (or at `send_at`, when the pace says so) and watches it.
    pub fn send(
        &mut self,
        waiting: Waiting,
        now: Instant,
        send_at: Instant,
        out: &mut Vec<Output>,
    ) {
        self.remove(waiting.whom, waiting.about);
        if self.len() >= OUTSTANDING_MAX {
            self.unwatched += 1;
            transmit(&waiting, 0, out);
            return;
        }
        let mut place = Place { waiting, tried: 0, addr: 0, due: send_at };
        if send_at <= now {
            transmit(&place.waiting, 0, out);
            place.tried = 1;
            place.due = now + RETRY;
        }
        let (subject, nonce) =
            ((place.waiting.whom, place.waiting.about), place.waiting.notify.nonce);
        let due = place.due;
        let at = match self.free.pop() {
            Some(at) => {
                self.slab[at as usize] = Some(place);
                at
            }
            None => {
                self.slab.push(Some(place));
                u32::try_from(self.slab.len() - 1).expect("OUTSTANDING_MAX is below 2^32")
            }
        };
        self.by_subject.insert(subject, at);
        self.by_nonce.insert((nonce, at));
        self.by_due.insert((due, at));
    }

    /// A newer record for a message that still waits, under its old nonce.
    pub fn amend(&mut self, whom: Whom, about: EidKey, record: &EidRecord) {
        let Some(&at) = self.by_subject.get(&(whom, about.into())) else { return };
        let Some(place) = &mut self.slab[at as usize] else { return };
        for old in &mut place.waiting.notify.records {
            if old.eid == record.eid {
                *old = record.clone();
            }
        }
    }

    pub fn remove(&mut self, whom: Whom, about: impl Into<About>) -> Option<Waiting> {
        let at = self.by_subject.remove(&(whom, about.into()))?;
        let place = self.slab[at as usize].take()?;
        self.free.push(at);
        self.by_nonce.remove(&(place.waiting.notify.nonce, at));
        self.by_due.remove(&(place.due, at));
        Some(place.waiting)
    }

    /// Everything that waits for one receiver goes.
    pub fn remove_all(&mut self, whom: Whom) {
        let of_it = (whom, About::FIRST)..=(whom, About::LAST);
        let subjects: Vec<_> = self.by_subject.range(of_it).map(|(&s, _)| s).collect();
        for (whom, about) in subjects {
            self.remove(whom, about);
        }
    }

    /// The message that an acknowledgement is for: the one with its nonce whose key the digest
    /// proves. It waits no longer.
    pub fn acknowledge(&mut self, nonce: u64, raw: &[u8]) -> Result<Waiting, AckError> {
        let mut error = AckError::Unknown;
        let mut subject = None;
        for &(_, at) in self.by_nonce.range((nonce, 0)..=(nonce, u32::MAX)).take(ACK_TRIALS_MAX) {
            let Some(place) = &self.slab[at as usize] else { continue };
            if place.waiting.sign_with.keys.verify(raw).is_ok() {
                subject = Some((place.waiting.whom, place.waiting.about));
                break;
            }
            error = AckError::Authentication;
        }
        let (whom, about) = subject.ok_or(error)?;
        self.remove(whom, about).ok_or(AckError::Unknown)
    }

    /// Sends again what is due; what was sent to every address in vain is given up.
    ///
    /// `nonce_now` says which nonce a message is sent with: its own, or a newer one when others
    /// have been sent to the same receiver since. A receiver that wants every nonce to be greater
    /// than the last would never take the old one; what is in the message is the newest state.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        given_up: &mut Vec<Waiting>,
        out: &mut Vec<Output>,
        mut nonce_now: impl FnMut(Whom, u64, &mut Vec<Output>) -> u64,
    ) {
        // What is due beyond this stays due: the caller is asked to come again at once.
        for _ in 0..TURN_MAX {
            let Some(&(due, at)) = self.by_due.first().filter(|(due, _)| *due <= now) else {
                break;
            };
            self.by_due.remove(&(due, at));
            let Some(place) = &mut self.slab[at as usize] else { continue };
            if place.tried > RETRIES_MAX {
                place.addr += 1;
                place.tried = 0;
            }
            if place.addr >= place.waiting.addrs.len() {
                let subject = (place.waiting.whom, place.waiting.about);
                given_up.extend(self.remove(subject.0, subject.1));
                continue;
            }
            self.retransmitted += u64::from(place.tried > 0 || place.addr > 0);
            let nonce = &mut place.waiting.notify.nonce;
            let newer = nonce_now(place.waiting.whom, *nonce, out);
            if newer != *nonce {
                self.by_nonce.remove(&(*nonce, at));
                self.by_nonce.insert((newer, at));
                *nonce = newer;
            }
            transmit(&place.waiting, place.addr, out);
            place.due = now + wait_after(place.tried);
            place.tried += 1;
            self.by_due.insert((place.due, at));
        }
    }
}

/// How long to wait after a retransmission of this number (0: the first transmission).
fn wait_after(tried: u8) -> Duration {
    if tried >= RETRIES_MAX {
        // The last one: as long as an answer may take.
        return RETRY;
    }
    RETRY * (1 << (tried + 1).saturating_sub(RETRIES_EVEN))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckError {
    /// Nothing waits for this nonce.
    Unknown,
    Authentication,
}

fn transmit(waiting: &Waiting, addr: usize, out: &mut Vec<Output>) {
    if let Some(&addr) = waiting.addrs.get(addr) {
        out.push(Output::Send {
            to: SocketAddr::new(addr, CONTROL_PORT),
            message: Message::MapNotify(waiting.notify.clone()),
            sign_with: Some(waiting.sign_with.clone()),
        });
    }
}
