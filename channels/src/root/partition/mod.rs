//! One attached partition: its link, its protocol state machine, its channels.
//!
//! One task per partition owns all of this. Sessions run in tasks of their own and report their end here.

mod actions;
mod admitting;
mod deciding;
mod giving;
mod hvsock;
mod interrupts;
mod monitors;
mod offering;
mod opening;
mod pacing;
mod resuming;
mod reviewing;
mod saving;
mod sharing;
mod subchannels;
mod usage;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use vmbus_core::server::{DeviceKey, Server, ServerConfig, ServerInput};
use vmbus_core::synic::EVENT_CONNECTION;
use vmbus_partition::{FromGuest, LinkError, RootEnd, Watched, reactor};

use self::deciding::{Admission, Answered};
pub(super) use self::hvsock::HvCommand;
use self::hvsock::Hvsock;
use self::monitors::Monitors;
use self::pacing::{After, Found, Pacing};
pub(super) use self::resuming::{Resumed, Returned};
use self::reviewing::Review;
use self::saving::SaveReply;
use self::sharing::Shares;
use self::subchannels::Subchannel;
pub(super) use self::subchannels::key_of;
use self::usage::Gauges;
use super::Inner;
use super::claims::Claim;
use super::devices::Device;
use super::status::{ChannelStatus, PartitionStatus};
use crate::areas::{self, Areas};
use crate::channel::{Admit, Core, SavedChannel, Writes};
use crate::error::{ChannelError, Refusal};
use crate::event::Event;
use crate::flags::Listeners;
use crate::interrupt_page::InterruptPage;
use crate::lists::Lists;
use crate::policy::{Limits, QuotaLimits, Revoke, Who};
use crate::provider::Client;
use crate::quotas::Quotas;
use crate::sources;
use crate::transfer::Gifts;

/// Messages taken from the link before actions are carried out.
const MESSAGES_AT_ONCE: usize = 64;
/// Commands taken from the inbox of a partition that is busy.
const COMMANDS_AT_ONCE: usize = 64;
/// Bytes of a crashed guest's last words.
const LAST_WORDS: usize = 4096;

