//! The client alone: its own policy, calls out of place, answers that come late.

use vmbus_core::client::*;
use vmbus_core::message::*;
use vmbus_core::server::ServerConfig;
use vmbus_core::{FeatureFlags, Guid, Status, Version};
use zerocopy::little_endian::U32;

use crate::pair::{Pair, open_request};
use crate::root::{CLASS, page_list};

/// A client, and what it has posted and reported since the last look, one line each.
pub(crate) struct Guest {
    pub(crate) client: Client,
    pub(crate) version: Version,
}

impl Guest {
    fn connected(policy: Policy) -> Self {
        let mut guest = Self {
            client: Client::new(ClientConfig { policy, ..Default::default() }),
            version: Version::Iron,
        };
        guest.client.connect(Version::Iron..=Version::Iron).unwrap();
        if policy == Policy::Ask {
            guest.client.decided(AskId(1), Answer::Allow);
        }
        guest.hear(VersionResponse {
            supported: 1,
            version_or_connection_id: U32::new(4),
            ..Default::default()
        });
        guest.client.request_offers().unwrap();
        guest.lines();
        guest
    }

    /// Of this version.
    pub(crate) fn connected_with(version: Version) -> Self {
        let mut guest = Self { client: Client::new(ClientConfig::default()), version };
        guest.client.connect(version..=version).unwrap();
        let connection_id = U32::new(4);
        guest.hear(VersionResponse {
            supported: 1,
            version_or_connection_id: connection_id,
            ..Default::default()
        });
        guest.client.request_offers().unwrap();
        guest.lines();
        guest
    }

    /// Channel 1 is offered.
    fn offered() -> Self {
        let mut guest = Self::connected(Policy::AllowAll);
        assert_eq!(guest.hear(offer(1)), ["offered 1"]);
        guest
    }

    /// Channel 1 has page list 1.
    fn shared() -> Self {
        let mut guest = Self::offered();
        assert_eq!(guest.client.create_gpadl(1, &page_list(4)), Ok(1));
        assert_eq!(guest.lines(), ["GPADL_HEADER"]);
        assert_eq!(guest.hear(created(1, 1, 0)), ["created 1 ok"]);
        guest
    }

    pub(crate) fn opened() -> Self {
        let mut guest = Self::shared();
        assert_eq!(guest.client.open(1, open_request(1)), Ok(1));
        assert_eq!(guest.lines(), ["OPENCHANNEL"]);
        assert_eq!(guest.hear(result(1, 1, 0)), ["opened 1 ok"]);
        guest
    }

    pub(crate) fn hear<'a>(&mut self, message: impl Into<Message<'a>>) -> Vec<String> {
        let payload = message.into().encode(self.version, FeatureFlags::empty());
        self.client.handle_message(&payload);
        self.lines()
    }

    pub(crate) fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(action) = self.client.poll_action() {
            lines.push(describe(&action));
        }
        lines
    }
}

fn describe(action: &ClientAction) -> String {
    let end = |result: &Result<(), Failure>| match result {
        Ok(()) => "ok".to_owned(),
        Err(failure) => format!("{failure:?}").split('(').next().unwrap().to_lowercase(),
    };
    match action {
        ClientAction::Post { payload, .. } => {
            Message::parse(payload, Direction::ToHost, None).unwrap().info().name.into()
        }
        ClientAction::Ask { question, .. } => match question {
            Question::Version { version, .. } => format!("ask version {version}"),
            Question::Offer(offer) => format!("ask offer {}", offer.relid),
            Question::Share { gpadl, pages, .. } => format!("ask share {gpadl} {pages} pages"),
            Question::Open { relid, .. } => format!("ask open {relid}"),
        },
        ClientAction::Offered(offer) => format!("offered {}", offer.relid),
        ClientAction::Rescinded { relid } => format!("rescinded {relid}"),
        ClientAction::GpadlCreated { gpadl, result, .. } => format!("created {gpadl} {}", end(result)),
        ClientAction::GpadlTorndown { gpadl } => format!("torn down {gpadl}"),
        ClientAction::Opened { open_id, result, .. } => format!("opened {open_id} {}", end(result)),
        ClientAction::Modified { relid, result } => format!("modified {relid} {}", end(result)),
        ClientAction::ReservedClosed { relid, result } => format!("reserved closed {relid} {}", end(result)),
        ClientAction::MonitorPagesModified(result) => format!("monitor pages {}", end(result)),
        ClientAction::Fault(_) => "fault of the host".into(),
        ClientAction::Connected(_) => "connected".into(),
        ClientAction::ConnectFailed(failure) => format!("connect failed: {failure}"),
        ClientAction::AllOffersDelivered => "all offers".into(),
        ClientAction::ConnectRefused { .. } => "connect refused".into(),
        ClientAction::Paused => "paused".into(),
        ClientAction::Unloaded => "unloaded".into(),
    }
}

