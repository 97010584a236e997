//! A host that follows no rule against the guest's state machine. Whatever the guest began must end once.

use std::collections::{BTreeSet, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::client::{
    AnswerSlot, Client, ClientAction, ClientConfig, ConnectFailure, Fault, OpenRequest, Policy,
    ReservedOpenRequest,
};
use vmbus_core::message::{
    AllOffersDelivered, CloseReservedResponse, Direction, GpadlCreated, GpadlTorndown, Message,
    ModifyChannelResponse, OfferChannel, OpenChannelResult, Payload, RescindChannelOffer, VersionResponse,
};
use vmbus_core::pages::PageRanges;
use vmbus_core::server::{Answer, AskId, Whose};
use vmbus_core::{FeatureFlags, Status, Version};
use zerocopy::little_endian::U32;

pub(crate) const MAX_STEPS: usize = 400;

/// Plays the conversation that the bytes describe, then ends it and looks for what is left.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let asks = bool::arbitrary(&mut input).unwrap_or_default();
    let mut guest = Guest::new(if asks { Policy::Ask } else { Policy::AllowAll });
    if bool::arbitrary(&mut input).unwrap_or_default() {
        guest.begin();
    }
    for _ in 0..MAX_STEPS {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        guest.take(step);
        if input.is_empty() {
            break;
        }
    }
    guest.end();
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Step {
    // What the host does.
    Raw(Vec<u8>),
    Numbered { number: u8, words: Vec<u8> },
    Version { supported: bool, state: u8, connection_id: u8, features: u32 },
    Offer { relid: u8 },
    AllOffers,
    Rescind { relid: u8 },
    Created { which: u8, ok: bool },
    Torndown { which: u8 },
    Opened { which: u8, ok: bool },
    Modified { relid: u8, ok: bool },
    ReservedClosed { relid: u8 },
    NoSuchConnection { connection_id: u8 },
    // What the guest does.
    Connect { from: u8, to: u8 },
    RequestOffers,
    Share { relid: u8, pages: u8 },
    Teardown { which: u8 },
    Open { relid: u8, which: u8 },
    Close { relid: u8 },
    Modify { relid: u8 },
    OpenReserved { relid: u8, which: u8 },
    CloseReserved { relid: u8 },
    Release { relid: u8 },
    Decide { which: u8, allow: bool },
    Pause,
    Resume,
    Unload,
    Reset,
}

/// The client, and what its caller waits for.
pub(crate) struct Guest {
    pub(crate) client: Client,
    /// Messages that nobody has delivered.
    pub(crate) posted: VecDeque<(u32, Payload)>,
    /// What the host did wrong.
    pub(crate) faults: Vec<Fault>,
    pub(crate) asked: Vec<AskId>,
    last_asked: Option<AskId>,
    connecting: bool,
    creating: BTreeSet<(u32, u32)>,
    created: BTreeSet<(u32, u32)>,
    tearing_down: BTreeSet<(u32, u32)>,
    opening: BTreeSet<(u32, u32)>,
    modifying: BTreeSet<u32>,
    /// Reserved channels that are closed; a close that a given-up open needs is not begun by us.
    closing_reserved: BTreeSet<u32>,
}

impl Guest {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            client: Client::new(ClientConfig { policy, ..ClientConfig::default() }),
            posted: VecDeque::new(),
            faults: Vec::new(),
            asked: Vec::new(),
            last_asked: None,
            connecting: false,
            creating: BTreeSet::new(),
            created: BTreeSet::new(),
            tearing_down: BTreeSet::new(),
            opening: BTreeSet::new(),
            modifying: BTreeSet::new(),
            closing_reserved: BTreeSet::new(),
        }
    }

    /// Connected, with three channels offered and a page list on the first.
    pub(crate) fn begin(&mut self) {
        self.take(Step::Connect { from: 0, to: 10 });
        self.decide_all();
        self.take(Step::Version { supported: true, state: 0, connection_id: 4, features: u32::MAX });
        self.take(Step::RequestOffers);
        for relid in 1..4 {
            self.take(Step::Offer { relid });
        }
        self.take(Step::AllOffers);
        self.decide_all();
        self.take(Step::Share { relid: 1, pages: 4 });
        self.decide_all();
        self.take(Step::Created { which: 0, ok: true });
        assert_eq!(self.created.len(), 1, "with a host that does all right, pages are shared");
    }

    pub(crate) fn decide_all(&mut self) {
        while !self.asked.is_empty() {
            self.take(Step::Decide { which: 0, allow: true });
        }
    }

    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::Raw(payload) => self.client.handle_message(&payload),
            Step::Numbered { number, words } => {
                let mut payload = vec![number % 32, 0, 0, 0, 0, 0, 0, 0];
                payload.extend(words.iter().flat_map(|word| [*word, 0, 0, 0]));
                self.client.handle_message(&payload);
            }
            Step::Version { supported, state, connection_id, features } => self.say(VersionResponse {
                supported: supported.into(),
                connection_state: state,
                version_or_connection_id: U32::new(connection_id.into()),
                features: U32::new(features),
                ..Default::default()
            }),
            Step::Offer { relid } => self.say(OfferChannel { relid: small(relid), ..Default::default() }),
            Step::AllOffers => self.say(AllOffersDelivered {}),
            Step::Rescind { relid } => self.say(RescindChannelOffer { relid: small(relid) }),
            Step::Created { which, ok } => {
                let Some((relid, gpadl)) = nth(&self.creating, which) else { return };
                let (relid, gpadl) = (U32::new(relid), U32::new(gpadl));
                self.say(GpadlCreated { relid, gpadl, status: status(ok) });
            }
            Step::Torndown { which } => {
                let Some((_, gpadl)) = nth(&self.tearing_down, which) else { return };
                self.say(GpadlTorndown { gpadl: U32::new(gpadl) });
            }
            Step::Opened { which, ok } => {
                let Some((relid, open_id)) = nth(&self.opening, which) else { return };
                let (relid, open_id) = (U32::new(relid), U32::new(open_id));
                self.say(OpenChannelResult { relid, open_id, status: status(ok) });
            }
            Step::Modified { relid, ok } => {
                self.say(ModifyChannelResponse { relid: small(relid), status: status(ok) });
            }
            Step::ReservedClosed { relid } => self.say(CloseReservedResponse { relid: small(relid) }),
            Step::NoSuchConnection { connection_id } => {
                self.client.connection_refused(u32::from(connection_id % 8));
            }
            Step::Connect { from, to } => {
                let version = |index: u8| Version::ALL[usize::from(index) % Version::ALL.len()];
                self.connecting |= self.client.connect(version(from)..=version(to)).is_ok();
            }
            Step::RequestOffers => {
                let _ = self.client.request_offers();
            }
            Step::Share { relid, pages } => {
                let pages = u64::from(pages % 80).max(1);
                let list = PageRanges::single(0, pages as u32 * 4096, 0..pages).expect("a good list");
                let relid = small(relid).get();
                if let Ok(gpadl) = self.client.create_gpadl(relid, &list) {
                    assert!(self.creating.insert((relid, gpadl)), "a list's name is used twice");
                }
            }
            Step::Teardown { which } => {
                let lists = &self.creating | &self.created;
                let Some((relid, gpadl)) = nth(&lists, which) else { return };
                if !self.tearing_down.contains(&(relid, gpadl))
                    && self.client.teardown_gpadl(relid, gpadl).is_ok()
                {
                    self.tearing_down.insert((relid, gpadl));
                }
            }
            Step::Open { relid, which } => {
                let relid = small(relid).get();
                let of_channel = self.created.iter().filter(|(owner, _)| *owner == relid).copied().collect();
                let Some((_, ring_gpadl)) = nth(&of_channel, which) else { return };
                let request = OpenRequest { ring_gpadl, downstream_page: 2, ..OpenRequest::default() };
                if let Ok(open_id) = self.client.open(relid, request) {
                    assert!(self.opening.insert((relid, open_id)), "an open's number is used twice");
                }
            }
            Step::Close { relid } => {
                let _ = self.client.close(small(relid).get());
            }
            Step::Modify { relid } => {
                let relid = small(relid).get();
                if self.client.modify(relid, 1).is_ok() {
                    assert!(self.modifying.insert(relid), "a second modification before the first ended");
                }
            }
            Step::OpenReserved { relid, which } => {
                let relid = small(relid).get();
                let of_channel = self.created.iter().filter(|(owner, _)| *owner == relid).copied().collect();
                let Some((_, ring_gpadl)) = nth(&of_channel, which) else { return };
                let answers = AnswerSlot { vp: 0, sint: 2 };
                let request = ReservedOpenRequest { ring_gpadl, downstream_page: 2, answers };
                if self.client.open_reserved(relid, request).is_ok() {
                    assert!(self.opening.insert((relid, 0)), "a second open before the first ended");
                }
            }
            Step::CloseReserved { relid } => {
                let relid = small(relid).get();
                if self.client.close_reserved(relid).is_ok() {
                    self.closing_reserved.insert(relid);
                }
            }
            Step::Release { relid } => {
                let _ = self.client.release(small(relid).get());
            }
            Step::Decide { which, allow } => {
                if self.asked.is_empty() {
                    return;
                }
                let id = self.asked.swap_remove(usize::from(which) % self.asked.len());
                let answer = if allow { Answer::Allow } else { Answer::Deny(Status::ACCESS_DENIED) };
                self.client.decided(id, answer);
            }
            Step::Pause => {
                let _ = self.client.pause();
            }
            Step::Resume => {
                let _ = self.client.resume();
            }
            Step::Unload => {
                let _ = self.client.unload();
            }
            Step::Reset => self.client.reset(),
        }
        self.look();
    }

    fn say<'a>(&mut self, message: impl Into<Message<'a>>) {
        let features = FeatureFlags::from_bits_retain(u32::MAX);
        self.client.handle_message(&message.into().encode(Version::NEWEST, features));
    }

    pub(crate) fn look(&mut self) {
        while let Some(action) = self.client.poll_action() {
            self.act(action);
        }
        assert!(self.client.channels().count() <= 2047);
    }

    fn act(&mut self, action: ClientAction) {
        match action {
            ClientAction::Post { connection_id, payload } => {
                assert!((1..1 << 24).contains(&connection_id));
                let message = Message::parse(&payload, Direction::ToHost, None);
                assert!(message.is_ok(), "{payload:?} was posted");
                self.posted.push_back((connection_id, payload));
            }
            ClientAction::Ask { id, .. } => {
                assert!(self.last_asked < Some(id), "a question's name is used twice");
                self.last_asked = Some(id);
                self.asked.push(id);
            }
            ClientAction::Connected(connection) => {
                assert!(std::mem::take(&mut self.connecting), "connected without being asked to");
                assert_ne!(connection.message_connection_id, 0);
            }
            ClientAction::ConnectFailed(failure) => {
                assert!(std::mem::take(&mut self.connecting), "{failure} without being asked to connect");
                assert!(failure != ConnectFailure::Host(0));
            }
            ClientAction::GpadlCreated { relid, gpadl, result } => {
                assert!(
                    self.creating.remove(&(relid, gpadl)),
                    "the end of {gpadl} came twice or from nowhere"
                );
                if result.is_ok() {
                    self.created.insert((relid, gpadl));
                }
            }
            ClientAction::GpadlTorndown { gpadl } => {
                let list = self.tearing_down.iter().find(|(_, name)| *name == gpadl).copied();
                let list = list.expect("a list comes back once, and only when it was asked back");
                self.tearing_down.remove(&list);
                self.created.remove(&list);
            }
            ClientAction::Opened { relid, open_id, .. } => {
                assert!(self.opening.remove(&(relid, open_id)), "an open ended twice or never began");
            }
            ClientAction::Modified { relid, .. } => {
                // Before 5.3 it ends within the call.
                self.modifying.remove(&relid);
            }
            ClientAction::ReservedClosed { relid, .. } => {
                // One that a given-up open needs was not begun by us.
                self.closing_reserved.remove(&relid);
            }
            ClientAction::Rescinded { relid } => {
                assert!(!self.closing_reserved.contains(&relid), "the close of {relid} never ended");
                self.created.retain(|(owner, _)| *owner != relid);
                assert!(self.creating.iter().all(|(owner, _)| *owner != relid));
                assert!(self.tearing_down.iter().all(|(owner, _)| *owner != relid));
                assert!(self.opening.iter().all(|(owner, _)| *owner != relid));
                assert!(!self.modifying.contains(&relid));
            }
            ClientAction::Fault(fault) => {
                assert_eq!(fault.whose(), Whose::Peer);
                self.faults.push(fault);
            }
            ClientAction::Offered(_)
            | ClientAction::AllOffersDelivered
            | ClientAction::MonitorPagesModified(_)
            | ClientAction::ConnectRefused { .. }
            | ClientAction::Paused => {}
            ClientAction::Unloaded => self.assert_nothing_is_under_way(),
        }
    }

    /// A message that the host sent.
    pub(crate) fn hear(&mut self, payload: &[u8]) {
        self.client.handle_message(payload);
        self.look();
    }

    /// Resets the client: everything must have ended.
    pub(crate) fn end(mut self) {
        self.take(Step::Reset);
        assert_eq!(self.client.connection(), None);
        assert_eq!(self.client.channels().count(), 0);
        assert!(!self.connecting, "connecting neither succeeded nor failed");
        self.assert_nothing_is_under_way();
    }

    pub(crate) fn assert_nothing_is_under_way(&self) {
        assert!(self.creating.is_empty(), "{:?} were never created nor refused", self.creating);
        assert!(self.tearing_down.is_empty(), "{:?} never came back", self.tearing_down);
        assert!(self.opening.is_empty(), "{:?} never opened nor failed", self.opening);
        assert!(self.modifying.is_empty(), "{:?} were never modified", self.modifying);
    }
}

/// A channel id out of few.
fn small(relid: u8) -> U32 {
    U32::new((relid % 8).into())
}

fn status(ok: bool) -> U32 {
    U32::new(if ok { 0 } else { Status::FAILURE.0 })
}

/// The item that a small number means: modulo how many there are.
fn nth(items: &BTreeSet<(u32, u32)>, which: u8) -> Option<(u32, u32)> {
    items.iter().nth(usize::from(which) % items.len().max(1)).copied()
}
