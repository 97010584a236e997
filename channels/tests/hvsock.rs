//! Stream sockets between a root and its guests.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vmbus_channels::test_utils::{join, join_with};
use vmbus_channels::{Error, Guest, HvLimits, HvPeer, HvStream, Root, hvsock};
use vmbus_core::Version;
use vmbus_core::status::Status;

const PORT: u32 = 5000;

/// A root, a guest of it, and a connection that the guest made: the guest's end and the root's.
async fn connected() -> (Root, Guest, HvStream, HvStream) {
    let root = Root::builder().build();
    let guest = join(&root, "alice").await.unwrap();
    let mut listener = root.hvsock_listen(hvsock::port(PORT)).unwrap();
    let (ours, theirs) = tokio::join!(guest.hvsock_connect(hvsock::port(PORT)), listener.accept());
    (root, guest, ours.unwrap(), theirs.unwrap().0)
}

/// Nothing of any connection is left at the root.
async fn settled(root: &Root) {
    let settled = async {
        loop {
            let status = root.status().await;
            if status.partitions.iter().all(|partition| {
                partition.channels.is_empty() && partition.gpadls == 0 && partition.pages == 0
            }) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled).await.expect("connections are left behind");
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()[7]
        })
        .collect()
}

async fn send_all(mut to: impl AsyncWrite + Unpin, bytes: Vec<u8>) {
    to.write_all(&bytes).await.unwrap();
    to.shutdown().await.unwrap();
}

async fn read_all(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).await.unwrap();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_connection_carries_bytes_both_ways_at_once() {
    let (root, _guest, ours, theirs) = connected().await;
    assert_eq!(theirs.peer().partition.as_ref().map(|client| &*client.name), Some("alice"));
    assert_eq!(hvsock::port_of(theirs.peer().service), Some(PORT));
    assert_eq!(
        ours.peer(),
        &HvPeer { partition: None, service: hvsock::port(PORT), endpoint: theirs.peer().endpoint }
    );
    let (up, down) = (noise(7_000_001, 1), noise(5_000_003, 2));
    let (our_read, our_write) = ours.into_split();
    let (their_read, their_write) = theirs.into_split();
    let tasks = (
        tokio::spawn(send_all(our_write, up.clone())),
        tokio::spawn(send_all(their_write, down.clone())),
        tokio::spawn(read_all(our_read)),
        tokio::spawn(read_all(their_read)),
    );
    tasks.0.await.unwrap();
    tasks.1.await.unwrap();
    assert!(tasks.2.await.unwrap() == down);
    assert!(tasks.3.await.unwrap() == up);
    settled(&root).await;
}

#[tokio::test]
async fn the_root_connects_to_a_guest_that_listens() {
    let root = Root::builder().build();
    let guest = join(&root, "alice").await.unwrap();
    let id = root.status().await.partitions[0].id;
    let mut listener = guest.hvsock_listen(hvsock::port(PORT)).unwrap();
    let (ours, theirs) = tokio::join!(root.hvsock_connect(id, hvsock::port(PORT)), listener.accept());
    let (mut ours, (mut theirs, peer)) = (ours.unwrap(), theirs.unwrap());
    assert_eq!((peer.partition, peer.service), (None, hvsock::port(PORT)));
    ours.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    theirs.read_exact(&mut word).await.unwrap();
    theirs.write_all(&word).await.unwrap();
    drop(theirs);
    assert_eq!(read_all(&mut ours).await, b"ping");
    drop(ours);
    settled(&root).await;
    assert!(guest.offers().is_empty(), "a connection is no device");
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let (_root, _guest, mut ours, mut theirs) = connected().await;
    ours.write_all(b"question").await.unwrap();
    ours.shutdown().await.unwrap();
    assert_eq!(read_all(&mut theirs).await, b"question");
    assert_eq!(ours.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    theirs.write_all(&noise(300_000, 3)[..1000]).await.unwrap();
    drop(theirs);
    assert_eq!(read_all(&mut ours).await, noise(300_000, 3)[..1000]);
    assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0, "the end stays the end");
}

