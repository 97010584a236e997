//! Every call and message in every state of a client: whatever comes when, everything ends.
//!
//! What each leads to is written in the book (`docs/src/protocol/coverage.md`), from what happens here.

use vmbus_core::client::*;
use vmbus_core::message::*;
use vmbus_core::{FeatureFlags, Status, Version};
use zerocopy::little_endian::U32;

use crate::client::{Guest, created, offer, rescind, result};
use crate::pair::open_request;
use crate::root::{CLASS, page_list};

type Build = fn() -> Guest;
type Act = fn(&mut Guest);

const FEATURES: FeatureFlags = FeatureFlags::PAUSE_RESUME.union(FeatureFlags::MODIFY_CONNECTION);
const PAGES: MonitorPages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
const ANSWERS: AnswerSlot = AnswerSlot { vp: 0, sint: 2 };

/// Does each event in each state, then resets the client.
fn meet(states: &[Build], events: &[Act]) {
    for (state, build) in states.iter().enumerate() {
        for (event, act) in events.iter().enumerate() {
            let mut guest = build();
            act(&mut guest);
            guest.lines();
            guest.client.reset();
            guest.lines();
            assert!(guest.client.connection().is_none(), "state {state} event {event}");
            assert_eq!(guest.client.channels().count(), 0, "state {state} event {event}");
        }
    }
}

fn idle(policy: Policy) -> Guest {
    let config = ClientConfig { policy, features: FEATURES, ..Default::default() };
    Guest { client: Client::new(config), version: Version::Copper }
}

fn accepted() -> VersionResponse {
    VersionResponse {
        supported: 1,
        version_or_connection_id: U32::new(4),
        features: U32::new(FEATURES.bits()),
        ..Default::default()
    }
}

fn contacting() -> Guest {
    let mut guest = idle(Policy::AllowAll);
    connect(&mut guest);
    guest
}

fn asking() -> Guest {
    let mut guest = idle(Policy::Ask);
    connect(&mut guest);
    guest
}

fn connect(guest: &mut Guest) {
    let _ = guest.client.connect(Version::Iron..=Version::Copper);
    guest.lines();
}

fn connected() -> Guest {
    let mut guest = contacting();
    guest.hear(accepted());
    guest
}

/// Connected, with a policy that is asked.
fn thinking() -> Guest {
    let mut guest = asking();
    guest.client.decided(AskId(1), Answer::Allow);
    guest.lines();
    guest.hear(accepted());
    guest.client.request_offers().unwrap();
    guest.lines();
    guest
}

fn waiting() -> Guest {
    let mut guest = connected();
    guest.client.request_offers().unwrap();
    guest.lines();
    guest
}

fn proposed() -> Guest {
    let mut guest = thinking();
    guest.hear(offer(1));
    guest
}

fn offered() -> Guest {
    let mut guest = waiting();
    guest.hear(offer(1));
    guest
}

fn shared() -> Guest {
    let mut guest = offered();
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest.lines();
    guest.hear(created(1, 1, 0));
    guest
}

fn shared_thinking() -> Guest {
    let mut guest = proposed();
    guest.client.decided(AskId(2), Answer::Allow);
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest.client.decided(AskId(3), Answer::Allow);
    guest.lines();
    guest.hear(created(1, 1, 0));
    guest
}

fn asked() -> Guest {
    let mut guest = shared_thinking();
    open(&mut guest);
    guest
}

fn open(guest: &mut Guest) {
    let _ = guest.client.open(1, open_request(1));
    guest.lines();
}

fn open_reserved(guest: &mut Guest) {
    let request = ReservedOpenRequest { ring_gpadl: 1, downstream_page: 2, answers: ANSWERS };
    let _ = guest.client.open_reserved(1, request);
    guest.lines();
}

fn opening() -> Guest {
    let mut guest = shared();
    open(&mut guest);
    guest
}

fn opening_given_up() -> Guest {
    let mut guest = opening();
    guest.client.close(1).unwrap();
    guest
}

fn opened() -> Guest {
    let mut guest = opening();
    guest.hear(result(1, 1, 0));
    guest
}

fn modifying() -> Guest {
    let mut guest = opened();
    guest.client.modify(1, 2).unwrap();
    guest
}

fn opening_reserved() -> Guest {
    let mut guest = shared();
    open_reserved(&mut guest);
    guest
}

fn opening_reserved_given_up() -> Guest {
    let mut guest = opening_reserved();
    guest.client.close(1).unwrap();
    guest
}

fn reserved() -> Guest {
    let mut guest = opening_reserved();
    guest.hear(result(1, 0, 0));
    guest
}

fn closing_reserved() -> Guest {
    let mut guest = reserved();
    guest.client.close_reserved(1).unwrap();
    guest.lines();
    guest
}

