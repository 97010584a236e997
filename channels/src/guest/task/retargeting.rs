//! Moving a channel's signals to another event area while it is open.
//!
//! The root may signal the old area until it has answered, and before 5.3 it does not answer. So the channel waits at the
//! new area from the moment of the request on, and what still comes to the old one is passed on.

use std::sync::Arc;

use tokio::sync::oneshot;
use vmbus_core::Version;
use vmbus_core::client::Failure;
use vmbus_partition::{GuestEnd, Watched, reactor};

use super::{Command, Task};
use crate::areas;
use crate::channel::{Core, Retarget};
use crate::error::Error;
use crate::sources;

/// Who waits until signals arrive at another area.
pub(super) type Moved = oneshot::Sender<Result<(), Error>>;

/// A channel's way from one area to another.
pub(super) struct Moving {
    from: u32,
    reply: Moved,
}

/// Passes on what comes to an area that a channel has left, for as long as it lives.
pub(super) struct Forwarding {
    area: u32,
    _end: oneshot::Sender<()>,
}

impl Task {
    pub(super) fn retarget(&mut self, relid: u32, serial: u64, vp: u32, reply: Moved) {
        if let Err(error) = self.begin_retarget(relid, serial, vp) {
            let _ = reply.send(Err(error));
        } else if let Some(channel) = self.channels.get_mut(&relid) {
            match channel.area == vp {
                true => _ = reply.send(Ok(())),
                false => {
                    let from = std::mem::replace(&mut channel.area, vp);
                    channel.moving = Some(Moving { from, reply });
                    self.wait_at(relid, vp);
                    self.forward(relid, from);
                }
            }
        }
    }

    fn begin_retarget(&mut self, relid: u32, serial: u64, vp: u32) -> Result<(), Error> {
        let channel = self.channels.get(&relid).filter(|channel| channel.serial == serial);
        let channel = channel.filter(|channel| channel.core.is_some()).ok_or(Error::Rescinded)?;
        if channel.area == vp {
            return Ok(());
        }
        let vps = self.end.info().vps;
        if vp >= vps {
            return Err(Error::NotPossible(format!("this guest has processors 0 to {}", vps - 1)));
        }
        let left = channel.forwarding.iter().any(|forwarding| forwarding.area == vp);
        if left || (vp != areas::SHARED && !self.areas.take_this(vp)) {
            return Err(Error::NotPossible(format!("processor {vp} serves another channel")));
        }
        self.client.modify(relid, vp).map_err(|error| {
            self.areas.give_back(vp);
            Error::not_now(error)
        })
    }

    /// The root's answer, or, before 5.3, what stands for it.
    pub(super) fn retargeted(&mut self, relid: u32, result: Result<(), Failure>) {
        let answered = self.client.connection().is_some_and(|now| now.version >= Version::Iron);
        let Some(channel) = self.channels.get_mut(&relid) else { return };
        let Some(Moving { from, reply }) = channel.moving.take() else { return };
        match &result {
            // Whatever comes from now on comes to the new area.
            Ok(()) if answered => channel.forwarding.retain(|forwarding| forwarding.area != from),
            Ok(()) => {}
            Err(_) => {
                let area = std::mem::replace(&mut channel.area, from);
                channel.forwarding.retain(|forwarding| forwarding.area != from);
                self.wait_at(relid, from);
                self.forward(relid, area);
                if let Some(channel) = self.channels.get_mut(&relid) {
                    channel.forwarding.retain(|forwarding| forwarding.area != area);
                }
            }
        }
        let _ = reply.send(result.map_err(Error::failed));
    }

    /// How the handle of an open channel asks for another area.
    pub(super) fn retargets(&self, relid: u32, serial: u64) -> Retarget {
        let commands = self.commands.clone();
        Box::new(move |vp| {
            let (reply, moved) = oneshot::channel();
            let _ = commands.send(Command::Retarget { relid, serial, vp, reply });
            moved
        })
    }

    fn wait_at(&mut self, relid: u32, area: u32) {
        let Some(channel) = self.channels.get(&relid) else { return };
        let Some(core) = &channel.core else { return };
        if area == areas::SHARED {
            self.by_flag.add(channel.flag(relid), core);
        }
        core.wait_at(area);
    }

    /// Passes on what comes to an area that the channel has left. In the shared one this task does.
    fn forward(&mut self, relid: u32, area: u32) {
        let Some(channel) = self.channels.get_mut(&relid) else { return };
        let Some(core) = &channel.core else { return };
        if area != areas::SHARED {
            let (end, stop) = oneshot::channel();
            channel.forwarding.push(Forwarding { area, _end: end });
            let (commands, roots) = (self.commands.clone(), self.roots);
            let forward = forward(Arc::clone(&self.end), area, Arc::clone(core), stop);
            tokio::spawn(async move {
                forward.await;
                let _ = commands.send(Command::AreaLeft { area, roots });
            });
        }
    }
}

/// Until `stop` says that nothing more can come.
async fn forward(end: Arc<dyn GuestEnd>, area: u32, core: Arc<Core>, mut stop: oneshot::Receiver<()>) {
    let bell = end.watch(Watched::Bell(area)).and_then(|fd| fd.map(reactor::watch_readable).transpose());
    let Ok(bell) = bell else { return };
    loop {
        let mut signalled = false;
        end.take_flags(area, &mut |_| signalled = true);
        if signalled {
            core.signalled();
        }
        if end.arm(area) {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            biased;
            _ = &mut stop => break,
            result = sources::readable(&bell) => match result {
                Ok(()) => end.clear_bell(area),
                Err(_) => break,
            },
        }
    }
    end.disarm(area);
    end.take_flags(area, &mut |_| {});
    core.signalled();
}
