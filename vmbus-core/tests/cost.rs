//! What a channel costs does not depend on how many there are.
//!
//! Times are compared within one run, the best of several stretches each, taken in turns: the machine's own drift is in
//! both. `cargo test -p vmbus-core --release --test cost -- --nocapture` shows them.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::{Duration, Instant};

use vmbus_core::client::{Client, ClientAction, ClientConfig, OpenRequest};
use vmbus_core::pages::PageRanges;
use vmbus_core::server::*;
use vmbus_core::{Guid, Version};

const COUNTS: [u64; 4] = [1, 64, 512, 2000];
const STRETCHES: usize = 12;
const CYCLES: u64 = 400;

/// Both ends of a bus on which everything is allowed and done at once.
struct Bus {
    server: Server,
    client: Client,
    channels: u64,
    next: u64,
    opened: u64,
}

impl Bus {
    /// With so many channels, all open.
    fn new(channels: u64) -> Self {
        let server = Server::new(ServerConfig::default());
        let client = Client::new(ClientConfig::default());
        let mut bus = Self { server, client, channels, next: 0, opened: 0 };
        bus.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        bus.settle();
        bus.client.request_offers().unwrap();
        for device in 0..channels {
            bus.offer(device);
        }
        assert_eq!(bus.opened, channels);
        bus
    }

    fn offer(&mut self, device: u64) {
        let offer = OfferParams::new(Guid::default(), Guid::from_wire([1; 16]));
        self.input(ServerInput::Offer { device: DeviceKey(device), offer });
    }

    /// Takes one device back and offers it anew: rescind, release, offer, page list, open.
    fn cycle(&mut self) {
        // In an order that is not that of their numbers.
        self.next = (self.next + 7919) % self.channels;
        self.input(ServerInput::Rescind { device: DeviceKey(self.next) });
        self.offer(self.next);
    }

    fn input(&mut self, input: ServerInput<'_>) {
        self.server.handle(input);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            if let Some(action) = self.server.poll_action() {
                self.host(action);
            } else if let Some(action) = self.client.poll_action() {
                self.guest(action);
            } else {
                return;
            }
        }
    }

    fn host(&mut self, action: ServerAction) {
        let answer = match action {
            ServerAction::Send { payload, .. } => return self.client.handle_message(&payload),
            ServerAction::Ask { id, .. } => ServerInput::Decided { id, answer: Answer::Allow },
            ServerAction::Open { relid, .. } => ServerInput::Opened { relid, result: Ok(()) },
            ServerAction::Close { relid, .. } => ServerInput::Closed { relid },
            ServerAction::ReleaseGpadl { relid, gpadl, .. } => ServerInput::GpadlReleased { relid, gpadl },
            ServerAction::Fault(fault) => panic!("{fault}"),
            _ => return,
        };
        self.server.handle(answer);
    }

    fn guest(&mut self, action: ClientAction) {
        match action {
            ClientAction::Post { connection_id, payload } => {
                self.server.handle(ServerInput::Message { connection_id, payload: &payload });
            }
            ClientAction::Offered(offer) => {
                let rings = PageRanges::single(0, 4 * 4096, 0..4).unwrap();
                self.client.create_gpadl(offer.relid, &rings).unwrap();
            }
            ClientAction::GpadlCreated { relid, gpadl, result: Ok(()) } => {
                let request = OpenRequest { ring_gpadl: gpadl, downstream_page: 2, ..OpenRequest::default() };
                self.client.open(relid, request).unwrap();
            }
            ClientAction::Opened { result: Ok(()), .. } => self.opened += 1,
            ClientAction::Rescinded { relid } => self.client.release(relid).unwrap(),
            ClientAction::Fault(fault) => panic!("{fault}"),
            _ => {}
        }
    }
}

#[test]
fn opening_a_channel_costs_the_same_among_one_and_among_two_thousand() {
    let mut busses = COUNTS.map(Bus::new);
    let mut best = [Duration::MAX; COUNTS.len()];
    for _ in 0..STRETCHES {
        for (bus, best) in busses.iter_mut().zip(&mut best) {
            let start = Instant::now();
            for _ in 0..CYCLES {
                bus.cycle();
            }
            *best = start.elapsed().min(*best);
        }
    }
    let each = best.map(|time| time.as_nanos() / u128::from(CYCLES));
    println!("rescind, offer and open, in ns, among {COUNTS:?} channels: {each:?}");
    // Maps of two thousand are a few steps deeper than maps of one; a scan would cost hundreds of times more.
    assert!(each[3] < each[0] * 4, "among {COUNTS:?}: {each:?} ns");
}