fn unloading(mut guest: Guest) -> Guest {
    guest.client.unload().unwrap();
    guest.lines();
    guest
}

fn unloaded(guest: Guest) -> Guest {
    let mut guest = unloading(guest);
    guest.hear(UnloadResponse {});
    guest
}

fn rescinded() -> Guest {
    let mut guest = opened();
    guest.hear(rescind(1));
    guest
}

/// Answers the last question that was asked, whichever it is.
fn decide(guest: &mut Guest, answer: Answer) {
    for id in 1..8 {
        guest.client.decided(AskId(id), answer);
    }
}

fn closed_reserved(guest: &mut Guest) {
    guest.hear(CloseReservedResponse { relid: U32::new(1) });
}

#[test]
fn whatever_happens_to_a_channel_of_a_guest_it_ends() {
    meet(
        &[
            waiting,
            proposed,
            offered,
            shared,
            shared_thinking,
            asked,
            opening,
            opening_given_up,
            opening_reserved,
            opening_reserved_given_up,
            opened,
            modifying,
            reserved,
            closing_reserved,
            rescinded,
            || unloading(opened()),
            || unloading(proposed()),
            || unloading(offered()),
            || unloading(rescinded()),
            || unloading(opening()),
            || unloading(opening_reserved()),
            || unloading(opening_reserved_given_up()),
            || unloading(reserved()),
            || unloading(closing_reserved()),
            || unloaded(reserved()),
            || unloaded(closing_reserved()),
        ],
        &[
            |guest| _ = guest.hear(offer(1)),
            |guest| _ = guest.hear(rescind(1)),
            open,
            |guest| _ = guest.hear(result(1, 1, 0)),
            |guest| _ = guest.hear(result(1, 1, 1)),
            |guest| _ = guest.hear(result(1, 0, 0)),
            |guest| _ = guest.client.close(1),
            open_reserved,
            |guest| _ = guest.client.close_reserved(1),
            closed_reserved,
            |guest| _ = guest.client.modify(1, 2),
            |guest| _ = guest.hear(ModifyChannelResponse { relid: U32::new(1), ..Default::default() }),
            |guest| _ = guest.client.release(1),
            |guest| decide(guest, Answer::Allow),
            |guest| decide(guest, Answer::Deny(Status::ACCESS_DENIED)),
            |guest| _ = guest.client.unload(),
            |guest| _ = guest.hear(UnloadResponse {}),
            |guest| guest.client.reset(),
        ],
    );
}

fn list_asked() -> Guest {
    let mut guest = shared_thinking();
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest
}

fn creating() -> Guest {
    let mut guest = shared();
    guest.client.create_gpadl(1, &page_list(4)).unwrap();
    guest
}

fn given_up() -> Guest {
    let mut guest = creating();
    guest.client.teardown_gpadl(1, 2).unwrap();
    guest
}

fn list_created() -> Guest {
    let mut guest = creating();
    guest.hear(created(1, 2, 0));
    guest
}

fn tearing_down() -> Guest {
    let mut guest = list_created();
    guest.client.teardown_gpadl(1, 2).unwrap();
    guest
}

fn torn_down() -> Guest {
    let mut guest = tearing_down();
    guest.hear(GpadlTorndown { gpadl: U32::new(2) });
    guest
}

/// Open-reserved while another list is in this state.
fn reserved_while(mut guest: Guest) -> Guest {
    open_reserved(&mut guest);
    guest.hear(result(1, 0, 0));
    guest.client.close_reserved(1).unwrap();
    guest
}

#[test]
fn whatever_happens_to_a_page_list_of_a_guest_it_ends() {
    meet(
        &[
            offered,
            list_asked,
            creating,
            given_up,
            list_created,
            tearing_down,
            torn_down,
            opened,
            || unloading(list_asked()),
            || unloading(creating()),
            || unloading(given_up()),
            || unloading(list_created()),
            || unloading(tearing_down()),
            || reserved_while(list_created()),
            || reserved_while(tearing_down()),
            || unloaded(reserved_while(list_created())),
        ],
        &[
            |guest| _ = guest.client.create_gpadl(1, &page_list(4)),
            |guest| _ = guest.client.create_gpadl(9, &page_list(4)),
            |guest| _ = guest.hear(created(1, 2, 0)),
            |guest| _ = guest.hear(created(1, 2, 1)),
            |guest| _ = guest.client.teardown_gpadl(1, 2),
            |guest| _ = guest.client.teardown_gpadl(1, 1),
            |guest| _ = guest.hear(GpadlTorndown { gpadl: U32::new(2) }),
            |guest| decide(guest, Answer::Allow),
            |guest| decide(guest, Answer::Deny(Status::ACCESS_DENIED)),
            |guest| _ = guest.hear(rescind(1)),
            closed_reserved,
            |guest| _ = guest.client.unload(),
            |guest| _ = guest.hear(UnloadResponse {}),
            |guest| guest.client.reset(),
        ],
    );
}

