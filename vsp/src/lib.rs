//! Service providers of the partition bus: storage
