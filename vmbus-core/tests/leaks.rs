//! A device that comes and goes a hundred thousand times leaves nothing in the memory of either end.
//!
//! One test in a program of its own: whoever else allocates would be counted too.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use vmbus_core::client::{Client, ClientAction, ClientConfig, OpenRequest};
use vmbus_core::pages::PageRanges;
use vmbus_core::server::*;
use vmbus_core::{Guid, Version};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PAIRS: u64 = 100_000;
/// After these all channel ids were used once and every collection has its size.
const WARM_UP: u64 = 10_000;

/// Both ends of a bus on which everything is allowed and done at once.
struct Bus {
    server: Server,
    client: Client,
    released: u64,
    opened: u64,
}

impl Bus {
    fn input(&mut self, input: ServerInput<'_>) {
        self.server.handle(input);
        self.settle();
    }

    /// Lets everything happen.
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
            ServerAction::Released { .. } => {
                self.released += 1;
                return;
            }
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
            // Every other channel is opened.
            ClientAction::Offered(offer) if offer.relid % 2 == 0 => {
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
fn a_hundred_thousand_offers_and_rescinds_leave_nothing() {
    let server = Server::new(ServerConfig::default());
    let mut bus = Bus { server, client: Client::new(ClientConfig::default()), released: 0, opened: 0 };
    bus.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
    bus.settle();
    bus.client.request_offers().unwrap();
    bus.settle();
    let mut before = Region::new(ALLOCATOR);
    for round in 0..PAIRS {
        if round == WARM_UP {
            before.reset();
        }
        let device = DeviceKey(round % 3);
        let offer = OfferParams::new(Guid::default(), Guid::from_wire([1; 16]));
        bus.input(ServerInput::Offer { device, offer });
        bus.input(ServerInput::Rescind { device });
    }
    let change = before.change();
    assert_eq!(bus.released, PAIRS);
    assert!(bus.opened > PAIRS * 2 / 5, "nearly half of them were open when they were rescinded");
    assert_eq!(bus.server.usage(), Usage::default());
    assert_eq!(bus.client.usage(), Default::default());
    assert_eq!(bus.server.channels().count(), 0);
    assert!(change.allocations > 0, "the allocator counts");
    assert_eq!(change.bytes_allocated, change.bytes_deallocated, "{change:?}");
}
