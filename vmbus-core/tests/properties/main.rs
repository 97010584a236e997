//! What must hold for any bytes and any values: nothing panics, bounds hold, and what was read and written again is
//! the same.
#![allow(clippy::unwrap_used)]

mod control;
mod memory;
mod network;
mod pages;
mod storage;

/// Ends of the buffers that a peer may send: empty, cut, whole, and longer than anything defined.
fn bytes() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    proptest::collection::vec(proptest::num::u8::ANY, 0..300)
}
