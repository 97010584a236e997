//! What a root's own thread attends to, and what it leaves alone.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmbus_channels::policy::{Asked, Decision, PolicyAgent};
use vmbus_channels::test_utils::join;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session, guid,
};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a15");
const PATIENCE: Duration = Duration::from_secs(20);

/// Names of the threads that were seen at work.
type Threads = Arc<Mutex<Vec<String>>>;

fn note(threads: &Threads) {
    threads.lock().unwrap().push(std::thread::current().name().unwrap_or_default().to_owned());
}

fn are_of_the_root(threads: &Threads) -> Vec<bool> {
    threads.lock().unwrap().iter().map(|name| name == "vmbus-control").collect()
}

struct Watched(Threads);

impl Provider for Watched {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "watched")
    }

    fn open(&self, _: &Client, _: &OpenRequest) -> Result<Self, Refusal> {
        // What a provider starts is at home where its sessions are.
        let threads = Arc::clone(&self.0);
        tokio::spawn(async move { note(&threads) });
        Ok(Self(Arc::clone(&self.0)))
    }
}

impl Session for Watched {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            note(&self.0);
            request.complete(b"answered").await?;
        }
        Ok(())
    }
}

struct Agent(Threads);

#[async_trait::async_trait]
impl PolicyAgent for Agent {
    async fn decide(&self, _: &Asked) -> Decision {
        note(&self.0);
        Decision::Allow
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_attended_to_on_it_and_sessions_run_where_partitions_attach() {
    let (sessions, policy) = (Threads::default(), Threads::default());
    let root = Root::builder().control_thread().unwrap().policy(Agent(Arc::clone(&policy))).build();
    root.offer(Watched(Arc::clone(&sessions))).unwrap();
    let story = async {
        let guest = join(&root, "guest").await.unwrap();
        let channel = guest.open(Device::class(CLASS)).await.unwrap();
        for _ in 0..10 {
            channel.send(b"question", []).await.unwrap().reply().await.unwrap();
        }
        drop(channel);
        drop(guest);
        root.run_until(async {}).await;
    };
    tokio::time::timeout(PATIENCE, story).await.expect("it ends in order");
    assert_eq!(are_of_the_root(&sessions), [false; 11]);
    let policy = are_of_the_root(&policy);
    assert!(policy.len() > 3 && policy.iter().all(|&is_of_the_root| is_of_the_root), "{policy:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn the_last_partition_ends_the_thread_of_a_root_that_nobody_holds() {
    let root = Root::builder().control_thread().unwrap().build();
    root.offer(Watched(Threads::default())).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    drop(root);
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    channel.send(b"question", []).await.unwrap().reply().await.unwrap();
    drop(channel);
    drop(guest);
    let ended = async {
        while control_threads() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the thread ends");
}

fn control_threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "vmbus-control").count()
}
