//! Guests that leave in order, crash, or start anew: everything is released, and they may come back.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

// A virtual machine's monitor as the attach tests have it.
#[allow(dead_code, unreachable_pub, reason = "a part of it is used here")]
#[path = "../../partition/tests/common/base_vmm.rs"]
mod base_vmm;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base_vmm::BaseVmm;
use tokio::sync::Semaphore;
use vmbus_channels::test_utils::join_with;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Error, Event, Guest, Guid, Offer, OpenRequest, Provider, Refusal,
    Root, Session, guid,
};
use vmbus_core::memory::SharedMemory;
use vmbus_core::message::{Direction, InitiateContact, Message, OpenChannel, RequestOffers, Unload};
use vmbus_core::synic::{EVENT_CONNECTION, PageBit};
use vmbus_core::{FeatureFlags, PAGE_SIZE, Version};
use vmbus_partition::frame::GuestFrame;
use vmbus_partition::{AttachLimits, Attaching, FromRoot, GuestEnd, RingMapping, RootEnd, SharedPages};
use vmbus_ringbuf::{Consumer, Outgoing, Producer};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a0e");
const VERSIONS: [Version; 5] = [Version::V1, Version::Win7, Version::Win8, Version::Iron, Version::Copper];
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps a number, whoever writes it. Its sessions end only with a permit.
struct Register {
    value: Arc<AtomicU64>,
    may_end: Arc<Semaphore>,
}

struct Access(Arc<AtomicU64>, Arc<Semaphore>);

impl Register {
    fn new() -> Self {
        Self { value: Arc::default(), may_end: Arc::new(Semaphore::new(1)) }
    }
}

impl Provider for Register {
    type Session = Access;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "register")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Access, Refusal> {
        Ok(Access(Arc::clone(&self.value), Arc::clone(&self.may_end)))
    }
}

impl Session for Access {
    /// Answers with the number from before.
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let new = u64::from_le_bytes(request.payload()[..8].try_into().unwrap_or_default());
            let before = self.0.swap(new, Ordering::Relaxed);
            request.complete(&before.to_le_bytes()).await?;
        }
        let _permit = self.1.acquire().await;
        Ok(())
    }
}

