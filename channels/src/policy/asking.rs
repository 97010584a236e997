//! Asking an agent: at once if it answers at once, else with a deadline; and what comes of one that breaks.

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::decision::{Decision, Limits};
use super::question::{Asked, End, Question, WallTime, Who};
use super::revoking::{Revoke, Revoked};
use super::{AllowAll, PolicyAgent};
use crate::error::Refusal;

/// How long an agent may take, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(5);

/// Tells the time.
pub(crate) type Clock = Arc<dyn Fn() -> WallTime + Send + Sync>;

/// The limits under which something is allowed, or why it is not.
pub(crate) type Verdict = Result<Limits, Refusal>;

/// One decision with all that led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decided {
    /// Counts the decisions of one end from 1 on; none is left out.
    pub seq: u64,
    /// The question.
    pub asked: Asked,
    /// The answer.
    pub decision: Decision,
    /// Name of the agent.
    pub agent: String,
    /// How it came to the answer.
    pub reason: Reason,
    /// How long that took, in microseconds.
    pub took_us: u64,
}

/// How an answer came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The agent said so.
    Agent,
    /// The agent said nothing in time.
    Silence,
    /// The agent panicked.
    Panic,
    /// Too many questions of this partition wait already.
    Crowd,
    /// Somebody revoked it.
    Revoked,
}

impl fmt::Display for Decided {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, what) = (&self.asked.who.name, &self.asked.question);
        match &self.decision {
            Decision::Allow => write!(formatter, "`{who}` {what}: allowed"),
            Decision::Deny(refusal) => write!(formatter, "`{who}` {what}: denied, {refusal}"),
            Decision::Change(_) => write!(formatter, "`{who}` {what}: allowed within limits"),
        }
    }
}

/// Asks the agent of one end.
pub(crate) struct Asker {
    agent: RwLock<Agent>,
    end: End,
    deadline: Duration,
    clock: Clock,
    seq: AtomicU64,
    tell: Box<dyn Fn(Decided) + Send + Sync>,
}

#[derive(Clone)]
struct Agent {
    agent: Arc<dyn PolicyAgent>,
    revoked: Arc<[Revoked]>,
    /// Counts agents: an answer of an earlier one is worth nothing.
    generation: u64,
}

/// A question that was put.
#[expect(clippy::large_enum_variant, reason = "taken apart where it is made, never kept")]
pub(crate) enum Begun {
    /// The agent has answered.
    Decided(Verdict),
    /// The agent thinks. Gives the verdict, and the generation of the agent whose it is.
    Waiting(Pin<Box<dyn Future<Output = (Verdict, u64)> + Send>>),
}

impl Asker {
    /// Decisions are handed to `tell`.
    pub(crate) fn new(
        settings: AskerSettings,
        end: End,
        tell: impl Fn(Decided) + Send + Sync + 'static,
    ) -> Self {
        let AskerSettings { agent, deadline, clock } = settings;
        Self {
            agent: RwLock::new(Agent { agent, revoked: [].into(), generation: 0 }),
            end,
            deadline,
            clock,
            seq: AtomicU64::new(0),
            tell: Box::new(tell),
        }
    }

    /// Another agent decides from now on.
    pub(crate) fn set_agent(&self, agent: Arc<dyn PolicyAgent>) {
        let mut current = self.agent.write().unwrap_or_else(PoisonError::into_inner);
        current.agent = agent;
        current.generation += 1;
    }

    /// Denies what was revoked, whatever the agent says.
    pub(crate) fn revoke(&self, revoked: Revoked) {
        self.change_revoked(|list| {
            list.retain(|earlier| earlier.what != revoked.what);
            list.push(revoked);
        });
    }

    /// Leaves it to the agent again. `false` if it was not revoked.
    pub(crate) fn reinstate(&self, what: &Revoke) -> bool {
        let mut found = false;
        self.change_revoked(|list| {
            found = list.iter().any(|revoked| revoked.what == *what);
            list.retain(|revoked| revoked.what != *what);
        });
        found
    }

    fn change_revoked(&self, change: impl FnOnce(&mut Vec<Revoked>)) {
        let mut current = self.agent.write().unwrap_or_else(PoisonError::into_inner);
        let mut revoked = current.revoked.to_vec();
        change(&mut revoked);
        current.revoked = revoked.into();
        current.generation += 1;
    }

    /// When the agent may decide otherwise next, as far as it knows.
    pub(crate) fn next_change(&self) -> Option<WallTime> {
        let agent = Arc::clone(&self.agent.read().unwrap_or_else(PoisonError::into_inner).agent);
        agent.next_change(self.now())
    }

