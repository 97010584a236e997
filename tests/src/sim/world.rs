//! The simulated world: one root, its guests, virtual time, and the loop that lets one thing happen after another.

use std::collections::BTreeMap;
use std::fmt;

use vmbus_core::server::{Answer, AskId, ConnectRequest, DeviceKey};

use super::coverage::Coverage;
use super::fate::{Fate, Fates, Queue};
use super::guest::Guest;
use super::partition::Partition;
use super::script::{Action, Broken, Channel, GuestSetup, Lane, Script, Tick};

/// No scenario needs more to come to rest.
const MOST_STEPS: u64 = 2_000_000;
/// Time that a scenario may take after its last action.
const FOR_EVER: Tick = 1 << 40;

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule, in a word or two: what minimisation keeps.
    pub rule: &'static str,
    /// What happened.
    pub detail: String,
    /// When, in virtual time.
    pub at: Tick,
    /// The step of the simulation.
    pub step: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, detail, at, step } = self;
        write!(formatter, "{rule}: {detail} (step {step}, time {at})")
    }
}

/// A rule and what broke it, before it is known when.
#[derive(Debug)]
pub(super) struct Breach(pub(super) &'static str, pub(super) String);

pub(super) type Held = Result<(), Breach>;

/// Says which rule an error of a part breaks.
pub(super) trait Breaks<T> {
    fn breaks(self, rule: &'static str) -> Result<T, Breach>;
}

impl<T> Breaks<T> for Result<T, String> {
    fn breaks(self, rule: &'static str) -> Result<T, Breach> {
        self.map_err(|detail| Breach(rule, detail))
    }
}

/// Something that is to come.
///
/// `life` is that of a guest: what was meant for one that is gone does not reach the next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Attach { guest: usize, life: u32 },
    Post { guest: usize, life: u32 },
    ToRoot { partition: u32 },
    ToGuest { partition: u32 },
    Decide { partition: u32, id: AskId, answer: Answer },
    GuestDecide { guest: usize, life: u32, id: AskId, answer: Answer },
    Opened { partition: u32, relid: u32, refused: bool },
    Closed { partition: u32, relid: u32 },
    LetGo { partition: u32, relid: u32, gpadl: u32 },
    Answered { partition: u32, request: ConnectRequest, refused: bool },
    Doorbell { partition: u32, connection: u32 },
    Interrupt { guest: usize, life: u32, flag: u16 },
    RootWork { partition: u32, session: u64 },
    Serve { partition: u32, session: u64, request: u64 },
    GuestWork { guest: usize, life: u32, line: u64 },
    Release { guest: usize, life: u32, relid: u32 },
    GuestDied { partition: u32 },
    RootDied { guest: usize, life: u32, partition: u32 },
}

/// One guest's place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) setup: GuestSetup,
    /// Counts those who took this place.
    pub(super) life: u32,
    pub(super) guest: Option<Guest>,
    /// What the root offers to whoever is here.
    pub(super) offered: BTreeMap<DeviceKey, Channel>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Tick,
    pub(super) steps: u64,
    pub(super) queue: Queue<Event>,
    pub(super) fates: Fates,
    pub(super) places: Vec<Place>,
    /// The root's ends, those of dead guests included until all is let go of.
    pub(super) partitions: BTreeMap<u32, Partition>,
    pub(super) root_lives: bool,
    pub(super) last_partition: u32,
    /// Names of sessions and lines, never used twice.
    pub(super) last_name: u64,
    pub(super) interrupts: u64,
    pub(super) broken: Option<Broken>,
    pub(super) coverage: Coverage,
    pub(super) trace: Option<Vec<String>>,
}

/// Adds a line to the trace, if somebody wants one.
macro_rules! tell {
    ($world:expr, $($text:tt)+) => {
        if let Some(trace) = $world.trace.as_mut() {
            trace.push(format!("{:>6} {}", $world.now, format_args!($($text)+)));
        }
    };
}
pub(super) use tell;

