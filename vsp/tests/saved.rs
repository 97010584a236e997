//! A partition that is saved, as bytes, and restored in another root while its guest goes on.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use vmbus_channels::policy::{Asked, Decision, PolicyAgent, Question};
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, RestoreError,
    Root, SaveError, SavedPartition, Session, guid,
};
use vmbus_core::storage::scsi::{BlockRange, Command};
use vmbus_core::storage::{Address, Outcome, Packet, Request, SCSI_CLASS, Srb, Version};
use vmbus_partition::{GuestOptions, GuestPages, RootEnd, local};
use vmbus_vsp::storage::{Backend, Durability, Geometry, Lun, Memory, StorageController};

const LONG: Duration = Duration::from_secs(60);
const DISK: Address = Address { path: 0, target: 0, lun: 0 };
const DISK_INSTANCE: Guid = guid!("5a5a0001-0000-4000-8000-000000000001");
const FORGETFUL: Guid = guid!("5a5a0002-0000-4000-8000-000000000002");
const WITHDRAWN: Guid = guid!("5a5a0003-0000-4000-8000-000000000003");
const BLOCK: usize = 4096;

/// A disk in memory of which some requests take their time and some none, so that there is always one in flight.
struct Moody {
    memory: Memory,
    count: AtomicUsize,
    /// While set, what takes its time takes all the time.
    stuck: Arc<AtomicBool>,
    /// Requests that took their time.
    waits: Arc<AtomicUsize>,
}

impl Moody {
    fn takes_its_time(&self) -> bool {
        !self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(3)
    }

    async fn wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_micros(500)).await;
        while self.stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[async_trait::async_trait]
impl Backend for Moody {
    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }

    fn try_read(&self, offset: u64, into: &GuestPages) -> Option<io::Result<()>> {
        if self.takes_its_time() { None } else { self.memory.try_read(offset, into) }
    }

    fn try_write(&self, offset: u64, from: &GuestPages, durability: Durability) -> Option<io::Result<()>> {
        if self.takes_its_time() { None } else { self.memory.try_write(offset, from, durability) }
    }

    async fn read(&self, offset: u64, into: GuestPages) -> io::Result<()> {
        self.wait().await;
        self.memory.read(offset, into).await
    }

    async fn write(&self, offset: u64, from: GuestPages, durability: Durability) -> io::Result<()> {
        self.wait().await;
        self.memory.write(offset, from, durability).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.memory.flush().await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.memory.discard(range).await
    }

    async fn write_zeroes(&self, range: Range<u64>, durability: Durability) -> io::Result<()> {
        self.memory.write_zeroes(range, durability).await
    }
}

/// A guest, its end of the root's link, and disks that outlive roots.
struct World {
    root: Root,
    end: Arc<dyn RootEnd>,
    guest: Arc<Guest>,
    lun: Arc<Lun>,
    stuck: Arc<AtomicBool>,
    waits: Arc<AtomicUsize>,
}

impl World {
    async fn new() -> Self {
        let stuck = Arc::new(AtomicBool::new(false));
        let memory = Memory::new(8 << 20).unwrap();
        let waits = Arc::new(AtomicUsize::new(0));
        let moody = Moody {
            memory,
            count: AtomicUsize::new(0),
            stuck: Arc::clone(&stuck),
            waits: Arc::clone(&waits),
        };
        let lun = Arc::new(Lun::new(moody));
        let root = root(&lun);
        let (theirs, ours) = local::pair(&GuestOptions::named("guest"), root.next_partition()).unwrap();
        let end: Arc<dyn RootEnd> = Arc::new(theirs);
        root.attach(Arc::clone(&end));
        let guest = timeout(LONG, Guest::builder().attach(Arc::new(ours))).await.unwrap().unwrap();
        Self { root, end, guest: Arc::new(guest), lun, stuck, waits }
    }

    fn partition(&self) -> u32 {
        self.end.info().id
    }

    async fn save(&self) -> Vec<u8> {
        timeout(LONG, self.root.save(self.partition())).await.expect("a save that ends").unwrap().encode()
    }

    /// Another root goes on.
    async fn moves(&mut self) {
        let bytes = self.save().await;
        self.root = root(&self.lun);
        let saved = SavedPartition::decode(&bytes).unwrap();
        assert_eq!(self.root.restore(saved, Arc::clone(&self.end)).unwrap(), self.partition());
    }

    async fn open_disk(&self) -> Channel {
        open_disk(&self.guest).await
    }

    async fn open_sub_channel(&self, index: u16) -> Channel {
        let device = Device::class(SCSI_CLASS).subchannel(index);
        timeout(LONG, self.guest.wait_for(device)).await.unwrap().unwrap();
        self.guest.open(device).await.unwrap()
    }
}

