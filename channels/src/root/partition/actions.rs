//! What the protocol's state machine wants done.

use vmbus_core::server::ServerAction;

use super::Partition;
use super::deciding::bytes;
use super::sharing::List;
use crate::event::Event;

impl Partition {
    pub(super) fn act(&mut self) {
        self.act_on_all();
        // What the state machine did not go on with is gone.
        self.admitted.clear();
    }

    fn act_on_all(&mut self) {
        while let Some(action) = self.server.poll_action() {
            self.pacing.did(1);
            match action {
                ServerAction::Send { vp, sint, payload } => {
                    // One that is lost would leave both ends with different ideas of the bus.
                    if let Err(error) = self.end.deliver(vp, sint, &payload) {
                        self.undelivered.get_or_insert(error);
                    }
                }
                ServerAction::Ask { id, question } => self.decide(id, &question),
                ServerAction::Open { relid, device, open } => self.open_channel(relid, device, &open),
                ServerAction::Reattach { relid, device, open } => self.reattach(relid, device, &open),
                ServerAction::Close { relid, .. } => self.close_channel(relid),
                ServerAction::Gpadl { relid, gpadl, pages, .. } => {
                    self.shares.add(List::Made { relid, gpadl }, relid, bytes(pages.page_count()));
                    self.lists.add(relid, gpadl, pages);
                }
                ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                    self.recall_list(relid, gpadl);
                }
                ServerAction::Retarget { relid, vp, .. } => {
                    if let Some(channel) = self.open.get(&relid) {
                        channel.core.retarget(vp);
                    }
                }
                ServerAction::Declined { device } => self.declined(device),
                ServerAction::Released { device } => self.released(device),
                ServerAction::Connected(connection) => {
                    self.map_interrupt_page(&connection);
                    self.place_monitors(connection.monitor_pages);
                    let client = self.client.clone();
                    self.root.tell(Event::Connected { client, version: connection.version });
                }
                ServerAction::MonitorPages(pages) => self.place_monitors(pages),
                ServerAction::Disconnected => {
                    self.interrupt_page = None;
                    self.drop_connects();
                    self.place_monitors(None);
                    self.root.tell(Event::Disconnected { client: self.client.clone() });
                }
                ServerAction::Connect(request) => {
                    self.connect(request);
                }
                ServerAction::Fault(fault) => {
                    self.pacing.fault(&fault);
                    if self.is_worth_telling() {
                        self.root.tell(Event::Fault { client: self.client.clone(), fault });
                    }
                }
            }
        }
    }
}
