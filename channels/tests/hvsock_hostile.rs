//! Stream sockets whose other end follows no rule, or says nothing.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmbus_channels::test_utils::{MockGuest, MockRings, join};
use vmbus_channels::{Error, Guid, HvLimits, HvListener, Root, guid, hvsock};
use vmbus_core::memory::SharedMemory;
use vmbus_core::message::{
    HvsockOffer, InitiateContact, Message, OpenChannel, RelidReleased, RequestOffers, TlConnectRequest,
};
use vmbus_core::status::Status;
use vmbus_core::{FeatureFlags, Version};
use vmbus_ringbuf::Outgoing;

const PORT: u32 = 5000;
const GPADL: u32 = 0x77;
const ENDPOINT: Guid = guid!("00000401-facb-11e6-bd58-64006a7986d3");

/// A root that is quick to give up, and who listens at it.
fn root() -> (Root, HvListener) {
    let limits = HvLimits { patience: Duration::from_millis(200), ..HvLimits::default() };
    let root = Root::builder().hvsock(limits).build();
    let listener = root.hvsock_listen(hvsock::port(PORT)).unwrap();
    (root, listener)
}

/// A guest that was told all offers, of which there are none.
async fn connected(root: &Root) -> MockGuest {
    let guest = MockGuest::attach(root, "intruder").unwrap();
    guest.say(InitiateContact {
        version: Version::Iron.word().into(),
        interrupt_page_or_target: InitiateContact::target(2, 0, FeatureFlags::empty()),
        ..InitiateContact::default()
    });
    guest.hear(|message| matches!(message, Message::VersionResponse(_)).then_some(())).await;
    guest.say(RequestOffers {});
    guest.hear(|message| matches!(message, Message::AllOffersDelivered(_)).then_some(())).await;
    guest
}

fn connect(guest: &MockGuest, endpoint: Guid) {
    guest.say(TlConnectRequest {
        endpoint_id: endpoint,
        service_id: hvsock::port(PORT),
        silo_id: Guid::ZERO,
    });
}

/// The channel of a connection: its id, its endpoint and whether the guest is to accept.
async fn offered(guest: &MockGuest) -> (u32, Guid, bool) {
    guest
        .hear(|message| match message {
            Message::OfferChannel(offer) => {
                assert_eq!(offer.flags.get(), 0x2011);
                assert_eq!(offer.interface_type, hvsock::port(PORT));
                let hvsock = offer.user_defined.start::<HvsockOffer>();
                assert_eq!((hvsock.pipe_mode.get(), hvsock.version.get()), (0, 1));
                Some((offer.relid.get(), offer.interface_instance, hvsock.guest_accepts == 1))
            }
            _ => None,
        })
        .await
}

async fn open(guest: &MockGuest, relid: u32) -> MockRings {
    let (rings, list) = guest.rings(4);
    for message in list.messages(relid, GPADL) {
        guest.say(message);
    }
    guest.hear(|message| matches!(message, Message::GpadlCreated(_)).then_some(())).await;
    guest.say(OpenChannel {
        relid: relid.into(),
        open_id: 1.into(),
        ring_gpadl: GPADL.into(),
        downstream_page_offset: 5.into(),
        ..OpenChannel::default()
    });
    guest
        .hear(|message| {
            matches!(message, Message::OpenChannelResult(answer) if answer.status.get() == 0).then_some(())
        })
        .await;
    rings
}

fn push(rings: &mut MockRings, packet: Outgoing<'_>) {
    let mut batch = rings.to_host.batch();
    batch.push(packet).unwrap();
    let _ = batch.commit().unwrap();
}

fn framed(kind: u32, len: u32, data: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes()[..], data].concat()
}

