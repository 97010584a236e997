//! Channels that a crash dump opens: answered where each request says, shut to everything else, open beyond UNLOAD.

use vmbus_core::Version;
use vmbus_core::client::{
    AnswerSlot, ChannelState as At, ClientAction, ClientConfig, ClientError, Failure, ReservedOpenRequest,
};
use vmbus_core::message::*;
use vmbus_core::server::*;
use zerocopy::little_endian::U32;

use crate::pair::{Pair, open_request};
use crate::root::{Answers, Root, page_list};

const FAULT: [&str; 1] = ["fault of the guest"];
const NOTHING: [&str; 0] = [];

fn open(ring_gpadl: u32) -> OpenReservedChannel {
    OpenReservedChannel {
        relid: U32::new(1),
        target_vp: U32::new(4),
        target_sint: U32::new(3),
        ring_gpadl: U32::new(ring_gpadl),
        downstream_page_offset: U32::new(2),
    }
}

fn close() -> CloseReservedChannel {
    CloseReservedChannel { relid: U32::new(1), target_vp: U32::new(6), target_sint: U32::new(5) }
}

/// Channel 1 is open-reserved on page list 5, and has page list 6 as well.
fn reserved() -> Root {
    let mut root = Root::shared();
    root.share(1, 6);
    assert_eq!(root.say(open(5)), ["open 1"]);
    assert_eq!(root.device_opened(1), ["RESULT 1 open 0 ok to 4/3"]);
    assert_eq!(root.state(), ChannelState::OpenReserved);
    root
}

