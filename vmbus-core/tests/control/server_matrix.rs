//! Every event in every state of a server: whatever comes when, everything can be let go of afterwards.
//!
//! What each event leads to is written in the book (`docs/src/protocol/coverage.md`), from what happens here.

use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Guid, Status, Version};
use zerocopy::little_endian::{U32, U64};

use crate::root::{Answers, CLASS, Root, page_list};

type Build = fn() -> Root;
type Act = fn(&mut Root);

/// Does each event in each state, then lets everything end.
fn meet(states: &[Build], events: &[Act]) {
    for (state, build) in states.iter().enumerate() {
        for (event, act) in events.iter().enumerate() {
            let mut root = build();
            act(&mut root);
            end(&mut root);
            assert_eq!(root.server.usage(), Usage::default(), "state {state} event {event}");
            assert!(root.server.connection().is_none(), "state {state} event {event}");
        }
    }
}

/// The partition vanishes, and the devices do what they owe.
fn end(root: &mut Root) {
    root.answers = Answers::All;
    root.input(ServerInput::Reset);
    for relid in 1..4 {
        root.device_opened(relid);
        root.device_closed(relid);
        for gpadl in 1..12 {
            root.device_let_go(relid, gpadl);
        }
    }
}

/// A guest of 6.0 that may pause is connected.
fn connected() -> Root {
    let mut root = Root::new(ServerConfig::default());
    root.features = FeatureFlags::PAUSE_RESUME | FeatureFlags::MODIFY_CONNECTION;
    root.connect(Version::Copper);
    root
}

/// It has asked for offers.
fn waiting() -> Root {
    let mut root = connected();
    root.say(RequestOffers {});
    root
}

fn proposed() -> Root {
    let mut root = waiting();
    root.answers = Answers::None;
    root.offer(1);
    root
}

fn not_yet_shown() -> Root {
    let mut root = connected();
    root.offer(1);
    root
}

fn closed() -> Root {
    let mut root = waiting();
    root.offer(1);
    root
}

fn client_released() -> Root {
    let mut root = closed();
    root.release(1);
    root
}

fn shared() -> Root {
    let mut root = closed();
    root.share(1, 5);
    root
}

fn asked() -> Root {
    let mut root = shared();
    root.answers = Answers::None;
    root.open(1, 7, 5);
    root
}

fn opening() -> Root {
    let mut root = shared();
    root.open(1, 7, 5);
    root
}

fn opened() -> Root {
    let mut root = opening();
    root.device_opened(1);
    root
}

fn with_subchannel() -> Root {
    let mut root = opened();
    subchannel(&mut root);
    root
}

fn subchannel(root: &mut Root) {
    let primary = Some(DeviceKey(1));
    let offer = OfferParams { primary, subchannel_index: 1, ..OfferParams::new(CLASS, CLASS) };
    root.input(ServerInput::Offer { device: DeviceKey(2), offer });
}

fn opening_reserved() -> Root {
    let mut root = shared();
    open_reserved(&mut root);
    root
}

fn reserved() -> Root {
    let mut root = opening_reserved();
    root.device_opened(1);
    root
}

fn reserved_beyond_unload() -> Root {
    let mut root = reserved();
    root.say(Unload {});
    root
}

fn closing() -> Root {
    let mut root = opened();
    root.close(1);
    root
}

fn closing_reserved() -> Root {
    let mut root = reserved();
    close_reserved(&mut root);
    root
}

fn closing_reopen() -> Root {
    let mut root = closing();
    root.open(1, 8, 5);
    root
}

fn released_while_closing() -> Root {
    let mut root = closing();
    root.release(1);
    root
}

fn unloaded_while_opening() -> Root {
    let mut root = opening();
    root.say(Unload {});
    root
}

fn unloaded_while_open() -> Root {
    let mut root = opened();
    root.say(Unload {});
    root
}

fn rescinding() -> Root {
    let mut root = opened();
    root.rescind(1);
    root
}

fn rescinded_while_opening() -> Root {
    let mut root = opening();
    root.rescind(1);
    root
}