/// What others want of a partition's task.
pub(super) enum Command {
    /// A device came.
    Offer(u64),
    /// A device went.
    Withdraw(u64),
    /// A guest has left, that may have kept a device for itself.
    AskAgain,
    /// Other bounds hold from now on.
    Limit(Box<Quotas>),
    /// A session is over and nothing of its channel is in use.
    Ended {
        relid: u32,
        device: DeviceKey,
        result: Result<(), ChannelError>,
        /// If it was to be saved, and could be.
        saved: Option<Box<SavedChannel>>,
    },
    /// Nobody uses a page list any more that its guest wants back.
    ListReleased {
        relid: u32,
        gpadl: u32,
    },
    /// A session went on after its channel's end.
    Overdue {
        relid: u32,
    },
    /// The session of an open primary channel wants sub-channels.
    OfferSubchannels {
        relid: u32,
        open: u64,
        count: u16,
        admit: Admit,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// The policy agent has answered.
    Answered(Box<Answered>),
    /// Another policy agent decides, or what this speaks of was revoked or reinstated.
    Review(Option<Revoke>),
    /// This channel is to end.
    EndChannel {
        relid: u32,
        refusal: Refusal,
    },
    Status(oneshot::Sender<PartitionStatus>),
    Hvsock(HvCommand),
    /// Leave the partition as it stands, for another root.
    Save(SaveReply),
    Detach,
}

pub(super) struct Partition {
    root: Arc<Inner>,
    end: Arc<dyn RootEnd>,
    client: Client,
    /// The same for policy.
    who: Who,
    server: Server,
    /// Devices that this partition is offered, by key.
    offered: HashMap<DeviceKey, Offered>,
    /// Devices that this partition may not see, as far as their providers said until now.
    unseen: BTreeSet<u64>,
    /// Open channels, by relid.
    open: HashMap<u32, OpenChannel>,
    /// Channels that share an event area, by event flag.
    by_flag: Listeners<u16>,
    /// Channels of a link without event areas, by connection id.
    by_connection: Listeners<u32>,
    /// What tells channels apart before Win8.
    interrupt_page: Option<InterruptPage>,
    monitors: Monitors,
    /// Opens so far.
    opens: u64,
    areas: Areas,
    hvsock: Hvsock,
    writes: Arc<Writes>,
    /// Memory that the partition gave and no channel fetched.
    gifts: Arc<Gifts>,
    /// Where sessions run.
    sessions: Handle,
    /// Why a message could not be delivered, which ends the partition.
    undelivered: Option<LinkError>,
    /// Faults, refusals and crashes so far.
    faults: u32,
    quotas: Quotas,
    gauges: Gauges,
    pacing: Pacing,
    /// What this partition shares over which channel.
    shares: Shares,
    /// The same for sessions.
    lists: Arc<Lists>,
    /// Tasks that wait for an agent. They end with the partition.
    asking: JoinSet<()>,
    /// Questions whose answers were not taken from the inbox yet.
    unanswered: usize,
    /// Opens that policy has allowed, until the state machine goes on with them, which is at once or never.
    admitted: HashMap<DeviceKey, Admission>,
    review: Review,
    /// What policy said about quotas.
    policy_quotas: Option<QuotaLimits>,
    /// Gifts that policy decides about: how many, and their bytes.
    gifts_asked: (usize, u64),
    /// Channels that sessions are about to take up again.
    resuming: HashMap<u32, SavedChannel>,
    /// Who wants the partition as it stands.
    saving: Option<SaveReply>,
    commands: mpsc::UnboundedSender<Command>,
    inbox: mpsc::UnboundedReceiver<Command>,
}

struct Offered {
    device: Device,
    id: u64,
    area: u32,
    withdrawn: bool,
    /// It is on its way back, after which it is offered anew unless it was withdrawn.
    rescinded: bool,
    /// Policy does not let the partition see it.
    denied: bool,
    /// `None` for primary channels.
    subchannel: Option<Subchannel>,
}

struct OpenChannel {
    core: Arc<Core>,
    device: DeviceKey,
    /// Number of this open, which no other of the partition has.
    open: u64,
    /// Where its guest's signals arrive, of those that several channels share.
    flags: SmallVec<[u16; 2]>,
    connection_id: u32,
    /// What policy allows.
    limits: Limits,
    claim: Option<Claim>,
    /// Others had the device open when it was opened.
    joined: bool,
    /// Of both rings.
    ring_bytes: u64,
    /// So many may be in flight.
    requests: usize,
    /// The server wants to know when the session is over.
    closing: bool,
    /// The session is over.
    ended: bool,
}

/// What to wait on.
struct Sources {
    socket: Option<reactor::Watching>,
    bell: Option<reactor::Watching>,
    /// The process at the other end of the socket, which others may have inherited.
    process: Option<reactor::Watching>,
}

impl Partition {
    pub(super) fn new(
        root: Arc<Inner>,
        end: Arc<dyn RootEnd>,
        client: Client,
        quotas: Quotas,
        (commands, inbox): (mpsc::UnboundedSender<Command>, mpsc::UnboundedReceiver<Command>),
        sessions: Handle,
    ) -> Self {
        Self {
            server: Server::new(ServerConfig {
                quotas: quotas.protocol,
                monitor_pages: monitors::own_pages(root.monitor_pages, &*end),
                ..root.config.clone()
            }),
            quotas,
            gauges: Gauges::default(),
            pacing: Pacing::new(&quotas),
            offered: HashMap::new(),
            unseen: BTreeSet::new(),
            open: HashMap::new(),
            by_flag: Listeners::new(),
            by_connection: Listeners::new(),
            interrupt_page: None,
            monitors: Monitors::default(),
            opens: 0,
            areas: Areas::new(end.info().workers),
            hvsock: Hvsock::new(&root.hvsock),
            writes: Writes::new(&end),
            gifts: Arc::default(),
            sessions,
            undelivered: None,
            faults: 0,
            who: admitting::who(&*end, &client),
            shares: Shares::default(),
            lists: Arc::default(),
            asking: JoinSet::new(),
            unanswered: 0,
            admitted: HashMap::new(),
            review: Review::default(),
            policy_quotas: None,
            gifts_asked: (0, 0),
            resuming: HashMap::new(),
            saving: None,
            root,
            end,
            client,
            commands,
            inbox,
        }
    }