#[test]
fn opens_and_closes_with_answers_where_the_requests_say() {
    let mut root = reserved();
    let open = &root.opens[0];
    assert!(open.reserved);
    assert_eq!(
        (open.target_vp, open.open_id, open.downstream_page),
        (u32::MAX, 0, 2),
        "no signals are wanted"
    );
    assert_eq!(root.say(close()), ["close 1"]);
    assert_eq!(root.state(), ChannelState::Closing);
    assert_eq!(root.device_closed(1), ["RESERVED CLOSED 1 to 6/5"]);
    assert_eq!(root.state(), ChannelState::Closed);
    assert_eq!(root.teardown(1, 5), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5"]);
}

#[test]
fn a_refusal_goes_where_the_request_says() {
    let mut root = Root::shared();
    assert_eq!(root.say(open(9)), [FAULT[0], "RESULT 1 open 0 failed to 4/3"], "no such page list");
    root.say(open(5));
    assert_eq!(root.device_refused(1), ["RESULT 1 open 0 failed to 4/3"]);
    root.answers = Answers::None;
    assert_eq!(root.say(open(5)), ["ask open 1 0"]);
    let denied = Answer::Deny(vmbus_core::Status::ACCESS_DENIED);
    assert_eq!(root.decide(denied), ["RESULT 1 open 0 failed to 4/3"]);
    assert_eq!(root.state(), ChannelState::Closed);
}

#[test]
fn everything_else_is_refused_while_it_is_open() {
    let mut root = reserved();
    let list = page_list(100);
    for _ in 0..2 {
        assert_eq!(root.close(1), FAULT);
        assert_eq!(root.open(1, 9, 5), FAULT);
        assert_eq!(root.say(open(5)), FAULT);
        assert_eq!(root.share(1, 7), [FAULT[0], "CREATED 1/7 failed"]);
        assert_eq!(root.teardown(1, 5), FAULT);
        assert_eq!(root.teardown(1, 6), FAULT);
        assert_eq!(root.release(1), FAULT);
        let modify = ModifyChannel { relid: U32::new(1), target_vp: U32::new(3) };
        assert_eq!(root.say(modify), [FAULT[0], "MODIFIED 1 failed"]);
        assert_eq!(root.state(), ChannelState::OpenReserved);
    }
    root.say(close());
    root.device_closed(1);
    assert_eq!(root.say(list.messages(1, 8).next().unwrap()), NOTHING, "now it is a channel as any other");
}

#[test]
fn a_list_that_was_begun_before_is_refused_when_it_is_complete() {
    let mut root = Root::shared();
    let list = page_list(100);
    let mut messages = list.messages(1, 8);
    root.say(messages.next().unwrap());
    root.say(open(5));
    root.device_opened(1);
    let lines: Vec<_> = messages.flat_map(|message| root.say(message)).collect();
    assert_eq!(lines, [FAULT[0], "CREATED 1/8 failed"]);
    assert_eq!(root.server.usage().half_built_gpadls, 0);
}

#[test]
fn a_channel_that_is_open_otherwise_is_not_closed_that_way() {
    let mut root = Root::opened();
    assert_eq!(root.say(close()), FAULT);
    assert_eq!(root.say(open(5)), FAULT);
    assert_eq!(root.state(), ChannelState::Open);
    root.close(1);
    assert_eq!(root.say(open(5)), NOTHING, "CLOSECHANNEL has no answer to wait for");
    assert_eq!(root.state(), ChannelState::ClosingReopen);
    assert_eq!(root.say(close()), FAULT);
    assert_eq!(root.device_closed(1), ["open 1"]);
    assert_eq!(root.device_opened(1), ["RESULT 1 open 0 ok to 4/3"]);
}

#[test]
fn unknown_channels_and_interrupt_sources_are_faults() {
    let mut root = reserved();
    assert_eq!(root.say(OpenReservedChannel { relid: U32::new(9), ..open(5) }), FAULT);
    assert_eq!(root.say(CloseReservedChannel { relid: U32::new(9), ..close() }), FAULT);
    for sint in [16, 255, 256, u32::MAX] {
        assert_eq!(root.say(OpenReservedChannel { target_sint: U32::new(sint), ..open(5) }), FAULT);
        assert_eq!(root.say(CloseReservedChannel { target_sint: U32::new(sint), ..close() }), FAULT);
    }
    assert_eq!(root.state(), ChannelState::OpenReserved);
}

#[test]
fn stays_open_when_the_guest_unloads_and_is_closed_without_a_connection() {
    let mut root = reserved();
    root.offer(2);
    root.share(2, 7);
    root.say(page_list(100).messages(2, 8).next().unwrap());
    assert_eq!(root.say(Unload {}), ["release 2/7"]);
    assert_eq!(root.device_let_go(2, 7), ["UNLOADED"], "its pages are still shared");
    assert_eq!(root.server.connection(), None);
    assert_eq!(root.state(), ChannelState::OpenReserved);
    assert_eq!(root.server.usage(), Usage { channels: 1, gpadls: 2, pages: 8, ..Usage::default() });
    assert_eq!(root.say(RequestOffers {}), FAULT);
    assert_eq!(root.share(1, 9), FAULT);
    assert_eq!(root.say(close()), ["close 1", "release 1/6"]);
    assert_eq!(root.say(close()), FAULT, "once");
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), NOTHING);
    let last = root.device_let_go(1, 6);
    assert_eq!(last, ["RESERVED CLOSED 1 to 6/5", "disconnected"], "nothing answers for the pages but this");
    assert_eq!(root.server.usage(), Usage::default());
    root.connect(Version::Iron);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "OFFER 2", "ALL OFFERS"]);
}

#[test]
fn is_closed_while_the_guest_unloads() {
    let mut root = reserved();
    root.offer(2);
    root.share(2, 7);
    root.say(Unload {});
    root.say(close());
    root.device_closed(1);
    root.device_let_go(1, 5);
    assert_eq!(root.device_let_go(1, 6), ["RESERVED CLOSED 1 to 6/5"]);
    assert_eq!(root.device_let_go(2, 7), ["disconnected", "UNLOADED"]);
}

