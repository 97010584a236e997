//! Each bound of what a guest can make the root hold: it holds, and another guest's requests go on meanwhile.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod attach;
mod held;
mod in_flight;
mod pace;
mod sessions;
mod world;
