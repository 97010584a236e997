//! Sub-channels of this partition's open channels.

use tokio::sync::oneshot;
use vmbus_core::Version;
use vmbus_core::server::{DeviceKey, OfferParams, ServerInput};
use vmbus_core::status::Status;

use super::{Command, Offered, Partition};
use crate::channel::{Admit, Ask};
use crate::error::Refusal;
use crate::quotas::count;

/// Where the index is in the key of a sub-channel; devices count from 0 and never get there.
pub(super) const INDEX_SHIFT: u32 = 48;

/// What makes an offered device's channel a sub-channel.
pub(super) struct Subchannel {
    pub(super) index: u16,
    pub(super) admit: Admit,
    /// The primary's open that it belongs to.
    open: u64,
}

impl Subchannel {
    /// One that was offered by another root: it belongs to no open yet.
    pub(super) fn new(index: u16, admit: Admit) -> Self {
        Self { index, admit, open: 0 }
    }

    pub(super) fn belongs_to(&mut self, open: u64) {
        self.open = open;
    }
}

/// The key of a device's channel; `index` is 0 for the primary.
pub(in crate::root) fn key_of(device: u64, index: u16) -> DeviceKey {
    DeviceKey(device | u64::from(index) << INDEX_SHIFT)
}

impl Partition {
    /// Offers sub-channels 1 to `at_most` of the device that `open` opened on channel `relid`.
    pub(super) fn offer_subchannels(
        &mut self,
        relid: u32,
        open: u64,
        at_most: u16,
        admit: &Admit,
    ) -> Result<(), Refusal> {
        let primary = self.open.get(&relid).filter(|channel| {
            // A session may ask after its channel has closed, and been opened again.
            channel.open == open && !channel.closing && !channel.ended
        });
        let primary = primary.ok_or_else(|| Refusal::new("the channel is closed"))?.device;
        if let Some(version) = self.server.connection().map(|connection| connection.version)
            && version < Version::Win8
        {
            return Err(Refusal::new(format!("guests of version {version} know no sub-channels")));
        }
        let key = |index: u16| key_of(primary.0, index);
        let new = (1..=at_most).filter(|index| !self.offered.contains_key(&key(*index))).count();
        let limit = self.quotas.subchannels;
        if self.gauges.subchannels.now.saturating_add(count(new)) > count(limit) {
            let reason = format!("a guest may have {limit} sub-channels");
            return Err(Refusal { status: Status::INSUFFICIENT_RESOURCES, reason });
        }
        for index in 1..=at_most {
            self.offer_subchannel(primary, key(index), Subchannel { index, admit: admit.clone(), open });
        }
        Ok(())
    }

    /// How the session of an open primary channel asks for sub-channels.
    pub(super) fn asks_for_subchannels(&self, relid: u32, open: u64) -> Ask {
        let commands = self.commands.clone();
        Box::new(move |count, admit| {
            let (reply, answer) = oneshot::channel();
            // A partition that is gone drops the question, which answers it.
            let _ = commands.send(Command::OfferSubchannels { relid, open, count, admit, reply });
            answer
        })
    }

    fn offer_subchannel(&mut self, primary: DeviceKey, key: DeviceKey, subchannel: Subchannel) {
        let area = match self.offered.get(&key) {
            // Those of an earlier open, and those that ended on their own, are rescinded: they come back when the
            // guest has released them.
            Some(before) if !before.withdrawn && before.belongs_to(subchannel.open) => return,
            Some(before) => before.area,
            None => {
                self.gauges.subchannels.add(1);
                self.areas.take()
            }
        };
        let Some(Offered { device, id, .. }) = self.offered.get(&primary) else { return };
        let (device, id) = (device.clone(), *id);
        let params =
            OfferParams { subchannel_index: subchannel.index, primary: Some(primary), ..device.params(area) };
        let subchannel = Some(subchannel);
        self.offered.insert(
            key,
            Offered { device, id, area, withdrawn: false, rescinded: false, denied: false, subchannel },
        );
        self.server.handle(ServerInput::Offer { device: key, offer: params });
    }

    /// The guest has let go of a rescinded sub-channel, for good.
    pub(super) fn subchannel_released(&mut self, offered: &Offered) {
        self.gauges.subchannels.sub(1);
        self.areas.give_back(offered.area);
    }
}

impl Offered {
    fn belongs_to(&self, open: u64) -> bool {
        self.subchannel.as_ref().is_some_and(|subchannel| subchannel.open == open)
    }
}
