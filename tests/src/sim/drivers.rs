//! What happens at a guest: the client's actions, and what its drivers make of them.

use vmbus_core::Version;
use vmbus_core::client::{
    Answer, AskId, ClientAction, ConnectFailure, Connection, Failure, OpenRequest, SignalParameters,
};
use vmbus_core::synic::ChannelConnection;

use super::guest::{Driver, Guest, Stage};
use super::rings::{Line, Worker};
use super::root::text;
use super::script::Lane;
use super::world::{Breach, Breaks, Event, Held, World, tell};

/// Ticks until a message that was refused is posted again.
const RETRY: u64 = 4;

impl World {
    /// Takes what a client has to say and does what follows, then looks whether all rules hold.
    pub(super) fn hear(&mut self, guest: usize) -> Held {
        while let Some(action) = self.at(guest).and_then(|guest| guest.client.poll_action()) {
            self.heard(guest, action)?;
        }
        self.note_client_states(guest);
        self.assert_usage(guest)
    }

    /// Who lives at a place at present.
    pub(super) fn at(&mut self, guest: usize) -> Option<&mut Guest> {
        self.places.get_mut(guest)?.guest.as_mut()
    }

    fn heard(&mut self, guest: usize, action: ClientAction) -> Held {
        let Some(living) = self.places[guest].guest.as_mut() else { return Ok(()) };
        let life = living.life;
        match action {
            ClientAction::Post { connection_id, payload } => {
                living.outbox.push_back((connection_id, payload));
                self.pump(guest);
            }
            ClientAction::Ask { id, .. } => {
                living.owed += 1;
                self.send(guest, Lane::GuestDecide, |fate| Event::GuestDecide {
                    guest,
                    life,
                    id,
                    answer: Self::answer(fate),
                });
            }
            ClientAction::Connected(connection) => self.connected(guest, connection)?,
            ClientAction::ConnectFailed(failure) => {
                tell!(self, "guest {guest}: {failure}");
                self.coverage.saw(match failure {
                    ConnectFailure::NoCommonVersion => "no common version",
                    ConnectFailure::Host(_) => "root cannot connect",
                    ConnectFailure::NoHost => "no root",
                    ConnectFailure::Cancelled => "contact given up",
                });
            }
            ClientAction::Offered(offer) => {
                tell!(self, "guest {guest}: offered {} as {}", Driver::new(offer).channel, offer.relid);
                let living = self.places[guest].guest.as_mut();
                let before = living.and_then(|living| living.drivers.insert(offer.relid, Driver::new(offer)));
                if let Some(before) = before {
                    return Err(Breach("relid", format!("{} is {} already", offer.relid, before.channel)));
                }
            }
            ClientAction::AllOffersDelivered => {}
            ClientAction::Rescinded { relid } => self.rescinded(guest, relid)?,
            ClientAction::GpadlCreated { relid, gpadl, result } => {
                self.created(guest, relid, gpadl, result)?
            }
            ClientAction::GpadlTorndown { gpadl } => self.torn_down(guest, gpadl)?,
            ClientAction::Opened { relid, open_id, result } => {
                self.open_ended(guest, relid, open_id, result)?
            }
            ClientAction::ReservedClosed { relid, .. } => {
                return Err(Breach("close", format!("channel {relid} was never open-reserved")));
            }
            ClientAction::Modified { relid, result } => self.modified(guest, relid, result)?,
            ClientAction::MonitorPagesModified(_) => {}
            ClientAction::ConnectRefused { .. } => self.coverage.saw("call refused"),
            ClientAction::Paused => {
                living.is_paused = true;
                living.is_pausing = false;
            }
            ClientAction::Unloaded => {
                living.forget_channels()?;
                // Before 3.0 nobody says when the root has let go.
                if living.version >= Some(Version::Win8_1) {
                    living.memory.borrow_mut().free_all().breaks("pages")?;
                }
            }
            ClientAction::Fault(fault) => return Err(Breach("blame", format!("guest {guest}: {fault}"))),
        }
        Ok(())
    }

