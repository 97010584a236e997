//! Who may come in: partitions at a time, and attempts.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::task::{AbortHandle, JoinSet};

use super::lock;
use crate::pace::Allowance;
use crate::quotas::{BusQuotas, Gauge, Used, count};

/// Users whose attempts are remembered; beyond, those who have not tried lately are forgotten.
const USERS: usize = 1024;
/// How long a connection may say nothing when others want to.
const SILENT: Duration = Duration::from_millis(500);

/// Counts who is inside and who knocks.
pub(super) struct Door {
    quotas: BusQuotas,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    partitions: Gauge,
    by_user: HashMap<u32, usize>,
    attempts: HashMap<u32, Allowance>,
}

/// A partition's place; free again when dropped.
pub(super) struct Seat {
    door: Arc<Door>,
    user: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = lock(&self.door.state);
        state.partitions.sub(1);
        if let Some(left) = state.by_user.get_mut(&self.user) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                state.by_user.remove(&self.user);
            }
        }
    }
}

impl Door {
    pub(super) fn new(quotas: BusQuotas) -> Arc<Self> {
        Arc::new(Self { quotas, state: Mutex::default() })
    }

    /// Whether the one at the other end may try now.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn knock(&self, stream: &UnixStream) -> Result<u32, String> {
        let user = getsockopt(stream, PeerCredentials).map_or(u32::MAX, |peer| peer.uid());
        let BusQuotas { attach_per_second, attach_at_once, .. } = self.quotas;
        let now = Instant::now();
        let mut state = lock(&self.state);
        if state.attempts.len() >= USERS {
            state.attempts.retain(|_, allowance| allowance.wait(now).is_some());
        }
        let allowance = state
            .attempts
            .entry(user)
            .or_insert_with(|| Allowance::new(attach_per_second, attach_at_once, now));
        if allowance.wait(now).is_some() {
            return Err(format!("user {user} tries more often than {attach_per_second} times a second"));
        }
        allowance.take(1);
        Ok(user)
    }

    /// A place for a partition of this user.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn seat(self: &Arc<Self>, user: u32) -> Result<Seat, String> {
        let BusQuotas { partitions, partitions_of_user, .. } = self.quotas;
        let mut state = lock(&self.state);
        if state.partitions.now >= count(partitions) {
            return Err(format!("{partitions} partitions are attached, and no more may be"));
        }
        let of_user = state.by_user.get(&user).copied().unwrap_or(0);
        if of_user >= partitions_of_user {
            return Err(format!(
                "{partitions_of_user} partitions of user {user} are attached, and no more may be"
            ));
        }
        state.by_user.insert(user, of_user + 1);
        state.partitions.add(1);
        Ok(Seat { door: Arc::clone(self), user })
    }

    pub(super) fn used(&self) -> Vec<Used> {
        vec![lock(&self.state).partitions.used("partitions", count(self.quotas.partitions))]
    }
}

/// Connections that have not said yet who they are.
#[derive(Default)]
pub(super) struct Greetings {
    tasks: JoinSet<()>,
    begun: VecDeque<(Instant, AbortHandle)>,
}

impl Greetings {
    /// Waits until there is room for one more: the oldest makes way if it had its time.
    pub(super) async fn room(&mut self, at_most: usize) {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= at_most {
            self.begun.retain(|(_, task)| !task.is_finished());
            let Some((since, oldest)) = self.begun.front() else { return };
            let patience = SILENT.saturating_sub(since.elapsed());
            if tokio::time::timeout(patience, self.tasks.join_next()).await.is_err() {
                oldest.abort();
                self.tasks.join_next().await;
            }
        }
    }

    pub(super) fn begin(&mut self, greeting: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(greeting);
        self.begun.push_back((Instant::now(), task));
        if self.begun.len() > 2 * self.tasks.len() {
            self.begun.retain(|(_, task)| !task.is_finished());
        }
    }
}