impl World {
    pub(super) fn new(script: &Script, traced: bool) -> Self {
        let place =
            |setup: &GuestSetup| Place { setup: *setup, life: 0, guest: None, offered: BTreeMap::new() };
        let mut world = Self {
            now: 0,
            steps: 0,
            queue: Queue::new(),
            fates: Fates::new(script.guests.len(), &script.disturbances),
            places: script.guests.iter().map(place).collect(),
            partitions: BTreeMap::new(),
            root_lives: true,
            last_partition: 0,
            last_name: 0,
            interrupts: 0,
            broken: script.broken,
            coverage: Coverage::default(),
            trace: traced.then(Vec::new),
        };
        (0..world.places.len()).for_each(|guest| world.restart(guest));
        world
    }

    /// Puts something on a lane and gives its fate; it happens one tick later, or more.
    pub(super) fn send(&mut self, guest: usize, lane: Lane, event: impl FnOnce(Fate) -> Event) -> Fate {
        let fate = self.fates.next(guest, lane);
        self.queue.push(self.now + 1 + fate.late, event(fate));
        fate
    }

    pub(super) fn name(&mut self) -> u64 {
        self.last_name += 1;
        self.last_name
    }

    pub(super) fn is_broken(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    /// Lets happen what happens up to a time, that time included.
    pub(super) fn run(&mut self, until: Tick) -> Result<(), Violation> {
        while let Some((at, event)) = self.queue.pop(until) {
            self.now = at;
            self.steps += 1;
            let held = self.happen(event).and_then(|()| match self.steps {
                ..MOST_STEPS => Ok(()),
                _ => Err(Breach("rest", "the world does not come to rest".into())),
            });
            self.note(held)?;
        }
        if until < FOR_EVER {
            self.now = until;
        }
        Ok(())
    }

    /// Until nothing more is to come.
    pub(super) fn rest(&mut self) -> Result<(), Violation> {
        self.run(FOR_EVER)
    }

    pub(super) fn note<T>(&mut self, held: Result<T, Breach>) -> Result<T, Violation> {
        held.map_err(|Breach(rule, detail)| {
            tell!(self, "FAILED {rule}: {detail}");
            Violation { rule, detail, at: self.now, step: self.steps }
        })
    }

    fn happen(&mut self, event: Event) -> Held {
        match event {
            Event::Attach { guest, life } => self.attach(guest, life),
            Event::Post { guest, life } => self.post(guest, life),
            Event::ToRoot { partition } => self.deliver_to_root(partition),
            Event::ToGuest { partition } => self.deliver_to_guest(partition),
            Event::Decide { partition, id, answer } => self.decided(partition, id, answer),
            Event::GuestDecide { guest, life, id, answer } => self.guest_decided(guest, life, id, answer),
            Event::Opened { partition, relid, refused } => self.opened(partition, relid, refused),
            Event::Closed { partition, relid } => self.closed(partition, relid),
            Event::LetGo { partition, relid, gpadl } => self.let_go(partition, relid, gpadl),
            Event::Answered { partition, request, refused } => self.answered(partition, request, refused),
            Event::Doorbell { partition, connection } => self.doorbell(partition, connection),
            Event::Interrupt { guest, life, flag } => self.interrupt(guest, life, flag),
            Event::RootWork { partition, session } => self.root_works(partition, session),
            Event::Serve { partition, session, request } => self.serve(partition, session, request),
            Event::GuestWork { guest, life, line } => self.guest_works(guest, life, line),
            Event::Release { guest, life, relid } => self.release(guest, life, relid),
            Event::GuestDied { partition } => self.guest_died(partition),
            Event::RootDied { guest, life, partition } => self.root_died(guest, life, partition),
        }
    }

    /// The guest of a life that is not over.
    pub(super) fn living(&mut self, guest: usize, life: u32) -> Option<&mut Guest> {
        let place = self.places.get_mut(guest)?;
        if place.life == life { place.guest.as_mut() } else { None }
    }

    /// Lets an action happen, if it can.
    pub(super) fn act(&mut self, action: &Action) -> Held {
        let guest = usize::from(action.guest().unwrap_or(0));
        if guest >= self.places.len() {
            return Ok(());
        }
        let did = match *action {
            Action::Offer { channel, .. } => self.offer(guest, channel)?,
            Action::Rescind { channel, .. } => self.rescind(guest, channel)?,
            Action::Kill { .. } => self.kill(guest),
            Action::Restart { .. } => {
                let free = self.places[guest].guest.is_none();
                if free {
                    self.restart(guest);
                }
                free
            }
            Action::KillRoot {} => self.kill_root()?,
            Action::RestartRoot {} => self.restart_root(),
            Action::Reboot { .. } => self.reboot(guest, false)?,
            Action::Reset { .. } => self.reboot(guest, true)?,
            Action::SaveRoot { lost, .. } => self.save_root(guest, lost)?,
            Action::SaveGuest { .. } => self.save_guest(guest)?,
            Action::Connect { .. }
            | Action::Unload { .. }
            | Action::Open { .. }
            | Action::Close { .. }
            | Action::Reopen { .. }
            | Action::Request { .. }
            | Action::Share { .. }
            | Action::Unshare { .. }
            | Action::Modify { .. }
            | Action::GiveBack { .. }
            | Action::Call { .. }
            | Action::Pause { .. }
            | Action::Resume { .. }
            | Action::Monitor { .. } => self.guest_acts(guest, action)?,
        };
        if did {
            self.coverage.action(action.word());
            tell!(self, "--- {action}");
        } else {
            tell!(self, "--- {action} (not now)");
        }
        Ok(())
    }

    /// Begins a guest's life at its place.
    pub(super) fn restart(&mut self, guest: usize) {
        let place = &mut self.places[guest];
        place.life += 1;
        let life = place.life;
        place.guest = Some(Guest::new(&place.setup, life));
        self.queue.push(self.now + 1, Event::Attach { guest, life });
    }

    /// A guest's process dies: it says nothing more, and its memory lives on as far as the root uses it.
    pub(super) fn kill(&mut self, guest: usize) -> bool {
        let place = &mut self.places[guest];
        let Some(dead) = place.guest.take() else { return false };
        place.life += 1;
        self.coverage.requests += dead.requests;
        if let Some(partition) = dead.link {
            self.send(guest, Lane::HangUp, |_| Event::GuestDied { partition });
        }
        true
    }

    fn kill_root(&mut self) -> Result<bool, Breach> {
        if !self.root_lives {
            return Ok(false);
        }
        self.root_lives = false;
        for mut partition in std::mem::take(&mut self.partitions).into_values() {
            partition.vanish()?;
        }
        for guest in 0..self.places.len() {
            let life = self.places[guest].life;
            if let Some(partition) = self.living(guest, life).and_then(|guest| guest.link) {
                self.send(guest, Lane::HangUp, |_| Event::RootDied { guest, life, partition });
            }
        }
        Ok(true)
    }

    fn restart_root(&mut self) -> bool {
        if self.root_lives {
            return false;
        }
        self.root_lives = true;
        for guest in 0..self.places.len() {
            let life = self.places[guest].life;
            if self.living(guest, life).is_some_and(|guest| guest.link.is_none()) {
                self.queue.push(self.now + 1, Event::Attach { guest, life });
            }
        }
        true
    }

    /// A guest joins the root: a partition is made for it, and it contacts its server.
    fn attach(&mut self, guest: usize, life: u32) -> Held {
        if !self.root_lives || self.living(guest, life).is_none_or(|guest| guest.link.is_some()) {
            return Ok(());
        }
        self.last_partition += 1;
        let id = self.last_partition;
        let place = &mut self.places[guest];
        let Some(joined) = &mut place.guest else { return Ok(()) };
        joined.link = Some(id);
        // What was there at somebody's request has gone with him.
        place.offered.retain(|_, channel| channel.sub == 0 && channel.device < Channel::FIRST_CALL);
        let mut partition = Partition::new(guest, &place.setup, joined.memory.clone());
        place.offered.iter().for_each(|(key, channel)| partition.offer(*key, *channel));
        self.partitions.insert(id, partition);
        tell!(self, "guest {guest} attaches as partition {id}");
        self.root_acts(id)?;
        self.connect(guest)?;
        Ok(())
    }

    /// Everybody stops what he does and leaves; nothing may be left. The last part of every scenario.
    pub(super) fn finish(&mut self) -> Result<(), Violation> {
        self.fates.calm();
        tell!(self, "--- no more disturbances");
        self.rest()?;
        self.restart_root();
        for guest in 0..self.places.len() {
            // Whoever has left comes back, so that what was left without a word is settled.
            for action in [Action::Connect { guest: 0 }, Action::Resume { guest: 0 }] {
                let did = self.guest_acts(guest, &action);
                self.note(did)?;
            }
        }
        self.rest()?;
        let held = self.assert_nothing_waits();
        self.note(held)?;
        for guest in 0..self.places.len() {
            let held = self.close_everything(guest);
            self.note(held)?;
        }
        self.rest()?;
        let held = self.assert_pages_are_free();
        self.note(held)?;
        for guest in 0..self.places.len() {
            // Some say good-bye, some die.
            let left = match guest % 2 {
                0 => self.guest_acts(guest, &Action::Unload { guest: 0 }),
                _ => Ok(self.kill(guest)),
            };
            self.note(left)?;
        }
        self.rest()?;
        for guest in 0..self.places.len() {
            let offered: Vec<Channel> = self.places[guest].offered.values().rev().copied().collect();
            for channel in offered {
                let rescinded = self.rescind(guest, channel);
                self.note(rescinded)?;
            }
        }
        self.rest()?;
        let held = self.assert_nothing_is_left();
        for place in &self.places {
            self.coverage.requests += place.guest.as_ref().map_or(0, |guest| guest.requests);
        }
        self.coverage.steps = self.steps;
        self.note(held)
    }

    fn assert_nothing_waits(&self) -> Held {
        for (index, guest) in self.guests() {
            guest
                .assert_nothing_waits()
                .map_err(|Breach(rule, what)| Breach(rule, format!("guest {index}: {what}")))?;
        }
        self.partitions.values().try_for_each(Partition::assert_nothing_waits)
    }

    fn assert_pages_are_free(&self) -> Held {
        for (index, guest) in self.guests() {
            let (used, mapped) = (guest.memory.borrow().used(), guest.memory.borrow().mapped());
            if (used, mapped) != (0, 0) {
                let what = format!(
                    "all channels of guest {index} are closed, {used} pages are not free, {mapped} in use"
                );
                return Err(Breach("pages", what));
            }
        }
        Ok(())
    }

    fn assert_nothing_is_left(&self) -> Held {
        for (index, guest) in self.guests() {
            if let Some(connection) = guest.client.connection() {
                return Err(Breach(
                    "unload",
                    format!("guest {index} has left and is connected: {connection:?}"),
                ));
            }
        }
        self.partitions.values().try_for_each(Partition::assert_nothing_is_left)
    }

    fn guests(&self) -> impl Iterator<Item = (usize, &Guest)> {
        self.places.iter().enumerate().filter_map(|(index, place)| Some((index, place.guest.as_ref()?)))
    }

    /// The answer that a policy gives, by fate.
    pub(super) fn answer(fate: Fate) -> Answer {
        if fate.refused { Answer::Deny(vmbus_core::Status::ACCESS_DENIED) } else { Answer::Allow }
    }
}
