//! A server with a guest that is played by the test, message by message.
//!
//! Everything the server does comes back as one line of text for each action, so that a test reads as a protocol
//! trace: messages in capitals, as `OFFER 1`, what the devices are told in small letters, as `open 1`.

use std::fmt::Write as _;

use vmbus_core::message::*;
use vmbus_core::pages::PageRanges;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Guid, Status, Version, guid};
use zerocopy::little_endian::{U32, U64};

pub(crate) const CLASS: Guid = guid!("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");

/// What the root answers by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// Policy allows, devices do at once what they are told.
    All,
    /// Policy allows; the test speaks for the devices.
    Policy,
    /// The test speaks for both.
    None,
}

pub(crate) struct Root {
    pub(crate) server: Server,
    pub(crate) answers: Answers,
    pub(crate) version: Version,
    pub(crate) features: FeatureFlags,
    pub(crate) asked: Vec<(AskId, Question)>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) opens: Vec<Open>,
}

impl Root {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self {
            server: Server::new(config),
            answers: Answers::Policy,
            version: Version::Iron,
            features: FeatureFlags::empty(),
            asked: Vec::new(),
            faults: Vec::new(),
            opens: Vec::new(),
        }
    }

    /// A guest of this version is connected, has asked for offers, and device 1 is its channel 1.
    pub(crate) fn with_device(version: Version, config: ServerConfig) -> Self {
        let mut root = Self::new(config);
        root.connect(version);
        assert_eq!(root.say(RequestOffers {}), ["ALL OFFERS"]);
        assert_eq!(root.offer(1), ["OFFER 1"]);
        root
    }

    /// Channel 1 of device 1 is closed.
    pub(crate) fn closed() -> Self {
        Self::with_device(Version::Iron, ServerConfig::default())
    }

    /// Channel 1 has page list 5 of four pages for its rings.
    pub(crate) fn shared() -> Self {
        let mut root = Self::closed();
        assert_eq!(root.share(1, 5), ["gpadl 1/5", "CREATED 1/5 ok"]);
        root
    }

    /// The device was told to open channel 1.
    pub(crate) fn opening() -> Self {
        let mut root = Self::shared();
        assert_eq!(root.open(1, 7, 5), ["open 1"]);
        root
    }

    /// Channel 1 is open.
    pub(crate) fn opened() -> Self {
        let mut root = Self::opening();
        assert_eq!(root.device_opened(1), ["RESULT 1 open 7 ok"]);
        root
    }

    /// The device was told to close channel 1.
    pub(crate) fn closing() -> Self {
        let mut root = Self::opened();
        assert_eq!(root.close(1), ["close 1"]);
        root
    }

    /// The guest has closed channel 1 and opened it again; the device has not closed it yet.
    pub(crate) fn closing_reopen() -> Self {
        let mut root = Self::closing();
        assert_eq!(root.open(1, 8, 5), [""; 0]);
        root
    }

    /// RESCIND was sent for channel 1, which was closed.
    pub(crate) fn revoked() -> Self {
        let mut root = Self::closed();
        assert_eq!(root.rescind(1), ["RESCIND 1"]);
        root
    }

    /// RESCIND was sent for channel 1 and its device is back.
    pub(crate) fn reoffered() -> Self {
        let mut root = Self::revoked();
        assert_eq!(root.offer(1), [""; 0]);
        root
    }

    pub(crate) fn state(&self) -> ChannelState {
        self.server.channels().next().expect("there is a device").state
    }

    pub(crate) fn connect(&mut self, version: Version) {
        self.contact(version);
        assert_eq!(self.server.connection().map(|connection| connection.version), Some(version));
    }

    pub(crate) fn contact(&mut self, version: Version) -> Vec<String> {
        self.version = version;
        let contact = InitiateContact {
            version: U32::new(version.word()),
            interrupt_page_or_target: if version.is_multi_client() {
                InitiateContact::target(2, 0, self.features)
            } else {
                U64::ZERO
            },
            ..Default::default()
        };
        let connection_id = if version.is_multi_client() { 4 } else { 1 };
        self.say_on(connection_id, contact)
    }

    /// The guest posts a message; what the server does about it.
    pub(crate) fn say<'a>(&mut self, message: impl Into<Message<'a>>) -> Vec<String> {
        self.say_on(1, message)
    }

    pub(crate) fn say_on<'a>(&mut self, connection_id: u32, message: impl Into<Message<'a>>) -> Vec<String> {
        let payload = message.into().encode(self.version, self.features);
        self.input(ServerInput::Message { connection_id, payload: &payload })
    }

    pub(crate) fn offer(&mut self, device: u64) -> Vec<String> {
        let offer = OfferParams::new(CLASS, Guid::from_wire([device as u8; 16]));
        self.input(ServerInput::Offer { device: DeviceKey(device), offer })
    }

    pub(crate) fn rescind(&mut self, device: u64) -> Vec<String> {
        self.input(ServerInput::Rescind { device: DeviceKey(device) })
    }

    /// The guest sends all messages of a page list of four pages.
    pub(crate) fn share(&mut self, relid: u32, gpadl: u32) -> Vec<String> {
        self.share_pages(relid, gpadl, 4)
    }

    pub(crate) fn share_pages(&mut self, relid: u32, gpadl: u32, pages: u32) -> Vec<String> {
        let list = page_list(pages);
        list.messages(relid, gpadl).flat_map(|message| self.say(message)).collect()
    }

    pub(crate) fn open(&mut self, relid: u32, open_id: u32, ring_gpadl: u32) -> Vec<String> {
        self.say(open_message(relid, open_id, ring_gpadl))
    }

    pub(crate) fn close(&mut self, relid: u32) -> Vec<String> {
        self.say(CloseChannel { relid: U32::new(relid) })
    }

    pub(crate) fn teardown(&mut self, relid: u32, gpadl: u32) -> Vec<String> {
        self.say(GpadlTeardown { relid: U32::new(relid), gpadl: U32::new(gpadl) })
    }

    pub(crate) fn release(&mut self, relid: u32) -> Vec<String> {
        self.say(RelidReleased { relid: U32::new(relid) })
    }

    pub(crate) fn device_opened(&mut self, relid: u32) -> Vec<String> {
        self.input(ServerInput::Opened { relid, result: Ok(()) })
    }

    pub(crate) fn device_refused(&mut self, relid: u32) -> Vec<String> {
        self.input(ServerInput::Opened { relid, result: Err(Status::DEVICE_BUSY) })
    }

    pub(crate) fn device_closed(&mut self, relid: u32) -> Vec<String> {
        self.input(ServerInput::Closed { relid })
    }

    pub(crate) fn device_let_go(&mut self, relid: u32, gpadl: u32) -> Vec<String> {
        self.input(ServerInput::GpadlReleased { relid, gpadl })
    }

    /// Answers the oldest question.
    pub(crate) fn decide(&mut self, answer: Answer) -> Vec<String> {
        let (id, _) = self.asked.remove(0);
        self.input(ServerInput::Decided { id, answer })
    }

    pub(crate) fn input(&mut self, input: ServerInput<'_>) -> Vec<String> {
        self.server.handle(input);
        self.lines()
    }

    /// What the server does meanwhile.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(action) = self.server.poll_action() {
            lines.extend(self.act(action));
        }
        lines
    }

    /// Does what the server wants, as far as the test left that to us; otherwise tells it.
    fn act(&mut self, action: ServerAction) -> Option<String> {
        let devices = self.answers == Answers::All;
        let line = describe(&action, self.version, self.features);
        match action {
            ServerAction::Ask { id, .. } if self.answers != Answers::None => {
                self.server.handle(ServerInput::Decided { id, answer: Answer::Allow });
                return None;
            }
            ServerAction::Ask { id, question } => self.asked.push((id, question)),
            ServerAction::Open { relid, open, .. } => {
                self.opens.push(open);
                if devices {
                    self.server.handle(ServerInput::Opened { relid, result: Ok(()) });
                }
            }
            ServerAction::Close { relid, .. } if devices => self.server.handle(ServerInput::Closed { relid }),
            ServerAction::ReleaseGpadl { relid, gpadl, .. } if devices => {
                self.server.handle(ServerInput::GpadlReleased { relid, gpadl });
            }
            ServerAction::Fault(fault) => self.faults.push(fault),
            ServerAction::Connected(_) => return None,
            ServerAction::Send { .. }
            | ServerAction::Close { .. }
            | ServerAction::Gpadl { .. }
            | ServerAction::ReleaseGpadl { .. }
            | ServerAction::Reattach { .. }
            | ServerAction::Retarget { .. }
            | ServerAction::Released { .. }
            | ServerAction::Declined { .. }
            | ServerAction::MonitorPages(_)
            | ServerAction::Disconnected
            | ServerAction::Connect(_) => {}
        }
        Some(line)
    }
}

