//! Page lists of the guest: half built, waiting for policy, with a device, torn down.
//!
//! Who knows a list is kept apart from who uses it: the guest may have asked for it back, or be gone, while a device
//! still reads and writes its pages. TORNDOWN is sent when the device has let go, and a list that is the rings of an
//! open channel stays until the channel has closed.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use zerocopy::little_endian::U32;

use super::channel::{Channel, Shown};
use super::question::Subject;
use super::{Answer, AskId, DeviceKey, Fault, Question, Quota, Server, ServerAction, refusal};
use crate::Status;
use crate::message::{GpadlCreated, GpadlHeader, GpadlTorndown};
use crate::pages::{GpadlBuilder, PageRanges};

/// What the guest knows of a complete list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was told that the list is created.
    Accepted,
    /// It asked for the list back and waits for TORNDOWN.
    TearingDown,
    /// It knows the list no more; nothing is sent when the device lets go.
    Dropped,
}

/// Whether the device uses a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Custody {
    /// It may.
    Device,
    /// It was asked to let go.
    Releasing,
    /// It does not.
    Nobody,
}

#[derive(Debug)]
pub(super) enum List {
    /// Messages are missing.
    HalfBuilt(GpadlBuilder),
    /// Policy decides whether the pages may be shared.
    Asked { asked: AskId, pages: Arc<PageRanges> },
    /// Complete.
    Built { pages: Arc<PageRanges>, known: Known, custody: Custody },
}

/// All page lists of a connection.
#[derive(Debug, Default)]
pub(super) struct Gpadls {
    /// By channel id and name.
    pub(super) lists: BTreeMap<(u32, u32), List>,
    /// Channel ids of half-built lists by name, as GPADL_BODY names no channel.
    half_built: BTreeMap<u32, u32>,
    half_built_words: usize,
    pages: usize,
    pub(super) with_devices: usize,
}

impl Gpadls {
    pub(super) fn half_built(&self) -> usize {
        self.half_built.len()
    }

    pub(super) fn half_built_words(&self) -> usize {
        self.half_built_words
    }

    /// Number of complete lists.
    pub(super) fn built(&self) -> usize {
        self.lists.len() - self.half_built.len()
    }

    /// Pages in complete lists.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Lists that devices may use, without those of channels that are kept.
    pub(super) fn with_devices(&self) -> usize {
        self.with_devices
    }

    /// A list that the guest was told is created and that it has not asked back.
    pub(super) fn accepted(&self, relid: u32, gpadl: u32) -> Option<&Arc<PageRanges>> {
        match self.lists.get(&(relid, gpadl))? {
            List::Built { pages, known: Known::Accepted, custody: Custody::Device } => Some(pages),
            List::Built { .. } | List::HalfBuilt(_) | List::Asked { .. } => None,
        }
    }

    /// A list that the device may use, or was asked to let go of.
    pub(super) fn lent(&self, relid: u32, gpadl: u32) -> Option<&Arc<PageRanges>> {
        match self.lists.get(&(relid, gpadl))? {
            List::Built { pages, custody: Custody::Device | Custody::Releasing, .. } => Some(pages),
            List::Built { .. } | List::HalfBuilt(_) | List::Asked { .. } => None,
        }
    }

    pub(super) fn is_half_built(&self, gpadl: u32) -> bool {
        self.half_built.contains_key(&gpadl)
    }

    pub(super) fn insert(&mut self, relid: u32, gpadl: u32, list: List) {
        match &list {
            List::HalfBuilt(builder) => {
                self.half_built.insert(gpadl, relid);
                self.half_built_words += builder.received_words();
            }
            List::Asked { pages, .. } | List::Built { pages, .. } => self.pages += pages.page_count(),
        }
        self.lists.insert((relid, gpadl), list);
    }

    fn remove(&mut self, relid: u32, gpadl: u32) -> Option<List> {
        let list = self.lists.remove(&(relid, gpadl))?;
        match &list {
            List::HalfBuilt(builder) => {
                self.half_built.remove(&gpadl);
                self.half_built_words -= builder.received_words();
            }
            List::Asked { pages, .. } | List::Built { pages, .. } => self.pages -= pages.page_count(),
        }
        Some(list)
    }

