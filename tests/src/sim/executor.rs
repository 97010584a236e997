//! Playing a script: in the simulator, or on anything else that can do what its actions say.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::coverage::Coverage;
use super::script::{Action, Script, Tick};
use super::world::{Violation, World};

/// A world in which scripts can be played.
pub trait Executor {
    /// Why a world failed.
    type Failure;

    /// Lets time pass up to `at`, then lets the action happen if it can.
    ///
    /// # Errors
    /// A rule that does not hold.
    fn perform(&mut self, at: Tick, action: &Action) -> Result<(), Self::Failure>;

    /// Lets everything come to rest, ends it in order and looks whether anything is left.
    ///
    /// # Errors
    /// A rule that does not hold.
    fn finish(&mut self) -> Result<(), Self::Failure>;
}

/// Plays the actions of a script, to the end.
///
/// # Errors
/// The first rule that does not hold.
pub fn play<E: Executor>(script: &Script, executor: &mut E) -> Result<(), E::Failure> {
    script.actions.iter().try_for_each(|(at, action)| executor.perform(*at, action))?;
    executor.finish()
}

impl Executor for World {
    type Failure = Violation;

    fn perform(&mut self, at: Tick, action: &Action) -> Result<(), Violation> {
        self.run(at)?;
        let held = self.act(action);
        self.note(held)
    }

    fn finish(&mut self) -> Result<(), Violation> {
        World::finish(self)
    }
}

/// Plays a script in the simulator and tells what was seen.
///
/// # Errors
/// The first rule that did not hold. A panic of the product is one.
pub fn simulate(script: &Script) -> Result<Coverage, Violation> {
    observe(script, false).0
}

/// Plays a script and tells every step of it, and what came of it.
pub fn trace(script: &Script) -> (Vec<String>, Result<Coverage, Violation>) {
    let (result, lines) = observe(script, true);
    (lines, result)
}

fn observe(script: &Script, traced: bool) -> (Result<Coverage, Violation>, Vec<String>) {
    let mut world = World::new(script, traced);
    let outcome = catch_unwind(AssertUnwindSafe(|| play(script, &mut world)));
    let result = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let detail = text.unwrap_or_else(|| "something panicked".into());
        Err(Violation { rule: "panic", detail, at: world.now, step: world.steps })
    });
    let lines = world.trace.take().unwrap_or_default();
    (result.map(|()| std::mem::take(&mut world.coverage)), lines)
}
