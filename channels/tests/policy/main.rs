//! Policy agents: what each question forbids, at both ends, and what becomes of agents that break.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod root;
mod world;
