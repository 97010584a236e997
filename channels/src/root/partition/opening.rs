//! Channels of one partition, from open to close.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use tokio::runtime::Handle;
use vmbus_core::server::{DeviceKey, Open, ServerInput};
use vmbus_core::{PAGE_SIZE, Version};
use vmbus_partition::RefusedWhat;
use vmbus_ringbuf::RingMemory;

use super::deciding::Admission;
use super::hvsock::is_connection;
use super::{Command, OpenChannel, Partition};
use crate::areas;
use crate::channel::{Channel, Core, Limits, SavedChannel, Side, WAITING_AT_ROOT};
use crate::error::{ChannelError, Refusal};
use crate::event::Event;
use crate::policy;
use crate::provider::{OpenRequest, Served};
use crate::quotas::count;

/// Where a session begins.
pub(super) enum Begins {
    Anew,
    /// Where another has left.
    Again(SavedChannel),
}

impl Partition {
    pub(super) fn open_channel(&mut self, relid: u32, device: DeviceKey, open: &Open) {
        let result = self.try_open(relid, device, open, Begins::Anew);
        if let Err(refusal) = &result {
            self.refuse(RefusedWhat::Open(relid), format!("opening channel {relid}"), refusal);
        }
        let told = result.clone().map_err(|refusal| refusal.status);
        self.server.handle(ServerInput::Opened { relid, result: told });
        self.connection_opened(device, result);
    }

    pub(super) fn try_open(
        &mut self,
        relid: u32,
        key: DeviceKey,
        open: &Open,
        begins: Begins,
    ) -> Result<(), Refusal> {
        let Some(offered) = self.offered.get(&key) else { return Err(Refusal::new("the device is gone")) };
        let device = offered.device.clone();
        // A guest that is told no connection id of its own signals where all such guests do.
        let connected = self.server.connection();
        let area = if connected.is_some_and(|now| now.version == Version::V1) {
            areas::SHARED
        } else {
            offered.area
        };
        let memory = self.end.memory();
        let refuse = |error: &dyn std::fmt::Display| Refusal::new(error.to_string());
        let pages = open.ring.whole_pages().ok_or_else(|| Refusal::new("the rings are not whole pages"))?;
        let downstream = open.downstream_page as usize;
        let incoming = memory.ring(pages.clone().take(downstream)).map_err(|error| refuse(&error))?;
        let outgoing = memory.ring(pages.skip(downstream)).map_err(|error| refuse(&error))?;
        let request = OpenRequest {
            subchannel_index: offered.subchannel.as_ref().map_or(0, |subchannel| subchannel.index),
            incoming_bytes: incoming.data_size(),
            outgoing_bytes: outgoing.data_size(),
            target_vp: open.target_vp,
            user_data: open.user_data,
        };
        let ring_bytes = count(open.ring.page_count()).saturating_mul(count(PAGE_SIZE));
        self.admit_rings(ring_bytes)?;
        let requests = self.admit_requests(device.offer.requests)?;
        let start = {
            let _here = self.sessions.enter();
            match (&offered.subchannel, &begins) {
                (_, Begins::Again(saved)) => device.provider.restore(&self.client, &request, &saved.state)?,
                (None, Begins::Anew) => device.provider.open(&self.client, &request)?,
                (Some(subchannel), Begins::Anew) => (subchannel.admit)(&request)?,
            }
        };
        let is_primary = offered.subchannel.is_none();

        self.check_connection(offered.area, open.connection_id)?;
        let bit = self.monitors.prepare(open.monitor)?;
        let side = Arc::new(Side::Root {
            end: Arc::clone(&self.end),
            vp: AtomicU32::new(open.target_vp),
            flag: self.flag(relid, open.event_flag),
            writes: Arc::clone(&self.writes),
            gifts: Arc::clone(&self.gifts),
            bit,
        });
        let completion_room = device.offer.completion_room;
        let limits = Limits { completion_room, requests, waiting: WAITING_AT_ROOT };
        let core = match &begins {
            Begins::Anew => {
                Core::new(side, area, incoming, outgoing, limits).map_err(|error| refuse(&error))?
            }
            Begins::Again(saved) => Core::take_up(side, area, (incoming, outgoing), limits, saved)
                .map_err(|error| refuse(&error))?,
        };
        let flags = self.listen(relid, area, open.connection_id, &core);
        core.set_spin(self.root.spin);
        core.set_storms(&self.pacing.channels, Handle::current());
        let (limits, claim, joined) = match self.admitted.remove(&key) {
            Some(Admission { limits, claim, joined }) => (limits, Some(claim), joined),
            None => Default::default(),
        };
        if limits != policy::Limits::default() {
            core.limit_incoming(&limits, self.root.policy.now(), self.root.spin);
        }
        self.monitors.watch(&core, open);

        self.opens += 1;
        let mut channel = Channel::new(Arc::clone(&core), None).with_lender(self.lender(relid));
        if is_primary {
            channel = channel.with_subchannels(self.asks_for_subchannels(relid, self.opens));
        }
        let served = {
            let _here = self.sessions.enter();
            start(channel)
        };
        let (ended, channel) = (self.commands.clone(), Arc::clone(&core));
        let grace = self.quotas.grace;
        self.sessions.spawn(async move {
            let result = run_session(served, &channel, grace, || {
                let _ = ended.send(Command::Overdue { relid });
            })
            .await;
            let saved = channel.saved().await.map(Box::new).filter(|_| result.is_ok());
            channel.close();
            channel.landed().await;
            let _ = ended.send(Command::Ended { relid, device: key, result, saved });
        });
        let connection_id = open.connection_id;
        self.rings_opened(ring_bytes, requests);
        self.open.insert(
            relid,
            OpenChannel {
                core,
                device: key,
                open: self.opens,
                flags,
                connection_id,
                limits,
                claim,
                joined,
                ring_bytes,
                requests,
                closing: false,
                ended: false,
            },
        );
        self.root.tell(Event::Opened {
            client: self.client.clone(),
            device: device.offer.name.clone(),
            relid,
        });
        Ok(())
    }

