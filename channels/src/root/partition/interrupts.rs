//! Signals of versions before Win8, which have no event flag for each channel.

use std::sync::Arc;

use smallvec::SmallVec;
use vmbus_core::Version;
use vmbus_core::server::Connection;
use vmbus_core::status::Status;
use vmbus_core::synic::ChannelConnection;

use super::pacing::Found;
use super::{Partition, signal};
use crate::areas;
use crate::channel::{Core, Flag};
use crate::error::Refusal;
use crate::event::Event;
use crate::interrupt_page::{Half, InterruptPage};

impl Partition {
    /// Maps the interrupt page of a guest that needs one. A guest without gets event flags, as from Win8 on.
    pub(super) fn map_interrupt_page(&mut self, connection: &Connection) {
        let needed = connection.interrupt_page.filter(|_| connection.version < Version::Win8);
        self.interrupt_page = needed.and_then(|gpa| {
            let page = InterruptPage::at(&self.end.memory(), gpa);
            page.map_err(|error| self.misplaced("interrupt page", gpa, &error)).ok()
        });
    }

    /// Reports an address of the guest's at which there is no page of its memory.
    pub(super) fn misplaced(&mut self, what: &str, gpa: u64, error: &dyn std::fmt::Display) {
        if self.is_worth_telling() {
            let (client, what) = (self.client.clone(), format!("{what} at {gpa:#x}"));
            let reason = Refusal::new(error.to_string()).reason;
            self.root.tell(Event::Refused { client, what, reason });
        }
    }

    /// How the guest is told that a signal is for channel `relid`.
    pub(super) fn flag(&self, relid: u32, event_flag: u16) -> Flag {
        match &self.interrupt_page {
            Some(page) => Flag::Page(page.clone(), u16::try_from(relid).unwrap_or(0)),
            None => Flag::Event(event_flag),
        }
    }

    /// Whether signals on a connection that the guest may have chosen arrive where the channel, to which `area` belongs,
    /// is told of them.
    pub(super) fn check_connection(&self, area: u32, connection_id: u32) -> Result<(), Refusal> {
        let workers = self.end.info().workers;
        match ChannelConnection::of(connection_id).map(|channel| channel.worker) {
            Some(at) if at != areas::SHARED && at != area && at < workers => {
                let reason = format!("connection {connection_id:#x} is that of other channels");
                Err(Refusal { status: Status::INVALID_PARAMETER, reason })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Has a channel be told of signals that arrive elsewhere than in an area of its own; gives the flags.
    pub(super) fn listen(
        &mut self,
        relid: u32,
        area: u32,
        connection_id: u32,
        core: &Arc<Core>,
    ) -> SmallVec<[u16; 2]> {
        let mut flags = SmallVec::new();
        if area == areas::SHARED {
            flags.push(u16::try_from(relid).unwrap_or(0));
        }
        // One that the guest chose may name another flag, or come as a frame.
        if let Some(channel) = ChannelConnection::of(connection_id)
            && channel.worker == areas::SHARED
        {
            flags.push(channel.flag());
        }
        for flag in &flags {
            self.by_flag.add(*flag, core);
        }
        self.by_connection.add(connection_id, core);
        flags
    }

    /// The guest has signalled on the connection that all channels of V1 share.
    pub(super) fn take_page_signals(&self) -> Found {
        let mut found = Found::Nothing;
        let Some(page) = &self.interrupt_page else { return found };
        page.take(Half::ToHost, |relid| {
            found = found.max(signal(self.by_flag.of(relid)));
        });
        found
    }
}
