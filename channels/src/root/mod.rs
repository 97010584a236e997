//! The root of a bus: devices on one side, partitions on the other.

mod answering;
mod claims;
mod control;
mod devices;
mod door;
mod greeting;
mod hvsock;
mod partition;
mod save;
mod status;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::AbortHandle;
use vmbus_core::Version;
use vmbus_core::server::ServerConfig;
use vmbus_partition::{Listener, RootEnd, reactor};

use self::answering::Answerers;
pub use self::answering::Asked;
use self::claims::Claims;
use self::control::ControlThread;
pub use self::devices::DeviceHandle;
use self::devices::Devices;
use self::door::{Door, Seat};
use self::partition::{Command, Partition, Resumed};
pub use self::status::{ChannelStatus, DeviceStatus, PartitionStatus, Status};
use self::windows::Watch;
use crate::error::{Error, Refusal};
use crate::event::Event;
use crate::hvsock::{HvLimits, Services};
use crate::policy::{Asker, AskerSettings, End, PolicyAgent, Revoke, Revoked, WallTime};
use crate::provider::{Client, Provider};
use crate::quotas::{BusQuotas, Quotas};
use crate::spin::Spin;

/// Events that a slow subscriber may lag behind before it misses some.
const EVENTS_KEPT: usize = 4096;

/// A running root. Clones are handles to the same one; with the last nobody can attach any more, and partitions that
/// have attached are served until they leave. [`run_until`](Self::run_until) ends it in order.
#[derive(Clone)]
pub struct Root {
    inner: Arc<Inner>,
    _tasks: Arc<Tasks>,
}

/// What the partitions' tasks share.
pub(crate) struct Inner {
    config: ServerConfig,
    /// Bounds for each partition that has none of its own.
    quotas: Quotas,
    spin: Spin,
    policy: Arc<Asker>,
    claims: Arc<Claims>,
    windows: Mutex<Watch>,
    devices: Mutex<Devices>,
    services: Arc<Services>,
    hvsock: HvLimits,
    answerers: Answerers,
    door: Arc<Door>,
    monitor_pages: MonitorPageSource,
    partitions: Mutex<BTreeMap<u32, Inbox>>,
    next_partition: AtomicU32,
    /// Names that belong to whoever attaches at a socket of its own.
    vm_names: Mutex<BTreeSet<Arc<str>>>,
    /// Nobody attaches any more. Written under the lock of `partitions`.
    closing: AtomicBool,
    /// A partition has left.
    left: Notify,
    events: broadcast::Sender<Event>,
    /// Where partitions are attended to, if not where they attach.
    control: Option<ControlThread>,
}

/// The way to a partition's task.
type Inbox = mpsc::UnboundedSender<Command>;

/// Listeners; they end with the root.
#[derive(Default)]
struct Tasks(Mutex<Vec<AbortHandle>>);

