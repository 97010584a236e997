//! Page lists at the server.

use vmbus_core::Status;
use vmbus_core::message::*;
use vmbus_core::server::*;
use zerocopy::little_endian::{U16, U32};

use crate::root::{Answers, Root, open_message, page_list};

const NOTHING: [&str; 0] = [];
const FAULT: [&str; 1] = ["fault of the guest"];

#[test]
fn lists_of_many_messages_may_interleave() {
    let mut root = Root::closed();
    root.offer(2);
    let (long, longer) = (page_list(100), page_list(150));
    let mut first: Vec<_> = long.messages(1, 5).collect();
    let mut second: Vec<_> = longer.messages(2, 6).collect();
    let (last_of_first, last_of_second) = (first.pop().unwrap(), second.pop().unwrap());
    let longest = first.len().max(second.len());
    for index in 0..longest {
        for message in first.get(index).into_iter().chain(second.get(index)) {
            assert_eq!(root.say(*message), NOTHING);
        }
    }
    assert_eq!(root.server.usage().half_built_gpadls, 2);
    assert_eq!(root.say(last_of_second), ["gpadl 2/6", "CREATED 2/6 ok"]);
    assert_eq!(root.say(last_of_first), ["gpadl 1/5", "CREATED 1/5 ok"]);
    let usage = root.server.usage();
    assert_eq!((usage.gpadls, usage.pages, usage.half_built_gpadls, usage.half_built_words), (2, 250, 0, 0));
}

#[test]
fn names_are_free_per_channel_but_not_while_half_built() {
    let mut root = Root::shared();
    root.offer(2);
    assert_eq!(root.share(2, 5), ["gpadl 2/5", "CREATED 2/5 ok"]);
    assert_eq!(root.share(1, 5), [FAULT[0], "CREATED 1/5 failed"], "taken on this channel");
    let long = page_list(100);
    let header = long.messages(1, 9).next().unwrap();
    assert_eq!(root.say(header), NOTHING);
    assert_eq!(root.say(header), [FAULT[0], "CREATED 1/9 failed"], "half built already");
    let other = long.messages(2, 9).next().unwrap();
    assert_eq!(root.say(other), [FAULT[0], "CREATED 2/9 failed"], "a body would not know where to go");
    assert_eq!(root.share(1, 0), [FAULT[0], "CREATED 1/0 failed"]);
    let rest: Vec<_> = long.messages(1, 9).skip(1).collect();
    let lines: Vec<_> = rest.into_iter().flat_map(|message| root.say(message)).collect();
    assert_eq!(lines, ["gpadl 1/9", "CREATED 1/9 ok"], "the first one goes on undisturbed");
}

#[test]
fn a_body_or_a_channel_that_nobody_knows() {
    let mut root = Root::closed();
    let list = page_list(100);
    let body = list.messages(1, 5).nth(1).unwrap();
    assert_eq!(root.say(body), FAULT);
    assert_eq!(root.share(77, 5), [FAULT[0], "CREATED 77/5 failed"]);
    assert_eq!(root.server.usage().gpadls, 0);
}

#[test]
fn a_list_that_contradicts_itself_is_refused_and_forgotten() {
    let mut root = Root::closed();
    let header = GpadlHeader {
        relid: U32::new(1),
        gpadl: U32::new(5),
        range_buflen: U16::new(16),
        range_count: U16::new(1),
    };
    let nothing = [0; 16];
    assert_eq!(root.say(Message::GpadlHeader(header, &nothing)), [FAULT[0], "CREATED 1/5 failed"]);
    let no_range = GpadlHeader { range_count: U16::ZERO, ..header };
    assert_eq!(root.say(Message::GpadlHeader(no_range, &nothing)), [FAULT[0], "CREATED 1/5 failed"]);
    let usage = root.server.usage();
    assert_eq!((usage.half_built_gpadls, usage.gpadls), (0, 0));
    assert_eq!(root.share(1, 5), ["gpadl 1/5", "CREATED 1/5 ok"], "the name is free again");
}

#[test]
fn teardown_waits_for_the_device() {
    let mut root = Root::shared();
    assert_eq!(root.teardown(1, 5), ["release 1/5"]);
    assert_eq!(root.teardown(1, 5), FAULT, "asked already");
    assert_eq!(root.share(1, 5), [FAULT[0], "CREATED 1/5 failed"], "the name is not free yet");
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5"]);
    assert_eq!(root.server.usage().gpadls, 0);
    assert_eq!(root.teardown(1, 5), FAULT, "gone");
}

