//! Channels of a guest, from open to close.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use vmbus_core::client::{self, Failure};
use vmbus_core::pages::PageRanges;
use vmbus_core::status::Status;
use vmbus_core::{FeatureFlags, PAGE_SIZE, Version};

use super::super::{OfferedDevice, OpenOptions, ROOT_DOMAIN};
use super::deciding::denied;
use super::{Command, OpenChannel, RefusedOpen, Ring, Task};
use crate::areas;
use crate::channel::{Channel, Core, Limits, Side, WAITING_AT_GUEST, WAITING_AT_ROOT};
use crate::error::{Error, Refusal};

/// How long a refusal's reason may come after the refusal itself: they travel on two ways.
const REASON_DELAY: Duration = Duration::from_millis(50);
/// Completions that a guest sends are short, and requests of a host few.
const LIMITS: Limits = Limits { completion_room: 128, requests: 1024, waiting: WAITING_AT_GUEST };
/// There are no requests in a stream.
const STREAM: Limits = Limits { completion_room: 0, requests: 0, waiting: WAITING_AT_ROOT };

impl Task {
    pub(super) fn begin_open(
        &mut self,
        device: OfferedDevice,
        options: OpenOptions,
        reply: oneshot::Sender<Result<Channel, Error>>,
    ) -> Result<(), (Error, oneshot::Sender<Result<Channel, Error>>)> {
        let relid = device.relid;
        let downstream = options.ring_pages.unwrap_or(1) + 1;
        let bytes = 2 * downstream * PAGE_SIZE;
        if self.channels.contains_key(&relid) {
            return Err((Error::Refused(Refusal::new("this guest has the channel open already")), reply));
        }
        if let Err(error) = self.check_signals(&options) {
            return Err((error, reply));
        }
        let Ok(pages) = self.end.allocate(ROOT_DOMAIN, bytes) else {
            return Err((Error::OutOfSharedMemory { wanted: bytes }, reply));
        };
        self.last_serial += 1;
        let channel = OpenChannel {
            pages: Some(pages),
            gpadl: 0,
            open_id: 0,
            area: 0,
            moving: None,
            forwarding: Vec::new(),
            downstream,
            device,
            options,
            limits: crate::policy::Limits::default(),
            serial: self.last_serial,
            reply: None,
            core: None,
            resuming: None,
        };
        if let Err((error, _)) = self.begin_rings(relid, channel) {
            return Err((error, reply));
        }
        if let Some(channel) = self.channels.get_mut(&relid) {
            channel.reply = Some(reply);
        }
        Ok(())
    }

    /// Describes the rings of a channel to the root, the first step of opening it.
    pub(super) fn begin_rings(
        &mut self,
        relid: u32,
        mut channel: OpenChannel,
    ) -> Result<(), (Error, Box<OpenChannel>)> {
        let downstream = channel.downstream;
        let Some(pages) = &channel.pages else { return Err((Error::Rescinded, Box::new(channel))) };
        // Both control pages start out as zeros, whatever the pages were before.
        pages.mapping().fill_zero(0, PAGE_SIZE);
        pages.mapping().fill_zero(downstream * PAGE_SIZE, PAGE_SIZE);
        let bytes = 2 * downstream * PAGE_SIZE;
        let list = match u32::try_from(bytes).map(|bytes| PageRanges::single(0, bytes, pages.pfns())) {
            Ok(Ok(list)) => list,
            Ok(Err(_)) | Err(_) => {
                return Err((Error::OutOfSharedMemory { wanted: bytes }, Box::new(channel)));
            }
        };
        let area = match self.take_area(channel.options.target_vp) {
            Ok(area) => area,
            Err(error) => return Err((error, Box::new(channel))),
        };
        match self.client.create_gpadl(relid, &list) {
            Ok(gpadl) => {
                channel.gpadl = gpadl;
                channel.area = area;
                self.channels.insert(relid, channel);
                Ok(())
            }
            Err(_) => {
                self.areas.give_back(area);
                Err((Error::Rescinded, Box::new(channel)))
            }
        }
    }

    /// Whether the signals that an open asks for can be had.
    fn check_signals(&self, options: &OpenOptions) -> Result<(), Error> {
        let Some(connection) = self.client.connection() else { return Ok(()) };
        let known = connection.features.contains(FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS);
        if options.signals.is_some() && !known {
            return Err(Error::NotPossible("the root takes no signal parameters".to_owned()));
        }
        if options.target_vp.is_some_and(|vp| vp != areas::SHARED) && connection.version < Version::Win8 {
            return Err(Error::NotPossible(format!("version {} has one processor", connection.version)));
        }
        Ok(())
    }

