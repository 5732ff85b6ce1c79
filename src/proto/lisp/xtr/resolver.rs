//! Questions to the mapping system: how often they are repeated, to whom, and which answer is theirs
//! (RFC 9301 §5.3, §6.1, §8.1).
//!
//! A question is kept, also after its answer, for as long as the same one must not be asked again.
//! Its nonce stays the same over its repetitions, so that an answer may be late.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::request::Asker;
use super::{Nonces, Output, Security, record};
use crate::auth::Otk;
use crate::types::lisp::InstanceId;
use crate::types::{Instant, Prefix};

/// "MUST be rate limited to 1 per second per EID-Prefix" (§5.3).
const SPACING: Duration = Duration::from_secs(1);
/// "No more than once every 3 seconds", asked because of an SMR (§6.1).
const SPACING_SOLICITED: Duration = Duration::from_secs(3);
/// "After 10 retransmits ..." (§5.3): with the first one.
const SENT_MAX: u32 = 11;
/// "... the sender MUST wait 30 seconds."
const HOLD: Duration = Duration::from_secs(30);

/// Questions at once. More are refused and counted: whoever sends to ever new destinations fills
/// this table, not the memory.
pub const QUESTIONS_MAX: usize = 65_536;

/// Unanswered requests in a row after which another resolver is asked first.
const UNANSWERED_MAX: u32 = 3;

/// Why a mapping is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A packet from this source met no mapping.
    Miss(IpAddr),
    /// A mapping in use is about to end, or may have been missed to change.
    Refresh,
    /// An SMR: through the mapping system, and marked (§6.1).
    Solicited,
}

/// Why a question is not asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAsked {
    /// It is being asked, or was just now.
    Already,
    /// Nobody answers: thirty seconds of silence.
    Held,
    Full,
    NoResolver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Repeated at `at`.
    Asking { sent: u32 },
    /// Forgotten at `at`.
    Held,
    /// Forgotten at `at`, or asked again if there was another SMR.
    Answered { again: bool },
}

#[derive(Debug)]
struct Question {
    iid: InstanceId,
    reason: Reason,
    nonce: u64,
    stage: Stage,
    at: Instant,
    first_sent_at: Instant,
    sent_at: Instant,
    /// Whom the last one went to.
    resolver: usize,
    /// What its answer has to be signed with (RFC 9303).
    otk: Option<Otk>,
}

/// A question that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub iid: InstanceId,
    pub prefix: Prefix,
    /// What was learnt before this may be older than the answer.
    pub since: Instant,
}

#[derive(Debug)]
pub struct Resolver {
    asker: Asker,
    resolvers: Vec<IpAddr>,
    /// Whom to ask first, and how many it has left unanswered in a row.
    preferred: usize,
    unanswered: u32,
    questions: BTreeMap<Prefix, Question>,
    by_nonce: BTreeMap<u64, Prefix>,
    timers: BTreeSet<(Instant, Prefix)>,
    nonces: Nonces,
    /// What each of the resolvers shares with us, where answers have to be proved (RFC 9303).
    security: Option<BTreeMap<IpAddr, Security>>,
    sent: u64,
    questions_max: usize,
}

impl Resolver {
    pub fn new(asker: Asker, resolvers: Vec<IpAddr>, nonces: Nonces) -> Self {
        Self {
            asker,
            resolvers,
            preferred: 0,
            unanswered: 0,
            questions: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            timers: BTreeSet::new(),
            nonces,
            security: None,
            sent: 0,
            questions_max: QUESTIONS_MAX,
        }
    }

    /// Answers are believed only with a proof from here on.
    pub fn set_security(&mut self, keys: BTreeMap<IpAddr, Security>) {
        // To one without a key the one-time key would have to go bare.
        self.resolvers.retain(|resolver| keys.contains_key(resolver));
        self.security = Some(keys);
    }

    pub fn is_secured(&self) -> bool {
        self.security.is_some()
    }

    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// Whom to ask now, if anybody.
    pub fn current(&self) -> Option<IpAddr> {
        self.resolvers.get(self.preferred).copied()
    }

    /// Asked of `current` and not answered, or answered, by another machine of this ITR.
    pub fn note(&mut self, answered: bool) {
        if answered {
            self.unanswered = 0;
        } else {
            self.note_unanswered(self.preferred);
        }
    }

    fn note_unanswered(&mut self, resolver: usize) {
        if resolver != self.preferred {
            return;
        }
        self.unanswered += 1;
        if self.unanswered >= UNANSWERED_MAX {
            self.unanswered = 0;
            self.preferred = (self.preferred + 1) % self.resolvers.len().max(1);
        }
    }

