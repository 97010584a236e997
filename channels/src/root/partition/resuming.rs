//! A partition's task begins where another has left.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use vmbus_core::server::{ChannelInfo, ChannelState, DeviceKey, Open, Presence, Server, ServerInput};
use vmbus_partition::RefusedWhat;

use super::deciding::Admission;
use super::opening::Begins;
use super::subchannels::{INDEX_SHIFT, Subchannel};
use super::{Offered, Partition};
use crate::channel::SavedChannel;
use crate::policy::Limits;
use crate::root::lock;

/// What another task has left, in the terms of this root.
pub(in crate::root) struct Resumed {
    pub(in crate::root) server: Server,
    /// Those of its devices that are here.
    pub(in crate::root) devices: Vec<Returned>,
    /// By channel id.
    pub(in crate::root) channels: BTreeMap<u32, SavedChannel>,
}

/// A device that this root has, too.
pub(in crate::root) struct Returned {
    pub(in crate::root) key: DeviceKey,
    pub(in crate::root) id: u64,
    /// 0 for the primary channel.
    pub(in crate::root) subchannel: u16,
    pub(in crate::root) area: u32,
    pub(in crate::root) withdrawn: bool,
}

impl Partition {
    /// Goes on where the other has left: who is there takes its channels up, the others are rescinded.
    pub(super) fn resume(&mut self, resumed: Resumed) {
        let Resumed { server, devices, channels } = resumed;
        self.server = server;
        self.server.set_quotas(self.quotas.protocol);
        if let Some(connection) = self.server.connection() {
            self.map_interrupt_page(&connection);
            self.place_monitors(connection.monitor_pages);
        }
        let states: HashMap<DeviceKey, ChannelInfo> =
            self.server.channels().map(|channel| (channel.device, channel)).collect();
        for device in &devices {
            self.know_again(device, states.get(&device.key), &channels);
        }
        self.resuming = channels.into_iter().collect::<HashMap<_, _>>();
        // In order of their keys, in which sub-channels come after all primaries.
        for channel in self.server.unattached().collect::<Vec<_>>() {
            let is_open = match channel.state {
                ChannelState::Open | ChannelState::OpenReserved => true,
                ChannelState::ClientReleased
                | ChannelState::Closed
                | ChannelState::Opening
                | ChannelState::Closing
                | ChannelState::ClosingReopen
                | ChannelState::OpeningClientRelease
                | ChannelState::ClosingClientRelease
                | ChannelState::Revoked
                | ChannelState::Reoffered => false,
            };
            let has_state = channel.relid.is_some_and(|relid| self.resuming.contains_key(&relid));
            let offered = self.offered.get_mut(&channel.device);
            let is_back = offered.is_some() && (has_state || !is_open);
            if let Some(offered) = offered
                && !is_back
            {
                offered.rescinded = true;
            }
            let presence = if is_back { Presence::Back } else { Presence::Gone };
            self.server.handle(ServerInput::Restored { device: channel.device, presence });
        }
        self.act();
        self.resuming = HashMap::new();
        // Another agent decides here, about what another root allowed.
        self.review(None);
    }

    /// Knows a device again that it was offered.
    fn know_again(
        &mut self,
        returned: &Returned,
        channel: Option<&ChannelInfo>,
        channels: &BTreeMap<u32, SavedChannel>,
    ) {
        let Some(device) = lock(&self.root.devices).get(returned.id).cloned() else { return };
        let is_primary = returned.subchannel == 0;
        if is_primary && !device.provider.visible_to(&self.client) {
            self.unseen.insert(returned.id);
            return;
        }
        let subchannel = (!is_primary).then(|| {
            self.gauges.subchannels.add(1);
            let saved = channel.and_then(|channel| channels.get(&channel.relid?));
            let state = saved.map(|saved| saved.state.clone()).unwrap_or_default();
            let (provider, client) = (Arc::clone(&device.provider), self.client.clone());
            // Opened anew it begins where the session of before was.
            Subchannel::new(
                returned.subchannel,
                Arc::new(move |open| provider.restore(&client, open, &state)),
            )
        });
        let area = self.areas.take_at(returned.area);
        let Returned { key, id, withdrawn, .. } = *returned;
        let rescinded = channel.is_some_and(|channel| is_rescinded(channel.state));
        let offered = Offered { device, id, area, withdrawn, rescinded, denied: false, subchannel };
        self.offered.insert(key, offered);
    }

    fn cannot_go_on(&mut self, device: DeviceKey) {
        if let Some(offered) = self.offered.get_mut(&device) {
            offered.rescinded = true;
        }
        self.server.handle(ServerInput::Rescind { device });
    }

    /// A device serves its open channel again.
    pub(super) fn reattach(&mut self, relid: u32, device: DeviceKey, open: &Open) {
        let Some(saved) = self.resuming.remove(&relid) else { return self.cannot_go_on(device) };
        if let Some(id) = self.offered.get(&device).map(|offered| offered.id) {
            let claim = self.root.claims.claim(id, self.client.id, &self.client.name);
            let joined = !claim.others().is_empty();
            self.admitted.insert(device, Admission { limits: Limits::default(), claim, joined });
        }
        if let Err(refusal) = self.try_open(relid, device, open, Begins::Again(saved)) {
            self.admitted.remove(&device);
            self.refuse(RefusedWhat::Open(relid), format!("restoring channel {relid}"), &refusal);
            return self.cannot_go_on(device);
        }
        // Its sub-channels, which come after it, belong to this open.
        for (key, offered) in &mut self.offered {
            if primary_of(*key) == device
                && let Some(subchannel) = &mut offered.subchannel
            {
                subchannel.belongs_to(self.opens);
            }
        }
    }
}

/// Whether the guest has to let go of it first.
fn is_rescinded(state: ChannelState) -> bool {
    match state {
        ChannelState::Revoked | ChannelState::Reoffered => true,
        ChannelState::ClientReleased
        | ChannelState::Closed
        | ChannelState::Opening
        | ChannelState::Open
        | ChannelState::OpenReserved
        | ChannelState::Closing
        | ChannelState::ClosingReopen
        | ChannelState::OpeningClientRelease
        | ChannelState::ClosingClientRelease => false,
    }
}

/// The primary channel's key.
fn primary_of(key: DeviceKey) -> DeviceKey {
    DeviceKey(key.0 & !(u64::from(u16::MAX) << INDEX_SHIFT))
}
