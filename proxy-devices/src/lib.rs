//! Doors from the partition bus to the host: a disk of a guest as a file by FUSE
