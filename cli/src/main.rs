//! The `vmbus` command.
fn main() {}