    /// Posts what waits, as long as the root takes it.
    fn pump(&mut self, guest: usize) {
        loop {
            let Some(living) = self.places[guest].guest.as_mut() else { return };
            let life = living.life;
            if living.is_posting || living.outbox.is_empty() {
                return;
            }
            let fate = self.fates.next(guest, Lane::Post);
            let entered = living.link.and_then(|link| self.partitions.get_mut(&link));
            let is_full = entered.as_ref().is_some_and(|entered| entered.is_full());
            if fate.refused || fate.late > 0 || is_full {
                living.is_posting = true;
                self.queue.push(self.now + RETRY + fate.late, Event::Post { guest, life });
                return self.coverage.saw("post put off");
            }
            let Some((connection, payload)) = living.outbox.pop_front() else { return };
            // With a dead root there is nobody to read it.
            let (Some(partition), Some(entered)) = (living.link, entered) else { continue };
            if connection == 4 && entered.lacks_multi_client {
                living.client.connection_refused(connection);
                continue;
            }
            let fate = self.fates.next(guest, Lane::ToRoot);
            let at = entered.last_to_root.max(self.now + 1 + fate.late);
            entered.last_to_root = at;
            entered.to_root.push_back((connection, payload));
            self.queue.push(at, Event::ToRoot { partition });
        }
    }

    pub(super) fn post(&mut self, guest: usize, life: u32) -> Held {
        let Some(living) = self.living(guest, life) else { return Ok(()) };
        living.is_posting = false;
        self.pump(guest);
        self.hear(guest)
    }

    pub(super) fn deliver_to_guest(&mut self, partition: u32) -> Held {
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let Some(payload) = entered.to_guest.pop_front() else { return Ok(()) };
        let guest = entered.guest;
        let Some(living) = self.at(guest).filter(|living| living.link == Some(partition)) else {
            return Ok(());
        };
        living.client.handle_message(&payload);
        self.coverage.message(&payload);
        tell!(self, "guest {guest} reads {}", text(&payload));
        self.hear(guest)
    }

    pub(super) fn guest_decided(&mut self, guest: usize, life: u32, id: AskId, answer: Answer) -> Held {
        let Some(living) = self.living(guest, life) else { return Ok(()) };
        living.owed -= 1;
        living.client.decided(id, answer);
        if answer != Answer::Allow {
            self.coverage.saw("guest's policy denies");
        }
        self.hear(guest)
    }