    /// The time on the wall.
    pub(crate) fn now(&self) -> WallTime {
        (self.clock)()
    }

    /// The number of the agent that decides at present.
    pub(crate) fn generation(&self) -> u64 {
        self.agent.read().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// Puts a question.
    pub(crate) fn begin(self: &Arc<Self>, who: &Who, question: Question) -> Begun {
        let Agent { agent, revoked, generation } =
            self.agent.read().unwrap_or_else(PoisonError::into_inner).clone();
        let began = Instant::now();
        if let Some(revoked) = revoked.iter().find(|revoked| revoked.what.covers(who, &question)) {
            self.refuse(who, question, &revoked.refusal, Reason::Revoked);
            return Begun::Decided(Err(revoked.refusal.clone()));
        }
        let asked = Arc::new(self.asked(who, question));
        let name = Arc::clone(&agent);
        let mut thinking: Thinking = Box::pin({
            let asked = Arc::clone(&asked);
            async move { agent.decide(&asked).await }
        });
        // Whoever answers at once needs no task, and no waker either.
        match poll_agent(&mut thinking, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Begun::Decided(self.decided(&asked, answer, name.name(), began)),
            Poll::Pending => {
                let asker = Arc::clone(self);
                Begun::Waiting(Box::pin(async move {
                    let thinking = poll_fn(|context| poll_agent(&mut thinking, context));
                    let answer = match tokio::time::timeout(asker.deadline, thinking).await {
                        Ok(answer) => answer,
                        Err(_) => (denied("the policy agent said nothing in time"), Reason::Silence),
                    };
                    (asker.decided(&asked, answer, name.name(), began), generation)
                }))
            }
        }
    }

    /// Puts a question and waits for the answer. An agent that is replaced meanwhile leaves it to the next.
    pub(crate) async fn ask(self: &Arc<Self>, who: &Who, question: Question) -> Verdict {
        loop {
            match self.begin(who, question.clone()) {
                Begun::Decided(verdict) => return verdict,
                Begun::Waiting(answer) => match answer.await {
                    (verdict, generation) if generation == self.generation() => return verdict,
                    (_, _stale) => {}
                },
            }
        }
    }

    /// Decides without the agent, and tells so.
    pub(crate) fn refuse(&self, who: &Who, question: Question, refusal: &Refusal, reason: Reason) {
        let asked = self.asked(who, question);
        self.report(asked, Decision::Deny(refusal.clone()), "", reason, Instant::now());
    }

    fn asked(&self, who: &Who, question: Question) -> Asked {
        Asked { at: (self.clock)(), end: self.end, who: who.clone(), question }
    }

    fn decided(&self, asked: &Asked, answer: Answer, agent: &str, began: Instant) -> Verdict {
        let (decision, reason) = answer;
        let verdict = decision.verdict(&asked.question);
        self.report(asked.clone(), decision, agent, reason, began);
        verdict
    }

    fn report(&self, asked: Asked, decision: Decision, agent: &str, reason: Reason, began: Instant) {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        (self.tell)(Decided { seq, asked, decision, agent: agent.to_owned(), reason, took_us });
    }
}

/// What an [`Asker`] is made of.
#[derive(Clone)]
pub(crate) struct AskerSettings {
    pub(crate) agent: Arc<dyn PolicyAgent>,
    pub(crate) deadline: Duration,
    pub(crate) clock: Clock,
}

impl Default for AskerSettings {
    fn default() -> Self {
        Self { agent: Arc::new(AllowAll), deadline: DEADLINE, clock: Arc::new(WallTime::now) }
    }
}

impl fmt::Debug for AskerSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AskerSettings")
            .field("agent", &self.agent.name())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

type Thinking = Pin<Box<dyn Future<Output = Decision> + Send>>;
type Answer = (Decision, Reason);

/// Lets the agent think; one that panics has denied.
fn poll_agent(thinking: &mut Thinking, context: &mut Context<'_>) -> Poll<Answer> {
    // A future that has panicked is not looked at again.
    match catch_unwind(AssertUnwindSafe(|| thinking.as_mut().poll(context))) {
        Ok(poll) => poll.map(|decision| (decision, Reason::Agent)),
        Err(_) => Poll::Ready((denied("the policy agent panicked"), Reason::Panic)),
    }
}

fn denied(reason: &str) -> Decision {
    Decision::deny(reason)
}
