//! One attached partition: its link, its protocol state machine, its channels.
//!
//! One task per partition owns all of this. Sessions run in tasks of their own and report their end here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};
use vmbus_core::Version;
use vmbus_core::server::{
    Answer, AskId, DeviceKey, OfferParams, Open, Question, Server, ServerAction, ServerInput,
};
use vmbus_partition::{FromGuest, LinkError, RefusedWhat, RootEnd, reactor};
use vmbus_ringbuf::RingMemory;

use super::devices::Device;
use super::status::{ChannelStatus, PartitionStatus};
use super::{Inner, lock};
use crate::areas::{self, Areas};
use crate::channel::{Channel, Core, Limits, Side, Wait, Writes};
use crate::error::{ChannelError, Refusal};
use crate::event::Event;
use crate::provider::{Client, OpenRequest};
use crate::sources;

/// Messages taken from the link before actions are carried out.
const MESSAGES_AT_ONCE: usize = 64;
/// Commands taken from the inbox of a partition that is busy.
const COMMANDS_AT_ONCE: usize = 64;
/// Faults of one partition that are reported one by one; beyond, only their number is.
const FAULTS_REPORTED: u32 = 100;
/// Bytes of a crashed guest's last words.
const LAST_WORDS: usize = 4096;

/// What others want of a partition's task.
pub(super) enum Command {
    /// Devices came or went, or a guest that kept one for itself has left.
    Reconsider,
    /// A session is over and nothing of its channel is in use.
    Ended {
        relid: u32,
        device: DeviceKey,
        result: Result<(), ChannelError>,
    },
    Status(oneshot::Sender<PartitionStatus>),
    Detach,
}

pub(super) struct Partition {
    root: Arc<Inner>,
    end: Arc<dyn RootEnd>,
    client: Client,
    server: Server,
    /// Devices that this partition is offered, by key.
    offered: HashMap<DeviceKey, Offered>,
    /// Open channels, by relid.
    open: HashMap<u32, OpenChannel>,
    /// Channels that share an event area, by event flag.
    by_flag: HashMap<u16, Arc<Notify>>,
    /// Channels of a link without event areas, by connection id.
    by_connection: HashMap<u32, Arc<Notify>>,
    areas: Areas,
    writes: Arc<Writes>,
    faults: u32,
    commands: mpsc::UnboundedSender<Command>,
    inbox: mpsc::UnboundedReceiver<Command>,
}

struct Offered {
    device: Device,
    id: u64,
    area: u32,
    withdrawn: bool,
}

struct OpenChannel {
    core: Arc<Core>,
    flag: u16,
    connection_id: u32,
    /// The server wants to know when the session is over.
    closing: bool,
    /// The session is over.
    ended: bool,
}

/// What to wait on.
struct Sources {
    socket: Option<AsyncFd<OwnedFd>>,
    bell: Option<AsyncFd<OwnedFd>>,
    /// The process at the other end of the socket, which others may have inherited.
    process: Option<AsyncFd<OwnedFd>>,
}

