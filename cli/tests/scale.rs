//! A root with 64 guests of 32 channels each, as processes.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::path::Path;

use common::{Place, Process, eventually, holdings};
use vmbus_channels::Status;

const GUESTS: usize = 64;
const CHANNELS: usize = 32;
/// Descriptors that each guest may cost the root.
const EACH: usize = 12;

/// A process of a measurement, on the first processor that may be used.
fn peer(arguments: &[&str]) -> Process {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let first = allowed.trim().split(['-', ',']).next().unwrap();
    Process::start(&[&["bench", "peer", first], arguments].concat())
}

fn status(socket: &Path) -> Status {
    Status::of(socket).unwrap()
}

#[test]
fn sixty_four_guests_with_thirty_two_channels_each_fit_the_usual_limits_and_leave_nothing_behind() {
    let place = Place::new();
    let (socket, path) = (place.path("bus.sock"), place.socket());
    let root = peer(&["many", &path, &CHANNELS.to_string()]);
    eventually("a root", || socket.exists() && Status::of(&socket).is_ok());
    let (before, mapped) = holdings(root.pid());

    let start = |nth: usize| peer(&["guest", &path, &format!("guest-{nth}"), &CHANNELS.to_string()]);
    let guests: Vec<Process> = (0..GUESTS).map(start).collect();
    for guest in &guests {
        // Each had a request answered on every channel.
        guest.says(&format!("has {CHANNELS} channels"));
    }
    let now = status(&socket);
    let open = |status: &Status| {
        let channels = status.partitions.iter().flat_map(|partition| &partition.channels);
        channels.filter(|channel| channel.state == "open").count()
    };
    assert_eq!((now.partitions.len(), open(&now)), (GUESTS, GUESTS * CHANNELS));
    assert!(now.partitions.iter().all(|partition| partition.pauses == 0));
    let cost = holdings(root.pid()).0 - before;
    assert!(cost <= EACH * GUESTS, "{cost} descriptors for {GUESTS} guests");

    // Half of them leave in order, the others die.
    for (nth, guest) in guests.into_iter().enumerate() {
        if nth.is_multiple_of(2) { guest.end() } else { guest.kill() }
    }
    eventually("nobody is left", || status(&socket).partitions.is_empty());
    eventually("no descriptor and no mapping is left", || {
        let (descriptors, maps) = holdings(root.pid());
        descriptors <= before && maps <= mapped
    });
    root.kill();
}