#[test]
fn that_is_closing_when_the_guest_unloads_is_answered() {
    let mut root = reserved();
    root.say(close());
    assert_eq!(root.say(Unload {}), ["release 1/6"]);
    root.device_closed(1);
    root.device_let_go(1, 6);
    assert_eq!(root.device_let_go(1, 5), ["RESERVED CLOSED 1 to 6/5", "disconnected", "UNLOADED"]);
}

#[test]
fn ends_with_a_new_contact_and_with_a_reset() {
    for unloaded in [false, true] {
        let mut root = reserved();
        if unloaded {
            assert_eq!(root.say(Unload {}), ["UNLOADED"]);
        }
        let mut ended = root.contact(Version::Iron);
        ended.sort();
        assert_eq!(ended, ["close 1", "release 1/6"]);
        assert_eq!(root.say(close()), FAULT, "somebody else has the bus");
        root.device_let_go(1, 6);
        assert_eq!(root.device_closed(1), ["release 1/5"]);
        assert_eq!(root.device_let_go(1, 5), ["disconnected", "VERSION accepted"]);

        let mut root = reserved();
        if unloaded {
            root.say(Unload {});
        }
        root.answers = Answers::All;
        let lines = root.input(ServerInput::Reset);
        assert_eq!(lines.last().map(String::as_str), Some("disconnected"));
        assert_eq!(root.server.usage(), Usage::default());
    }
}

#[test]
fn a_contact_that_follows_its_close_sends_no_answer_for_it() {
    let mut root = reserved();
    root.say(close());
    root.contact(Version::Iron);
    root.device_let_go(1, 6);
    root.device_closed(1);
    assert_eq!(root.device_let_go(1, 5), ["disconnected", "VERSION accepted"]);
}

#[test]
fn is_rescinded_like_any_other_and_beyond_the_connection_without_a_word() {
    let mut root = reserved();
    assert_eq!(root.rescind(1), ["close 1", "release 1/6"]);
    assert_eq!(root.say(close()), NOTHING, "it crossed RESCIND");
    root.device_let_go(1, 6);
    root.device_closed(1);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
    assert_eq!(root.release(1), ["released 1"]);

    let mut root = reserved();
    root.say(Unload {});
    assert_eq!(root.rescind(1), ["close 1", "release 1/6"]);
    assert_eq!(root.say(close()), FAULT, "nobody can tell the guest why");
    root.device_let_go(1, 6);
    root.device_closed(1);
    assert_eq!(root.device_let_go(1, 5), ["released 1", "disconnected"]);
}

#[test]
fn a_pause_holds_its_answers_back_too() {
    let mut root = Root::new(ServerConfig::default());
    root.features = vmbus_core::FeatureFlags::PAUSE_RESUME;
    root.connect(Version::Copper);
    root.offer(1);
    root.say(RequestOffers {});
    root.share(1, 5);
    root.say(open(5));
    root.say(Pause {});
    assert_eq!(root.device_opened(1), NOTHING);
    assert_eq!(root.say(close()), FAULT);
    assert_eq!(root.say(Resume {}), ["RESULT 1 open 0 ok to 4/3"]);
}

/// Both ends; channel 1 is open-reserved.
fn pair() -> (Pair, u32) {
    let mut pair = Pair::connected(7, Version::Iron);
    pair.offer(1);
    pair.run();
    let gpadl = pair.create_gpadl(1).unwrap();
    pair.run();
    open_reserved(&mut pair, gpadl);
    pair.run();
    pair.take_events();
    (pair, gpadl)
}

fn open_reserved(pair: &mut Pair, ring_gpadl: u32) {
    let answers = AnswerSlot { vp: 0, sint: 2 };
    let request = ReservedOpenRequest { ring_gpadl, downstream_page: 2, answers };
    pair.client.open_reserved(1, request).unwrap();
    pair.books.reserved_opens.insert(1);
    pair.collect();
}

