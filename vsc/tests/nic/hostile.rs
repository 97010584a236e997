//! Providers that break every rule: the NIC says so, or goes on, and nothing else happens.

use vmbus_core::network::nvsp::{self, ChannelType, NO_SECTION};
use vmbus_core::network::rndis::{self, Status};
use vmbus_core::network::{PacketInfo, RscFragment, Version};
use vmbus_vsc::NicOptions;

use super::peer::{Order, Script, done, message};
use super::{PLAIN, World, bytes, frame, frames, within};

fn packet(channel: ChannelType) -> Vec<u8> {
    nvsp::Message::Packet { channel, section: NO_SECTION, section_size: 0 }.encode(Version::V6_1).to_vec()
}

#[tokio::test]
async fn a_start_that_makes_no_sense_ends_there() {
    let starts = [
        (Script { piece_size: 16, ..Script::default() }, "divides the receive buffer"),
        (Script { piece_offset: 8, ..Script::default() }, "divides the receive buffer"),
        (Script { pieces: Some(0), ..Script::default() }, "divides the receive buffer"),
        (Script { pieces: Some(u32::MAX), ..Script::default() }, "divides the receive buffer"),
        (Script { section_size: 2 << 20, ..Script::default() }, "divides the send buffer"),
        (Script { alignment_exponent: 31, ..Script::default() }, "answered INITIALIZE"),
        (Script { alignment_exponent: u32::MAX, ..Script::default() }, "answered INITIALIZE"),
        (Script { max_transfer: 100, ..Script::default() }, "answered INITIALIZE"),
        (Script { most_mtu: 60, ..Script::default() }, "answered the longest frame"),
    ];
    for (script, why) in starts {
        let world = World::new(script).await;
        let error = world.open(NicOptions::new()).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // None of these numbers hurts.
    let odd = Script { max_messages: 0, alignment_exponent: 12, queues: u32::MAX, ..Script::default() };
    let world = World::new(odd).await;
    let nic = world.nic().await;
    nic.send_batch(&[(&frame(1, 60), PLAIN), (&frame(2, 60), PLAIN)]).await.unwrap();
    assert_eq!(bytes(&nic, 2).await, [frame(1, 60), frame(2, 60)]);
}

#[tokio::test]
async fn packets_that_lie_are_given_back_and_counted() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.open(NicOptions::new().receive_bytes(1 << 20)).await.unwrap();
    let good = message(&frame(1, 60), &[]);
    let len = u32::try_from(good.len()).unwrap();
    let altered = |at: usize, word: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        bytes
    };
    let data = packet(ChannelType::Data);
    let size = 1 << 20;
    let raw = |bytes: Vec<u8>, ranges: Vec<(u32, u32)>| Order::Raw {
        bytes,
        set_id: None,
        ranges,
        payload: data.clone(),
    };
    let lies = [
        // Ranges outside of the buffer, longer than a piece, empty, or too short for a header.
        raw(good.clone(), vec![(size, len)]),
        raw(good.clone(), vec![(size - len + 1, len)]),
        raw(good.clone(), vec![(u32::MAX, len)]),
        raw(good.clone(), vec![(u32::MAX, u32::MAX)]),
        raw(good.clone(), vec![(0, size)]),
        raw(good.clone(), vec![(0, 0)]),
        raw(good.clone(), vec![(0, 43)]),
        // A message of another kind, longer than its range, or whose parts are outside of it.
        raw(altered(0, 7), vec![(0, len)]),
        raw(altered(4, len + 1), vec![(0, len)]),
        raw(altered(4, u32::MAX), vec![(0, len)]),
        raw(altered(8, u32::MAX), vec![(0, len)]),
        raw(altered(8, 0), vec![(0, len)]),
        raw(altered(12, 61), vec![(0, len)]),
        raw(altered(12, u32::MAX), vec![(0, len)]),
        raw(altered(12, 0), vec![(0, len)]),
        raw(altered(12, 13), vec![(0, len)]),
        raw(altered(32, 61), vec![(0, len)]),
        // Packet information that makes no sense: it states its own size.
        raw(
            message(&frame(1, 60), &[PacketInfo::Hash(1)])
                .into_iter()
                .enumerate()
                .map(|(at, byte)| if (44..48).contains(&at) { 0xff } else { byte })
                .collect(),
            vec![(0, len + 16)],
        ),
    ];
    let count = lies.len();
    for (number, lie) in lies.into_iter().enumerate() {
        world.script.order(lie);
        within("the lie", world.script.until(|seen| seen.completed == number)).await;
        nic.keep_alive().await.unwrap();
        let found = u64::try_from(number + 1).unwrap();
        assert_eq!((nic.statistics().malformed, nic.statistics().received), (found, 0), "lie {number}");
    }
    // Another buffer, another message, a payload that is none.
    let others = [
        (Some(0), data.clone()),
        (None, done(nvsp::Status::SUCCESS)),
        (None, vec![0; 8]),
        (None, vec![0xff; 40]),
    ];
    for (set_id, payload) in others.clone() {
        world.script.order(Order::Raw { bytes: good.clone(), set_id, ranges: vec![(0, len)], payload });
    }
    nic.keep_alive().await.unwrap();
    let wanted = u64::try_from(count + others.len()).unwrap();
    assert_eq!((nic.statistics().malformed, nic.statistics().received), (wanted, 0));
    let all = count + others.len();
    within("all completions", world.script.until(|seen| seen.completed == all)).await;

    // And it goes on.
    world.script.order(Order::Deliver(vec![good.clone()]));
    assert_eq!(bytes(&nic, 1).await, [frame(1, 60)]);
}

