//! Sub-channels end with their primary and before it.

use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{Guid, Version};

use crate::root::{Answers, CLASS, Root};

const NOTHING: [&str; 0] = [];

fn subchannel(primary: u64, index: u16) -> OfferParams {
    let primary = Some(DeviceKey(primary));
    OfferParams { primary, subchannel_index: index, ..OfferParams::new(CLASS, Guid::from_wire([1; 16])) }
}

fn offer(root: &mut Root, device: u64, primary: u64) -> Vec<String> {
    let offer = subchannel(primary, device as u16);
    root.input(ServerInput::Offer { device: DeviceKey(device), offer })
}

/// Device 1 is open as channel 1; devices 2 and 3 are its sub-channels 2 and 3, of which channel 2 is open.
fn with_subchannels() -> Root {
    let mut root = Root::opened();
    assert_eq!(offer(&mut root, 2, 1), ["OFFER 2"]);
    assert_eq!(offer(&mut root, 3, 1), ["OFFER 3"]);
    root.share(2, 6);
    root.open(2, 1, 6);
    root.device_opened(2);
    root
}

#[test]
fn are_rescinded_before_their_primary_however_slow_they_are() {
    let mut root = with_subchannels();
    assert_eq!(root.rescind(1), ["close 2", "RESCIND 3", "close 1"]);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), NOTHING, "the primary waits for its sub-channel");
    assert_eq!(root.device_closed(2), ["release 2/6"]);
    assert_eq!(root.device_let_go(2, 6), ["RESCIND 2", "RESCIND 1"]);
    assert_eq!(root.release(3), ["released 3"]);
    assert_eq!(root.release(1), ["released 1"]);
    assert_eq!(root.release(2), ["released 2"]);
    assert_eq!(root.server.usage(), Usage::default());
    assert_eq!(root.server.channels().count(), 0);
}

#[test]
fn that_the_guest_releases_first_hold_up_nothing() {
    let mut root = with_subchannels();
    root.rescind(1);
    root.device_closed(1);
    root.device_let_go(1, 5);
    assert_eq!(root.release(2), ["RESCIND 1"], "RESCIND of channel 2 would find nobody");
    assert_eq!(root.device_closed(2), ["release 2/6"]);
    assert_eq!(root.device_let_go(2, 6), ["released 2"]);
}

#[test]
fn are_rescinded_when_their_primary_closes() {
    let mut root = with_subchannels();
    assert_eq!(root.close(1), ["close 2", "RESCIND 3", "close 1"]);
    assert_eq!(root.device_closed(1), NOTHING);
    root.device_closed(2);
    assert_eq!(root.device_let_go(2, 6), ["RESCIND 2"]);
    assert_eq!(root.state(), ChannelState::Closed, "the primary is offered still");
    assert_eq!(offer(&mut root, 4, 1), ["OFFER 4"], "and may have others");
}

#[test]
fn end_with_the_connection() {
    let mut root = with_subchannels();
    root.answers = Answers::All;
    let lines = root.say(Unload {});
    assert!(lines.contains(&"released 2".into()) && lines.contains(&"released 3".into()), "{lines:?}");
    assert_eq!(root.server.channels().count(), 1, "the primary is offered to the next");
    root.connect(Version::Iron);
    assert_eq!(root.say(RequestOffers {}), ["OFFER 1", "ALL OFFERS"]);
}

#[test]
fn that_a_caller_rescinds_too_are_no_fault() {
    let mut root = with_subchannels();
    root.rescind(1);
    assert_eq!(root.rescind(2), NOTHING);
    assert_eq!(root.rescind(1), ["fault of ours"]);
}

#[test]
fn need_a_primary_that_is_offered() {
    let mut root = with_subchannels();
    assert_eq!(offer(&mut root, 4, 99), ["fault of ours"]);
    assert_eq!(offer(&mut root, 4, 2), ["fault of ours"], "a sub-channel has none itself");
    root.rescind(1);
    assert_eq!(offer(&mut root, 4, 1), ["fault of ours"]);
    assert_eq!(root.server.channels().count(), 3);
}

#[test]
fn come_after_their_primary() {
    let mut root = Root::new(ServerConfig::default());
    root.answers = Answers::None;
    root.offer(9);
    assert_eq!(offer(&mut root, 2, 9), NOTHING);
    root.contact(Version::Iron);
    root.decide(Answer::Allow);
    assert_eq!(root.say(RequestOffers {}), ["ask offer 9"], "though the sub-channel's key comes first");
    assert_eq!(root.decide(Answer::Allow), ["OFFER 1", "ask offer 2", "ALL OFFERS"]);
    assert_eq!(root.decide(Answer::Allow), ["OFFER 2"]);
}

#[test]
fn of_a_primary_that_the_guest_gives_back_go_with_it() {
    let mut root = Root::closed();
    offer(&mut root, 2, 1);
    assert_eq!(root.release(1), ["RESCIND 2"]);
    assert_eq!(root.release(2), ["released 2"]);
    assert_eq!(root.server.usage(), Usage::default());
}

#[test]
fn name_their_primary() {
    let root = with_subchannels();
    let primaries: Vec<_> = root.server.channels().map(|channel| channel.primary).collect();
    assert_eq!(primaries, [None, Some(DeviceKey(1)), Some(DeviceKey(1))]);
}

crate::coverage::stories! {
    are_rescinded_before_their_primary_however_slow_they_are
    that_the_guest_releases_first_hold_up_nothing
    are_rescinded_when_their_primary_closes
    end_with_the_connection
    that_a_caller_rescinds_too_are_no_fault
    need_a_primary_that_is_offered
    come_after_their_primary
    of_a_primary_that_the_guest_gives_back_go_with_it
    name_their_primary
}
