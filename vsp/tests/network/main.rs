//! NICs: what guests say to them and get from them, at every version, and what hostile ones get.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that panics has failed")]

mod churn;
mod client;
mod frames;
mod hostile;
mod objects;
mod raw;
mod saved;
mod scaling;
mod setup;
