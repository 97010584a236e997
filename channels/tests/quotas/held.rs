//! What is counted: channels, page lists, pages, rings, messages.

use vmbus_channels::test_utils::{join, join_with};
use vmbus_channels::{Device, Error, Guest, Quotas};
use vmbus_core::message::{GpadlHeader, Message};
use vmbus_core::server;
use vmbus_core::status::Status;

use crate::world::{CLASS, Neighbour, PATIENCE, bus, contact, intruder, offers, open, partition, used};

fn with(change: impl FnOnce(&mut Quotas)) -> Quotas {
    let mut quotas = Quotas::default();
    change(&mut quotas);
    quotas
}

#[tokio::test]
async fn a_guest_is_offered_as_many_channels_as_it_may_have_and_the_rest_as_it_gives_some_back() {
    let protocol = server::Quotas { channels: 3, ..server::Quotas::default() };
    let root = bus(protocol.into(), 8);
    let neighbour = Neighbour::of(&root).await;
    let guest = intruder(&root).await;
    let relids = offers(&guest, 3).await;
    let seen = used(&root, "intruder", "channels").await;
    assert_eq!((seen.now, seen.most, seen.limit), (3, 3, 3));
    neighbour.is_served().await;
    guest.say(vmbus_core::message::RelidReleased { relid: relids[0].into() });
    crate::world::offer(&guest).await;
    assert_eq!(used(&root, "intruder", "channels").await.now, 3);
}

#[tokio::test]
async fn half_built_page_lists_are_bounded_in_number() {
    half_built(server::Quotas { half_built_gpadls: 5, ..server::Quotas::default() }, 5).await;
}

#[tokio::test]
async fn half_built_page_lists_are_bounded_in_words() {
    // Of each come seven words.
    half_built(server::Quotas { half_built_words: 1100, ..server::Quotas::default() }, 157).await;
}

/// Begins 200 page lists, of which no more than so many are kept.
async fn half_built(protocol: server::Quotas, kept: u64) {
    let root = bus(protocol.into(), 1);
    let neighbour = Neighbour::of(&root).await;
    let guest = intruder(&root).await;
    let relid = offers(&guest, 1).await[0];
    for gpadl in 1..=200_u32 {
        // One range of a thousand pages, of which six come now.
        let header = GpadlHeader {
            relid: relid.into(),
            gpadl: gpadl.into(),
            range_buflen: 8008.into(),
            range_count: 1.into(),
        };
        let mut ranges = Vec::new();
        ranges.extend_from_slice(&(1000 * 4096_u32).to_le_bytes());
        ranges.extend_from_slice(&0_u32.to_le_bytes());
        for pfn in 0..6_u64 {
            ranges.extend_from_slice(&pfn.to_le_bytes());
        }
        guest.say(Message::GpadlHeader(header, &ranges));
    }
    for _ in kept..200 {
        assert_eq!(guest.hear(created).await, Status::INSUFFICIENT_RESOURCES.0);
    }
    assert_eq!(used(&root, "intruder", "half-built page lists").await.most, kept);
    assert_eq!(used(&root, "intruder", "words of half-built page lists").await.most, 7 * kept);
    neighbour.is_served().await;
}

fn created(message: Message<'_>) -> Option<u32> {
    match message {
        Message::GpadlCreated(answer) => Some(answer.status.get()),
        _ => None,
    }
}

#[tokio::test]
async fn page_lists_and_their_pages_are_bounded() {
    let protocol = server::Quotas { gpadls: 4, pages: 100, ..server::Quotas::default() };
    let root = bus(protocol.into(), 1);
    let neighbour = Neighbour::of(&root).await;
    let guest = intruder(&root).await;
    let relid = offers(&guest, 1).await[0];
    let mut answers = Vec::new();
    let mut memory = Vec::new();
    // 30 pages each: the fourth list would exceed the pages; then one of 4 pages, and there are enough lists.
    for (gpadl, pages) in [(1, 14), (2, 14), (3, 14), (4, 14), (5, 1), (6, 1), (7, 1)] {
        let (rings, list) = guest.rings(pages);
        memory.push(rings);
        for message in list.messages(relid, gpadl) {
            guest.say(message);
        }
        answers.push(guest.hear(created).await == 0);
    }
    assert_eq!(answers, [true, true, true, false, true, false, false]);
    assert_eq!(used(&root, "intruder", "shared pages").await.most, 94);
    assert_eq!(used(&root, "intruder", "page lists").await.most, 4);
    neighbour.is_served().await;
}

