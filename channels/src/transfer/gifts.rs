//! Memory given to us that no request has fetched yet, by partition.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use vmbus_partition::{Given, SealedGift};

use crate::error::{ChannelError, Refusal};

/// How long a gift may come after the packet that speaks of it: they travel on two ways.
const PATIENCE: Duration = Duration::from_secs(5);
/// Refusals that are remembered until somebody asks; beyond, whoever asks waits in vain.
const REFUSALS_KEPT: usize = 64;

/// What a gift is to its taker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// Mapped as it is, copy-on-write.
    Map,
    /// Copied into memory of our own.
    Copy,
}

/// Gifts of a peer that may wait for the requests that speak of them, and of those that policy decides about.
pub(crate) const MOST_GIFTS: usize = 64;
/// Bytes of the gifts that may wait.
const MOST_BYTES: usize = 256 << 20;

/// The gifts of one peer, both ways: those that came, and the ids of those that go.
#[derive(Debug, Default)]
pub(crate) struct Gifts {
    waiting: Mutex<Waiting>,
    came: Notify,
    last_sent: AtomicU32,
}

#[derive(Debug, Default)]
struct Waiting {
    gifts: BTreeMap<u32, (SealedGift, Taking)>,
    refused: BTreeMap<u32, Refusal>,
    bytes: usize,
}

impl Gifts {
    /// A name for a gift of ours.
    pub(crate) fn next_id(&self) -> u32 {
        self.last_sent.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Keeps a gift until a request fetches it.
    ///
    /// # Errors
    /// Why it is not kept; whoever asks for it is told the same.
    pub(crate) fn came(
        &self,
        id: u32,
        gift: SealedGift,
        taking: Result<Taking, Refusal>,
    ) -> Result<(), Refusal> {
        let mut waiting = self.waiting();
        let fits = waiting.gifts.len() < MOST_GIFTS && gift.len() <= MOST_BYTES.saturating_sub(waiting.bytes);
        let result = match taking {
            Ok(_) if waiting.gifts.contains_key(&id) => Err(Refusal::new("two gifts of the same name")),
            Ok(taking) if fits => {
                waiting.bytes += gift.len();
                waiting.gifts.insert(id, (gift, taking));
                Ok(())
            }
            Ok(_) => Err(Refusal::new(format!(
                "more than {MOST_GIFTS} gifts or {MOST_BYTES} bytes given and not fetched"
            ))),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &result {
            while waiting.refused.len() >= REFUSALS_KEPT {
                waiting.refused.pop_first();
            }
            waiting.refused.insert(id, refusal.clone());
        }
        drop(waiting);
        self.came.notify_waiters();
        result
    }

    /// The gift `id`, once, waiting for it a little.
    pub(crate) async fn take(&self, id: u32, len: usize) -> Result<Given, ChannelError> {
        let coming = async {
            loop {
                let mut came = pin!(self.came.notified());
                came.as_mut().enable();
                if let Some(found) = self.find(id) {
                    return found;
                }
                came.await;
            }
        };
        let (gift, taking) = match tokio::time::timeout(PATIENCE, coming).await {
            Ok(Ok(gift)) => gift,
            Ok(Err(refusal)) => return Err(ChannelError::Refused(refusal)),
            Err(_) => return Err(ChannelError::Protocol(format!("spoke of gift {id}, which never came"))),
        };
        if gift.len() != len {
            return Err(ChannelError::Protocol(format!("gave {} bytes and spoke of {len}", gift.len())));
        }
        let given = match taking {
            Taking::Map => gift.open(),
            Taking::Copy => gift.copy(),
        };
        given.map_err(super::system)
    }

    fn find(&self, id: u32) -> Option<Result<(SealedGift, Taking), Refusal>> {
        let mut waiting = self.waiting();
        if let Some((gift, taking)) = waiting.gifts.remove(&id) {
            waiting.bytes -= gift.len();
            return Some(Ok((gift, taking)));
        }
        waiting.refused.remove(&id).map(Err)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
