//! Policy agents: what each question forbids, at both ends, and what becomes of agents that break.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod flow;
mod guest;
mod reload;
mod revoke;
mod root;
mod rules;
mod sharing;
mod streams;
mod world;
