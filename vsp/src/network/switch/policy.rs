//! Somebody is asked before a port is connected.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vmbus_channels::Refusal;

use super::settings::PortSettings;

/// Decides about ports. Asked on the connecting thread, before anything happens, so it answers at once; whoever has
/// to think about partitions is asked about their channels ([`PolicyAgent`](vmbus_channels::PolicyAgent)) first. One
/// that panics has denied.
///
/// Functions are agents too.
pub trait PortPolicy: Send + Sync + 'static {
    /// Allows it with these settings, which may be stricter than what was asked for, or says why not.
    fn decide(&self, asked: &AskedPort<'_>) -> Result<PortSettings, Refusal>;
}

/// What an agent is told.
#[derive(Clone, Copy, Debug)]
pub struct AskedPort<'a> {
    /// Name of the switch.
    pub switch: &'a str,
    /// What is about to happen.
    pub occasion: Occasion,
    /// What was asked for: the port's name, who is behind it, how it wants to be treated.
    pub settings: &'a PortSettings,
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// To connect a port.
    Connect,
    /// To treat a port otherwise.
    Reconfigure,
}

impl<F> PortPolicy for F
where
    F: Fn(&AskedPort<'_>) -> Result<PortSettings, Refusal> + Send + Sync + 'static,
{
    fn decide(&self, asked: &AskedPort<'_>) -> Result<PortSettings, Refusal> {
        self(asked)
    }
}

/// Asks; a panic is a denial.
pub(super) fn ask(agent: &dyn PortPolicy, asked: &AskedPort<'_>) -> Result<PortSettings, Refusal> {
    catch_unwind(AssertUnwindSafe(|| agent.decide(asked)))
        .unwrap_or_else(|_| Err(Refusal::denied("the switch's policy agent panicked")))
}
