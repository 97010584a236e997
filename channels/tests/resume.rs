//! A guest outlives its root: requests complete once, users see a pause, and what cannot go on says why.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use vmbus_channels::test_utils::Succession;
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Error, Guest, Guid, Offer, OpenOptions, OpenRequest, Provider,
    Refusal, Replay, Resume, Root, Session, Tagged, guid,
};
use vmbus_core::Version;

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a77");
const PATIENCE: Duration = Duration::from_secs(30);

/// What roots of one test leave to one another and to the test: how often each request was answered or taken.
#[derive(Clone)]
struct Ledger {
    taken: Arc<Mutex<HashMap<u64, u32>>>,
    answered: Arc<Mutex<HashMap<u64, u32>>>,
    /// A permit for each request that may be answered.
    answers: Arc<Semaphore>,
    refuses: Arc<AtomicBool>,
    opened: Arc<AtomicU32>,
}

impl Ledger {
    fn new(answers: usize) -> Self {
        Self {
            taken: Arc::default(),
            answered: Arc::default(),
            answers: Arc::new(Semaphore::new(answers)),
            refuses: Arc::default(),
            opened: Arc::default(),
        }
    }

    fn times_taken(&self, number: u64) -> u32 {
        self.taken.lock().unwrap().get(&number).copied().unwrap_or(0)
    }
}

/// Echoes numbers, as far as the ledger lets it.
struct Counter(Ledger);

impl Provider for Counter {
    type Session = Ledger;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "counter")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Ledger, Refusal> {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        match self.0.refuses.load(Ordering::Relaxed) {
            true => Err(Refusal::new("the counter is closed for today")),
            false => Ok(self.0.clone()),
        }
    }
}

impl Session for Ledger {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let mut held = Vec::new();
        while let Some(request) = channel.recv().await? {
            let number = u64::from_le_bytes(request.payload()[..8].try_into().unwrap());
            *self.taken.lock().unwrap().entry(number).or_default() += 1;
            if !request.ranges().is_empty() {
                request.writable_pages()?.write(0, &number.to_le_bytes())?;
            }
            match self.answers.try_acquire() {
                Ok(permit) => {
                    permit.forget();
                    *self.answered.lock().unwrap().entry(number).or_default() += 1;
                    request.complete(&number.to_le_bytes()).await?;
                }
                Err(_) => held.push(request),
            }
        }
        Ok(())
    }
}

fn root(ledger: &Ledger) -> Root {
    let root = Root::builder().build();
    root.offer(Counter(ledger.clone())).unwrap();
    root
}

async fn survivor(succession: &Succession) -> Guest {
    succession.join("guest", Guest::builder().resume(Resume::within(PATIENCE))).await.unwrap()
}

fn surviving() -> OpenOptions {
    OpenOptions::new().on_resume(async |_| Ok::<_, ChannelError>(()))
}

