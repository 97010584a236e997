//! The end of a connection, whatever is under way: by UNLOAD, by a new contact, by a reset.

use vmbus_core::Version;
use vmbus_core::message::*;
use vmbus_core::server::*;

use crate::root::{Answers, Root, page_list};

const NOTHING: [&str; 0] = [];

/// A guest in the middle of everything, and what its devices owe us when it leaves.
fn busy() -> Root {
    let mut root = Root::opened();
    root.offer(2);
    root.offer(3);
    root.share(2, 6);
    root.open(2, 1, 6);
    root.share(1, 8);
    root.teardown(1, 8);
    root.say(page_list(100).messages(1, 9).next().unwrap());
    root.rescind(3);
    root.answers = Answers::None;
    root.share(2, 10);
    root.offer(4);
    root.rescind(1);
    root
}

/// The devices do what they owe; the last lines.
fn devices_finish(root: &mut Root) -> Vec<String> {
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 8), NOTHING);
    assert_eq!(root.device_let_go(1, 5), ["released 1"]);
    assert_eq!(root.device_opened(2), ["close 2"]);
    assert_eq!(root.device_closed(2), ["release 2/6"]);
    root.device_let_go(2, 6)
}

#[test]
fn unload_lets_go_of_everything_and_then_answers() {
    let mut root = busy();
    assert_eq!(root.say(Unload {}), ["released 3"]);
    assert_eq!(devices_finish(&mut root), ["disconnected", "UNLOADED"]);
    assert_eq!(root.server.usage(), Usage::default());
    assert_eq!(root.server.channels().count(), 2, "devices 2 and 4 are offered to the next guest");
    root.answers = Answers::Policy;
    root.connect(Version::Iron);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "OFFER 2", "ALL OFFERS"]);
    assert_eq!(root.asked.len(), 2, "whether to share, whether to offer");
    assert_eq!(root.decide(Answer::Allow), NOTHING, "old questions are void");
    assert_eq!(root.decide(Answer::Allow), NOTHING);
}

#[test]
fn a_reset_lets_go_of_everything_and_says_nothing() {
    let mut root = busy();
    assert_eq!(root.input(ServerInput::Reset), ["released 3"]);
    assert_eq!(root.input(ServerInput::Reset), NOTHING);
    assert_eq!(devices_finish(&mut root), ["disconnected"]);
    assert_eq!(root.server.usage(), Usage::default());
    assert_eq!(root.input(ServerInput::Reset), ["disconnected"], "a reset always ends in that");
}

#[test]
fn a_contact_is_an_unload_without_an_answer() {
    let mut root = busy();
    assert_eq!(root.contact(Version::Win8), ["released 3"]);
    root.answers = Answers::Policy;
    assert_eq!(devices_finish(&mut root), ["disconnected", "VERSION accepted"]);
    assert_eq!(root.server.connection().unwrap().version, Version::Win8);
}

#[test]
fn the_latest_reason_to_disconnect_counts() {
    for (last, expected) in [
        ("unload", ["disconnected", "UNLOADED"].as_slice()),
        ("contact", &["disconnected", "VERSION accepted"]),
        ("reset", &["disconnected"]),
    ] {
        let mut root = Root::opened();
        root.say(Unload {});
        root.input(ServerInput::Reset);
        root.contact(Version::Win8);
        match last {
            "unload" => root.say(Unload {}),
            "contact" => root.contact(Version::Win10),
            _ => root.input(ServerInput::Reset),
        };
        root.device_closed(1);
        assert_eq!(root.device_let_go(1, 5), expected, "{last}");
    }
}

#[test]
fn unload_is_not_answered_in_v1_which_knows_no_answer() {
    for version in Version::ALL {
        let mut root = Root::with_device(version, ServerConfig::default());
        let expected: &[&str] =
            if version == Version::V1 { &["disconnected"] } else { &["disconnected", "UNLOADED"] };
        assert_eq!(root.say(Unload {}), expected, "{version}");
    }
}

#[test]
fn unload_while_policy_thinks_about_the_version() {
    let mut root = Root::new(ServerConfig::default());
    root.answers = Answers::None;
    assert_eq!(root.contact(Version::Iron), ["ask version 5.3"]);
    assert_eq!(root.say(Unload {}), ["UNLOADED"]);
    assert_eq!(root.decide(Answer::Allow), NOTHING);
    assert_eq!(root.say(Unload {}), ["fault of the guest"]);
}

#[test]
fn the_host_offers_and_rescinds_while_a_guest_leaves() {
    let mut root = Root::opened();
    root.say(Unload {});
    assert_eq!(root.offer(2), NOTHING);
    assert_eq!(root.rescind(2), ["released 2"]);
    assert_eq!(root.rescind(1), NOTHING);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["released 1", "disconnected", "UNLOADED"]);
    assert_eq!(root.server.channels().count(), 0);
}

#[test]
fn ids_begin_anew_with_each_connection() {
    let mut root = Root::closed();
    root.offer(2);
    assert_eq!(root.rescind(1), ["RESCIND 1"]);
    root.release(1);
    root.connect(Version::Iron);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "ALL OFFERS"]);
}

#[test]
fn connects_that_wait_end_with_the_connection() {
    let mut root = Root::closed();
    assert_eq!(root.say(TlConnectRequest::default()), ["connect"]);
    root.say(Unload {});
    assert_eq!(root.server.usage(), Usage::default());
    root.connect(Version::Iron);
    let request = ConnectRequest {
        endpoint: Default::default(),
        service: Default::default(),
        silo: Default::default(),
    };
    let answer = ServerInput::ConnectResult { request, result: Err(vmbus_core::Status::FAILURE) };
    assert_eq!(root.input(answer), NOTHING, "the new guest has asked for nothing");
}

#[test]
fn questions_of_an_ended_connection_do_not_hold_up_the_next() {
    let mut root = Root::new(ServerConfig::default());
    root.offer(1);
    root.connect(Version::Iron);
    root.answers = Answers::None;
    assert_eq!(root.say(RequestOffers {}), ["ask offer 1"]);
    root.answers = Answers::Policy;
    root.connect(Version::Iron);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "ALL OFFERS"]);
    assert_eq!(root.decide(Answer::Allow), NOTHING, "the old question is void");
}

crate::coverage::stories! {
    unload_lets_go_of_everything_and_then_answers
    a_reset_lets_go_of_everything_and_says_nothing
    a_contact_is_an_unload_without_an_answer
    the_latest_reason_to_disconnect_counts
    unload_is_not_answered_in_v1_which_knows_no_answer
    unload_while_policy_thinks_about_the_version
    the_host_offers_and_rescinds_while_a_guest_leaves
    ids_begin_anew_with_each_connection
    connects_that_wait_end_with_the_connection
    questions_of_an_ended_connection_do_not_hold_up_the_next
}
