//! Open, close and modify: from the guest's message to the device and back.

use alloc::boxed::Box;
use alloc::sync::Arc;

use zerocopy::little_endian::U32;

use super::channel::{OpenRequested, Serving, Shown};
use super::question::Subject;
use super::{Answer, DeviceKey, Fault, Open, Question, Quota, Server, ServerAction, refusal};
use crate::message::{Message, ModifyChannelResponse, OpenChannel, OpenChannelResult, OpenFlags};
use crate::pages::PageRanges;
use crate::{FeatureFlags, Status, Version};

/// A ring is a control page and at least one page of data.
const LEAST_RING_PAGES: usize = 2;
const LAST_EVENT_FLAG: u16 = 2047;
const CONNECTION_ID_BITS: u32 = 0x00ff_ffff;

impl Server {
    pub(super) fn open(&mut self, request: OpenRequested) {
        let name = request.name();
        let Some(device) = self.visible(name, request.message.relid.get()) else { return };
        let Some(channel) = self.channels.get_mut(device) else { return };
        let requested = Box::new(request);
        match (channel.shown, &mut channel.serving) {
            (Shown::Offered, Serving::Idle) => self.start_open(device, requested),
            (Shown::Offered, Serving::Closing { reopen: reopen @ None, .. }) => {
                // CLOSE has no answer, so a guest may send the next OPEN before the device is done.
                *reopen = Some(requested);
            }
            (
                Shown::Offered,
                Serving::Asked { .. } | Serving::Opening(_) | Serving::Open(_) | Serving::Closing { .. },
            ) => self.wrong_state(name, device),
            // The guest sees RESCIND instead of a result. `visible` excludes the others.
            (
                Shown::Rescinding
                | Shown::Revoked
                | Shown::Hidden
                | Shown::Proposed(_)
                | Shown::Returning
                | Shown::Unloaded,
                _,
            ) => {}
        }
    }

    /// Checks an open and asks policy about it.
    fn start_open(&mut self, device: DeviceKey, request: Box<OpenRequested>) {
        let (relid, open_id) = (request.message.relid.get(), request.message.open_id.get());
        let ring_pages = match self.check_open(&request.message) {
            Ok(ring) => ring.page_count(),
            Err(what) => {
                self.fault(Fault::BadOpen { relid, what });
                return self.open_result(&request, Err(Status::INVALID_PARAMETER));
            }
        };
        let question = Question::Open { relid, device, open_id, ring_pages };
        match self.ask(Subject::Open { device }, question) {
            Some(asked) => {
                self.channels.set_serving(device, Serving::Asked { asked, request });
            }
            None => self.open_result(&request, Err(Status::INSUFFICIENT_RESOURCES)),
        }
    }

