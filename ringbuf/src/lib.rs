//! The VMBus ring: control page, producer, consumer and packets in shared memory