async fn send(channel: &Channel, number: u64) -> vmbus_channels::Pending {
    channel.send(&number.to_le_bytes(), []).await.unwrap()
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(output) => output,
        Err(_) => panic!("not in time: {what}"),
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn requests_that_nobody_answered_run_again_in_order_at_the_next_root() {
    let (succession, first) = (Succession::default(), Ledger::new(2));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    let mut pending = Vec::new();
    for number in 0..8 {
        pending.push(send(&channel, number).await);
    }
    until("all are taken", || first.times_taken(7) == 1).await;
    succession.kill();
    within("the guest has noticed", guest.attached(false)).await;

    let second = Ledger::new(usize::MAX >> 3);
    succession.crown(root(&second));
    for (number, pending) in (0..8_u64).zip(pending) {
        let reply = within("a reply", pending.reply()).await.unwrap();
        assert_eq!(&reply[..], number.to_le_bytes());
    }
    let again: Vec<_> = (0..8).map(|number| second.times_taken(number)).collect();
    assert_eq!(again, [0, 0, 1, 1, 1, 1, 1, 1], "what was answered does not run again");
    assert_eq!(
        &within("a new request", send(&channel, 99).await.reply()).await.unwrap()[..],
        99_u64.to_le_bytes()
    );
}

#[tokio::test]
async fn memory_of_a_request_is_the_same_for_the_next_root() {
    let (succession, first) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    let buffer = guest.share(8192).unwrap();
    let pending = channel.send(&5_u64.to_le_bytes(), [buffer.range(4096..)]).await.unwrap();
    until("it is taken", || first.times_taken(5) == 1).await;
    buffer.write(4096, &[0; 8]).unwrap();
    succession.kill();
    succession.crown(root(&Ledger::new(1)));
    within("a reply", pending.reply()).await.unwrap();
    let mut bytes = [0; 8];
    buffer.read(4096, &mut bytes).unwrap();
    assert_eq!(bytes, 5_u64.to_le_bytes());
}

#[tokio::test]
async fn what_must_not_run_twice_is_interrupted_and_the_channel_goes_on() {
    let (succession, first) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    let once = channel.send_with(&1_u64.to_le_bytes(), [], Replay::Never).await.unwrap();
    let again = send(&channel, 2).await;
    until("both are taken", || first.times_taken(2) == 1).await;
    succession.kill();
    let second = Ledger::new(100);
    succession.crown(root(&second));
    assert!(matches!(within("an end", once.reply()).await, Err(ChannelError::Interrupted)));
    within("a reply", again.reply()).await.unwrap();
    assert_eq!((second.times_taken(1), second.times_taken(2)), (0, 1));
    within("a reply", send(&channel, 3).await.reply()).await.unwrap();
}

#[tokio::test]
async fn a_line_of_roots_that_die_at_any_moment_answers_each_request_once() {
    let (succession, ledger) = (Succession::default(), Ledger::new(usize::MAX >> 3));
    succession.crown(root(&ledger));
    let guest = survivor(&succession).await;
    let channel = Arc::new(guest.open_with(Device::class(CLASS), surviving()).await.unwrap());
    let mut tasks = Vec::new();
    for task in 0..8_u64 {
        let channel = Arc::clone(&channel);
        tasks.push(tokio::spawn(async move {
            for round in 0..500_u64 {
                let payload = (task << 32 | round).to_le_bytes();
                let reply = channel.send(&payload, []).await.unwrap().reply().await.unwrap();
                assert_eq!(&reply[..], payload);
            }
        }));
    }
    let killer = tokio::spawn({
        let (succession, ledger) = (succession.clone(), ledger.clone());
        async move {
            for number in 0..50_u64 {
                tokio::time::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9) >> 8 & 0xfff))
                    .await;
                succession.kill();
                if number % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                succession.crown(root(&ledger));
            }
        }
    });
    for task in tasks {
        within("all rounds", task).await.unwrap();
    }
    within("the line", killer).await.unwrap();
    assert!(!channel.is_closed());
}

#[tokio::test]
async fn a_channel_that_asked_for_nothing_ends_with_its_root_and_the_guest_goes_on() {
    let (succession, first) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    let pending = send(&channel, 1).await;
    succession.kill();
    assert!(matches!(within("the end", pending.reply()).await, Err(ChannelError::Closed)));
    assert!(within("the end", channel.recv()).await.unwrap().is_none());
    succession.crown(root(&Ledger::new(1)));
    // Whoever opens meanwhile waits for the next root.
    let channel = within("an open", guest.open(Device::class(CLASS))).await.unwrap();
    within("a reply", send(&channel, 2).await.reply()).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_asked_for_nothing_ends_with_its_root() {
    let succession = Succession::default();
    succession.crown(root(&Ledger::new(0)));
    let guest = succession.join("guest", Guest::builder()).await.unwrap();
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    succession.kill();
    within("the end", guest.closed()).await;
    assert!(channel.is_closed());
    assert!(matches!(guest.open(Device::class(CLASS)).await, Err(Error::Disconnected)));
}

#[tokio::test]
async fn without_another_root_in_time_all_ends() {
    let succession = Succession::default();
    succession.crown(root(&Ledger::new(0)));
    let builder = Guest::builder().resume(Resume::within(Duration::from_millis(50)));
    let guest = succession.join("guest", builder).await.unwrap();
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    let pending = send(&channel, 1).await;
    succession.kill();
    let error = within("the end", pending.reply()).await.unwrap_err();
    assert!(error.to_string().contains("no root came back in time"), "{error}");
    within("the end", guest.closed()).await;
    assert!(matches!(channel.send(&[0; 8], []).await, Err(ChannelError::NotResumed { .. })));
}

#[tokio::test]
async fn a_device_that_is_not_offered_again_ends_its_channel_with_that_reason() {
    let succession = Succession::default();
    succession.crown(root(&Ledger::new(0)));
    let builder = Guest::builder().resume(Resume::within(Duration::from_millis(300)));
    let guest = succession.join("guest", builder).await.unwrap();
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    let pending = send(&channel, 1).await;
    succession.kill();
    let bare = Root::builder().build();
    succession.crown(bare.clone());
    let error = within("the end", pending.reply()).await.unwrap_err();
    assert!(error.to_string().contains("not offered again in time"), "{error}");
    // The guest lives on, and sees what comes.
    bare.offer(Counter(Ledger::new(1))).unwrap();
    within("the device", guest.wait_for(Device::class(CLASS))).await.unwrap();
    let channel = guest.open(Device::class(CLASS)).await.unwrap();
    within("a reply", send(&channel, 2).await.reply()).await.unwrap();
}

#[tokio::test]
async fn a_device_that_refuses_ends_its_channel_with_its_reason() {
    let (succession, second) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&Ledger::new(0)));
    let guest = survivor(&succession).await;
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    let pending = send(&channel, 1).await;
    second.refuses.store(true, Ordering::Relaxed);
    succession.kill();
    succession.crown(root(&second));
    let error = within("the end", pending.reply()).await.unwrap_err();
    assert!(error.to_string().contains("the counter is closed for today"), "{error}");
    assert!(guest.is_attached());
}

