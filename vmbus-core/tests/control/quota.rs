//! Each bound holds, the guest is told, and what fits goes on.

use vmbus_core::Version;
use vmbus_core::message::*;
use vmbus_core::server::*;

use crate::root::{Answers, CLASS, Root, page_list};

const NOTHING: [&str; 0] = [];

fn root(quotas: Quotas) -> Root {
    Root::with_device(Version::Iron, ServerConfig { quotas, ..Default::default() })
}

fn assert_exceeded(root: &mut Root, expected: Quota) {
    match root.faults.pop() {
        Some(fault @ Fault::OverQuota { quota, .. }) => {
            assert_eq!((quota, fault.whose()), (expected, Whose::Peer));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn channels_beyond_the_quota_wait_for_an_id() {
    let mut root = root(Quotas { channels: 2, ..Default::default() });
    assert_eq!(root.offer(2), ["OFFER 2"]);
    assert_eq!(root.offer(3), ["fault of the guest"]);
    assert_exceeded(&mut root, Quota::Channels);
    assert_eq!(root.rescind(1), ["RESCIND 1"]);
    assert_eq!(root.offer(4), ["fault of the guest"], "the guest has not released channel 1");
    assert_eq!(root.server.usage().channels, 2);
    assert_eq!(root.release(1), ["released 1", "OFFER 3"]);
    assert_eq!(root.rescind(2), ["RESCIND 2"]);
    assert_eq!(root.rescind(4), ["released 4"], "nobody waits for device 4 any more");
    assert_eq!(root.release(2), ["released 2"]);
}

#[test]
fn ids_run_out_at_2047_and_are_used_again_only_when_released() {
    let mut root = root(Quotas { channels: 1 << 20, ..Default::default() });
    for device in 2..=2047 {
        assert_eq!(root.offer(device), [format!("OFFER {device}")]);
    }
    assert_eq!(root.offer(2048), ["fault of the guest"]);
    assert_eq!(root.rescind(1000), ["RESCIND 1000"]);
    assert_eq!(root.rescind(7), ["RESCIND 7"]);
    assert_eq!(root.release(7), ["released 7", "OFFER 7"], "device 2048 gets the free id");
    assert_eq!(root.offer(2049), ["fault of the guest"], "1000 is not released");
    assert_eq!(root.release(1000), ["released 1000", "OFFER 1000"]);
}

#[test]
fn half_built_lists_are_counted() {
    let mut root = root(Quotas { half_built_gpadls: 3, ..Default::default() });
    let list = page_list(100);
    for gpadl in 1..=3 {
        assert_eq!(root.say(list.messages(1, gpadl).next().unwrap()), NOTHING);
    }
    for gpadl in 4..1000 {
        let header = list.messages(1, gpadl).next().unwrap();
        assert_eq!(root.say(header).last().unwrap(), &format!("CREATED 1/{gpadl} failed"));
        assert_exceeded(&mut root, Quota::HalfBuiltGpadls);
    }
    assert_eq!(root.server.usage().half_built_gpadls, 3);
    let rest: Vec<_> = list.messages(1, 2).skip(1).collect();
    let lines: Vec<_> = rest.into_iter().flat_map(|message| root.say(message)).collect();
    assert_eq!(lines, ["gpadl 1/2", "CREATED 1/2 ok"]);
}

#[test]
fn words_of_half_built_lists_are_counted_together() {
    let mut root = root(Quotas { half_built_words: 100, ..Default::default() });
    let list = page_list(80);
    let header = |gpadl| list.messages(1, gpadl).next().unwrap();
    assert_eq!(root.say(header(1)), NOTHING);
    assert_eq!(root.say(header(2)), NOTHING);
    assert_eq!(root.say(header(3)), NOTHING, "81 of 100 words");
    let body = list.messages(1, 1).nth(1).unwrap();
    assert_eq!(root.say(body).last().unwrap(), "CREATED 1/1 failed", "28 more are too many");
    assert_exceeded(&mut root, Quota::HalfBuiltWords);
    assert_eq!(root.server.usage().half_built_words, 54);
    let huge = page_list(1000);
    let announced = huge.messages(1, 9).next().unwrap();
    assert_eq!(root.say(announced).last().unwrap(), "CREATED 1/9 failed", "refused by what it announces");
    assert!(matches!(root.faults.pop(), Some(Fault::BadGpadl { .. })));
}

#[test]
fn complete_lists_are_counted() {
    let mut root = root(Quotas { gpadls: 2, ..Default::default() });
    root.answers = Answers::All;
    root.share(1, 1);
    root.share(1, 2);
    assert_eq!(root.share(1, 3).last().unwrap(), "CREATED 1/3 failed");
    assert_exceeded(&mut root, Quota::Gpadls);
    assert_eq!(root.teardown(1, 1).last().unwrap(), "TORNDOWN 1");
    assert_eq!(root.share(1, 3).last().unwrap(), "CREATED 1/3 ok");
}

#[test]
fn a_list_counts_until_the_device_has_let_go_of_it() {
    let mut root = root(Quotas { gpadls: 1, ..Default::default() });
    root.share(1, 1);
    assert_eq!(root.teardown(1, 1), ["release 1/1"]);
    assert_eq!(root.share(1, 2).last().unwrap(), "CREATED 1/2 failed");
    assert_eq!(root.device_let_go(1, 1), ["TORNDOWN 1"]);
    assert_eq!(root.share(1, 2).last().unwrap(), "CREATED 1/2 ok");
}

#[test]
fn shared_pages_are_counted() {
    let mut root = root(Quotas { pages: 100, ..Default::default() });
    assert_eq!(root.share_pages(1, 1, 90).last().unwrap(), "CREATED 1/1 ok");
    assert_eq!(root.share_pages(1, 2, 11).last().unwrap(), "CREATED 1/2 failed");
    assert_exceeded(&mut root, Quota::Pages);
    assert_eq!(root.share_pages(1, 2, 10).last().unwrap(), "CREATED 1/2 ok");
    assert_eq!(root.server.usage().pages, 100);
}

#[test]
fn pages_count_on_a_rescinded_channel_too() {
    let mut root = root(Quotas { pages: 10, ..Default::default() });
    root.rescind(1);
    assert_eq!(root.share_pages(1, 1, 10), ["CREATED 1/1 ok"]);
    assert_eq!(root.share_pages(1, 2, 1).last().unwrap(), "CREATED 1/2 failed");
    assert_eq!(root.teardown(1, 1), ["TORNDOWN 1"]);
    assert_eq!(root.share_pages(1, 2, 1), ["CREATED 1/2 ok"]);
}

#[test]
fn questions_are_counted() {
    let mut root = root(Quotas { questions: 2, ..Default::default() });
    root.share(1, 9);
    root.answers = Answers::None;
    assert_eq!(root.share(1, 1), ["ask share 1/1 4 pages"]);
    assert_eq!(root.share(1, 2), ["ask share 1/2 4 pages"]);
    assert_eq!(root.share(1, 3).last().unwrap(), "CREATED 1/3 failed");
    assert_exceeded(&mut root, Quota::Questions);
    assert_eq!(root.open(1, 7, 9).last().unwrap(), "RESULT 1 open 7 failed");
    assert_exceeded(&mut root, Quota::Questions);
    assert_eq!(root.server.usage().questions, 2);
    assert_eq!(root.offer(2), ["ask offer 2"], "what the host offers is the host's doing");
    assert_eq!(root.decide(Answer::Allow).last().unwrap(), "CREATED 1/1 ok");
    assert_eq!(root.open(1, 7, 9), ["ask open 1 7"]);
}

#[test]
fn without_questions_nobody_connects() {
    let mut root = Root::new(ServerConfig {
        quotas: Quotas { questions: 0, ..Default::default() },
        ..Default::default()
    });
    assert_eq!(root.contact(Version::Iron), ["fault of the guest", "VERSION state 1"]);
    assert_eq!(root.contact(Version::V1), ["fault of the guest", "VERSION not supported"]);
}

#[test]
fn hvsock_connects_are_counted() {
    let mut root = root(Quotas { connects: 2, ..Default::default() });
    let request = |number| TlConnectRequest {
        endpoint_id: CLASS,
        service_id: vmbus_core::Guid::from_wire([number; 16]),
        ..Default::default()
    };
    assert_eq!(root.say(request(1)), ["connect"]);
    assert_eq!(root.say(request(2)), ["connect"]);
    assert_eq!(root.say(request(3)).len(), 2, "a fault and a refusal");
    assert_exceeded(&mut root, Quota::Connects);
    assert_eq!(root.server.usage().connects, 2);
}

#[test]
fn while_disconnecting_one_contact_is_kept_and_nothing_else() {
    let mut root = Root::opened();
    assert_eq!(root.contact(Version::Win10), ["close 1"]);
    for _ in 0..1000 {
        assert_eq!(root.say(RequestOffers {}), ["fault of the guest"]);
        assert_eq!(root.share(1, 9), ["fault of the guest"]);
        assert_eq!(root.contact(Version::Win8), NOTHING);
    }
    assert_eq!(root.device_closed(1), ["release 1/5"]);
    assert_eq!(root.device_let_go(1, 5), ["disconnected", "VERSION accepted"]);
    assert_eq!(root.server.connection().unwrap().version, Version::Win8, "the latest counts");
}

#[test]
fn what_a_pause_holds_back_is_bounded_by_the_channel_ids() {
    use vmbus_core::FeatureFlags;
    let quotas = Quotas { channels: 3, ..Default::default() };
    let mut root = Root::new(ServerConfig { quotas, ..Default::default() });
    root.features = FeatureFlags::PAUSE_RESUME;
    root.answers = Answers::All;
    root.connect(Version::Copper);
    root.say(RequestOffers {});
    assert_eq!(root.say(Pause {}), ["PAUSED"]);
    for device in 0..10_000 {
        root.offer(device);
        root.rescind(device);
    }
    let held = root.say(Resume {});
    assert_eq!(held, ["OFFER 1", "RESCIND 1", "OFFER 2", "RESCIND 2", "OFFER 3", "RESCIND 3"]);
    assert_eq!(root.server.channels().count(), 3, "what the guest must release");
}
