//! Making a failing script short: what is left out must not be missed by the failure.

use super::executor::simulate;
use super::script::{Action, Disturbance, Disturbs, GuestSetup, Script, Tick};

/// Plays of the script at most: enough for the longest that are generated, and an end to it in any case.
const MOST_PLAYS: usize = 8000;

/// The shortest script found that breaks the same rule as this one, and the number of plays it took.
///
/// Leaves out guests, then actions and disturbances in ever smaller pieces (delta debugging), then simplifies what is
/// left: quieter guests, shorter times, fewer requests. A script that does not fail comes back as it is.
pub fn minimise(script: &Script) -> (Script, usize) {
    let Err(violation) = simulate(script) else { return (script.clone(), 1) };
    let mut search = Search { rule: violation.rule, best: script.clone(), plays: 1 };
    loop {
        let before = search.best.clone();
        search.drop_guests();
        search.drop_disturbances();
        search.drop_actions();
        search.drop_and_shift();
        search.simplify();
        if search.best == before || search.plays >= MOST_PLAYS {
            return (search.best, search.plays);
        }
    }
}

struct Search {
    rule: &'static str,
    best: Script,
    plays: usize,
}

impl Search {
    /// Takes a script as the best one if it breaks the same rule.
    fn try_script(&mut self, script: Script) -> bool {
        if self.plays >= MOST_PLAYS || script == self.best {
            return false;
        }
        self.plays += 1;
        let fails = simulate(&script).is_err_and(|violation| violation.rule == self.rule);
        if fails {
            self.best = script;
        }
        fails
    }

    /// Leaves guests out, with all that they do; those after them move up.
    fn drop_guests(&mut self) {
        for left_out in (0..self.best.guests.len()).rev() {
            let mut script = self.best.clone();
            script.guests.remove(left_out);
            let number = u8::try_from(left_out).unwrap_or(u8::MAX);
            script.actions.retain(|(_, action)| action.guest() != Some(number));
            script.disturbances.retain(|disturbance| disturbance.guest != number);
            let others = script.actions.iter_mut().filter_map(|(_, action)| action.guest_mut());
            let others =
                others.chain(script.disturbances.iter_mut().map(|disturbance| &mut disturbance.guest));
            others.filter(|guest| **guest > number).for_each(|guest| *guest -= 1);
            self.try_script(script);
        }
    }

    fn drop_disturbances(&mut self) {
        let mut script = self.best.clone();
        script.disturbances.clear();
        if !self.try_script(script) {
            self.drop_pieces(|script| &mut script.disturbances);
        }
    }

    fn drop_actions(&mut self) {
        self.drop_pieces(|script| &mut script.actions);
    }

    /// Leaves out pieces of a list, from halves of it down to single elements.
    fn drop_pieces<T>(&mut self, list: impl Fn(&mut Script) -> &mut Vec<T>) {
        let mut size = list(&mut self.best).len().div_ceil(2);
        while size > 0 {
            // From the end: what comes last depends on what comes first.
            let mut end = list(&mut self.best).len();
            while end > 0 {
                let start = end.saturating_sub(size);
                let mut script = self.best.clone();
                list(&mut script).drain(start..end);
                self.try_script(script);
                end = start;
            }
            size /= 2;
        }
    }

    /// Leaves out single parts of a script that is short already, and lets what follows happen a little earlier or
    /// later instead: two things that must meet may have met because of them.
    fn drop_and_shift(&mut self) {
        const SHORT: usize = 24;
        const FARTHEST: Tick = 24;
        if self.best.actions.len() + self.best.disturbances.len() > SHORT {
            return;
        }
        let parts = self.best.actions.len() + self.best.disturbances.len();
        for part in (0..parts).rev() {
            let mut without = self.best.clone();
            let from = match part.checked_sub(without.actions.len()) {
                Some(disturbance) if disturbance < without.disturbances.len() => {
                    without.disturbances.remove(disturbance);
                    without.actions.len().saturating_sub(1)
                }
                None => {
                    without.actions.remove(part);
                    part.min(without.actions.len().saturating_sub(1))
                }
                // Less is left than there was.
                Some(_) => continue,
            };
            for first in [from, without.actions.len().saturating_sub(1)] {
                let floor = first.checked_sub(1).map_or(0, |before| without.actions[before].0);
                let shifted = (0..=2 * FARTHEST).any(|shift| {
                    let mut script = without.clone();
                    for (at, _) in script.actions.iter_mut().skip(first) {
                        *at = (*at + shift).saturating_sub(FARTHEST).max(floor);
                    }
                    self.try_script(script)
                });
                if shifted {
                    break;
                }
            }
        }
    }

    fn simplify(&mut self) {
        for guest in 0..self.best.guests.len() {
            let usual = GuestSetup::default();
            let now = self.best.guests[guest];
            let simpler = [
                usual,
                GuestSetup { policy: usual.policy, ..now },
                GuestSetup { quotas: usual.quotas, ..now },
                GuestSetup { root: usual.root, ..now },
                GuestSetup { newest: usual.newest, ..now },
            ];
            for setup in simpler {
                let mut script = self.best.clone();
                script.guests[guest] = setup;
                self.try_script(script);
            }
        }
        self.tighten_time();
        for index in 0..self.best.actions.len() {
            let mut script = self.best.clone();
            if let Action::Request { count, bytes, .. } = &mut script.actions[index].1 {
                *bytes = 0;
                *count = count.div_ceil(2);
                self.try_script(script);
            }
        }
        for index in 0..self.best.disturbances.len() {
            let Disturbance { what, .. } = self.best.disturbances[index];
            let mut script = self.best.clone();
            let what = match what {
                Disturbs::Late(ticks) if ticks > 1 => Disturbs::Late(ticks / 2),
                Disturbs::Twice(ticks) if ticks > 1 => Disturbs::Twice(ticks / 2),
                Disturbs::Late(_) | Disturbs::Twice(_) | Disturbs::Refused => continue,
            };
            script.disturbances[index].what = what;
            self.try_script(script);
        }
    }

    /// Leaves everybody time between any two actions if that does no harm, else shortens the gaps.
    fn tighten_time(&mut self) {
        const TIME_ENOUGH: Tick = 100;
        let mut script = self.best.clone();
        for (index, (at, _)) in script.actions.iter_mut().enumerate() {
            *at = TIME_ENOUGH * index as Tick;
        }
        if self.best.actions.iter().enumerate().all(|(index, (at, _))| *at == TIME_ENOUGH * index as Tick)
            || self.try_script(script)
        {
            return;
        }
        for index in 0..self.best.actions.len() {
            let mut script = self.best.clone();
            let before = index.checked_sub(1).map_or(0, |before| script.actions[before].0);
            let gap = script.actions[index].0 - before;
            let less = gap.div_ceil(2);
            script.actions[index..].iter_mut().for_each(|(at, _)| *at -= less);
            if less > 0 {
                self.try_script(script);
            }
        }
    }
}
