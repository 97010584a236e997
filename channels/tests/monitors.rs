//! Signals by monitor bits: found in time, none lost, nobody looks where nobody uses them.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmbus_channels::test_utils::{self, MockGuest, MockRings, join, join_with};
use vmbus_channels::{
    Channel, Device, Error, Event, Guest, Guid, MonitorPageSource, Offer, OpenOptions, Provider, Root, Spin,
    guid,
};
use vmbus_core::memory::SharedMemory;
use vmbus_core::message::{CloseChannel, InitiateContact, Message, OpenChannel, RequestOffers};
use vmbus_core::{FeatureFlags, PAGE_SIZE, Version};
use vmbus_partition::{GuestEnd, Mapping, ROOT_MEMORY, SharedPages};
use vmbus_ringbuf::Outgoing;

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a0c");
const LATENCY: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(20);

fn monitored() -> impl Provider {
    test_utils::echo(Offer::new(CLASS, "echo").monitored(LATENCY))
}

fn root() -> Root {
    let root = Root::builder().spin(Spin::never()).build();
    root.offer(monitored()).unwrap();
    root
}

async fn echo(channel: &Channel, number: u64) {
    let pending = channel.send(&number.to_le_bytes(), []).await.unwrap();
    let reply = tokio::time::timeout(PATIENCE, pending.reply()).await.expect("a signal was lost").unwrap();
    assert_eq!(&reply[..], number.to_le_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bit_is_lost_at_any_version_with_or_without_low_latency() {
    let root = root();
    for version in Version::ALL {
        let builder = Guest::builder().versions(version..=version).spin(Spin::never());
        let guest = join_with(&root, "guest", builder).await.unwrap();
        for options in [OpenOptions::new(), OpenOptions::new().low_latency()] {
            let channel = guest.open_with(Device::class(CLASS), options).await.unwrap();
            for number in 0..100 {
                echo(&channel, number).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_moves_its_monitor_pages_under_load_and_no_bit_is_lost() {
    let root = root();
    let guest = join_with(&root, "guest", Guest::builder().spin(Spin::never())).await.unwrap();
    let channel = Arc::new(guest.open(Device::class(CLASS)).await.unwrap());
    let load: Vec<_> = (0..4)
        .map(|_| {
            let channel = Arc::clone(&channel);
            tokio::spawn(async move {
                for number in 0..200 {
                    echo(&channel, number).await;
                }
            })
        })
        .collect();
    while load.iter().any(|task| !task.is_finished()) {
        guest.move_monitor_pages().await.unwrap();
    }
    for task in load {
        task.await.unwrap();
    }
    let old = Guest::builder().versions(Version::Iron..=Version::Iron);
    let old = join_with(&root, "old", old).await.unwrap();
    assert!(matches!(old.move_monitor_pages().await, Err(Error::NotPossible(_))));
}

/// A guest that signals in no other way than by its bit.
struct Silent {
    guest: MockGuest,
    /// The root's page, then ours.
    monitors: Mapping,
    /// What the mapping is of, where it is the guest's own.
    _pages: Option<SharedPages>,
    relid: u32,
    bit: u32,
}

impl Silent {
    async fn join(root: &Root, monitor_gpa: Option<u64>) -> Self {
        let guest = MockGuest::attach(root, "silent").unwrap();
        let monitors = guest.end().allocate(0, 2 * PAGE_SIZE).unwrap();
        guest.say(InitiateContact {
            version: Version::Iron.word().into(),
            interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
            parent_to_child_monitor: monitors.gpa().into(),
            child_to_parent_monitor: monitor_gpa.unwrap_or(monitors.gpa() + PAGE_SIZE as u64).into(),
            ..InitiateContact::default()
        });
        let accepted = |message: Message<'_>| matches!(message, Message::VersionResponse(_)).then_some(());
        guest.hear(accepted).await;
        let mapping = monitors.mapping().clone();
        Self::see_offer(guest, mapping, Some(monitors)).await
    }

    /// Asks for pages of the root's own.
    async fn join_on_pages_of_the_root(root: &Root) -> Self {
        let guest = MockGuest::attach(root, "silent").unwrap();
        guest.say(InitiateContact {
            version: Version::NEWEST.word().into(),
            interrupt_page_or_target: InitiateContact::target(
                2,
                0,
                FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES,
            ),
            ..InitiateContact::default()
        });
        let pages = |message: Message<'_>| match message {
            Message::VersionResponse(response) => {
                Some((response.parent_to_child_monitor.get(), response.child_to_parent_monitor.get()))
            }
            _ => None,
        };
        assert_eq!(guest.hear(pages).await, (ROOT_MEMORY, ROOT_MEMORY + PAGE_SIZE as u64));
        let memory = guest.end().memory();
        let region = memory.regions().iter().find(|region| region.gpa == ROOT_MEMORY);
        let mapping = region.expect("memory of the root").mapping.clone();
        Self::see_offer(guest, mapping, None).await
    }

    async fn see_offer(guest: MockGuest, monitors: Mapping, pages: Option<SharedPages>) -> Self {
        guest.say(RequestOffers {});
        let offered = |message: Message<'_>| match message {
            Message::OfferChannel(offer) => {
                Some((offer.relid.get(), offer.monitor_allocated, offer.monitor_id))
            }
            _ => None,
        };
        let (relid, 1, monitor) = guest.hear(offered).await else { panic!("no monitor id") };
        assert!(monitor < 32, "the first of 128");
        Self { guest, monitors, _pages: pages, relid, bit: 1 << monitor }
    }

    async fn open(&self, gpadl: u32) -> MockRings {
        let (rings, list) = self.guest.rings(1);
        for message in list.messages(self.relid, gpadl) {
            self.guest.say(message);
        }
        let created = |message: Message<'_>| matches!(message, Message::GpadlCreated(_)).then_some(());
        self.guest.hear(created).await;
        self.guest.say(OpenChannel {
            relid: self.relid.into(),
            ring_gpadl: gpadl.into(),
            downstream_page_offset: 2.into(),
            ..OpenChannel::default()
        });
        let status = |message: Message<'_>| match message {
            Message::OpenChannelResult(result) => Some(result.status.get()),
            _ => None,
        };
        assert_eq!(self.guest.hear(status).await, 0);
        rings
    }

    fn set_bit(&self) {
        self.monitors.fetch_or_u32(PAGE_SIZE + 8, self.bit, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.monitors.load_u32(PAGE_SIZE + 8, Ordering::SeqCst) & self.bit != 0
    }

    /// Sends a packet, sets the bit, and waits for the answer.
    async fn echo(&self, rings: &mut MockRings, number: u64) -> Duration {
        let mut batch = rings.to_host.batch();
        batch.push(Outgoing::request(number, &number.to_le_bytes())).unwrap();
        let _ = batch.commit().unwrap();
        self.set_bit();
        let start = Instant::now();
        loop {
            if rings.from_host.next().unwrap().is_some() {
                let _ = rings.from_host.publish().unwrap();
                return start.elapsed();
            }
            assert!(start.elapsed() < PATIENCE, "the bit was never found");
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_never_signals_otherwise_is_served_however_long_it_was_silent() {
    let root = root();
    let silent = Silent::join(&root, None).await;
    let mut rings = silent.open(0x77).await;
    let page = &silent.monitors;
    let mut bytes = vec![0; PAGE_SIZE];
    page.read(PAGE_SIZE, &mut bytes);
    let monitor = silent.bit.trailing_zeros() as usize;
    assert_eq!(bytes[0] & 0xf, 1, "the first group is looked at");
    assert_eq!(bytes[0x240 + 2 * monitor..][..2], 2000_u16.to_le_bytes(), "200 us in units of 100 ns");
    assert_ne!(bytes[0x440 + 8 * monitor..][..4], [0; 4], "a connection id");

    for number in 0..50 {
        silent.echo(&mut rings, number).await;
    }
    // Long enough for the pauses to be as long as they get.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waited = silent.echo(&mut rings, 51).await;
    assert!(waited < Duration::from_secs(1), "8 ms are promised, and the machine may be slow: {waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_signals_in_pages_of_the_roots_own_where_the_root_gives_some() {
    let root = Root::builder().spin(Spin::never()).monitor_pages(MonitorPageSource::Root).build();
    root.offer(monitored()).unwrap();
    let silent = Silent::join_on_pages_of_the_root(&root).await;
    let mut rings = silent.open(0x77).await;
    for number in 0..50 {
        silent.echo(&mut rings, number).await;
    }

    // A guest of ours over a socket; and one that is too old to ask for such pages.
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("bus.sock");
    root.listen_at(&path).unwrap();
    for version in [Version::NEWEST, Version::Iron] {
        let builder = Guest::builder().versions(version..=version).spin(Spin::never());
        let guest = builder.connect(&path).await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        for number in 0..100 {
            echo(&channel, number).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_looks_for_bits_of_channels_that_are_not_open() {
    let root = root();
    let silent = Silent::join(&root, None).await;
    silent.set_bit();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(silent.is_set(), "before the open");

    let mut rings = silent.open(0x77).await;
    silent.echo(&mut rings, 1).await;
    silent.guest.say(CloseChannel { relid: silent.relid.into() });
    while root.status().await.partitions[0].channels[0].state != "closed" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    silent.set_bit();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(silent.is_set(), "after the close");
    assert_eq!(silent.monitors.load_u32(PAGE_SIZE, Ordering::SeqCst), 0, "no group is enabled");
}

/// Processor time of this thread, on which the whole bus runs.
fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    time.into()
}

#[tokio::test]
async fn a_bus_whose_monitored_channels_are_quiet_hardly_uses_the_processor() {
    let root = root();
    let guest = join(&root, "guest").await.unwrap();
    let idle = async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = processor_time();
        tokio::time::sleep(Duration::from_millis(500)).await;
        processor_time() - before
    };
    let offered = idle().await;
    assert!(offered < Duration::from_millis(5), "1 % of a processor, at most: {offered:?}");
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    echo(&channel, 1).await;
    let open = idle().await;
    assert!(open < Duration::from_millis(50), "10 %, at most: {open:?}");
    drop(channel);
    let closed = idle().await;
    assert!(closed < Duration::from_millis(5), "{closed:?}");
}

#[tokio::test]
async fn a_monitor_page_that_is_not_there_is_told_and_costs_nobody_else_anything() {
    for gpa in [0x7000_0000_0000, 0x10_0008, u64::MAX - 4095] {
        let root = root();
        let mut events = root.events();
        let silent = Silent::join(&root, Some(gpa)).await;
        let _rings = silent.open(0x77).await;
        let told = async {
            loop {
                if let Event::Refused { what, .. } = events.recv().await.unwrap() {
                    return what;
                }
            }
        };
        let what = tokio::time::timeout(PATIENCE, told).await.unwrap();
        assert!(what.starts_with("monitor page"), "{what}");
        let guest = join(&root, "guest").await.unwrap();
        echo(&guest.open(Device::class(CLASS)).await.unwrap(), 1).await;
    }
}
