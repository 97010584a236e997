//! The virtual switch, by what its ports notice.

mod guards;
mod learning;
mod offloads;
mod packets;
mod vlans;
mod world;
