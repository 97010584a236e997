//! The specification's table of channel states, cell by cell: `state_event`.

use vmbus_core::server::ChannelState::*;
use vmbus_core::server::Fault;

use crate::root::{Answers, Root};

const FAULT: [&str; 1] = ["fault of the guest"];
const NOTHING: [&str; 0] = [];

/// The guest has released channel 1 without being asked to.
fn client_released() -> Root {
    let mut root = Root::closed();
    assert_eq!(root.release(1), NOTHING);
    assert_eq!(root.state(), ClientReleased);
    root
}

#[test]
fn client_released_open() {
    assert_eq!(client_released().open(1, 7, 5), FAULT);
}

#[test]
fn client_released_close() {
    assert_eq!(client_released().close(1), FAULT);
}

#[test]
fn client_released_rescind() {
    let mut root = client_released();
    assert_eq!(root.rescind(1), ["released 1"]);
    assert_eq!(root.server.channels().count(), 0);
}

#[test]
fn client_released_relid_released() {
    assert_eq!(client_released().release(1), FAULT);
}

#[test]
fn closed_open() {
    let root = Root::opening();
    assert_eq!(root.state(), Opening);
    let open = &root.opens[0];
    assert_eq!((open.open_id, open.ring_gpadl, open.downstream_page, open.target_vp), (7, 5, 2, 3));
    assert_eq!((open.event_flag, open.connection_id, open.ring.page_count()), (1, 0x2001, 4));
}

#[test]
fn closed_close() {
    let mut root = Root::closed();
    assert_eq!(root.close(1), FAULT);
    assert_eq!(root.state(), Closed);
}

#[test]
fn closed_rescind() {
    assert_eq!(Root::revoked().state(), Revoked);
}

#[test]
fn closed_relid_released() {
    let mut root = client_released();
    // The id is free for another device at once, the released device is not shown again.
    assert_eq!(root.server.usage().channels, 0);
    assert_eq!(root.offer(2), ["OFFER 2"]);
    assert_eq!(root.state(), ClientReleased);
}

#[test]
fn opening_open() {
    let mut root = Root::opening();
    assert_eq!(root.open(1, 8, 5), FAULT);
    assert_eq!(root.device_opened(1), ["RESULT 1 open 7 ok"]);
}

#[test]
fn opening_close() {
    let mut root = Root::opening();
    assert_eq!(root.close(1), FAULT);
    assert_eq!(root.faults[0].to_string(), "the guest sent CLOSECHANNEL for channel 1, which is opening");
    assert_eq!(root.state(), Opening);
}

#[test]
fn opening_device_opened() {
    assert_eq!(Root::opened().state(), Open);
}

#[test]
fn opening_device_refused() {
    let mut root = Root::opening();
    assert_eq!(root.device_refused(1), ["RESULT 1 open 7 failed"]);
    assert_eq!(root.state(), Closed);
    assert_eq!(root.open(1, 8, 5), ["open 1"], "the guest may try again");
}

#[test]
fn opening_rescind() {
    let mut root = Root::opening();
    assert_eq!(root.rescind(1), NOTHING, "the device finishes its step first");
    assert_eq!(root.state(), Revoked);
    assert_eq!(root.device_opened(1), ["close 1"], "no RESULT is sent");
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
}

#[test]
fn opening_relid_released() {
    let mut root = Root::opening();
    assert_eq!(root.release(1), FAULT);
    assert_eq!(root.state(), Opening);
}

#[test]
fn opening_unload_is_opening_client_release() {
    let mut root = Root::opening();
    root.answers = Answers::Policy;
    assert_eq!(root.say(vmbus_core::message::Unload {}), NOTHING);
    assert_eq!(root.state(), OpeningClientRelease);
    assert_eq!(root.device_opened(1), ["close 1"]);
    assert_eq!(root.state(), ClosingClientRelease);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["disconnected", "UNLOADED"]);
    assert_eq!(root.state(), ClientReleased);
}

#[test]
fn open_open() {
    let mut root = Root::opened();
    assert_eq!(root.open(1, 8, 5), FAULT);
    assert_eq!(root.state(), Open);
}

#[test]
fn open_close() {
    assert_eq!(Root::closing().state(), Closing);
}

#[test]
fn open_rescind() {
    let mut root = Root::opened();
    assert_eq!(root.rescind(1), ["close 1"]);
    assert_eq!(root.state(), Revoked);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
    assert_eq!(root.release(1), ["released 1"]);
}

#[test]
fn open_relid_released() {
    let mut root = Root::opened();
    assert_eq!(root.release(1), FAULT);
    assert_eq!(root.state(), Open);
}

#[test]
fn open_unload_is_closing_client_release() {
    let mut root = Root::opened();
    assert_eq!(root.say(vmbus_core::message::Unload {}), ["close 1"]);
    assert_eq!(root.state(), ClosingClientRelease);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["disconnected", "UNLOADED"]);
}

#[test]
fn closing_open() {
    assert_eq!(Root::closing_reopen().state(), ClosingReopen);
}

#[test]
fn closing_close() {
    let mut root = Root::closing();
    assert_eq!(root.close(1), FAULT);
    assert_eq!(root.state(), Closing);
}