    pub(super) fn gpadl_created(&mut self, relid: u32, gpadl: u32, result: Result<(), Failure>) {
        if self.lend_answered(gpadl, result) {
            return;
        }
        let Some(channel) = self.channels.get(&relid).filter(|channel| channel.gpadl == gpadl) else {
            return;
        };
        let request = client::OpenRequest {
            ring_gpadl: gpadl,
            downstream_page: u32::try_from(channel.downstream).unwrap_or(u32::MAX),
            target_vp: channel.area,
            user_data: channel.options.user_data,
            signals: channel.options.signals,
            ..client::OpenRequest::default()
        };
        let opening = match result {
            Ok(()) => self.client.open(relid, request).map_err(|_| Failure::Rescinded),
            Err(failure) => Err(failure),
        };
        match opening {
            Ok(open_id) => {
                if let Some(channel) = self.channels.get_mut(&relid) {
                    channel.open_id = open_id;
                }
            }
            Err(failure) => self.open_failed(relid, failure),
        }
    }

    pub(super) fn opened(&mut self, relid: u32, result: Result<(), Failure>) {
        if let Err(failure) = result {
            return self.open_failed(relid, failure);
        }
        if self.channels.get(&relid).is_some_and(|channel| channel.resuming.is_some()) {
            return self.reopened(relid);
        }
        self.forget_subchannels(relid);
        match self.build(relid) {
            Ok((channel, reply)) => {
                // Nobody waits any more: the channel closes with its handle.
                let _ = reply.send(Ok(channel));
            }
            Err(error) => {
                let _ = self.client.close(relid);
                self.finish(relid, Some(error));
            }
        }
    }

    /// Sub-channels that are known when their primary channel opens belong to an earlier open of it. They are rescinded
    /// when the sessions at the other end have let go of them, which can be after this; whoever opened the primary
    /// again must not take them for its own.
    fn forget_subchannels(&self, relid: u32) {
        let primary = self.channels.get(&relid).map(|channel| &channel.device);
        if let Some(device) = primary.filter(|device| device.subchannel_index == 0) {
            self.offers.send_if_modified(|offers| offers.remove_subchannels(device.instance));
        }
    }

    fn build(&mut self, relid: u32) -> Result<(Channel, oneshot::Sender<Result<Channel, Error>>), Error> {
        let core = self.make_core(relid)?;
        let channel = self.channels.get_mut(&relid).ok_or(Error::Rescinded)?;
        if self.survival.is_some() && channel.options.on_resume.is_some() {
            core.survive_roots();
        }
        self.reasons.remove(&relid);
        let reply = channel.reply.take().ok_or(Error::Rescinded)?;
        let (commands, serial) = (self.commands.clone(), channel.serial);
        let closed = Box::new(move || _ = commands.send(Command::Close { relid, serial }));
        let channel = Channel::new(core, Some(closed))
            .with_retarget(self.retargets(relid, serial))
            .with_lend(self.lends(relid, serial));
        Ok((channel, reply))
    }

    /// The run-time half of a channel that has opened.
    pub(super) fn make_core(&mut self, relid: u32) -> Result<Arc<Core>, Error> {
        let (connection_id, monitor) = self.connections.get(&relid).copied().ok_or(Error::Rescinded)?;
        let channel = self.channels.get(&relid).ok_or(Error::Rescinded)?;
        let pages = channel.pages.as_ref().ok_or(Error::Rescinded)?;
        let memory = self.end.memory();
        let place = |error| Error::Channel(crate::ChannelError::Memory(error));
        let outgoing = memory.ring(pages.pfns().take(channel.downstream)).map_err(place)?;
        let incoming = memory.ring(pages.pfns().skip(channel.downstream)).map_err(place)?;
        let doorbell = self.doorbell(relid, connection_id, monitor, &channel.options);
        let side =
            Arc::new(Side::Guest { end: Arc::clone(&self.end), doorbell, gifts: Arc::clone(&self.gifts) });
        let channel = self.channels.get_mut(&relid).ok_or(Error::Rescinded)?;
        let is_stream = self.hvsock.is_connection(relid);
        let limits = if is_stream { STREAM } else { LIMITS };
        let core = Core::new(side, channel.area, incoming, outgoing, limits)
            .map_err(|fault| Error::Channel(fault.into()))?;
        if is_stream {
            core.carry_stream();
        }
        core.set_spin(self.spin);
        let own = std::mem::take(&mut channel.limits);
        channel.core = Some(Arc::clone(&core));
        self.limit(&core, &own);
        self.listen_for(relid, &core);
        Ok(core)
    }

