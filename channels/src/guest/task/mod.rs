//! The task of one guest: its link, its protocol state machine, its channels.

mod deciding;
mod hvsock;
mod interrupts;
mod leaving;
mod lending;
mod monitor;
mod opening;
mod retargeting;
mod surviving;

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use vmbus_core::client::{self, Client, ClientAction, ClientConfig, OfferInfo};
use vmbus_core::status::{HvStatus, Status};
use vmbus_core::{FeatureFlags, Version};
use vmbus_partition::{FromRoot, GuestEnd, RefusedWhat, SharedPages, Watched, reactor};

use self::deciding::{Answered, Asking};
use self::leaving::Leaving;
use self::lending::Lending;
use self::monitor::Monitors;
use self::retargeting::{Forwarding, Moving};
pub(super) use self::surviving::Survival;
use self::surviving::{NO_DEVICE, Resuming, Suspended};
use super::policy::OwnPolicy;
use super::{Link, OfferedDevice, Offers, OpenOptions};
use crate::areas::{self, Areas};
use crate::buffer::Buffer;
use crate::channel::{Channel, Core, Lent};
use crate::error::{Error, Refusal};
use crate::flags::Listeners;
use crate::interrupt_page::InterruptPage;
use crate::sources;
use crate::spin::Spin;
use crate::transfer::{Gifts, Taking};

/// Messages taken from the link before actions are carried out.
const MESSAGES_AT_ONCE: usize = 64;
/// Commands taken from the inbox while the root has more to say.
const COMMANDS_AT_ONCE: usize = 64;

pub(super) use self::hvsock::{HvCommand, Hvsock};

