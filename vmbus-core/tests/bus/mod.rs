//! Both ends of a bus on which everything is allowed and done at once.

use vmbus_core::client::{Client, ClientAction, ClientConfig, OpenRequest};
use vmbus_core::pages::PageRanges;
use vmbus_core::server::*;
use vmbus_core::{Guid, Version};

/// A server, a client that is connected to it, and what has happened between them.
pub(crate) struct Bus {
    pub(crate) server: Server,
    pub(crate) client: Client,
    /// Which channels the client opens as soon as they are offered.
    opens: fn(/* relid */ u32) -> bool,
    /// How often one was opened.
    pub(crate) opened: u64,
    /// How often a device was free again after it was withdrawn.
    pub(crate) released: u64,
}

impl Bus {
    /// Without devices.
    pub(crate) fn new(opens: fn(/* relid */ u32) -> bool) -> Self {
        let server = Server::new(ServerConfig::default());
        let client = Client::new(ClientConfig::default());
        let mut bus = Self { server, client, opens, opened: 0, released: 0 };
        bus.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
        bus.settle();
        bus.client.request_offers().unwrap();
        bus.settle();
        bus
    }

    pub(crate) fn offer(&mut self, device: DeviceKey) {
        let offer = OfferParams::new(Guid::default(), Guid::from_wire([1; 16]));
        self.input(ServerInput::Offer { device, offer });
    }

    pub(crate) fn rescind(&mut self, device: DeviceKey) {
        self.input(ServerInput::Rescind { device });
    }

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
            ClientAction::Offered(offer) if (self.opens)(offer.relid) => {
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