    /// Its state, as the specification names it.
    #[cfg(feature = "test-utils")]
    pub(super) fn state(&self, name: (u32, u32)) -> &'static str {
        match self.lists.get(&name) {
            None => "None",
            Some(List::HalfBuilt(_)) => "InProgress",
            Some(List::Asked { .. }) => "Offered",
            Some(List::Built { known: Known::Accepted, custody: Custody::Device, .. }) => "Accepted",
            Some(List::Built { known: Known::Accepted, .. }) => "Recalled",
            Some(List::Built { known: Known::TearingDown, .. }) => "TearingDown",
            Some(List::Built { known: Known::Dropped, .. }) => "Dropped",
        }
    }

    /// The channel of a half-built list.
    #[cfg(feature = "test-utils")]
    pub(super) fn half_built_on(&self, gpadl: u32) -> Option<u32> {
        self.half_built.get(&gpadl).copied()
    }

    /// Names of all lists of a channel.
    pub(super) fn of_channel(&self, relid: u32) -> Vec<u32> {
        self.lists.range((relid, 0)..=(relid, u32::MAX)).map(|((_, gpadl), _)| *gpadl).collect()
    }
}

impl Server {
    pub(super) fn gpadl_header(&mut self, header: &GpadlHeader, ranges: &[u8]) {
        let (relid, gpadl) = (header.relid.get(), header.gpadl.get());
        let status = match self.start_gpadl(header, ranges.len()) {
            Ok(builder) => return self.continue_gpadl(relid, gpadl, builder, ranges),
            Err(status) => status,
        };
        self.gpadl_created(relid, gpadl, Err(status));
    }

