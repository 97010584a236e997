//! A device that echoes, and agents made of closures.

use std::sync::Arc;

use vmbus_channels::policy::{Asked, Decided, Decision, Question};
use vmbus_channels::{Error, Event, Guid, Offer, PolicyAgent, Provider, Refusal, Root, guid};

pub(crate) const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9b01");
pub(crate) const OTHER_CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9b02");

/// Completes each request with its payload.
pub(crate) fn echo(class: Guid) -> impl Provider {
    vmbus_channels::test_utils::echo(Offer::new(class, "echo"))
}

/// Decides by a closure, at once.
pub(crate) struct By<F>(pub(crate) F);

#[async_trait::async_trait]
impl<F: Fn(&Asked) -> Decision + Send + Sync + 'static> PolicyAgent for By<F> {
    async fn decide(&self, asked: &Asked) -> Decision {
        (self.0)(asked)
    }
}

/// Denies what `forbids` says.
pub(crate) fn forbidding(forbids: impl Fn(&Question) -> bool + Send + Sync + 'static) -> impl PolicyAgent {
    By(
        move |asked: &Asked| {
            if forbids(&asked.question) { Decision::deny("not today") } else { Decision::Allow }
        },
    )
}

/// A root with one echo device.
pub(crate) fn root(agent: impl PolicyAgent) -> Root {
    let root = Root::builder().policy(agent).build();
    root.offer(echo(CLASS)).unwrap();
    root
}

/// The next decision that fits.
pub(crate) async fn decision(
    events: &mut tokio::sync::broadcast::Receiver<Event>,
    fits: impl Fn(&Decided) -> bool,
) -> Arc<Decided> {
    loop {
        if let Event::Decided(decided) = events.recv().await.unwrap()
            && fits(&decided)
        {
            return decided;
        }
    }
}

pub(crate) fn refusal(error: Error) -> Refusal {
    match error {
        Error::Refused(refusal) => refusal,
        other => panic!("expected a refusal: {other}"),
    }
}
