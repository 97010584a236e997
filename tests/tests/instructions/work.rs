//! What is counted. One thread does the work of both ends, so that nothing depends on who comes first.

use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use vmbus_channels::test_utils::{echo, join_with};
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session,
    Spin, Tagged, guid,
};
use vmbus_core::storage::SCSI_CLASS;
use vmbus_partition::{GpaSpace, Mapping, Region, RingMapping};
use vmbus_ringbuf::{Consumer, Outgoing, Producer};
use vmbus_vsc::Disk;
use vmbus_vsp::storage::{Lun, Memory, StorageController};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a21");
const PAGE: usize = 4096;
const RING: usize = 1 << 20;

/// One kind of operation.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    /// How often it is done while it is counted.
    pub(crate) often: u64,
    /// What one operation takes. A long copy counts one for each byte, as it is one instruction that repeats itself.
    pub(crate) instructions: u64,
    pub(crate) run: fn(u64),
}

/// The counts are those of rustc 1.95 on a processor with AVX2.
pub(crate) const WORKS: &[Work] = &[
    Work {
        name: "packet of 64 B, 32 at a time",
        often: 32_000,
        instructions: 174,
        run: |often| ring(often, 32),
    },
    Work {
        name: "packet of 64 B, one by one",
        often: 32_000,
        instructions: 263,
        run: |often| ring(often, 1),
    },
    Work { name: "request and reply, both awake", often: 5000, instructions: 3315, run: awake },
    Work {
        name: "request and reply, each asleep until then",
        often: 2000,
        instructions: 22_247,
        run: asleep,
    },
    Work {
        name: "read of 4 KiB, one by one",
        often: 2000,
        instructions: 30_495,
        run: |often| read(often, 1),
    },
    Work {
        name: "read of 4 KiB, 32 at a time",
        often: 3200,
        instructions: 11_512,
        run: |often| read(often, 32),
    },
];

/// Sends and receives packets through a ring as channels map it.
fn ring(often: u64, batch: u64) {
    let mapping = Mapping::anonymous(PAGE + RING).unwrap();
    let space = Arc::new(GpaSpace::new(vec![Region { gpa: 0, domain: 0, mapping }], 16).unwrap());
    let end = || -> RingMapping { space.ring(0..((PAGE + RING) / PAGE) as u64).unwrap() };
    let mut producer = Producer::new(end()).unwrap();
    let mut consumer = Consumer::new(end()).unwrap();
    consumer.mask();
    let (payload, mut into) = ([0x5a; 64], [0; 64]);
    for _ in 0..often.div_ceil(batch) {
        let mut writing = producer.batch();
        for _ in 0..batch {
            writing.push(Outgoing::request(1, black_box::<&[u8; 64]>(&payload))).unwrap();
        }
        let _ = black_box(writing.commit().unwrap());
        for _ in 0..batch {
            let packet = consumer.next().unwrap().unwrap();
            packet.read_payload(0, black_box::<&mut [u8; 64]>(&mut into)).unwrap();
        }
        let _ = black_box(consumer.publish_if_due().unwrap());
    }
}

/// A request of 64 bytes and a reply of as many, where both ends look and find.
fn awake(often: u64) {
    let runtime = runtime();
    let (handing, handed) = oneshot::channel();
    let (_bus, asking, answering) = runtime.block_on(async {
        let (root, guest) = bus(CLASS, Handing(Mutex::new(Some(handing)))).await;
        let asking = guest.open(Device::class(CLASS)).await.unwrap();
        ((root, guest), asking.into_blocking(), handed.await.unwrap().into_blocking())
    });
    let request = [Tagged { tag: 1, payload: [0x5a; 64].into(), range: None }];
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    let mut completions = answering.completions();
    for _ in 0..often {
        assert_eq!(asking.submit(&request).unwrap(), 1);
        assert_eq!(answering.try_recv(1, &mut requests).unwrap(), 1);
        completions.push(requests.pop().unwrap(), &[0xa5; 64]).unwrap();
        completions.send_blocking().unwrap();
        assert_eq!(asking.replies(&mut replies, false).unwrap(), 1);
        replies.clear();
    }
}

/// The same by two tasks that sleep until they are signalled.
fn asleep(often: u64) {
    runtime().block_on(async {
        let (_root, guest) = bus(CLASS, echo(offer())).await;
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        for _ in 0..often {
            let reply = channel.send(&[0x5a; 64], []).await.unwrap().reply().await.unwrap();
            assert_eq!(reply.len(), 64);
        }
    });
}

/// Reads from a disk in memory, `depth` at a time.
fn read(often: u64, depth: u64) {
    runtime().block_on(async {
        let memory = Memory::new(1 << 20).unwrap();
        let (_root, guest) = bus(SCSI_CLASS, StorageController::new("disk").lun(0, Lun::new(memory))).await;
        let disk = Disk::open(&guest).await.unwrap();
        let mut tasks = JoinSet::new();
        for _ in 0..depth {
            let disk = disk.clone();
            tasks.spawn(async move {
                let buffer = disk.buffer(PAGE).unwrap();
                for round in 0..often.div_ceil(depth) {
                    disk.read(round % 256 * PAGE as u64, buffer.range(..)).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A root with a device, and a guest that finds it. Nobody looks for long: how long is a matter of time.
async fn bus(class: Guid, device: impl Provider) -> (Root, Guest) {
    let root = Root::builder().spin(Spin::never()).build();
    root.offer(device).unwrap();
    let guest = join_with(&root, "guest", Guest::builder().spin(Spin::never())).await.unwrap();
    guest.wait_for(Device::class(class)).await.unwrap();
    (root, guest)
}

fn offer() -> Offer {
    Offer::new(CLASS, "counted").completion_room(64)
}

/// A device that hands its end of the channel to whoever waits for it.
struct Handing(Mutex<Option<oneshot::Sender<Channel>>>);

impl Provider for Handing {
    type Session = Handed;

    fn offer(&self) -> Offer {
        offer()
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Handed, Refusal> {
        let to = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        to.map(Handed).ok_or_else(|| Refusal::new("handed over before"))
    }
}

struct Handed(oneshot::Sender<Channel>);

impl Session for Handed {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let _ = self.0.send(channel);
        std::future::pending().await
    }
}