async fn open_disk(guest: &Guest) -> Channel {
    let channel = guest.open(Device::class(SCSI_CLASS)).await.unwrap();
    for request in [
        Request::BeginInitialization,
        Request::QueryProtocolVersion { version: Version::V6_2.word(), revision: 0 },
        Request::QueryProperties,
        Request::CreateSubChannels(2),
        Request::EndInitialization,
    ] {
        let pending = channel.send(&request.to_packet().to_bytes(), []).await.unwrap();
        let reply = timeout(LONG, pending.reply()).await.unwrap().unwrap();
        assert!(Packet::parse(&reply).unwrap().status.is_success(), "{request:?}");
    }
    channel
}

fn root(lun: &Arc<Lun>) -> Root {
    let root = Root::builder().build();
    // The order differs from root to root: devices are known by their instance.
    root.offer(Forgetful(FORGETFUL)).unwrap();
    root.offer(StorageController::new("disk").instance(DISK_INSTANCE).lun(0, Arc::clone(lun))).unwrap();
    root
}

/// Writes a block of its own, reads it again, and so on; each answer is awaited and looked at.
async fn load(channel: Arc<Channel>, guest: &Guest, place: u64, done: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let buffer = guest.share(BLOCK).unwrap();
    let lba = place * 8;
    let mut round = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let bytes: Vec<u8> = (0..BLOCK).map(|at| (at as u64 * 31 + round * 7 + place) as u8).collect();
        buffer.write(0, &bytes).unwrap();
        for command in [Command::Write(BlockRange::new(lba, 8)), Command::Read(BlockRange::new(lba, 8))] {
            if matches!(command, Command::Read(_)) {
                buffer.write(0, &vec![0; BLOCK]).unwrap();
            }
            let srb = Srb::request(
                Version::V6_2,
                DISK,
                &command.emit().unwrap(),
                command.direction(),
                BLOCK as u32,
            );
            let packet = Request::ExecuteSrb(srb).to_packet().to_bytes();
            let pending = channel.send(&packet, [buffer.range(..)]).await.unwrap();
            let reply = timeout(LONG, pending.reply()).await.expect("an answer").unwrap();
            let outcome = Packet::parse(&reply).unwrap().srb().unwrap().outcome();
            assert_eq!(outcome, Outcome::success(BLOCK as u32), "round {round} at {place}");
            done.fetch_add(1, Ordering::Relaxed);
        }
        let mut read = vec![0; BLOCK];
        buffer.read(0, &mut read).unwrap();
        assert!(read == bytes, "round {round} at {place}: other bytes than were written");
    }
}

/// A device that remembers nothing: it answers 8 bytes and cannot be saved.
struct Forgetful(Guid);
struct ForgetfulSession;

impl Provider for Forgetful {
    type Session = ForgetfulSession;

    fn offer(&self) -> Offer {
        Offer::new(FORGETFUL, "forgetful").instance(self.0)
    }

    fn open(&self, _: &Client, _: &OpenRequest) -> Result<ForgetfulSession, Refusal> {
        Ok(ForgetfulSession)
    }
}

