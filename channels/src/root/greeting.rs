//! From a connection at the root's socket to a partition, or to an answer for somebody who only asks.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vmbus_partition::attach::{AttachLimits, Attaching};
use vmbus_partition::query::Question;
use vmbus_partition::{Listener, Refusal, RefusedWhat, query, reactor};

use super::door::Greetings;
use super::{Inner, lock};
use crate::event::Event;
use crate::quotas::Quotas;

/// How long a connection may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that may be saying who they are at the same time; the oldest makes way for others.
const GREETINGS: usize = 64;
/// Pause after the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts partitions at one socket until the root ends. `vm` is the name of all that attach there.
pub(super) async fn accept(
    root: Arc<Inner>,
    listener: Listener,
    readiness: reactor::Watching,
    vm: Option<Arc<str>>,
) {
    let mut greetings = Greetings::default();
    loop {
        greetings.room(GREETINGS).await;
        match listener.accept() {
            Ok(Some(stream)) => {
                greetings.begin(greet(Arc::clone(&root), stream, vm.clone()));
            }
            Ok(None) => match readiness.readable().await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return,
            },
            // Descriptors run out, say: others may attach later.
            Err(error) => {
                root.tell(Event::ListenerFailed { path: listener.path().to_owned(), why: error.to_string() });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet(root: Arc<Inner>, stream: UnixStream, vm: Option<Arc<str>>) {
    let result = match tokio::time::timeout(PATIENCE, introduce(&root, stream, vm)).await {
        Ok(result) => result,
        Err(_) => Err(format!("said nothing for {} s", PATIENCE.as_secs())),
    };
    if let Err(why) = result {
        root.tell(Event::AttachFailed { why });
    }
}

async fn introduce(root: &Arc<Inner>, stream: UnixStream, vm: Option<Arc<str>>) -> Result<(), String> {
    let user = root.door.knock(&stream);
    let readiness = reactor::readable(stream.as_fd()).map_err(|error| error.to_string())?;
    let wait = async || match readiness.readable().await {
        Ok(mut guard) => {
            guard.clear_ready();
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    };
    let asks = loop {
        match query::is_query(&stream).map_err(|error| error.to_string())? {
            Some(asks) => break asks,
            None => wait().await?,
        }
    };
    if asks {
        let user = user?;
        loop {
            match query::hear(&stream).map_err(|error| error.to_string())? {
                Some(question) => return answer(root, question, stream, user).await,
                None => wait().await?,
            }
        }
    }
    let name = vm.as_deref().unwrap_or("unnamed");
    let mut attaching = Attaching::new(stream, name, root.next_partition(), limits(&root.quotas))
        .map_err(|error| error.to_string())?;
    let user = match user {
        Ok(user) => user,
        Err(reason) => {
            attaching.refuse(&reason);
            return Err(reason);
        }
    };
    loop {
        if let Some(end) = attaching.advance().map_err(|error| error.to_string())? {
            let admitted = root.admit_name(&end.info().name, vm.as_deref()).and(root.door.seat(user));
            match admitted {
                Ok(seat) => root.attach_seated(end, seat),
                Err(reason) => {
                    let told = Refusal { what: RefusedWhat::Attach, code: 0, reason: reason.clone() };
                    let _ = end.refuse(&told).and_then(|()| end.flush());
                    return Err(reason);
                }
            }
            return Ok(());
        }
        wait().await?;
    }
}

/// Answers a question about the root, or has it answered by whom it concerns.
async fn answer(root: &Arc<Inner>, question: Question, stream: UnixStream, user: u32) -> Result<(), String> {
    let answered = if question.topic.is_empty() {
        let status = serde_json::to_vec(&root.status().await).map_err(|error| error.to_string())?;
        tokio::task::spawn_blocking(move || query::answer(stream, &status).map_err(|error| error.to_string()))
    } else {
        let asked = Arc::clone(root);
        tokio::task::spawn_blocking(move || asked.answerers.answer(question, stream, user))
    };
    answered.await.map_err(|error| error.to_string())?
}

/// What a partition is held to from its first frame on.
fn limits(quotas: &Quotas) -> AttachLimits {
    AttachLimits {
        areas: quotas.event_areas,
        messages: quotas.messages,
        memory: quotas.memory,
        ring_maps: quotas.ring_maps,
        posts: quotas.posts,
        ..AttachLimits::default()
    }
}

impl Inner {
    /// Whether a partition may call itself `name` at the socket of virtual machine `vm`, or at one for processes.
    fn admit_name(&self, name: &str, vm: Option<&str>) -> Result<(), String> {
        match vm {
            Some(vm) if vm != name => Err(format!("`{name}` attached at the socket of `{vm}`")),
            None if lock(&self.vm_names).contains(name) => {
                Err(format!("the name `{name}` belongs to who attaches at a socket of its own"))
            }
            Some(_) | None => Ok(()),
        }
    }
}
