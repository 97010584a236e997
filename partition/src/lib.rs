//! What a partition is on Linux: memory, doorbells, the attach socket
