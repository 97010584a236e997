//! A storage controller: version, properties, and the way of a command to a disk and back.

use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;
use vmbus_channels::{BufferRange, Channel, ChannelError, Device, Guest, OpenOptions, Replay, Reply, Spin};
use vmbus_core::storage::scsi::{self, Command, Sense};
use vmbus_core::storage::{
    Address, DataDirection, Operation, Outcome, Packet, Properties, Request, SCSI_CLASS, ScsiStatus, Srb,
    SrbStatus, Version,
};
use vmbus_core::{Guid, Status};

use super::resuming::{Conversation, Known, identity_on, replay};
use super::{Disk, DiskError};

/// Longest transfer that is taken at a provider's word, in bytes.
const LONGEST_TRANSFER: u32 = 8 << 20;
/// Size of the buffer for answers about the controller and its disks.
pub(super) const ANSWER_ROOM: usize = 4096;

/// An open storage controller. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Controller {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// Closed before their primary channel.
    pub(super) more: OnceLock<Vec<Channel>>,
    pub(super) channel: Channel,
    pub(super) guest: Guest,
    pub(super) instance: Guid,
    pub(super) version: Version,
    longest_transfer: u32,
    pub(super) most_sub_channels: u16,
    /// Where the guest outlives its root.
    pub(super) known: Option<Arc<Known>>,
}

impl Controller {
    /// Opens the guest's first SCSI controller.
    ///
    /// # Errors
    /// As [`open_device`](Self::open_device).
    pub async fn open(guest: &Guest) -> Result<Self, DiskError> {
        Self::open_device(guest, Device::class(SCSI_CLASS)).await
    }

    /// Opens one particular controller.
    ///
    /// # Errors
    /// [`DiskError::Open`]; [`DiskError::Refused`] if the provider knows no version that we know.
    pub async fn open_device(guest: &Guest, device: Device) -> Result<Self, DiskError> {
        loop {
            match Self::begin(guest, device).await {
                // The root died in the middle of it. Without another one in time it cannot be opened either.
                Err(DiskError::Channel(ChannelError::Interrupted | ChannelError::NotResumed { .. }))
                    if guest.outlives_root() => {}
                begun => return begun,
            }
        }
    }

