//! The process that is a guest: it opens, asks and closes as it is told to, and counts how its requests end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use vmbus_channels::{Channel, Device, Guest, OpenOptions};
use vmbus_core::Version;

use crate::instance;

/// How requests have ended.
#[derive(Default)]
struct Tally {
    sent: AtomicUsize,
    completed: AtomicUsize,
    /// With their channel.
    ended: AtomicUsize,
    wrong: AtomicUsize,
}

impl Tally {
    fn is_complete(&self) -> bool {
        self.sent.load(SeqCst) == self.completed.load(SeqCst) + self.ended.load(SeqCst)
    }
}

/// What is asked of a channel.
enum Order {
    Request { count: usize, bytes: usize },
    Probe(oneshot::Sender<()>),
}

struct Me {
    socket: String,
    number: u8,
    life: u64,
    newest: Version,
    tally: Arc<Tally>,
    guest: Option<Guest>,
    wants_to_join: bool,
    channels: BTreeMap<u8, mpsc::UnboundedSender<Order>>,
}

/// Does what stdin says, until its end. Joins whatever root there is at the socket, again and again.
pub(crate) fn act(socket: &str, number: u8, life: u64, newest: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut me = Me {
            socket: socket.to_owned(),
            number,
            life,
            newest: Version::ALL[newest],
            tally: Arc::default(),
            guest: None,
            wants_to_join: true,
            channels: BTreeMap::new(),
        };
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line.unwrap(),
                () = me.change() => continue,
            };
            match line {
                Some(line) => me.obey(&line).await,
                None => break,
            }
        }
        me.channels.clear();
        drop(me.guest.take());
        println!("@left");
    });
    // The guest leaves in a task of the runtime.
    runtime.shutdown_timeout(Duration::from_secs(5));
}

impl Me {
    /// Joins a root if there is none, else waits until it is gone.
    async fn change(&mut self) {
        match &self.guest {
            Some(guest) => {
                guest.closed().await;
                self.guest = None;
                self.channels.clear();
            }
            None if self.wants_to_join => {
                let builder = Guest::builder().name(format!("guest-{}", self.number)).memory(4 << 20);
                let joined = builder.versions(Version::OLDEST..=self.newest).connect(&self.socket).await;
                match joined {
                    Ok(guest) => self.guest = Some(guest),
                    // The root is dead; nobody tells when there is the next one.
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
            None => std::future::pending().await,
        }
    }

    async fn obey(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["open", device] => self.open(device.parse().unwrap()),
            ["close", device] => {
                self.channels.remove(&device.parse().unwrap());
            }
            ["request", device, count, bytes] => {
                let order = Order::Request { count: count.parse().unwrap(), bytes: bytes.parse().unwrap() };
                if let Some(channel) = self.channels.get(&device.parse().unwrap()) {
                    let _ = channel.send(order);
                }
            }
            ["unload"] => {
                self.wants_to_join = false;
                self.channels.clear();
                self.guest = None;
            }
            ["connect"] => self.wants_to_join = true,
            ["probe", device] => {
                self.probe(device.parse().unwrap()).await;
                println!("@probed {device}");
            }
            ["settle"] => {
                while !self.tally.is_complete() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let Tally { sent, completed, ended, wrong } = &*self.tally;
                println!(
                    "@settled {} {} {} {}",
                    sent.load(SeqCst),
                    completed.load(SeqCst),
                    ended.load(SeqCst),
                    wrong.load(SeqCst)
                );
            }
            _ => panic!("{line:?} is no order for a guest"),
        }
    }

    fn open(&mut self, device: u8) {
        let is_open = self.channels.get(&device).is_some_and(|channel| !channel.is_closed());
        let Some(guest) = self.guest.clone().filter(|_| !is_open) else { return };
        let (orders, inbox) = mpsc::unbounded_channel();
        self.channels.insert(device, orders);
        let device = Device::instance(instance(self.number, device));
        let (tally, who) = (Arc::clone(&self.tally), u64::from(self.number) << 32 | self.life);
        tokio::spawn(async move {
            let options = OpenOptions::new().ring_pages(1);
            let Ok(channel) = guest.open_with(device, options).await else { return };
            // What keeps the guest on the bus is the handle of its own.
            drop(guest);
            work(channel, inbox, tally, who).await;
        });
    }

    /// Opens a device and has a request answered, as often as it takes: a device that is offered must answer.
    async fn probe(&mut self, device: u8) {
        loop {
            if self.guest.is_none() {
                self.change().await;
                continue;
            }
            self.open(device);
            let (probe, answer) = oneshot::channel();
            if let Some(channel) = self.channels.get(&device) {
                let _ = channel.send(Order::Probe(probe));
            }
            if answer.await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// One open channel, until it is closed by anybody.
async fn work(channel: Channel, mut inbox: mpsc::UnboundedReceiver<Order>, tally: Arc<Tally>, who: u64) {
    loop {
        let order = tokio::select! {
            order = inbox.recv() => order,
            () = channel.closed() => None,
        };
        let (count, bytes, probe) = match order {
            Some(Order::Request { count, bytes }) => (count, bytes, None),
            Some(Order::Probe(probe)) => (1, 0, Some(probe)),
            None => return,
        };
        let mut probe = probe;
        for _ in 0..count {
            let number = tally.sent.fetch_add(1, SeqCst) as u64;
            let mut payload = vec![0x5a; 16 + bytes];
            payload[..8].copy_from_slice(&who.to_le_bytes());
            payload[8..16].copy_from_slice(&number.to_le_bytes());
            let pending = match channel.send(&payload, []).await {
                Ok(pending) => pending,
                Err(_) => {
                    tally.ended.fetch_add(1, SeqCst);
                    continue;
                }
            };
            let (tally, probe) = (Arc::clone(&tally), probe.take());
            tokio::spawn(async move {
                match pending.reply().await {
                    Ok(reply) => {
                        let right = reply[..] == (!number).to_le_bytes();
                        tally.wrong.fetch_add(usize::from(!right), SeqCst);
                        tally.completed.fetch_add(1, SeqCst);
                        probe.map(|probe| probe.send(()));
                    }
                    Err(_) => {
                        tally.ended.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    }
}