impl Session for ForgetfulSession {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            request.complete(b"answered").await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_under_load_moves_from_root_to_root_and_each_request_completes_once() {
    let mut world = World::new().await;
    let primary = Arc::new(world.open_disk().await);
    let subs = [Arc::new(world.open_sub_channel(1).await), Arc::new(world.open_sub_channel(2).await)];
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let guest = Arc::clone(&world.guest);
    let mut tasks = tokio::task::JoinSet::new();
    for place in 0..12 {
        let channel = match place % 4 {
            0 | 1 => Arc::clone(&primary),
            sub => Arc::clone(&subs[sub as usize - 2]),
        };
        let (guest, done, stop) = (Arc::clone(&guest), Arc::clone(&done), Arc::clone(&stop));
        tasks.spawn(async move { load(channel, &guest, place, done, stop).await });
    }
    let mut moment = 12_345_u64;
    // A request is left unanswered once in a few hundred moves on a loaded machine, which is to be found.
    let moves = if std::env::var_os("VMBUS_LONG").is_some() { 1000 } else { 4 };
    for _ in 0..moves {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let until = done.load(Ordering::Relaxed) + (moment >> 33) % 97;
        timeout(LONG, async {
            while done.load(Ordering::Relaxed) < until {
                assert!(tasks.try_join_next().is_none(), "a load ended early");
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the disk goes on");
        world.moves().await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(result) = timeout(LONG, tasks.join_next()).await.expect("every request ends") {
        result.unwrap();
    }
    assert!(!primary.is_closed() && subs.iter().all(|sub| !sub.is_closed()), "the guest noticed nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sub_channel_that_was_offered_before_a_move_opens_after_it() {
    let mut world = World::new().await;
    let primary = world.open_disk().await;
    let _first = world.open_sub_channel(1).await;
    let second = Device::class(SCSI_CLASS).subchannel(2);
    timeout(LONG, world.guest.wait_for(second)).await.unwrap().unwrap();
    world.moves().await;
    let second = Arc::new(timeout(LONG, world.guest.open(second)).await.unwrap().expect("it opens"));
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let guest = Arc::clone(&world.guest);
    let (counter, until) = (Arc::clone(&done), Arc::clone(&stop));
    let load = tokio::spawn(async move { load(second, &guest, 0, counter, until).await });
    timeout(LONG, async {
        while done.load(Ordering::Relaxed) < 10 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it answers");
    stop.store(true, Ordering::Relaxed);
    timeout(LONG, load).await.expect("every request ends").unwrap();
    assert!(!primary.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_cannot_be_saved_is_withdrawn_and_comes_back() {
    let mut world = World::new().await;
    let disk = world.open_disk().await;
    let forgetful = world.guest.open(Device::instance(FORGETFUL)).await.unwrap();
    let reply = forgetful.send(b"question", []).await.unwrap().reply().await.unwrap();
    assert_eq!(&reply[..], b"answered");
    world.moves().await;
    timeout(LONG, forgetful.closed()).await.expect("the guest is told");
    drop(forgetful);
    timeout(LONG, world.guest.wait_for(Device::instance(FORGETFUL))).await.unwrap().unwrap();
    let again = timeout(LONG, world.guest.open(Device::instance(FORGETFUL))).await.unwrap().unwrap();
    let reply = again.send(b"question", []).await.unwrap().reply().await.unwrap();
    assert_eq!(&reply[..], b"answered");
    assert!(!disk.is_closed(), "the disk is none of its business");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_the_next_root_does_not_have_is_withdrawn() {
    let world = World::new().await;
    let disk = world.open_disk().await;
    let saved = SavedPartition::decode(&world.save().await).unwrap();
    let next = Root::builder().build();
    next.restore(saved, Arc::clone(&world.end)).unwrap();
    timeout(LONG, disk.closed()).await.expect("the guest is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_withdrawn_during_a_save_is_gone_at_the_next_root_and_nothing_of_it_is_left() {
    let mut world = World::new().await;
    let disk = world.open_disk().await;
    for moment in 0..24 {
        let device = world.root.offer(Forgetful(WITHDRAWN)).unwrap();
        timeout(LONG, world.guest.wait_for(Device::instance(WITHDRAWN))).await.unwrap().unwrap();
        let channel = world.guest.open(Device::instance(WITHDRAWN)).await.unwrap();
        let withdrawn = tokio::spawn(async move {
            for _ in 0..moment {
                tokio::task::yield_now().await;
            }
            device.rescind();
        });
        world.moves().await;
        withdrawn.await.unwrap();
        timeout(LONG, channel.closed()).await.expect("the guest is told");
        drop(channel);
        let gone = timeout(LONG, async {
            loop {
                let guest = &world.root.status().await.partitions[0];
                // The disk with its sub-channels, and the other device.
                if guest.channels.len() == 4 && guest.gpadls == 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        gone.await.unwrap_or_else(|_| panic!("something is left at moment {moment}"));
    }
    assert!(!disk.is_closed(), "the disk is none of its business");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_waits_for_requests_in_flight_but_not_for_ever() {
    let world = World::new().await;
    let disk = world.open_disk().await;
    let mut quotas = vmbus_channels::Quotas::default();
    quotas.grace = Duration::from_millis(200);
    world.root.limit(world.partition(), quotas);
    world.stuck.store(true, Ordering::Relaxed);
    let buffer = world.guest.share(BLOCK).unwrap();
    let command = Command::Read(BlockRange::new(0, 8));
    let srb = Srb::request(Version::V6_2, DISK, &command.emit().unwrap(), command.direction(), BLOCK as u32);
    let packet = Request::ExecuteSrb(srb).to_packet().to_bytes();
    let mut pending = Vec::new();
    for _ in 0..6 {
        pending.push(disk.send(&packet, [buffer.range(..)]).await.unwrap());
    }
    // What is still in the ring then is nobody's to wait for.
    timeout(LONG, async {
        while world.waits.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a request is stuck");
    let bytes = world.save().await;
    let next = root(&world.lun);
    world.stuck.store(false, Ordering::Relaxed);
    next.restore(SavedPartition::decode(&bytes).unwrap(), Arc::clone(&world.end)).unwrap();
    timeout(LONG, disk.closed()).await.expect("a device that takes too long is withdrawn");
    drop(pending);
}

#[tokio::test]
async fn there_must_be_a_partition_to_save_and_a_place_to_restore_it() {
    let world = World::new().await;
    let nobody = world.root.save(4711).await.unwrap_err();
    assert!(matches!(nobody, SaveError::NoPartition(4711)), "{nobody}");
    let saved = SavedPartition::decode(&world.save().await).unwrap();
    let again = world.root.restore(saved.clone(), Arc::clone(&world.end)).unwrap();
    let taken = world.root.restore(saved, Arc::clone(&world.end)).unwrap_err();
    assert!(matches!(taken, RestoreError::Taken(id) if id == again), "{taken}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_somebody_has_changed_are_refused_or_do_no_harm() {
    let panics = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&panics);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        counter.fetch_add(1, Ordering::Relaxed);
        before(info);
    }));
    let world = World::new().await;
    let _disk = world.open_disk().await;
    let _sub = world.open_sub_channel(1).await;
    let bytes = world.save().await;
    let (mut refused, mut taken) = (BTreeSet::new(), 0);
    let mut dice = 99_u64;
    let mut roll = |sides: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize % sides
    };
    for _ in 0..400 {
        let mut forged = bytes.clone();
        for _ in 0..=roll(3) {
            let at = roll(forged.len());
            forged[at] = if roll(2) == 0 { roll(8) as u8 } else { roll(256) as u8 };
        }
        let next = root(&world.lun);
        let result =
            SavedPartition::decode(&forged).and_then(|saved| next.restore(saved, Arc::clone(&world.end)));
        match result {
            Ok(partition) => {
                taken += 1;
                // It attaches, and can be asked and let go as any other.
                assert!(next.status().await.partitions.len() <= 1);
                next.detach(partition);
                timeout(LONG, next.run_until(async {})).await.expect("it leaves");
            }
            Err(error) => _ = refused.insert(error.to_string()),
        }
    }
    assert!(refused.len() > 5, "too few ways to be refused: {refused:?}");
    assert!(taken > 10, "too few forgeries went through: {taken}");
    assert_eq!(panics.load(Ordering::Relaxed), 0, "somebody panicked");
    let whole = SavedPartition::decode(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(matches!(whole, RestoreError::Encoding(_)), "{whole}");
}

/// Does not say whether a channel may be opened.
struct Undecided(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl PolicyAgent for Undecided {
    async fn decide(&self, asked: &Asked) -> Decision {
        if matches!(asked.question, Question::Open { .. }) {
            self.0.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
        Decision::Allow
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_has_not_decided_the_next_root_asks_again() {
    let mut world = World::new().await;
    let asked = Arc::new(AtomicUsize::new(0));
    world.root.set_policy(Undecided(Arc::clone(&asked)));
    let guest = Arc::clone(&world.guest);
    let open = tokio::spawn(async move { guest.open(Device::instance(FORGETFUL)).await });
    timeout(LONG, async {
        while asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("policy is asked");
    world.moves().await;
    let channel = timeout(LONG, open).await.expect("the next root decides").unwrap().unwrap();
    let reply = channel.send(b"question", []).await.unwrap().reply().await.unwrap();
    assert_eq!(&reply[..], b"answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_open_and_close_whenever_their_root_changes() {
    let mut world = World::new().await;
    let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, end, guest) = (Arc::clone(&rounds), Arc::clone(&stop), Arc::clone(&world.guest));
    let churn = tokio::spawn(async move {
        let buffer = guest.share(BLOCK).unwrap();
        while !end.load(Ordering::Relaxed) {
            let channel = timeout(LONG, open_disk(&guest)).await.expect("the disk opens");
            let command = Command::Read(BlockRange::new(0, 8));
            let cdb = command.emit().unwrap();
            let srb = Srb::request(Version::V6_2, DISK, &cdb, command.direction(), BLOCK as u32);
            let packet = Request::ExecuteSrb(srb).to_packet().to_bytes();
            let pending = channel.send(&packet, [buffer.range(..)]).await.unwrap();
            timeout(LONG, pending.reply()).await.expect("an answer").unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for turn in 0..20 {
        let until = rounds.load(Ordering::Relaxed) + turn % 2;
        let at_once = tokio::time::Instant::now() + LONG;
        while rounds.load(Ordering::Relaxed) < until {
            assert!(!churn.is_finished() && tokio::time::Instant::now() < at_once, "the guest goes on");
            tokio::task::yield_now().await;
        }
        for _ in 0..turn * 7 {
            tokio::task::yield_now().await;
        }
        world.moves().await;
    }
    stop.store(true, Ordering::Relaxed);
    timeout(LONG, churn).await.expect("the guest goes on").unwrap();
}
