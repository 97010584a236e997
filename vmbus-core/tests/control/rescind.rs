//! The host takes a channel back, at every step of its life.

use vmbus_core::Version;
use vmbus_core::client::ClientAction;
use vmbus_core::message::*;
use vmbus_core::server::*;
use zerocopy::little_endian::U32;

use crate::pair::Pair;
use crate::root::{Answers, Root, page_list};

const NOTHING: [&str; 0] = [];

#[test]
fn while_policy_thinks_about_showing_it() {
    let mut root = Root::closed();
    root.answers = Answers::None;
    assert_eq!(root.offer(2), ["ask offer 2"]);
    assert_eq!(root.rescind(2), ["released 2"], "the guest never hears of it");
    assert_eq!(root.decide(Answer::Allow), NOTHING);
}

#[test]
fn with_a_half_built_list_that_the_guest_then_completes() {
    let mut root = Root::closed();
    let list = page_list(100);
    let mut messages = list.messages(1, 5);
    root.say(messages.next().unwrap());
    assert_eq!(root.rescind(1), ["RESCIND 1"]);
    let lines: Vec<_> = messages.flat_map(|message| root.say(message)).collect();
    assert_eq!(lines, ["CREATED 1/5 ok"], "no device is involved any more");
    assert_eq!(root.teardown(1, 5), ["TORNDOWN 5"]);
    assert_eq!(root.release(1), ["released 1"]);
}

#[test]
fn with_a_half_built_list_that_the_guest_forgets() {
    let mut root = Root::closed();
    root.say(page_list(100).messages(1, 5).next().unwrap());
    root.rescind(1);
    assert_eq!(root.release(1), ["released 1"]);
    assert_eq!(root.server.usage(), Usage::default());
}

#[test]
fn while_policy_thinks_about_sharing() {
    let mut root = Root::closed();
    root.answers = Answers::None;
    root.share(1, 5);
    assert_eq!(root.rescind(1), ["CREATED 1/5 failed", "RESCIND 1"]);
    assert_eq!(root.decide(Answer::Allow), NOTHING);
    assert_eq!(root.server.usage().pages, 0);
}

#[test]
fn with_a_list_that_the_guest_then_tears_down() {
    let mut root = Root::shared();
    assert_eq!(root.rescind(1), ["release 1/5"]);
    assert_eq!(root.state(), ChannelState::Revoked);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"], "nobody uses the guest's pages any more");
    assert_eq!(root.teardown(1, 5), ["TORNDOWN 5"]);
    assert_eq!(root.release(1), ["released 1"]);
}

#[test]
fn with_a_list_that_the_guest_tears_down_before_the_device_lets_go() {
    let mut root = Root::shared();
    assert_eq!(root.rescind(1), ["release 1/5"]);
    assert_eq!(root.teardown(1, 5), NOTHING);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5", "RESCIND 1"], "RESCIND comes last");
}

#[test]
fn with_a_list_that_is_being_torn_down() {
    let mut root = Root::shared();
    assert_eq!(root.teardown(1, 5), ["release 1/5"]);
    assert_eq!(root.rescind(1), NOTHING);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5", "RESCIND 1"]);
}

#[test]
fn while_policy_thinks_about_the_open() {
    let mut root = Root::shared();
    root.answers = Answers::None;
    root.open(1, 7, 5);
    assert_eq!(root.rescind(1), ["release 1/5"], "no RESULT is sent");
    assert_eq!(root.decide(Answer::Allow), NOTHING);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
}

#[test]
fn while_the_device_refuses_the_open() {
    let mut root = Root::opening();
    root.rescind(1);
    assert_eq!(root.device_refused(1), ["release 1/5"], "no RESULT is sent");
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
}

#[test]
fn while_the_guest_has_asked_for_the_rings_back() {
    let mut root = Root::closing();
    root.teardown(1, 5);
    assert_eq!(root.rescind(1), NOTHING);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["TORNDOWN 5", "RESCIND 1"]);
}

#[test]
fn while_the_guest_goes_on_as_it_cannot_know_yet() {
    let mut root = Root::opened();
    assert_eq!(root.rescind(1), ["close 1"]);
    assert_eq!(root.close(1), NOTHING);
    assert_eq!(root.open(1, 8, 5), NOTHING);
    assert_eq!(root.say(ModifyChannel { relid: U32::new(1), target_vp: U32::new(3) }), NOTHING);
    assert_eq!(root.share(1, 6), ["CREATED 1/6 ok"]);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
    assert_eq!(root.say(ModifyChannel { relid: U32::new(1), target_vp: U32::new(3) }), NOTHING);
}

#[test]
fn while_the_guest_releases_a_closed_channel() {
    let mut root = Root::shared();
    assert_eq!(root.rescind(1), ["release 1/5"]);
    assert_eq!(root.release(1), NOTHING);
    assert_eq!(root.device_let_go(1, 5), ["released 1"], "RESCIND would find nobody");
    assert_eq!(root.server.usage(), Usage::default());
}

#[test]
fn twice() {
    let mut root = Root::revoked();
    assert_eq!(root.rescind(1), ["fault of ours"]);
    assert_eq!(root.release(1), ["released 1"]);
    assert_eq!(root.rescind(1), ["fault of ours"]);
}