    /// The rings of an open, if they can be rings and everything else can be served.
    fn check_open(&self, request: &OpenChannel) -> Result<Arc<PageRanges>, &'static str> {
        let ring = self.gpadls.accepted(request.relid.get(), request.ring_gpadl.get());
        let ring = ring.ok_or("a page list that it did not share")?;
        self.check_request(request, ring)?;
        Ok(ring.clone())
    }

    /// Whether an open could be served on these rings.
    pub(super) fn check_request(&self, request: &OpenChannel, ring: &PageRanges) -> Result<(), &'static str> {
        if ring.whole_pages().is_none() {
            return Err("rings that do not begin or end at pages");
        }
        let downstream = request.downstream_page_offset.get() as usize;
        let least = downstream.saturating_add(LEAST_RING_PAGES);
        if downstream < LEAST_RING_PAGES || least > ring.page_count() {
            return Err("a ring that has no room for data");
        }
        if self.guest_specified_signals() {
            if request.event_flag.get() > LAST_EVENT_FLAG {
                return Err("an event flag that does not exist");
            }
            if request.connection_id.get() > CONNECTION_ID_BITS {
                return Err("a connection id of more than 24 bits");
            }
        }
        Ok(())
    }

    fn guest_specified_signals(&self) -> bool {
        let wanted = FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS;
        self.connection().is_some_and(|connection| connection.features.contains(wanted))
    }

    pub(super) fn open_decided(&mut self, device: DeviceKey, answer: Answer) {
        let Some(Serving::Asked { request, .. }) = self.channels.get(device).map(|channel| &channel.serving)
        else {
            return;
        };
        let request = request.clone();
        self.channels.set_serving(device, Serving::Idle);
        // The guest may have asked for the rings back since.
        let refused = match (answer, self.check_open(&request.message)) {
            (Answer::Allow, Ok(ring)) => return self.tell_device_to_open(device, request, ring),
            (Answer::Allow, Err(what)) => {
                self.fault(Fault::BadOpen { relid: request.message.relid.get(), what });
                Status::INVALID_PARAMETER
            }
            (Answer::Deny(status), _) => status,
        };
        self.open_result(&request, Err(refused));
        self.ring_freed(device, request.message.ring_gpadl.get());
    }

    fn tell_device_to_open(&mut self, device: DeviceKey, request: Box<OpenRequested>, ring: Arc<PageRanges>) {
        let relid = request.message.relid.get();
        let Some(open) = self.described(device, &request, ring) else { return };
        self.channels.set_serving(device, Serving::Opening(request));
        self.act(ServerAction::Open { relid, device, open });
    }

    /// What a device is told of an open.
    pub(super) fn described(
        &self,
        device: DeviceKey,
        request: &OpenRequested,
        ring: Arc<PageRanges>,
    ) -> Option<Open> {
        let agreed = self.connection().map(|agreed| (agreed.version, agreed.features));
        // A reserved channel may be left when the connection is gone.
        let left = request.reserved.map(|_| (Version::NEWEST, FeatureFlags::empty()));
        let (version, features) = agreed.or(left)?;
        let channel = self.channels.get(device)?;
        let message = &request.message;
        let relid = message.relid.get();
        // 0 is what the short form of the message leaves: the guest chose nothing.
        let chosen = |value: u32| (value != 0 && self.guest_specified_signals()).then_some(value);
        let own_flag = u16::try_from(relid).unwrap_or(LAST_EVENT_FLAG);
        Some(Open {
            open_id: message.open_id.get(),
            ring,
            ring_gpadl: message.ring_gpadl.get(),
            downstream_page: message.downstream_page_offset.get(),
            target_vp: if version >= Version::Win8 { message.target_vp.get() } else { 0 },
            event_flag: chosen(message.event_flag.get().into())
                .map_or(own_flag, |_| message.event_flag.get()),
            connection_id: chosen(message.connection_id.get())
                .unwrap_or_else(|| channel.offer.connection_id(relid)),
            monitor: channel.monitor(),
            flags: if features.contains(FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION) {
                OpenFlags::from_bits_retain(message.flags.get()) & OpenFlags::REDIRECT_INTERRUPT
            } else {
                OpenFlags::empty()
            },
            reserved: request.reserved.is_some(),
            user_data: message.user_data,
        })
    }

    pub(super) fn opened(&mut self, relid: u32, result: Result<(), Status>) {
        let Some(device) = self.channels.owner(relid) else {
            return self.fault(Fault::UnexpectedAnswer { answer: "an open", relid });
        };
        let Some(channel) = self.channels.get_mut(device) else { return };
        let Serving::Opening(request) = &channel.serving else {
            return self.fault(Fault::UnexpectedAnswer { answer: "an open", relid });
        };
        let request = request.clone();
        let is_offered = channel.shown == Shown::Offered;
        match result {
            Ok(()) if is_offered => {
                self.open_result(&request, Ok(()));
                self.channels.set_serving(device, Serving::Open(request));
            }
            // Nobody wants it any more.
            Ok(()) => self.tell_device_to_close(device, relid, request.message.ring_gpadl.get()),
            Err(status) => {
                self.channels.set_serving(device, Serving::Idle);
                if is_offered {
                    self.open_result(&request, Err(status));
                }
                self.ring_freed(device, request.message.ring_gpadl.get());
                self.settle(device);
            }
        }
    }

    pub(super) fn close(&mut self, relid: u32) {
        let Some(device) = self.visible("CLOSECHANNEL", relid) else { return };
        let Some(channel) = self.channels.get(device) else { return };
        match (channel.shown, &channel.serving) {
            (Shown::Offered, Serving::Open(open)) if open.reserved.is_none() => {
                self.withdraw_subchannels(device);
                self.stop_serving(device);
            }
            (
                Shown::Offered,
                Serving::Idle
                | Serving::Asked { .. }
                | Serving::Opening(_)
                | Serving::Open(_)
                | Serving::Closing { .. },
            ) => {
                self.wrong_state("CLOSECHANNEL", device);
            }
            (
                Shown::Rescinding
                | Shown::Revoked
                | Shown::Hidden
                | Shown::Proposed(_)
                | Shown::Returning
                | Shown::Unloaded,
                _,
            ) => {}
        }
    }

    /// Ends whatever a device does for a channel. One that is opening is told to close when it has opened.
    pub(super) fn stop_serving(&mut self, device: DeviceKey) {
        let Some(channel) = self.channels.get_mut(device) else { return };
        let Some(relid) = channel.relid else { return };
        match &mut channel.serving {
            Serving::Idle | Serving::Opening(_) => {}
            Serving::Asked { asked, .. } => {
                let asked = *asked;
                self.withdraw_question(asked);
                self.channels.set_serving(device, Serving::Idle);
            }
            Serving::Open(request) => {
                let ring_gpadl = request.message.ring_gpadl.get();
                self.tell_device_to_close(device, relid, ring_gpadl);
            }
            Serving::Closing { reopen, .. } => *reopen = None,
        }
    }

    fn tell_device_to_close(&mut self, device: DeviceKey, relid: u32, ring_gpadl: u32) {
        self.channels.set_serving(device, Serving::Closing { ring_gpadl, reopen: None });
        self.act(ServerAction::Close { relid, device });
    }

    pub(super) fn closed(&mut self, relid: u32) {
        let device = self.channels.owner(relid);
        let device = device.filter(|device| {
            let serving = self.channels.get(*device).map(|channel| &channel.serving);
            matches!(serving, Some(Serving::Closing { .. }))
        });
        let Some(device) = device else {
            return self.fault(Fault::UnexpectedAnswer { answer: "a close", relid });
        };
        let Serving::Closing { ring_gpadl, reopen } = self.channels.set_serving(device, Serving::Idle) else {
            return;
        };
        self.ring_freed(device, ring_gpadl);
        if self.channels.get(device).is_some_and(|channel| channel.shown == Shown::Offered) {
            self.reserved_closed(device);
        }
        match reopen {
            Some(request) => self.start_open(device, request),
            None => self.settle(device),
        }
    }

    pub(super) fn modify(&mut self, relid: u32, vp: u32) {
        let Some(device) = self.visible("MODIFYCHANNEL", relid) else { return };
        let Some(channel) = self.channels.get_mut(device) else { return };
        let status = match (channel.shown, &mut channel.serving) {
            (Shown::Offered, Serving::Open(request)) if request.reserved.is_none() => {
                request.message.target_vp = U32::new(vp);
                self.act(ServerAction::Retarget { relid, device, vp });
                Status::SUCCESS
            }
            (
                Shown::Offered,
                Serving::Idle
                | Serving::Asked { .. }
                | Serving::Opening(_)
                | Serving::Open(_)
                | Serving::Closing { .. },
            ) => {
                self.wrong_state("MODIFYCHANNEL", device);
                Status::INVALID_DEVICE_STATE
            }
            // RESCIND wakes whoever waits.
            (
                Shown::Rescinding
                | Shown::Revoked
                | Shown::Hidden
                | Shown::Proposed(_)
                | Shown::Returning
                | Shown::Unloaded,
                _,
            ) => return,
        };
        let response =
            Message::from(ModifyChannelResponse { relid: U32::new(relid), status: U32::new(status.0) });
        // Before 5.3 nothing answers.
        if self.connection().is_some_and(|connection| connection.version >= response.info().first_version) {
            self.send(response);
        }
    }

    fn open_result(&mut self, request: &OpenRequested, result: Result<(), Status>) {
        let status = match result {
            Ok(()) => Status::SUCCESS.0,
            Err(status) => refusal(status),
        };
        let result = OpenChannelResult {
            relid: request.message.relid,
            open_id: request.message.open_id,
            status: U32::new(status),
        };
        match request.reserved {
            Some(address) => self.send_to(address, result),
            None => self.send(result),
        }
    }

    /// The device of a channel that the guest knows, rescinded ones included; otherwise reports the guest's fault.
    pub(super) fn visible(&mut self, message: &'static str, relid: u32) -> Option<DeviceKey> {
        let device = self.channels.owner(relid).filter(|device| {
            self.channels.get(*device).is_some_and(|channel| match channel.shown {
                Shown::Offered | Shown::Rescinding | Shown::Revoked => true,
                Shown::Hidden | Shown::Proposed(_) | Shown::Returning | Shown::Unloaded => false,
            })
        });
        if device.is_none() {
            self.fault(Fault::UnknownChannel { message, relid });
        }
        device
    }

    pub(super) fn wrong_state(&mut self, message: &'static str, device: DeviceKey) {
        if let Some(channel) = self.channels.get(device) {
            let (relid, state) = (channel.relid.unwrap_or(0), channel.state());
            self.fault(Fault::WrongState { message, relid, state });
        }
    }

    pub(super) fn over_quota(&mut self, quota: Quota, limit: usize) {
        self.fault(Fault::OverQuota { quota, limit });
    }
}
