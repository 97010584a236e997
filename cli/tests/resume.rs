//! Roots that die at any moment under guests that outlive them.
//!
//! 20 moments; 500 with `VMBUS_LONG=1`.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{DEADLINE, Place, Process, eventually, holdings};
use vmbus_channels::{Guest, Resume};
use vmbus_vsc::Disk;

fn moments() -> u64 {
    if std::env::var_os("VMBUS_LONG").is_some() { 500 } else { 20 }
}

/// Up to 260 ms after a root has begun to listen: attaching again, greeting, replaying and plain work all lie in there.
fn wait_for_moment(number: u64) {
    std::thread::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0x3_ffff));
}

/// A guest that writes its disk, flushes, and reads it back, round after round: `vmbus demo-guest`.
struct Worker {
    name: &'static str,
    process: Child,
    told: PathBuf,
    /// How much of that was read, and the last round in it that was found right.
    read: usize,
    checked: u64,
}

impl Worker {
    fn start(place: &Place, name: &'static str) -> Self {
        let told = place.path(&format!("told-{name}"));
        let process = Command::new(env!("CARGO_BIN_EXE_vmbus"))
            .args(["demo-guest", "--socket", &place.socket(), "--name", name, "--seed", "1"])
            .args(["--resume", "60"])
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(&told).unwrap())
            .spawn()
            .unwrap();
        Self { name, process, told, read: 0, checked: 0 }
    }

    /// Rounds that were written, flushed, read back and found right.
    fn checked(&mut self) -> u64 {
        let told = std::fs::read_to_string(&self.told).unwrap();
        for line in told[self.read..].split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            self.read += line.len();
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["failed"]["message"].as_str(), None, "{}", self.name);
            self.checked = line["checked"]["round"].as_u64().unwrap_or(self.checked);
        }
        self.checked
    }

    fn works(&mut self, rounds: u64) {
        let before = self.checked();
        eventually("the guest goes on", || {
            assert!(self.process.try_wait().unwrap().is_none(), "{} has ended", self.name);
            self.checked() >= before + rounds
        });
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn guests_see_a_pause_when_roots_are_killed_at_any_moment_and_lose_nothing() {
    let place = Place::new();
    let disks =
        ["bob", "eve"].map(|name| format!("{},for={name}", place.image(&format!("{name}.img"), 1 << 20)));
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let mut root: Process = place.root(&disks);
    let mut guests = ["bob", "eve"].map(|name| Worker::start(&place, name));
    for guest in &mut guests {
        guest.works(1);
    }
    let before = guests.each_ref().map(|guest| holdings(guest.process.id()));

    for number in 0..moments() {
        wait_for_moment(number);
        root.kill();
        root = place.root(&disks);
        for guest in &mut guests {
            // Complaints of data that are wrong come at once.
            guest.checked();
        }
    }
    for guest in &mut guests {
        guest.works(2);
    }
    eventually("the guests hold as much as at first", || {
        guests.each_ref().map(|guest| holdings(guest.process.id())) == before
    });
    let [bob, eve] = guests;
    drop((bob, eve));
    root.end();
    assert_eq!(place.names(), ["bob.img", "eve.img", "told-bob", "told-eve"]);
}

#[test]
fn a_guest_that_is_killed_in_the_pause_leaves_nothing_to_the_next_root() {
    let place = Place::new();
    let disk = format!("{},for=bob", place.image("bob.img", 1 << 20));
    let root = place.root(&[&disk]);
    let mut bob = Worker::start(&place, "bob");
    bob.works(1);
    root.kill();
    drop(bob);
    let root = place.root(&[&disk]);
    let mut bob = Worker::start(&place, "bob");
    root.says("attached");
    eventually("its successor ends in a complaint or works", || {
        bob.process.try_wait().unwrap().is_some() || bob.checked_or_failed()
    });
    drop(bob);
    root.end();
}

impl Worker {
    /// A new guest does not know what the last one had written: it may say so.
    fn checked_or_failed(&self) -> bool {
        let told = std::fs::read_to_string(&self.told).unwrap();
        told.contains("checked") || told.contains("failed")
    }
}

#[test]
fn a_pause_is_little_longer_than_the_root_takes_to_start() {
    let place = Place::new();
    let disk = place.image("disk.img", 1 << 20);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut root = place.root(&[&disk]);
    let (guest, disk_of_guest) = runtime.block_on(async {
        let builder = Guest::builder().resume(Resume::within(DEADLINE));
        let guest = builder.connect(place.socket()).await.unwrap();
        let disk = Disk::open(&guest).await.unwrap();
        (guest, disk)
    });
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let killed = Instant::now();
        root.kill();
        root = place.root(&[&disk]);
        let listening = killed.elapsed();
        runtime.block_on(disk_of_guest.flush()).unwrap();
        pauses.push((killed.elapsed(), killed.elapsed() - listening));
    }
    pauses.sort();
    let (whole, ours) = pauses[pauses.len() / 2];
    println!("from the kill to the first reply {whole:?}, of which after the new root listened {ours:?}");
    assert!(ours < Duration::from_secs(10), "{ours:?}");
    drop(guest);
    root.end();
}
