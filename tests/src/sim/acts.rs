//! What a guest does of its own will, and how its life on the bus begins and ends.

use vmbus_core::Version;
use vmbus_core::client::{ConnectRequest, MonitorPages};
use vmbus_core::server::ServerInput;

use super::guest::{Driver, Guest, List, Purpose, Stage};
use super::root::endpoint;
use super::script::{Action, Channel};
use super::world::{Breach, Breaks, Event, Held, World};

impl World {
    /// Lets a guest do something; `false` if it cannot at present.
    pub(super) fn guest_acts(&mut self, guest: usize, action: &Action) -> Result<bool, Breach> {
        let did = match *action {
            Action::Connect { .. } => return self.connect(guest),
            Action::Unload { .. } => self.unload(guest)?,
            Action::Open { channel, pages, .. } => {
                self.on_closed(guest, channel, |driver| driver.lists.len() < 4)
                    && self.share(guest, channel, u32::from(pages.max(4)), Purpose::Rings)
            }
            Action::Close { channel, .. } => self.close(guest, channel),
            Action::Reopen { channel, .. } => self.reopen(guest, channel),
            Action::Request { channel, count, bytes, .. } => self.request(guest, channel, count, bytes)?,
            Action::Share { channel, pages, .. } => {
                self.share(guest, channel, u32::from(pages.max(1)), Purpose::Data)
            }
            Action::Unshare { channel, .. } => self.unshare(guest, channel),
            Action::Modify { channel, vp, .. } => self.modify(guest, channel, u32::from(vp)),
            Action::GiveBack { channel, .. } => self.give_back(guest, channel),
            Action::Call { device, .. } => self.call(guest, device),
            Action::Pause { .. } => self.pause(guest),
            Action::Resume { .. } => self.resume(guest)?,
            Action::Monitor { .. } => self.monitor(guest),
            Action::Offer { .. }
            | Action::Rescind { .. }
            | Action::Reboot { .. }
            | Action::Reset { .. }
            | Action::SaveRoot { .. }
            | Action::SaveGuest { .. }
            | Action::Kill { .. }
            | Action::Restart { .. }
            | Action::KillRoot {}
            | Action::RestartRoot {} => false,
        };
        self.hear(guest)?;
        Ok(did)
    }

    /// Contacts the root; `false` if there is none, or a connection already.
    pub(super) fn connect(&mut self, guest: usize) -> Result<bool, Breach> {
        let Some(living) = self.at(guest).filter(|living| living.link.is_some()) else { return Ok(false) };
        let versions = Version::OLDEST..=living.newest;
        let did = living.client.connect(versions).is_ok();
        self.hear(guest)?;
        Ok(did)
    }

    fn unload(&mut self, guest: usize) -> Result<bool, Breach> {
        let Some(living) = self.at(guest) else { return Ok(false) };
        if living.client.unload().is_err() {
            return Ok(false);
        }
        for driver in living.drivers.values_mut() {
            driver.next_rings = None;
            if let Stage::Open { .. } = driver.stage {
                driver.stage = Stage::Idle;
            }
        }
        living.is_paused = false;
        living.is_pausing = false;
        Ok(true)
    }

    fn on_closed(&mut self, guest: usize, channel: Channel, may: impl Fn(&Driver) -> bool) -> bool {
        let driver = self.at(guest).and_then(|living| living.driver(channel));
        driver.is_some_and(|(_, driver)| matches!(driver.stage, Stage::Idle) && may(driver))
    }

    /// Shares pages with a channel's device, if the guest has them.
    fn share(&mut self, guest: usize, channel: Channel, pages: u32, purpose: Purpose) -> bool {
        let Some(living) = self.at(guest) else { return false };
        let Some((relid, _)) = living.driver(channel) else { return false };
        let mut memory = living.memory.borrow_mut();
        let Some(pfn) = memory.allocate(pages, purpose == Purpose::Rings) else { return false };
        let shared = memory.list(pfn).and_then(|list| living.client.create_gpadl(relid, &list).ok());
        let (Some(gpadl), Some(driver)) = (shared, living.drivers.get_mut(&relid)) else {
            return memory.free(pfn).is_err();
        };
        let pages = pages as usize;
        driver.lists.insert(gpadl, List { pfn, pages, purpose, is_created: false, is_ending: false });
        match (purpose, &driver.stage) {
            (Purpose::Data, _) => {}
            (Purpose::Rings, Stage::Idle) => driver.stage = Stage::Sharing { gpadl },
            (Purpose::Rings, Stage::Sharing { .. } | Stage::Opening { .. } | Stage::Open { .. }) => {
                driver.next_rings = Some(gpadl);
            }
        }
        true
    }

