//! The message rings of a control area under ThreadSanitizer, outside of the test harness, which it does not bear. Copies
//! are plain in this build: an ordering that is missing shows up as a race on the bytes.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/tsan \
//! RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg plain_copies" \
//! cargo run -p vmbus-partition --target x86_64-unknown-linux-gnu --example tsan_messages
//! ```
//!
//! Silence and exit status 0 mean that there was no race. Both ends share one mapping: the sanitizer knows bytes by their
//! address. Rings have an example of their own in `vmbus-ringbuf`.

use std::error::Error;
use std::thread;

use vmbus_partition::{FromGuest, FromRoot, GuestEnd, GuestOptions, LinkError, RootEnd, local};

const MESSAGES: u32 = 5_000;

fn main() -> Result<(), Box<dyn Error>> {
    let (root, guest) = local::pair(&GuestOptions { memory: 1 << 20, ..GuestOptions::named("watched") }, 1)?;
    // Messages are polled for without looking at the flags that announce them: nothing but the rings' own order stands
    // between a writer and its reader.
    let rooted = thread::spawn(move || {
        let hear = || {
            Ok(root.receive()?.and_then(|event| match event {
                FromGuest::Message { payload, .. } => Some(payload),
                _ => None,
            }))
        };
        converse(hear, |number| root.deliver(0, 2, &number.to_le_bytes()), || root.flush())
    });
    let hear = || {
        Ok(guest.receive()?.and_then(|event| match event {
            FromRoot::Message { payload, .. } => Some(payload),
            _ => None,
        }))
    };
    converse(hear, |number| guest.post(4, &number.to_le_bytes()), || guest.flush())?;
    rooted.join().map_err(|_| "the root's thread panicked")??;
    println!("{MESSAGES} messages each way, and no race");
    Ok(())
}

/// Says all messages and hears all of the other end's, which must be the numbers in their order.
fn converse<M: std::ops::Deref<Target = [u8]>>(
    mut hear: impl FnMut() -> Result<Option<M>, LinkError>,
    mut say: impl FnMut(u32) -> Result<(), LinkError>,
    mut all_out: impl FnMut() -> Result<bool, LinkError>,
) -> Result<(), LinkError> {
    let (mut heard, mut said) = (0u32, 0);
    while heard < MESSAGES || said < MESSAGES || !all_out()? {
        if let Some(message) = hear()? {
            if *message != heard.to_le_bytes() {
                return Err(LinkError::Protocol("sent another message than the next"));
            }
            heard += 1;
        }
        if said < MESSAGES && all_out()? {
            say(said)?;
            said += 1;
        }
    }
    Ok(())
}
