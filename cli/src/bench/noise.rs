//! `vmbus bench noise`: what a guest that follows no rule does to the latency of others.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use vmbus_channels::test_utils::{MockGuest, MockRings};
use vmbus_channels::{Channel, Device, Guest};
use vmbus_core::memory::SharedMemory as _;
use vmbus_core::message::{
    GpadlTeardown, InitiateContact, Message, OpenChannel, RelidReleased, RequestOffers,
};
use vmbus_core::synic::ChannelConnection;
use vmbus_core::{FeatureFlags, Version};
use vmbus_partition::{FromRoot, GuestEnd as _};

use super::comparison::{self, Case, Goal, Sample};
use super::peer::{ECHO, Peer};
use super::{Settings, place};

/// What a guest without rules does all the time, as fast as it can.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Noise {
    /// It attaches and computes: what the others lose then they lose to the processor it takes
    Burn,
    /// Messages of random bytes, and messages that make no sense
    Control,
    /// Doorbells of channels without work, and of none
    Doorbell,
    /// Rings whose indices and packets are random
    Ring,
}

const BURNING: &str = "beside a guest that only computes";
const HOW: &str = "p99 of requests of 64 B that a guest sends one by one. It and the root share one processor, the \
other guest has\nthe second. Each row stands beside one with the same guest at work, sending nothing.";
/// Devices that echo.
const DEVICES: usize = 8;
/// Time in which the other guest begins, and uses up what it may do at once.
const SETTLE: Duration = Duration::from_millis(1500);
const GPADL: u32 = 7;

pub(super) fn measure(settings: &Settings) -> Result<()> {
    place::pin(0)?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("noise");
    let root = Peer::many(&socket, 0, DEVICES)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (_guest, channel) = runtime.block_on(async {
        let guest = Guest::builder().name("quiet").connect(&socket).await?;
        let channel = guest.open(Device::class(ECHO)).await?;
        anyhow::Ok((guest, channel))
    })?;
    let take = |noise: Option<Noise>, time: Duration| {
        let _peer = noise.map(|noise| Peer::noise(&socket, 1, noise)).transpose()?;
        std::thread::sleep(SETTLE);
        let before = place::process_time(root.id())?;
        let start = Instant::now();
        let mut taken = runtime.block_on(requests(&channel, time))?;
        let cpu = (place::process_time(root.id())? - before) / start.elapsed().as_nanos() as f64;
        taken.sort();
        let at = |part: usize| {
            let latency = taken.get(taken.len() * part / 1000).context("no request was answered")?;
            anyhow::Ok(latency.as_secs_f64() * 1e6)
        };
        Ok(Sample {
            value: at(990)?,
            beside_that: vec![
                ("p50 us", at(500)?),
                ("p99.9 us", at(999)?),
                ("kilo/s", taken.len() as f64 / start.elapsed().as_secs_f64() / 1e3),
                ("root CPU", cpu),
            ],
        })
    };
    let noisy = |name, noise| {
        let case = Case::new(name, "us", move |time| take(Some(noise), time));
        case.beside(BURNING).aiming_at(Goal::TimesAtMost(1.1))
    };
    let cases = vec![
        Case::new("alone", "us", |time| take(None, time)),
        Case::new(BURNING, "us", |time| take(Some(Noise::Burn), time)),
        noisy("beside garbage as messages", Noise::Control),
        noisy("beside a doorbell storm", Noise::Doorbell),
        noisy("beside garbage in rings", Noise::Ring),
    ];
    comparison::run("noise", HOW, settings, cases)
}

async fn requests(channel: &Channel, time: Duration) -> Result<Vec<Duration>> {
    let (start, mut taken) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let began = Instant::now();
        channel.send(&[0; 64], []).await?.reply().await?;
        taken.push(began.elapsed());
    }
    Ok(taken)
}

/// Makes noise until killed.
pub(super) fn make(socket: &Path, noise: Noise) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        // Whoever is let go comes again.
        loop {
            let guest = MockGuest::connect(socket, "noise")?;
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            match noise {
                Noise::Burn => loop {
                    std::hint::black_box(random.next());
                },
                Noise::Control => control(&guest, &mut random),
                Noise::Doorbell => doorbell(&guest).await,
                Noise::Ring => rings(&guest, &mut random).await,
            }
        }
    })
}