    /// A builder for a list that may begin. Faults are reported here.
    fn start_gpadl(&mut self, header: &GpadlHeader, len: usize) -> Result<GpadlBuilder, Status> {
        let (relid, gpadl) = (header.relid.get(), header.gpadl.get());
        let device = self.visible("GPADL_HEADER", relid).ok_or(Status::INVALID_PARAMETER)?;
        self.refuse_reserved("GPADL_HEADER", device)?;
        let taken = self.gpadls.lists.contains_key(&(relid, gpadl));
        if gpadl == 0 || taken || self.gpadls.half_built.contains_key(&gpadl) {
            self.fault(Fault::GpadlNameTaken { relid, gpadl });
            return Err(Status::INVALID_PARAMETER);
        }
        let quotas = self.config.quotas;
        if self.gpadls.half_built() >= quotas.half_built_gpadls {
            self.over_quota(Quota::HalfBuiltGpadls, quotas.half_built_gpadls);
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        if self.gpadls.built() >= quotas.gpadls {
            self.over_quota(Quota::Gpadls, quotas.gpadls);
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        if self.gpadls.half_built_words() + len / 8 > quotas.half_built_words {
            self.over_quota(Quota::HalfBuiltWords, quotas.half_built_words);
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        let builder =
            GpadlBuilder::new(header.range_buflen.get(), header.range_count.get(), quotas.half_built_words);
        builder.map_err(|error| {
            self.fault(Fault::BadGpadl { relid, gpadl, error });
            Status::INVALID_PARAMETER
        })
    }

    pub(super) fn gpadl_body(&mut self, gpadl: u32, ranges: &[u8]) {
        let relid = self.gpadls.half_built.get(&gpadl).copied();
        let Some((relid, List::HalfBuilt(builder))) =
            relid.and_then(|relid| Some((relid, self.gpadls.remove(relid, gpadl)?)))
        else {
            return self.fault(Fault::UnknownGpadl { message: "GPADL_BODY", gpadl });
        };
        let limit = self.config.quotas.half_built_words;
        let others = self.gpadls.half_built_words();
        if others + builder.received_words() + ranges.len() / 8 > limit {
            self.over_quota(Quota::HalfBuiltWords, limit);
            return self.gpadl_created(relid, gpadl, Err(Status::INSUFFICIENT_RESOURCES));
        }
        self.continue_gpadl(relid, gpadl, builder, ranges);
    }

    fn continue_gpadl(&mut self, relid: u32, gpadl: u32, mut builder: GpadlBuilder, ranges: &[u8]) {
        match builder.push(ranges) {
            Ok(None) => self.gpadls.insert(relid, gpadl, List::HalfBuilt(builder)),
            Ok(Some(pages)) => {
                if let Err(status) = self.complete_gpadl(relid, gpadl, Arc::new(pages)) {
                    self.gpadl_created(relid, gpadl, Err(status));
                }
            }
            Err(error) => {
                self.fault(Fault::BadGpadl { relid, gpadl, error });
                self.gpadl_created(relid, gpadl, Err(Status::INVALID_PARAMETER));
            }
        }
    }

    /// Asks policy about a complete list. Faults are reported here.
    fn complete_gpadl(&mut self, relid: u32, gpadl: u32, pages: Arc<PageRanges>) -> Result<(), Status> {
        let quotas = self.config.quotas;
        if self.gpadls.built() >= quotas.gpadls {
            self.over_quota(Quota::Gpadls, quotas.gpadls);
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        if self.gpadls.pages() + pages.page_count() > quotas.pages {
            self.over_quota(Quota::Pages, quotas.pages);
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        let device = self.visible("GPADL_HEADER", relid).ok_or(Status::INVALID_PARAMETER)?;
        self.refuse_reserved("GPADL_BODY", device)?;
        let offered = self.channels.get(device).is_some_and(|channel| channel.shown == Shown::Offered);
        if !offered {
            // Rescinded: the guest is only cleaning up, and no device gets the pages.
            let list = List::Built { pages, known: Known::Accepted, custody: Custody::Nobody };
            self.gpadls.insert(relid, gpadl, list);
            self.gpadl_created(relid, gpadl, Ok(()));
            return Ok(());
        }
        let question = Question::Share { relid, device, gpadl, pages: pages.page_count() };
        let asked = self.ask(Subject::Share { relid, gpadl }, question);
        let asked = asked.ok_or(Status::INSUFFICIENT_RESOURCES)?;
        self.gpadls.insert(relid, gpadl, List::Asked { asked, pages });
        Ok(())
    }

    /// A channel that is open-reserved gets no page lists and gives none back.
    fn refuse_reserved(&mut self, message: &'static str, device: DeviceKey) -> Result<(), Status> {
        if self.channels.get(device).is_some_and(Channel::is_reserved) {
            self.wrong_state(message, device);
            return Err(Status::INVALID_DEVICE_STATE);
        }
        Ok(())
    }

    pub(super) fn share_decided(&mut self, relid: u32, gpadl: u32, answer: Answer) {
        let Some(device) = self.channels.owner(relid) else { return };
        let Some(List::Asked { pages, .. }) = self.gpadls.remove(relid, gpadl) else { return };
        match answer {
            Answer::Allow => {
                let list =
                    List::Built { pages: pages.clone(), known: Known::Accepted, custody: Custody::Device };
                self.gpadls.insert(relid, gpadl, list);
                self.gpadls.with_devices += 1;
                if let Some(channel) = self.channels.get_mut(device) {
                    channel.lists_with_device += 1;
                }
                self.act(ServerAction::Gpadl { relid, device, gpadl, pages });
                self.gpadl_created(relid, gpadl, Ok(()));
            }
            Answer::Deny(status) => self.gpadl_created(relid, gpadl, Err(status)),
        }
    }

    pub(super) fn gpadl_teardown(&mut self, relid: u32, gpadl: u32) {
        let Some(device) = self.visible("GPADL_TEARDOWN", relid) else { return };
        if self.refuse_reserved("GPADL_TEARDOWN", device).is_err() {
            return;
        }
        match self.gpadls.lists.get_mut(&(relid, gpadl)) {
            Some(List::Built { known: known @ Known::Accepted, custody, .. }) => {
                *known = Known::TearingDown;
                match custody {
                    Custody::Device => self.release_gpadl(device, relid, gpadl),
                    Custody::Releasing => {}
                    Custody::Nobody => self.gpadl_gone(relid, gpadl),
                }
            }
            Some(List::Built { .. } | List::HalfBuilt(_) | List::Asked { .. }) | None => {
                self.fault(Fault::UnknownGpadl { message: "GPADL_TEARDOWN", gpadl });
            }
        }
    }

    pub(super) fn gpadl_released(&mut self, relid: u32, gpadl: u32) {
        let device = self.channels.owner(relid);
        let (Some(device), Some(List::Built { known, custody: custody @ Custody::Releasing, .. })) =
            (device, self.gpadls.lists.get_mut(&(relid, gpadl)))
        else {
            return self.fault(Fault::UnexpectedAnswer { answer: "the release of a page list", relid });
        };
        *custody = Custody::Nobody;
        let known = *known;
        if let Some(channel) = self.channels.get_mut(device) {
            channel.lists_with_device -= 1;
            self.gpadls.with_devices -= usize::from(channel.shown != Shown::Unloaded);
        }
        match known {
            // The channel is rescinded; the guest may still tear the list down.
            Known::Accepted => {}
            Known::TearingDown | Known::Dropped => self.gpadl_gone(relid, gpadl),
        }
        self.settle(device);
    }

    /// Asks the device to let go of a list, unless it is the rings of a channel that is not closed: then later.
    fn release_gpadl(&mut self, device: DeviceKey, relid: u32, gpadl: u32) {
        let in_use = self.channels.get(device).is_some_and(|channel| channel.ring_gpadl() == Some(gpadl));
        if let Some(List::Built { custody: custody @ Custody::Device, .. }) =
            self.gpadls.lists.get_mut(&(relid, gpadl))
            && !in_use
        {
            *custody = Custody::Releasing;
            self.act(ServerAction::ReleaseGpadl { relid, device, gpadl });
        }
    }

    /// The rings are not used any more: does with their list what had to wait for that.
    pub(super) fn ring_freed(&mut self, device: DeviceKey, gpadl: u32) {
        let Some(channel) = self.channels.get(device) else { return };
        let Some(relid) = channel.relid else { return };
        let still_offered = channel.shown == Shown::Offered;
        if let Some(List::Built { known, .. }) = self.gpadls.lists.get(&(relid, gpadl)) {
            match known {
                Known::Accepted if still_offered => {}
                Known::Accepted | Known::TearingDown | Known::Dropped => {
                    self.release_gpadl(device, relid, gpadl);
                }
            }
        }
    }

    /// Takes all lists of a channel that is being rescinded back from the device. The guest keeps those that it was
    /// told are created.
    pub(super) fn recall_gpadls(&mut self, device: DeviceKey) {
        let Some(relid) = self.channels.get(device).and_then(|channel| channel.relid) else { return };
        for gpadl in self.gpadls.of_channel(relid) {
            match self.gpadls.lists.get(&(relid, gpadl)) {
                Some(List::Asked { asked, .. }) => {
                    let asked = *asked;
                    self.withdraw_question(asked);
                    self.gpadls.remove(relid, gpadl);
                    self.gpadl_created(relid, gpadl, Err(Status::DEVICE_DOES_NOT_EXIST));
                }
                Some(List::Built { .. }) => self.release_gpadl(device, relid, gpadl),
                Some(List::HalfBuilt(_)) | None => {}
            }
        }
    }

    /// Forgets all lists of a channel that the guest has released, without a message, as soon as the device lets go.
    pub(super) fn drop_gpadls(&mut self, device: DeviceKey) {
        let Some(relid) = self.channels.get(device).and_then(|channel| channel.relid) else { return };
        for gpadl in self.gpadls.of_channel(relid) {
            match self.gpadls.lists.get_mut(&(relid, gpadl)) {
                Some(List::Built { known, custody, .. }) => {
                    *known = Known::Dropped;
                    match custody {
                        Custody::Device => self.release_gpadl(device, relid, gpadl),
                        Custody::Releasing => {}
                        Custody::Nobody => self.gpadl_gone(relid, gpadl),
                    }
                }
                Some(List::Asked { asked, .. }) => {
                    let asked = *asked;
                    self.withdraw_question(asked);
                    self.gpadls.remove(relid, gpadl);
                }
                Some(List::HalfBuilt(_)) => {
                    self.gpadls.remove(relid, gpadl);
                }
                None => {}
            }
        }
    }

    /// Of a channel that outlives its connection, only lists that its device has outlive it too.
    pub(super) fn keep_gpadls(&mut self, device: DeviceKey) {
        let Some(channel) = self.channels.get(device) else { return };
        let Some(relid) = channel.relid else { return };
        self.gpadls.with_devices -= channel.lists_with_device;
        for gpadl in self.gpadls.of_channel(relid) {
            match self.gpadls.lists.get_mut(&(relid, gpadl)) {
                Some(List::Built { known: known @ Known::TearingDown, .. }) => *known = Known::Dropped,
                Some(List::Built { known: Known::Accepted | Known::Dropped, .. }) | None => {}
                // Its question has ended with the connection.
                Some(List::Asked { .. } | List::HalfBuilt(_)) => {
                    self.gpadls.remove(relid, gpadl);
                }
            }
        }
    }

    pub(super) fn unkeep_gpadls(&mut self, device: DeviceKey) {
        if let Some(channel) = self.channels.get(device) {
            self.gpadls.with_devices += channel.lists_with_device;
        }
    }

    pub(super) fn gpadl_gone(&mut self, relid: u32, gpadl: u32) {
        if let Some(List::Built { known: Known::TearingDown, .. }) = self.gpadls.remove(relid, gpadl) {
            self.send(GpadlTorndown { gpadl: U32::new(gpadl) });
        }
    }

    fn gpadl_created(&mut self, relid: u32, gpadl: u32, result: Result<(), Status>) {
        let status = match result {
            Ok(()) => Status::SUCCESS.0,
            Err(status) => refusal(status),
        };
        self.send(GpadlCreated { relid: U32::new(relid), gpadl: U32::new(gpadl), status: U32::new(status) });
    }
}