pub(crate) fn offer(relid: u32) -> OfferChannel {
    OfferChannel { relid: U32::new(relid), connection_id: U32::new(0x2000 + relid), ..Default::default() }
}

pub(crate) fn created(relid: u32, gpadl: u32, status: u32) -> GpadlCreated {
    GpadlCreated { relid: U32::new(relid), gpadl: U32::new(gpadl), status: U32::new(status) }
}

pub(crate) fn result(relid: u32, open_id: u32, status: u32) -> OpenChannelResult {
    OpenChannelResult { relid: U32::new(relid), open_id: U32::new(open_id), status: U32::new(status) }
}

pub(crate) fn rescind(relid: u32) -> RescindChannelOffer {
    RescindChannelOffer { relid: U32::new(relid) }
}

const FAULT: [&str; 1] = ["fault of the host"];
const NOTHING: [&str; 0] = [];

#[test]
fn our_policy_is_asked_before_anything_is_done() {
    let mut client = Client::new(ClientConfig { policy: Policy::Ask, ..Default::default() });
    client.connect(Version::Win10Rs5..=Version::Iron).unwrap();
    let mut guest = Guest { client, version: Version::Win10Rs5 };
    assert_eq!(guest.lines(), ["ask version 5.3"]);
    guest.client.decided(AskId(1), Answer::Deny(Status::ACCESS_DENIED));
    assert_eq!(guest.lines(), ["ask version 5.2"]);
    guest.client.decided(AskId(2), Answer::Allow);
    assert_eq!(guest.lines(), ["INITIATE_CONTACT"]);
    let accepted =
        VersionResponse { supported: 1, version_or_connection_id: U32::new(4), ..Default::default() };
    assert_eq!(guest.hear(accepted), ["connected"]);
    guest.client.request_offers().unwrap();
    assert_eq!(guest.lines(), ["REQUESTOFFERS"]);
    assert_eq!(guest.hear(offer(1)), ["ask offer 1"]);
    assert_eq!(guest.hear(offer(2)), ["ask offer 2"]);
    assert_eq!(guest.hear(AllOffersDelivered {}), NOTHING, "not before both are decided");
    guest.client.decided(AskId(3), Answer::Allow);
    guest.client.decided(AskId(4), Answer::Deny(Status::ACCESS_DENIED));
    assert_eq!(guest.lines(), ["offered 1", "RELID_RELEASED", "all offers"]);
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    assert_eq!(guest.lines(), ["ask share 1 4 pages"]);
    guest.client.decided(AskId(5), Answer::Allow);
    assert_eq!(guest.lines(), ["GPADL_HEADER"]);
    assert_eq!(guest.hear(created(1, 1, 0)), ["created 1 ok"]);
    guest.client.open(1, open_request(1)).unwrap();
    assert_eq!(guest.lines(), ["ask open 1"]);
    guest.client.decided(AskId(6), Answer::Deny(Status::ACCESS_DENIED));
    assert_eq!(guest.lines(), ["opened 1 denied"]);
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest.client.decided(AskId(7), Answer::Deny(Status::ACCESS_DENIED));
    assert_eq!(guest.lines(), ["ask share 2 4 pages", "created 2 denied"]);
}

#[test]
fn a_rescind_takes_questions_back() {
    let mut guest = Guest::connected(Policy::Ask);
    assert_eq!(guest.hear(offer(1)), ["ask offer 1"]);
    assert_eq!(guest.hear(rescind(1)), ["RELID_RELEASED"], "nobody was told of it");
    guest.client.decided(AskId(2), Answer::Allow);
    assert_eq!(guest.lines(), NOTHING);
    guest.hear(offer(1));
    guest.client.decided(AskId(3), Answer::Allow);
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    assert_eq!(guest.lines(), ["offered 1", "ask share 1 4 pages"]);
    assert_eq!(guest.hear(rescind(1)), ["created 1 rescinded", "rescinded 1"]);
    guest.client.decided(AskId(4), Answer::Allow);
    assert_eq!(guest.lines(), NOTHING);
}

