//! The simulator's scenarios with real processes: a root and guests that join it by its socket, and SIGKILL.
//!
//! The same scripts are played as in `sim.rs`, as far as processes can do what their actions say; the rest of the
//! actions does nothing here. Whatever happened, in the end each guest that lives opens each of its devices and gets
//! an answer, each request has ended once, and when all have gone the root holds nothing of them: no partition, no
//! descriptor, no mapping.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod guest;
mod root;
mod world;

use std::time::{Duration, Instant};

use vmbus_channels::{Guid, guid};
use vmbus_tests::sim::{Script, generate, play};
use world::Processes;

const CLASS: Guid = guid!("7a0c1f5e-93b4-4f0b-8e55-3a1d6f2c9b10");
/// What the process is to be: a line of words for [`an_actor_of_the_other_tests`].
const ROLE: &str = "VMBUS_ACTOR";
/// What a hang is told by.
const PATIENCE: Duration = Duration::from_secs(30);

/// The instance of a device that is for one guest.
fn instance(guest: u8, device: u8) -> Guid {
    Guid::from_wire([guest, device, 0, 0, 0x5a, 0x1d, 0x11, 0x4e, 0x9e, 0x02, 1, 2, 3, 4, 5, 6])
}

fn plays(name: &str, script: &Script) {
    let mut processes = Processes::new(script);
    if let Err(failure) = play(script, &mut processes) {
        panic!("{name}: {failure}\n\n{script}\n{}", processes.story());
    }
}

/// Not a test: what this program is when a test runs it again as a root or a guest.
#[test]
fn an_actor_of_the_other_tests() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split('\t').collect();
    match words[..] {
        ["root", socket] => root::act(socket),
        ["guest", socket, number, life, newest] => {
            guest::act(socket, number.parse().unwrap(), life.parse().unwrap(), newest.parse().unwrap());
        }
        _ => panic!("{role:?} is no role"),
    }
}

#[test]
fn whatever_happens_to_processes_all_ends_once_and_nothing_is_left() {
    let (seeds, bound) = match std::env::var_os("VMBUS_LONG") {
        Some(_) => (600, Duration::MAX),
        None => (24, Duration::from_secs(40)),
    };
    let begin = Instant::now();
    for seed in 0..seeds {
        plays(&format!("seed {seed}"), &generate(seed, 3, 6));
        if begin.elapsed() > bound {
            println!("{} seeds, no time for more", seed + 1);
            break;
        }
    }
}

#[test]
fn a_guest_that_is_killed_with_requests_in_flight_is_replaced() {
    let script = "
        guest newest=6.0 root=6.0 policy=allow-all quotas=wide
        guest newest=6.0 root=6.0 policy=allow-all quotas=wide
        0 offer guest=0 channel=0
        0 offer guest=1 channel=1
        100 open guest=0 channel=0 pages=4
        100 open guest=1 channel=1 pages=4
        300 request guest=0 channel=0 count=80 bytes=100
        300 request guest=1 channel=1 count=80 bytes=100
        300 kill guest=0
        301 restart guest=0
        500 open guest=0 channel=0 pages=4
        501 kill guest=0
        502 restart guest=0
    ";
    plays("two kills", &Script::parse(script).unwrap());
}

#[test]
fn guests_join_the_root_that_takes_the_place_of_a_killed_one() {
    let script = "
        guest newest=6.0 root=6.0 policy=allow-all quotas=wide
        guest newest=2.4 root=6.0 policy=allow-all quotas=wide
        0 offer guest=0 channel=0
        0 offer guest=1 channel=1
        100 open guest=0 channel=0 pages=4
        100 open guest=1 channel=1 pages=4
        300 request guest=0 channel=0 count=80 bytes=100
        300 request guest=1 channel=1 count=80 bytes=100
        301 kill-root
        400 restart-root
        401 rescind guest=1 channel=1
        402 offer guest=1 channel=1
    ";
    plays("a killed root", &Script::parse(script).unwrap());
}

#[test]
fn a_device_that_goes_and_comes_with_requests_in_flight_is_opened_again() {
    let script = "
        guest newest=6.0 root=6.0 policy=allow-all quotas=wide
        0 offer guest=0 channel=0
        100 open guest=0 channel=0 pages=4
        300 request guest=0 channel=0 count=50 bytes=100
        300 rescind guest=0 channel=0
        300 offer guest=0 channel=0
        300 rescind guest=0 channel=0
        301 offer guest=0 channel=0
        302 open guest=0 channel=0 pages=4
        400 reopen guest=0 channel=0
        401 close guest=0 channel=0
        402 unload guest=0
        403 connect guest=0
    ";
    plays("a device that comes and goes", &Script::parse(script).unwrap());
}