#[tokio::test]
async fn the_greeting_comes_before_all_else_and_its_failure_ends_the_channel() {
    let (succession, first) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let greetings = Arc::new(AtomicU32::new(0));
    let options = OpenOptions::new().on_resume({
        let greetings = Arc::clone(&greetings);
        move |channel| {
            let number = greetings.fetch_add(1, Ordering::Relaxed);
            async move {
                channel.send(&1000_u64.to_le_bytes(), []).await?.reply().await?;
                match number {
                    0 => Ok(()),
                    _ => Err(ChannelError::Device("it is another counter".into())),
                }
            }
        }
    });
    let channel = guest.open_with(Device::class(CLASS), options).await.unwrap();
    assert_eq!(greetings.load(Ordering::Relaxed), 0);
    let pending = send(&channel, 1).await;
    until("it is taken", || first.times_taken(1) == 1).await;

    succession.kill();
    // One answer, which is the greeting's.
    let second = Ledger::new(1);
    succession.crown(root(&second));
    until("it is taken again", || second.times_taken(1) == 1).await;
    assert_eq!(second.answered.lock().unwrap().get(&1000), Some(&1));

    succession.kill();
    succession.crown(root(&Ledger::new(100)));
    let error = within("the end", pending.reply()).await.unwrap_err();
    assert!(error.to_string().contains("it is another counter"), "{error}");
}

#[tokio::test]
async fn a_channel_that_was_only_for_the_greeting_is_closed_after_it() {
    let (succession, first) = (Succession::default(), Ledger::new(1));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let kept: Arc<Mutex<Option<Channel>>> = Arc::default();
    let options = OpenOptions::new().on_resume({
        let kept = Arc::clone(&kept);
        move |channel| {
            *kept.lock().unwrap() = Some(channel);
            async { Ok::<_, ChannelError>(()) }
        }
    });
    let channel = guest.open_with(Device::class(CLASS), options).await.unwrap();
    succession.kill();
    succession.crown(root(&Ledger::new(100)));
    within("a reply of the next root", send(&channel, 1).await.reply()).await.unwrap();

    let kept = kept.lock().unwrap().take().unwrap();
    let error = within("the end", kept.send(&2_u64.to_le_bytes(), [])).await.unwrap_err();
    assert!(matches!(error, ChannelError::Closed), "{error}");
    within("another reply", send(&channel, 3).await.reply()).await.unwrap();
}

#[tokio::test]
async fn a_root_that_dies_in_the_greeting_changes_nothing() {
    let (succession, first) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let options = OpenOptions::new().on_resume(async |channel: Channel| {
        channel.send(&1000_u64.to_le_bytes(), []).await?.reply().await.map(drop)
    });
    let channel = guest.open_with(Device::class(CLASS), options).await.unwrap();
    let pending = send(&channel, 1).await;
    until("it is taken", || first.times_taken(1) == 1).await;
    for _ in 0..5 {
        succession.kill();
        let silent = Ledger::new(0);
        succession.crown(root(&silent));
        until("it is greeted", || silent.times_taken(1000) == 1).await;
        assert_eq!(silent.times_taken(1), 0);
    }
    succession.kill();
    succession.crown(root(&Ledger::new(100)));
    within("a reply", pending.reply()).await.unwrap();
}

#[tokio::test]
async fn a_root_of_older_versions_takes_over_as_well() {
    let (succession, ledger) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&ledger));
    let guest = survivor(&succession).await;
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    let mut pending = send(&channel, 0).await;
    for (number, version) in (1_u64..).zip([Version::Win10, Version::Win8, Version::Win7, Version::V1]) {
        succession.kill();
        let old = Root::builder().versions(Version::OLDEST..=version).build();
        old.offer(Counter(Ledger::new(1))).unwrap();
        succession.crown(old);
        within("a reply", pending.reply()).await.unwrap();
        assert_eq!(guest.version(), version);
        pending = send(&channel, number).await;
    }
    succession.kill();
    succession.crown(root(&Ledger::new(1)));
    within("a reply", pending.reply()).await.unwrap();
    assert_eq!(guest.version(), Version::NEWEST);
}

