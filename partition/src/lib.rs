//! What a partition is on Linux: memory, doorbells, the attach socket.
//!
//! A partition (a process that links a client, a virtual machine of somebody's VMM, or a part of this process) joins
//! the bus by handing over its memory and a way to say "look". This crate holds the memory ([`memory`], [`gpa`],
//! [`ring`], [`io`], [`allocator`]), the doorbells ([`doorbell`]), and the links over which partitions attach: one pair
//! of traits ([`link`]), served over a socket ([`attach`], [`listener`], [`frame`]) or within a process ([`local`]).
//! It knows nothing of channels.
//!
//! It is the only crate of the workspace with unsafe code, and all of that is in one private module, `raw`: mapping,
//! copying, and the system calls that take addresses. The crate installs no signal handler and changes neither signal
//! masks nor limits of the program that links it.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod allocator;
mod area;
pub mod attach;
mod base;
mod control_area;
mod control_link;
pub mod doorbell;
mod event;
pub mod frame;
pub mod gift;
pub mod gpa;
mod guest_link;
pub mod io;
pub mod link;
pub mod listener;
pub mod local;
pub mod memory;
pub mod query;
mod raw;
#[cfg(feature = "tokio")]
pub mod reactor;
pub mod ring;
mod root_link;
mod stream;
pub mod tap;

pub use allocator::{AllocError, PageAllocator, SharedPages};
pub use attach::{AttachLimits, Attaching};
pub use base::BaseRoot;
pub use control_area::ControlAreaError;
pub use frame::RefusedWhat;
pub use gift::{Gift, GiftError, Given, SealedGift};
pub use gpa::{GpaError, GpaSpace, GuestPages, Region};
pub use guest_link::{ControlGuest, GuestOptions};
pub use link::{
    Credentials, FromGuest, FromRoot, GuestEnd, GuestInfo, LinkError, MessageBytes, PartitionInfo,
    ROOT_MEMORY, Refusal, RootEnd, Watched,
};
pub use listener::{ListenError, Listener};
pub use memory::{Mapping, Memfd, MemoryError};
pub use ring::RingMapping;
pub use root_link::ControlRoot;
pub use tap::Tap;
