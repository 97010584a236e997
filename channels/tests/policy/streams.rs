//! Stream sockets as policy allows them.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmbus_channels::policy::{Asked, Decision, Direction, Limits, Question, Rate};
use vmbus_channels::test_utils::join;
use vmbus_channels::{Error, HvLimits, Root, hvsock};

use crate::world::By;

#[tokio::test]
async fn a_connect_is_asked_about_with_its_service_and_direction_and_denied_at_once() {
    let agent = By(|asked: &Asked| match &asked.question {
        Question::Connect { service, direction, to } => match (hvsock::port_of(*service), direction) {
            (Some(1), _) => Decision::deny("not this service"),
            (_, Direction::Incoming) => Decision::deny("nobody connects to guests"),
            (_, Direction::Outgoing) if to.as_deref() == Some("bob") => Decision::deny("not to bob"),
            (_, Direction::Outgoing) => Decision::Allow,
        },
        // A connection is a channel, too.
        Question::Open { device, .. } if hvsock::port_of(device.class) == Some(3) => {
            Decision::deny("not open")
        }
        _ => Decision::Allow,
    });
    // Whoever is denied does not wait for the time limit.
    let limits = HvLimits { patience: Duration::from_secs(600), ..HvLimits::default() };
    let root = Root::builder().hvsock(limits).policy(agent).build();
    let guest = join(&root, "alice").await.unwrap();
    let mut listeners: Vec<_> = [1, 2, 3].map(|port| root.hvsock_listen(hvsock::port(port)).unwrap()).into();
    let _route = root.hvsock_route(hvsock::port(4), "bob").unwrap();
    for port in [1, 3, 4] {
        let denied = guest.hvsock_connect(hvsock::port(port)).await;
        assert!(matches!(denied, Err(Error::Refused(_))), "{port}: {denied:?}");
    }
    let Err(Error::Refused(refusal)) = root.hvsock_connect_to("alice", hvsock::port(9)).await else {
        panic!("the root connects to a guest")
    };
    assert_eq!(refusal.reason, "nobody connects to guests");
    let (ours, theirs) = tokio::join!(guest.hvsock_connect(hvsock::port(2)), listeners[1].accept());
    assert!(ours.is_ok() && theirs.is_ok());
}

#[tokio::test]
async fn a_stream_comes_at_the_rate_that_is_allowed_and_its_writer_feels_it() {
    let rate = Rate { bytes: Some(4 << 20), burst_ms: Some(0), ..Rate::default() };
    let agent = By(move |asked: &Asked| match asked.question {
        Question::Open { .. } => Decision::change(Limits { rate: Some(rate), ..Limits::default() }),
        _ => Decision::Allow,
    });
    let root = Root::builder().policy(agent).build();
    let guest = join(&root, "alice").await.unwrap();
    let mut listener = root.hvsock_listen(hvsock::port(1)).unwrap();
    let (ours, theirs) = tokio::join!(guest.hvsock_connect(hvsock::port(1)), listener.accept());
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
    let start = Instant::now();
    let writer = tokio::spawn(async move {
        ours.write_all(&vec![7; 1 << 20]).await.unwrap();
        ours.shutdown().await.unwrap();
        (ours, start.elapsed())
    });
    let mut heard = Vec::new();
    theirs.read_to_end(&mut heard).await.unwrap();
    let took = start.elapsed();
    assert_eq!(heard.len(), 1 << 20);
    assert!(took >= Duration::from_millis(240), "{took:?} for 1 MiB");
    let (_ours, written) = writer.await.unwrap();
    assert!(written >= Duration::from_millis(150), "{written:?}: the ring holds 64 KiB of it");
}