#[tokio::test]
async fn what_was_written_before_a_close_or_death_is_read_after_it() {
    // An orderly close by the guest, by the root, and a partition that is gone at once.
    let (root, guest, mut ours, mut theirs) = connected().await;
    ours.write_all(b"last words").await.unwrap();
    drop(ours);
    settled(&root).await;
    assert_eq!(read_all(&mut theirs).await, b"last words");
    assert_eq!(theirs.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);

    let mut listener = root.hvsock_listen(hvsock::port(9)).unwrap();
    let (ours, theirs) = tokio::join!(guest.hvsock_connect(hvsock::port(9)), listener.accept());
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
    theirs.write_all(b"so long").await.unwrap();
    drop(theirs);
    ours.closed().await;
    assert_eq!(read_all(&mut ours).await, b"so long");

    let (ours, theirs) = tokio::join!(guest.hvsock_connect(hvsock::port(9)), listener.accept());
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
    ours.write_all(b"cut sho").await.unwrap();
    theirs.write_all(b"well").await.unwrap();
    root.detach(root.status().await.partitions[0].id);
    let mut heard = Vec::new();
    assert_eq!(theirs.read_to_end(&mut heard).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(heard, b"cut sho");
    let mut heard = Vec::new();
    assert_eq!(ours.read_to_end(&mut heard).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(heard, b"well");
}

#[tokio::test]
async fn nobody_listens_is_told_at_once_in_both_directions() {
    let root = Root::builder().build();
    let guest = join(&root, "alice").await.unwrap();
    let id = root.status().await.partitions[0].id;
    let refused = |error: Result<HvStream, Error>| match error {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let refusal = refused(guest.hvsock_connect(hvsock::port(PORT)).await);
    assert_eq!(refusal.status, Status::CONNECTION_REFUSED);
    assert!(refusal.reason.contains("port 5000"), "{refusal}");
    assert_eq!(refused(root.hvsock_connect(id, hvsock::port(PORT)).await).status, Status::CONNECTION_REFUSED);
    drop(root.hvsock_listen(hvsock::port(PORT)).unwrap());
    refused(guest.hvsock_connect(hvsock::port(PORT)).await);
    assert!(matches!(root.hvsock_connect(77, hvsock::port(PORT)).await, Err(Error::NoPartition(77))));
    settled(&root).await;
}

#[tokio::test]
async fn a_service_has_one_listener() {
    let root = Root::builder().build();
    let listener = root.hvsock_listen(hvsock::port(PORT)).unwrap();
    assert!(matches!(root.hvsock_listen(hvsock::port(PORT)), Err(Error::ServiceTaken(_))));
    drop(listener);
    root.hvsock_listen(hvsock::port(PORT)).unwrap();
}

#[tokio::test]
async fn versions_without_stream_sockets_say_so_and_all_others_carry_them() {
    let root = Root::builder().build();
    let mut listener = root.hvsock_listen(hvsock::port(PORT)).unwrap();
    for version in Version::ALL {
        let builder = Guest::builder().versions(version..=version);
        let guest = join_with(&root, &version.to_string(), builder).await.unwrap();
        let status = root.status().await;
        let id = status.partitions.iter().find(|partition| partition.name == version.to_string()).unwrap().id;
        let mut guests = guest.hvsock_listen(hvsock::port(PORT)).unwrap();
        if version < Version::Win10 {
            assert!(matches!(guest.hvsock_connect(hvsock::port(PORT)).await, Err(Error::TooOld { .. })));
            assert!(matches!(root.hvsock_connect(id, hvsock::port(PORT)).await, Err(Error::TooOld { .. })));
            continue;
        }
        let (ours, theirs) = tokio::join!(guest.hvsock_connect(hvsock::port(PORT)), listener.accept());
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
        ours.write_all(b"up").await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(read_all(&mut theirs).await, b"up", "{version}");
        let (ours, theirs) = tokio::join!(root.hvsock_connect(id, hvsock::port(PORT)), guests.accept());
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
        ours.write_all(b"down").await.unwrap();
        drop(ours);
        assert_eq!(read_all(&mut theirs).await, b"down", "{version}");
    }
}

#[tokio::test]
async fn the_backlog_and_the_streams_of_a_partition_are_bounded() {
    let limits = HvLimits { streams: 3, backlog: 2, ..HvLimits::default() };
    let root = Root::builder().hvsock(limits).build();
    let (alice, bob) = (join(&root, "alice").await.unwrap(), join(&root, "bob").await.unwrap());
    let mut listener = root.hvsock_listen(hvsock::port(PORT)).unwrap();
    let connect = async |guest: &Guest| guest.hvsock_connect(hvsock::port(PORT)).await;
    let held = [connect(&alice).await.unwrap(), connect(&alice).await.unwrap()];
    // Two wait to be accepted.
    assert!(matches!(connect(&alice).await, Err(Error::Refused(_))));
    let mut accepted = vec![listener.accept().await.unwrap().0, listener.accept().await.unwrap().0];
    accepted.push(tokio::join!(connect(&alice), listener.accept()).1.unwrap().0);
    let Err(Error::Refused(refusal)) = connect(&alice).await else { panic!("a fourth stream") };
    assert_eq!(refusal.status, Status::INSUFFICIENT_RESOURCES);
    let id = root.status().await.partitions[0].id;
    assert!(matches!(root.hvsock_connect(id, hvsock::port(1)).await, Err(Error::Refused(_))));
    connect(&bob).await.expect("another partition's streams are its own");
    // A stream that the peer has closed counts until it is dropped.
    drop(held);
    settled_but_for(&root, 1).await;
    assert!(connect(&alice).await.is_err());
    drop(accepted);
    connect(&alice).await.unwrap();
}

/// As [`settled`], with `left` connections at most.
async fn settled_but_for(root: &Root, left: usize) {
    let settled = async {
        while root.status().await.partitions.iter().map(|partition| partition.channels.len()).sum::<usize>()
            > left
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled).await.expect("connections are left behind");
}

#[tokio::test]
async fn ten_thousand_connects_leave_nothing_behind() {
    let root = Root::builder().build();
    // Memory for a few connections only, and fewer channel ids than connects.
    let guest = join_with(&root, "alice", Guest::builder().memory(4 << 20).ring_pages(1)).await.unwrap();
    let mut listener = root.hvsock_listen(hvsock::port(PORT)).unwrap();
    let served = tokio::spawn(async move {
        for _ in 0..10_000 {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut word = [0; 4];
                stream.read_exact(&mut word).await.unwrap();
                stream.write_all(&word).await.unwrap();
            });
        }
    });
    let clients: Vec<_> = (0..8_u32)
        .map(|client| {
            let guest = guest.clone();
            tokio::spawn(async move {
                for round in 0..1250_u32 {
                    let mut stream = guest.hvsock_connect(hvsock::port(PORT)).await.unwrap();
                    let word = (client << 16 | round).to_le_bytes();
                    stream.write_all(&word).await.unwrap();
                    let mut answer = [0; 4];
                    stream.read_exact(&mut answer).await.unwrap();
                    assert_eq!(answer, word);
                    if round % 2 == 0 {
                        stream.shutdown().await.unwrap();
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    served.await.unwrap();
    settled(&root).await;
    let free = guest.share(3 << 20);
    assert!(free.is_ok(), "the guest's memory is gone");
}