    fn connected(&mut self, guest: usize, connection: Connection) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        living.version = Some(connection.version);
        // Whatever an earlier connection used: the root has let go of it before it answers.
        living.memory.borrow_mut().free_all().breaks("pages")?;
        if !living.drivers.is_empty() {
            return Err(Breach(
                "connection",
                format!("guest {guest} is connected and has channels of before"),
            ));
        }
        let _ = living.client.request_offers();
        Ok(())
    }

    fn created(&mut self, guest: usize, relid: u32, gpadl: u32, result: Result<(), Failure>) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        let Some(driver) = living.drivers.get_mut(&relid) else { return Ok(()) };
        let from_nowhere =
            || Breach("page list", format!("list {gpadl} of channel {relid} came from nowhere"));
        let list = driver.lists.get_mut(&gpadl).filter(|list| !list.is_created).ok_or_else(from_nowhere)?;
        list.is_created = true;
        let is_shared = matches!(driver.stage, Stage::Sharing { gpadl: rings } if rings == gpadl);
        let is_next = driver.next_rings == Some(gpadl);
        match result {
            Ok(()) if is_shared => self.open_on(guest, relid, gpadl),
            Ok(()) if is_next => self.open_anew(guest, relid, gpadl),
            Ok(()) => Ok(()),
            Err(failure) => {
                if is_shared {
                    driver.stage = Stage::Idle;
                }
                if is_next {
                    driver.next_rings = None;
                }
                let ended = if list.is_ending { None } else { driver.lists.remove(&gpadl) };
                let freed = ended.map_or(Ok(()), |list| living.free(&list));
                tell!(self, "guest {guest}: page list {gpadl} of channel {relid}: {failure}");
                freed
            }
        }
    }

    fn torn_down(&mut self, guest: usize, gpadl: u32) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        let ended = living.drivers.values_mut().find_map(|driver| driver.lists.remove(&gpadl));
        match ended {
            Some(list) if list.is_ending => living.free(&list),
            Some(_) | None => {
                Err(Breach("page list", format!("list {gpadl} was torn down and not asked back")))
            }
        }
    }

    /// Asks a page list back, if it was not before.
    pub(super) fn ask_back(&mut self, guest: usize, relid: u32, gpadl: u32) {
        let Some(living) = self.at(guest) else { return };
        let Some(list) = living.drivers.get_mut(&relid).and_then(|driver| driver.lists.get_mut(&gpadl))
        else {
            return;
        };
        if !list.is_ending && living.client.teardown_gpadl(relid, gpadl).is_ok() {
            list.is_ending = true;
        }
    }

    /// Opens a channel on rings that are shared.
    fn open_on(&mut self, guest: usize, relid: u32, gpadl: u32) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        let features = living.client.connection().map(|connection| connection.features);
        let chosen = features.is_some_and(|features| {
            features.contains(vmbus_core::FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS)
        });
        let Some(driver) = living.drivers.get_mut(&relid) else { return Ok(()) };
        let own_flag = u16::try_from(relid).unwrap_or(0);
        let signals = (chosen && relid % 2 == 1).then_some(SignalParameters {
            connection_id: 0x7_0000 + relid,
            event_flag: 2047 - own_flag % 1024,
        });
        driver.flag = signals.map_or(own_flag, |signals| signals.event_flag);
        let own_connection = ChannelConnection { relid, worker: 0 }.id();
        let connection = driver.offer.connection_id.unwrap_or(own_connection);
        driver.connection = signals.map_or(connection, |signals| signals.connection_id);
        let pages = driver.lists.get(&gpadl).map_or(0, |list| list.pages);
        let request = OpenRequest {
            ring_gpadl: gpadl,
            downstream_page: u32::try_from(pages / 2).unwrap_or(0),
            target_vp: driver.vp,
            user_data: Default::default(),
            signals,
            flags: Default::default(),
        };
        match living.client.open(relid, request) {
            Ok(open_id) => driver.stage = Stage::Opening { gpadl, open_id, is_given_up: false },
            // Paused meanwhile, for instance: it comes to nothing.
            Err(_) => {
                driver.stage = Stage::Idle;
                self.ask_back(guest, relid, gpadl);
            }
        }
        Ok(())
    }

    /// Closes a channel and opens it at once on rings that have just been shared.
    fn open_anew(&mut self, guest: usize, relid: u32, gpadl: u32) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        let Some(driver) = living.drivers.get_mut(&relid) else { return Ok(()) };
        driver.next_rings = None;
        match driver.stage {
            Stage::Open { gpadl: old, .. } if living.client.close(relid).is_ok() => {
                driver.stage = Stage::Idle;
                self.open_on(guest, relid, gpadl)?;
                self.ask_back(guest, relid, old);
            }
            Stage::Open { .. } | Stage::Idle | Stage::Sharing { .. } | Stage::Opening { .. } => {
                self.ask_back(guest, relid, gpadl);
            }
        }
        Ok(())
    }

    fn open_ended(&mut self, guest: usize, relid: u32, open_id: u32, result: Result<(), Failure>) -> Held {
        let name = self.name();
        let Some(living) = self.at(guest) else { return Ok(()) };
        let life = living.life;
        let Some(driver) = living.drivers.get_mut(&relid) else { return Ok(()) };
        let gpadl = match driver.stage {
            Stage::Opening { is_given_up: true, .. } if result.is_ok() => {
                return Err(Breach(
                    "open",
                    format!("open {open_id} of channel {relid} was given up and succeeds"),
                ));
            }
            Stage::Opening { gpadl, open_id: begun, .. } if begun == open_id => gpadl,
            Stage::Opening { .. } | Stage::Idle | Stage::Sharing { .. } | Stage::Open { .. } => {
                return Err(Breach(
                    "open",
                    format!("open {open_id} of channel {relid} ended and was not begun"),
                ));
            }
        };
        driver.stage = Stage::Idle;
        match result {
            Ok(()) => {
                let rings =
                    driver.lists.get(&gpadl).and_then(|list| living.memory.borrow().rings_of(list.pfn));
                let (to_root, to_guest) = rings.ok_or_else(|| Breach("open", "rings are gone".into()))?;
                let line = Box::new(Line::new(open_id, to_root, to_guest).breaks("ring")?);
                driver.stage = Stage::Open { gpadl, name, line };
                self.send(guest, Lane::GuestWork, |_| Event::GuestWork { guest, life, line: name });
            }
            Err(failure) => {
                self.ask_back(guest, relid, gpadl);
                tell!(self, "guest {guest}: open {open_id} of channel {relid}: {failure}");
            }
        }
        Ok(())
    }

    fn modified(&mut self, guest: usize, relid: u32, result: Result<(), Failure>) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        let (link, version) = (living.link, living.version);
        let Some(driver) = living.drivers.get_mut(&relid) else { return Ok(()) };
        let wanted = driver.modifying.take();
        let wanted =
            wanted.ok_or_else(|| Breach("modify", format!("channel {relid} was not to be modified")))?;
        if result.is_err() {
            return Ok(());
        }
        driver.vp = wanted;
        // Before 5.3 nothing says that it has happened.
        let is_open = matches!(driver.stage, Stage::Open { .. });
        let session = link.and_then(|link| self.partitions.get(&link)).and_then(|p| p.sessions.get(&relid));
        if version >= Some(Version::Iron)
            && is_open
            && let Some(session) = session.filter(|session| !session.is_closing && session.vp != wanted)
        {
            let what = format!("interrupts of channel {relid} go to {} and not to {wanted}", session.vp);
            return Err(Breach("modify", what));
        }
        Ok(())
    }

    fn rescinded(&mut self, guest: usize, relid: u32) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        let life = living.life;
        let Some(driver) = living.drivers.get_mut(&relid) else { return Ok(()) };
        driver.is_rescinded = true;
        driver.next_rings = None;
        match driver.stage {
            Stage::Idle | Stage::Open { .. } | Stage::Sharing { .. } => driver.stage = Stage::Idle,
            Stage::Opening { open_id, .. } => {
                return Err(Breach("open", format!("open {open_id} got no result before the rescind")));
            }
        }
        let lists = std::mem::take(&mut driver.lists);
        let channel = driver.channel;
        if driver.modifying.is_some() {
            return Err(Breach("modify", format!("channel {relid} was rescinded while it was modified")));
        }
        for (gpadl, list) in lists {
            if !list.is_created || list.is_ending {
                return Err(Breach("page list", format!("list {gpadl} got no answer before the rescind")));
            }
            living.free(&list)?;
        }
        tell!(self, "guest {guest}: channel {channel} ({relid}) is rescinded");
        self.send(guest, Lane::Release, |_| Event::Release { guest, life, relid });
        Ok(())
    }

    /// Gives a rescinded channel back, sub-channels before their primary one.
    pub(super) fn release(&mut self, guest: usize, life: u32, relid: u32) -> Held {
        let Some(living) = self.living(guest, life) else { return Ok(()) };
        if let Some(driver) = living.drivers.get_mut(&relid).filter(|driver| driver.is_rescinded) {
            driver.is_due = true;
        }
        self.release_all_due(guest)
    }

    pub(super) fn release_all_due(&mut self, guest: usize) -> Held {
        let Some(living) = self.at(guest) else { return Ok(()) };
        // Sub-channels first: by descending number of the sub-channel.
        let due = living.drivers.iter().filter(|(_, driver)| driver.is_due);
        let mut due: Vec<_> = due.map(|(relid, driver)| (driver.channel, *relid)).collect();
        due.sort_by_key(|(channel, _)| std::cmp::Reverse(channel.sub));
        for (channel, relid) in due {
            let has_subs =
                |driver: &Driver| driver.channel.device == channel.device && driver.channel.sub > 0;
            let waits = channel.sub == 0 && living.drivers.values().any(has_subs);
            if !waits && living.client.release(relid).is_ok() {
                living.drivers.remove(&relid);
            }
        }
        self.hear(guest)
    }

    // The data path.

    pub(super) fn interrupt(&mut self, guest: usize, life: u32, flag: u16) -> Held {
        let Some(living) = self.living(guest, life) else { return Ok(()) };
        living.flags.remove(&flag);
        tell!(self, "guest {guest}: interrupt, flag {flag}");
        let Some(living) = self.living(guest, life) else { return Ok(()) };
        let driver = living.drivers.values_mut().find(|driver| driver.flag == flag);
        // An interrupt of a channel that is not open is tolerated.
        if let Some(Stage::Open { name, line, .. }) = driver.map(|driver| &mut driver.stage)
            && !line.ends.awake
        {
            line.ends.awake = true;
            let line = *name;
            self.send(guest, Lane::GuestWork, |_| Event::GuestWork { guest, life, line });
        }
        Ok(())
    }

    pub(super) fn guest_works(&mut self, guest: usize, life: u32, line: u64) -> Held {
        let Some(living) = self.living(guest, life) else { return Ok(()) };
        let link = living.link;
        for driver in living.drivers.values_mut() {
            let Stage::Open { name, line: open, .. } = &mut driver.stage else { continue };
            if *name != line {
                continue;
            }
            let worked = open.work().breaks("exactly once")?;
            let (connection, by_monitor) = (driver.connection, driver.offer.monitor.is_some());
            let channel = driver.channel;
            self.coverage.completed += worked.taken.len() as u64;
            tell!(self, "guest {guest}: channel {channel} {worked}");
            if worked.again {
                self.send(guest, Lane::GuestWork, |_| Event::GuestWork { guest, life, line });
            }
            if let (true, Some(partition)) = (worked.ring, link) {
                self.ring_root(partition, connection, by_monitor);
            }
            return Ok(());
        }
        Ok(())
    }

    /// Once nothing is under way, both ends count the same.
    pub(super) fn assert_usage(&mut self, guest: usize) -> Held {
        let Some(living) = &self.places[guest].guest else { return Ok(()) };
        let Some(entered) = living.link.and_then(|link| self.partitions.get(&link)) else { return Ok(()) };
        let is_quiet = entered.is_quiet() && living.is_quiet() && !living.is_paused && !living.is_pausing;
        let released = living.drivers.values().all(|driver| !driver.is_rescinded);
        if !is_quiet || !released || living.client.connection().is_none() {
            return Ok(());
        }
        let lists = living.drivers.values().flat_map(|driver| driver.lists.values());
        let (count, pages) = lists.fold((0, 0), |(count, pages), list| (count + 1, pages + list.pages));
        let usage = entered.server.usage();
        let held = (usage.channels, usage.gpadls, usage.pages);
        let others = (usage.half_built_gpadls, usage.half_built_words, usage.questions, usage.connects);
        if held != (living.drivers.len(), count, pages) || others != (0, 0, 0, 0) {
            let what =
                format!("the root counts {usage:?}, guest {guest} {count} page lists of {pages} pages");
            return Err(Breach("usage", what));
        }
        Ok(())
    }

    fn note_client_states(&mut self, guest: usize) {
        let Some(living) = self.places[guest].guest.as_mut() else { return };
        let mut last = std::mem::take(&mut living.states).into_iter().peekable();
        let mut states = Vec::with_capacity(last.len() + 1);
        for channel in living.client.channels() {
            let relid = channel.offer.relid;
            while let Some((_, before)) = last.next_if(|(known, _)| *known < relid) {
                self.coverage.client_state(Some(before), None);
            }
            let before = last.next_if(|(known, _)| *known == relid).map(|(_, state)| state);
            if before != Some(channel.state) {
                self.coverage.client_state(before, Some(channel.state));
            }
            states.push((relid, channel.state));
        }
        last.for_each(|(_, before)| self.coverage.client_state(Some(before), None));
        living.states = states;
    }
}
