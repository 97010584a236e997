//! The conversation about sub-channels, and what the channels of a guest have in common.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use vmbus_channels::{Buffer, Channel, Device, Guest, Root};
use vmbus_core::Status;
use vmbus_core::storage::scsi::{BlockRange, Command, Sense};
use vmbus_core::storage::{Address, Outcome, Packet, Request, SCSI_CLASS, Srb, SrbStatus, Version};
use vmbus_partition::{GuestOptions, local};
use vmbus_vsp::storage::{Lun, Memory, StorageController};

const LONG: Duration = Duration::from_secs(20);
const DISK: Address = Address { path: 0, target: 0, lun: 0 };

struct World {
    guest: Guest,
    primary: Channel,
    buffer: Buffer,
    _root: Root,
}

impl World {
    async fn new() -> Self {
        let root = Root::builder().build();
        let lun = Arc::new(Lun::new(Memory::new(1 << 20).unwrap()));
        root.offer(StorageController::new("disk").lun(0, lun)).unwrap();
        let (theirs, ours) = local::pair(&GuestOptions::named("guest"), root.next_partition()).unwrap();
        root.attach(Arc::new(theirs));
        let guest = Guest::builder().attach(Arc::new(ours)).await.unwrap();
        let primary = guest.open(Device::class(SCSI_CLASS)).await.unwrap();
        let buffer = guest.share(4096).unwrap();
        Self { guest, primary, buffer, _root: root }
    }

    async fn say(&self, request: Request) -> Status {
        let bytes = request.to_packet().to_bytes();
        let pending = self.primary.send(&bytes, []).await.unwrap();
        Packet::parse(&timeout(LONG, pending.reply()).await.unwrap().unwrap()).unwrap().status
    }

    async fn begin(&self) {
        let version = Request::QueryProtocolVersion { version: Version::V6_2.word(), revision: 0 };
        for request in [Request::BeginInitialization, version, Request::QueryProperties] {
            assert_eq!(self.say(request).await, Status::SUCCESS);
        }
    }

    async fn open(&self, index: u16) -> Channel {
        let device = Device::class(SCSI_CLASS).subchannel(index);
        timeout(LONG, self.guest.wait_for(device)).await.unwrap().unwrap();
        self.guest.open(device).await.unwrap()
    }

    async fn read(&self, channel: &Channel) -> Packet {
        let command = Command::Read(BlockRange::new(0, 8));
        let srb = Srb::request(Version::V6_2, DISK, &command.emit().unwrap(), command.direction(), 4096);
        let bytes = Request::ExecuteSrb(srb).to_packet().to_bytes();
        let pending = channel.send(&bytes, [self.buffer.range(..)]).await.unwrap();
        Packet::parse(&timeout(LONG, pending.reply()).await.unwrap().unwrap()).unwrap()
    }

    async fn outcome(&self, channel: &Channel) -> Outcome {
        self.read(channel).await.srb().unwrap().outcome()
    }
}

#[tokio::test]
async fn a_sub_channel_runs_commands_once_its_primary_is_ready_and_nothing_else() {
    let world = World::new().await;
    world.begin().await;
    assert_eq!(world.say(Request::CreateSubChannels(16)).await, Status::INVALID_PARAMETER);
    assert_eq!(world.say(Request::CreateSubChannels(1)).await, Status::SUCCESS);
    let channel = world.open(1).await;
    assert_eq!(world.read(&channel).await.status, Status::INVALID_DEVICE_STATE, "too early");
    assert_eq!(world.say(Request::EndInitialization).await, Status::SUCCESS);
    assert_eq!(world.outcome(&channel).await, Outcome::success(4096));
    let begin = Request::BeginInitialization.to_packet().to_bytes();
    let reply = channel.send(&begin, []).await.unwrap().reply().await.unwrap();
    assert_eq!(Packet::parse(&reply).unwrap().status, Status::INVALID_DEVICE_STATE);
    assert_eq!(world.say(Request::CreateSubChannels(1)).await, Status::INVALID_PARAMETER, "only once");
}

#[tokio::test]
async fn a_reset_is_told_once_on_whichever_channel_the_guest_asks_next() {
    let world = World::new().await;
    world.begin().await;
    assert_eq!(world.say(Request::EndInitialization).await, Status::SUCCESS);
    assert_eq!(world.say(Request::CreateSubChannels(2)).await, Status::SUCCESS);
    let channels = [world.open(1).await, world.open(2).await];
    for asked_next in 0..2 {
        assert_eq!(world.say(Request::ResetLun(DISK)).await, Status::SUCCESS);
        let told = world.outcome(&channels[asked_next]).await;
        assert_eq!(told.sense, Some(Sense::RESET));
        for channel in [&world.primary, &channels[0], &channels[1]] {
            assert_eq!(world.outcome(channel).await.srb_status, SrbStatus::SUCCESS);
        }
    }
}
