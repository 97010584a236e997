//! What must hold between the parts of a server, checked of one that comes from saved state.

use crate::saved::RestoreError;
use crate::server::channel::{Channel, Serving, Shown};
use crate::server::connection::{Connected, Offers, State, Then};
use crate::server::gpadl::{Custody, Known, List};
use crate::server::{DeviceKey, Server};

/// What a connection allows its channels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No channel id is in use.
    Nothing,
    /// Channels may be in any state.
    Offering,
    /// The guest knows no channel any more; devices still use its pages.
    Ending,
    /// The same, but reserved channels may stay.
    Unloading,
}

impl Server {
    pub(super) fn check_relations(&self) -> Result<(), RestoreError> {
        let phase = self.check_connection()?;
        for (device, channel) in self.channels.iter() {
            let wrong = |what| RestoreError::Device { device: *device, what };
            self.check_channel(phase, *device, channel).map_err(wrong)?;
        }
        for ((relid, gpadl), list) in &self.gpadls.lists {
            let wrong = |what| RestoreError::PageList { relid: *relid, gpadl: *gpadl, what };
            self.check_list(*relid, *gpadl, list).map_err(wrong)?;
        }
        Ok(())
    }

    fn check_connection(&self) -> Result<Phase, RestoreError> {
        let wrong = |what| Err(RestoreError::Connection(what));
        let (offers, phase) = match &self.connection {
            State::Disconnected | State::Connecting { .. } => (None, Phase::Nothing),
            State::Connected(Connected { offers: Offers::NotRequested, .. }) => {
                (Some(Offers::NotRequested), Phase::Nothing)
            }
            State::Connected(Connected { offers, .. }) => (Some(*offers), Phase::Offering),
            State::Disconnecting { then: Then::Quiet | Then::Contact(_) } => (None, Phase::Ending),
            State::Disconnecting { then: Then::Unloaded(_) } | State::Unloaded => (None, Phase::Unloading),
        };
        if offers.is_none() && self.connects.len() > 0 {
            return wrong("connects where none can be");
        }
        if (offers == Some(Offers::Requested)) != (self.questions.initial_offers() > 0) {
            return wrong("offers that nobody decides about");
        }
        if phase == Phase::Nothing && !self.channels.relids.owners.is_empty() {
            return wrong("channel ids where none can be");
        }
        let in_use = self.channels.served() + self.gpadls.with_devices() > 0;
        let goes_on = match &self.connection {
            State::Disconnected | State::Connecting { .. } | State::Connected(_) => true,
            State::Disconnecting { .. } => in_use,
            State::Unloaded => in_use || self.channels.any_kept().is_some(),
        };
        if !goes_on {
            return wrong("an end that nothing keeps from coming");
        }
        Ok(phase)
    }

