//! A simulator of the whole bus: one root, any number of guests, virtual time, in one thread.
//!
//! It drives the sans-IO state machines ([`vmbus_core::server::Server`], [`vmbus_core::client::Client`]) and real rings
//! over plain memory with a model of all that is around them: policies, devices that take their time, doorbells that
//! are late or come twice, messages that are not taken at once, guests and roots that die and come back. A [`Script`]
//! says what happens and decides everything; [`generate`] makes one from a seed, [`simulate`] plays it and checks after
//! each step what must hold, [`minimise`] makes a failing one short.
//!
//! What it does not model: bytes of a hostile peer (that is what the fuzz targets are for), threads and weak memory
//! (loom and shuttle), and the operating system (the same scripts are played against processes in
//! `tests/tests/processes.rs`).

mod acts;
mod campaign;
mod coverage;
mod drivers;
mod executor;
mod fate;
mod generate;
mod guest;
mod memory;
mod minimise;
mod partition;
mod rings;
mod root;
mod saving;
mod script;
mod world;

pub use campaign::{Campaign, Finding, run_campaign};
pub use coverage::Coverage;
pub use executor::{Executor, play, simulate, trace};
pub use generate::generate;
pub use minimise::minimise;
pub use script::{
    Action, Bounds, Broken, Channel, Decides, Disturbance, Disturbs, GuestSetup, Lane, Script, Tick,
};
pub use world::Violation;
