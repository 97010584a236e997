//! Both ends of a partition and a ring between them under ThreadSanitizer, outside of the test harness, which it does
//! not bear. Copies are plain in this build: an ordering that is missing shows up as a race on the bytes.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/tsan \
//!   RUSTFLAGS="--cfg plain_copies -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
//!   cargo run -p vmbus-partition --example tsan --target x86_64-unknown-linux-gnu
//! ```

use std::error::Error;
use std::thread;

use vmbus_partition::{FromGuest, FromRoot, GuestEnd, GuestOptions, RootEnd, local};
use vmbus_ringbuf::{Consumer, Outgoing, Producer};

const MESSAGES: u32 = 2_000;
const PACKETS: u64 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let (root, guest) = local::pair(&GuestOptions { memory: 1 << 20, ..GuestOptions::named("watched") }, 1)?;
    let pages = guest.allocate(0, 5 * 4096)?;
    let mut producer = Producer::new(guest.memory().ring(pages.pfns())?)?;
    let mut consumer = Consumer::new(root.memory().ring(pages.pfns())?)?;

    thread::scope(|scope| {
        let rooted = scope.spawn(|| -> Result<(), String> {
            let (mut heard, mut said, mut seen) = (0, 0, 0);
            while heard < MESSAGES || said < MESSAGES || seen < PACKETS {
                root.take_flags(0, &mut |_| ());
                while let Some(event) = root.receive().map_err(|error| error.to_string())? {
                    if let FromGuest::Message { payload, .. } = event {
                        expect(&payload, heard)?;
                        heard += 1;
                    }
                }
                while said < MESSAGES && root.deliver(0, 2, &said.to_le_bytes()).is_ok() {
                    said += 1;
                }
                while let Some(packet) = consumer.next().map_err(|error| error.to_string())? {
                    seen += 1;
                    let mut payload = [0; 300];
                    let len = packet.payload_len().min(300);
                    packet.read_payload(0, &mut payload[..len]).map_err(|error| error.to_string())?;
                    if packet.transaction_id != seen
                        || payload[..len].iter().any(|&byte| byte != seen.to_le_bytes()[0])
                    {
                        return Err(format!("packet {seen} is not what was sent"));
                    }
                }
                let _ = consumer.publish().map_err(|error| error.to_string())?;
                root.signal(1, 9);
            }
            Ok(())
        });
        let (mut heard, mut said, mut sent) = (0, 0, 0);
        while heard < MESSAGES || said < MESSAGES || sent < PACKETS {
            guest.take_flags(0, &mut |_| ());
            guest.take_flags(1, &mut |_| ());
            let _ = guest.arm(1);
            while let Some(event) = guest.receive()? {
                if let FromRoot::Message { payload, .. } = event {
                    expect(&payload, heard)?;
                    heard += 1;
                }
            }
            while said < MESSAGES && guest.post(4, &said.to_le_bytes()).is_ok() {
                said += 1;
            }
            let payload = [(sent + 1).to_le_bytes()[0]; 296];
            let mut batch = producer.batch();
            while sent < PACKETS && payload[0] == (sent + 1).to_le_bytes()[0] {
                if batch.push(Outgoing::request(sent + 1, &payload)).is_err() {
                    break;
                }
                sent += 1;
            }
            let _ = batch.commit()?;
        }
        while !rooted.is_finished() {
            guest.flush()?;
            thread::yield_now();
        }
        rooted.join().map_err(|_| "the root's thread panicked")??;
        Ok::<(), Box<dyn Error>>(())
    })?;
    println!("{MESSAGES} messages each way and {PACKETS} packets, and no race");
    Ok(())
}

fn expect(payload: &[u8], number: u32) -> Result<(), String> {
    if payload == number.to_le_bytes() {
        Ok(())
    } else {
        Err(format!("message {number} is not what was sent"))
    }
}