#[test]
fn teardown_is_for_complete_lists_of_this_channel() {
    let mut root = Root::shared();
    root.offer(2);
    assert_eq!(root.teardown(2, 5), FAULT, "another channel's");
    let list = page_list(100);
    root.say(list.messages(1, 9).next().unwrap());
    assert_eq!(root.teardown(1, 9), FAULT, "half built");
    root.answers = Answers::None;
    assert_eq!(root.share(1, 6), ["ask share 1/6 4 pages"]);
    assert_eq!(root.teardown(1, 6), FAULT, "not accepted yet");
    assert_eq!(root.teardown(77, 5), FAULT, "no such channel");
}

#[test]
fn the_rings_of_an_open_channel_are_torn_down_after_it_has_closed() {
    let mut root = Root::opened();
    assert_eq!(root.teardown(1, 5), NOTHING, "against the rules, but nothing is unmapped under the device");
    assert_eq!(root.close(1), ["close 1"]);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5"]);
}

#[test]
fn close_and_teardown_in_one_breath() {
    let mut root = Root::opened();
    assert_eq!(root.close(1), ["close 1"]);
    assert_eq!(root.teardown(1, 5), NOTHING);
    assert_eq!(root.share(1, 6), ["gpadl 1/6", "CREATED 1/6 ok"], "new rings before the old are gone");
    assert_eq!(root.open(1, 8, 6), NOTHING);
    assert_eq!(root.device_closed(1), ["release 1/5", "open 1"]);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5"]);
    assert_eq!(root.device_opened(1), ["RESULT 1 open 8 ok"]);
}

#[test]
fn rings_that_were_asked_back_cannot_be_opened() {
    let mut root = Root::closing();
    assert_eq!(root.open(1, 8, 5), NOTHING);
    assert_eq!(root.teardown(1, 5), NOTHING);
    assert_eq!(root.device_closed(1), ["release 1/5", FAULT[0], "RESULT 1 open 8 failed"]);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5"]);
}

#[test]
fn rings_that_are_asked_back_while_policy_thinks_about_the_open() {
    let mut root = Root::shared();
    root.answers = Answers::None;
    assert_eq!(root.open(1, 7, 5), ["ask open 1 7"]);
    assert_eq!(root.teardown(1, 5), NOTHING);
    assert_eq!(root.decide(Answer::Allow), [FAULT[0], "RESULT 1 open 7 failed", "release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5"]);
}

#[test]
fn lists_other_than_the_rings_outlive_the_close() {
    let mut root = Root::opened();
    assert_eq!(root.share(1, 6), ["gpadl 1/6", "CREATED 1/6 ok"]);
    root.close(1);
    assert_eq!(root.device_closed(1), NOTHING);
    assert_eq!(root.teardown(1, 6), ["release 1/6"]);
}

#[test]
fn policy_refuses_to_share() {
    let mut root = Root::closed();
    root.answers = Answers::None;
    assert_eq!(root.share(1, 5), ["ask share 1/5 4 pages"]);
    assert_eq!(root.open(1, 7, 5), [FAULT[0], "RESULT 1 open 7 failed"], "no rings before the answer");
    assert_eq!(root.decide(Answer::Deny(Status::ACCESS_DENIED)), ["CREATED 1/5 failed"]);
    assert_eq!(root.server.usage().pages, 0);
}

#[test]
fn a_refusal_is_a_failure_to_everybody_whatever_status_policy_names() {
    for status in [Status::SUCCESS, Status(0x103), Status(0x4000_0000), Status::ACCESS_DENIED] {
        let mut root = Root::closed();
        root.answers = Answers::None;
        root.share(1, 5);
        let (id, _) = root.asked.remove(0);
        root.server.handle(ServerInput::Decided { id, answer: Answer::Deny(status) });
        let Some(ServerAction::Send { payload, .. }) = root.server.poll_action() else { panic!("no answer") };
        let on_wire = u32::from_le_bytes(payload[16..20].try_into().unwrap());
        assert!(on_wire >= 0x8000_0000, "{status} became {on_wire:#x}");
    }
}

#[test]
fn a_question_about_one_channel_holds_up_no_other_thing() {
    let mut root = Root::closed();
    root.offer(2);
    root.answers = Answers::None;
    assert_eq!(root.share(1, 5), ["ask share 1/5 4 pages"]);
    assert_eq!(root.share(1, 6), ["ask share 1/6 4 pages"]);
    root.answers = Answers::Policy;
    assert_eq!(root.share(2, 7), ["gpadl 2/7", "CREATED 2/7 ok"]);
    assert_eq!(root.open(2, 1, 7), ["open 2"]);
    assert_eq!(root.device_opened(2), ["RESULT 2 open 1 ok"]);
    assert_eq!(root.decide(Answer::Allow), ["gpadl 1/5", "CREATED 1/5 ok"]);
}

