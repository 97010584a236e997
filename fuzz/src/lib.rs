//! What a hostile peer could do, one module for each fuzz target.
//!
//! The bodies are plain functions of bytes, so the fuzzer (`fuzz_targets/`), the corpus and the quick test
//! (`tests/quick.rs`) run the same code. Each asserts what must hold whatever the bytes are, not only that nothing
//! panics.

pub mod bus;
pub mod client;
pub mod control;
pub mod disk;
pub mod frames;
pub mod network;
pub mod nic;
pub mod nic_client;
pub mod pages;
pub mod pair;
pub mod saved_client;
pub mod saved_server;
pub mod server;
pub mod storage;
pub mod stream;
pub mod switch;

/// A fuzz target's body.
pub type Body = fn(&[u8]);

/// All targets with a body in this library.
pub const TARGETS: &[(&str, Body)] = &[
    ("bus", bus::run),
    ("client", client::run),
    ("control", control::run),
    ("network", network::run),
    ("nic", nic::run),
    ("nic_client", nic_client::run),
    ("pages", pages::run),
    ("pair", pair::run),
    ("saved_client", saved_client::run),
    ("saved_server", saved_server::run),
    ("server", server::run),
    ("storage", storage::run),
    ("stream", stream::run),
    ("switch", switch::run),
];
