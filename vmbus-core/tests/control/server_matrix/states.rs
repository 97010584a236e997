//! A server in each state that channels, page lists and its connection can be in, and what may happen to it.
//!
//! The channel is 1, of device 1; page list 5 has its rings, and 7 is any other list of it.

use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{FeatureFlags, Status, Version};
use zerocopy::little_endian::{U32, U64};

use crate::root::{Answers, CLASS, Root, page_list};

/// A guest of 6.0 that may pause is connected.
pub(super) fn connected() -> Root {
    let mut root = Root::new(ServerConfig::default());
    root.features = FeatureFlags::PAUSE_RESUME | FeatureFlags::MODIFY_CONNECTION;
    root.connect(Version::Copper);
    root
}

/// It has asked for offers.
pub(super) fn waiting() -> Root {
    let mut root = connected();
    root.say(RequestOffers {});
    root
}

pub(super) fn proposed() -> Root {
    let mut root = waiting();
    root.answers = Answers::None;
    root.offer(1);
    root
}

pub(super) fn not_yet_shown() -> Root {
    let mut root = connected();
    root.offer(1);
    root
}

pub(super) fn closed() -> Root {
    let mut root = waiting();
    root.offer(1);
    root
}

pub(super) fn client_released() -> Root {
    let mut root = closed();
    root.release(1);
    root
}

pub(super) fn shared() -> Root {
    let mut root = closed();
    root.share(1, 5);
    root
}

pub(super) fn asked() -> Root {
    let mut root = shared();
    root.answers = Answers::None;
    root.open(1, 7, 5);
    root
}

pub(super) fn opening() -> Root {
    let mut root = shared();
    root.open(1, 7, 5);
    root
}

pub(super) fn opened() -> Root {
    let mut root = opening();
    root.device_opened(1);
    root
}

pub(super) fn with_subchannel() -> Root {
    let mut root = opened();
    subchannel(&mut root);
    root
}

pub(super) fn subchannel(root: &mut Root) {
    let primary = Some(DeviceKey(1));
    let offer = OfferParams { primary, subchannel_index: 1, ..OfferParams::new(CLASS, CLASS) };
    root.input(ServerInput::Offer { device: DeviceKey(2), offer });
}

pub(super) fn opening_reserved() -> Root {
    let mut root = shared();
    open_reserved(&mut root);
    root
}

pub(super) fn reserved() -> Root {
    let mut root = opening_reserved();
    root.device_opened(1);
    root
}

pub(super) fn reserved_beyond_unload() -> Root {
    let mut root = reserved();
    root.say(Unload {});
    root
}

pub(super) fn closing() -> Root {
    let mut root = opened();
    root.close(1);
    root
}

pub(super) fn closing_reserved() -> Root {
    let mut root = reserved();
    close_reserved(&mut root);
    root
}

pub(super) fn closing_reopen() -> Root {
    let mut root = closing();
    root.open(1, 8, 5);
    root
}

pub(super) fn released_while_closing() -> Root {
    let mut root = closing();
    root.release(1);
    root
}

pub(super) fn unloaded_while_opening() -> Root {
    let mut root = opening();
    root.say(Unload {});
    root
}

pub(super) fn unloaded_while_open() -> Root {
    let mut root = opened();
    root.say(Unload {});
    root
}

pub(super) fn rescinding() -> Root {
    let mut root = opened();
    root.rescind(1);
    root
}

pub(super) fn rescinded_while_opening() -> Root {
    let mut root = opening();
    root.rescind(1);
    root
}

pub(super) fn rescinded_while_shared() -> Root {
    let mut root = shared();
    root.rescind(1);
    root
}

pub(super) fn revoked() -> Root {
    let mut root = closed();
    root.rescind(1);
    root
}

pub(super) fn released_while_rescinding() -> Root {
    let mut root = rescinding();
    root.release(1);
    root
}

pub(super) fn reoffered() -> Root {
    let mut root = revoked();
    root.offer(1);
    root
}

pub(super) fn reoffered_while_closing() -> Root {
    let mut root = rescinding();
    root.offer(1);
    root
}

/// The guest has released what was rescinded while it opened.
pub(super) fn released_while_opening() -> Root {
    let mut root = rescinded_while_opening();
    root.release(1);
    root
}

/// The device is back and policy thinks; the channel keeps its id meanwhile.
pub(super) fn reoffered_and_released() -> Root {
    let mut root = reoffered();
    root.answers = Answers::None;
    root.release(1);
    root
}

/// Policy thinks about device 1, and no channel id is free.
pub(super) fn proposed_without_ids() -> Root {
    let quotas = Quotas { channels: 1, ..Default::default() };
    let mut root = Root::new(ServerConfig { quotas, ..Default::default() });
    root.connect(Version::Copper);
    root.say(RequestOffers {});
    root.offer(3);
    root.answers = Answers::None;
    root.offer(1);
    root
}

pub(super) fn open_reserved(root: &mut Root) {
    root.say(OpenReservedChannel {
        relid: U32::new(1),
        target_sint: U32::new(2),
        ring_gpadl: U32::new(5),
        downstream_page_offset: U32::new(2),
        ..Default::default()
    });
}

