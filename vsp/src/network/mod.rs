//! Networking: what stands behind a guest's NIC.
//!
//! [`switch`] carries frames between ports, whatever is behind them.

pub mod switch;
