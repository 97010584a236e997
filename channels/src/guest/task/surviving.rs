//! The time between two roots: channels wait, the guest attaches again, channels go on.
//!
//! All state is the guest's. A new root is told what any root is told, and trusted as little.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use vmbus_core::PAGE_SIZE;
use vmbus_partition::{FromRoot, GuestEnd, LinkError, SharedPages, Watched, reactor};

use super::super::resume::Rejoin;
use super::super::{OfferedDevice, OpenOptions};
use super::{Command, OpenChannel, Ring, Task, new_client};
use crate::areas::Areas;
use crate::channel::{Channel, Core};
use crate::error::Error;
use crate::sources;

/// The first pause between two attempts to attach; it grows.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Why channels end whose guest has waited long enough.
const NO_ROOT: &str = "no root came back in time";
/// Why channels end whose guest has another root.
pub(super) const NO_DEVICE: &str = "its device was not offered again in time";

/// How a guest outlives its root.
pub(in super::super) struct Survival {
    pub(in super::super) within: Duration,
    pub(in super::super) rejoin: Rejoin,
}

/// A channel that waits for its device to be offered by another root.
pub(super) struct Suspended {
    pages: SharedPages,
    downstream: usize,
    device: OfferedDevice,
    options: OpenOptions,
    core: Arc<Core>,
    pub(super) serial: u64,
    until: Instant,
    /// What its last root answered is not taken yet. Later, its rings are others'.
    has_last_replies: bool,
}

/// The channel that an open is for which is not the first of its kind.
pub(super) struct Resuming {
    pub(super) core: Arc<Core>,
    until: Instant,
    /// Which greeting is under way.
    attempt: u64,
}

impl Task {
    /// Whether there may be life after the link has ended like this.
    fn outlives(&self, end: &Error) -> bool {
        let link_lost = match end {
            Error::Disconnected | Error::Link(LinkError::Gone | LinkError::System { .. }) => true,
            // Neither is a root that broke the protocol dead, nor one that refuses.
            _ => false,
        };
        link_lost && self.joined.is_none() && self.survival.is_some()
    }

    /// After the link has ended: waits for another root and attaches to it. `Ok(false)`: the guest is to leave.
    pub(super) async fn rejoin(&mut self, end: Error) -> Result<bool, Error> {
        if !self.outlives(&end) {
            return Err(end);
        }
        let Some(mut survival) = self.survival.take() else { return Err(end) };
        let until = *self.until.get_or_insert_with(|| Instant::now() + survival.within);
        self.suspend(until);
        let rejoined = tokio::time::timeout_at(until, self.rejoin_by(&mut survival.rejoin, until)).await;
        self.survival = Some(survival);
        rejoined.unwrap_or_else(|_| {
            self.end_suspended(NO_ROOT);
            Err(Error::Disconnected)
        })
    }

    async fn rejoin_by(&mut self, rejoin: &mut Rejoin, until: Instant) -> Result<bool, Error> {
        let gone = gone(Arc::clone(&self.end), self.hung_up);
        match self.meanwhile(gone).await {
            None => return Ok(false),
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(error),
        }
        self.inherit();
        let mut pause = FIRST_PAUSE;
        loop {
            let patience = until.saturating_duration_since(Instant::now());
            match self.meanwhile(rejoin(patience)).await {
                None => return Ok(false),
                Some(Ok(end)) => {
                    self.adopt(end);
                    return Ok(true);
                }
                Some(Err(LinkError::Refused { reason })) => {
                    self.end_suspended(&reason);
                    return Err(LinkError::Refused { reason }.into());
                }
                Some(Err(_)) => {}
            }
            if self.meanwhile(tokio::time::sleep(pause)).await.is_none() {
                return Ok(false);
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Waits for `work` and carries out what commands can be meanwhile. `None`: the guest is to leave.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let next = self.next_deadline();
            tokio::select! {
                biased;
                command = self.inbox.recv() => match command? {
                    // Whoever opens asks again when there are offers.
                    Command::Open { .. }
                    | Command::Hvsock(_)
                    | Command::Greeted { .. }
                    | Command::Answered(_) => {}
                    Command::MoveMonitorPages(reply) | Command::Retarget { reply, .. } => {
                        let _ = reply.send(Err(Error::Disconnected));
                    }
                    Command::Lend { reply, .. } => _ = reply.send(Err(Error::Disconnected)),
                    Command::AreaLeft { .. } | Command::TakeBack { .. } => {}
                    Command::Unload(reply) => {
                        let _ = reply.send(Err(Error::Disconnected));
                        return None;
                    }
                    Command::Close { serial, .. } => {
                        self.suspended.retain(|channel| channel.serial != serial);
                    }
                    Command::Leave => return None,
                },
                output = &mut work => return Some(output),
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.end_late(NO_ROOT);
                }
            }
        }
    }