#[test]
fn a_rescind_ends_everything_under_way() {
    let mut guest = Guest::shared();
    guest.client.create_gpadl(1, &page_list(100)).unwrap();
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest.lines();
    guest.hear(created(1, 3, 0));
    guest.client.teardown_gpadl(1, 3).unwrap();
    guest.client.open(1, open_request(1)).unwrap();
    guest.lines();
    let ended = ["opened 1 rescinded", "created 2 rescinded", "torn down 3", "rescinded 1"];
    assert_eq!(guest.hear(rescind(1)), ended);
    assert_eq!(guest.hear(rescind(1)), NOTHING, "twice");
    assert_eq!(guest.hear(created(1, 2, 0)), NOTHING, "its answer crossed the rescind");
    let torndown = GpadlTorndown { gpadl: U32::new(3) };
    assert_eq!(guest.hear(torndown), NOTHING);
    guest.client.release(1).unwrap();
    assert_eq!(guest.lines(), ["RELID_RELEASED"]);
    assert_eq!(guest.client.release(1), Err(ClientError::NoChannel(1)), "released once");
    assert_eq!(guest.hear(rescind(1)), NOTHING, "unknown channels are ignored");
    assert_eq!(guest.hear(offer(1)), ["offered 1"], "the id is free for another offer");
}

#[test]
fn a_modify_under_way_ends_with_the_rescind() {
    let mut guest = Guest::opened();
    guest.client.modify(1, 3).unwrap();
    guest.lines();
    assert_eq!(guest.hear(rescind(1)), ["modified 1 rescinded", "rescinded 1"]);
}

#[test]
fn an_open_that_is_given_up_is_closed_when_it_succeeds() {
    let mut guest = Guest::shared();
    guest.client.open(1, open_request(1)).unwrap();
    guest.client.close(1).unwrap();
    assert_eq!(guest.lines(), ["OPENCHANNEL"], "no close before the result");
    assert_eq!(guest.hear(result(1, 1, 0)), ["CLOSECHANNEL", "opened 1 cancelled"]);
    guest.client.open(1, open_request(1)).unwrap();
    guest.client.close(1).unwrap();
    guest.lines();
    assert_eq!(guest.hear(result(1, 2, 1)), ["opened 2 cancelled"], "nothing to close");
}

#[test]
fn a_list_that_is_given_up_is_torn_down_when_it_is_created() {
    let mut guest = Guest::offered();
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest.client.teardown_gpadl(1, 1).unwrap();
    assert_eq!(guest.lines(), ["GPADL_HEADER"]);
    assert_eq!(guest.hear(created(1, 1, 0)), ["created 1 cancelled", "GPADL_TEARDOWN"]);
    assert_eq!(guest.hear(GpadlTorndown { gpadl: U32::new(1) }), ["torn down 1"]);
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest.client.teardown_gpadl(1, 2).unwrap();
    guest.lines();
    assert_eq!(guest.hear(created(1, 2, 1)), ["created 2 refused", "torn down 2"]);
}

#[test]
fn answers_that_nothing_asked_for_are_faults_without_effect() {
    let mut guest = Guest::opened();
    for message in [
        Message::from(result(1, 1, 0)),
        result(2, 1, 0).into(),
        created(1, 99, 0).into(),
        created(1, 1, 0).into(),
        GpadlTorndown { gpadl: U32::new(1) }.into(),
        GpadlTorndown { gpadl: U32::new(0) }.into(),
        ModifyChannelResponse { relid: U32::new(1), ..Default::default() }.into(),
        VersionResponse { supported: 1, ..Default::default() }.into(),
        CloseReservedResponse { relid: U32::new(1) }.into(),
        offer(1).into(),
        offer(0).into(),
        offer(2048).into(),
        OfferChannel { monitor_allocated: 1, monitor_id: 128, ..offer(2) }.into(),
        OfferChannel { connection_id: U32::new(1 << 24), ..offer(2) }.into(),
        Message::from(Unload {}),
    ] {
        assert_eq!(guest.hear(message), FAULT, "{message:?}");
    }
    assert_eq!(guest.hear(AllOffersDelivered {}), ["all offers"]);
    assert_eq!(guest.hear(AllOffersDelivered {}), FAULT);
    assert_eq!(guest.client.channels().next().unwrap().state, ChannelState::Open);
}

#[test]
fn an_answer_with_another_open_id_is_not_ours() {
    let mut guest = Guest::shared();
    guest.client.open(1, open_request(1)).unwrap();
    guest.lines();
    assert_eq!(guest.hear(result(1, 7, 0)), FAULT);
    assert_eq!(guest.hear(result(1, 1, 0x8000_ffff)), ["opened 1 refused"]);
}