    /// A session went on after its channel's end, and was told to stop.
    pub(super) fn overdue(&self, relid: u32) {
        let Some(channel) = self.open.get(&relid) else { return };
        let device = self.offered.get(&channel.device);
        self.root.tell(Event::Overdue {
            client: self.client.clone(),
            device: device.map(|offered| offered.device.offer.name.clone()).unwrap_or_default(),
            relid,
        });
    }

    /// Waits for the sessions of a partition that has left, but not for ever: one that blocks a thread cannot be
    /// stopped. What it may still touch stays mapped as long as it holds its channel.
    pub(super) async fn wait_for_sessions(&mut self) {
        // Once for sessions to end by themselves, once for those that were stopped and what they have in flight.
        let end = tokio::time::Instant::now() + self.quotas.grace.saturating_mul(2);
        while !self.open.is_empty() {
            match tokio::time::timeout_at(end, self.inbox.recv()).await {
                Ok(Some(command)) => _ = self.command(command),
                Ok(None) => return,
                Err(_) => {
                    for relid in self.open.keys() {
                        self.overdue(*relid);
                    }
                    return;
                }
            }
            self.act();
        }
    }

    pub(super) fn close_channel(&mut self, relid: u32) {
        match self.open.get_mut(&relid) {
            Some(channel) if !channel.ended => {
                channel.closing = true;
                channel.core.close();
            }
            Some(_) => {
                self.forget(relid);
                self.server.handle(ServerInput::Closed { relid });
            }
            None => self.server.handle(ServerInput::Closed { relid }),
        }
    }

    fn forget(&mut self, relid: u32) {
        if let Some(channel) = self.open.remove(&relid) {
            self.rings_closed(channel.ring_bytes, channel.requests);
        }
    }

    pub(super) fn ended(&mut self, relid: u32, device: DeviceKey, result: Result<(), ChannelError>) {
        let Some(channel) = self.open.get_mut(&relid) else { return };
        for flag in &channel.flags {
            self.by_flag.remove(*flag, &channel.core);
        }
        self.by_connection.remove(channel.connection_id, &channel.core);
        self.monitors.forget(&channel.core);
        channel.ended = true;
        let asked_for = channel.closing;
        let name =
            self.offered.get(&device).map(|offered| offered.device.offer.name.clone()).unwrap_or_default();
        self.pacing.session_ended(&result);
        let error = match result {
            Ok(()) | Err(ChannelError::Closed) => None,
            Err(error) => Some(error.to_string()),
        };
        self.root.tell(Event::Closed { client: self.client.clone(), device: name, relid, error });
        if asked_for {
            self.forget(relid);
            self.server.handle(ServerInput::Closed { relid });
        }
        if is_connection(device) {
            self.withdraw_connection(device);
        } else if !asked_for {
            // The device left on its own: the guest is told, and may have it again afterwards.
            self.rescind(device);
        }
    }
}

/// Runs a session to its end. One that goes on for longer than `grace` after its channel has ended is stopped where it
/// next waits.
async fn run_session(
    served: Served,
    channel: &Core,
    grace: Duration,
    overdue: impl FnOnce(),
) -> Result<(), ChannelError> {
    let mut session = tokio::spawn(served);
    let late = async {
        channel.closed().await;
        tokio::time::sleep(grace).await;
    };
    let joined = tokio::select! {
        joined = &mut session => joined,
        () = late => {
            session.abort();
            overdue();
            session.await
        }
    };
    match joined {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => {
            Err(ChannelError::Device("the session went on after its channel's end and was stopped".into()))
        }
        Err(_) => Err(ChannelError::Device("the session panicked".into())),
    }
}
