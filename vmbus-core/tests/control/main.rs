//! The control plane as a story: server alone, client alone, and both joined in one thread.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that fails may panic")]

mod client;
mod client_matrix;
mod contact;
mod coverage;
mod features;
mod gpadl;
mod hostile;
mod monitors;
mod pair;
mod quota;
mod random;
mod rescind;
mod rescind_points;
mod reserved;
mod root;
mod saved;
mod server_matrix;
mod subchannels;
mod tolerance;
mod transitions;
mod unload;
mod versions;