#[test]
fn calls_out_of_place_say_why_and_post_nothing() {
    use ClientError::*;
    let mut idle = Client::new(ClientConfig::default());
    let not_connected = Connection("not connected");
    assert_eq!(idle.request_offers(), Err(not_connected));
    assert_eq!(idle.unload(), Err(not_connected));
    assert_eq!(idle.close(1), Err(not_connected));
    let empty = Version::Iron..=Version::V1;
    assert_eq!(idle.connect(empty), Err(NoVersion));
    idle.connect(Version::V1..=Version::V1).unwrap();
    assert_eq!(idle.connect(Version::V1..=Version::V1), Err(Connection("connecting")));

    let mut guest = Guest::opened();
    let state = |state| Err(ChannelState { relid: 1, state });
    assert_eq!(guest.client.request_offers(), Err(Connection("offers were requested before")));
    assert_eq!(
        guest.client.open(1, open_request(1)),
        Err(ChannelState { relid: 1, state: vmbus_core::client::ChannelState::Open })
    );
    assert_eq!(guest.client.open(9, open_request(1)), Err(NoChannel(9)));
    assert_eq!(guest.client.teardown_gpadl(1, 1), Err(GpadlInUse(1)));
    assert_eq!(guest.client.teardown_gpadl(1, 7), Err(NoGpadl(7)));
    assert_eq!(guest.client.release(1), state(vmbus_core::client::ChannelState::Open));
    assert_eq!(guest.client.pause(), Err(NotNegotiated(Version::Iron)));
    assert_eq!(guest.client.modify_connection(None), Err(NotNegotiated(Version::Iron)));
    guest.client.close(1).unwrap();
    assert_eq!(guest.lines(), ["CLOSECHANNEL"]);
    assert_eq!(guest.client.close(1), state(vmbus_core::client::ChannelState::Closed));
    assert_eq!(guest.client.modify(1, 1), state(vmbus_core::client::ChannelState::Closed));
    assert_eq!(guest.client.release(1), Err(GpadlsLeft(1)));
    assert_eq!(guest.client.open(1, open_request(3)), Err(NoGpadl(3)));
    let chosen = SignalParameters { connection_id: 1, event_flag: 1 };
    let request = OpenRequest { signals: Some(chosen), ..open_request(1) };
    assert_eq!(guest.client.open(1, request), Err(NotNegotiated(Version::Iron)));
    assert_eq!(guest.lines(), NOTHING);
}

#[test]
fn a_host_that_cannot_connect_is_not_asked_for_older_versions() {
    let mut client = Client::new(ClientConfig::default());
    client.connect(Version::OLDEST..=Version::Iron).unwrap();
    let mut guest = Guest { client, version: Version::Iron };
    let failed = VersionResponse { supported: 1, connection_state: 1, ..Default::default() };
    guest.lines();
    assert_eq!(guest.hear(failed), ["connect failed: the host cannot connect, its connection state is 1"]);
}

#[test]
fn before_win8_the_connection_state_is_rubbish() {
    let mut client = Client::new(ClientConfig::default());
    client.connect(Version::Win7..=Version::Win7).unwrap();
    let mut guest = Guest { client, version: Version::Win7 };
    guest.lines();
    let accepted = VersionResponse { supported: 1, connection_state: 0xcc, ..Default::default() };
    assert_eq!(guest.hear(accepted), ["connected"]);
}

#[test]
fn an_impossible_message_connection_is_a_fault_and_the_next_version_is_tried() {
    let mut client = Client::new(ClientConfig::default());
    client.connect(Version::Win10Rs3..=Version::Win10Rs3_1).unwrap();
    let mut guest = Guest { client, version: Version::Iron };
    guest.lines();
    let nowhere = VersionResponse { supported: 1, ..Default::default() };
    assert_eq!(guest.hear(nowhere), ["fault of the host", "INITIATE_CONTACT"]);
    assert_eq!(guest.hear(nowhere), ["connected"], "before 5.0 there is no such field");
}

#[test]
fn unload_and_reset_end_everything_under_way() {
    for unload in [true, false] {
        let mut guest = Guest::shared();
        guest.client.create_gpadl(1, &page_list(4)).unwrap();
        guest.client.open(1, open_request(1)).unwrap();
        guest.lines();
        if unload {
            guest.client.unload().unwrap();
            assert_eq!(guest.lines(), ["UNLOAD"]);
            assert_eq!(guest.hear(result(1, 1, 0)), NOTHING, "too late");
            assert_eq!(
                guest.client.connect(Version::V1..=Version::V1),
                Err(ClientError::Connection("unloading"))
            );
            let ended = ["opened 1 disconnected", "created 2 disconnected", "unloaded"];
            assert_eq!(guest.hear(UnloadResponse {}), ended);
        } else {
            guest.client.reset();
            assert_eq!(guest.lines(), ["opened 1 disconnected", "created 2 disconnected"]);
        }
        guest.client.connect(Version::V1..=Version::V1).unwrap();
        assert_eq!(guest.lines(), ["INITIATE_CONTACT"]);
    }
}

