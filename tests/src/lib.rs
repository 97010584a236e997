//! What needs more than one crate of the partition bus: conformance, real processes, real peers