    pub(super) async fn run(mut self, resumed: Option<Box<Resumed>>) {
        let why = match self.sources() {
            Ok(sources) => {
                if self.admit(&sources).await.is_err() {
                    return self.root.turned_away(&self.client);
                }
                if let Some(resumed) = resumed {
                    self.resume(*resumed);
                }
                let served = self.serve(&sources).await;
                if let Some(reply) = self.saving.take() {
                    drop(sources);
                    return self.leave_saved(reply).await;
                }
                match served {
                    Ok(()) => "detached".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        self.writes.end();
        self.server.handle(ServerInput::Reset);
        self.act();
        self.wait_for_sessions().await;
        // Streams that their users have not dropped hold the end, too.
        self.end.hang_up();
        for offered in self.offered.values().filter(|offered| offered.subchannel.is_none()) {
            offered.device.provider.left(&self.client);
        }
        self.root.gone(&self.client, why);
    }

    fn sources(&self) -> Result<Sources, std::io::Error> {
        Ok(Sources {
            socket: self.end.watch(Watched::Socket)?.map(reactor::watch).transpose()?,
            bell: self.end.watch(Watched::Bell(areas::SHARED))?.map(reactor::watch_readable).transpose()?,
            process: self.end.watch(Watched::Process)?.map(reactor::watch_readable).transpose()?,
        })
    }

    /// Serves the partition until it is gone (an error) or we let it go.
    async fn serve(&mut self, sources: &Sources) -> Result<(), LinkError> {
        self.offer_all();
        let (mut looks_for_peer, mut queued) = (false, 0);
        loop {
            self.monitors.look();
            let signals = self.take_signals();
            let (messages, more) = self.take_messages()?;
            // Room for what waits is a reason to signal as well.
            let made_room = queued > 0 && self.end.queued() < queued;
            let found =
                if signals == Found::Work || messages || made_room { Found::Work } else { Found::Nothing };
            if looks_for_peer || found == Found::Work {
                self.pacing.looked(found);
            }
            looks_for_peer = false;
            self.act();
            self.pacing.forgive();
            if let Some(error) = self.undelivered.take() {
                return Err(error);
            }
            self.end.flush()?;
            queued = self.end.queued();
            match self.pause(sources).await? {
                After::GoOn => {}
                After::LetGo => return Ok(()),
            }
            let signalled = self.end.arm(areas::SHARED);
            if signalled || more {
                looks_for_peer = signalled;
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
                result = sources::readable(&sources.socket) => {
                    result?;
                    looks_for_peer = true;
                }
                result = sources::writable(&sources.socket), if self.end.wants_write() => result?,
                result = sources::readable(&sources.process) => {
                    result?;
                    return Err(LinkError::Gone);
                }
                result = sources::readable(&sources.bell) => {
                    result?;
                    looks_for_peer = true;
                    self.end.clear_bell(areas::SHARED);
                }
                () = self.monitors.due() => {}
            }
        }
    }

    /// Passes signals on. Those of channels in a storm are no work.
    fn take_signals(&self) -> Found {
        let mut found = Found::Nothing;
        self.end.take_flags(areas::SHARED, &mut |flag| {
            found = found.max(signal(self.by_flag.of(flag)));
        });
        found
    }

    /// Takes what the partition sent, but not for ever: whether there was anything, and whether there may be more.
    fn take_messages(&mut self) -> Result<(bool, bool), LinkError> {
        self.pacing.forgive();
        for taken in 0..MESSAGES_AT_ONCE {
            match self.end.receive()? {
                Some(message) => self.message(message)?,
                None => return Ok((taken > 0, false)),
            }
            self.act();
            self.note_usage();
            if self.pacing.charge() {
                break;
            }
        }
        Ok((true, true))
    }

    fn message(&mut self, message: FromGuest) -> Result<(), LinkError> {
        self.pacing.heard(&message);
        match message {
            FromGuest::Message { connection_id, message_type: 1, payload, .. } => {
                self.server.handle(ServerInput::Message { connection_id, payload: &payload });
            }
            // No other message type belongs to the bus.
            FromGuest::Message { .. } | FromGuest::Msr { .. } | FromGuest::MemoryChanged => {}
            FromGuest::Given { id, gift } => self.given(id, gift),
            FromGuest::Signal { connection_id, .. } => {
                let found = if connection_id == EVENT_CONNECTION {
                    self.take_page_signals()
                } else {
                    signal(self.by_connection.of(connection_id))
                };
                self.pacing.signalled(found);
            }
            FromGuest::Reset => self.server.handle(ServerInput::Reset),
            FromGuest::Crash { parameters, .. } => {
                if self.is_worth_telling() {
                    let message = self.last_words(&parameters);
                    self.root.tell(Event::Crashed { client: self.client.clone(), message });
                }
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
            // For terminals, too: nothing that would move a cursor there.
            Ok(()) => {
                String::from_utf8_lossy(&words).replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
            }
            Err(_) => String::new(),
        }
    }

    /// `true`: let the partition go.
    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Offer(id) => self.offer_if_visible(id),
            Command::Withdraw(id) => self.withdraw(id),
            Command::AskAgain => self.ask_again(),
            Command::Limit(quotas) => self.limit(*quotas),
            Command::Answered(answered) => self.answered(*answered),
            Command::Overdue { relid } => self.overdue(relid),
            Command::ListReleased { relid, gpadl } => self.list_released(relid, gpadl),
            Command::Review(only) => self.review(only.as_ref()),
            Command::EndChannel { relid, refusal } => {
                self.end_channel(relid, format!("channel {relid}"), &refusal);
            }
            Command::Ended { relid, device, result, saved: _ } => self.ended(relid, device, result),
            Command::OfferSubchannels { relid, open, count, admit, reply } => {
                self.ask_for_subchannels(relid, open, count, admit, reply);
            }
            Command::Status(reply) => _ = reply.send(self.status()),
            Command::Hvsock(command) => self.hvsock_command(command),
            Command::Save(reply) => return self.begins_saving(reply),
            Command::Detach => return true,
        }
        false
    }

    fn status(&mut self) -> PartitionStatus {
        let quotas = self.used();
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
            quotas,
            pauses: self.pacing.waits.now,
            storms: self.pacing.channels.load(Ordering::Relaxed),
            channels: channels.collect(),
        }
    }
}

/// Passes a signal on. In a storm it is not worth a look.
fn signal(channels: &[Arc<Core>]) -> Found {
    let mut found = Found::Nothing;
    for channel in channels {
        channel.signalled();
        if !channel.is_storming() {
            found = Found::Work;
        }
    }
    found
}
