//! A sender against somebody who disconnects its port and connects another, in every order of their steps that a
//! scheduler finds. The tables are the switch's; only the lock around them is the scheduler's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use shuttle::sync::RwLock;
use shuttle::thread;

use super::addresses::{AddressLimits, Known, Station};
use super::batch::Frames;
use super::offload::Capabilities;
use super::port::{Delivered, Port};
use super::settings::PortSettings;
use super::switch::PortId;
use super::tables::{Link, Tables};

struct Nobody;

impl Port for Nobody {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        Delivered::all(frames)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }
}

/// What a sender leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Omission {
    Nothing,
    /// To look whether its port is still there when it writes down who is behind it.
    SecondLook,
}

const STATION: Station = Station::new(0, 1);

fn connect(tables: &RwLock<Tables>, id: u32) -> Arc<Link> {
    let mut tables = tables.write().expect("no panic");
    let link = Link::new(PortId(id), tables.ports.free_slot(), Nobody, Arc::default());
    tables.admit(&link, PortSettings::default()).expect("a port");
    link
}

/// The steps of a send that touch the tables.
fn send(tables: &RwLock<Tables>, link: &Arc<Link>, omission: Omission) {
    let known = {
        let tables = tables.read().expect("no panic");
        if tables.member_of(link).is_none() {
            return;
        }
        tables.addresses.saw(STATION, link.slot, 10, 1)
    };
    if known == Known::New {
        let mut tables = tables.write().expect("no panic");
        match omission {
            Omission::Nothing => tables.learn(link, [STATION].into_iter(), 1),
            Omission::SecondLook => tables.addresses.learn(STATION, link.slot, 10, 1),
        }
    }
}

fn story(omission: Omission) {
    let tables = Arc::new(RwLock::new(Tables::new(AddressLimits { ageing: 1000, most: 10 })));
    let first = connect(&tables, 1);
    let sender = {
        let (tables, first) = (Arc::clone(&tables), Arc::clone(&first));
        thread::spawn(move || {
            send(&tables, &first, omission);
            send(&tables, &first, omission);
        })
    };
    tables.write().expect("no panic").dismiss(&first);
    let second = connect(&tables, 2);
    assert_eq!(first.slot, second.slot, "the slot is used again");
    sender.join().expect("no panic");
    let found = tables.read().expect("no panic").addresses.find(STATION, 1);
    assert_eq!(found, None, "the station was behind a port that is gone");
}

#[test]
fn no_station_is_learned_behind_a_port_that_took_over_the_slot() {
    shuttle::check_random(|| story(Omission::Nothing), 2000);
    shuttle::check_dfs(|| story(Omission::Nothing), Some(20_000));
}

#[test]
fn no_station_is_learned_behind_a_port_that_took_over_the_slot_must_fail_twin() {
    let twin = || shuttle::check_random(|| story(Omission::SecondLook), 20_000);
    assert!(catch_unwind(AssertUnwindSafe(twin)).is_err(), "nobody noticed");
}