    /// Passes signals on that come to an area which several channels share.
    pub(super) fn listen_for(&mut self, relid: u32, core: &Arc<Core>) {
        if let Some(channel) = self.channels.get(&relid).filter(|channel| channel.area == areas::SHARED) {
            self.by_flag.add(channel.flag(relid), core);
        }
    }

    pub(super) fn open_failed(&mut self, relid: u32, failure: Failure) {
        let error = match failure {
            Failure::Refused(status) => match self.reasons.remove(&relid) {
                Some(reason) => Error::Refused(Refusal { status, reason }),
                None => return self.await_reason(relid, status),
            },
            Failure::Denied(status) => denied(status, self.reasons.remove(&relid)),
            Failure::Rescinded => Error::Rescinded,
            Failure::Cancelled | Failure::Disconnected => Error::Disconnected,
        };
        self.finish(relid, Some(error));
    }

    /// Keeps the reason for a refusal that is known or still to come; one for anything else is of no use.
    pub(super) fn reason(&mut self, relid: u32, reason: String) {
        if let Some(core) = self.channels.get(&relid).and_then(|channel| channel.core.as_ref()) {
            // It is about to be taken away.
            return core.ends_because(&reason);
        }
        if self.channels.contains_key(&relid) || self.refused.iter().any(|refused| refused.relid == relid) {
            self.reasons.insert(relid, reason);
        }
    }

    pub(super) fn await_reason(&mut self, relid: u32, status: Status) {
        if let Some(reply) = self.channels.get_mut(&relid).and_then(|channel| channel.reply.take()) {
            self.refused.push(RefusedOpen { relid, status, reply, until: Instant::now() + REASON_DELAY });
            return self.finish(relid, None);
        }
        self.finish(relid, Some(Error::Refused(Refusal { status, reason: status.to_string() })));
    }

    /// Answers opens that were refused, with the reason if it came in time.
    pub(super) fn answer_refused(&mut self) {
        let now = Instant::now();
        let mut waiting = Vec::new();
        for refused in self.refused.drain(..) {
            let reason = match self.reasons.remove(&refused.relid) {
                Some(reason) => reason,
                None if now < refused.until => {
                    waiting.push(refused);
                    continue;
                }
                None => refused.status.to_string(),
            };
            let _ = refused.reply.send(Err(Error::Refused(Refusal { status: refused.status, reason })));
        }
        self.refused = waiting;
    }

    pub(super) fn close(&mut self, relid: u32, serial: u64) {
        self.suspended.retain(|channel| channel.serial != serial);
        let is_it = |channel: &OpenChannel| channel.serial == serial;
        let relid = match self.channels.get(&relid).is_some_and(is_it) {
            true => Some(relid),
            // Another root has given it another number.
            false => self.channels.iter().find(|(_, channel)| is_it(channel)).map(|(&relid, _)| relid),
        };
        if let Some(relid) = relid
            && self.channels.get(&relid).is_some_and(|channel| channel.core.is_some())
        {
            let _ = self.client.close(relid);
            self.finish(relid, None);
        }
    }

    /// Lets go of a channel that is not open any more; its memory is free when the host has let go of it, too.
    pub(super) fn finish(&mut self, relid: u32, error: Option<Error>) {
        let Some(mut channel) = self.channels.remove(&relid) else { return };
        if error.is_some() {
            self.reasons.remove(&relid);
        }
        self.areas.give_back(channel.area);
        self.resuming.remove(&relid);
        if let Some(resuming) = &channel.resuming {
            resuming.core.end(&error.as_ref().map_or("it did not open again".into(), Error::to_string));
        }
        if let Some(core) = &channel.core {
            self.by_flag.remove(channel.flag(relid), core);
            core.close();
            core.quiesce();
        }
        if let (Some(reply), Some(error)) = (channel.reply.take(), error) {
            let _ = reply.send(Err(error));
        }
        self.take_all_back(relid);
        // A list that was not created, or went with a rescind, is gone already.
        if self.client.teardown_gpadl(relid, channel.gpadl).is_ok()
            && let Some(pages) = channel.pages.take()
        {
            self.rings.insert(channel.gpadl, Ring { _pages: pages, _core: channel.core });
        }
    }
}