    fn unshare(&mut self, guest: usize, channel: Channel) -> bool {
        let Some((relid, driver)) = self.at(guest).and_then(|living| living.driver(channel)) else {
            return false;
        };
        let mut lists = driver.lists.iter();
        let data = lists.find(|(_, list)| list.purpose == Purpose::Data && !list.is_ending);
        let Some(gpadl) = data.map(|(gpadl, _)| *gpadl) else { return false };
        self.ask_back(guest, relid, gpadl);
        true
    }

    fn close(&mut self, guest: usize, channel: Channel) -> bool {
        let Some(living) = self.at(guest) else { return false };
        let Some((relid, driver)) = living.driver(channel) else { return false };
        match driver.stage {
            Stage::Idle => false,
            // The end of the sharing makes it idle.
            Stage::Sharing { gpadl } => {
                self.ask_back(guest, relid, gpadl);
                true
            }
            // The end of the open does the rest.
            Stage::Opening { .. } => {
                let closed = living.client.close(relid).is_ok();
                if closed
                    && let Some(Stage::Opening { is_given_up, .. }) =
                        living.drivers.get_mut(&relid).map(|driver| &mut driver.stage)
                {
                    *is_given_up = true;
                }
                closed
            }
            Stage::Open { gpadl, .. } => {
                let closed = living.client.close(relid).is_ok();
                if closed && let Some(driver) = living.drivers.get_mut(&relid) {
                    driver.stage = Stage::Idle;
                    let next = driver.next_rings.take();
                    self.ask_back(guest, relid, gpadl);
                    next.into_iter().for_each(|gpadl| self.ask_back(guest, relid, gpadl));
                }
                closed
            }
        }
    }

    fn reopen(&mut self, guest: usize, channel: Channel) -> bool {
        let driver = self.at(guest).and_then(|living| living.driver(channel));
        let can = driver.is_some_and(|(_, driver)| {
            matches!(driver.stage, Stage::Open { .. }) && driver.next_rings.is_none()
        });
        can && self.share(guest, channel, 4, Purpose::Rings)
    }

    fn request(&mut self, guest: usize, channel: Channel, count: u8, bytes: u16) -> Result<bool, Breach> {
        let Some(living) = self.at(guest) else { return Ok(false) };
        let Some((relid, _)) = living.driver(channel) else { return Ok(false) };
        let Some(driver) = living.drivers.get_mut(&relid) else { return Ok(false) };
        let Stage::Open { line, .. } = &mut driver.stage else { return Ok(false) };
        let ring = line.request(count, bytes.min(512)).breaks("ring")?;
        living.requests += u64::from(count);
        let (connection, by_monitor) = (driver.connection, driver.offer.monitor.is_some());
        if let (true, Some(partition)) = (ring, living.link) {
            self.ring_root(partition, connection, by_monitor);
        }
        Ok(true)
    }

    fn modify(&mut self, guest: usize, channel: Channel, vp: u32) -> bool {
        let Some(living) = self.at(guest) else { return false };
        let Some((relid, _)) = living.driver(channel) else { return false };
        let Some(driver) = living.drivers.get_mut(&relid) else { return false };
        let did = living.client.modify(relid, vp).is_ok();
        if did {
            driver.modifying = Some(vp);
        }
        did
    }

    fn give_back(&mut self, guest: usize, channel: Channel) -> bool {
        let Some(living) = self.at(guest) else { return false };
        let is_sub_of = |driver: &Driver| driver.channel.device == channel.device && driver.channel.sub > 0;
        if channel.sub == 0 && living.drivers.values().any(is_sub_of) {
            return false;
        }
        let Some((relid, driver)) = living.driver(channel) else { return false };
        if !matches!(driver.stage, Stage::Idle) || !driver.lists.is_empty() {
            return false;
        }
        let did = living.client.release(relid).is_ok();
        if did {
            living.drivers.remove(&relid);
        }
        did
    }

    fn call(&mut self, guest: usize, device: u8) -> bool {
        let is_known = self.places[guest].offered.values().any(|channel| channel.device == device);
        let Some(living) = self.at(guest) else { return false };
        let in_use = living.drivers.values().any(|driver| driver.channel.device == device);
        let request =
            ConnectRequest { endpoint: endpoint(device), service: endpoint(1), silo: vmbus_core::Guid::ZERO };
        !in_use && !is_known && living.client.connect_service(request).is_ok()
    }

