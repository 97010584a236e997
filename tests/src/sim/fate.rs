//! What the schedule does to whatever is under way, and the queue of what is still to come.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::script::{Disturbance, Disturbs, Lane, Tick};

/// How something that takes a lane fares.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fate {
    /// Ticks beyond the usual one.
    pub(super) late: Tick,
    /// It comes again so many ticks later.
    pub(super) again: Option<Tick>,
    pub(super) refused: bool,
}

/// The fates of all lanes, as a script lists them; what it does not list goes as usual.
#[derive(Debug, Default)]
pub(super) struct Fates {
    lanes: Vec<Course>,
    /// From now on everything goes as usual.
    calm: bool,
}

#[derive(Clone, Debug, Default)]
struct Course {
    taken: usize,
    fates: Vec<Fate>,
}

impl Fates {
    pub(super) fn new(guests: usize, disturbances: &[Disturbance]) -> Self {
        let mut lanes = vec![Course::default(); guests * Lane::ALL.len()];
        for disturbance in disturbances {
            let Disturbance { what, guest, lane, nth } = *disturbance;
            // A script may name a guest that was left out of it.
            let Some(course) = lanes.get_mut(place(usize::from(guest), lane)) else { continue };
            let nth = nth as usize;
            if course.fates.len() <= nth {
                course.fates.resize(nth + 1, Fate::default());
            }
            let fate = &mut course.fates[nth];
            match what {
                Disturbs::Late(ticks) => fate.late += ticks,
                Disturbs::Twice(ticks) => fate.again = Some(ticks),
                Disturbs::Refused => fate.refused = true,
            }
        }
        Self { lanes, calm: false }
    }

    /// The fate of the next thing on a lane.
    pub(super) fn next(&mut self, guest: usize, lane: Lane) -> Fate {
        let course = &mut self.lanes[place(guest, lane)];
        course.taken += 1;
        if self.calm {
            return Fate::default();
        }
        course.fates.get(course.taken - 1).copied().unwrap_or_default()
    }

    pub(super) fn calm(&mut self) {
        self.calm = true;
    }
}

fn place(guest: usize, lane: Lane) -> usize {
    guest * Lane::ALL.len() + lane as usize
}

/// What is to come, by time; in the order in which it was put in where the time is the same.
#[derive(Debug)]
pub(super) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    last: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: Tick,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl<E> Queue<E> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), last: 0 }
    }

    pub(super) fn push(&mut self, at: Tick, event: E) {
        self.last += 1;
        self.heap.push(Reverse(Entry { at, order: self.last, event }));
    }

    /// The next event at or before `until`.
    pub(super) fn pop(&mut self, until: Tick) -> Option<(Tick, E)> {
        if self.heap.peek()?.0.at > until {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}
