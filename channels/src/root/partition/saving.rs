//! A partition's task ends and leaves everything as it stands, for another to go on.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::hvsock::is_connection;
use super::{Command, Partition};
use crate::channel::SavedChannel;
use crate::saved::{SaveError, SavedDevice, SavedPartition};

/// To whoever wants the partition saved.
pub(in crate::root) type SaveReply = oneshot::Sender<Result<SavedPartition, SaveError>>;

impl Partition {
    /// Whether the partition is going to be saved; if not, who asked is told why.
    pub(super) fn begins_saving(&mut self, reply: SaveReply) -> bool {
        if self.writes.needed() {
            let _ = reply.send(Err(SaveError::TellsWrites));
            return false;
        }
        self.saving = Some(reply);
        true
    }

    /// Ends as the guest must not notice.
    pub(super) async fn leave_saved(mut self, reply: SaveReply) {
        let result = self.saved().await;
        for offered in self.offered.values().filter(|offered| offered.subchannel.is_none()) {
            offered.device.provider.left(&self.client);
        }
        self.root.gone(&self.client, "saved".to_owned());
        let _ = reply.send(result);
    }

    async fn saved(&mut self) -> Result<SavedPartition, SaveError> {
        let channels = self.save_channels().await;
        self.act();
        if let Some(error) = self.undelivered.take() {
            return Err(error.into());
        }
        self.end.flush()?;
        let device = |(key, offered): (&_, &super::Offered)| SavedDevice {
            key: *key,
            instance: offered.device.instance,
            subchannel: offered.subchannel.as_ref().map_or(0, |subchannel| subchannel.index),
            area: offered.area,
            withdrawn: offered.withdrawn,
        };
        let devices = self.offered.iter().map(device).collect();
        Ok(SavedPartition { server: self.server.save()?, devices, channels })
    }

    /// Asks all sessions to end, and waits until they have.
    async fn save_channels(&mut self) -> BTreeMap<u32, SavedChannel> {
        self.tell_sessions();
        let mut told = self.opens;
        let mut saved = BTreeMap::new();
        let mut deadline = Instant::now() + self.quotas.grace;
        let mut gave_up = false;
        while self.open.values().any(|channel| !channel.ended) {
            match tokio::time::timeout_at(deadline, self.inbox.recv()).await {
                Ok(Some(command)) => self.command_while_saving(command, &mut saved),
                Ok(None) => break,
                // They block a thread; what they may still touch stays mapped.
                Err(_) if gave_up => break,
                Err(_) => {
                    gave_up = true;
                    // Once for those that are stopped, once for what they have in flight.
                    deadline = Instant::now() + self.quotas.grace.saturating_mul(2);
                    for channel in self.open.values().filter(|channel| !channel.ended) {
                        channel.core.close();
                    }
                }
            }
            self.act();
            // A guest may have asked for a channel that could open only now that it has closed.
            if self.opens != told {
                self.tell_sessions();
                told = self.opens;
            }
        }
        saved
    }

    fn tell_sessions(&self) {
        for channel in self.open.values() {
            if is_connection(channel.device) {
                // A stream's other end is a task of this process, which stays here.
                channel.core.close();
            } else {
                channel.core.begin_saving();
            }
        }
    }

    fn command_while_saving(&mut self, command: Command, saved: &mut BTreeMap<u32, SavedChannel>) {
        match command {
            Command::Ended { relid, device, result, saved: channel } => match self.open.get_mut(&relid) {
                Some(open) if !open.closing => {
                    open.ended = true;
                    saved.extend(channel.map(|channel| (relid, *channel)));
                }
                Some(_) | None => self.ended(relid, device, result),
            },
            Command::Status(reply) => _ = reply.send(self.status()),
            Command::Overdue { relid } => self.overdue(relid),
            Command::ListReleased { relid, gpadl } => self.list_released(relid, gpadl),
            Command::Save(reply) => _ = reply.send(Err(SaveError::NoPartition(self.client.id))),
            // A session waits for these, and the save for the session.
            Command::OfferSubchannels { relid, open, count, admit, reply } => {
                self.ask_for_subchannels(relid, open, count, admit, reply);
            }
            Command::Answered(answered) if answered.is_about_subchannels() => self.answered(*answered),
            // What comes with these is there after the restore, too, or is asked again.
            Command::Offer(_)
            | Command::Withdraw(_)
            | Command::AskAgain
            | Command::Limit(_)
            | Command::Answered(_)
            | Command::Review(_)
            | Command::Hvsock(_)
            | Command::EndChannel { .. }
            | Command::Detach => {}
        }
    }
}
