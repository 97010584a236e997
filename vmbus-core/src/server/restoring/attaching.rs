//! Devices and a restored server find each other again.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::Status;
use crate::server::channel::{OpenRequested, Serving, Shown};
use crate::server::gpadl::{Custody, Known, List};
use crate::server::{ChannelInfo, DeviceKey, Fault, Open, Server, ServerAction};

/// Whether a device of a restored server is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is, and takes up what it did: its page lists, its open, its close come again.
    Back,
    /// It is not: it uses nothing of the guest's, and its channel is rescinded.
    Gone,
}

/// Who was spoken for since the restore.
#[derive(Debug, Default)]
pub(in crate::server) struct Attaching {
    unattached: BTreeSet<DeviceKey>,
    back: Vec<DeviceKey>,
    gone: Vec<DeviceKey>,
}

impl Attaching {
    pub(in crate::server) fn all_of(devices: impl Iterator<Item = DeviceKey>) -> Self {
        Self { unattached: devices.collect(), ..Self::default() }
    }

    pub(in crate::server) fn is_over(&self) -> bool {
        self.unattached.is_empty()
    }
}

impl Server {
    /// After [`Self::restore`]: the devices of which the caller has not said whether they are back. Those that are left
    /// when another input comes are gone.
    pub fn unattached(&self) -> impl Iterator<Item = ChannelInfo> {
        let channel = |device: &DeviceKey| Some(self.channels.get(*device)?.info(*device));
        self.attaching.unattached.iter().filter_map(channel)
    }

    pub(in crate::server) fn restored(&mut self, device: DeviceKey, presence: Presence) {
        if !self.attaching.unattached.remove(&device) {
            return self.fault(Fault::NotOffered { device });
        }
        match presence {
            Presence::Back => self.attaching.back.push(device),
            Presence::Gone => self.attaching.gone.push(device),
        }
        if self.attaching.is_over() {
            self.attach_all();
        }
    }

    /// Another input: who was not spoken for is gone.
    pub(in crate::server) fn end_attaching(&mut self) {
        let Attaching { unattached, gone, .. } = &mut self.attaching;
        gone.extend(core::mem::take(unattached));
        self.attach_all();
    }

    /// In this order, as to rescind a device may mean to rescind others, which are back.
    fn attach_all(&mut self) {
        let Attaching { back, gone, .. } = core::mem::take(&mut self.attaching);
        for device in &gone {
            self.end_use(*device);
        }
        for device in back {
            self.attach(device);
        }
        for device in gone {
            match self.channels.get(device).map(|channel| channel.withdrawn) {
                Some(false) => self.rescind(device),
                Some(true) => self.settle(device),
                None => {}
            }
        }
    }

    /// Tells a device again what it was told and has not ended.
    fn attach(&mut self, device: DeviceKey) {
        let Some(relid) = self.channels.get(device).and_then(|channel| channel.relid) else { return };
        let mut releasing = Vec::new();
        for gpadl in self.gpadls.of_channel(relid) {
            if let Some(List::Built { pages, custody, .. }) = self.gpadls.lists.get(&(relid, gpadl)) {
                match custody {
                    Custody::Device => {}
                    Custody::Releasing => releasing.push(gpadl),
                    Custody::Nobody => continue,
                }
                let pages = pages.clone();
                self.act(ServerAction::Gpadl { relid, device, gpadl, pages });
            }
        }
        let Some(channel) = self.channels.get(device) else { return };
        match &channel.serving {
            Serving::Idle | Serving::Asked { .. } => {}
            Serving::Opening(request) => match self.open_of(device, request) {
                Some(open) => self.act(ServerAction::Open { relid, device, open }),
                // The guest has left: nobody wants it any more.
                None => self.opened(relid, Err(Status::UNSUCCESSFUL)),
            },
            Serving::Open(request) => {
                if let Some(open) = self.open_of(device, request) {
                    self.act(ServerAction::Reattach { relid, device, open });
                }
            }
            Serving::Closing { .. } => self.act(ServerAction::Close { relid, device }),
        }
        for gpadl in releasing {
            self.act(ServerAction::ReleaseGpadl { relid, device, gpadl });
        }
    }

    fn open_of(&self, device: DeviceKey, request: &OpenRequested) -> Option<Open> {
        let ring = self.gpadls.lent(request.message.relid.get(), request.message.ring_gpadl.get())?;
        self.described(device, request, ring.clone())
    }

    /// Ends what a device does that is not there.
    fn end_use(&mut self, device: DeviceKey) {
        let kept = self.channels.get(device).is_some_and(|channel| channel.shown == Shown::Unloaded);
        if kept {
            self.unkeep_gpadls(device);
            self.channels.unkeep(device);
        }
        match self.channels.set_serving(device, Serving::Idle) {
            Serving::Asked { asked, .. } => self.withdraw_question(asked),
            Serving::Idle | Serving::Opening(_) | Serving::Open(_) | Serving::Closing { .. } => {}
        }
        let Some(channel) = self.channels.get_mut(device) else { return };
        let Some(relid) = channel.relid else { return };
        channel.lists_with_device = 0;
        for gpadl in self.gpadls.of_channel(relid) {
            let Some(List::Built { known, custody, .. }) = self.gpadls.lists.get_mut(&(relid, gpadl)) else {
                continue;
            };
            match core::mem::replace(custody, Custody::Nobody) {
                Custody::Device | Custody::Releasing => self.gpadls.with_devices -= 1,
                Custody::Nobody => {}
            }
            match known {
                Known::Accepted => {}
                Known::TearingDown | Known::Dropped => self.gpadl_gone(relid, gpadl),
            }
        }
        if kept {
            self.drop_gpadls(device);
        }
    }
}