fn rescinded_while_shared() -> Root {
    let mut root = shared();
    root.rescind(1);
    root
}

fn revoked() -> Root {
    let mut root = closed();
    root.rescind(1);
    root
}

fn released_while_rescinding() -> Root {
    let mut root = rescinding();
    root.release(1);
    root
}

fn reoffered() -> Root {
    let mut root = revoked();
    root.offer(1);
    root
}

fn reoffered_while_closing() -> Root {
    let mut root = rescinding();
    root.offer(1);
    root
}

/// The guest has released what was rescinded while it opened.
fn released_while_opening() -> Root {
    let mut root = rescinded_while_opening();
    root.release(1);
    root
}

/// The device is back and policy thinks; the channel keeps its id meanwhile.
fn reoffered_and_released() -> Root {
    let mut root = reoffered();
    root.answers = Answers::None;
    root.release(1);
    root
}

/// Policy thinks about device 1, and no channel id is free.
fn proposed_without_ids() -> Root {
    let quotas = Quotas { channels: 1, ..Default::default() };
    let mut root = Root::new(ServerConfig { quotas, ..Default::default() });
    root.connect(Version::Copper);
    root.say(RequestOffers {});
    root.offer(3);
    root.answers = Answers::None;
    root.offer(1);
    root
}

fn open_reserved(root: &mut Root) {
    root.say(OpenReservedChannel {
        relid: U32::new(1),
        target_sint: U32::new(2),
        ring_gpadl: U32::new(5),
        downstream_page_offset: U32::new(2),
        ..Default::default()
    });
}

fn close_reserved(root: &mut Root) {
    let message = CloseReservedChannel { relid: U32::new(1), target_sint: U32::new(2), ..Default::default() };
    root.say(message);
}

fn allow(root: &mut Root) {
    if !root.asked.is_empty() {
        root.decide(Answer::Allow);
    }
}

fn deny(root: &mut Root) {
    if !root.asked.is_empty() {
        root.decide(Answer::Deny(Status::ACCESS_DENIED));
    }
}

fn modify(root: &mut Root) {
    root.say(ModifyChannel { relid: U32::new(1), target_vp: U32::new(1) });
}

#[test]
fn whatever_happens_to_a_channel_it_ends() {
    meet(
        &[
            waiting,
            not_yet_shown,
            proposed,
            client_released,
            closed,
            shared,
            asked,
            opening,
            opening_reserved,
            opened,
            with_subchannel,
            reserved,
            reserved_beyond_unload,
            closing,
            closing_reserved,
            closing_reopen,
            released_while_closing,
            unloaded_while_opening,
            unloaded_while_open,
            rescinding,
            rescinded_while_opening,
            rescinded_while_shared,
            revoked,
            released_while_rescinding,
            reoffered,
            reoffered_while_closing,
            released_while_opening,
            reoffered_and_released,
            proposed_without_ids,
        ],
        &[
            |root| _ = root.open(1, 9, 5),
            |root| _ = root.open(1, 9, 77),
            |root| _ = root.close(1),
            modify,
            |root| _ = root.release(1),
            open_reserved,
            close_reserved,
            |root| _ = root.say(RequestOffers {}),
            allow,
            deny,
            |root| _ = root.device_opened(1),
            |root| _ = root.device_refused(1),
            |root| _ = root.device_refused(77),
            |root| _ = root.device_closed(1),
            |root| _ = root.device_let_go(1, 5),
            |root| _ = root.offer(1),
            |root| _ = root.rescind(1),
            |root| _ = root.say(Unload {}),
            |root| _ = root.contact(Version::Copper),
            |root| _ = root.input(ServerInput::Reset),
        ],
    );
}

/// A sub-channel in each state, as channel 2 of device 2; its primary is open as channel 1.
fn sub_closed() -> Root {
    let mut root = opened();
    subchannel(&mut root);
    root.share(2, 6);
    root
}

fn sub_proposed() -> Root {
    let mut root = opened();
    root.answers = Answers::None;
    subchannel(&mut root);
    root
}

fn sub_opening() -> Root {
    let mut root = sub_closed();
    root.open(2, 1, 6);
    root
}