#[tokio::test]
async fn a_guest_that_has_opened_as_many_channels_as_it_may_is_told_so_and_can_close_one_for_another() {
    let root = bus(with(|quotas| quotas.open_channels = 2), 3);
    let neighbour = Neighbour::of(&root).await;
    let guest = join(&root, "greedy").await.unwrap();
    let devices = guest.all_offers().await.unwrap();
    let device = |nth: usize| Device::instance(devices[nth].instance);
    let first = guest.open(device(0)).await.unwrap();
    let _second = guest.open(device(1)).await.unwrap();
    let Err(Error::Refused(refusal)) = guest.open(device(2)).await else { panic!("a third channel") };
    assert_eq!(refusal.status, Status::INSUFFICIENT_RESOURCES);
    assert!(refusal.reason.contains("2 channels are open"), "{}", refusal.reason);
    neighbour.is_served().await;
    drop(first);
    let opened = tokio::time::timeout(PATIENCE, async {
        while guest.open(device(2)).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    opened.await.expect("room for another");
    assert_eq!(used(&root, "greedy", "open channels").await.most, 2);
}

#[tokio::test]
async fn the_rings_of_all_channels_together_are_bounded() {
    // Two rings of a control page and 16 pages of data: 34 pages for each channel.
    let root = bus(with(|quotas| quotas.ring_bytes = 70 * 4096), 3);
    let neighbour = Neighbour::of(&root).await;
    let guest = intruder(&root).await;
    let relids = offers(&guest, 3).await;
    let (first, _rings) = open(&guest, relids[0], 16).await;
    let (second, _rings) = open(&guest, relids[1], 16).await;
    let (third, _rings) = open(&guest, relids[2], 16).await;
    assert_eq!((first, second, third), (0, 0, Status::INSUFFICIENT_RESOURCES.0));
    let bytes = used(&root, "intruder", "bytes of rings").await;
    assert_eq!((bytes.now, bytes.limit), (68 * 4096, 70 * 4096));
    neighbour.is_served().await;
    // What is held goes with who held it: a new connection begins at zero.
    guest.say(vmbus_core::message::Unload {});
    guest.hear(|message| matches!(message, Message::UnloadResponse(_)).then_some(())).await;
    assert_eq!(used(&root, "intruder", "bytes of rings").await.now, 0);
    assert_eq!(used(&root, "intruder", "open channels").await.now, 0);
    assert_eq!(used(&root, "intruder", "shared pages").await.now, 0);
}

#[tokio::test]
async fn a_bound_that_is_lowered_at_run_time_holds_for_what_comes() {
    let root = bus(Quotas::default(), 3);
    let neighbour = Neighbour::of(&root).await;
    let guest = join_with(&root, "greedy", Guest::builder()).await.unwrap();
    let first = guest.open(Device::class(CLASS)).await.unwrap();
    let id = partition(&root, "greedy").await.id;
    root.limit(id, with(|quotas| quotas.open_channels = 1));
    let devices = guest.all_offers().await.unwrap();
    let refused = guest.open(Device::instance(devices[1].instance)).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    // The channel that was open stays, and others have their own bounds.
    first.send(b"question", []).await.unwrap().reply().await.unwrap();
    neighbour.is_served().await;
}

#[tokio::test]
async fn a_guest_that_never_reads_is_let_go_before_more_messages_wait_than_may() {
    let root = bus(Quotas::default(), 500);
    let neighbour = Neighbour::of(&root).await;
    let guest = intruder(&root).await;
    let mut most = 0;
    let gone = tokio::time::timeout(PATIENCE, async {
        loop {
            let partitions = root.status().await.partitions;
            let Some(now) = partitions.iter().find(|partition| partition.name == "intruder") else { break };
            let queued = now.quotas.iter().find(|used| used.name == "queued messages").unwrap();
            most = most.max(queued.most);
            assert!(queued.most <= queued.limit, "{queued:?}");
            contact(&guest);
            guest.say(vmbus_core::message::RequestOffers {});
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("the root lets it go");
    assert!(most > 500, "{most} messages waited");
    neighbour.is_served().await;
}
