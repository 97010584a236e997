//! A bus with many devices, and guests that open many of them.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Result, ensure};
use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Offer, OpenRequest, Provider, Quotas, Refusal, Root,
    RootBuilder, Session,
};

use super::peer::ECHO;

/// Gives every request's payload back, without a thread of its own.
pub(super) struct Light;

impl Provider for Light {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(ECHO, "echo")
    }

    fn open(&self, _: &Client, _: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Light {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let payload = <[u8; 64]>::try_from(request.payload()).unwrap_or([0; 64]);
            request.complete(&payload).await?;
        }
        Ok(())
    }
}

/// A root with so many devices.
pub(super) fn bus(builder: RootBuilder, devices: usize) -> Result<Root> {
    let root = builder.build();
    for _ in 0..devices {
        root.offer(Light)?;
    }
    Ok(root)
}

/// Bounds that let a measurement open and close as often as it can.
pub(super) fn tireless() -> Quotas {
    let mut quotas = Quotas::default();
    (quotas.work_per_second, quotas.work_at_once) = (u32::MAX, u32::MAX);
    quotas
}

pub(super) fn serve(socket: &Path, devices: usize) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let root = bus(Root::builder().control_thread()?, devices)?;
        root.listen_at(socket)?;
        std::future::pending().await
    })
}

/// Opens the first `channels` devices.
pub(super) async fn open(guest: &Guest, channels: usize) -> Result<Vec<Channel>> {
    let offers = guest.all_offers().await?;
    ensure!(offers.len() >= channels, "{} devices are offered, {channels} wanted", offers.len());
    let mut open = Vec::with_capacity(channels);
    for offer in offers.iter().take(channels) {
        open.push(guest.open(Device::instance(offer.instance)).await?);
    }
    Ok(open)
}

pub(super) fn join(socket: &Path, name: &str, channels: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let guest = Guest::builder().name(name).ring_pages(1).memory(16 << 20).connect(socket).await?;
        let open = open(&guest, channels).await?;
        for channel in &open {
            let reply = channel.send(&[7; 64], []).await?.reply().await?;
            ensure!(reply[..] == [7; 64], "{name} was answered something else");
        }
        println!("{name} has {} channels", open.len());
        // The link needs nobody's attention meanwhile: what comes waits in the ring.
        tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await??;
        Ok(())
    })
}
