//! What happens at the root: messages come in, the server says what to do, devices do it in their own time.

use vmbus_core::message::Payload;
use vmbus_core::server::{
    Answer, AskId, ConnectRequest, DeviceKey, Open, Question, ServerAction, ServerInput,
};
use vmbus_core::{Guid, Status};

use super::partition::{Partition, Session, key};
use super::rings::{Device, Faults, Worker};
use super::script::{Broken, Channel, Decides, Lane};
use super::world::{Breach, Breaks, Event, Held, World, tell};

/// Ticks that a request takes in a device.
const SERVICE: u64 = 4;
/// Ticks until a root looks at its monitor page.
const MONITOR: u64 = 12;

impl World {
    /// Gives an input to a partition's server, if it is still there, and does what follows.
    fn input(&mut self, partition: u32, input: ServerInput<'_>) -> Held {
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        entered.server.handle(input);
        self.root_acts(partition)
    }

    /// Does what a server wants done, then looks whether all rules hold.
    pub(super) fn root_acts(&mut self, partition: u32) -> Held {
        while let Some(action) = self.partitions.get_mut(&partition).and_then(|p| p.server.poll_action()) {
            self.root_acts_once(partition, action)?;
        }
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        entered.assert_bounded()?;
        let guest = entered.guest;
        self.note_server_states(partition);
        self.assert_usage(guest)
    }

