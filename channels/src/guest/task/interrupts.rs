//! Signals of versions before Win8, which have no event flag for each channel.

use std::sync::Arc;

use vmbus_core::synic::{ChannelConnection, MonitorPlace};
use vmbus_core::{PAGE_SIZE, Version};
use vmbus_partition::{GuestEnd, SharedPages};

use super::super::{OpenOptions, ROOT_DOMAIN};
use super::Task;
use crate::areas;
use crate::channel::Doorbell;
use crate::error::Error;
use crate::interrupt_page::{Half, InterruptPage};

/// A page of interrupt bits, if there is memory for one.
pub(super) fn allocate(end: &dyn GuestEnd) -> Option<(SharedPages, InterruptPage)> {
    let pages = end.allocate(ROOT_DOMAIN, PAGE_SIZE).ok()?;
    let page = InterruptPage::at(&end.memory(), pages.gpa()).ok()?;
    Some((pages, page))
}

impl Task {
    /// The event area for a new channel.
    ///
    /// # Errors
    /// [`Error::NotPossible`]: the one that was asked for is not there, or not free.
    pub(super) fn take_area(&mut self, wanted: Option<u32>) -> Result<u32, Error> {
        if let Some(vp) = wanted.filter(|vp| *vp != areas::SHARED)
            && !self.areas.take_this(vp)
        {
            return Err(Error::NotPossible(format!("no processor {vp} is free for another channel")));
        }
        if let Some(vp) = wanted {
            return Ok(vp);
        }
        Ok(match self.client.connection() {
            Some(connection) if connection.version >= Version::Win8 => self.areas.take(),
            // Before, hosts signal one processor, whatever a guest asks for.
            Some(_) | None => areas::SHARED,
        })
    }

    /// How the root is signalled for a channel with this connection and monitor.
    pub(super) fn doorbell(
        &self,
        relid: u32,
        connection_id: Option<u32>,
        monitor: Option<u8>,
        options: &OpenOptions,
    ) -> Doorbell {
        if let Some(signals) = options.signals {
            return Doorbell::Connection(signals.connection_id);
        }
        let monitor = monitor.filter(|_| !options.low_latency);
        if let Some(place) = monitor.and_then(MonitorPlace::of)
            && !self.monitors.pages.is_empty()
        {
            return Doorbell::Monitor(Arc::clone(&self.monitors.pages), place);
        }
        match (connection_id, &self.interrupt_page) {
            (Some(connection_id), _) => Doorbell::Connection(connection_id),
            (None, Some((_, page))) => Doorbell::Page(page.clone(), u16::try_from(relid).unwrap_or(0)),
            (None, None) => Doorbell::Connection(ChannelConnection { relid, worker: areas::SHARED }.id()),
        }
    }

    /// The root has signalled on the flag that all channels share before Win8.
    pub(super) fn take_page_signals(&self) {
        let Some((_, page)) = &self.interrupt_page else { return };
        page.take(Half::ToGuest, |relid| {
            self.by_flag.of(relid).iter().for_each(|channel| channel.signalled());
        });
    }
}
