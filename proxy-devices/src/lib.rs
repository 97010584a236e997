//! Devices that stand for a service elsewhere, and the doors from the bus to the host's world.
//!
//! [`fuse`] shows a guest's disk as a file, [`hvsock`] connects Unix sockets of the host with services of guests, [`net`]
//! connects networks of guests with the host's kernel, with user-mode routers and with each other.
#![forbid(unsafe_code)]

pub mod fuse;
pub mod hvsock;
pub mod net;
