//! Memory that this guest lends to a device beside the rings, by a page list of the channel.

use tokio::sync::oneshot;
use vmbus_core::client::Failure;

use super::{Command, Task};
use crate::buffer::Buffer;
use crate::channel::{Lend, Lent};
use crate::error::Error;

/// Who waits until a device has memory.
type LentTo = oneshot::Sender<Result<Lent, Error>>;

/// Memory of a list that the host has not let go of.
pub(super) struct Lending {
    relid: u32,
    buffer: Buffer,
    /// Who lends it, until the host has answered.
    lender: Option<LentTo>,
    /// Who wants to know when it is back.
    taker: Option<oneshot::Sender<()>>,
    /// The host was asked for it.
    returning: bool,
}

impl Task {
    pub(super) fn lend(&mut self, relid: u32, serial: u64, buffer: Buffer, lender: LentTo) {
        match self.begin_lend(relid, serial, &buffer) {
            Ok(gpadl) => {
                let lending = Lending { relid, buffer, lender: Some(lender), taker: None, returning: false };
                self.lent.insert(gpadl, lending);
            }
            Err(error) => _ = lender.send(Err(error)),
        }
    }

    fn begin_lend(&mut self, relid: u32, serial: u64, buffer: &Buffer) -> Result<u32, Error> {
        let is_it = |channel: &&super::OpenChannel| channel.serial == serial && channel.core.is_some();
        let channel = self.channels.get(&relid).filter(is_it);
        if channel.is_none() {
            return Err(Error::Rescinded);
        }
        let list = buffer.list().map_err(|error| Error::NotPossible(error.to_string()))?;
        self.client.create_gpadl(relid, &list).map_err(Error::not_now)
    }

    /// The host's answer; `false` if the list is none of these.
    pub(super) fn lend_answered(&mut self, gpadl: u32, result: Result<(), Failure>) -> bool {
        let Some(lending) = self.lent.get_mut(&gpadl) else { return false };
        let Some(lender) = lending.lender.take() else { return true };
        let result = match result {
            Ok(()) => {
                let (commands, roots) = (self.commands.clone(), self.roots);
                let take_back = move |taker| _ = commands.send(Command::TakeBack { gpadl, roots, taker });
                Ok(Lent::new(gpadl, lending.buffer.clone(), Box::new(take_back)))
            }
            // It is on its way back, and was never the host's for the one who lent it.
            Err(Failure::Cancelled) => Err(Error::Rescinded),
            Err(failure) => {
                self.lent.remove(&gpadl);
                Err(Error::failed(failure))
            }
        };
        // One that nobody waits for is taken back when it is dropped.
        let _ = lender.send(result);
        true
    }

    pub(super) fn take_back(&mut self, gpadl: u32, roots: u64, taker: Option<oneshot::Sender<()>>) {
        // Another root has nothing of what was before.
        if roots != self.roots {
            return;
        }
        if let Some(lending) = self.lent.get_mut(&gpadl) {
            lending.taker = taker;
            self.ask_back(gpadl);
        }
    }

    fn ask_back(&mut self, gpadl: u32) {
        let Some(lending) = self.lent.get_mut(&gpadl).filter(|lending| !lending.returning) else { return };
        match self.client.teardown_gpadl(lending.relid, gpadl) {
            Ok(()) => lending.returning = true,
            // It went with a rescind, or was refused.
            Err(_) => self.came_back(gpadl),
        }
    }

    /// The host has let go of a list.
    pub(super) fn came_back(&mut self, gpadl: u32) {
        if let Some(Lending { taker: Some(taker), .. }) = self.lent.remove(&gpadl) {
            let _ = taker.send(());
        }
    }

    /// The channel has ended: all that was lent by it comes back.
    pub(super) fn take_all_back(&mut self, relid: u32) {
        let lent = self.lent.iter().filter(|(_, lending)| lending.relid == relid);
        for gpadl in lent.map(|(gpadl, _)| *gpadl).collect::<Vec<_>>() {
            self.ask_back(gpadl);
        }
    }

    /// Memory that the root which is gone may still write.
    pub(super) fn lose_lent(&mut self) {
        self.lost_buffers.extend(self.lent.drain().map(|(_, lending)| lending.buffer));
    }

    /// How the handle of an open channel lends memory.
    pub(super) fn lends(&self, relid: u32, serial: u64) -> Lend {
        let commands = self.commands.clone();
        Box::new(move |buffer| {
            let (reply, lent) = oneshot::channel();
            let _ = commands.send(Command::Lend { relid, serial, buffer, reply });
            lent
        })
    }
}