#[test]
fn before_3_0_nobody_waits_for_the_end_of_an_unload() {
    for version in Version::ALL {
        let mut pair = Pair::connected(1, version);
        pair.take_events();
        pair.unload();
        let at_once = version < Version::Win8_1;
        assert_eq!(pair.take_events().len(), usize::from(at_once), "{version}");
        pair.run();
        assert_eq!(pair.take_events().len(), usize::from(!at_once), "{version}");
    }
}

#[test]
fn pause_resume_monitor_pages_and_hvsock_between_both_ends() {
    let server = ServerConfig::default();
    let config = ClientConfig { client_id: Some(CLASS), ..Default::default() };
    let mut pair = Pair::new(1, server, config);
    pair.client.connect(Version::OLDEST..=Version::NEWEST).unwrap();
    pair.run();
    assert_eq!(pair.server.connection().unwrap().client_id, Some(CLASS));
    pair.client.request_offers().unwrap();
    pair.run();
    pair.take_events();

    pair.client.pause().unwrap();
    assert_eq!(pair.client.resume(), Err(ClientError::Connection("not paused")));
    pair.run();
    pair.offer(1);
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::Paused]));
    assert_eq!(pair.client.request_offers(), Err(ClientError::Connection("paused")));
    pair.client.resume().unwrap();
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::Offered(_)]));

    let pages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
    pair.client.modify_connection(Some(pages)).unwrap();
    assert!(pair.client.modify_connection(None).is_err(), "one at a time");
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::MonitorPagesModified(Ok(()))]));
    assert_eq!(pair.server.connection().unwrap().monitor_pages, Some(pages));

    let request = ConnectRequest { endpoint: CLASS, service: CLASS, silo: Guid::ZERO };
    pair.client.connect_service(request).unwrap();
    pair.run();
    let result = Err(Status::CONNECTION_REFUSED);
    pair.input(vmbus_core::server::ServerInput::ConnectResult { request, result });
    pair.run();
    let [ClientAction::ConnectRefused { request: refused, failure }] = pair.take_events()[..] else {
        panic!("refused once")
    };
    assert_eq!((refused, failure), (request, Failure::Refused(Status::CONNECTION_REFUSED)));
}

#[test]
fn signals_of_our_choice_reach_the_host() {
    let mut pair = Pair::connected(1, Version::Copper);
    pair.offer(1);
    pair.run();
    let gpadl = pair.create_gpadl(1).unwrap();
    pair.run();
    let signals = SignalParameters { connection_id: 0x1234, event_flag: 55 };
    let request = OpenRequest { signals: Some(signals), ..open_request(gpadl) };
    let open_id = pair.client.open(1, request).unwrap();
    pair.books.opens.insert(open_id, 1);
    pair.run();
    let open = pair.actions.iter().find_map(|action| match action {
        vmbus_core::server::ServerAction::Open { open, .. } => Some(open),
        _ => None,
    });
    let open = open.expect("it was opened");
    assert_eq!((open.connection_id, open.event_flag, open.target_vp), (0x1234, 55, 1));
}

crate::coverage::stories! {
    our_policy_is_asked_before_anything_is_done
    a_rescind_takes_questions_back
    a_rescind_ends_everything_under_way
    a_modify_under_way_ends_with_the_rescind
    an_open_that_is_given_up_is_closed_when_it_succeeds
    a_list_that_is_given_up_is_torn_down_when_it_is_created
    answers_that_nothing_asked_for_are_faults_without_effect
    an_answer_with_another_open_id_is_not_ours
    calls_out_of_place_say_why_and_post_nothing
    a_host_that_cannot_connect_is_not_asked_for_older_versions
    before_win8_the_connection_state_is_rubbish
    an_impossible_message_connection_is_a_fault_and_the_next_version_is_tried
    unload_and_reset_end_everything_under_way
    before_3_0_nobody_waits_for_the_end_of_an_unload
    pause_resume_monitor_pages_and_hvsock_between_both_ends
    signals_of_our_choice_reach_the_host
}
