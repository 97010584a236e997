//! A guest's own monitor pages, and which channels it signals there.

use std::sync::Arc;

use tokio::sync::oneshot;
use vmbus_core::PAGE_SIZE;
use vmbus_core::client::{Connection, Failure, MonitorPages as Addresses};
use vmbus_partition::{GuestEnd, SharedPages};

use super::super::ROOT_DOMAIN;
use super::Task;
use crate::error::Error;
use crate::monitor::{MonitorPage, MonitorPages};

/// The pages, and what channels have of them.
#[derive(Default)]
pub(super) struct Monitors {
    pub(super) pages: Arc<MonitorPages>,
    memory: Option<SharedPages>,
    /// Pages that the root was told of, and who waits for its answer.
    moving: Option<(SharedPages, Moved)>,
}

/// Who waits until the root looks at other pages.
type Moved = oneshot::Sender<Result<(), Error>>;

impl Monitors {
    /// Two pages, if there is memory for them: the root's first, then ours.
    pub(super) fn allocate(end: &dyn GuestEnd) -> Self {
        Self { memory: end.allocate(ROOT_DOMAIN, 2 * PAGE_SIZE).ok(), ..Self::default() }
    }

    /// The root that wrote to the pages is no more.
    pub(super) fn forget_root(&mut self) {
        self.moving = None;
        self.pages.set(None);
        if let Some(memory) = &self.memory {
            memory.mapping().fill_zero(0, memory.len());
        }
    }

    pub(super) fn addresses(&self) -> Option<Addresses> {
        self.memory.as_ref().map(addresses)
    }
}

fn addresses(memory: &SharedPages) -> Addresses {
    Addresses { parent_to_child: memory.gpa(), child_to_parent: memory.gpa() + PAGE_SIZE as u64 }
}

impl Task {
    /// Signals in the pages of a connection from now on.
    pub(super) fn use_monitor_pages(&self, connection: &Connection) {
        let page = connection.monitor_pages.and_then(|pages| {
            let page = MonitorPage::at(&self.end.memory(), pages.child_to_parent);
            page.inspect_err(|error| tracing::warn!(%error, "the root's monitor page")).ok()
        });
        self.monitors.pages.set(page);
    }

    /// Has the root look at other pages. Until it says that it does, channels ask in both.
    pub(super) fn move_monitor_pages(&mut self, reply: Moved) {
        let begun = self.begin_move();
        match begun {
            Ok(memory) => self.monitors.moving = Some((memory, reply)),
            Err(error) => _ = reply.send(Err(error)),
        }
    }

    fn begin_move(&mut self) -> Result<SharedPages, Error> {
        let wanted = 2 * PAGE_SIZE;
        let memory =
            self.end.allocate(ROOT_DOMAIN, wanted).map_err(|_| Error::OutOfSharedMemory { wanted })?;
        memory.mapping().fill_zero(0, wanted);
        let addresses = addresses(&memory);
        let page = MonitorPage::at(&self.end.memory(), addresses.child_to_parent)
            .map_err(|error| Error::Channel(error.into()))?;
        self.client.modify_connection(Some(addresses)).map_err(Error::not_now)?;
        self.monitors.pages.add(page);
        Ok(memory)
    }

    /// The root looks at the other pages, or does not.
    pub(super) fn monitor_pages_moved(&mut self, result: Result<(), Failure>) {
        let Some((memory, reply)) = self.monitors.moving.take() else { return };
        if result.is_ok() {
            self.monitors.memory = Some(memory);
        }
        if let Some(connection) = self.client.connection() {
            self.use_monitor_pages(&connection);
        }
        let _ = reply.send(result.map_err(Error::failed));
    }
}