/// The same for a guest of 2.4, whose host does not answer UNLOAD.
#[test]
fn whatever_a_guest_before_3_0_does_it_may_unload_at_once() {
    let policies: [(Policy, &[Act]); 2] = [
        (
            Policy::AllowAll,
            &[
                |_| {},
                |guest| _ = guest.hear(offer(1)),
                |guest| _ = guest.client.create_gpadl(1, &page_list(4)),
                |guest| _ = guest.hear(created(1, 1, 0)),
                open,
                |guest| _ = guest.hear(result(1, 1, 0)),
                |guest| _ = guest.client.create_gpadl(1, &page_list(4)),
                |guest| _ = guest.hear(created(1, 2, 0)),
                |guest| _ = guest.client.teardown_gpadl(1, 2),
                |guest| _ = guest.client.create_gpadl(1, &page_list(4)),
                |guest| _ = guest.client.teardown_gpadl(1, 3),
                |guest| _ = guest.hear(rescind(1)),
            ],
        ),
        (
            Policy::Ask,
            &[
                |guest| _ = guest.hear(offer(1)),
                |guest| decide(guest, Answer::Allow),
                |guest| _ = guest.client.create_gpadl(1, &page_list(4)),
            ],
        ),
    ];
    for (policy, life) in policies {
        for steps in 0..=life.len() {
            let mut guest = idle(policy);
            guest.version = Version::Win8;
            guest.client.connect(Version::Win8..=Version::Win8).unwrap();
            guest.client.decided(AskId(1), Answer::Allow);
            guest.hear(VersionResponse { supported: 1, ..Default::default() });
            guest.client.request_offers().unwrap();
            life[..steps].iter().for_each(|step| step(&mut guest));
            guest.lines();
            guest.client.unload().unwrap();
            assert_eq!(guest.lines().last().map(String::as_str), Some("unloaded"), "after {steps} steps");
            assert_eq!(guest.client.channels().count(), 0);
        }
    }
}

fn pausing() -> Guest {
    let mut guest = shared();
    guest.client.pause().unwrap();
    guest
}

fn paused() -> Guest {
    let mut guest = pausing();
    guest.hear(PauseResponse {});
    guest
}

fn modifying_pages() -> Guest {
    let mut guest = connected();
    guest.client.modify_connection(Some(PAGES)).unwrap();
    guest
}

#[test]
fn whatever_happens_to_a_connection_of_a_guest_it_ends() {
    let refused = VersionResponse::default();
    assert_eq!(contacting().hear(refused), ["INITIATE_CONTACT"], "the next version");
    meet(
        &[
            || idle(Policy::AllowAll),
            asking,
            contacting,
            || {
                let mut last = contacting();
                last.hear(VersionResponse::default());
                last
            },
            connected,
            waiting,
            modifying_pages,
            pausing,
            paused,
            || unloading(connected()),
        ],
        &[
            connect,
            |guest| _ = guest.client.request_offers(),
            |guest| _ = guest.client.modify_connection(None),
            |guest| {
                let request = ConnectRequest { endpoint: CLASS, service: CLASS, silo: CLASS };
                let _ = guest.client.connect_service(request);
            },
            |guest| _ = guest.client.pause(),
            |guest| _ = guest.client.resume(),
            |guest| _ = guest.client.unload(),
            |guest| guest.client.reset(),
            |guest| guest.client.connection_refused(4),
            |guest| decide(guest, Answer::Allow),
            |guest| decide(guest, Answer::Deny(Status::ACCESS_DENIED)),
            |guest| _ = guest.hear(accepted()),
            |guest| _ = guest.hear(VersionResponse::default()),
            |guest| _ = guest.hear(VersionResponse { connection_state: 1, ..accepted() }),
            |guest| _ = guest.hear(AllOffersDelivered {}),
            |guest| _ = guest.hear(ModifyConnectionResponse { connection_state: 0 }),
            |guest| _ = guest.hear(TlConnectResult::default()),
            |guest| _ = guest.hear(PauseResponse {}),
            |guest| _ = guest.hear(UnloadResponse {}),
            |guest| _ = guest.hear(offer(2)),
            |guest| guest.client.handle_message(&[7; 9]),
        ],
    );
}

crate::coverage::stories! {
    whatever_happens_to_a_channel_of_a_guest_it_ends
    whatever_happens_to_a_page_list_of_a_guest_it_ends
    whatever_a_guest_before_3_0_does_it_may_unload_at_once
    whatever_happens_to_a_connection_of_a_guest_it_ends
}
