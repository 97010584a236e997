//! Every event in every state of a server: whatever comes when, everything can be let go of afterwards.
//!
//! What each event leads to is written in the book (`docs/src/protocol/coverage.md`), from what happens here.

mod states;

use vmbus_core::message::*;
use vmbus_core::server::*;
use vmbus_core::{Guid, Status, Version};

use self::states::*;
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