fn sub_opened() -> Root {
    let mut root = sub_opening();
    root.device_opened(2);
    root
}

fn sub_reserved() -> Root {
    let mut root = sub_closed();
    root.say(OpenReservedChannel {
        relid: U32::new(2),
        target_sint: U32::new(2),
        ring_gpadl: U32::new(6),
        downstream_page_offset: U32::new(2),
        ..Default::default()
    });
    root.device_opened(2);
    root
}

fn sub_closing() -> Root {
    let mut root = sub_opened();
    root.close(2);
    root
}

fn sub_closing_reopen() -> Root {
    let mut root = sub_closing();
    root.open(2, 9, 6);
    root
}

fn sub_released_while_closing() -> Root {
    let mut root = sub_closing();
    root.release(2);
    root
}

fn sub_revoked() -> Root {
    let mut root = sub_opened();
    root.rescind(2);
    root
}

fn sub_released_while_opening() -> Root {
    let mut root = sub_opening();
    root.rescind(2);
    root.release(2);
    root
}

fn sub_reoffered() -> Root {
    let mut root = sub_revoked();
    subchannel(&mut root);
    root
}

#[test]
fn whatever_a_sub_channel_does_it_ends_with_its_primary() {
    let states: &[Build] = &[
        sub_proposed,
        sub_closed,
        sub_opening,
        sub_opened,
        sub_reserved,
        sub_closing,
        sub_closing_reopen,
        sub_released_while_closing,
        sub_revoked,
        sub_released_while_opening,
        sub_reoffered,
    ];
    meet(states, &[|root| _ = root.close(1), |root| _ = root.rescind(1), |root| _ = root.rescind(2)]);
}

fn half_built() -> Root {
    let mut root = shared();
    root.say(page_list(60).messages(1, 7).next().unwrap());
    root
}

fn list_asked() -> Root {
    let mut root = shared();
    root.answers = Answers::None;
    root.share(1, 7);
    root
}

fn accepted() -> Root {
    let mut root = shared();
    root.share(1, 7);
    root
}

fn tearing_down() -> Root {
    let mut root = accepted();
    root.teardown(1, 7);
    root
}

fn recalled() -> Root {
    let mut root = accepted();
    root.rescind(1);
    root
}

/// Accepted without a device: the channel was rescinded before.
fn accepted_by_nobody() -> Root {
    let mut root = revoked();
    root.share(1, 7);
    root
}

fn half_built_on_revoked() -> Root {
    let mut root = half_built();
    root.rescind(1);
    root
}

/// The guest cannot release the channel: it is open.
fn half_built_while_open() -> Root {
    let mut root = opened();
    root.say(page_list(60).messages(1, 7).next().unwrap());
    root
}

fn tearing_down_on_revoked() -> Root {
    let mut root = tearing_down();
    root.rescind(1);
    root
}

fn dropped() -> Root {
    let mut root = accepted();
    root.rescind(1);
    root.release(1);
    root
}

/// List 5 is the ring of a channel in this state, which the guest has asked back.
fn ring_asked_back() -> Root {
    let mut root = opened();
    root.teardown(1, 5);
    root
}

fn ring_asked_back_while_closing() -> Root {
    let mut root = closing();
    root.teardown(1, 5);
    root
}

#[test]
fn whatever_happens_to_a_page_list_it_comes_back() {
    meet(
        &[
            closed,
            half_built,
            list_asked,
            accepted,
            tearing_down,
            recalled,
            accepted_by_nobody,
            half_built_on_revoked,
            half_built_while_open,
            tearing_down_on_revoked,
            dropped,
            released_while_closing,
            rescinding,
            opened,
            closing,
            ring_asked_back,
            ring_asked_back_while_closing,
            reserved,
            reserved_beyond_unload,
        ],
        &[
            |root| _ = root.share(1, 7),
            |root| _ = root.share(1, 5),
            |root| _ = root.say(page_list(60).messages(1, 7).next().unwrap()),
            |root| _ = root.say(page_list(60).messages(1, 7).nth(1).unwrap()),
            |root| _ = root.say(page_list(100).messages(1, 7).nth(1).unwrap()),
            |root| {
                page_list(60).messages(1, 7).skip(1).for_each(|message| _ = root.say(message));
            },
            |root| _ = root.teardown(1, 7),
            |root| _ = root.teardown(1, 5),
            |root| _ = root.device_let_go(1, 7),
            |root| _ = root.device_let_go(1, 5),
            |root| _ = root.device_closed(1),
            allow,
            deny,
            |root| _ = root.rescind(1),
            |root| _ = root.release(1),
            |root| _ = root.say(Unload {}),
            |root| _ = root.contact(Version::Copper),
            |root| _ = root.input(ServerInput::Reset),
        ],
    );
}