    pub fn ask(
        &mut self,
        iid: InstanceId,
        prefix: Prefix,
        reason: Reason,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), NotAsked> {
        if self.resolvers.is_empty() {
            return Err(NotAsked::NoResolver);
        }
        if let Some(question) = self.questions.get_mut(&prefix) {
            match &mut question.stage {
                Stage::Asking { .. } => return Err(NotAsked::Already),
                Stage::Held => return Err(NotAsked::Held),
                Stage::Answered { again } => {
                    // What moved again shortly after is asked again as soon as that is allowed.
                    *again |= reason == Reason::Solicited;
                    let solicited = Reason::Solicited;
                    let spacing = if reason == solicited && question.reason == solicited {
                        SPACING_SOLICITED
                    } else {
                        SPACING
                    };
                    if now < question.sent_at + spacing {
                        return Err(NotAsked::Already);
                    }
                }
            }
            self.forget(prefix);
        } else if self.questions.len() >= self.questions_max {
            return Err(NotAsked::Full);
        }
        let nonce = self.nonces.random();
        let otk = self.security.as_ref().map(|_| Security::one_time_key(&mut self.nonces));
        let question = Question {
            otk,
            iid,
            reason,
            nonce,
            stage: Stage::Asking { sent: 0 },
            at: now,
            first_sent_at: now,
            sent_at: now,
            resolver: self.preferred,
        };
        self.by_nonce.insert(nonce, prefix);
        self.timers.insert((now, prefix));
        self.questions.insert(prefix, question);
        self.send(prefix, now, out);
        Ok(())
    }

    fn send(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let preferred = self.preferred;
        let question = self.questions.get_mut(&prefix).expect("the caller has it");
        let Stage::Asking { sent } = &mut question.stage else { return };
        // A repetition goes to the next one: a single loss costs nothing, a dead one a second.
        let turn = usize::try_from(*sent).expect("at most eleven");
        question.resolver = (preferred + turn) % self.resolvers.len();
        *sent += 1;
        question.sent_at = now;
        self.timers.remove(&(question.at, prefix));
        question.at = now + SPACING;
        self.timers.insert((question.at, prefix));
        let mut request = self.asker.request(question.nonce, question.iid, prefix);
        let source = match question.reason {
            Reason::Miss(source) => {
                request.source_eid = record::eid(question.iid, Prefix::host(source));
                Some(source)
            }
            Reason::Refresh => None,
            Reason::Solicited => {
                request.smr_invoked = true;
                None
            }
        };
        self.sent += 1;
        let resolver = self.resolvers[question.resolver];
        let key = self.security.as_ref().and_then(|keys| keys.get(&resolver));
        let keys = key.zip(question.otk.as_ref());
        let security = keys.map(|(security, otk)| security.protect(otk, question.nonce));
        out.push(self.asker.encapsulated(resolver, prefix, source, &request, security));
    }

    /// The key that the answer to an outstanding question has to be signed with.
    pub fn otk(&self, nonce: u64) -> Option<&Otk> {
        self.questions[self.by_nonce.get(&nonce)?].otk.as_ref()
    }

    /// The question that this is the nonce of. An answered one has none any more.
    pub fn find(&self, nonce: u64) -> Option<Asked> {
        let &prefix = self.by_nonce.get(&nonce)?;
        let question = &self.questions[&prefix];
        Some(Asked { iid: question.iid, prefix, since: question.first_sent_at })
    }

    /// It has its answer. Kept without its nonce until it may be asked again.
    pub fn handle_answer(&mut self, nonce: u64) {
        let Some(prefix) = self.by_nonce.remove(&nonce) else { return };
        let question = self.questions.get_mut(&prefix).expect("nonces name what is there");
        if question.resolver == self.preferred {
            self.unanswered = 0;
        }
        let spacing = match question.reason {
            Reason::Solicited => SPACING_SOLICITED,
            Reason::Miss(_) | Reason::Refresh => SPACING,
        };
        self.timers.remove(&(question.at, prefix));
        question.stage = Stage::Answered { again: false };
        question.at = question.sent_at + spacing;
        self.timers.insert((question.at, prefix));
    }

    pub fn poll_timeout(&self) -> Instant {
        self.timers.first().map_or(Instant::FAR_FUTURE, |&(at, _)| at)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(&(_, prefix)) = self.timers.first().filter(|(at, _)| *at <= now) {
            let question = &self.questions[&prefix];
            let (iid, resolver) = (question.iid, question.resolver);
            match question.stage {
                Stage::Asking { sent } => {
                    self.note_unanswered(resolver);
                    if sent < SENT_MAX {
                        self.send(prefix, now, out);
                    } else {
                        self.hold(prefix, now);
                    }
                }
                Stage::Held | Stage::Answered { again: false } => self.forget(prefix),
                Stage::Answered { again: true } => {
                    self.forget(prefix);
                    // There is room: its own place.
                    let _asked = self.ask(iid, prefix, Reason::Solicited, now, out);
                }
            }
        }
    }

    fn hold(&mut self, prefix: Prefix, now: Instant) {
        let question = self.questions.get_mut(&prefix).expect("the caller has it");
        self.by_nonce.remove(&question.nonce);
        self.timers.remove(&(question.at, prefix));
        question.stage = Stage::Held;
        question.at = now + HOLD;
        self.timers.insert((question.at, prefix));
    }

    fn forget(&mut self, prefix: Prefix) {
        if let Some(question) = self.questions.remove(&prefix) {
            self.timers.remove(&(question.at, prefix));
            self.by_nonce.remove(&question.nonce);
        }
    }

    /// Questions without an answer.
    pub fn outstanding(&self) -> usize {
        self.by_nonce.len()
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }
}
