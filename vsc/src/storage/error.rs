//! Why a disk request failed.

use vmbus_channels::{ChannelError, Error};
use vmbus_core::Status;
use vmbus_core::storage::PacketError;
use vmbus_core::storage::scsi::Sense;
use vmbus_core::storage::{Outcome, ScsiStatus, SrbStatus};

/// Why a disk request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The controller could not be opened.
    #[error(transparent)]
    Open(#[from] Error),
    /// The channel ended.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The provider's answer makes no sense.
    #[error("the storage provider sent a bad answer: {0}")]
    Packet(#[from] PacketError),
    /// The provider's answer makes no sense.
    #[error("the storage provider sent a bad answer to {0}")]
    Answer(&'static str),
    /// The provider knows none of our protocol versions, or refuses to start.
    #[error("the storage provider refused {step}: {status}")]
    Refused {
        /// What.
        step: &'static str,
        /// Its status.
        status: Status,
    },
    /// The controller at another root is not what it was.
    #[error("the storage controller has changed: {0}")]
    Changed(String),
    /// The controller has no such disk.
    #[error("the controller has no disk at LUN {0}")]
    NoSuchDisk(u8),
    /// The disk answered with an error.
    #[error("the disk failed {command}: {}", describe(*.srb_status, *.scsi_status, *.sense))]
    Failed {
        /// Which command.
        command: &'static str,
        /// The adapter's result.
        srb_status: SrbStatus,
        /// The device's result.
        scsi_status: ScsiStatus,
        /// What the device says about it.
        sense: Option<Sense>,
    },
    /// Offset or length are not multiples of the sector size: the caller's fault.
    #[error("{len} bytes at {offset} are not whole sectors of {sector} bytes")]
    Unaligned {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Sector size in bytes.
        sector: u32,
    },
    /// Bytes beyond the end of the disk: the caller's fault.
    #[error("{len} bytes at {offset} are beyond the end of a disk of {size} bytes")]
    BeyondEnd {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
}

fn describe(srb_status: SrbStatus, scsi_status: ScsiStatus, sense: Option<Sense>) -> String {
    match sense {
        Some(sense) => format!("{sense} ({srb_status}, {scsi_status})"),
        None => format!("{srb_status}, {scsi_status}"),
    }
}

impl DiskError {
    /// `Err` unless the command succeeded.
    pub(crate) fn check(command: &'static str, outcome: Outcome) -> Result<Outcome, Self> {
        if outcome.srb_status == SrbStatus::SUCCESS && outcome.scsi_status == ScsiStatus::GOOD {
            return Ok(outcome);
        }
        let Outcome { srb_status, scsi_status, sense, .. } = outcome;
        Err(Self::Failed { command, srb_status, scsi_status, sense })
    }

    /// Whether the disk said that it is write protected.
    pub fn is_write_protected(&self) -> bool {
        matches!(self, Self::Failed { sense: Some(sense), .. } if *sense == Sense::WRITE_PROTECTED)
    }
}