#[tokio::test]
async fn more_requests_than_the_ring_holds_are_sent_again() {
    let (succession, first) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let channel = Arc::new(guest.open_with(Device::class(CLASS), surviving().ring_pages(1)).await.unwrap());
    let senders = (0..200_u64).map(|number| {
        let channel = Arc::clone(&channel);
        tokio::spawn(async move {
            let mut payload = [0; 256];
            payload[..8].copy_from_slice(&number.to_le_bytes());
            channel.send(&payload, []).await?.reply().await
        })
    });
    let senders: Vec<_> = senders.collect();
    // The root holds more than 4096 bytes of packets, and the ring is full of others.
    until("many are taken", || first.taken.lock().unwrap().len() > 16).await;
    succession.kill();
    let second = Ledger::new(1000);
    succession.crown(root(&second));
    for sender in senders {
        within("a reply", sender).await.unwrap().unwrap();
    }
    assert!((0..200).all(|number| second.times_taken(number) == 1));
}

#[tokio::test]
async fn whoever_waits_for_room_or_requests_goes_on_waiting_through_the_pause() {
    let (succession, first) = (Succession::default(), Ledger::new(0));
    succession.crown(root(&first));
    let guest = survivor(&succession).await;
    let channel = Arc::new(guest.open_with(Device::class(CLASS), surviving().ring_pages(1)).await.unwrap());
    let receiver = tokio::spawn({
        let channel = Arc::clone(&channel);
        async move { channel.recv().await.map(|request| request.is_none()) }
    });
    let sender = tokio::spawn({
        let channel = Arc::clone(&channel);
        async move {
            let mut pending = Vec::new();
            // As many as the root lets be in flight, and more.
            for number in 0..3000_u64 {
                pending.push(channel.send(&number.to_le_bytes(), []).await?);
            }
            for pending in pending {
                pending.reply().await?;
            }
            Ok::<_, ChannelError>(())
        }
    });
    until("some are taken", || first.times_taken(10) == 1).await;
    succession.kill();
    within("the pause", guest.attached(false)).await;
    assert!(!sender.is_finished() && !receiver.is_finished());
    let second = Ledger::new(10_000);
    succession.crown(root(&second));
    within("all replies", sender).await.unwrap().unwrap();
    drop(guest);
    assert!(within("the end", receiver).await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_without_a_runtime_see_a_pause_only() {
    let (succession, ledger) = (Succession::default(), Ledger::new(usize::MAX >> 3));
    succession.crown(root(&ledger));
    let guest = survivor(&succession).await;
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap().into_blocking();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let (mut replies, mut number) = (Vec::new(), 0_u64);
            while !stop.load(Ordering::Relaxed) {
                let tag = |number: u64| Tagged {
                    tag: number,
                    payload: smallvec::SmallVec::from_slice(&number.to_le_bytes()),
                    range: None,
                };
                let mut batch: Vec<_> = (number..number + 32).map(tag).collect();
                number += 32;
                while !batch.is_empty() {
                    let sent = channel.submit(&batch).unwrap();
                    batch.drain(..sent);
                }
                let mut left = 32;
                while left > 0 {
                    left -= channel.replies(&mut replies, true).unwrap();
                }
                for (tag, reply) in replies.drain(..) {
                    assert_eq!(&reply[..], tag.to_le_bytes());
                }
            }
            number
        }
    });
    for number in 0..30_u64 {
        tokio::time::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9) >> 8 & 0x1fff)).await;
        succession.kill();
        succession.crown(root(&ledger));
    }
    stop.store(true, Ordering::Relaxed);
    let sent = within("the thread", tokio::task::spawn_blocking(|| thread.join())).await.unwrap().unwrap();
    assert!(sent > 0);
}

#[tokio::test]
async fn a_channel_dropped_in_the_pause_gives_its_memory_back() {
    let succession = Succession::default();
    succession.crown(root(&Ledger::new(0)));
    let builder = Guest::builder().resume(Resume::within(PATIENCE)).ring_pages(4096);
    let guest = succession.join("guest", builder).await.unwrap();
    // 32 MiB of 64: there is no room for a second one.
    let channel = guest.open_with(Device::class(CLASS), surviving()).await.unwrap();
    succession.kill();
    within("the pause", guest.attached(false)).await;
    drop(channel);
    succession.crown(root(&Ledger::new(1)));
    let channel = within("an open", async {
        loop {
            match guest.open_with(Device::class(CLASS), surviving()).await {
                Ok(channel) => return channel,
                Err(Error::OutOfSharedMemory { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    within("a reply", send(&channel, 1).await.reply()).await.unwrap();
}