/// The root holds nothing of any connection.
async fn settled(root: &Root) {
    let settled = async {
        while root.status().await.partitions.iter().any(|partition| !partition.channels.is_empty()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled).await.expect("connections are left behind");
}

async fn rescinded(guest: &MockGuest, relid: u32) {
    guest
        .hear(|message| {
            matches!(message, Message::RescindChannelOffer(told) if told.relid.get() == relid).then_some(())
        })
        .await;
    guest.say(RelidReleased { relid: relid.into() });
}

#[tokio::test]
async fn a_stream_that_is_none_gives_the_data_before_and_then_an_error_and_costs_the_connection_only() {
    let (root, mut listener) = root();
    let other = join(&root, "other").await.unwrap();
    let (ours, theirs) = tokio::join!(other.hvsock_connect(hvsock::port(PORT)), listener.accept());
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
    let guest = connected(&root).await;
    for bad in [framed(2, 1, b"x"), framed(1, 9, b"x"), framed(1, 1 << 31, b""), Vec::new()] {
        connect(&guest, ENDPOINT);
        let (relid, endpoint, guest_accepts) = offered(&guest).await;
        assert_eq!((endpoint, guest_accepts), (ENDPOINT, false));
        let mut rings = open(&guest, relid).await;
        let (mut stream, peer) = listener.accept().await.unwrap();
        assert_eq!((hvsock::port_of(peer.endpoint), peer.endpoint), (Some(0x401), ENDPOINT));
        push(&mut rings, Outgoing::in_band(&framed(1, 5, b"hello")));
        push(&mut rings, Outgoing::in_band(&bad));
        let mut heard = Vec::new();
        assert_eq!(stream.read_to_end(&mut heard).await.unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(heard, b"hello");
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap_err().kind(), ErrorKind::InvalidData);
        drop(stream);
        rescinded(&guest, relid).await;
    }
    ours.write_all(b"unharmed").await.unwrap();
    theirs.read_exact(&mut [0; 8]).await.unwrap();
    assert_eq!(theirs.peer().partition.as_ref().map(|client| &*client.name), Some("other"));
}

#[tokio::test]
async fn data_after_the_end_is_not_heard_and_indices_out_of_the_ring_are_a_fault() {
    let (root, mut listener) = root();
    let guest = connected(&root).await;
    connect(&guest, ENDPOINT);
    let (relid, ..) = offered(&guest).await;
    let mut rings = open(&guest, relid).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    push(&mut rings, Outgoing::in_band(&framed(1, 3, b"end")));
    push(&mut rings, Outgoing::in_band(&framed(1, 0, b"")));
    push(&mut rings, Outgoing::in_band(&framed(1, 5, b"ghost")));
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!((&heard[..], stream.read(&mut [0; 4]).await.unwrap()), (&b"end"[..], 0));
    drop(stream);
    rescinded(&guest, relid).await;

    connect(&guest, ENDPOINT);
    let (relid, ..) = offered(&guest).await;
    let rings = open(&guest, relid).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    rings.pages.mapping().store_u32(0, 0xffff_fff0, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(stream.read(&mut [0; 4]).await.unwrap_err().kind(), ErrorKind::InvalidData);
    drop(stream);
    rescinded(&guest, relid).await;
    settled(&root).await;
}

#[tokio::test]
async fn connects_that_are_never_opened_are_bounded_refused_in_time_and_leave_room_for_others() {
    let (root, mut listener) = root();
    let guest = connected(&root).await;
    for number in 0..40_u8 {
        connect(&guest, Guid::from_wire([number + 1; 16]));
    }
    // Sixteen may wait; the others are refused at once, those that wait when their time is over.
    for late in [24, 16] {
        for _ in 0..late {
            let status = guest
                .hear(|message| match message {
                    Message::TlConnectResult(result) => Some(Status(result.status.get().cast_unsigned())),
                    _ => None,
                })
                .await;
            let expected = if late == 24 { Status::INSUFFICIENT_RESOURCES } else { Status::IO_TIMEOUT };
            assert_eq!(status, expected);
        }
    }
    let other = join(&root, "other").await.unwrap();
    let (ours, theirs) = tokio::join!(other.hvsock_connect(hvsock::port(PORT)), listener.accept());
    drop((ours.unwrap(), theirs.unwrap()));
    assert_eq!(root.status().await.partitions[0].channels.len(), 16, "until the guest releases them");
    for relid in 1..=16 {
        guest.say(RelidReleased { relid: relid.into() });
    }
    settled(&root).await;
}

#[tokio::test]
async fn a_guest_that_says_nothing_is_given_up_and_one_that_releases_the_channel_refuses() {
    let (root, _listener) = root();
    let guest = connected(&root).await;
    let id = root.status().await.partitions[0].id;
    let silent = root.hvsock_connect(id, hvsock::port(PORT)).await;
    assert!(matches!(silent, Err(Error::TimedOut(_))), "{silent:?}");
    let (relid, _, guest_accepts) = offered(&guest).await;
    assert!(guest_accepts);
    rescinded(&guest, relid).await;

    let refusing = async {
        let (relid, ..) = offered(&guest).await;
        guest.say(RelidReleased { relid: relid.into() });
    };
    let (refused, ()) = tokio::join!(root.hvsock_connect(id, hvsock::port(PORT)), refusing);
    assert!(matches!(&refused, Err(Error::Refused(refusal)) if refusal.status == Status::CONNECTION_REFUSED));

    // Whoever loses interest does not leave the channel offered.
    {
        let mut connecting = std::pin::pin!(root.hvsock_connect(id, hvsock::port(PORT)));
        let offered = tokio::select! {
            offered = offered(&guest) => offered,
            stream = &mut connecting => panic!("{stream:?}"),
        };
        assert!(offered.2);
    }
    settled_after(&root, &guest).await;
}

async fn settled_after(root: &Root, guest: &MockGuest) {
    let relid = guest
        .hear(|message| match message {
            Message::RescindChannelOffer(told) => Some(told.relid.get()),
            _ => None,
        })
        .await;
    guest.say(RelidReleased { relid: relid.into() });
    settled(root).await;
}