#[tokio::test]
async fn a_packet_says_no_more_than_the_buffer_holds() {
    const PIECE: u32 = 1 << 20;
    let script = Script { piece_size: PIECE, echo: false, ..Script::default() };
    let world = World::new(script).await;
    let nic = world.open(NicOptions::new().receive_bytes(8 * PIECE as usize).coalescing()).await.unwrap();
    let raw = |bytes: Vec<u8>, ranges: Vec<(u32, u32)>, kind| Order::Raw {
        bytes,
        set_id: None,
        ranges,
        payload: packet(kind),
    };
    let part = |first, last| PacketInfo::Rsc(RscFragment { sub_allocation: true, first, last, packet: 1 });
    let (first, more) = (message(&frame(1, 40_000), &[part(true, false)]), part(false, true));
    let len = u32::try_from(first.len()).unwrap();
    let both = [first, message(&frame(2, 40_000), &[more])].concat();
    let good = message(&frame(1, 60), &[]);
    let short = u32::try_from(good.len()).unwrap();
    let longest = |len| message(&vec![0; len], &[]);
    let mut asks = Vec::new();
    rndis::Message::KeepAlive { request: 1 }.encode(&mut asks);
    let asks_len = u32::try_from(asks.len()).unwrap();
    let (data, control) = (ChannelType::Data, ChannelType::Control);
    let lies = [
        // The same bytes time and again.
        raw(good.clone(), vec![(0, short); 9], data),
        raw(good.clone(), [vec![(0, PIECE); 7], vec![(PIECE / 2, PIECE); 2]].concat(), data),
        raw(asks.clone(), vec![(0, asks_len); 2], control),
        raw(asks, Vec::new(), control),
        // More than any IP packet, at once or in parts.
        raw(longest(65_554), vec![(0, 65_554 + 44)], data),
        raw(both, vec![(0, len), (len, len)], data),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        world.script.order(lie);
        within("the lie", world.script.until(|seen| seen.completed == number)).await;
        nic.keep_alive().await.unwrap();
        let found = u64::try_from(number + 1).unwrap();
        assert_eq!((nic.statistics().malformed, nic.statistics().received), (found, 0), "lie {number}");
    }
    assert_eq!(world.script.seen().kept_alive, 0, "a packet about the device has one message");
    world.script.order(raw(longest(65_553), vec![(0, 65_553 + 44)], data));
    assert_eq!(frames(&nic, 1).await[0].len(), 65_553);
}