    fn pause(&mut self, guest: usize) -> bool {
        let Some(living) = self.at(guest) else { return false };
        let did = living.client.pause().is_ok();
        living.is_pausing |= did;
        did
    }

    fn resume(&mut self, guest: usize) -> Result<bool, Breach> {
        let Some(living) = self.at(guest) else { return Ok(false) };
        if living.client.resume().is_err() {
            return Ok(false);
        }
        living.is_paused = false;
        // What could not be said during the pause.
        self.release_all_due(guest)?;
        self.ask_back_what_is_idle(guest);
        Ok(true)
    }

    fn monitor(&mut self, guest: usize) -> bool {
        let pages = MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 };
        self.at(guest).is_some_and(|living| living.client.modify_connection(Some(pages)).is_ok())
    }

    /// Asks back the rings of channels that came to nothing when that could not be said.
    fn ask_back_what_is_idle(&mut self, guest: usize) {
        let Some(living) = self.at(guest) else { return };
        let mut idle = Vec::new();
        for (relid, driver) in &living.drivers {
            let in_use = match &driver.stage {
                Stage::Idle => None,
                Stage::Sharing { gpadl } | Stage::Opening { gpadl, .. } | Stage::Open { gpadl, .. } => {
                    Some(*gpadl)
                }
            };
            let rings = driver.lists.iter().filter(|(_, list)| list.purpose == Purpose::Rings);
            let unused =
                rings.filter(|(gpadl, _)| in_use != Some(**gpadl) && driver.next_rings != Some(**gpadl));
            idle.extend(unused.map(|(gpadl, _)| (*relid, *gpadl)));
        }
        idle.into_iter().for_each(|(relid, gpadl)| self.ask_back(guest, relid, gpadl));
    }

    /// The guest closes all channels and asks all pages back.
    pub(super) fn close_everything(&mut self, guest: usize) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        let channels: Vec<Channel> = living.drivers.values().map(|driver| driver.channel).collect();
        for channel in channels {
            self.close(guest, channel);
            while self.unshare(guest, channel) {}
        }
        self.ask_back_what_is_idle(guest);
        self.hear(guest)
    }

    /// The guest begins anew without leaving first; its memory stays and is its own again when the root answers.
    pub(super) fn reboot(&mut self, guest: usize, told: bool) -> Result<bool, Breach> {
        let place = &mut self.places[guest];
        // An answer to an earlier contact, which nobody can tell from one to the next, is not to be under way.
        let can = place.guest.as_ref().is_some_and(|guest| told || guest.client.connection().is_some());
        let Some(before) = place.guest.take_if(|_| can) else { return Ok(false) };
        place.life += 1;
        self.coverage.requests += before.requests;
        let life = place.life;
        let (link, memory) = (before.link, before.memory);
        place.guest = Some(Guest { link, memory, ..Guest::new(&place.setup, life) });
        let Some(entered) = link.and_then(|link| self.partitions.get_mut(&link)) else {
            // The root is dead and the guest does not know, or was never there.
            if let Some(partition) = link {
                self.queue.push(self.now + 1, Event::RootDied { guest, life, partition });
            } else if self.root_lives {
                self.queue.push(self.now + 1, Event::Attach { guest, life });
            }
            return Ok(true);
        };
        // Message slots are empty after a reset.
        entered.to_root.clear();
        entered.to_guest.clear();
        if told {
            entered.server.handle(ServerInput::Reset);
            self.root_acts(link.unwrap_or(0))?;
        }
        self.connect(guest)?;
        Ok(true)
    }

    /// The guest learns that its root is dead: all ends, and it joins the next one.
    pub(super) fn root_died(&mut self, guest: usize, life: u32, partition: u32) -> Held {
        let Some(living) = self.living(guest, life) else { return Ok(()) };
        if living.link != Some(partition) {
            return Ok(());
        }
        living.link = None;
        living.outbox.clear();
        living.client.reset();
        for driver in living.drivers.values_mut() {
            driver.next_rings = None;
        }
        self.hear(guest)?;
        let Some(living) = self.at(guest) else { return Ok(()) };
        living.outbox.clear();
        living.forget_channels()?;
        living.memory.borrow_mut().free_all().breaks("pages")?;
        if self.root_lives {
            self.queue.push(self.now + 1, Event::Attach { guest, life });
        }
        Ok(())
    }
}
