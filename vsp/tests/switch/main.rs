//! The virtual switch, by what its ports notice.

mod churn;
mod guards;
mod learning;
mod model;
mod offloads;
mod packets;
mod vlans;
mod world;