#[tokio::test]
async fn a_guest_that_leaves_knows_that_the_root_has_let_go() {
    for version in VERSIONS {
        let register = Register::new();
        let may_end = Arc::clone(&register.may_end);
        let root = Root::builder().build();
        root.offer(register).unwrap();
        let guest = join_with(&root, "guest", Guest::builder().versions(version..=version)).await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        let handle = guest.clone();
        let held = may_end.acquire().await.unwrap();
        let mut leaving = Box::pin(guest.leave());
        if version >= Version::Win8_1 {
            let early = tokio::time::timeout(Duration::from_millis(100), &mut leaving).await;
            assert!(early.is_err(), "{version}: the device still works");
            assert!(channel.is_closed());
        }
        drop(held);
        tokio::time::timeout(PATIENCE, leaving).await.unwrap().unwrap();
        assert!(matches!(handle.open(Device::class(CLASS)).await, Err(Error::Disconnected)));
        assert!(matches!(handle.leave().await, Err(Error::Disconnected)), "once");
        let gone = async {
            while !root.status().await.partitions.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }
}

/// A virtual machine without a kernel: the test says what it does.
struct Machine {
    vmm: BaseVmm,
    version: Version,
    interrupts: SharedPages,
    connection_id: u32,
}

struct Opened {
    relid: u32,
    signal: u32,
    to_host: Producer<RingMapping>,
    from_host: Consumer<RingMapping>,
    _pages: SharedPages,
}

impl Machine {
    async fn attach(root: &Root, version: Version) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let vmm = BaseVmm::start(theirs, 4 << 20);
        let limits = AttachLimits::default();
        let mut attaching = Attaching::new(ours, "machine", root.next_partition(), limits).unwrap();
        let start = Instant::now();
        let end: Arc<dyn RootEnd> = loop {
            if let Some(end) = attaching.advance().unwrap() {
                break end;
            }
            assert!(start.elapsed() < PATIENCE, "never attached");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        root.attach(end);
        let interrupts = vmm.allocate(0, PAGE_SIZE).unwrap();
        Self { vmm, version, interrupts, connection_id: 1 }
    }

    fn say<'a>(&self, message: impl Into<Message<'a>>) {
        let payload = message.into().encode(self.version, FeatureFlags::empty());
        self.vmm.post(self.connection_id, &payload).unwrap();
    }

    async fn hear<T>(&self, mut take: impl FnMut(Message<'_>) -> Option<T>) -> T {
        let heard = async {
            loop {
                match self.vmm.receive().unwrap() {
                    Some(FromRoot::Message { payload, .. }) => {
                        let known = Some((self.version, FeatureFlags::empty()));
                        let message = Message::parse(&payload, Direction::ToGuest, known).unwrap();
                        if let Some(taken) = take(message) {
                            return taken;
                        }
                    }
                    Some(_) => {}
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the root said nothing that was expected")
    }

    /// From the contact to a device that is open.
    async fn boot(&mut self) -> Opened {
        self.connection_id = if self.version.is_multi_client() { 4 } else { 1 };
        self.interrupts.mapping().fill_zero(0, PAGE_SIZE);
        self.say(InitiateContact {
            version: self.version.word().into(),
            interrupt_page_or_target: if self.version.is_multi_client() {
                InitiateContact::target(2, 0, FeatureFlags::empty())
            } else {
                self.interrupts.gpa().into()
            },
            ..InitiateContact::default()
        });
        let supported = |message: Message<'_>| match message {
            Message::VersionResponse(answer) => Some(answer.supported),
            _ => None,
        };
        assert_eq!(self.hear(supported).await, 1);
        self.say(RequestOffers {});
        let offer = |message: Message<'_>| match message {
            Message::OfferChannel(offer) => Some((offer.relid.get(), offer.connection_id.get())),
            _ => None,
        };
        let (relid, connection_id) = self.hear(offer).await;
        let pages = self.vmm.allocate(0, 4 * PAGE_SIZE).unwrap();
        pages.mapping().fill_zero(0, 4 * PAGE_SIZE);
        for message in pages.ranges().unwrap().messages(relid, 0x77) {
            self.say(message);
        }
        self.hear(|message| matches!(message, Message::GpadlCreated(_)).then_some(())).await;
        self.say(OpenChannel {
            relid: relid.into(),
            ring_gpadl: 0x77.into(),
            downstream_page_offset: 2.into(),
            ..OpenChannel::default()
        });
        let status = |message: Message<'_>| match message {
            Message::OpenChannelResult(result) => Some(result.status.get()),
            _ => None,
        };
        assert_eq!(self.hear(status).await, 0);
        let memory = self.vmm.memory();
        let ring = |skip| memory.ring(pages.pfns().skip(skip).take(2)).unwrap();
        let (to_host, from_host) = (Producer::new(ring(0)).unwrap(), Consumer::new(ring(2)).unwrap());
        let signal = if self.version == Version::V1 { EVENT_CONNECTION } else { connection_id };
        Opened { relid, signal, to_host, from_host, _pages: pages }
    }

    /// Exchanges the register's number, with the signals of the version.
    async fn exchange(&self, device: &mut Opened, new: u64) -> u64 {
        let mut batch = device.to_host.batch();
        batch.push(Outgoing::request(7, &new.to_le_bytes())).unwrap();
        let _ = batch.commit().unwrap();
        let relid = u16::try_from(device.relid).unwrap();
        if self.version == Version::V1 {
            self.set(PageBit::interrupt_to_host(relid));
        }
        self.vmm.signal(device.signal);
        let signalled = async {
            loop {
                let mut flags = Vec::new();
                assert!(self.vmm.receive().unwrap().is_none());
                self.vmm.take_flags(0, &mut |flag| flags.push(flag));
                let told = if self.version < Version::Win8 {
                    flags.contains(&0) && self.take(PageBit::interrupt_to_guest(relid))
                } else {
                    flags.contains(&relid)
                };
                if told {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, signalled).await.expect("a signal of the root's");
        let packet = device.from_host.next().unwrap().expect("a completion");
        let mut before = [0; 8];
        packet.read_payload(0, &mut before).unwrap();
        let _ = device.from_host.publish().unwrap();
        u64::from_le_bytes(before)
    }

    fn set(&self, PageBit { byte, mask }: PageBit) {
        let at = byte / 4 * 4;
        let bits = u32::from(mask) << (8 * (byte % 4));
        self.interrupts.mapping().fetch_or_u32(at, bits, Ordering::SeqCst);
    }

    fn take(&self, PageBit { byte, mask }: PageBit) -> bool {
        let at = byte / 4 * 4;
        let bits = u32::from(mask) << (8 * (byte % 4));
        self.interrupts.mapping().fetch_and_u32(at, !bits, Ordering::SeqCst) & bits != 0
    }
}

/// What the root holds for the machine.
async fn held(root: &Root) -> (usize, u64) {
    let status = root.status().await;
    (status.partitions[0].gpadls, status.partitions[0].pages.try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_crashed_unloads_and_one_that_was_reset_does_not_and_both_start_anew() {
    for version in VERSIONS {
        let root = Root::builder().build();
        root.offer(Register::new()).unwrap();
        let mut events = root.events();
        let mut machine = Machine::attach(&root, version).await;
        let mut device = machine.boot().await;
        assert_eq!(machine.exchange(&mut device, 17).await, 0, "{version}");
        let first = device.relid;

        // A panic: last words, UNLOAD, and what a kexec starts contacts the root afresh.
        machine.vmm.send(&GuestFrame::Crash { vp: 0, parameters: [0; 5], control: 0 });
        machine.say(Unload {});
        if version >= Version::Win7 {
            machine.hear(|message| matches!(message, Message::UnloadResponse(_)).then_some(())).await;
            assert_eq!(held(&root).await, (0, 0), "{version}: nothing is held when UNLOAD is answered");
        }
        let mut device = machine.boot().await;
        assert_eq!(device.relid, first, "{version}: ids begin anew");
        assert_eq!(machine.exchange(&mut device, 18).await, 17, "{version}: the device is the same");

        // A reset, in the middle of everything.
        machine.vmm.send(&GuestFrame::Reset);
        let mut device = machine.boot().await;
        assert_eq!(device.relid, first);
        assert_eq!(machine.exchange(&mut device, 19).await, 18, "{version}");
        assert_eq!(held(&root).await, (1, 4), "{version}: the new rings alone");

        // A contact without any of that.
        let mut device = machine.boot().await;
        assert_eq!(machine.exchange(&mut device, 20).await, 19, "{version}");
        let crashed = async { while !matches!(events.recv().await.unwrap(), Event::Crashed { .. }) {} };
        tokio::time::timeout(PATIENCE, crashed).await.unwrap();
    }
}