pub(crate) fn page_list(pages: u32) -> PageRanges {
    PageRanges::single(0, pages * 4096, 0..u64::from(pages)).unwrap()
}

/// Opens rings of two pages each.
pub(crate) fn open_message(relid: u32, open_id: u32, ring_gpadl: u32) -> OpenChannel {
    OpenChannel {
        relid: U32::new(relid),
        open_id: U32::new(open_id),
        ring_gpadl: U32::new(ring_gpadl),
        downstream_page_offset: U32::new(2),
        target_vp: U32::new(3),
        ..Default::default()
    }
}

/// One line for one action.
pub(crate) fn describe(action: &ServerAction, version: Version, features: FeatureFlags) -> String {
    match action {
        ServerAction::Send { vp, sint, payload } => {
            let mut line = describe_message(payload, version, features);
            if (*vp, *sint) != (0, 2) {
                write!(line, " to {vp}/{sint}").unwrap();
            }
            line
        }
        ServerAction::Ask { question, .. } => match question {
            Question::Version { version, .. } => format!("ask version {version}"),
            Question::Offer { device } => format!("ask offer {}", device.0),
            Question::Share { relid, gpadl, pages, .. } => format!("ask share {relid}/{gpadl} {pages} pages"),
            Question::Open { relid, open_id, .. } => format!("ask open {relid} {open_id}"),
        },
        ServerAction::Open { relid, .. } => format!("open {relid}"),
        ServerAction::Close { relid, .. } => format!("close {relid}"),
        ServerAction::Gpadl { relid, gpadl, .. } => format!("gpadl {relid}/{gpadl}"),
        ServerAction::ReleaseGpadl { relid, gpadl, .. } => format!("release {relid}/{gpadl}"),
        ServerAction::Reattach { relid, .. } => format!("reattach {relid}"),
        ServerAction::Retarget { relid, vp, .. } => format!("retarget {relid} to {vp}"),
        ServerAction::Declined { device } => format!("declined {}", device.0),
        ServerAction::Released { device } => format!("released {}", device.0),
        ServerAction::Connected(connection) => format!("connected {}", connection.version),
        ServerAction::MonitorPages(pages) => format!("monitor pages {}", pages.is_some()),
        ServerAction::Disconnected => "disconnected".into(),
        ServerAction::Connect(_) => "connect".into(),
        ServerAction::Fault(fault) => match fault.whose() {
            Whose::Peer => "fault of the guest".into(),
            Whose::Ours => "fault of ours".into(),
        },
    }
}

