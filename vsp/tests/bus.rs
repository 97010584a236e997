//! A controller on a bus: guests open it, and what they see of each other and of slow disks.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that panics has failed")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use vmbus_channels::{Buffer, BufferRange, Channel, Device, Error, Guest, Pending, Root};
use vmbus_core::memory::SharedMemory;
use vmbus_core::storage::scsi::{BlockRange, CdbForm, Command, Sense};
use vmbus_core::storage::{
    Address, DataDirection, Notice, Outcome, Packet, Request, SCSI_CLASS, Srb, SrbStatus, Version,
};
use vmbus_partition::{GuestOptions, local};
use vmbus_vsp::storage::{Limits, Lun, Memory, StorageController};
use world::{DISK, Troubled};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

async fn join(root: &Root, name: &str) -> Guest {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (theirs, ours) = local::pair(&GuestOptions::named(name), number).unwrap();
    root.attach(Arc::new(theirs));
    timeout(LONG, Guest::builder().attach(Arc::new(ours))).await.unwrap().unwrap()
}

/// A guest's storage driver, reduced to the bone.
struct Driver {
    channel: Channel,
    buffer: Buffer,
}

impl Driver {
    async fn open(guest: &Guest) -> Result<Self, Error> {
        let channel = guest.open(Device::class(SCSI_CLASS)).await?;
        let driver = Self { channel, buffer: guest.share(1 << 20)? };
        for request in [
            Request::BeginInitialization,
            Request::QueryProtocolVersion { version: Version::V6_2.word(), revision: 0 },
            Request::QueryProperties,
            Request::EndInitialization,
        ] {
            let pending = driver.channel.send(&request.to_packet().to_bytes(), []).await?;
            let reply = timeout(LONG, pending.reply()).await.unwrap()?;
            assert!(Packet::parse(&reply).unwrap().status.is_success(), "{request:?}");
        }
        Ok(driver)
    }

    async fn send(&self, address: Address, command: Command, range: Option<BufferRange>) -> Pending {
        let length = range.as_ref().map_or(0, BufferRange::byte_count);
        let srb = Srb::request(Version::V6_2, address, &command.emit().unwrap(), command.direction(), length);
        self.channel.send(&Request::ExecuteSrb(srb).to_packet().to_bytes(), range).await.unwrap()
    }

    async fn run(&self, command: Command, range: Option<BufferRange>) -> Outcome {
        outcome(self.send(DISK, command, range).await).await
    }

    async fn write(&self, lba: u64, bytes: &[u8]) -> Outcome {
        self.buffer.write(0, bytes).unwrap();
        let blocks = BlockRange::new(lba, bytes.len() as u32 / 512);
        self.run(Command::Write(blocks), Some(self.buffer.range(..bytes.len()))).await
    }

    async fn read(&self, lba: u64, length: usize) -> Vec<u8> {
        let blocks = BlockRange::new(lba, length as u32 / 512);
        let outcome = self.run(Command::Read(blocks), Some(self.buffer.range(..length))).await;
        assert_eq!((outcome.srb_status, outcome.transferred), (SrbStatus::SUCCESS, length as u32));
        let mut bytes = vec![0; length];
        self.buffer.read(0, &mut bytes).unwrap();
        bytes
    }
}

async fn outcome(pending: Pending) -> Outcome {
    let reply = timeout(LONG, pending.reply()).await.expect("an answer in time").unwrap();
    Packet::parse(&reply).unwrap().srb().unwrap().outcome()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512 * 7 + at % 253) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_cross_the_bus_and_come_back() {
    let root = Root::builder().build();
    root.offer(StorageController::new("disk").lun(0, Lun::new(Memory::new(8 << 20).unwrap()))).unwrap();
    let guest = join(&root, "alice").await;
    let driver = Driver::open(&guest).await.unwrap();
    let bytes = pattern(300 << 10);
    assert_eq!(driver.write(16, &bytes).await, Outcome::success(300 << 10));
    assert_eq!(driver.run(Command::SynchronizeCache(BlockRange::new(0, 0)), None).await, Outcome::success(0));
    assert!(driver.read(16, 300 << 10).await == bytes);
    assert_eq!(driver.read(17, 512).await, bytes[512..1024]);
    let absent = Command::Read(BlockRange::new(0, 1));
    let nobody = driver.send(Address { lun: 1, ..DISK }, absent, Some(driver.buffer.range(..512))).await;
    assert_eq!(outcome(nobody).await.srb_status, SrbStatus::INVALID_LUN);
}