/// Returns when the root has hung up.
fn control(guest: &MockGuest, random: &mut Random) {
    loop {
        let mut bytes = [0; 240];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
        let pick = random.next();
        match pick % 8 {
            0 => contact(guest),
            1 => guest.say(RequestOffers {}),
            2 => guest.say(RelidReleased { relid: random.small().into() }),
            3 => guest.say(OpenChannel { relid: random.small().into(), ..OpenChannel::default() }),
            4 => guest.say(GpadlTeardown { relid: random.small().into(), gpadl: random.small().into() }),
            // A number that means something in front of bytes that do not.
            5 => {
                bytes[..8].copy_from_slice(&u64::from(random.small()).to_le_bytes());
                guest.post(&bytes);
            }
            _ => guest.post(&bytes),
        }
        // It listens, or it would be let go.
        loop {
            match guest.end().receive() {
                Ok(Some(FromRoot::HungUp)) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) => break,
            }
        }
    }
}

async fn doorbell(guest: &MockGuest) {
    let relids = offers(guest).await;
    let mut open_channels = Vec::new();
    for relid in &relids {
        open_channels.push(open(guest, *relid).await);
    }
    loop {
        for _ in 0..1000 {
            for relid in relids.iter().copied().chain([0, 2047]) {
                for worker in 0..3 {
                    guest.end().signal(ChannelConnection { relid, worker }.id());
                }
            }
        }
        if guest.end().receive().is_err() {
            return;
        }
    }
}

async fn rings(guest: &MockGuest, random: &mut Random) {
    let mut relid = offers(guest).await.first().copied().unwrap_or(1);
    loop {
        let rings = open(guest, relid).await;
        let memory = rings.pages.mapping();
        // The control page's indices, then some of the data.
        for word in [0, 4, 12] {
            memory.store_u32(word, random.small(), Ordering::SeqCst);
        }
        for _ in 0..64 {
            let [a, b, c, d, ..] = random.next().to_le_bytes();
            let place = 4096 + usize::from(u16::from_le_bytes([a, b]) % 1024) * 4;
            memory.store_u32(place, u32::from_le_bytes([a, b, c, d]), Ordering::SeqCst);
        }
        for worker in 0..3 {
            guest.end().signal(ChannelConnection { relid, worker }.id());
        }
        let rescinded =
            |message: Message<'_>| matches!(message, Message::RescindChannelOffer(_)).then_some(());
        // What happens to make sense is served.
        if tokio::time::timeout(Duration::from_millis(100), guest.hear(rescinded)).await.is_err() {
            guest.say(vmbus_core::message::CloseChannel { relid: relid.into() });
            guest.say(GpadlTeardown { relid: relid.into(), gpadl: GPADL.into() });
            guest.hear(|message| matches!(message, Message::GpadlTorndown(_)).then_some(())).await;
            continue;
        }
        guest.say(GpadlTeardown { relid: relid.into(), gpadl: GPADL.into() });
        guest.hear(|message| matches!(message, Message::GpadlTorndown(_)).then_some(())).await;
        guest.say(RelidReleased { relid: relid.into() });
        relid = offer(guest).await;
    }
}

fn contact(guest: &MockGuest) {
    guest.say(InitiateContact {
        version: Version::Iron.word().into(),
        interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
        ..InitiateContact::default()
    });
}

async fn offers(guest: &MockGuest) -> Vec<u32> {
    contact(guest);
    guest.hear(|message| matches!(message, Message::VersionResponse(_)).then_some(())).await;
    guest.say(RequestOffers {});
    let mut relids = Vec::new();
    while relids.len() < DEVICES {
        relids.push(offer(guest).await);
    }
    relids
}

async fn offer(guest: &MockGuest) -> u32 {
    guest
        .hear(|message| match message {
            Message::OfferChannel(offer) => Some(offer.relid.get()),
            _ => None,
        })
        .await
}

async fn open(guest: &MockGuest, relid: u32) -> MockRings {
    let (rings, list) = guest.rings(4);
    let gpadl = GPADL;
    for message in list.messages(relid, gpadl) {
        guest.say(message);
    }
    guest.hear(|message| matches!(message, Message::GpadlCreated(_)).then_some(())).await;
    guest.say(OpenChannel {
        relid: relid.into(),
        open_id: 1.into(),
        ring_gpadl: gpadl.into(),
        downstream_page_offset: 5.into(),
        ..OpenChannel::default()
    });
    guest.hear(|message| matches!(message, Message::OpenChannelResult(_)).then_some(())).await;
    rings
}

/// Numbers without a rule, the same ones each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below 256.
    fn small(&mut self) -> u32 {
        let [first, ..] = self.next().to_le_bytes();
        first.into()
    }
}
