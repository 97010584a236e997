//! Several guests that follow no rule, on one host that offers the same devices to all of them.
//!
//! Each guest has a server of its own, as in the root. What one guest does may not show at another: neither in what its
//! server holds nor in what its devices are told. A device that serves one guest at a time refuses the others.

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::server::{ServerConfig, Usage};

use crate::server::{Host, MAX_STEPS, Opened, QUOTAS, Step};

const GUESTS: usize = 3;
/// Devices below this serve one guest at a time.
const EXCLUSIVE: u64 = 3;

/// Plays what the bytes describe, then ends it and looks for what is left.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let mut bus = Bus::new();
    // Half of the inputs begin where the interesting part of a conversation does.
    if bool::arbitrary(&mut input).unwrap_or_default() {
        bus.hosts.iter_mut().for_each(Host::begin);
    }
    for _ in 0..MAX_STEPS {
        let Ok(step) = BusStep::arbitrary(&mut input) else { break };
        bus.take(step);
        if input.is_empty() {
            break;
        }
    }
    bus.end();
}

#[derive(Arbitrary, Debug)]
enum BusStep {
    /// Something happens between one guest and the host.
    At { guest: u8, step: Step },
    /// The same is done by all guests, or for all of them.
    Everywhere(EveryStep),
    /// A guest dies, and another takes its place.
    Replaced { guest: u8 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum EveryStep {
    Offer { device: u8, subchannel: u8 },
    Rescind { device: u8 },
    RequestOffers,
    Share { relid: u8, gpadl: u8, pages: u8 },
    Open { relid: u8, gpadl: u8 },
    Allow,
}

impl EveryStep {
    fn step(self) -> Step {
        match self {
            Self::Offer { device, subchannel } => Step::Offer { device, subchannel },
            Self::Rescind { device } => Step::Rescind { device },
            Self::RequestOffers => Step::RequestOffers,
            Self::Share { relid, gpadl, pages } => Step::Share { relid, gpadl, pages, messages: 9 },
            Self::Open { relid, gpadl } => Step::Open { relid, gpadl, downstream: 2, event_flag: 0 },
            Self::Allow => Step::Decide { which: 0, allow: true },
        }
    }
}

struct Bus {
    hosts: Vec<Host>,
}

impl Bus {
    fn new() -> Self {
        let host = || Host::new(ServerConfig { quotas: QUOTAS, ..ServerConfig::default() });
        Self { hosts: (0..GUESTS).map(|_| host()).collect() }
    }

    fn take(&mut self, step: BusStep) {
        match step {
            BusStep::At { guest, step } => self.take_at(usize::from(guest) % GUESTS, step),
            BusStep::Everywhere(step) => {
                for guest in 0..GUESTS {
                    self.take_at(guest, step.step());
                }
            }
            BusStep::Replaced { guest } => {
                let guest = usize::from(guest) % GUESTS;
                self.take_at(guest, Step::Reset);
                self.hosts[guest].answer_all();
                assert_eq!(
                    self.hosts[guest].server.usage(),
                    Usage::default(),
                    "the next guest finds something"
                );
            }
        }
        self.assert_exclusive();
    }

    /// One step at one guest; the others' servers must not notice.
    fn take_at(&mut self, guest: usize, step: Step) {
        let step = self.judge(guest, step);
        let others: Vec<_> = self.others(guest).map(Host::fingerprint).collect();
        self.hosts[guest].take(step);
        let after: Vec<_> = self.others(guest).map(Host::fingerprint).collect();
        assert_eq!(others, after, "guest {guest} shows at another");
    }

    fn others(&self, guest: usize) -> impl Iterator<Item = &Host> {
        self.hosts.iter().enumerate().filter(move |(index, _)| *index != guest).map(|(_, host)| host)
    }

    /// A device that serves another guest already refuses.
    fn judge(&self, guest: usize, step: Step) -> Step {
        match step {
            Step::Opened { which, ok: true } => {
                let device = self.hosts[guest].nth_opening(which);
                let taken = device.is_some_and(|device| {
                    device.0 < EXCLUSIVE
                        && self.others(guest).any(|host| host.serves(device, Opened::Opening))
                });
                Step::Opened { which, ok: !taken }
            }
            step => step,
        }
    }

    fn assert_exclusive(&self) {
        for device in (0..EXCLUSIVE).map(vmbus_core::server::DeviceKey) {
            let serving = self.hosts.iter().filter(|host| host.serves(device, Opened::Opening)).count();
            assert!(serving <= 1, "{device:?} serves {serving} guests at a time");
        }
    }

    fn end(self) {
        self.hosts.into_iter().for_each(Host::end);
    }
}