#[tokio::test]
async fn a_transfer_beyond_what_guests_were_told_is_refused() {
    let root = Root::builder().build();
    let limits = Limits { max_transfer: 64 << 10, ..Limits::default() };
    let controller =
        StorageController::new("disk").limits(limits).lun(0, Lun::new(Memory::new(1 << 20).unwrap()));
    root.offer(controller).unwrap();
    let guest = join(&root, "alice").await;
    let driver = Driver::open(&guest).await.unwrap();
    assert_eq!(driver.write(0, &pattern(64 << 10)).await, Outcome::success(64 << 10));
    let refused = driver.write(0, &pattern((64 << 10) + 512)).await;
    assert_eq!(refused.sense, Some(Sense::INVALID_FIELD_IN_CDB));
    assert_eq!(driver.write(0, &pattern(512)).await, Outcome::success(512));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_command_holds_up_no_other_but_the_flush_behind_it() {
    let disk = Troubled { slow: true, ..Troubled::new() };
    let state = Arc::clone(&disk.state);
    state.stuck.store(true, Ordering::Relaxed);
    let root = Root::builder().build();
    root.offer(StorageController::new("disk").lun(0, Lun::new(disk))).unwrap();
    let guest = join(&root, "alice").await;
    let driver = Driver::open(&guest).await.unwrap();
    let mut writes = Vec::new();
    for lba in 0..100 {
        let range = driver.buffer.range(..512);
        writes.push(driver.send(DISK, Command::Write(BlockRange::new(lba, 1)), Some(range)).await);
    }
    let flush = driver.send(DISK, Command::SynchronizeCache(BlockRange::new(0, 0)), None).await;
    assert_eq!(driver.run(Command::TestUnitReady, None).await, Outcome::success(0));
    assert_eq!(driver.read(1000, 4096).await, vec![0; 4096]);
    tokio::time::sleep(SHORT).await;
    assert_eq!(state.flushes.load(Ordering::Relaxed), 0, "the flush overtook writes");
    state.stuck.store(false, Ordering::Relaxed);
    assert_eq!(outcome(flush).await, Outcome::success(0));
    assert_eq!(state.writes.load(Ordering::Relaxed), 100, "all writes before the flush are done");
    for write in writes {
        assert_eq!(outcome(write).await, Outcome::success(512));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_answered_when_what_was_before_it_is_over() {
    let disk = Troubled { slow: true, ..Troubled::new() };
    let state = Arc::clone(&disk.state);
    state.stuck.store(true, Ordering::Relaxed);
    let root = Root::builder().build();
    root.offer(StorageController::new("disk").lun(0, Lun::new(disk))).unwrap();
    let guest = join(&root, "alice").await;
    let driver = Driver::open(&guest).await.unwrap();
    let range = driver.buffer.range(..512);
    let write = driver.send(DISK, Command::Write(BlockRange::new(0, 1)), Some(range)).await;
    let reset = driver.channel.send(&Request::ResetBus.to_packet().to_bytes(), []).await.unwrap();
    let mut reset = std::pin::pin!(reset.reply());
    assert!(timeout(SHORT, &mut reset).await.is_err(), "answered with a write under way");
    state.stuck.store(false, Ordering::Relaxed);
    let reply = timeout(LONG, reset).await.unwrap().unwrap();
    assert!(Packet::parse(&reply).unwrap().status.is_success());
    assert_eq!(outcome(write).await, Outcome::success(512));
    assert_eq!(driver.run(Command::TestUnitReady, None).await.sense, Some(Sense::RESET));
    assert_eq!(driver.run(Command::TestUnitReady, None).await, Outcome::success(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_for_one_guest_goes_to_the_next_with_everything_written() {
    let disk = Troubled { slow: true, ..Troubled::new() };
    let state = Arc::clone(&disk.state);
    let root = Root::builder().build();
    root.offer(StorageController::new("disk").for_one_guest().lun(0, Lun::new(disk))).unwrap();
    let alice = join(&root, "alice").await;
    let driver = Driver::open(&alice).await.unwrap();
    let bob = join(&root, "bob").await;
    assert!(matches!(bob.open(Device::class(SCSI_CLASS)).await, Err(Error::NotOffered(_))));

    // Alice dies with a write under way.
    state.stuck.store(true, Ordering::Relaxed);
    driver.buffer.write(0, &[0xaa; 512]).unwrap();
    let range = driver.buffer.range(..512);
    let write = driver.send(DISK, Command::Write(BlockRange::new(9, 1)), Some(range)).await;
    tokio::time::sleep(SHORT).await;
    drop((write, driver, alice));

    let opening = tokio::spawn(async move {
        timeout(LONG, bob.wait_for(Device::class(SCSI_CLASS))).await.unwrap().unwrap();
        let driver = Driver::open(&bob).await.unwrap();
        (driver.read(9, 512).await, bob)
    });
    tokio::time::sleep(SHORT).await;
    assert!(!opening.is_finished(), "bob reads what alice's write may still change");
    state.stuck.store(false, Ordering::Relaxed);
    assert_eq!(timeout(LONG, opening).await.unwrap().unwrap().0, [0xaa; 512]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_with_a_name_on_it_is_seen_by_nobody_else() {
    let root = Root::builder().build();
    root.offer(StorageController::new("disk").only_for("bob").lun(0, Lun::new(Memory::new(4096).unwrap())))
        .unwrap();
    let alice = join(&root, "alice").await;
    let bob = join(&root, "bob").await;
    assert!(matches!(alice.open(Device::class(SCSI_CLASS)).await, Err(Error::NotOffered(_))));
    Driver::open(&bob).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_told_of_disks_that_come_and_go() {
    let controller = StorageController::new("disk").lun(0, Lun::new(Memory::new(4096).unwrap()));
    let units = controller.units();
    let root = Root::builder().build();
    root.offer(controller).unwrap();
    let guest = join(&root, "alice").await;
    let driver = Driver::open(&guest).await.unwrap();
    let notice = async || {
        let request = timeout(LONG, driver.channel.recv()).await.expect("a notice").unwrap().unwrap();
        assert!(!request.wants_completion());
        Packet::parse(request.payload()).unwrap().notice().unwrap()
    };
    units.add(3, Arc::new(Lun::new(Memory::new(8192).unwrap())));
    assert_eq!(notice().await, Notice::EnumerateBus);
    let third = Address { lun: 3, ..DISK };
    assert_eq!(outcome(driver.send(third, Command::TestUnitReady, None).await).await, Outcome::success(0));
    units.remove(3).unwrap();
    assert_eq!(notice().await, Notice::RemoveDevice);
    let gone = outcome(driver.send(third, Command::TestUnitReady, None).await).await;
    assert_eq!(gone.srb_status, SrbStatus::INVALID_LUN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_run_is_answered_and_what_cannot_be_read_ends_the_channel() {
    let root = Root::builder().build();
    root.offer(StorageController::new("disk").lun(0, Lun::new(Memory::new(1 << 20).unwrap()))).unwrap();
    let guest = join(&root, "alice").await;
    let driver = Driver::open(&guest).await.unwrap();
    let read = Command::Read(BlockRange::new(0, 2));

    let srb = Srb::request(Version::V6_2, DISK, &read.emit().unwrap(), DataDirection::FromDevice, 1024);
    let payload = Request::ExecuteSrb(srb).to_packet().to_bytes();
    let halves = [driver.buffer.range(..512), driver.buffer.range(4096..4608)];
    let scattered = driver.channel.send(&payload, halves).await.unwrap();
    assert_eq!(outcome(scattered).await.sense, Some(Sense::INVALID_FIELD_IN_CDB), "two ranges are not one");
    let short = driver.channel.send(&payload, [driver.buffer.range(..512)]).await.unwrap();
    assert_eq!(outcome(short).await.srb_status, SrbStatus::DATA_OVERRUN);
    assert_eq!(driver.run(Command::TestUnitReady, None).await, Outcome::success(0));

    // The header alone is 12 bytes.
    let _ = driver.channel.send(&[1; 8], []).await.unwrap();
    timeout(LONG, driver.channel.closed()).await.expect("the channel ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_wants_no_answer_is_not_run() {
    let disk = Memory::new(1 << 20).unwrap();
    let root = Root::builder().build();
    root.offer(StorageController::new("disk").lun(0, Lun::new(disk.clone()))).unwrap();
    let guest = join(&root, "alice").await;
    let driver = Driver::open(&guest).await.unwrap();
    let same = Command::WriteSame(BlockRange { form: CdbForm::Sixteen, options: 1, lba: 0, blocks: 1 });
    disk.bytes().write(0, &[0x55; 512]);
    let srb = Srb::request(Version::V6_2, DISK, &same.emit().unwrap(), DataDirection::Unspecified, 0);
    driver.channel.notify(&Request::ExecuteSrb(srb).to_packet().to_bytes()).await.unwrap();
    timeout(LONG, driver.channel.closed()).await.expect("the channel ends");
    assert_eq!(disk.bytes().read_u64(0), 0x5555_5555_5555_5555);
}
