//! The virtual switch, by what its ports notice.

mod learning;
mod world;