    fn check_channel(&self, phase: Phase, device: DeviceKey, channel: &Channel) -> Result<(), &'static str> {
        let settled = channel.is_settled();
        let waiting = self.channels.waiting.contains(&device);
        let possible = match channel.shown {
            Shown::Hidden if waiting => phase == Phase::Offering && settled && !channel.withdrawn,
            Shown::Hidden => settled != channel.relid.is_some() && !(settled && channel.withdrawn),
            Shown::Proposed(_) => phase == Phase::Offering && settled && !channel.withdrawn,
            Shown::Offered => phase == Phase::Offering && channel.relid.is_some() && !channel.withdrawn,
            Shown::Rescinding => {
                let waits = !settled || self.has_rescinding_subchannel(device);
                phase == Phase::Offering && channel.relid.is_some() && waits
            }
            Shown::Revoked => phase == Phase::Offering && channel.relid.is_some() && settled,
            Shown::Returning => phase != Phase::Nothing && !settled && !channel.withdrawn,
            Shown::Unloaded => phase == Phase::Unloading && channel.relid.is_some() && !channel.withdrawn,
        };
        if !possible || (waiting && !(channel.shown == Shown::Hidden && channel.relid.is_none())) {
            return Err("a state that it cannot have");
        }
        if !settled && channel.relid.is_none() {
            return Err("a use without a channel id");
        }
        if settled && channel.closing_for.is_some() {
            return Err("a close that has ended");
        }
        self.check_primary(device, channel)?;
        self.check_serving(channel)
    }

    /// A sub-channel's primary is no sub-channel, and there while the sub-channel is.
    fn check_primary(&self, device: DeviceKey, channel: &Channel) -> Result<(), &'static str> {
        let Some(primary) = channel.offer.primary else { return Ok(()) };
        let possible = match self.channels.get(primary) {
            Some(found) => found.offer.primary.is_none() && (channel.withdrawn || !found.withdrawn),
            None => channel.withdrawn,
        };
        if possible && primary != device { Ok(()) } else { Err("a primary channel that cannot be one") }
    }

    fn check_serving(&self, channel: &Channel) -> Result<(), &'static str> {
        let offered = channel.shown == Shown::Offered;
        let possible = match &channel.serving {
            Serving::Idle if channel.shown == Shown::Unloaded => false,
            Serving::Idle => return Ok(()),
            Serving::Open(open) if channel.shown == Shown::Unloaded => open.reserved.is_some(),
            Serving::Asked { .. } | Serving::Open(_) | Serving::Closing { reopen: Some(_), .. } => offered,
            // What is proposed or revoked is settled: see `check_channel`.
            Serving::Opening(_) | Serving::Closing { reopen: None, .. } => channel.shown != Shown::Unloaded,
        };
        if !possible {
            return Err("an open that it cannot have");
        }
        let ring = channel.relid.zip(channel.ring_gpadl());
        let ring = ring.and_then(|(relid, gpadl)| self.gpadls.lent(relid, gpadl));
        let ring = ring.ok_or("rings that were not shared")?;
        match &channel.serving {
            Serving::Asked { request, .. } | Serving::Opening(request) | Serving::Open(request) => {
                self.check_request(&request.message, ring).map_err(|_| "rings that could not be opened")
            }
            Serving::Closing { .. } | Serving::Idle => Ok(()),
        }
    }

    fn check_list(&self, relid: u32, gpadl: u32, list: &List) -> Result<(), &'static str> {
        let channel = self.channels.owner(relid).and_then(|device| self.channels.get(device));
        let channel = channel.ok_or("no channel")?;
        let is_ring = channel.ring_gpadl() == Some(gpadl);
        let possible = match (channel.shown, list) {
            (Shown::Offered, List::HalfBuilt(_) | List::Asked { .. }) => true,
            (Shown::Rescinding | Shown::Revoked, List::HalfBuilt(_)) => true,
            (
                Shown::Hidden
                | Shown::Proposed(_)
                | Shown::Returning
                | Shown::Rescinding
                | Shown::Revoked
                | Shown::Unloaded,
                List::HalfBuilt(_) | List::Asked { .. },
            ) => false,
            (shown, List::Built { known, custody, .. }) => match (shown, known, custody) {
                (Shown::Offered | Shown::Unloaded, Known::Accepted, Custody::Device) => true,
                (Shown::Rescinding | Shown::Revoked, Known::Accepted, Custody::Nobody) => true,
                (Shown::Rescinding, Known::Accepted, Custody::Device) => is_ring,
                (Shown::Rescinding, Known::Accepted, Custody::Releasing) => !is_ring,
                (Shown::Offered | Shown::Rescinding, Known::TearingDown, Custody::Device) => is_ring,
                (Shown::Offered | Shown::Rescinding, Known::TearingDown, Custody::Releasing) => !is_ring,
                (Shown::Hidden | Shown::Returning | Shown::Unloaded, Known::Dropped, Custody::Device) => {
                    is_ring
                }
                (Shown::Hidden | Shown::Returning | Shown::Unloaded, Known::Dropped, Custody::Releasing) => {
                    !is_ring
                }
                (
                    Shown::Hidden
                    | Shown::Proposed(_)
                    | Shown::Offered
                    | Shown::Rescinding
                    | Shown::Revoked
                    | Shown::Returning
                    | Shown::Unloaded,
                    Known::Accepted | Known::TearingDown | Known::Dropped,
                    Custody::Device | Custody::Releasing | Custody::Nobody,
                ) => false,
            },
        };
        if possible { Ok(()) } else { Err("a state that it cannot have") }
    }
}