#[test]
fn and_the_device_returns_before_the_guest_hears_of_it() {
    let mut root = Root::opened();
    root.rescind(1);
    assert_eq!(root.offer(1), NOTHING);
    assert_eq!(root.state(), ChannelState::Reoffered);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
    assert_eq!(root.release(1), ["OFFER 1"]);
}

#[test]
fn and_the_device_returns_after_the_guest_has_released_but_before_it_has_closed() {
    let mut root = Root::opened();
    root.rescind(1);
    assert_eq!(root.release(1), NOTHING);
    assert_eq!(root.offer(1), NOTHING, "not before its last use has ended");
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["OFFER 1"]);
}

#[test]
fn a_reoffered_device_that_policy_hides_gives_its_id_back() {
    let mut root = Root::reoffered();
    root.answers = Answers::None;
    assert_eq!(root.release(1), ["ask offer 1"]);
    assert_eq!(root.server.usage().channels, 1, "the id is kept while policy thinks");
    assert_eq!(root.decide(Answer::Deny(vmbus_core::Status::ACCESS_DENIED)), NOTHING);
    assert_eq!(root.server.usage().channels, 0);
}

#[test]
fn a_sub_channel_and_its_primary() {
    let mut root = Root::opened();
    root.offer(2);
    root.share(2, 6);
    root.open(2, 1, 6);
    root.device_opened(2);
    root.answers = Answers::All;
    assert_eq!(root.rescind(2), ["close 2", "release 2/6", "RESCIND 2"]);
    assert_eq!(root.rescind(1), ["close 1", "release 1/5", "RESCIND 1"]);
    assert_eq!(root.release(2), ["released 2"]);
    assert_eq!(root.release(1), ["released 1"]);
}

#[test]
fn a_hundred_thousand_times_leaves_nothing() {
    let mut root = Root::closed();
    root.answers = Answers::All;
    for round in 0..100_000_u64 {
        let device = 2 + round % 3;
        let offered = root.offer(device);
        let relid: u32 = offered[0]["OFFER ".len()..].parse().unwrap();
        assert_eq!(root.rescind(device), [format!("RESCIND {relid}")]);
        assert_eq!(root.release(relid), [format!("released {device}")]);
    }
    assert_eq!(root.server.usage().channels, 1);
    assert_eq!(root.server.channels().count(), 1);
}

/// One life of a channel, in which the guest goes on whenever it has heard an answer. `false` if it ended before that
/// many steps.
fn live(pair: &mut Pair, rescind_after: usize) -> bool {
    pair.offer(1);
    let mut steps = 0;
    let mut gpadl = 0;
    loop {
        if steps == rescind_after {
            pair.rescind(1);
        }
        steps += 1;
        for event in pair.take_events() {
            match event {
                ClientAction::Offered(offer) => gpadl = pair.create_gpadl(offer.relid).unwrap(),
                ClientAction::GpadlCreated { relid, result: Ok(()), .. } => pair.open(relid, gpadl),
                ClientAction::Opened { relid, result: Ok(()), .. } => pair.client.modify(relid, 2).unwrap(),
                ClientAction::Modified { relid, result: Ok(()) } => {
                    pair.client.close(relid).unwrap();
                    pair.teardown(relid, gpadl);
                }
                ClientAction::Rescinded { relid } => {
                    pair.client.release(relid).unwrap();
                }
                _ => {}
            }
            pair.collect();
        }
        if !pair.step() && pair.events.is_empty() {
            return steps > rescind_after;
        }
    }
}

#[test]
fn at_every_step_of_a_channels_life_in_many_orders() {
    for seed in 0..40 {
        for rescind_after in 0.. {
            let mut pair = Pair::connected(seed, Version::Iron);
            pair.take_events();
            let happened = live(&mut pair, rescind_after);
            if !happened {
                assert!(rescind_after > 15, "a life has more steps than {rescind_after}");
                break;
            }
            assert!(pair.books.devices.is_empty(), "seed {seed} step {rescind_after}");
            assert!(pair.books.lists.is_empty(), "seed {seed} step {rescind_after}");
            assert!(pair.books.opens.is_empty() && pair.books.creations.is_empty());
            assert_eq!(pair.server.usage(), Usage::default());
            assert_eq!(pair.client.channels().count(), 0);
        }
    }
}

crate::coverage::stories! {
    while_policy_thinks_about_showing_it
    with_a_half_built_list_that_the_guest_then_completes
    with_a_half_built_list_that_the_guest_forgets
    while_policy_thinks_about_sharing
    with_a_list_that_the_guest_then_tears_down
    with_a_list_that_the_guest_tears_down_before_the_device_lets_go
    with_a_list_that_is_being_torn_down
    while_policy_thinks_about_the_open
    while_the_device_refuses_the_open
    while_the_guest_has_asked_for_the_rings_back
    while_the_guest_goes_on_as_it_cannot_know_yet
    while_the_guest_releases_a_closed_channel
    twice
    and_the_device_returns_before_the_guest_hears_of_it
    and_the_device_returns_after_the_guest_has_released_but_before_it_has_closed
    a_reoffered_device_that_policy_hides_gives_its_id_back
    a_sub_channel_and_its_primary
}
