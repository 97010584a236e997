//! Reserved channels: opened by a crash dump or by firmware, which polls their rings and may outlive the connection
//! (`docs/src/protocol/control.md`, "Reserved channels").
//!
//! Answers go where each request says. Whatever else the guest wants of such a channel is refused until it is closed.
//! UNLOAD leaves it open; a new contact and a reset do not.

use zerocopy::little_endian::U32;

use super::channel::{OpenRequested, Serving, Shown};
use super::connection::{State, Then};
use super::{DeviceKey, Fault, Server, ServerAction};
use crate::message::{
    CloseReservedChannel, CloseReservedResponse, Message, OpenChannel, OpenReservedChannel,
};

/// No virtual processor: signals are not wanted.
const NOBODY: u32 = u32::MAX;

/// Where an answer goes that is not for the connection's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) vp: u32,
    pub(super) sint: u8,
}

impl Address {
    fn new(vp: U32, sint: U32) -> Result<Self, Fault> {
        match u8::try_from(sint.get()) {
            Ok(sint @ 0..16) => Ok(Self { vp: vp.get(), sint }),
            Ok(sint) => Err(Fault::NoSuchSint { sint }),
            Err(_) => Err(Fault::NoSuchSint { sint: u8::MAX }),
        }
    }
}

impl Server {
    pub(super) fn open_reserved(&mut self, request: &OpenReservedChannel) {
        let address = match Address::new(request.target_vp, request.target_sint) {
            Ok(address) => address,
            Err(fault) => return self.fault(fault),
        };
        let message = OpenChannel {
            relid: request.relid,
            ring_gpadl: request.ring_gpadl,
            target_vp: U32::new(NOBODY),
            downstream_page_offset: request.downstream_page_offset,
            ..OpenChannel::default()
        };
        self.open(OpenRequested { message, reserved: Some(address) });
    }

    pub(super) fn close_reserved(&mut self, request: &CloseReservedChannel) {
        const NAME: &str = "CLOSE_RESERVED_CHANNEL";
        let relid = request.relid.get();
        let address = match Address::new(request.target_vp, request.target_sint) {
            Ok(address) => address,
            Err(fault) => return self.fault(fault),
        };
        let unknown = Fault::UnknownChannel { message: NAME, relid };
        let Some(device) = self.channels.owner(relid) else { return self.fault(unknown) };
        let Some(channel) = self.channels.get_mut(device) else { return };
        match (channel.shown, &channel.serving) {
            (Shown::Offered, Serving::Open(open)) if open.reserved.is_some() => {
                channel.closing_for = Some(address);
                self.withdraw_subchannels(device);
                self.stop_serving(device);
            }
            (Shown::Unloaded, _) => {
                channel.closing_for = Some(address);
                self.end_kept(device);
            }
            (
                Shown::Offered,
                Serving::Idle
                | Serving::Asked { .. }
                | Serving::Opening(_)
                | Serving::Open(_)
                | Serving::Closing { .. },
            ) => self.wrong_state(NAME, device),
            // It crossed RESCIND.
            (Shown::Rescinding | Shown::Revoked, _) => {}
            (Shown::Hidden | Shown::Proposed(_) | Shown::Returning, _) => self.fault(unknown),
        }
    }

    /// Keeps a channel that is open-reserved although the guest unloads. `false` for every other channel.
    pub(super) fn keep_reserved(&mut self, device: DeviceKey) -> bool {
        let Some(channel) = self.channels.get(device) else { return false };
        let open = match (channel.shown, &channel.serving) {
            (Shown::Offered, Serving::Open(open)) => open.reserved.is_some(),
            (_, Serving::Idle | Serving::Asked { .. } | Serving::Opening(_) | Serving::Closing { .. })
            | (
                Shown::Hidden
                | Shown::Proposed(_)
                | Shown::Rescinding
                | Shown::Revoked
                | Shown::Returning
                | Shown::Unloaded,
                Serving::Open(_),
            ) => false,
        };
        if open {
            self.keep_gpadls(device);
            self.channels.keep(device);
        }
        open
    }

    /// Ends a channel that was kept when the guest unloaded; nobody but the device is waited for then.
    pub(super) fn end_kept(&mut self, device: DeviceKey) {
        self.unkeep_gpadls(device);
        self.channels.unkeep(device);
        self.stop_serving(device);
        self.drop_gpadls(device);
    }

    /// Ends all of them: somebody else has the bus now.
    pub(super) fn end_all_kept(&mut self) {
        while let Some(device) = self.channels.any_kept() {
            self.end_kept(device);
        }
    }

    /// Answers CLOSE_RESERVED_CHANNEL, if that was asked for.
    pub(super) fn reserved_closed(&mut self, device: DeviceKey) {
        let Some(channel) = self.channels.get_mut(device) else { return };
        let (Some(address), Some(relid)) = (channel.closing_for.take(), channel.relid) else { return };
        match self.connection {
            State::Connected(_) | State::Unloaded | State::Disconnecting { then: Then::Unloaded(_) } => {
                self.send_to(address, CloseReservedResponse { relid: U32::new(relid) });
            }
            // Whoever waited for it is gone.
            State::Disconnected
            | State::Connecting { .. }
            | State::Disconnecting { then: Then::Quiet | Then::Contact(_) } => {}
        }
    }

    /// Sends a message elsewhere than where the connection's messages go, with or without a connection.
    pub(super) fn send_to<'a>(&mut self, address: Address, message: impl Into<Message<'a>>) {
        if let Some(action) = self.connection.send_to(address, &message.into()) {
            self.act(action);
        }
    }
}

/// The action that sends a message to this address.
pub(super) fn send_to(address: Address, payload: crate::message::Payload) -> ServerAction {
    ServerAction::Send { vp: address.vp, sint: address.sint, payload }
}