fn state(pair: &Pair) -> Option<At> {
    pair.client.channels().next().map(|channel| channel.state)
}

#[test]
fn a_guest_can_do_nothing_else_with_it() {
    let (mut pair, gpadl) = pair();
    let state = At::OpenReserved;
    let wrong = Err(ClientError::ChannelState { relid: 1, state });
    assert_eq!(pair.client.close(1), wrong);
    assert_eq!(pair.client.modify(1, 2), wrong);
    assert_eq!(pair.client.release(1), wrong);
    assert_eq!(pair.client.teardown_gpadl(1, gpadl), Err(ClientError::GpadlInUse(gpadl)));
    assert!(pair.client.create_gpadl(1, &page_list(4)).is_err());
    assert!(pair.client.open(1, open_request(gpadl)).is_err());
    pair.client.close_reserved(1).unwrap();
    assert!(pair.client.close_reserved(1).is_err(), "it is closing");
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::ReservedClosed { relid: 1, result: Ok(()) }]));
    pair.teardown(1, gpadl);
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::GpadlTorndown { .. }]));
    assert_eq!(pair.client.close_reserved(1).unwrap_err().to_string(), "channel 1 is closed");
}

#[test]
fn a_guest_opens_it_when_no_page_list_is_under_way() {
    let mut pair = Pair::connected(7, Version::Iron);
    pair.offer(1);
    pair.run();
    let ring_gpadl = pair.create_gpadl(1).unwrap();
    pair.run();
    let other = pair.create_gpadl(1).unwrap();
    let answers = AnswerSlot { vp: 0, sint: 2 };
    let request = ReservedOpenRequest { ring_gpadl, downstream_page: 2, answers };
    assert_eq!(pair.client.open_reserved(1, request), Err(ClientError::NoGpadl(other)));
    pair.run();
    open_reserved(&mut pair, ring_gpadl);
    assert!(pair.client.create_gpadl(1, &page_list(4)).is_err(), "while it opens");
    assert!(pair.client.teardown_gpadl(1, other).is_err());
    pair.run();
    assert_eq!(state(&pair), Some(At::OpenReserved));
}

#[test]
fn a_guest_that_unloads_keeps_it_and_closes_it_later() {
    let (mut pair, _) = pair();
    pair.offer(2);
    pair.run();
    pair.client.unload().unwrap();
    while pair.deliver_to_root() {}
    pair.collect();
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::Offered(_), ClientAction::Unloaded]));
    assert_eq!(state(&pair), Some(At::OpenReserved));
    assert_eq!(pair.client.channels().count(), 1, "others ended");
    assert_eq!(pair.server.usage().channels, 1);
    pair.client.close_reserved(1).unwrap();
    pair.run();
    assert!(matches!(pair.take_events()[..], [ClientAction::ReservedClosed { relid: 1, result: Ok(()) }]));
    assert_eq!((state(&pair), pair.server.usage()), (None, Usage::default()));
    assert!(pair.client.close_reserved(1).is_err());
    pair.client.connect(Version::Iron..=Version::Iron).unwrap();
    pair.run();
    assert!(pair.client.connection().is_some());
}

#[test]
fn a_guest_that_connects_again_or_is_reset_loses_it() {
    for closing in [false, true] {
        let (mut again, _) = pair();
        again.client.unload().unwrap();
        again.collect();
        again.run();
        again.take_events();
        if closing {
            again.client.close_reserved(1).unwrap();
        }
        again.client.connect(Version::Iron..=Version::Iron).unwrap();
        again.collect();
        let closed = again.take_events();
        assert_eq!(closed.len(), usize::from(closing));
        let lost = Err(Failure::Disconnected);
        assert!(
            closed
                .iter()
                .all(|event| matches!(event, ClientAction::ReservedClosed { result, .. } if *result == lost))
        );
        assert_eq!(state(&again), None);

        let (mut reset, _) = pair();
        if closing {
            reset.client.close_reserved(1).unwrap();
        }
        reset.client.reset();
        reset.collect();
        assert_eq!((reset.take_events().len(), state(&reset)), (usize::from(closing), None));
    }
}