    /// Lets go of all that the link was. What the root may still write stays out of use.
    fn suspend(&mut self, until: Instant) {
        self.offers.send_modify(|offers| {
            offers.clear();
            offers.complete = false;
            offers.attached = false;
        });
        for (_, mut channel) in std::mem::take(&mut self.channels) {
            let open = channel.core.take();
            let (survivor, until, has_last_replies) = match channel.resuming.take() {
                Some(resuming) => {
                    // The greeting's rings are the survivor's.
                    end(open);
                    (Some(resuming.core), resuming.until, false)
                }
                None => (open.and_then(suspended), until, true),
            };
            let Some(pages) = channel.pages.take() else { continue };
            match survivor {
                Some(core) if !core.is_closed() => self.suspended.push(Suspended {
                    pages,
                    downstream: channel.downstream,
                    device: channel.device,
                    options: channel.options,
                    core,
                    serial: channel.serial,
                    until,
                    has_last_replies,
                }),
                core => self.lost.push(Ring { _pages: pages, _core: core }),
            }
        }
        self.lost.extend(self.rings.drain().map(|(_, ring)| ring));
        self.lose_lent();
        for refused in self.refused.drain(..) {
            let _ = refused.reply.send(Err(Error::Refused(crate::error::Refusal {
                status: refused.status,
                reason: refused.status.to_string(),
            })));
        }
        self.hvsock.forget_all();
        self.reasons.clear();
        self.resuming.clear();
        self.connections.clear();
        self.by_flag.clear();
    }

    /// The root is dead: takes what it has answered, and all memory back.
    fn inherit(&mut self) {
        self.lost.clear();
        self.lost_buffers.clear();
        if let Some((pages, _)) = &self.interrupt_page {
            pages.mapping().fill_zero(0, PAGE_SIZE);
        }
        self.monitors.forget_root();
        self.suspended.retain_mut(|channel| {
            if !std::mem::take(&mut channel.has_last_replies) {
                return true;
            }
            let taken = channel.core.take_last_replies();
            if let Err(error) = &taken {
                channel.core.end(&error.to_string());
            }
            taken.is_ok()
        });
    }

    fn adopt(&mut self, end: Arc<dyn GuestEnd>) {
        self.areas = Areas::new(end.info().vps);
        self.gifts = Arc::default();
        self.hung_up = false;
        self.roots += 1;
        self.client = {
            let page = self.interrupt_page.as_ref().map(|(pages, _)| pages);
            new_client(page, &self.monitors, self.policy.as_deref())
        };
        // Streams that their users have not dropped hold the old end, too.
        self.end.hang_up();
        self.link.set_end(Arc::clone(&end));
        self.end = end;
    }

    /// The root shows this device: a channel that waits for it is opened again.
    pub(super) fn reopen(&mut self, device: &OfferedDevice) {
        let waits = |channel: &Suspended| {
            channel.device.instance == device.instance
                && channel.device.class == device.class
                && channel.device.subchannel_index == device.subchannel_index
        };
        let Some(index) = self.suspended.iter().position(waits) else { return };
        let Suspended { pages, downstream, options, core, serial, until, .. } =
            self.suspended.swap_remove(index);
        let resuming = Resuming { core: Arc::clone(&core), until, attempt: 0 };
        let channel = OpenChannel {
            pages: Some(pages),
            gpadl: 0,
            open_id: 0,
            area: 0,
            moving: None,
            forwarding: Vec::new(),
            downstream,
            device: device.clone(),
            options,
            limits: crate::policy::Limits::default(),
            serial,
            reply: None,
            core: None,
            resuming: Some(resuming),
        };
        match self.begin_rings(device.relid, channel) {
            Ok(()) => _ = self.resuming.insert(device.relid, until),
            Err((error, _)) => core.end(&error.to_string()),
        }
    }

