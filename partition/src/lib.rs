//! What a partition is on Linux: memory, doorbells, the attach socket.
//!
//! A partition (a process that links a client, a virtual machine of somebody's VMM, or a part of this process) joins
//! the bus by handing over its memory and a way to say "look". This crate holds the memory ([`memory`], [`gpa`],
//! [`io`]). It knows nothing of channels.
//!
//! It is the only crate of the workspace with unsafe code, and all of that is in one private module, `raw`: mapping,
//! copying, and the system calls that take addresses. The crate installs no signal handler and changes neither signal
//! masks nor limits of the program that links it.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod gpa;
pub mod io;
pub mod memory;
mod raw;
pub mod ring;

pub use gpa::{GpaError, GpaSpace, GuestPages, Region};
pub use memory::{Mapping, Memfd, MemoryError};
pub use ring::RingMapping;