fn describe_message(payload: &[u8], version: Version, features: FeatureFlags) -> String {
    let ok = |status: U32| if status.get() == 0 { "ok" } else { "failed" };
    match Message::parse(payload, Direction::ToGuest, Some((version, features))).unwrap() {
        Message::OfferChannel(m) => format!("OFFER {}", m.relid),
        Message::RescindChannelOffer(m) => format!("RESCIND {}", m.relid),
        Message::AllOffersDelivered(_) => "ALL OFFERS".into(),
        Message::OpenChannelResult(m) => format!("RESULT {} open {} {}", m.relid, m.open_id, ok(m.status)),
        Message::GpadlCreated(m) => format!("CREATED {}/{} {}", m.relid, m.gpadl, ok(m.status)),
        Message::GpadlTorndown(m) => format!("TORNDOWN {}", m.gpadl),
        Message::VersionResponse(m) => match (m.supported, m.connection_state) {
            (0, 0) => "VERSION not supported".into(),
            (1, 0) => "VERSION accepted".into(),
            (_, state) => format!("VERSION state {state}"),
        },
        Message::UnloadResponse(_) => "UNLOADED".into(),
        Message::CloseReservedResponse(m) => format!("RESERVED CLOSED {}", m.relid),
        Message::ModifyChannelResponse(m) => format!("MODIFIED {} {}", m.relid, ok(m.status)),
        Message::ModifyConnectionResponse(m) => format!("CONNECTION MODIFIED {}", m.connection_state),
        Message::TlConnectResult(m) => format!("CONNECT REFUSED {:#x}", m.status),
        Message::PauseResponse(_) => "PAUSED".into(),
        other => panic!("a server does not send {other:?}"),
    }
}
