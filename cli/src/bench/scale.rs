//! `vmbus bench scale`: what one more channel costs on a bus with many.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use vmbus_channels::{Channel, Device, DeviceHandle, Guest, Root};

use super::Settings;
use super::comparison::{self, Case, Goal};
use super::crowd::{self, Light};

/// Channels that exist, and names of the rows about them.
const CROWDS: [(usize, [&str; 4]); 4] = [
    (1, ["open and close, 1", "request, 1", "offer and rescind, 1", "attach, 1, per channel"]),
    (64, ["open and close, 64", "request, 64", "offer and rescind, 64", "attach, 64, per channel"]),
    (512, ["open and close, 512", "request, 512", "offer and rescind, 512", "attach, 512, per channel"]),
    (2000, ["open and close, 2000", "request, 2000", "offer and rescind, 2000", "attach, 2000, per channel"]),
];
/// The crowd that the larger ones are compared with. With one channel, attaching costs most by itself.
const YARDSTICK: usize = 1;
const GOAL: Goal = Goal::TimesAtMost(1.2);

const HOW: &str = "One process with a root that offers so many devices and a guest, attached over a socket, that has \
opened them all.\nEach row does something with one more.";

pub(super) fn measure(settings: &Settings) -> Result<()> {
    let runtime = Runtime::new()?;
    let directory = tempfile::tempdir()?;
    let worlds: Result<Vec<World>> = CROWDS
        .iter()
        .map(|(channels, _)| {
            let socket = directory.path().join(channels.to_string());
            runtime.block_on(World::new(socket, *channels))
        })
        .collect();
    let worlds = worlds?;
    let mut cases = Vec::new();
    for row in 0..4 {
        for (crowd, (world, (_, names))) in worlds.iter().zip(&CROWDS).enumerate() {
            let runtime = &runtime;
            let case = Case::new(names[row], "us", move |time| {
                runtime.block_on(async {
                    match row {
                        0 => world.open_and_close(time).await,
                        1 => world.request(time).await,
                        2 => world.offer_and_rescind(time).await,
                        _ => world.attach(time).await,
                    }
                })
            });
            cases.push(if crowd > YARDSTICK {
                case.beside(CROWDS[YARDSTICK].1[row]).aiming_at(GOAL)
            } else {
                case
            });
        }
    }
    comparison::run("scale", HOW, settings, cases)
}

/// A bus with so many channels open, and one device more that is not.
struct World {
    root: Root,
    socket: PathBuf,
    channels: usize,
    guest: Guest,
    open: Vec<Channel>,
    spare: Device,
}

impl World {
    async fn new(socket: PathBuf, channels: usize) -> Result<Self> {
        let root = crowd::bus(Root::builder().quotas(crowd::tireless()), channels)?;
        root.listen_at(&socket)?;
        let guest = Guest::builder().name("crowd").ring_pages(1).connect(&socket).await?;
        let open = crowd::open(&guest, channels).await?;
        let spare = instance(&root.offer(Light)?)?;
        guest.wait_for(spare).await?;
        Ok(Self { root, socket, channels, guest, open, spare })
    }

    async fn open_and_close(&self, time: Duration) -> Result<f64> {
        each(time, async || {
            drop(self.guest.open(self.spare).await?);
            Ok(())
        })
        .await
    }

    async fn request(&self, time: Duration) -> Result<f64> {
        let channel = self.open.last().context("a channel")?;
        each(time, async || {
            channel.send(&[0; 64], []).await?.reply().await?;
            Ok(())
        })
        .await
    }

    async fn offer_and_rescind(&self, time: Duration) -> Result<f64> {
        each(time, async || {
            let device = self.root.offer(Light)?;
            self.guest.wait_for(instance(&device)?).await?;
            device.rescind();
            Ok(())
        })
        .await
    }

    /// Attaches another guest until it has seen all offers.
    async fn attach(&self, time: Duration) -> Result<f64> {
        let attach = async || {
            let guest = Guest::builder().name("newcomer").memory(1 << 20).connect(&self.socket).await?;
            guest.all_offers().await?;
            Ok(())
        };
        Ok(each(time, attach).await? / self.channels as f64)
    }
}

fn instance(device: &DeviceHandle) -> Result<Device> {
    Ok(Device::instance(device.instance().context("the device is gone")?))
}

/// Microseconds that something takes, by the median.
async fn each(time: Duration, mut one: impl AsyncFnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut taken = Vec::new();
    while start.elapsed() < time {
        let began = Instant::now();
        one().await?;
        taken.push(began.elapsed());
    }
    taken.sort();
    Ok(taken.get(taken.len() / 2).context("nothing was done in time")?.as_secs_f64() * 1e6)
}