fn disconnected() -> Root {
    let mut root = Root::new(ServerConfig::default());
    root.features = FeatureFlags::PAUSE_RESUME | FeatureFlags::MODIFY_CONNECTION;
    root
}

fn connecting() -> Root {
    let mut root = disconnected();
    root.answers = Answers::None;
    root.contact(Version::Copper);
    root
}

fn paused() -> Root {
    let mut root = opened();
    root.say(Pause {});
    root
}

fn replacing() -> Root {
    let mut root = opened();
    root.contact(Version::Copper);
    root
}

fn resetting() -> Root {
    let mut root = opened();
    root.input(ServerInput::Reset);
    root
}

/// The device has closed; only the release of its pages is missing.
fn almost(mut root: Root) -> Root {
    root.device_closed(1);
    root
}

fn contact_that_fails(root: &mut Root) {
    let half = InitiateContact {
        version: U32::new(Version::Copper.word()),
        child_to_parent_monitor: U64::new(0x1000),
        ..Default::default()
    };
    root.say(half);
}

#[test]
fn whatever_happens_to_a_connection_it_ends() {
    let connect = TlConnectRequest { endpoint_id: CLASS, ..Default::default() };
    assert_eq!(connected().say(connect), ["connect"]);
    let request = ConnectRequest { endpoint: CLASS, service: Guid::ZERO, silo: Guid::ZERO };
    assert_eq!(request.endpoint, connect.endpoint_id);
    meet(
        &[
            disconnected,
            connecting,
            connected,
            waiting,
            opened,
            paused,
            unloaded_while_open,
            replacing,
            resetting,
            || almost(unloaded_while_open()),
            || almost(replacing()),
            || almost(resetting()),
            || {
                let mut root = replacing();
                root.answers = Answers::None;
                root
            },
            reserved_beyond_unload,
            || {
                let mut root = reserved_beyond_unload();
                close_reserved(&mut root);
                root
            },
        ],
        &[
            |root| _ = root.contact(Version::Copper),
            contact_that_fails,
            |root| _ = root.say(Unload {}),
            |root| _ = root.say(RequestOffers {}),
            |root| _ = root.say(ModifyConnection::default()),
            |root| _ = root.say(TlConnectRequest { endpoint_id: CLASS, ..Default::default() }),
            |root| _ = root.say(Pause {}),
            |root| _ = root.say(Resume {}),
            close_reserved,
            |root| _ = root.close(1),
            |root| _ = root.input(ServerInput::Message { connection_id: 1, payload: &[7; 9] }),
            allow,
            deny,
            |root| {
                let request = ConnectRequest { endpoint: CLASS, service: Guid::ZERO, silo: Guid::ZERO };
                root.input(ServerInput::ConnectResult { request, result: Err(Status::CONNECTION_REFUSED) });
            },
            |root| _ = root.device_opened(1),
            |root| _ = root.device_closed(1),
            |root| _ = root.device_let_go(1, 5),
            |root| _ = root.offer(3),
            |root| _ = root.rescind(1),
            |root| _ = root.input(ServerInput::Reset),
        ],
    );
}

crate::coverage::stories! {
    whatever_happens_to_a_channel_it_ends
    whatever_a_sub_channel_does_it_ends_with_its_primary
    whatever_happens_to_a_page_list_it_comes_back
    whatever_happens_to_a_connection_it_ends
}