pub(super) fn close_reserved(root: &mut Root) {
    let message = CloseReservedChannel { relid: U32::new(1), target_sint: U32::new(2), ..Default::default() };
    root.say(message);
}

pub(super) fn allow(root: &mut Root) {
    if !root.asked.is_empty() {
        root.decide(Answer::Allow);
    }
}

pub(super) fn deny(root: &mut Root) {
    if !root.asked.is_empty() {
        root.decide(Answer::Deny(Status::ACCESS_DENIED));
    }
}

pub(super) fn modify(root: &mut Root) {
    root.say(ModifyChannel { relid: U32::new(1), target_vp: U32::new(1) });
}

/// A sub-channel in each state, as channel 2 of device 2; its primary is open as channel 1.
pub(super) fn sub_closed() -> Root {
    let mut root = opened();
    subchannel(&mut root);
    root.share(2, 6);
    root
}

pub(super) fn sub_proposed() -> Root {
    let mut root = opened();
    root.answers = Answers::None;
    subchannel(&mut root);
    root
}

pub(super) fn sub_opening() -> Root {
    let mut root = sub_closed();
    root.open(2, 1, 6);
    root
}

pub(super) fn sub_opened() -> Root {
    let mut root = sub_opening();
    root.device_opened(2);
    root
}

pub(super) fn sub_reserved() -> Root {
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

pub(super) fn sub_closing() -> Root {
    let mut root = sub_opened();
    root.close(2);
    root
}

pub(super) fn sub_closing_reopen() -> Root {
    let mut root = sub_closing();
    root.open(2, 9, 6);
    root
}

pub(super) fn sub_released_while_closing() -> Root {
    let mut root = sub_closing();
    root.release(2);
    root
}

pub(super) fn sub_revoked() -> Root {
    let mut root = sub_opened();
    root.rescind(2);
    root
}

pub(super) fn sub_released_while_opening() -> Root {
    let mut root = sub_opening();
    root.rescind(2);
    root.release(2);
    root
}

pub(super) fn sub_reoffered() -> Root {
    let mut root = sub_revoked();
    subchannel(&mut root);
    root
}

pub(super) fn half_built() -> Root {
    let mut root = shared();
    root.say(page_list(60).messages(1, 7).next().unwrap());
    root
}

pub(super) fn list_asked() -> Root {
    let mut root = shared();
    root.answers = Answers::None;
    root.share(1, 7);
    root
}

pub(super) fn accepted() -> Root {
    let mut root = shared();
    root.share(1, 7);
    root
}

pub(super) fn tearing_down() -> Root {
    let mut root = accepted();
    root.teardown(1, 7);
    root
}

pub(super) fn recalled() -> Root {
    let mut root = accepted();
    root.rescind(1);
    root
}

/// Accepted without a device: the channel was rescinded before.
pub(super) fn accepted_by_nobody() -> Root {
    let mut root = revoked();
    root.share(1, 7);
    root
}

pub(super) fn half_built_on_revoked() -> Root {
    let mut root = half_built();
    root.rescind(1);
    root
}

/// The guest cannot release the channel: it is open.
pub(super) fn half_built_while_open() -> Root {
    let mut root = opened();
    root.say(page_list(60).messages(1, 7).next().unwrap());
    root
}

pub(super) fn tearing_down_on_revoked() -> Root {
    let mut root = tearing_down();
    root.rescind(1);
    root
}

pub(super) fn dropped() -> Root {
    let mut root = accepted();
    root.rescind(1);
    root.release(1);
    root
}

/// List 5 is the ring of a channel in this state, which the guest has asked back.
pub(super) fn ring_asked_back() -> Root {
    let mut root = opened();
    root.teardown(1, 5);
    root
}

pub(super) fn ring_asked_back_while_closing() -> Root {
    let mut root = closing();
    root.teardown(1, 5);
    root
}

pub(super) fn disconnected() -> Root {
    let mut root = Root::new(ServerConfig::default());
    root.features = FeatureFlags::PAUSE_RESUME | FeatureFlags::MODIFY_CONNECTION;
    root
}

pub(super) fn connecting() -> Root {
    let mut root = disconnected();
    root.answers = Answers::None;
    root.contact(Version::Copper);
    root
}

pub(super) fn paused() -> Root {
    let mut root = opened();
    root.say(Pause {});
    root
}

pub(super) fn replacing() -> Root {
    let mut root = opened();
    root.contact(Version::Copper);
    root
}

pub(super) fn resetting() -> Root {
    let mut root = opened();
    root.input(ServerInput::Reset);
    root
}

/// The device has closed; only the release of its pages is missing.
pub(super) fn almost(mut root: Root) -> Root {
    root.device_closed(1);
    root
}

pub(super) fn contact_that_fails(root: &mut Root) {
    let half = InitiateContact {
        version: U32::new(Version::Copper.word()),
        child_to_parent_monitor: U64::new(0x1000),
        ..Default::default()
    };
    root.say(half);
}