pub(super) enum Command {
    Open {
        device: OfferedDevice,
        options: Box<OpenOptions>,
        reply: oneshot::Sender<Result<Channel, Error>>,
    },
    Hvsock(HvCommand),
    /// The last handle of a channel is gone. It had this relid once.
    Close {
        relid: u32,
        serial: u64,
    },
    /// A device's client has greeted the device of another root.
    Greeted {
        relid: u32,
        attempt: u64,
        result: Result<(), String>,
    },
    /// Our policy agent has answered.
    Answered(Box<Answered>),
    /// An open channel's signals are to come to another processor.
    Retarget {
        relid: u32,
        serial: u64,
        vp: u32,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// A device is to have memory for longer than one request.
    Lend {
        relid: u32,
        serial: u64,
        buffer: Buffer,
        reply: oneshot::Sender<Result<Lent, Error>>,
    },
    /// What it has is wanted back, by a list's name when there had been so many roots.
    TakeBack {
        gpadl: u32,
        roots: u64,
        taker: Option<oneshot::Sender<()>>,
    },
    /// Nothing comes to this area any more from a channel that was there when there had been so many roots.
    AreaLeft {
        area: u32,
        roots: u64,
    },
    /// Leave in order.
    Unload(oneshot::Sender<Result<(), Error>>),
    /// The root is to look at other monitor pages.
    MoveMonitorPages(oneshot::Sender<Result<(), Error>>),
    /// The last handle of the guest is gone.
    Leave,
}

pub(super) struct Task {
    end: Arc<dyn GuestEnd>,
    client: Client,
    /// Whom to ask before we do something; nobody in most guests.
    policy: Option<Arc<OwnPolicy>>,
    asking: Asking,
    /// Our own policy's last word about a version.
    denied_version: Option<Refusal>,
    spin: Spin,
    offers: watch::Sender<Offers>,
    /// Signal connections of offered channels, by relid, which V1 does not name, and monitor ids.
    connections: HashMap<u32, (Option<u32>, Option<u8>)>,
    channels: HashMap<u32, OpenChannel>,
    /// Pages of rings that the host has not let go of, by page list.
    rings: HashMap<u32, Ring>,
    /// Other memory that devices have, by page list.
    lent: HashMap<u32, Lending>,
    by_flag: Listeners<u16>,
    /// What tells channels apart before Win8.
    interrupt_page: Option<(SharedPages, InterruptPage)>,
    monitors: Monitors,
    gifts: Arc<Gifts>,
    areas: Areas,
    hvsock: Hvsock,
    /// Opens that were refused and wait for the reason.
    refused: Vec<RefusedOpen>,
    reasons: HashMap<u32, String>,
    leaving: Option<Leaving>,
    joined: Option<oneshot::Sender<Result<(), Error>>>,
    commands: mpsc::UnboundedSender<Command>,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// Number of the last open.
    last_serial: u64,
    link: Arc<Link>,
    survival: Option<Survival>,
    /// When to give up waiting for a root.
    until: Option<Instant>,
    hung_up: bool,
    /// Channels whose device another root has not offered yet.
    suspended: Vec<Suspended>,
    /// Channels under way to go on, and until when.
    resuming: BTreeMap<u32, Instant>,
    last_attempt: u64,
    /// Roots before this one.
    roots: u64,
    /// Memory that a root which may live still could write.
    lost: Vec<Ring>,
    lost_buffers: Vec<Buffer>,
}

/// What a guest's task begins with.
pub(super) struct Start {
    pub(super) end: Arc<dyn GuestEnd>,
    pub(super) spin: Spin,
    pub(super) policy: Option<Arc<OwnPolicy>>,
    pub(super) offers: watch::Sender<Offers>,
    pub(super) hvsock: Hvsock,
    pub(super) link: Arc<Link>,
    pub(super) survival: Option<Survival>,
}

/// Memory of two rings, and what may still refer to it.
struct Ring {
    _pages: SharedPages,
    _core: Option<Arc<Core>>,
}

struct OpenChannel {
    pages: Option<SharedPages>,
    gpadl: u32,
    open_id: u32,
    area: u32,
    /// On the way to another area.
    moving: Option<Moving>,
    /// Areas that it has left.
    forwarding: Vec<Forwarding>,
    downstream: usize,
    device: OfferedDevice,
    options: OpenOptions,
    /// Our own policy's.
    limits: crate::policy::Limits,
    /// Tells this open from all others of this guest.
    serial: u64,
    reply: Option<oneshot::Sender<Result<Channel, Error>>>,
    core: Option<Arc<Core>>,
    /// The rings are for a channel that has survived its root.
    resuming: Option<Resuming>,
}

impl OpenChannel {
    /// The event flag that tells of signals for it where several channels' arrive.
    fn flag(&self, relid: u32) -> u16 {
        let chosen = self.options.signals.map(|signals| signals.event_flag);
        chosen.unwrap_or_else(|| u16::try_from(relid).unwrap_or(0))
    }
}

struct RefusedOpen {
    relid: u32,
    status: Status,
    reply: oneshot::Sender<Result<Channel, Error>>,
    until: Instant,
}

/// A client that has contacted nobody.
fn new_client(
    interrupt_page: Option<&SharedPages>,
    monitors: &Monitors,
    policy: Option<&OwnPolicy>,
) -> Client {
    let defaults = ClientConfig::default();
    Client::new(ClientConfig {
        features: defaults.features | FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES,
        interrupt_page: interrupt_page.map_or(0, SharedPages::gpa),
        monitor_pages: monitors.addresses(),
        policy: if policy.is_some() { client::Policy::Ask } else { client::Policy::AllowAll },
        ..defaults
    })
}

impl Task {
    pub(super) fn new(
        start: Start,
        (commands, inbox): (mpsc::UnboundedSender<Command>, mpsc::UnboundedReceiver<Command>),
    ) -> Self {
        let Start { end, spin, policy, offers, hvsock, link, survival } = start;
        let interrupt_page = interrupts::allocate(&*end);
        let page = interrupt_page.as_ref().map(|(pages, _)| pages);
        let monitors = Monitors::allocate(&*end);
        Self {
            client: new_client(page, &monitors, policy.as_deref()),
            policy,
            asking: Asking::new(),
            denied_version: None,
            interrupt_page,
            monitors,
            spin,
            offers,
            connections: HashMap::new(),
            channels: HashMap::new(),
            rings: HashMap::new(),
            lent: HashMap::new(),
            by_flag: Listeners::new(),
            leaving: None,
            gifts: Arc::default(),
            areas: Areas::new(end.info().vps),
            hvsock,
            refused: Vec::new(),
            reasons: HashMap::new(),
            joined: None,
            end,
            commands,
            inbox,
            last_serial: 0,
            link,
            survival,
            until: None,
            hung_up: false,
            suspended: Vec::new(),
            resuming: BTreeMap::new(),
            last_attempt: 0,
            roots: 0,
            lost: Vec::new(),
            lost_buffers: Vec::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        versions: RangeInclusive<Version>,
        joined: oneshot::Sender<Result<(), Error>>,
    ) {
        self.joined = Some(joined);
        let (oldest, newest) = (*versions.start(), *versions.end());
        let result = loop {
            let served = match self.may_attach().await.map(|()| self.client.connect(versions.clone())) {
                Ok(Ok(())) => self.serve().await,
                Ok(Err(_)) => Err(Error::NoCommonVersion { oldest, newest }),
                Err(error) => Err(error),
            };
            match served {
                Ok(()) => break Ok(()),
                Err(end) => match self.rejoin(end).await {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                },
            }
        };
        let why = match &result {
            Err(Error::Refused(refusal)) => Some(refusal.clone()),
            Ok(()) | Err(_) => None,
        };
        if let Err(error) = &result {
            self.end_suspended(&error.to_string());
        }
        self.end_suspended("the guest left");
        for channel in self.channels.values() {
            if let Some(core) = &channel.core {
                if let Some(why) = &why {
                    core.ends_because(&why.reason);
                }
                core.close();
                core.quiesce();
            }
            if let Some(resuming) = &channel.resuming {
                resuming.core.end("the bus ended");
            }
        }
        // Streams that their users have not dropped hold the end, too.
        self.end.hang_up();
        if let Some(joined) = self.joined.take() {
            let error = match result {
                Ok(()) => Error::Disconnected,
                Err(Error::NoCommonVersion { .. }) => Error::NoCommonVersion { oldest, newest },
                Err(error) => error,
            };
            let _ = joined.send(Err(error));
        }
        self.offers.send_modify(|offers| offers.end(why));
    }

    async fn serve(&mut self) -> Result<(), Error> {
        let waiting = Error::io("waiting for the root");
        let end = &self.end;
        let socket = end.watch(Watched::Socket).and_then(|fd| fd.map(reactor::watch).transpose());
        let one = |what| end.watch(what).and_then(|fd| fd.map(reactor::watch_readable).transpose());
        let (bell, process) = (one(Watched::Bell(areas::SHARED)), one(Watched::Process));
        let (socket, bell, process) = match (socket, bell, process) {
            (Ok(socket), Ok(bell), Ok(process)) => (socket, bell, process),
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => return Err(waiting(error)),
        };
        loop {
            self.take_signals();
            let more = self.take_messages()?;
            self.act()?;
            self.answer_refused();
            self.end_late(NO_DEVICE);
            self.end.flush()?;
            if self.has_left() {
                return Ok(());
            }
            if self.end.arm(areas::SHARED) || more {
                // A root that never pauses must not keep its guest from leaving.
                for _ in 0..COMMANDS_AT_ONCE {
                    let Ok(command) = self.inbox.try_recv() else { break };
                    if !self.command(command) {
                        return Ok(());
                    }
                }
                tokio::task::yield_now().await;
                continue;
            }
            let refused = self.refused.iter().map(|refused| refused.until).chain(self.next_deadline());
            let next_due = refused.chain(self.leaving.as_ref().map(|leaving| leaving.until)).min();
            tokio::select! {
                biased;
                command = self.inbox.recv() => match command {
                    Some(command) => {
                        if !self.command(command) {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                result = sources::readable(&socket) => result?,
                result = sources::writable(&socket), if self.end.wants_write() => result?,
                result = sources::readable(&process) => {
                    result?;
                    return Err(Error::Disconnected);
                }
                result = sources::readable(&bell) => {
                    result?;
                    self.end.clear_bell(areas::SHARED);
                }
                () = tokio::time::sleep_until(next_due.unwrap_or_else(Instant::now)), if next_due.is_some() => {}
            }
        }
    }

    fn take_signals(&self) {
        let mut shared = false;
        self.end.take_flags(areas::SHARED, &mut |flag| {
            shared |= flag == 0;
            self.by_flag.of(flag).iter().for_each(|channel| channel.signalled());
        });
        if shared {
            self.take_page_signals();
        }
    }

    fn take_messages(&mut self) -> Result<bool, Error> {
        for _ in 0..MESSAGES_AT_ONCE {
            match self.end.receive()? {
                Some(FromRoot::Message { payload, .. }) => self.client.handle_message(&payload),
                Some(FromRoot::ConnectionStatus { connection_id, status }) => {
                    if status == u32::from(HvStatus::INVALID_CONNECTION_ID.0) {
                        self.client.connection_refused(connection_id);
                    }
                }
                Some(FromRoot::Refused(refusal)) => match refusal.what {
                    RefusedWhat::Open(relid) => self.reason(relid, refusal.reason),
                    RefusedWhat::Attach => return Err(Error::Refused(Refusal::new(refusal.reason))),
                    RefusedWhat::Share(_) | RefusedWhat::Other(..) => {}
                },
                // A process has nothing to reset; it ends when its caller wants it to.
                Some(FromRoot::SystemReset | FromRoot::SystemQuit | FromRoot::MemoryChanged) => {}
                Some(FromRoot::Given { id, gift }) => {
                    if let Err(refusal) = self.gifts.came(id, gift, Ok(Taking::Map)) {
                        tracing::warn!(%refusal, "a gift of the root");
                    }
                }
                Some(FromRoot::HungUp) => {
                    self.hung_up = true;
                    return Err(Error::Disconnected);
                }
                None => return Ok(false),
            }
            self.act()?;
        }
        Ok(true)
    }

    /// `false`: leave the bus.
    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Open { device, options, reply } => {
                // Another root may have come since whoever opens has looked: without an answer they look again.
                if self.survival.is_some() && !self.offers.borrow().contains(&device) {
                    return true;
                }
                if let Err((error, reply)) = self.begin_open(device, *options, reply) {
                    let _ = reply.send(Err(error));
                }
            }
            Command::Hvsock(command) => self.hvsock_command(command),
            Command::Close { relid, serial } => self.close(relid, serial),
            Command::Greeted { relid, attempt, result } => self.greeted(relid, attempt, result),
            Command::MoveMonitorPages(reply) => self.move_monitor_pages(reply),
            Command::Answered(answered) => self.answered(*answered),
            Command::Retarget { relid, serial, vp, reply } => self.retarget(relid, serial, vp, reply),
            Command::Lend { relid, serial, buffer, reply } => self.lend(relid, serial, buffer, reply),
            Command::TakeBack { gpadl, roots, taker } => self.take_back(gpadl, roots, taker),
            Command::AreaLeft { area, roots } => {
                if roots == self.roots {
                    self.areas.give_back(area);
                }
            }
            Command::Unload(reply) => return self.begin_leave(reply),
            Command::Leave => return false,
        }
        true
    }

    fn act(&mut self) -> Result<(), Error> {
        while let Some(action) = self.client.poll_action() {
            match action {
                ClientAction::Post { connection_id, payload } => self.end.post(connection_id, &payload)?,
                ClientAction::Connected(connection) => {
                    self.link.set_version(connection.version);
                    self.until = None;
                    self.offers.send_modify(|offers| offers.attached = true);
                    self.use_monitor_pages(&connection);
                    if self.client.request_offers().is_ok()
                        && let Some(joined) = self.joined.take()
                    {
                        let _ = joined.send(Ok(()));
                    }
                }
                ClientAction::ConnectFailed(_) => {
                    let otherwise =
                        Error::NoCommonVersion { oldest: Version::OLDEST, newest: Version::NEWEST };
                    return Err(self.no_version(otherwise));
                }
                ClientAction::Offered(offer) => self.offered(&offer),
                ClientAction::AllOffersDelivered => self.offers.send_modify(|offers| offers.complete = true),
                ClientAction::Rescinded { relid } => self.rescinded(relid),
                ClientAction::GpadlCreated { relid, gpadl, result } => {
                    self.gpadl_created(relid, gpadl, result)
                }
                ClientAction::GpadlTorndown { gpadl } => {
                    self.rings.remove(&gpadl);
                    self.came_back(gpadl);
                }
                ClientAction::Opened { relid, result, .. } => self.opened(relid, result),
                ClientAction::ConnectRefused { request, failure } => self.connect_refused(&request, failure),
                ClientAction::MonitorPagesModified(result) => self.monitor_pages_moved(result),
                ClientAction::Fault(fault) => tracing::warn!(%fault, "the root broke a rule"),
                ClientAction::Ask { id, question } => self.decide(id, &question),
                ClientAction::Modified { relid, result } => self.retargeted(relid, result),
                ClientAction::Unloaded => self.unloaded(),
                // Asked for by nobody here.
                ClientAction::ReservedClosed { .. } | ClientAction::Paused => {}
            }
        }
        Ok(())
    }

    fn offered(&mut self, offer: &OfferInfo) {
        self.connections.insert(offer.relid, (offer.connection_id, offer.monitor));
        if hvsock::is_connection(offer) {
            return self.connection_offered(offer);
        }
        let device = OfferedDevice::of(offer);
        self.reopen(&device);
        self.offers.send_modify(|offers| offers.add(device));
    }

    fn rescinded(&mut self, relid: u32) {
        self.finish(relid, Some(Error::Rescinded));
        self.connections.remove(&relid);
        self.hvsock.forget(relid);
        self.offers.send_modify(|offers| offers.remove(relid));
        let _ = self.client.release(relid);
    }
}
