//! What a controller's client does at another root, and which commands may run there again
//! (`docs/src/restart.md`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmbus_channels::{Buffer, Channel, Replay};
use vmbus_core::storage::scsi::{Capacity16, Command, SerialNumber, VitalPage};
use vmbus_core::storage::{Packet, Request, Version};

use super::DiskError;
use super::controller::{ANSWER_ROOM, ask, ask_version, longest_transfer, query_on};

/// What has to be the same at another root. It outlives none of the channels that hold it.
#[derive(Debug)]
pub(super) struct Known {
    conversation: OnceLock<Conversation>,
    sub_channels: AtomicU16,
    disks: Mutex<BTreeMap<u8, Identity>>,
    /// For answers, set aside before there is need.
    buffer: Buffer,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Conversation {
    pub(super) version: Version,
    pub(super) longest_transfer: u32,
}

/// What tells a disk from others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    capacity: (u64, u32),
    /// `None` for a disk that tells none.
    serial: Option<Vec<u8>>,
}

impl Known {
    pub(super) fn new(buffer: Buffer) -> Arc<Self> {
        Arc::new(Self {
            conversation: OnceLock::new(),
            sub_channels: AtomicU16::new(0),
            disks: Mutex::default(),
            buffer,
        })
    }

    pub(super) fn begun(&self, conversation: Conversation) {
        let _ = self.conversation.set(conversation);
    }

    pub(super) fn widened(&self, sub_channels: u16) {
        self.sub_channels.store(sub_channels, Ordering::Relaxed);
    }

    pub(super) fn uses(&self, lun: u8, identity: Identity) {
        self.disks().insert(lun, identity);
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<u8, Identity>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the conversation on a channel to another root, as it was begun before, and makes sure that the disks are
    /// those of before.
    ///
    /// # Errors
    /// They are not, or the provider does not agree to what was agreed.
    pub(super) async fn greet(&self, channel: &Channel) -> Result<(), DiskError> {
        channel.discard_notices();
        // A root that dies in the first greeting of all leaves nothing to agree on.
        let Some(&Conversation { version, longest_transfer: longest }) = self.conversation.get() else {
            return Err(DiskError::Changed("its conversation had not begun".into()));
        };
        let size = version.packet_size();
        ask(channel, "BEGIN_INITIALIZATION", &Request::BeginInitialization, Packet::MAX_SIZE).await?;
        // Requests in flight have the form of this version.
        ask_version(channel, version).await?;
        let properties =
            ask(channel, "QUERY_PROPERTIES", &Request::QueryProperties, size).await?.properties()?;
        if longest_transfer(&properties) < longest {
            return Err(DiskError::Changed(format!("it takes no transfers of {longest} bytes any more")));
        }
        ask(channel, "END_INITIALIZATION", &Request::EndInitialization, size).await?;
        let luns: Vec<u8> = self.disks().keys().copied().collect();
        for lun in luns {
            let now = identity_on(channel, version, lun, &self.buffer).await?;
            if self.disks().get(&lun) != Some(&now) {
                return Err(DiskError::Changed(format!("the disk at LUN {lun} is another one")));
            }
        }
        let wanted = self.sub_channels.load(Ordering::Relaxed);
        if wanted > 0 {
            let request = Request::CreateSubChannels(wanted.min(properties.max_sub_channels.get()));
            ask(channel, "CREATE_SUB_CHANNELS", &request, size).await?;
        }
        Ok(())
    }
}

/// Asks a disk who it is. `buffer` has [`ANSWER_ROOM`] bytes.
pub(super) async fn identity_on(
    channel: &Channel,
    version: Version,
    lun: u8,
    buffer: &Buffer,
) -> Result<Identity, DiskError> {
    let capacity = Command::ReadCapacity16 { lba: 0, allocation_length: 32, partial: false };
    let answer = query_on(channel, version, "READ CAPACITY", lun, &capacity, buffer.range(..32)).await?;
    let capacity = Capacity16::parse(&answer).ok_or(DiskError::Answer("READ CAPACITY"))?;
    let capacity = (capacity.last_lba.get(), capacity.block_size.get());
    let page = Command::Inquiry {
        options: Command::EVPD,
        page: VitalPage::SERIAL_NUMBER.0,
        allocation_length: u16::try_from(ANSWER_ROOM).unwrap_or(u16::MAX),
    };
    let serial = match query_on(channel, version, "INQUIRY", lun, &page, buffer.range(..)).await {
        Ok(answer) => SerialNumber::parse(&answer).map(|page| page.serial.to_vec()),
        Err(DiskError::Failed { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(Identity { capacity, serial })
}

/// Whether a command may run a second time, when nobody knows whether it has run before.
pub(super) fn replay(command: &Command) -> Replay {
    match command {
        // What is read and asked changes nothing; what is written is the same the second time, and nobody was told of
        // the first.
        Command::TestUnitReady
        | Command::Read(_)
        | Command::Write(_)
        | Command::WriteAndVerify(_)
        | Command::Verify(_)
        | Command::SynchronizeCache(_)
        | Command::WriteSame(_)
        | Command::Unmap { .. }
        | Command::Inquiry { .. }
        | Command::ModeSense { .. }
        | Command::ReadCapacity10 { .. }
        | Command::ReadCapacity16 { .. }
        | Command::GetLbaStatus { .. }
        | Command::PersistentReserveIn { .. }
        | Command::ReportLuns { .. } => Replay::Again,
        // What they do depends on what was before, or others see it.
        Command::RequestSense { .. }
        | Command::FormatUnit
        | Command::ModeSelect { .. }
        | Command::Reserve
        | Command::Release
        | Command::StartStopUnit { .. }
        | Command::SendDiagnostic { .. }
        | Command::PreventAllowMediumRemoval { .. }
        | Command::PersistentReserveOut { .. } => Replay::Never,
    }
}
