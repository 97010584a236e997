//! Many seeds, on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::coverage::Coverage;
use super::executor::simulate;
use super::generate::generate;
use super::script::{Broken, Script};
use super::world::Violation;

/// What is to be simulated.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// The first seed.
    pub first: u64,
    /// Number of seeds.
    pub seeds: u64,
    /// Guests of each scenario.
    pub guests: u8,
    /// Devices of each scenario.
    pub devices: u8,
    /// Threads.
    pub jobs: usize,
    /// A rule that the model breaks on purpose.
    pub broken: Option<Broken>,
}

/// A seed whose scenario failed.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The seed.
    pub seed: u64,
    /// Its scenario.
    pub script: Script,
    /// The rule that did not hold.
    pub violation: Violation,
}

/// Simulates all seeds of a campaign up to the first that fails: what was seen, and the lowest failing seed of those
/// that were tried. Calls `progress` with the number of seeds done, now and then.
pub fn run_campaign(campaign: &Campaign, progress: impl Fn(u64) + Sync) -> (Coverage, Option<Finding>) {
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let all = Mutex::new((Coverage::default(), None::<Finding>));
    let work = || {
        let mut coverage = Coverage::default();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= campaign.seeds {
                break;
            }
            let seed = campaign.first.wrapping_add(index);
            let broken = campaign.broken;
            let script = Script { broken, ..generate(seed, campaign.guests, campaign.devices) };
            match simulate(&script) {
                Ok(seen) => coverage.add(&seen),
                Err(violation) => {
                    failed.store(true, Ordering::Relaxed);
                    let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if all.1.as_ref().is_none_or(|finding| seed < finding.seed) {
                        all.1 = Some(Finding { seed, script, violation });
                    }
                }
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.0.add(&coverage);
    };
    std::thread::scope(|scope| {
        (0..campaign.jobs.max(1)).for_each(|_| {
            scope.spawn(work);
        });
    });
    all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}
