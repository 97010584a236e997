//! From a seed to a script.

use fastrand::Rng;
use vmbus_core::Version;

use super::script::{
    Action, Bounds, Channel, Decides, Disturbance, Disturbs, GuestSetup, Lane, Script, Tick,
};

/// The lanes' first so many passengers may be disturbed.
const DISTURBED: u32 = 96;

/// The scenario of a seed, with so many guests and devices (16 at most of each make sense).
pub fn generate(seed: u64, guests: u8, devices: u8) -> Script {
    let mut story = Story { rng: Rng::with_seed(seed), guests: guests.max(1), devices: devices.max(1) };
    let setups = (0..story.guests).map(|_| story.setup()).collect();
    let actions = story.actions();
    let disturbances = story.disturbances();
    Script { guests: setups, actions, disturbances, broken: None }
}

struct Story {
    rng: Rng,
    guests: u8,
    devices: u8,
}

impl Story {
    fn one_in(&mut self, sides: u32) -> bool {
        self.rng.u32(0..sides) == 0
    }

    fn version(&mut self) -> Version {
        Version::ALL[self.rng.usize(0..Version::ALL.len())]
    }

    fn setup(&mut self) -> GuestSetup {
        // Half of all guests speak the newest version: most of the protocol is there.
        let newest = if self.rng.bool() { Version::NEWEST } else { self.version() };
        let root = if self.one_in(4) { self.version() } else { Version::NEWEST };
        let policy = if self.one_in(3) { Decides::Ask } else { Decides::AllowAll };
        let quotas = if self.one_in(4) { Bounds::Tight } else { Bounds::Wide };
        GuestSetup { newest, root, policy, quotas }
    }

    /// Devices are there from the beginning, each for one guest and some for all; then anything happens.
    fn actions(&mut self) -> Vec<(Tick, Action)> {
        let mut actions = Vec::new();
        for device in 0..self.devices {
            let shared = self.one_in(8);
            for guest in 0..self.guests {
                if shared || device % self.guests == guest {
                    actions.push((0, Action::Offer { guest, channel: Channel::primary(device) }));
                }
            }
        }
        // Most scenarios begin with all guests at work.
        let mut at = self.rng.u64(0..40);
        if !self.one_in(4) {
            at = 20;
            for device in 0..self.devices {
                let (guest, channel) = (device % self.guests, Channel::primary(device));
                actions.push((at, Action::Open { guest, channel, pages: 4 }));
            }
            at += self.rng.u64(1..30);
        }
        let (steps, pace) = (self.rng.usize(20..200), [1, 4, 16][self.rng.usize(0..3)]);
        let crashes = !self.one_in(3);
        for _ in 0..steps {
            at += if self.one_in(4) { 0 } else { self.rng.u64(0..=pace * 2) };
            let guest = self.rng.u8(0..self.guests);
            self.act(guest, crashes, at, &mut actions);
        }
        actions
    }

    fn channel(&mut self, guest: u8) -> Channel {
        match self.rng.u8(0..16) {
            0 => Channel::primary(Channel::FIRST_CALL + self.rng.u8(0..3)),
            1 | 2 => Channel { sub: self.rng.u8(1..4), ..self.own(guest) },
            3 => Channel::primary(self.rng.u8(0..self.devices)),
            _ => self.own(guest),
        }
    }

    /// One of the devices that are a guest's from the beginning.
    fn own(&mut self, guest: u8) -> Channel {
        let device = self.rng.u8(0..self.devices);
        let own = device - device % self.guests + guest;
        Channel::primary(if own < self.devices { own } else { guest.min(self.devices - 1) })
    }

