//! Signals of versions before Win8, which have no event flag for each channel.

use vmbus_core::Version;
use vmbus_core::server::Connection;

use super::pacing::Found;
use super::{Partition, signal};
use crate::channel::Flag;
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

    /// The guest has signalled on the connection that all channels of V1 share.
    pub(super) fn take_page_signals(&self) -> Found {
        let mut found = Found::Nothing;
        let Some(page) = &self.interrupt_page else { return found };
        page.take(Half::ToHost, |relid| {
            if let Some(channel) = self.by_flag.get(&relid) {
                found = found.max(signal(channel));
            }
        });
        found
    }
}
