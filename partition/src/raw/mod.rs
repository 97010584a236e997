//! Everything unsafe: mappings, copies to and from memory that others write, system calls that take addresses.
//!
//! What leaves this module is safe to use: a [`View`] checks each access against its bounds and never gives out a
//! reference into the memory, except, inside this module, to atomics.
#![allow(unsafe_code)]

mod copy;
mod doubled;
mod fds;
mod io;
mod map;
#[cfg(feature = "tokio")]
mod register;
pub(crate) mod tap;
mod view;

pub(crate) use doubled::Doubled;
pub(crate) use fds::{peer_process, process, read_nowait, receive};
pub(crate) use io::{Direction, Part, transfer};
pub(crate) use map::{Map, Piece, Populate};
#[cfg(feature = "tokio")]
pub(crate) use register::register;
pub(crate) use view::View;
