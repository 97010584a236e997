//! A device, whole, and its client in the same process: random bytes written straight into a guest's memory.
//!
//! `cargo run -p vmbus-channels --example entropy`

use std::fs::File;
use std::io::Read;

use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session,
    guid,
};

const ENTROPY: Guid = guid!("6b1d1a2e-5c6f-4f0e-9d7f-3f2b8b1f9a10");

struct Entropy;

impl Provider for Entropy {
    type Session = EntropySession;

    fn offer(&self) -> Offer {
        Offer::new(ENTROPY, "entropy")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<EntropySession, Refusal> {
        let source = File::open("/dev/urandom").map_err(|error| Refusal::new(error.to_string()))?;
        Ok(EntropySession { source })
    }
}

struct EntropySession {
    source: File,
}

impl Session for EntropySession {
    async fn serve(mut self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let pages = request.writable_pages()?;
            let mut bytes = vec![0; pages.len().min(4096)];
            self.source.read_exact(&mut bytes)?;
            pages.write(0, &bytes)?;
            request.complete(&[]).await?;
        }
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("bus.sock");
    let root = Root::listen(&socket).await?;
    root.offer(Entropy)?;

    let guest = Guest::connect(&socket).await?;
    let entropy = guest.open(Device::class(ENTROPY)).await?;
    let buffer = guest.share(4096)?;
    let _ = entropy.send(&[], [buffer.range(..)]).await?.reply().await?;
    let mut bytes = [0; 16];
    buffer.read(0, &mut bytes)?;
    println!("{bytes:02x?}");
    Ok(())
}
