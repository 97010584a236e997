//! Service clients of the partition bus: Disk