#[tokio::test]
async fn segments_that_nobody_asked_to_be_coalesced_are_no_frame() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let part = |first, last| PacketInfo::Rsc(RscFragment { sub_allocation: true, first, last, packet: 1 });
    world.script.order(Order::Deliver(vec![
        message(&frame(1, 600), &[part(true, false)]),
        message(&frame(2, 600), &[part(false, true)]),
        message(&frame(3, 60), &[]),
    ]));
    assert_eq!(bytes(&nic, 1).await, [frame(3, 60)]);
    assert_eq!(nic.statistics().malformed, 2);
}

#[tokio::test]
async fn messages_about_the_device_that_make_no_sense_are_counted() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let encode = |message: rndis::Message<'_>| {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    };
    let (status, data) = (Status::SUCCESS, &[1, 2, 3, 4][..]);
    // Answers that nobody asked for are of no consequence.
    for request in [0, 1, 7, u32::MAX] {
        world.script.order(Order::Control(encode(rndis::Message::QueryComplete { request, status, data })));
        world.script.order(Order::Control(encode(rndis::Message::SetComplete { request, status })));
    }
    let reset = rndis::Message::ResetComplete { status, addressing_reset: true };
    world.script.order(Order::Control(encode(reset)));
    nic.keep_alive().await.unwrap();
    assert_eq!(nic.statistics().malformed, 0);
    // What no provider says.
    world.script.order(Order::Control(vec![0; 8]));
    world.script.order(Order::Control(vec![0xff; 200]));
    world.script.order(Order::Control(encode(rndis::Message::Halt { request: 1 })));
    world.script.order(Order::Control(encode(rndis::Message::Reset)));
    world.script.order(Order::Notice(vec![0; 8]));
    world.script.order(Order::Notice(vec![0xff; 64]));
    world.script.order(Order::Notice(done(nvsp::Status::SUCCESS)));
    nic.keep_alive().await.unwrap();
    assert_eq!(nic.statistics().malformed, 7);
}

#[tokio::test]
async fn questions_without_end_are_not_all_answered() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let mut bytes = Vec::new();
    rndis::Message::KeepAlive { request: 1 }.encode(&mut bytes);
    for _ in 0..2000 {
        world.script.order(Order::Control(bytes.clone()));
    }
    within("an answer all the same", nic.keep_alive()).await.unwrap();
    within("some answers", world.script.until(|seen| seen.kept_alive > 0)).await;
}

#[tokio::test]
async fn a_frame_that_changes_while_it_is_read_keeps_its_length() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let (one, other) = (message(&frame(1, 60), &[]), message(&frame(2, 1400), &[]));
    let raw = |bytes: &[u8]| Order::Raw {
        bytes: bytes.to_vec(),
        set_id: None,
        ranges: vec![(0, u32::try_from(bytes.len()).unwrap())],
        payload: packet(ChannelType::Data),
    };
    world.script.order(raw(&one));
    let came = frames(&nic, 1).await;
    assert_eq!(came[0].to_vec().unwrap(), frame(1, 60));
    // The same piece again, while the client holds it.
    world.script.order(raw(&other));
    let again = frames(&nic, 1).await;
    assert_eq!(again[0].to_vec().unwrap(), frame(2, 1400));
    assert_eq!((came[0].len(), came[0].to_vec().unwrap().len()), (60, 60), "bytes change, lengths do not");
}

#[tokio::test]
async fn a_packet_of_hundreds_of_fragments_is_one_packet() {
    let world = World::new(Script { echo: false, ..Script::default() }).await;
    let nic = world.nic().await;
    let count = 375;
    world.script.order(Order::Deliver((0..count).map(|number| message(&frame(number, 60), &[])).collect()));
    let came = bytes(&nic, count).await;
    assert!(came.iter().enumerate().all(|(number, came)| *came == frame(number, 60)));
    assert_eq!(came.len(), count);
}
