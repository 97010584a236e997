//! Three ways for bytes to reach the other end, and what each costs by size: run it with
//! `cargo run --release -p vmbus-channels --example transfer`.
//!
//! Each parcel is filled by the sender and summed up by the taker, so that both touch every byte, as a user would.

use std::time::{Duration, Instant};

use vmbus_channels::{
    Channel, ChannelError, Client, Device, Guest, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session,
    TransferMode, guid,
};

const CLASS: Guid = guid!("0d1f9a3e-7b52-4c8a-9a51-52f1e0a3c7d1");
const SIZES: [usize; 6] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20, 16 << 20];
const MODES: [TransferMode; 3] = [TransferMode::Copy, TransferMode::Share, TransferMode::Give];
/// Turns per size and mode; their median is shown.
const TURNS: usize = 9;

struct Sums;

impl Provider for Sums {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "sums")
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Sums {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let mut bytes = vec![0; 64 << 10];
        while let Some(request) = channel.recv().await? {
            let delivery = request.delivery().await?;
            let mut sum = 0_u64;
            for at in (0..delivery.len()).step_by(bytes.len()) {
                let part = &mut bytes[..(delivery.len() - at).min(64 << 10)];
                delivery.read(at, part)?;
                sum += part.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            }
            request.complete(&sum.to_le_bytes()).await?;
        }
        Ok(())
    }
}

async fn turn(channel: &Channel, mode: TransferMode, bytes: &[u8]) -> Result<Duration, ChannelError> {
    let count = (4 << 20) / bytes.len().max(1 << 16) + 1;
    let begun = Instant::now();
    for _ in 0..count {
        let mut parcel = channel.parcel(mode, bytes.len())?;
        parcel.write(0, bytes)?;
        let reply = channel.send_parcel(&[], parcel).await?.reply().await?;
        assert_eq!(reply[..], (bytes.len() as u64).to_le_bytes());
    }
    Ok(begun.elapsed() / u32::try_from(count).unwrap_or(u32::MAX))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = tempfile::tempdir()?;
    let path = place.path().join("bus.sock");
    let root = Root::listen(&path).await?;
    root.offer(Sums)?;
    let guest = Guest::connect(&path).await?;
    let channel = guest.open(Device::class(CLASS)).await?;

    println!(
        "median µs per parcel of {TURNS} turns (range)\n{:>10} {:>26} {:>26} {:>26}",
        "bytes", "copy", "share", "give"
    );
    for size in SIZES {
        let bytes = vec![1; size];
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..TURNS {
            for (mode, times) in MODES.into_iter().zip(&mut times) {
                match turn(&channel, mode, &bytes).await {
                    Ok(time) => times.push(time.as_secs_f64() * 1e6),
                    // More than the ring holds.
                    Err(ChannelError::TooLarge { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let cells = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            match (times.first(), times.get(times.len() / 2), times.last()) {
                (Some(least), Some(median), Some(most)) => format!("{median:.1} ({least:.1}-{most:.1})"),
                _ => "-".to_owned(),
            }
        });
        println!("{size:>10} {:>26} {:>26} {:>26}", cells[0], cells[1], cells[2]);
    }
    Ok(())
}
