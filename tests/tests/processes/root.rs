//! The process that is the root: it offers what it is told to, and its devices answer requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use vmbus_channels::{
    Channel, ChannelError, Client, DeviceHandle, Offer, OpenRequest, Provider, Refusal, Root, Session,
};

use crate::{CLASS, instance};

/// Requests that devices have got, by guest and life and number, and how many of them more than once.
#[derive(Default)]
struct Served {
    seen: BTreeSet<(u64, u64)>,
    repeated: usize,
}

/// A device for one guest, which answers each request by its number, inverted.
#[derive(Clone)]
struct Echo {
    guest: u8,
    device: u8,
    served: Arc<Mutex<Served>>,
}

impl Provider for Echo {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, format!("echo {}", self.device)).instance(instance(self.guest, self.device))
    }

    fn visible_to(&self, client: &Client) -> bool {
        *client.name == *format!("guest-{}", self.guest)
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

impl Session for Echo {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let Some(([who, number], _)) = request.payload().as_chunks().0.split_first_chunk() else {
                return Err(ChannelError::Protocol("a request without a number".into()));
            };
            let (who, number) = (u64::from_le_bytes(*who), u64::from_le_bytes(*number));
            {
                let mut served = self.served.lock().unwrap();
                served.repeated += usize::from(!served.seen.insert((who, number)));
            }
            let answer = (!number).to_le_bytes();
            if number % 3 == 0 {
                // Some take their time, and overtake each other.
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(1 + number % 4)).await;
                    let _ = request.complete(&answer).await;
                });
            } else {
                request.complete(&answer).await?;
            }
        }
        Ok(())
    }
}

/// Does what stdin says, until its end.
pub(crate) fn act(socket: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = Root::listen(socket).await.unwrap();
        println!("@ready");
        let served = Arc::<Mutex<Served>>::default();
        let mut devices = BTreeMap::<(u8, u8), DeviceHandle>::new();
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["offer", guest, device] => {
                    let (guest, device) = (guest.parse().unwrap(), device.parse().unwrap());
                    let echo = Echo { guest, device, served: Arc::clone(&served) };
                    devices.insert((guest, device), root.offer(echo).unwrap());
                }
                ["rescind", guest, device] => {
                    let key = (guest.parse().unwrap(), device.parse().unwrap());
                    devices.remove(&key).unwrap().rescind();
                }
                ["report"] => {
                    let served = served.lock().unwrap();
                    println!("@report {} {}", served.seen.len(), served.repeated);
                }
                _ => panic!("{line:?} is no order for a root"),
            }
        }
        root.run_until(async {}).await;
        println!("@left");
    });
}