impl Partition {
    pub(super) fn new(
        root: Arc<Inner>,
        end: Arc<dyn RootEnd>,
        client: Client,
        commands: mpsc::UnboundedSender<Command>,
        inbox: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            server: Server::new(root.config.clone()),
            offered: HashMap::new(),
            open: HashMap::new(),
            by_flag: HashMap::new(),
            by_connection: HashMap::new(),
            areas: Areas::new(end.info().workers),
            writes: Writes::new(&end),
            faults: 0,
            root,
            end,
            client,
            commands,
            inbox,
        }
    }

    pub(super) async fn run(mut self) {
        let why = match self.sources() {
            Ok(sources) => match self.serve(&sources).await {
                Ok(()) => "detached".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        self.writes.end();
        self.server.handle(ServerInput::Reset);
        self.act();
        while !self.open.is_empty() {
            match self.inbox.recv().await {
                Some(command) => _ = self.command(command),
                None => break,
            }
            self.act();
        }
        for offered in self.offered.values() {
            offered.device.provider.left(&self.client);
        }
        self.root.gone(&self.client, why);
    }

    fn sources(&self) -> Result<Sources, std::io::Error> {
        let bell = self.end.worker_bell(areas::SHARED);
        Ok(Sources {
            socket: self.end.socket().map(reactor::read_write).transpose()?,
            bell: bell.map(reactor::readable).transpose()?,
            process: self.end.peer_process().map(reactor::readable).transpose()?,
        })
    }

    /// Serves the partition until it is gone (an error) or we let it go.
    async fn serve(&mut self, sources: &Sources) -> Result<(), LinkError> {
        self.reconsider();
        loop {
            self.take_signals();
            let more = self.take_messages()?;
            self.act();
            self.end.flush()?;
            if self.end.arm(areas::SHARED) || more {
                // A guest that never pauses must not keep its partition from being asked, changed and let go.
                for _ in 0..COMMANDS_AT_ONCE {
                    let Ok(command) = self.inbox.try_recv() else { break };
                    if self.command(command) {
                        return Ok(());
                    }
                }
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                command = self.inbox.recv() => match command {
                    Some(command) => {
                        if self.command(command) {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                result = sources::readable(&sources.socket) => result?,
                result = sources::writable(&sources.socket), if self.end.wants_write() => result?,
                result = sources::readable(&sources.process) => {
                    result?;
                    return Err(LinkError::Gone);
                }
                result = sources::readable(&sources.bell) => {
                    result?;
                    self.end.clear_bell(areas::SHARED);
                }
            }
        }
    }

    fn take_signals(&self) {
        self.end.take_flags(areas::SHARED, &mut |flag| {
            if let Some(channel) = self.by_flag.get(&flag) {
                channel.notify_waiters();
            }
        });
    }

    /// Takes what the partition sent, but not for ever: `true` if there may be more.
    fn take_messages(&mut self) -> Result<bool, LinkError> {
        for _ in 0..MESSAGES_AT_ONCE {
            match self.end.receive()? {
                Some(message) => self.message(message)?,
                None => return Ok(false),
            }
            self.act();
        }
        Ok(true)
    }

    fn message(&mut self, message: FromGuest) -> Result<(), LinkError> {
        match message {
            FromGuest::Message { connection_id, message_type: 1, payload, .. } => {
                self.server.handle(ServerInput::Message { connection_id, payload: &payload });
            }
            // No other message type belongs to the bus.
            FromGuest::Message { .. } | FromGuest::Msr { .. } | FromGuest::MemoryChanged => {}
            FromGuest::Signal { connection_id, .. } => {
                if let Some(channel) = self.by_connection.get(&connection_id) {
                    channel.notify_waiters();
                }
            }
            FromGuest::Reset => self.server.handle(ServerInput::Reset),
            FromGuest::Crash { parameters, .. } => {
                let message = self.last_words(&parameters);
                self.root.tell(Event::Crashed { client: self.client.clone(), message });
            }
            FromGuest::Pong { arg } => self.writes.pong(arg),
            FromGuest::HungUp => return Err(LinkError::Gone),
        }
        Ok(())
    }

    /// What Linux leaves behind: address and length of its last words.
    fn last_words(&self, &[_, _, _, gpa, len]: &[u64; 5]) -> String {
        let mut words = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(LAST_WORDS)];
        match self.end.memory().span(gpa, words.len()).and_then(|pages| pages.read(0, &mut words)) {
            Ok(()) => String::from_utf8_lossy(&words).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// `true`: let the partition go.
    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Reconsider => self.reconsider(),
            Command::Ended { relid, device, result } => self.ended(relid, device, result),
            Command::Status(reply) => _ = reply.send(self.status()),
            Command::Detach => return true,
        }
        false
    }

    // ---- devices ----

    /// Brings what this partition is offered in line with the root's devices.
    fn reconsider(&mut self) {
        let devices: Vec<(u64, Device)> =
            lock(&self.root.devices).iter().map(|(id, device)| (id, device.clone())).collect();
        for (id, device) in &devices {
            let key = DeviceKey(*id);
            if !self.offered.contains_key(&key) && device.provider.visible_to(&self.client) {
                self.offer(key, *id, device.clone());
            }
        }
        let gone: Vec<DeviceKey> = self
            .offered
            .iter()
            .filter(|(_, offered)| !offered.withdrawn && !devices.iter().any(|(id, _)| *id == offered.id))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            if let Some(offered) = self.offered.get_mut(&key) {
                offered.withdrawn = true;
            }
            self.server.handle(ServerInput::Rescind { device: key });
        }
    }

    fn offer(&mut self, key: DeviceKey, id: u64, device: Device) {
        let area = self.areas.take();
        let params = OfferParams {
            class: device.offer.class,
            instance: device.instance,
            flags: device.offer.flags(),
            user_defined: device.offer.wire_user_defined(),
            worker: u8::try_from(area).unwrap_or(0),
            ..OfferParams::default()
        };
        self.offered.insert(key, Offered { device, id, area, withdrawn: false });
        self.server.handle(ServerInput::Offer { device: key, offer: params });
    }

    /// The guest has let go of a rescinded device: it is offered again unless it was withdrawn.
    fn released(&mut self, key: DeviceKey) {
        let Some(offered) = self.offered.remove(&key) else { return };
        self.areas.give_back(offered.area);
        if offered.withdrawn {
            offered.device.provider.left(&self.client);
        } else {
            self.offer(key, offered.id, offered.device);
        }
    }

    // ---- actions of the protocol ----

    fn act(&mut self) {
        while let Some(action) = self.server.poll_action() {
            match action {
                ServerAction::Send { vp, sint, payload } => {
                    // A partition that takes no messages loses them with the link, which `serve` notices.
                    let _ = self.end.deliver(vp, sint, &payload);
                }
                ServerAction::Ask { id, question } => self.decide(id, &question),
                ServerAction::Open { relid, device, open } => self.open_channel(relid, device, &open),
                ServerAction::Close { relid, .. } => self.close_channel(relid),
                ServerAction::Gpadl { .. } => {}
                ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                    self.server.handle(ServerInput::GpadlReleased { relid, gpadl });
                }
                ServerAction::Retarget { relid, vp, .. } => {
                    if let Some(channel) = self.open.get(&relid) {
                        channel.core.retarget(vp);
                    }
                }
                ServerAction::Released { device } => self.released(device),
                ServerAction::Connected(connection) => {
                    let client = self.client.clone();
                    self.root.tell(Event::Connected { client, version: connection.version });
                }
                ServerAction::MonitorPages(_) => {}
                ServerAction::Disconnected => {
                    self.root.tell(Event::Disconnected { client: self.client.clone() });
                }
                ServerAction::Connect(request) => {
                    let result = Err(vmbus_core::status::Status::CONNECTION_REFUSED);
                    self.server.handle(ServerInput::ConnectResult { request, result });
                }
                ServerAction::Fault(fault) => {
                    self.faults = self.faults.saturating_add(1);
                    if self.faults <= FAULTS_REPORTED {
                        self.root.tell(Event::Fault { client: self.client.clone(), fault });
                    }
                }
            }
        }
    }

    fn decide(&mut self, id: AskId, question: &Question) {
        let answer = match self.root.policy.decide(&self.client, question) {
            Ok(()) => Answer::Allow,
            Err(refusal) => {
                let what = match question {
                    Question::Version { .. } => RefusedWhat::Attach,
                    Question::Offer { .. } => RefusedWhat::Open(0),
                    Question::Share { gpadl, .. } => RefusedWhat::Share(*gpadl),
                    Question::Open { relid, .. } => RefusedWhat::Open(*relid),
                };
                self.refuse(what, format!("{question:?}"), &refusal);
                Answer::Deny(refusal.status)
            }
        };
        self.server.handle(ServerInput::Decided { id, answer });
    }

    fn refuse(&self, what: RefusedWhat, described: String, refusal: &Refusal) {
        let told = vmbus_partition::Refusal { what, code: refusal.status.0, reason: refusal.reason.clone() };
        let _ = self.end.refuse(&told);
        let (client, reason) = (self.client.clone(), refusal.reason.clone());
        self.root.tell(Event::Refused { client, what: described, reason });
    }

    fn open_channel(&mut self, relid: u32, device: DeviceKey, open: &Open) {
        let result = self.try_open(relid, device, open).map_err(|refusal| {
            self.refuse(RefusedWhat::Open(relid), format!("opening channel {relid}"), &refusal);
            refusal.status
        });
        self.server.handle(ServerInput::Opened { relid, result });
    }

    fn try_open(&mut self, relid: u32, key: DeviceKey, open: &Open) -> Result<(), Refusal> {
        let Some(offered) = self.offered.get(&key) else { return Err(Refusal::new("the device is gone")) };
        let device = offered.device.clone();
        // A guest that is told no connection id of its own signals where all such guests do.
        let connected = self.server.connection();
        let area = if connected.is_some_and(|now| now.version == Version::V1) {
            areas::SHARED
        } else {
            offered.area
        };
        let memory = self.end.memory();
        let refuse = |error: &dyn std::fmt::Display| Refusal::new(error.to_string());
        let pages = open.ring.whole_pages().ok_or_else(|| Refusal::new("the rings are not whole pages"))?;
        let downstream = open.downstream_page as usize;
        let incoming = memory.ring(pages.clone().take(downstream)).map_err(|error| refuse(&error))?;
        let outgoing = memory.ring(pages.skip(downstream)).map_err(|error| refuse(&error))?;
        let request = OpenRequest {
            subchannel_index: 0,
            incoming_bytes: incoming.data_size(),
            outgoing_bytes: outgoing.data_size(),
            target_vp: open.target_vp,
            user_data: open.user_data,
        };
        let start = device.provider.open(&self.client, &request)?;

        let side = Arc::new(Side::Root {
            end: Arc::clone(&self.end),
            vp: AtomicU32::new(open.target_vp),
            flag: open.event_flag,
            worker: area,
            writes: Arc::clone(&self.writes),
        });
        let flag = u16::try_from(relid).unwrap_or(0);
        let wait = if area == areas::SHARED {
            let notify = Arc::new(Notify::new());
            self.by_flag.insert(flag, Arc::clone(&notify));
            self.by_connection.insert(open.connection_id, Arc::clone(&notify));
            Wait::Shared(notify)
        } else {
            Wait::own(&side)
        };
        let limits =
            Limits { completion_room: device.offer.completion_room, requests: device.offer.requests };
        let core = Core::new(side, wait, incoming, outgoing, limits).map_err(|error| refuse(&error))?;
        core.set_spin(self.root.spin);

        let served = start(Channel::new(Arc::clone(&core), None));
        let (ended, channel) = (self.commands.clone(), Arc::clone(&core));
        tokio::spawn(async move {
            let result = match tokio::spawn(served).await {
                Ok(result) => result,
                Err(_) => Err(ChannelError::Device("the session panicked".into())),
            };
            channel.close();
            channel.landed().await;
            let _ = ended.send(Command::Ended { relid, device: key, result });
        });
        let connection_id = open.connection_id;
        self.open.insert(relid, OpenChannel { core, flag, connection_id, closing: false, ended: false });
        self.root.tell(Event::Opened {
            client: self.client.clone(),
            device: device.offer.name.clone(),
            relid,
        });
        Ok(())
    }

    fn close_channel(&mut self, relid: u32) {
        match self.open.get_mut(&relid) {
            Some(channel) if !channel.ended => {
                channel.closing = true;
                channel.core.close();
            }
            Some(_) => {
                self.open.remove(&relid);
                self.server.handle(ServerInput::Closed { relid });
            }
            None => self.server.handle(ServerInput::Closed { relid }),
        }
    }

    fn ended(&mut self, relid: u32, device: DeviceKey, result: Result<(), ChannelError>) {
        let Some(channel) = self.open.get_mut(&relid) else { return };
        self.by_flag.remove(&channel.flag);
        self.by_connection.remove(&channel.connection_id);
        channel.ended = true;
        let asked_for = channel.closing;
        let name =
            self.offered.get(&device).map(|offered| offered.device.offer.name.clone()).unwrap_or_default();
        let error = match result {
            Ok(()) | Err(ChannelError::Closed) => None,
            Err(error) => Some(error.to_string()),
        };
        self.root.tell(Event::Closed { client: self.client.clone(), device: name, relid, error });
        if asked_for {
            self.open.remove(&relid);
            self.server.handle(ServerInput::Closed { relid });
        } else {
            // The device left on its own: the guest is told, and may have it again afterwards.
            self.server.handle(ServerInput::Rescind { device });
        }
    }

    fn status(&self) -> PartitionStatus {
        let channels = self.server.channels().map(|channel| ChannelStatus {
            relid: channel.relid,
            device: self
                .offered
                .get(&channel.device)
                .map(|offered| offered.device.offer.name.clone())
                .unwrap_or_default(),
            instance: channel.instance.to_string(),
            subchannel_index: channel.subchannel_index,
            state: channel.state.to_string(),
        });
        let usage = self.server.usage();
        PartitionStatus {
            id: self.client.id,
            name: self.client.name.to_string(),
            extended: self.end.info().extended,
            pid: self.client.credentials.map(|credentials| credentials.pid),
            version: self.server.connection().map(|connection| connection.version.to_string()),
            memory: self.end.memory().size(),
            gpadls: usage.gpadls,
            pages: usage.pages,
            channels: channels.collect(),
        }
    }
}