#[test]
fn a_guest_gives_the_open_up_before_it_ends() {
    let mut pair = Pair::connected(7, Version::Iron);
    pair.offer(1);
    pair.run();
    let gpadl = pair.create_gpadl(1).unwrap();
    pair.run();
    pair.take_events();
    open_reserved(&mut pair, gpadl);
    pair.client.close(1).unwrap();
    pair.run();
    let cancelled = Err(Failure::Cancelled);
    let events = pair.take_events();
    assert!(
        matches!(events[..], [
        ClientAction::Opened { open_id: 0, result, .. },
        ClientAction::ReservedClosed { result: Ok(()), .. },
    ] if result == cancelled),
        "{events:?}"
    );
    assert_eq!(state(&pair), Some(At::Closed));
}

#[test]
fn a_rescind_ends_its_close() {
    let (mut pair, _) = pair();
    pair.rescind(1);
    pair.client.close_reserved(1).unwrap();
    pair.collect();
    pair.run();
    let events = pair.take_events();
    let rescinded = Err(Failure::Rescinded);
    assert!(
        matches!(events[..], [
        ClientAction::ReservedClosed { result, .. },
        ClientAction::Rescinded { relid: 1 },
    ] if result == rescinded),
        "{events:?}"
    );
}

#[test]
fn before_4_0_there_is_none() {
    let mut pair = Pair::new(1, ServerConfig::default(), ClientConfig::default());
    pair.client.connect(Version::Win8_1..=Version::Win8_1).unwrap();
    pair.run();
    let answers = AnswerSlot { vp: 0, sint: 2 };
    let request = ReservedOpenRequest { ring_gpadl: 1, downstream_page: 2, answers };
    let error = ClientError::NotNegotiated(Version::Win8_1);
    assert_eq!(pair.client.open_reserved(1, request), Err(error));
    let mut root = Root::with_device(Version::Win8_1, ServerConfig::default());
    assert_eq!(root.say(open(5)), FAULT);
    assert_eq!(root.say(close()), FAULT);
}

#[test]
fn an_answer_that_nothing_waits_for_is_a_fault_of_the_host() {
    let (mut pair, _) = pair();
    let answer = CloseReservedResponse { relid: U32::new(1) };
    let payload = Message::from(answer).encode(Version::Iron, Default::default());
    pair.client.handle_message(&payload);
    assert!(matches!(pair.client.poll_action(), Some(ClientAction::Fault(_))));
}

crate::coverage::stories! {
    opens_and_closes_with_answers_where_the_requests_say
    a_refusal_goes_where_the_request_says
    everything_else_is_refused_while_it_is_open
    a_list_that_was_begun_before_is_refused_when_it_is_complete
    a_channel_that_is_open_otherwise_is_not_closed_that_way
    unknown_channels_and_interrupt_sources_are_faults
    stays_open_when_the_guest_unloads_and_is_closed_without_a_connection
    is_closed_while_the_guest_unloads
    that_is_closing_when_the_guest_unloads_is_answered
    ends_with_a_new_contact_and_with_a_reset
    a_contact_that_follows_its_close_sends_no_answer_for_it
    is_rescinded_like_any_other_and_beyond_the_connection_without_a_word
    a_pause_holds_its_answers_back_too
    a_guest_can_do_nothing_else_with_it
    a_guest_opens_it_when_no_page_list_is_under_way
    a_guest_that_unloads_keeps_it_and_closes_it_later
    a_guest_that_connects_again_or_is_reset_loses_it
    a_guest_gives_the_open_up_before_it_ends
    a_rescind_ends_its_close
    before_4_0_there_is_none
    an_answer_that_nothing_waits_for_is_a_fault_of_the_host
}