    fn root_acts_once(&mut self, partition: u32, action: ServerAction) -> Held {
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let guest = entered.guest;
        match action {
            ServerAction::Send { payload, .. } => self.tell_guest(partition, payload),
            ServerAction::Ask { id, question } => self.ask(partition, id, question),
            ServerAction::Open { relid, device, open } => {
                let pfn = entered.session_begins(relid, device, &open)?;
                self.device_opens(partition, relid, device, open, pfn);
            }
            // Sessions of a saved server go on: see `ServerInput::Restored`.
            ServerAction::Reattach { relid, device, open } => {
                entered.session_goes_on(relid, device, &open)?
            }
            ServerAction::Close { relid, device } => {
                entered.session_ends(relid)?;
                tell!(self, "partition {partition}: channel {relid} is to close");
                let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
                entered.owed += 1;
                if !(self.is_broken(Broken::NeverCloses) && device.0 >> 8 & 3 == 3) {
                    self.send(guest, Lane::Close, |_| Event::Closed { partition, relid });
                }
            }
            ServerAction::Gpadl { relid, device, gpadl, pages } => {
                let pfn = pages.ranges().next().and_then(|range| range.pfn(0)).unwrap_or(0);
                entered.list_begins(relid, gpadl, device, pfn)?;
            }
            ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                entered.list_ends(relid, gpadl)?;
                entered.owed += 1;
                self.send(guest, Lane::LetGo, |_| Event::LetGo { partition, relid, gpadl });
            }
            ServerAction::Retarget { relid, vp, .. } => {
                let session = entered.sessions.get_mut(&relid).filter(|session| !session.is_closing);
                let session =
                    session.ok_or_else(|| Breach("modify", format!("channel {relid} is not open")))?;
                if self.broken != Some(Broken::IgnoresRetarget) {
                    session.vp = vp;
                }
            }
            // No connection is offered here.
            ServerAction::Declined { .. } => {}
            ServerAction::Released { device } => {
                entered.device_ends(device)?;
                if self.at(guest).is_some_and(|living| living.link == Some(partition)) {
                    self.places[guest].offered.retain(|key, channel| *key != device || channel.sub == 0);
                }
            }
            ServerAction::Connected(connection) => {
                tell!(self, "partition {partition}: connected with {}", connection.version);
            }
            ServerAction::MonitorPages(_) => self.coverage.saw("monitor pages modified"),
            ServerAction::Disconnected => {
                entered.connection_ends()?;
                if entered.is_orphaned {
                    tell!(self, "partition {partition} is gone");
                    self.partitions.remove(&partition);
                }
            }
            ServerAction::Connect(request) => {
                entered.owed += 1;
                self.send(guest, Lane::Open, |fate| Event::Answered {
                    partition,
                    request,
                    refused: fate.refused,
                });
            }
            ServerAction::Fault(fault) => {
                entered.may_blame(&fault)?;
                self.coverage.saw("quota reached");
                tell!(self, "partition {partition}: {fault}");
            }
        }
        Ok(())
    }

    fn tell_guest(&mut self, partition: u32, payload: Payload) {
        let Some(entered) = self.partitions.get_mut(&partition) else { return };
        let fate = self.fates.next(entered.guest, Lane::ToGuest);
        let at = entered.last_to_guest.max(self.now + 1 + fate.late);
        entered.last_to_guest = at;
        entered.to_guest.push_back(payload);
        self.queue.push(at, Event::ToGuest { partition });
    }

    fn ask(&mut self, partition: u32, id: AskId, question: Question) {
        let Some(entered) = self.partitions.get_mut(&partition) else { return };
        match entered.policy {
            Decides::AllowAll => entered.server.handle(ServerInput::Decided { id, answer: Answer::Allow }),
            Decides::Ask => {
                entered.owed += 1;
                let guest = entered.guest;
                tell!(self, "partition {partition}: {question:?}?");
                self.send(guest, Lane::Decide, |fate| Event::Decide {
                    partition,
                    id,
                    answer: Self::answer(fate),
                });
            }
        }
    }

    pub(super) fn decided(&mut self, partition: u32, id: AskId, answer: Answer) -> Held {
        self.paid(partition);
        if answer != Answer::Allow {
            self.coverage.saw("root's policy denies");
        }
        self.input(partition, ServerInput::Decided { id, answer })
    }

    /// An answer that was owed has come.
    fn paid(&mut self, partition: u32) {
        if let Some(entered) = self.partitions.get_mut(&partition) {
            entered.owed -= 1;
        }
    }

    pub(super) fn deliver_to_root(&mut self, partition: u32) -> Held {
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let Some((connection_id, payload)) = entered.to_root.pop_front() else { return Ok(()) };
        self.coverage.message(&payload);
        tell!(self, "partition {partition} reads {}", text(&payload));
        self.input(partition, ServerInput::Message { connection_id, payload: &payload })
    }

    fn device_opens(&mut self, partition: u32, relid: u32, key: DeviceKey, open: Open, pfn: u64) {
        let name = self.name();
        let Some(entered) = self.partitions.get_mut(&partition) else { return };
        let vp = open.target_vp;
        entered.sessions.insert(
            relid,
            Session { name, key, open, pfn, device: None, is_closing: false, is_lost: false, vp },
        );
        entered.owed += 1;
        let guest = entered.guest;
        self.send(guest, Lane::Open, |fate| Event::Opened { partition, relid, refused: fate.refused });
    }

    pub(super) fn opened(&mut self, partition: u32, relid: u32, refused: bool) -> Held {
        self.paid(partition);
        let faults = Faults {
            completes_twice: self.is_broken(Broken::CompletesTwice),
            flips_byte: self.is_broken(Broken::FlipsByte),
            sleeps_without_look: self.is_broken(Broken::SleepsWithoutLook),
        };
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let Some(session) = entered.sessions.get_mut(&relid) else { return Ok(()) };
        let result = if refused {
            entered.sessions.remove(&relid);
            self.coverage.saw("device refuses to open");
            Err(Status::DEVICE_BUSY)
        } else {
            let rings = entered.memory.borrow().rings_of(session.pfn);
            let (to_root, to_guest) =
                rings.ok_or_else(|| Breach("pages", format!("channel {relid} has no rings")))?;
            session.device =
                Some(Device::new(session.open.open_id, to_root, to_guest, faults).breaks("ring")?);
            let (guest, session) = (entered.guest, session.name);
            self.send(guest, Lane::RootWork, |_| Event::RootWork { partition, session });
            Ok(())
        };
        tell!(self, "partition {partition}: channel {relid} opened: {result:?}");
        self.input(partition, ServerInput::Opened { relid, result })
    }

    pub(super) fn closed(&mut self, partition: u32, relid: u32) -> Held {
        self.paid(partition);
        if let Some(entered) = self.partitions.get_mut(&partition) {
            entered.sessions.remove(&relid);
        }
        self.input(partition, ServerInput::Closed { relid })
    }

    pub(super) fn let_go(&mut self, partition: u32, relid: u32, gpadl: u32) -> Held {
        self.paid(partition);
        let keeps = self.is_broken(Broken::KeepsPages);
        if let Some(entered) = self.partitions.get_mut(&partition)
            && let Some(list) = entered.lists.remove(&(relid, gpadl))
            && !keeps
        {
            entered.memory.borrow_mut().unmap(list.pfn).breaks("pages")?;
        }
        self.input(partition, ServerInput::GpadlReleased { relid, gpadl })
    }

    /// A service takes an hvsock call, or not.
    pub(super) fn answered(&mut self, partition: u32, request: ConnectRequest, refused: bool) -> Held {
        self.paid(partition);
        let channel = Channel::primary(request.endpoint.to_wire()[0]);
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let guest = entered.guest;
        let result = if refused { Err(Status::CONNECTION_REFUSED) } else { Ok(()) };
        if result.is_ok() && self.places[guest].offered.insert(key(channel), channel).is_none() {
            entered.offer(key(channel), channel);
        }
        self.input(partition, ServerInput::ConnectResult { request, result })
    }

    pub(super) fn offer(&mut self, guest: usize, channel: Channel) -> Result<bool, Breach> {
        // Calls are offered when they are made, sub-channels when their primary channel is open: there the guest asks.
        let primary = key(Channel::primary(channel.device));
        if channel.device >= Channel::FIRST_CALL || (channel.sub > 0 && !self.serves(guest, primary)) {
            return Ok(false);
        }
        if self.places[guest].offered.insert(key(channel), channel).is_some() {
            return Ok(false);
        }
        let link = self.at(guest).and_then(|living| living.link);
        for partition in self.partitions_of(guest) {
            if let Some(entered) = self.partitions.get_mut(&partition)
                && (channel.sub == 0 || link == Some(partition))
            {
                entered.offer(key(channel), channel);
                self.root_acts(partition)?;
            }
        }
        Ok(true)
    }

    /// Whether a device serves its guest at present.
    fn serves(&mut self, guest: usize, device: DeviceKey) -> bool {
        let link = self.at(guest).and_then(|living| living.link);
        let entered = link.and_then(|link| self.partitions.get(&link));
        let mut sessions = entered.into_iter().flat_map(|entered| entered.sessions.values());
        sessions.any(|session| session.key == device && session.device.is_some() && !session.is_closing)
    }

    pub(super) fn rescind(&mut self, guest: usize, channel: Channel) -> Result<bool, Breach> {
        let last = match channel.sub {
            0 => DeviceKey(key(channel).0 | 0xff),
            _ => key(channel),
        };
        let offered = self.places[guest].offered.range(key(channel)..=last);
        let channels: Vec<DeviceKey> = offered.map(|(key, _)| *key).rev().collect();
        for &key in &channels {
            self.places[guest].offered.remove(&key);
            for partition in self.partitions_of(guest) {
                if self.partitions.get_mut(&partition).is_some_and(|entered| entered.rescind(key)) {
                    self.root_acts(partition)?;
                }
            }
        }
        Ok(!channels.is_empty())
    }

    pub(super) fn partitions_of(&self, guest: usize) -> Vec<u32> {
        let whose = |entered: &&Partition| entered.guest == guest;
        self.partitions.iter().filter(|(_, entered)| whose(entered)).map(|(id, _)| *id).collect()
    }

    pub(super) fn guest_died(&mut self, partition: u32) -> Held {
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        tell!(self, "partition {partition} learns that its guest is dead");
        entered.to_root.clear();
        if self.broken == Some(Broken::IgnoresDeath) {
            return Ok(());
        }
        entered.is_orphaned = true;
        self.input(partition, ServerInput::Reset)
    }

    // The data path.

    pub(super) fn doorbell(&mut self, partition: u32, connection: u32) -> Held {
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        entered.doorbells.remove(&connection);
        tell!(self, "partition {partition}: doorbell {connection:#x}");
        let Some(entered) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let guest = entered.guest;
        let session = entered.sessions.values_mut().find(|session| session.open.connection_id == connection);
        // A doorbell of a channel that is not open is tolerated.
        if let Some(session) = session
            && let Some(device) = session.device.as_mut().filter(|device| !device.ends.awake)
        {
            device.ends.awake = true;
            let session = session.name;
            self.send(guest, Lane::RootWork, |_| Event::RootWork { partition, session });
        }
        Ok(())
    }

    fn session(&mut self, partition: u32, name: u64) -> Option<(usize, &mut Session)> {
        let entered = self.partitions.get_mut(&partition)?;
        let session = entered.sessions.values_mut().find(|session| session.name == name)?;
        Some((entered.guest, session))
    }

    pub(super) fn root_works(&mut self, partition: u32, session: u64) -> Held {
        let Some((guest, served)) = self.session(partition, session) else { return Ok(()) };
        let (flag, vp) = (served.open.event_flag, served.vp);
        let Some(device) = &mut served.device else { return Ok(()) };
        let worked = device.work().breaks("ring")?;
        tell!(self, "partition {partition}: session {session} {worked}");
        for request in worked.taken {
            if self.broken == Some(Broken::ForgetsRequest) && request % 6 == 5 {
                continue;
            }
            let fate = self.fates.next(guest, Lane::Serve);
            self.queue.push(self.now + SERVICE + fate.late, Event::Serve { partition, session, request });
        }
        if worked.again {
            self.send(guest, Lane::RootWork, |_| Event::RootWork { partition, session });
        }
        if worked.ring {
            self.interrupt_guest(partition, flag, vp);
        }
        Ok(())
    }

    pub(super) fn serve(&mut self, partition: u32, session: u64, request: u64) -> Held {
        tell!(self, "partition {partition}: session {session} has served {request}");
        let Some((_, served)) = self.session(partition, session) else { return Ok(()) };
        let (flag, vp) = (served.open.event_flag, served.vp);
        if let Some(device) = &mut served.device
            && device.finish(request).breaks("ring")?
        {
            self.interrupt_guest(partition, flag, vp);
        }
        Ok(())
    }

    /// Sets a flag of the guest, which is interrupted if it was clear.
    fn interrupt_guest(&mut self, partition: u32, flag: u16, vp: u32) {
        let Some(guest) = self.partitions.get(&partition).map(|entered| entered.guest) else { return };
        let life = self.places[guest].life;
        let Some(living) = self.living(guest, life).filter(|living| living.link == Some(partition)) else {
            return;
        };
        if !living.flags.insert(flag) {
            return;
        }
        living.interrupted.insert(flag, vp);
        self.interrupts += 1;
        if self.is_broken(Broken::LosesInterrupts) && self.interrupts.is_multiple_of(2) {
            return;
        }
        let fate = self.send(guest, Lane::Interrupt, |_| Event::Interrupt { guest, life, flag });
        if let Some(again) = fate.again {
            self.coverage.saw("interrupt twice");
            self.queue.push(self.now + 1 + fate.late + again, Event::Interrupt { guest, life, flag });
        }
    }

    /// The guest signals a connection of the root.
    pub(super) fn ring_root(&mut self, partition: u32, connection: u32, by_monitor: bool) {
        let Some(entered) = self.partitions.get_mut(&partition) else { return };
        if !entered.doorbells.insert(connection) {
            return;
        }
        let fate = self.fates.next(entered.guest, Lane::Doorbell);
        let at = self.now + 1 + fate.late + if by_monitor { MONITOR } else { 0 };
        self.queue.push(at, Event::Doorbell { partition, connection });
        if let Some(again) = fate.again {
            self.coverage.saw("doorbell twice");
            self.queue.push(at + again, Event::Doorbell { partition, connection });
        }
    }

    fn note_server_states(&mut self, partition: u32) {
        let Some(entered) = self.partitions.get_mut(&partition) else { return };
        let mut last = std::mem::take(&mut entered.states).into_iter().peekable();
        let mut states = Vec::with_capacity(last.len() + 1);
        for channel in entered.server.channels() {
            while let Some((_, before)) = last.next_if(|(key, _)| *key < channel.device) {
                self.coverage.server_state(Some(before), None);
            }
            let before = last.next_if(|(key, _)| *key == channel.device).map(|(_, state)| state);
            if before != Some(channel.state) {
                self.coverage.server_state(before, Some(channel.state));
            }
            states.push((channel.device, channel.state));
        }
        last.for_each(|(_, before)| self.coverage.server_state(Some(before), None));
        entered.states = states;
    }
}

/// The instance by which a call's channel will be known.
pub(super) fn endpoint(device: u8) -> Guid {
    Guid::from_wire([device; 16])
}

/// A message in words.
pub(super) fn text(payload: &[u8]) -> String {
    use vmbus_core::message::{Direction, Message};
    let message = Message::parse(payload, Direction::ToHost, None)
        .or_else(|_| Message::parse(payload, Direction::ToGuest, None));
    match message {
        Ok(Message::OfferChannel(offer)) => format!("OFFERCHANNEL {}", offer.relid),
        Ok(Message::OpenChannel(open)) => format!("OPENCHANNEL {} as open {}", open.relid, open.open_id),
        Ok(Message::GpadlHeader(header, _)) => format!("GPADL_HEADER {} of {}", header.gpadl, header.relid),
        Ok(Message::GpadlBody(body, _)) => format!("GPADL_BODY {}", body.gpadl),
        Ok(Message::InitiateContact(contact)) => format!("INITIATE_CONTACT {:#x}", contact.version),
        Ok(Message::VersionResponse(response)) => {
            format!("VERSION_RESPONSE {}, state {}", response.supported, response.connection_state)
        }
        Ok(message) => format!("{message:?}"),
        Err(error) => error.to_string(),
    }
}
