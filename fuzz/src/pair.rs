//! Guest and host, both following the rules, with messages on their way for as long as the bytes say: no order of
//! events makes one take the other for a rule breaker, or leaves anything unfinished.

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::Version;
use vmbus_core::client::Policy;
use vmbus_core::server::{ServerConfig, Usage};

use crate::client::{self, Guest};
use crate::server::{self, Host};

const MAX_STEPS: usize = 400;
/// More than any conversation of that many steps needs to come to rest.
const MAX_ROUNDS: usize = 10_000;

/// Plays the conversation that the bytes describe, lets it come to rest, and ends it in order.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let _ = play(&mut input);
}

fn play(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let policy = if bool::arbitrary(input)? { Policy::Ask } else { Policy::AllowAll };
    let (oldest, newest) = (*input.choose(&Version::ALL)?, *input.choose(&Version::ALL)?);
    let config = ServerConfig { versions: oldest..=newest, ..ServerConfig::default() };
    let mut pair = Pair { guest: Guest::new(policy), host: Host::new(config) };
    if bool::arbitrary(input)? {
        pair.begin();
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        pair.take(Step::arbitrary(input)?);
    }
    pair.end();
    Ok(())
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The next messages arrive.
    ToHost(u8),
    ToGuest(u8),
    // What the guest does.
    Connect {
        from: u8,
        to: u8,
    },
    RequestOffers,
    Share {
        relid: u8,
        pages: u8,
    },
    Teardown {
        which: u8,
    },
    Open {
        relid: u8,
        which: u8,
    },
    Close {
        relid: u8,
    },
    Modify {
        relid: u8,
    },
    Release {
        relid: u8,
    },
    GuestDecides {
        which: u8,
        allow: bool,
    },
    Pause,
    Resume,
    Unload,
    // What the host does.
    Offer {
        device: u8,
    },
    Rescind {
        device: u8,
    },
    HostDecides {
        which: u8,
        allow: bool,
    },
    Opened {
        which: u8,
        ok: bool,
    },
    Closed {
        which: u8,
    },
    GpadlReleased {
        which: u8,
    },
}

struct Pair {
    guest: Guest,
    host: Host,
}

impl Pair {
    /// Three devices, offered to a connected guest.
    fn begin(&mut self) {
        for device in 0..3 {
            self.take(Step::Offer { device });
        }
        self.take(Step::Connect { from: 0, to: 10 });
        self.rest();
        self.take(Step::RequestOffers);
        self.rest();
    }

    fn take(&mut self, step: Step) {
        let (guest, host) = (&mut self.guest, &mut self.host);
        match step {
            Step::ToHost(count) => (0..=count % 8).for_each(|_| self.to_host()),
            Step::ToGuest(count) => (0..=count % 8).for_each(|_| self.to_guest()),
            Step::Connect { from, to } => guest.take(client::Step::Connect { from, to }),
            Step::RequestOffers => guest.take(client::Step::RequestOffers),
            // Room for two rings.
            Step::Share { relid, pages } => guest.take(client::Step::Share { relid, pages: 4 + pages % 60 }),
            Step::Teardown { which } => guest.take(client::Step::Teardown { which }),
            Step::Open { relid, which } => guest.take(client::Step::Open { relid, which }),
            Step::Close { relid } => guest.take(client::Step::Close { relid }),
            Step::Modify { relid } => guest.take(client::Step::Modify { relid }),
            Step::Release { relid } => guest.take(client::Step::Release { relid }),
            Step::GuestDecides { which, allow } => guest.take(client::Step::Decide { which, allow }),
            Step::Pause => guest.take(client::Step::Pause),
            Step::Resume => guest.take(client::Step::Resume),
            Step::Unload => guest.take(client::Step::Unload),
            Step::Offer { device } => host.take(server::Step::Offer { device, subchannel: 0 }),
            Step::Rescind { device } => host.take(server::Step::Rescind { device }),
            Step::HostDecides { which, allow } => host.take(server::Step::Decide { which, allow }),
            Step::Opened { which, ok } => host.take(server::Step::Opened { which, ok }),
            Step::Closed { which } => host.take(server::Step::Closed { which }),
            Step::GpadlReleased { which } => host.take(server::Step::GpadlReleased { which }),
        }
        assert!(self.host.faults.is_empty(), "the host blames the guest: {:?}", self.host.faults);
        assert!(self.guest.faults.is_empty(), "the guest blames the host: {:?}", self.guest.faults);
    }

    fn to_host(&mut self) {
        if let Some((connection_id, payload)) = self.guest.posted.pop_front() {
            self.host.post(connection_id, &payload);
        }
    }

    fn to_guest(&mut self) {
        if let Some(payload) = self.host.sent.pop_front() {
            self.guest.hear(&payload);
        }
    }

    /// Everybody does what is asked of him until nothing is left to do.
    fn rest(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let before = self.host.server.usage();
            self.guest.decide_all();
            self.host.decide_all();
            self.host.answer_open(0, true);
            self.host.answer_close(0);
            self.host.answer_release(0);
            let idle = self.guest.posted.is_empty() && self.host.sent.is_empty();
            self.take(Step::ToHost(0));
            self.take(Step::ToGuest(0));
            if idle && !self.host.is_busy() && before == self.host.server.usage() {
                return;
            }
        }
        panic!("the conversation does not come to rest");
    }

    /// Comes to rest; then nothing is under way, and after an unload nothing is left.
    fn end(mut self) {
        self.rest();
        self.guest.take(client::Step::Resume);
        self.rest();
        self.guest.assert_nothing_is_under_way();
        self.guest.take(client::Step::Unload);
        self.rest();
        assert_eq!(self.guest.client.connection(), None);
        assert_eq!(self.host.server.usage(), Usage::default());
        assert_eq!(self.host.server.connection(), None);
    }
}