#[test]
fn closing_device_closed() {
    let mut root = Root::closing();
    assert_eq!(root.device_closed(1), NOTHING);
    assert_eq!(root.state(), Closed);
}

#[test]
fn closing_rescind() {
    let mut root = Root::closing();
    assert_eq!(root.rescind(1), NOTHING);
    assert_eq!(root.state(), Revoked);
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
}

#[test]
fn closing_relid_released_is_closing_client_release() {
    let mut root = Root::closing();
    assert_eq!(root.release(1), NOTHING);
    assert_eq!(root.state(), ClosingClientRelease);
    assert_eq!(root.server.usage().channels, 1, "the id is not free before the device has closed");
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), NOTHING);
    assert_eq!(root.state(), ClientReleased);
    assert_eq!(root.server.usage(), Default::default());
}

#[test]
fn closing_reopen_open() {
    let mut root = Root::closing_reopen();
    assert_eq!(root.open(1, 9, 5), FAULT);
    assert_eq!(root.state(), ClosingReopen);
}

#[test]
fn closing_reopen_close() {
    let mut root = Root::closing_reopen();
    assert_eq!(root.close(1), FAULT);
    assert_eq!(root.state(), ClosingReopen);
}

#[test]
fn closing_reopen_device_closed() {
    let mut root = Root::closing_reopen();
    assert_eq!(root.device_closed(1), ["open 1"]);
    assert_eq!(root.state(), Opening);
    assert_eq!(root.device_opened(1), ["RESULT 1 open 8 ok"]);
}

#[test]
fn closing_reopen_rescind() {
    let mut root = Root::closing_reopen();
    assert_eq!(root.rescind(1), NOTHING);
    assert_eq!(root.state(), Revoked);
    assert_eq!(root.device_closed(1), ["release 1/5"], "nothing is opened again");
    assert_eq!(root.device_let_go(1, 5), ["RESCIND 1"]);
}

#[test]
fn closing_reopen_relid_released() {
    let mut root = Root::closing_reopen();
    assert_eq!(root.release(1), FAULT);
    assert_eq!(root.state(), ClosingReopen);
}

#[test]
fn revoked_open_is_ignored() {
    assert_eq!(Root::revoked().open(1, 7, 5), NOTHING);
}

#[test]
fn revoked_close_is_ignored() {
    assert_eq!(Root::revoked().close(1), NOTHING);
}

#[test]
fn revoked_relid_released() {
    let mut root = Root::revoked();
    assert_eq!(root.server.usage().channels, 1);
    assert_eq!(root.release(1), ["released 1"]);
    assert_eq!(root.server.usage().channels, 0);
}

#[test]
fn revoked_device_returns_is_reoffered() {
    assert_eq!(Root::reoffered().state(), Reoffered);
}

#[test]
fn reoffered_open_is_ignored() {
    assert_eq!(Root::reoffered().open(1, 7, 5), NOTHING);
}

#[test]
fn reoffered_close_is_ignored() {
    assert_eq!(Root::reoffered().close(1), NOTHING);
}

#[test]
fn reoffered_rescind() {
    let mut root = Root::reoffered();
    assert_eq!(root.rescind(1), NOTHING, "the guest knows already");
    assert_eq!(root.state(), Revoked);
    assert_eq!(root.release(1), ["released 1"]);
}

#[test]
fn reoffered_relid_released() {
    let mut root = Root::reoffered();
    assert_eq!(root.release(1), ["OFFER 1"], "under the same id");
    assert_eq!(root.state(), Closed);
}

#[test]
fn answers_that_nothing_asked_for_are_our_fault() {
    let mut root = Root::shared();
    assert_eq!(root.device_opened(1), ["fault of ours"]);
    assert_eq!(root.device_closed(1), ["fault of ours"]);
    assert_eq!(root.device_let_go(1, 5), ["fault of ours"]);
    assert_eq!(root.device_opened(99), ["fault of ours"]);
    assert_eq!(root.offer(1), ["fault of ours"]);
    assert_eq!(root.rescind(2), ["fault of ours"]);
    assert!(matches!(root.faults[0], Fault::UnexpectedAnswer { answer: "an open", relid: 1 }));
    assert_eq!(root.state(), Closed);
}

crate::coverage::stories! {
    client_released_open
    client_released_close
    client_released_rescind
    client_released_relid_released
    closed_open
    closed_close
    closed_rescind
    closed_relid_released
    opening_open
    opening_close
    opening_device_opened
    opening_device_refused
    opening_rescind
    opening_relid_released
    opening_unload_is_opening_client_release
    open_open
    open_close
    open_rescind
    open_relid_released
    open_unload_is_closing_client_release
    closing_open
    closing_close
    closing_device_closed
    closing_rescind
    closing_relid_released_is_closing_client_release
    closing_reopen_open
    closing_reopen_close
    closing_reopen_device_closed
    closing_reopen_rescind
    closing_reopen_relid_released
    revoked_open_is_ignored
    revoked_close_is_ignored
    revoked_relid_released
    revoked_device_returns_is_reoffered
    reoffered_open_is_ignored
    reoffered_close_is_ignored
    reoffered_rescind
    reoffered_relid_released
    answers_that_nothing_asked_for_are_our_fault
}