    fn act(&mut self, guest: u8, crashes: bool, at: Tick, actions: &mut Vec<(Tick, Action)>) {
        let channel = self.channel(guest);
        let action = match self.rng.u8(0..100) {
            0..14 => Action::Open { guest, channel, pages: self.rng.u8(4..20) },
            14..39 => {
                let count = if self.one_in(8) { self.rng.u8(20..90) } else { self.rng.u8(1..8) };
                Action::Request { guest, channel, count, bytes: self.rng.u16(0..160) }
            }
            39..41 => {
                // Wherever everything stands at the moment.
                insert(actions, at + self.rng.u64(0..8), Action::SaveGuest { guest });
                Action::SaveRoot { guest, lost: u8::MAX }
            }
            41..50 => Action::Close { guest, channel },
            50..56 => Action::Reopen { guest, channel },
            56..61 => {
                insert(actions, at + self.rng.u64(0..60), Action::Unshare { guest, channel });
                Action::Share { guest, channel, pages: self.rng.u8(1..=80) }
            }
            61..64 => Action::Unshare { guest, channel },
            64..67 => Action::Modify { guest, channel, vp: self.rng.u8(0..4) },
            67..69 => Action::GiveBack { guest, channel },
            69..77 => Action::Rescind { guest, channel },
            77..84 => Action::Offer { guest, channel },
            84 => Action::Call { guest, device: Channel::FIRST_CALL + self.rng.u8(0..3) },
            85 if self.one_in(3) => Action::SaveGuest { guest },
            85 => {
                // Most devices can be saved.
                let lost = if self.one_in(4) { channel.device } else { u8::MAX };
                if lost != u8::MAX {
                    let back = at + self.rng.u64(0..30);
                    insert(actions, back, Action::Offer { guest, channel });
                    insert(actions, back + self.rng.u64(0..20), Action::Open { guest, channel, pages: 4 });
                }
                Action::SaveRoot { guest, lost }
            }
            86 => {
                insert(actions, at + self.rng.u64(0..40), Action::Resume { guest });
                Action::Pause { guest }
            }
            87 => Action::Monitor { guest },
            88 => Action::Connect { guest },
            89 if crashes => {
                let back = at + self.rng.u64(0..40);
                insert(actions, back, Action::Connect { guest });
                self.open_again(guest, back, actions);
                Action::Unload { guest }
            }
            90 if crashes => {
                self.open_again(guest, at, actions);
                Action::Reboot { guest }
            }
            91 if crashes => {
                self.open_again(guest, at, actions);
                Action::Reset { guest }
            }
            92 | 93 if crashes => {
                // Whoever dies is usually replaced soon.
                let back = at + self.rng.u64(0..40);
                insert(actions, back, Action::Restart { guest });
                self.open_again(guest, back, actions);
                Action::Kill { guest }
            }
            94 if crashes && self.one_in(2) => {
                let back = at + self.rng.u64(0..40);
                insert(actions, back, Action::RestartRoot {});
                (0..self.guests).for_each(|guest| self.open_again(guest, back, actions));
                Action::KillRoot {}
            }
            _ => {
                // A device that goes comes back, and is opened again.
                let back = at + self.rng.u64(0..30);
                insert(actions, back, Action::Offer { guest, channel });
                insert(actions, back + self.rng.u64(0..12), Action::Open { guest, channel, pages: 4 });
                Action::Rescind { guest, channel }
            }
        };
        insert(actions, at, action);
    }

    /// After a while a guest opens some of its devices, and works on.
    fn open_again(&mut self, guest: u8, at: Tick, actions: &mut Vec<(Tick, Action)>) {
        let at = at + self.rng.u64(4..40);
        for device in (guest..self.devices).step_by(usize::from(self.guests)) {
            let channel = Channel::primary(device);
            if self.rng.bool() {
                insert(actions, at, Action::Open { guest, channel, pages: 4 });
                let (count, bytes) = (self.rng.u8(1..20), 8);
                insert(actions, at + self.rng.u64(6..40), Action::Request { guest, channel, count, bytes });
            }
        }
    }

    /// Each lane has a temper of its own, from "as usual" to "never in time".
    fn disturbances(&mut self) -> Vec<Disturbance> {
        let mut disturbances = Vec::new();
        let wildness = [0, 1, 2][self.rng.usize(0..3)];
        for guest in 0..self.guests {
            for &lane in Lane::ALL {
                let (chance, latest) = match (wildness, self.rng.u8(0..8)) {
                    (0, _) | (_, 0..3) => continue,
                    (1, _) => (0.05, 20),
                    (_, 3..6) => (0.1, 40),
                    (_, 6) => (0.5, 12),
                    (_, _) => (0.04, 400),
                };
                for nth in 0..DISTURBED {
                    if self.rng.f64() < chance {
                        let what = self.disturbs(lane, latest);
                        disturbances.push(Disturbance { what, guest, lane, nth });
                    }
                }
            }
        }
        disturbances
    }

    fn disturbs(&mut self, lane: Lane, latest: Tick) -> Disturbs {
        match lane {
            Lane::Post | Lane::Decide | Lane::GuestDecide | Lane::Open if self.one_in(3) => Disturbs::Refused,
            Lane::Doorbell | Lane::Interrupt if self.one_in(3) => Disturbs::Twice(self.rng.u64(0..latest)),
            _ => Disturbs::Late(self.rng.u64(1..=latest)),
        }
    }
}

/// Keeps the order of time: some actions are put in for later.
fn insert(actions: &mut Vec<(Tick, Action)>, at: Tick, action: Action) {
    let place = actions.partition_point(|(earlier, _)| *earlier <= at);
    actions.insert(place, (at, action));
}