    async fn begin(guest: &Guest, device: Device) -> Result<Self, DiskError> {
        let instance = guest.offered(device).await?.instance;
        let known = match guest.outlives_root() {
            true => Some(Known::new(guest.share(ANSWER_ROOM)?)),
            false => None,
        };
        let channel = guest.open_with(Device::instance(instance), options(known.as_ref())).await?;
        // Disks that come and go are looked for by who wants to know.
        channel.discard_notices();
        ask(&channel, "BEGIN_INITIALIZATION", &Request::BeginInitialization, Packet::MAX_SIZE).await?;
        let version = agree(&channel).await?;
        let size = version.packet_size();
        let properties =
            ask(&channel, "QUERY_PROPERTIES", &Request::QueryProperties, size).await?.properties()?;
        ask(&channel, "END_INITIALIZATION", &Request::EndInitialization, size).await?;
        let longest_transfer = longest_transfer(&properties);
        if let Some(known) = &known {
            known.begun(Conversation { version, longest_transfer });
        }
        let inner = Inner {
            more: OnceLock::new(),
            channel,
            guest: guest.clone(),
            instance,
            version,
            longest_transfer,
            most_sub_channels: properties.max_sub_channels.get(),
            known,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The storage protocol version that was agreed.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// How long the channel looks for answers before it sleeps.
    pub fn set_spin(&self, spin: Spin) {
        for channel in self.inner.channels() {
            channel.set_spin(spin);
        }
    }

    /// The longest transfer of one command, in bytes; a multiple of 4096.
    pub fn longest_transfer(&self) -> u32 {
        self.inner.longest_transfer
    }

    /// The LUNs at which there are disks.
    ///
    /// # Errors
    /// [`DiskError::Failed`], [`DiskError::Channel`], [`DiskError::Answer`].
    pub async fn luns(&self) -> Result<Vec<u8>, DiskError> {
        let length = u32::try_from(ANSWER_ROOM).unwrap_or(u32::MAX);
        let command = Command::ReportLuns { select: 0, allocation_length: length };
        let answer = self.query("REPORT LUNS", 0, &command, ANSWER_ROOM).await?;
        let luns = scsi::parse_luns(&answer).ok_or(DiskError::Answer("REPORT LUNS"))?;
        Ok(luns.filter_map(|lun| u8::try_from(lun).ok()).collect())
    }

    /// The disk at `lun`.
    ///
    /// # Errors
    /// [`DiskError::NoSuchDisk`], and as [`luns`](Self::luns).
    pub async fn disk(&self, lun: u8) -> Result<Disk, DiskError> {
        Disk::open_on(self, lun).await
    }

    /// Learns who the disk is, so that it is known again at another root.
    pub(super) async fn remember(&self, lun: u8) -> Result<(), DiskError> {
        if let Some(known) = &self.inner.known {
            let buffer = self.inner.guest.share(ANSWER_ROOM)?;
            let identity = identity_on(&self.inner.channel, self.inner.version, lun, &buffer).await?;
            known.uses(lun, identity);
        }
        Ok(())
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.inner.guest
    }

    /// The primary channel and the others.
    pub(crate) fn into_channels(self) -> Option<(Channel, Vec<Channel>)> {
        Arc::into_inner(self.inner).map(|inner| (inner.channel, inner.more.into_inner().unwrap_or_default()))
    }

    /// Runs a command that reads up to `len` bytes.
    pub(crate) async fn query(
        &self,
        name: &'static str,
        lun: u8,
        command: &Command,
        len: usize,
    ) -> Result<Vec<u8>, DiskError> {
        let buffer = self.inner.guest.share(len)?;
        let outcome = self.run(lun, command, Some(buffer.range(..))).await?;
        let outcome = DiskError::check(name, outcome)?;
        let moved = usize::try_from(outcome.transferred).unwrap_or(usize::MAX).min(len);
        let mut answer = vec![0; moved];
        buffer.read(0, &mut answer)?;
        Ok(answer)
    }

    /// Runs one command, with `data` as the memory that it moves.
    pub(crate) async fn run(
        &self,
        lun: u8,
        command: &Command,
        data: Option<BufferRange>,
    ) -> Result<Outcome, DiskError> {
        let packet = command_packet(self.inner.version, lun, command, data.as_ref())?;
        let channel = self.inner.channel_of_this_thread();
        match channel.send_with(&packet, data, replay(command)).await?.reply().await {
            Ok(reply) => parse_outcome(&reply),
            Err(ChannelError::Interrupted) => Ok(interrupted()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How the primary channel is opened.
fn options(known: Option<&Arc<Known>>) -> OpenOptions {
    let Some(known) = known.map(Arc::clone) else { return OpenOptions::new() };
    OpenOptions::new().on_resume(move |channel| {
        let known = Arc::clone(&known);
        async move { known.greet(&channel).await }
    })
}

/// What becomes of a command that must not run twice when its root dies: as when a disk is reset under it.
fn interrupted() -> Outcome {
    Outcome {
        srb_status: SrbStatus::ABORTED,
        scsi_status: ScsiStatus::CHECK_CONDITION,
        transferred: 0,
        sense: Some(Sense::RESET),
    }
}

/// Runs a command that reads into `data`, all of which is a buffer of the caller's, and gives what was read.
pub(super) async fn query_on(
    channel: &Channel,
    version: Version,
    name: &'static str,
    lun: u8,
    command: &Command,
    data: BufferRange,
) -> Result<Vec<u8>, DiskError> {
    let packet = command_packet(version, lun, command, Some(&data))?;
    let reply = channel.send(&packet, Some(data.clone())).await?.reply().await?;
    let outcome = DiskError::check(name, parse_outcome(&reply)?)?;
    let len = usize::try_from(data.byte_count()).unwrap_or(usize::MAX);
    let mut answer = vec![0; usize::try_from(outcome.transferred).unwrap_or(usize::MAX).min(len)];
    data.read(0, &mut answer)?;
    Ok(answer)
}

/// The packet that runs `command`.
pub(super) fn command_packet(
    version: Version,
    lun: u8,
    command: &Command,
    data: Option<&BufferRange>,
) -> Result<SmallVec<[u8; 64]>, DiskError> {
    let cdb = command.emit().map_err(|_| DiskError::Answer("a command that cannot be written"))?;
    let (direction, len) = match data {
        Some(range) => (command.direction(), range.byte_count()),
        None => (DataDirection::Unspecified, 0),
    };
    let srb = Srb::request(version, Address { path: 0, target: 0, lun }, &cdb, direction, len);
    let bytes = Request::ExecuteSrb(srb).to_packet().to_bytes();
    Ok(SmallVec::from_slice(&bytes[..version.packet_size()]))
}

/// How the command ended that `reply` answers.
pub(super) fn parse_outcome(reply: &[u8]) -> Result<Outcome, DiskError> {
    let packet = Packet::parse(reply)?;
    if packet.operation != Operation::COMPLETE_IO {
        return Err(DiskError::Answer("a command"));
    }
    Ok(packet.srb()?.outcome())
}

/// One step of the start, in packets of `size` bytes.
pub(super) async fn ask(
    channel: &Channel,
    step: &'static str,
    request: &Request,
    size: usize,
) -> Result<Packet, DiskError> {
    let bytes = request.to_packet().to_bytes();
    // A step makes sense in its place only: another root has to be greeted from the first on.
    let reply: Reply = channel.send_with(&bytes[..size], None, Replay::Never).await?.reply().await?;
    let answer = Packet::parse(&reply)?;
    match (answer.operation, answer.status) {
        (Operation::COMPLETE_IO, Status::SUCCESS) => Ok(answer),
        (Operation::COMPLETE_IO, status) => Err(DiskError::Refused { step, status }),
        _ => Err(DiskError::Answer(step)),
    }
}

/// The highest version that the provider accepts.
async fn agree(channel: &Channel) -> Result<Version, DiskError> {
    let mut refusal =
        DiskError::Refused { step: "QUERY_PROTOCOL_VERSION", status: Status::REVISION_MISMATCH };
    for version in Version::ALL.into_iter().rev() {
        match ask_version(channel, version).await {
            Ok(()) => return Ok(version),
            Err(error @ DiskError::Refused { .. }) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

/// Whether the provider accepts this version.
pub(super) async fn ask_version(channel: &Channel, version: Version) -> Result<(), DiskError> {
    let request = Request::QueryProtocolVersion { version: version.word(), revision: 0 };
    ask(channel, "QUERY_PROTOCOL_VERSION", &request, version.packet_size()).await.map(drop)
}

pub(super) fn longest_transfer(properties: &Properties) -> u32 {
    let stated = properties.max_transfer_bytes.get().clamp(4096, LONGEST_TRANSFER);
    stated / 4096 * 4096
}
