//! What a program that uses the file is told when the disk fails.

use fuser::Errno;
use vmbus_channels::{ChannelError, Error};
use vmbus_core::storage::scsi::{Sense, SenseKey};
use vmbus_vsc::DiskError;

/// The error number that says best what went wrong.
pub(super) fn errno(error: &DiskError) -> Errno {
    match error {
        DiskError::Failed { sense: Some(sense), .. } => of_sense(*sense),
        DiskError::Failed { sense: None, .. } => Errno::EIO,
        DiskError::Open(error) => of_bus(error),
        DiskError::Channel(error) => of_channel(error),
        DiskError::NoSuchDisk(_) => Errno::ENODEV,
        DiskError::Unaligned { .. } | DiskError::BeyondEnd { .. } => Errno::EINVAL,
        DiskError::Packet(_) | DiskError::Answer(_) | DiskError::Refused { .. } => Errno::EIO,
        _ => Errno::EIO,
    }
}

fn of_sense(sense: Sense) -> Errno {
    /// Of a disk that gave out more room than it has.
    const SPACE_ALLOCATION_FAILED: Sense = Sense::new(SenseKey::DATA_PROTECT, 0x27, 0x07);
    match sense {
        SPACE_ALLOCATION_FAILED => Errno::ENOSPC,
        Sense { key: SenseKey::DATA_PROTECT, .. } => Errno::EROFS,
        Sense { .. } => Errno::EIO,
    }
}

fn of_bus(error: &Error) -> Errno {
    match error {
        Error::OutOfSharedMemory { .. } => Errno::ENOMEM,
        Error::Disconnected | Error::Rescinded => Errno::ENODEV,
        Error::Channel(error) => of_channel(error),
        _ => Errno::EIO,
    }
}

fn of_channel(error: &ChannelError) -> Errno {
    match error {
        ChannelError::Closed => Errno::ENODEV,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use vmbus_core::storage::{ScsiStatus, SrbStatus};

    use super::*;

    fn failed(sense: Sense) -> DiskError {
        DiskError::Failed {
            command: "WRITE",
            srb_status: SrbStatus::ERROR,
            scsi_status: ScsiStatus::CHECK_CONDITION,
            sense: Some(sense),
        }
    }

    #[test]
    fn programs_see_what_went_wrong() {
        let cases = [
            (failed(Sense::READ_ERROR), Errno::EIO),
            (failed(Sense::WRITE_PROTECTED), Errno::EROFS),
            (failed(Sense::new(SenseKey::DATA_PROTECT, 0x27, 0x07)), Errno::ENOSPC),
            (DiskError::Channel(ChannelError::Closed), Errno::ENODEV),
            (DiskError::Open(Error::Disconnected), Errno::ENODEV),
            (DiskError::Open(Error::OutOfSharedMemory { wanted: 1 }), Errno::ENOMEM),
            (DiskError::Answer("READ"), Errno::EIO),
        ];
        for (error, expected) in cases {
            assert_eq!(errno(&error).code(), expected.code(), "{error}");
        }
    }
}
