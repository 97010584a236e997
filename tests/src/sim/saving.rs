//! Either end saved to bytes and restored from them, at any moment: whoever takes over goes on where the other stopped.
//!
//! What was under way in the process that stopped (answers of policies and devices) is lost with it and comes again
//! from what the restored state machine asks for. Messages, page lists, rings and flags live on: they are in memory.

use vmbus_core::client::Client;
use vmbus_core::saved::{SavedClient, SavedServer};
use vmbus_core::server::{DeviceKey, Presence, Server, ServerInput};

use super::guest::Stage;
use super::partition::Session;
use super::script::{Broken, Lane};
use super::world::{Breach, Breaks, Event, Held, World, tell};

impl World {
    /// Saves and restores the root's ends of a guest, but for one device, which is lost; `false` if there are none.
    pub(super) fn save_root(&mut self, guest: usize, lost: u8) -> Result<bool, Breach> {
        let partitions = self.partitions_of(guest);
        for &partition in &partitions {
            self.save_partition(guest, partition, lost)?;
        }
        Ok(!partitions.is_empty())
    }

    fn save_partition(&mut self, guest: usize, before: u32, lost: u8) -> Held {
        let Some(mut entered) = self.partitions.remove(&before) else { return Ok(()) };
        let wrong = |what: String| Breach("restore", what);
        let saved = entered.server.save().map_err(|error| wrong(error.to_string()))?.encode();
        let saved = SavedServer::decode(&saved).map_err(|error| wrong(error.to_string()))?;
        let restored = Server::restore(entered.config.clone(), saved);
        entered.server = restored.map_err(|error| wrong(error.to_string()))?;

        // The next process maps what it is told to; what a lost device used is in use no more.
        entered.vanish()?;
        entered.owed = 0;
        let is_lost = |key: &DeviceKey| *key == DeviceKey(u64::from(lost) << 8);
        entered.sessions.retain(|_, session| session.device.is_some() && !is_lost(&session.key));
        for session in entered.sessions.values_mut() {
            session.is_closing = false;
            session.is_lost = true;
            session.device.as_mut().map_or(Ok(()), |device| device.ends.take_over()).breaks("ring")?;
        }
        entered.forget_offer(DeviceKey(u64::from(lost) << 8));

        self.last_partition += 1;
        let partition = self.last_partition;
        tell!(self, "partition {before} is saved and goes on as partition {partition}");
        // What lives in memory comes to the new process.
        let (to_root, to_guest) = (entered.to_root.len(), entered.to_guest.len());
        let doorbells: Vec<u32> = entered.doorbells.iter().copied().collect();
        let devices: Vec<DeviceKey> = entered.server.unattached().map(|channel| channel.device).collect();
        self.partitions.insert(partition, entered);
        for (count, lane, event) in [
            (to_root, Lane::ToRoot, Event::ToRoot { partition }),
            (to_guest, Lane::ToGuest, Event::ToGuest { partition }),
        ] {
            (0..count).for_each(|_| _ = self.send(guest, lane, |_| event));
        }
        for connection in doorbells {
            self.send(guest, Lane::Doorbell, |_| Event::Doorbell { partition, connection });
        }
        if let Some(living) = self.at(guest).filter(|living| living.link == Some(before)) {
            living.link = Some(partition);
            self.places[guest].offered.remove(&DeviceKey(u64::from(lost) << 8));
        } else if self.partitions.get(&partition).is_some_and(|entered| !entered.is_orphaned) {
            self.send(guest, Lane::HangUp, |_| Event::GuestDied { partition });
        }
        for device in devices {
            let presence = if is_lost(&device) { Presence::Gone } else { Presence::Back };
            if let Some(entered) = self.partitions.get_mut(&partition) {
                entered.server.handle(ServerInput::Restored { device, presence });
            }
        }
        self.root_acts(partition)?;
        self.take_up_service(guest, partition)
    }

    /// Devices go on with the requests that they had taken.
    fn take_up_service(&mut self, guest: usize, partition: u32) -> Held {
        let Some(entered) = self.partitions.get(&partition) else { return Ok(()) };
        if let Some((relid, _)) = entered.sessions.iter().find(|(_, session)| session.is_lost) {
            return Err(Breach("restore", format!("the restored server says nothing of channel {relid}")));
        }
        let forgets = self.is_broken(Broken::ForgetsService);
        let served = |session: &Session| {
            let device = session.device.as_ref()?;
            let requests = if forgets { Vec::new() } else { device.in_service() };
            Some((session.name, device.ends.awake, requests))
        };
        let sessions: Vec<_> = entered.sessions.values().filter_map(served).collect();
        for (session, awake, requests) in sessions {
            for request in requests {
                self.send(guest, Lane::Serve, |_| Event::Serve { partition, session, request });
            }
            if awake {
                self.send(guest, Lane::RootWork, |_| Event::RootWork { partition, session });
            }
        }
        Ok(())
    }

    /// Saves and restores a guest's end; `false` if there is none.
    pub(super) fn save_guest(&mut self, guest: usize) -> Result<bool, Breach> {
        let Some(living) = self.places[guest].guest.as_mut() else { return Ok(false) };
        let wrong = |what: String| Breach("restore", what);
        let saved = living.client.save().map_err(|error| wrong(error.to_string()))?.encode();
        let saved = SavedClient::decode(&saved).map_err(|error| wrong(error.to_string()))?;
        let restored = Client::restore(living.config.clone(), saved);
        living.client = restored.map_err(|error| wrong(error.to_string()))?;

        for driver in living.drivers.values_mut() {
            if let Stage::Open { line, .. } = &mut driver.stage {
                line.ends.take_over().breaks("ring")?;
            }
        }
        // Whatever the process before was about to do, the next one does.
        living.life += 1;
        living.owed = 0;
        let life = living.life;
        let (is_posting, link, flags) = (living.is_posting, living.link, living.flags.clone());
        let drivers = living.drivers.iter();
        let rescinded = drivers.clone().filter(|(_, driver)| driver.is_rescinded && !driver.is_due);
        let rescinded: Vec<u32> = rescinded.map(|(relid, _)| *relid).collect();
        let lines: Vec<u64> = drivers
            .filter_map(|(_, driver)| match &driver.stage {
                Stage::Open { name, line, .. } if line.ends.awake => Some(*name),
                Stage::Open { .. } | Stage::Idle | Stage::Sharing { .. } | Stage::Opening { .. } => None,
            })
            .collect();
        self.places[guest].life = life;
        tell!(self, "guest {guest} is saved and goes on");
        if is_posting {
            self.queue.push(self.now + 1, Event::Post { guest, life });
        }
        for flag in flags {
            self.send(guest, Lane::Interrupt, |_| Event::Interrupt { guest, life, flag });
        }
        for relid in rescinded {
            self.send(guest, Lane::Release, |_| Event::Release { guest, life, relid });
        }
        for line in lines {
            self.send(guest, Lane::GuestWork, |_| Event::GuestWork { guest, life, line });
        }
        match link {
            None => self.queue.push(self.now + 1, Event::Attach { guest, life }),
            Some(partition) if !self.partitions.contains_key(&partition) => {
                self.send(guest, Lane::HangUp, |_| Event::RootDied { guest, life, partition });
            }
            Some(_) => {}
        }
        self.hear(guest)?;
        Ok(true)
    }
}