#[test]
fn rings_must_be_whole_pages_with_room_for_data() {
    let mut root = Root::shared();
    for (downstream, why) in [
        (0, "a ring that has no room for data"),
        (1, "a ring that has no room for data"),
        (3, "a ring that has no room for data"),
        (u32::MAX, "a ring that has no room for data"),
    ] {
        let open = OpenChannel { downstream_page_offset: U32::new(downstream), ..open_message(1, 7, 5) };
        assert_eq!(root.say(open), [FAULT[0], "RESULT 1 open 7 failed"], "{downstream}");
        assert!(root.faults.pop().unwrap().to_string().ends_with(why));
    }
    let odd = vmbus_core::pages::PageRanges::single(8, 4 * 4096, 0..5).unwrap();
    for message in odd.messages(1, 6) {
        root.say(message);
    }
    assert_eq!(root.open(1, 7, 6), [FAULT[0], "RESULT 1 open 7 failed"]);
    assert_eq!(root.open(1, 7, 99), [FAULT[0], "RESULT 1 open 7 failed"], "no such list");
    assert_eq!(root.open(1, 7, 5), ["open 1"], "nothing was spoilt");
}

#[test]
fn modify_retargets_an_open_channel_and_answers_from_5_3_on() {
    use vmbus_core::Version;
    for version in [Version::Win10Rs3, Version::Win10Rs5, Version::Iron] {
        let mut root = Root::with_device(version, ServerConfig::default());
        root.answers = Answers::All;
        let modify = ModifyChannel { relid: U32::new(1), target_vp: U32::new(3) };
        let answer = |line: &'static str| if version >= Version::Iron { vec![line] } else { vec![] };
        assert_eq!(root.say(modify), [FAULT.to_vec(), answer("MODIFIED 1 failed")].concat());
        root.share(1, 5);
        root.open(1, 7, 5);
        assert_eq!(root.say(modify), [vec!["retarget 1 to 3"], answer("MODIFIED 1 ok")].concat());
    }
}

#[test]
fn signals_that_the_guest_chooses_hold_for_one_open() {
    use vmbus_core::{FeatureFlags, Version};
    let mut root = Root::new(ServerConfig::default());
    root.features = FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS;
    root.answers = Answers::All;
    root.connect(Version::Copper);
    root.offer(1);
    root.say(RequestOffers {});
    root.share(1, 5);
    let chosen =
        OpenChannel { connection_id: U32::new(0x77), event_flag: U16::new(99), ..open_message(1, 7, 5) };
    root.say(chosen);
    assert_eq!((root.opens[0].connection_id, root.opens[0].event_flag), (0x77, 99));
    root.close(1);
    root.open(1, 8, 5);
    assert_eq!((root.opens[1].connection_id, root.opens[1].event_flag), (0x2001, 1));
    root.close(1);
    for wrong in [
        OpenChannel { event_flag: U16::new(2048), ..chosen },
        OpenChannel { connection_id: U32::new(1 << 24), ..chosen },
    ] {
        assert_eq!(root.say(wrong), [FAULT[0], "RESULT 1 open 7 failed"]);
    }
    // Without the feature the fields mean nothing.
    root.features = FeatureFlags::empty();
    root.connect(Version::Copper);
    root.say(RequestOffers {});
    root.share(1, 5);
    root.say(chosen);
    assert_eq!((root.opens[2].connection_id, root.opens[2].event_flag), (0x2001, 1));
}

crate::coverage::stories! {
    lists_of_many_messages_may_interleave
    names_are_free_per_channel_but_not_while_half_built
    a_body_or_a_channel_that_nobody_knows
    a_list_that_contradicts_itself_is_refused_and_forgotten
    teardown_waits_for_the_device
    teardown_is_for_complete_lists_of_this_channel
    the_rings_of_an_open_channel_are_torn_down_after_it_has_closed
    close_and_teardown_in_one_breath
    rings_that_were_asked_back_cannot_be_opened
    rings_that_are_asked_back_while_policy_thinks_about_the_open
    lists_other_than_the_rings_outlive_the_close
    policy_refuses_to_share
    a_refusal_is_a_failure_to_everybody_whatever_status_policy_names
    a_question_about_one_channel_holds_up_no_other_thing
    rings_must_be_whole_pages_with_room_for_data
    modify_retargets_an_open_channel_and_answers_from_5_3_on
    signals_that_the_guest_chooses_hold_for_one_open
}