impl Tasks {
    fn stop(&self) {
        for task in lock(&self.0).drain(..) {
            task.abort();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop();
    }
}

fn tell(events: &broadcast::Sender<Event>, event: Event) {
    event.trace();
    let _ = events.send(event);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whose memory the monitor pages of a guest are, in which monitored channels are signalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MonitorPageSource {
    /// The guest's, as it always may be.
    #[default]
    Guest,
    /// The root's own, for guests of version 6.0 that ask for such pages and are not virtual machines; others use
    /// their own. Costs each partition two pages.
    Root,
}

/// Settings of a root. The default speaks every version, bounds everything a guest can make it hold and allows what
/// is within the bounds.
pub struct RootBuilder {
    config: ServerConfig,
    quotas: Quotas,
    bus_quotas: BusQuotas,
    hvsock: HvLimits,
    monitor_pages: MonitorPageSource,
    spin: Spin,
    policy: AskerSettings,
    control: Option<ControlThread>,
}

impl RootBuilder {
    /// Protocol versions that guests may use; all without this.
    pub fn versions(mut self, versions: RangeInclusive<Version>) -> Self {
        self.config.versions = versions;
        self
    }

    /// Bounds of what one guest can make the root hold.
    pub fn quotas(mut self, quotas: Quotas) -> Self {
        self.quotas = quotas;
        self
    }

    /// Bounds of all partitions together.
    pub fn bus_quotas(mut self, quotas: BusQuotas) -> Self {
        self.bus_quotas = quotas;
        self
    }

    /// Bounds of stream sockets, for each partition.
    pub fn hvsock(mut self, limits: HvLimits) -> Self {
        self.hvsock = limits;
        self
    }

    /// How long channels look for work before they sleep.
    pub fn spin(mut self, spin: Spin) -> Self {
        self.spin = spin;
        self
    }

    /// Who decides what guests may do; [`AllowAll`](crate::AllowAll) without this.
    pub fn policy(mut self, agent: impl PolicyAgent) -> Self {
        self.policy.agent = Arc::new(agent);
        self
    }

    /// How long the policy agent may take for an answer; 5 s without this. Saying nothing is denying.
    pub fn policy_deadline(mut self, deadline: Duration) -> Self {
        self.policy.deadline = deadline;
        self
    }

    /// Where questions to the policy agent have their time from; the system's clock without this.
    pub fn policy_clock(mut self, clock: impl Fn() -> WallTime + Send + Sync + 'static) -> Self {
        self.policy.clock = Arc::new(clock);
        self
    }

    /// Attends to partitions, their messages and their signals without work, on a thread of the root's own, which also
    /// asks the policy agent. Sessions stay in the runtime in which partitions attach, and do not feel a partition that
    /// makes noise (`docs/src/quotas.md`). Without this one runtime does it all.
    ///
    /// # Errors
    /// The system's, when it gives no thread or no descriptors.
    pub fn control_thread(mut self) -> io::Result<Self> {
        self.control = Some(ControlThread::start()?);
        Ok(self)
    }

    /// Whose memory monitor pages are; the guest's without this.
    pub fn monitor_pages(mut self, source: MonitorPageSource) -> Self {
        self.monitor_pages = source;
        self
    }

    /// A root that no partition can attach to yet.
    pub fn build(self) -> Root {
        let events = broadcast::channel(EVENTS_KEPT).0;
        let asker = Asker::new(self.policy, End::Root, {
            let events = events.clone();
            move |decided| tell(&events, Event::Decided(Arc::new(decided)))
        });
        let inner = Inner {
            config: self.config,
            quotas: self.quotas,
            spin: self.spin,
            policy: Arc::new(asker),
            claims: Arc::default(),
            windows: Mutex::default(),
            devices: Mutex::default(),
            services: Services::new(),
            hvsock: self.hvsock,
            answerers: Answerers::default(),
            door: Door::new(self.bus_quotas),
            monitor_pages: self.monitor_pages,
            partitions: Mutex::default(),
            next_partition: AtomicU32::new(1),
            vm_names: Mutex::default(),
            closing: AtomicBool::new(false),
            left: Notify::new(),
            events,
            control: self.control,
        };
        Root { inner: Arc::new(inner), _tasks: Arc::default() }
    }
}

impl Root {
    /// Settings for a root.
    pub fn builder() -> RootBuilder {
        RootBuilder {
            config: ServerConfig::default(),
            quotas: Quotas::default(),
            bus_quotas: BusQuotas::default(),
            spin: Spin::default(),
            policy: AskerSettings::default(),
            hvsock: HvLimits::default(),
            monitor_pages: MonitorPageSource::Guest,
            control: None,
        }
    }

    /// A root with default settings that process guests reach at `path`. Needs a tokio runtime.
    ///
    /// # Errors
    /// As [`listen_at`](Self::listen_at).
    pub async fn listen(path: impl AsRef<Path>) -> Result<Self, Error> {
        let root = Self::builder().build();
        root.listen_at(path)?;
        Ok(root)
    }

    /// Lets process guests attach at `path`. A socket that a dead root left there is taken over.
    ///
    /// # Errors
    /// [`Error::Listen`] if a live root has the path, or it cannot be used. [`Error::Io`] outside a runtime.
    pub fn listen_at(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.accept_at(path.as_ref(), None)
    }

    /// Lets the virtual machine `name` attach at `path`. Partitions there have this name and no other, and partitions
    /// elsewhere do not get it, so that what is for `name` is for who may use the socket at `path`.
    ///
    /// # Errors
    /// As [`listen_at`](Self::listen_at).
    pub fn listen_for_vm(&self, name: &str, path: impl AsRef<Path>) -> Result<(), Error> {
        let name: Arc<str> = name.into();
        self.accept_at(path.as_ref(), Some(Arc::clone(&name)))?;
        lock(&self.inner.vm_names).insert(name);
        Ok(())
    }

    fn accept_at(&self, path: &Path, name: Option<Arc<str>>) -> Result<(), Error> {
        let listener = Listener::bind(path)?;
        let readiness = reactor::readable(listener.as_fd())
            .map_err(Error::io(format!("waiting at {}", path.display())))?;
        let task = greeting::accept(Arc::clone(&self.inner), listener, readiness, name);
        lock(&self._tasks.0).push(tokio::spawn(task).abort_handle());
        Ok(())
    }

    /// A number for [`vmbus_partition::local::pair`] that no other partition of this root has.
    pub fn next_partition(&self) -> u32 {
        self.inner.next_partition()
    }

    /// Attaches a partition of this process, or one whose link the caller has made. Gives its number.
    pub fn attach(&self, end: Arc<dyn RootEnd>) -> u32 {
        self.inner.attach(end)
    }

    /// Offers a device to all guests that may see it, those that attach later included.
    ///
    /// # Errors
    /// [`Error::InstanceTaken`].
    pub fn offer(&self, provider: impl Provider) -> Result<DeviceHandle, Error> {
        let offer = provider.offer();
        let device = lock(&self.inner.devices).add(offer, Arc::new(provider))?;
        self.inner.command_all(|| Command::Offer(device));
        Ok(DeviceHandle::new(&self.inner, device))
    }

    /// What happens on this bus from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Partitions, devices and channels at this moment.
    pub async fn status(&self) -> Status {
        self.inner.status().await
    }

    /// Other bounds for one partition from now on. What exceeds them already stays; nothing more comes to it. Those
    /// of the attachment itself (memory, mappings, event areas, messages, posts) stay as they were.
    pub fn limit(&self, partition: u32, quotas: Quotas) {
        if let Some(inbox) = lock(&self.inner.partitions).get(&partition) {
            let _ = inbox.send(Command::Limit(Box::new(quotas)));
        }
    }

    /// Takes a partition off the bus, as if it had died.
    pub fn detach(&self, partition: u32) {
        if let Some(inbox) = lock(&self.inner.partitions).get(&partition) {
            let _ = inbox.send(Command::Detach);
        }
    }

    /// Another policy agent decides from now on, also about everything that is in force: what it denies ends (offers
    /// are rescinded, channels closed, partitions let go, each with the reason), limits that it changes hold from now
    /// on, and nothing else notices.
    pub fn set_policy(&self, agent: impl PolicyAgent) {
        self.inner.policy.set_agent(Arc::new(agent));
        self.inner.watch_windows();
        self.inner.command_all(|| Command::Review(None));
    }

    /// Takes back what was allowed. Whoever it concerns is told the `reason`; the policy agent is not asked about it
    /// any more until [`reinstate`](Self::reinstate).
    pub fn revoke(&self, what: Revoke, reason: impl Into<String>) {
        let refusal = Refusal::denied(reason);
        if let Revoke::Channel { partition, relid } = what {
            if let Some(inbox) = lock(&self.inner.partitions).get(&partition) {
                let _ = inbox.send(Command::EndChannel { relid, refusal });
            }
            return;
        }
        self.inner.policy.revoke(Revoked { what: what.clone(), refusal });
        self.inner.command_all(|| Command::Review(Some(what.clone())));
    }

    /// Leaves what was revoked to the policy agent again. `false` if it was not revoked.
    pub fn reinstate(&self, what: &Revoke) -> bool {
        let found = self.inner.policy.reinstate(what);
        self.inner.command_all(|| Command::Review(Some(what.clone())));
        found
    }

    /// Serves until `end` resolves, and then lets the guests' requests in flight finish.
    pub async fn run_until<T>(self, end: impl Future<Output = T>) -> T {
        let output = end.await;
        self._tasks.stop();
        self.inner.close();
        loop {
            let mut left = pin!(self.inner.left.notified());
            left.as_mut().enable();
            if lock(&self.inner.partitions).is_empty() {
                return output;
            }
            left.await;
        }
    }
}

impl Inner {
    pub(crate) fn tell(&self, event: Event) {
        tell(&self.events, event);
    }

    /// A number for a partition that is about to attach.
    pub(crate) fn next_partition(&self) -> u32 {
        self.next_partition.fetch_add(1, Ordering::Relaxed)
    }

    fn attach(self: &Arc<Self>, end: Arc<dyn RootEnd>) -> u32 {
        self.attach_resumed(end, None, None)
    }

    /// Attaches a partition from a socket, whose place is free again when it has left.
    fn attach_seated(self: &Arc<Self>, end: Arc<dyn RootEnd>, seat: Seat) {
        self.attach_resumed(end, None, Some(seat));
    }

    fn attach_resumed(
        self: &Arc<Self>,
        end: Arc<dyn RootEnd>,
        resumed: Option<Box<Resumed>>,
        seat: Option<Seat>,
    ) -> u32 {
        let info = end.info();
        let id = info.id;
        let client = Client { id, name: info.name.as_str().into(), credentials: info.credentials };
        let (commands, inbox) = mpsc::unbounded_channel();
        {
            let mut partitions = lock(&self.partitions);
            if self.closing.load(Ordering::Relaxed) {
                return id;
            }
            partitions.insert(id, commands.clone());
        }
        self.begin_to_watch_windows();
        let sessions = Handle::current();
        let attends = self.control.as_ref().and_then(ControlThread::handle).unwrap_or(&sessions).clone();
        let partition =
            Partition::new(Arc::clone(self), end, client, self.quotas, (commands, inbox), sessions);
        attends.spawn(async move {
            partition.run(resumed).await;
            drop(seat);
        });
        id
    }

    /// Lets all partitions go, and no others come.
    fn close(&self) {
        let partitions = lock(&self.partitions);
        self.closing.store(true, Ordering::Relaxed);
        for inbox in partitions.values() {
            let _ = inbox.send(Command::Detach);
        }
        drop(partitions);
        self.services.end();
    }

    /// A partition that was not to be one is gone.
    fn turned_away(&self, client: &Client) {
        lock(&self.partitions).remove(&client.id);
        self.left.notify_waiters();
    }

    /// A partition's task has ended.
    fn gone(&self, client: &Client, why: String) {
        self.turned_away(client);
        self.tell(Event::Detached { client: client.clone(), why });
        self.command_all(|| Command::AskAgain);
    }

    fn command_all(&self, command: impl Fn() -> Command) {
        for inbox in lock(&self.partitions).values() {
            let _ = inbox.send(command());
        }
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Root")
            .field("partitions", &lock(&self.inner.partitions).len())
            .finish_non_exhaustive()
    }
}
