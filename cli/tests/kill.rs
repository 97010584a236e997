//! Roots and guests that die at any moment, under load.
//!
//! 20 moments each; 200 with `VMBUS_LONG=1`.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Place, Process, eventually, holdings};

fn moments() -> u64 {
    if std::env::var_os("VMBUS_LONG").is_some() { 200 } else { 20 }
}

/// Up to 120 ms from the start on: attaching, opening, writing, flushing and reading all lie in there.
fn wait_for_moment(number: u64) {
    std::thread::sleep(Duration::from_micros(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0x1_ffff));
}

/// A disk, and which rounds are on it as far as its guests have told.
struct Disk {
    name: &'static str,
    flushed: u64,
    begun: u64,
}

/// A guest at work on a disk: `vmbus demo-guest`.
struct Worker {
    process: Child,
}

impl Disk {
    fn new(name: &'static str) -> Self {
        Self { name, flushed: 0, begun: 0 }
    }

    fn start(&self, place: &Place) -> Worker {
        let process = Command::new(env!("CARGO_BIN_EXE_vmbus"))
            .args(["demo-guest", "--socket", &place.socket(), "--name", self.name, "--seed", "1"])
            .args(["--flushed", &self.flushed.to_string(), "--begun", &self.begun.to_string()])
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(place.path("told")).unwrap())
            .spawn()
            .unwrap();
        Worker { process }
    }

    /// Learns from what a guest has told how far it came; gives the complaint with which it ended.
    fn learn(&mut self, place: &Place) -> Option<String> {
        let told = std::fs::read_to_string(place.path("told")).unwrap();
        let mut complaint = None;
        for line in told.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            self.begun = line["writing"]["round"].as_u64().unwrap_or(self.begun);
            self.flushed = line["flushed"]["round"].as_u64().unwrap_or(self.flushed);
            complaint = line["failed"]["message"].as_str().map(Into::into).or(complaint);
        }
        complaint
    }

    /// Lets a new guest check all that should be there, and go on for a round.
    fn works(&mut self, place: &Place) {
        let mut worker = self.start(place);
        let before = self.begun;
        eventually("a new guest finds its data right and goes on", || {
            assert_eq!(self.learn(place), None);
            self.flushed > before
        });
        worker.kill();
        assert_eq!(self.learn(place), None);
    }
}

impl Worker {
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn guests_killed_at_any_moment_leave_nothing_in_the_root_and_lose_nothing_flushed() {
    let place = Place::new();
    let root = place.root(&[&format!("{},for=bob", place.image("bob.img", 1 << 20))]);
    let mut bob = Disk::new("bob");
    bob.works(&place);
    root.says("detached");
    std::thread::sleep(Duration::from_millis(100));
    let (before, names) = (holdings(root.pid()), place.names());

    for number in 0..moments() {
        let mut worker = bob.start(&place);
        wait_for_moment(number);
        worker.kill();
        assert_eq!(bob.learn(&place), None, "at moment {number}");
        eventually("the root lets go of everything", || holdings(root.pid()) == before);
    }
    bob.works(&place);
    assert_eq!(place.names(), names);
    root.end();
}

#[test]
fn roots_killed_at_any_moment_release_their_guests_and_the_next_root_goes_on() {
    let place = Place::new();
    let disk = format!("{},for=bob", place.image("bob.img", 1 << 20));
    let mut bob = Disk::new("bob");
    let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap();
    let before = mounts();

    for number in 0..moments() {
        let root: Process = place.root(&[&disk]);
        let mut worker = bob.start(&place);
        wait_for_moment(number);
        root.kill();
        eventually("the guest notices and ends", || worker.process.try_wait().unwrap().is_some());
        let complaint = bob.learn(&place).unwrap_or_default();
        assert!(!complaint.contains("sector"), "at moment {number}: {complaint}");
    }
    let root = place.root(&[&disk]);
    bob.works(&place);
    root.end();
    assert_eq!(place.names(), ["bob.img", "told"]);
    assert_eq!(mounts(), before);
}