    /// The device has opened again: lets its client greet it.
    pub(super) fn reopened(&mut self, relid: u32) {
        self.last_attempt += 1;
        let attempt = self.last_attempt;
        let fresh = match self.make_core(relid) {
            Ok(fresh) => fresh,
            Err(error) => {
                self.not_resumed(relid, &error.to_string());
                let _ = self.client.close(relid);
                return self.finish(relid, None);
            }
        };
        if self.channels.get(&relid).and_then(|it| it.resuming.as_ref()).is_none_or(|it| it.core.is_closed())
        {
            return self.not_resumed(relid, "it was closed");
        }
        let Some(channel) = self.channels.get_mut(&relid) else { return };
        let (Some(resuming), Some(greeting)) = (&mut channel.resuming, channel.options.on_resume.clone())
        else {
            return;
        };
        resuming.attempt = attempt;
        let (commands, serial) = (self.commands.clone(), channel.serial);
        let fresh = Channel::new(fresh, None).with_lend(self.lends(relid, serial));
        let greeted = tokio::spawn(greeting.run(fresh));
        tokio::spawn(async move {
            let result = match greeted.await {
                Ok(result) => result,
                Err(_) => Err("its client panicked".into()),
            };
            let _ = commands.send(Command::Greeted { relid, attempt, result });
        });
    }

    /// The greeting is over: the channel goes on, if all is well.
    pub(super) fn greeted(&mut self, relid: u32, attempt: u64, result: Result<(), String>) {
        let Some(channel) = self.channels.get_mut(&relid) else { return };
        let (Some(resuming), Some(fresh)) = (&channel.resuming, &channel.core) else { return };
        if resuming.attempt != attempt {
            return;
        }
        let core = Arc::clone(&resuming.core);
        let over = match result {
            Ok(()) => core.take_over(fresh).map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = over {
            return self.not_resumed(relid, &reason);
        }
        channel.resuming = None;
        self.resuming.remove(&relid);
        channel.core = Some(Arc::clone(&core));
        self.listen_for(relid, &core);
        tokio::spawn(async move {
            // What goes wrong has closed the channel.
            let _ = core.send_again().await;
        });
    }

    /// The channel that was to go on ends instead.
    pub(super) fn not_resumed(&mut self, relid: u32, reason: &str) {
        let Some(channel) = self.channels.get(&relid) else { return };
        if let Some(resuming) = &channel.resuming {
            resuming.core.end(reason);
        }
        // Until the root has answered, its rings are not ours: then it is closed.
        if channel.core.is_some() {
            let _ = self.client.close(relid);
            self.finish(relid, None);
        }
    }

    /// When a channel has waited long enough.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.suspended.iter().map(|channel| channel.until);
        waiting.chain(self.resuming.values().copied()).min()
    }

    /// Ends channels that have waited long enough: `reason` is for those whose device is not there.
    pub(super) fn end_late(&mut self, reason: &str) {
        let now = Instant::now();
        self.suspended.retain(|channel| {
            let in_time = now < channel.until;
            if !in_time {
                channel.core.end(reason);
            }
            in_time
        });
        let late: Vec<u32> =
            self.resuming.iter().filter(|(_, until)| **until <= now).map(|(&relid, _)| relid).collect();
        for relid in late {
            self.resuming.remove(&relid);
            self.not_resumed(relid, "its device did not open again in time");
        }
    }

    /// Ends all channels that wait for their device.
    pub(super) fn end_suspended(&mut self, reason: &str) {
        for channel in self.suspended.drain(..) {
            channel.core.end(reason);
        }
    }
}

/// Suspends the channel; `None`: it does not outlive its root, and is closed.
fn suspended(core: Arc<Core>) -> Option<Arc<Core>> {
    if core.survives_roots() && core.suspend() {
        return Some(core);
    }
    end(Some(core));
    None
}

fn end(core: Option<Arc<Core>>) {
    if let Some(core) = core {
        core.close();
        core.quiesce();
    }
}

/// Returns when nothing of the root is left that could write our memory.
///
/// A socket hangs up when a root lets us go, and while its threads still run. The process's descriptor is readable when
/// all its threads are over. A socket that has not hung up then is held by a child of the root, which may have the
/// memory as well. In one process the link is dropped after the last request that holds memory.
async fn gone(end: Arc<dyn GuestEnd>, mut hung_up: bool) -> Result<(), Error> {
    let failed = || Error::io("waiting for the root to end");
    let watch = |what| end.watch(what).and_then(|fd| fd.map(reactor::watch_readable).transpose());
    let socket = watch(Watched::Socket).map_err(failed())?;
    let process = watch(Watched::Process).map_err(failed())?;
    if socket.is_some() && process.is_none() {
        // Nobody can tell.
        return Err(Error::Disconnected);
    }
    if process.is_some() {
        sources::readable(&process).await?;
    }
    while !hung_up {
        match end.receive() {
            Ok(Some(FromRoot::HungUp)) => hung_up = true,
            Ok(Some(_)) => {}
            Ok(None) if socket.is_some() => sources::readable(&socket).await?,
            Ok(None) => return Err(Error::Disconnected),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
