//! Who may come in, how many, and how often.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use vmbus_channels::{BusQuotas, Device, Error, Guest, Root, Status};

use crate::world::{CLASS, PATIENCE, device};

/// A root at a socket of its own, with a guest that works.
struct Open {
    root: Root,
    _directory: tempfile::TempDir,
    socket: std::path::PathBuf,
    guest: Guest,
}

impl Open {
    async fn with(change: impl FnOnce(&mut BusQuotas)) -> Self {
        let mut quotas = BusQuotas::default();
        change(&mut quotas);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let root = Root::builder().bus_quotas(quotas).build();
        root.offer(device()).unwrap();
        root.listen_at(&socket).unwrap();
        let guest = join(&socket, "neighbour").await.unwrap();
        Self { root, _directory: directory, socket, guest }
    }

    async fn serves_its_guest(&self) {
        let served = tokio::time::timeout(PATIENCE, async {
            let channel = self.guest.open(Device::class(CLASS)).await.unwrap();
            channel.send(b"question", []).await.unwrap().reply().await.unwrap();
        });
        served.await.expect("an answer");
    }
}

async fn join(socket: &Path, name: &str) -> Result<Guest, Error> {
    Guest::builder().name(name).memory(1 << 20).connect(socket).await
}

async fn one_too_many(bus: Open, words: &str) {
    let second = join(&bus.socket, "second").await.unwrap();
    let Err(Error::Refused(refusal)) = join(&bus.socket, "third").await else { panic!("a third partition") };
    assert!(refusal.reason.contains(words), "{}", refusal.reason);
    bus.serves_its_guest().await;
    let used = bus.root.status().await.quotas;
    assert!(used.iter().any(|used| used.name == "partitions" && used.now == 2), "{used:?}");
    // Who leaves makes room.
    drop(second);
    let joined = tokio::time::timeout(PATIENCE, async {
        while join(&bus.socket, "another").await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    joined.await.expect("room for another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_partitions_attach_than_may() {
    one_too_many(Open::with(|quotas| quotas.partitions = 2).await, "2 partitions are attached").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_user_attaches_more_partitions_than_it_may() {
    one_too_many(Open::with(|quotas| quotas.partitions_of_user = 2).await, "2 partitions of user").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_attaches_all_the_time_is_refused_until_it_has_rested() {
    let bus = Open::with(|quotas| (quotas.attach_per_second, quotas.attach_at_once) = (5, 10)).await;
    let mut refused = None;
    for _ in 0..30 {
        if let Err(Error::Refused(refusal)) = join(&bus.socket, "passing").await {
            refused = Some(refusal);
            break;
        }
    }
    assert!(refused.expect("a refusal").reason.contains("more often than 5 times a second"));
    bus.serves_its_guest().await;
    let joined = tokio::time::timeout(PATIENCE, async {
        while join(&bus.socket, "rested").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
    });
    joined.await.expect("it may attach again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_make_way_for_those_that_do() {
    let bus = Open::with(|_| {}).await;
    let silent: Vec<UnixStream> = (0..64).map(|_| UnixStream::connect(&bus.socket).unwrap()).collect();
    let start = Instant::now();
    join(&bus.socket, "talks").await.unwrap();
    // Long before the silent ones are given up.
    assert!(start.elapsed().as_secs() < 8, "{:?}", start.elapsed());
    let socket = bus.socket.clone();
    tokio::task::spawn_blocking(move || Status::of(socket)).await.unwrap().unwrap();
    bus.serves_its_guest().await;
    drop(silent);
}
