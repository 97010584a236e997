//! The switch, its ports, and who connects and disconnects them.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use vmbus_channels::Refusal;

use super::addresses::{AddressLimits, Station};
use super::batch::Batch;
use super::forward;
use super::mac::MacAddress;
use super::policy::{self, AskedPort, Occasion, PortPolicy};
use super::port::Port;
use super::settings::{Mirror, PortSettings, SettingsFault};
use super::statistics::{Counters, PortStatistics};
use super::tables::{Link, Member, Tables};

/// A switch. A cheap handle: clones are the same switch, which lives as long as one of them or a connection.
#[derive(Clone)]
pub struct Switch {
    shared: Arc<Shared>,
}

/// A port's place at a switch: what it sends by. Dropped, the port is disconnected.
pub struct Connection {
    shared: Arc<Shared>,
    link: Arc<Link>,
}

/// Number of a port, never used again by its switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

/// Why a port was not connected or its settings were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There are as many ports as the switch may have.
    #[error("the switch has {0} ports, which is the most")]
    Ports(usize),
    /// Another port has an address for itself that this one wants.
    #[error("{address} is the address of port {}", port.0)]
    Address {
        /// The address.
        address: MacAddress,
        /// Whose it is.
        port: PortId,
    },
    /// The settings make no sense.
    #[error(transparent)]
    Settings(#[from] SettingsFault),
    /// There is no such port any more.
    #[error("port {} is gone", .0.0)]
    Gone(PortId),
    /// The policy agent denies it.
    #[error(transparent)]
    Denied(#[from] Refusal),
}

/// One port, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    /// Its number.
    pub id: PortId,
    /// What holds for it.
    pub settings: PortSettings,
    /// What it did.
    pub statistics: PortStatistics,
}

/// A station that the switch knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its address.
    pub address: MacAddress,
    /// Its VLAN, 0 without.
    pub vlan: u16,
    /// The port behind which it is.
    pub port: PortId,
    /// How long ago it last sent, within a sixteenth of the time after which it is forgotten. `None`: the port has it
    /// for itself, and it is never forgotten.
    pub idle: Option<Duration>,
}

/// Tells a switch the time, from any point on. It never goes back.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Switch {
    /// A switch with the usual bounds and the system's clock.
    pub fn new(name: impl Into<String>) -> Self {
        Self::builder(name).build()
    }

    /// A switch with other bounds or another clock.
    pub fn builder(name: impl Into<String>) -> SwitchBuilder {
        SwitchBuilder {
            name: name.into(),
            clock: Clock::system(),
            ageing: Duration::from_secs(300),
            addresses: 8192,
            ports: 1024,
            policy: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Connects a port. It may be delivered to before this returns.
    pub fn connect(&self, port: impl Port, settings: PortSettings) -> Result<Connection, ConnectError> {
        let settings = self.shared.decide(Occasion::Connect, settings)?;
        let id = PortId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let mut tables = self.shared.write();
        let slot = tables.ports.free_slot();
        if slot >= self.shared.most_ports {
            return Err(ConnectError::Ports(self.shared.most_ports));
        }
        let link = Link::new(id, slot, port, Arc::clone(&self.shared.departed));
        let admitted = tables.admit(&link, settings);
        // A port that is refused goes, and may use the switch when it does.
        drop(tables);
        admitted?;
        Ok(Connection { shared: Arc::clone(&self.shared), link })
    }

    /// All ports, in no order that means anything.
    pub fn ports(&self) -> Vec<PortState> {
        let ports = Arc::clone(&self.shared.read().ports);
        ports.members.iter().flatten().map(Member::state).collect()
    }

    /// Shows the frames of somebody's port to mirrors' destinations, or no longer; all else about the port stays as it
    /// is. For whoever looks into a network that others have made.
    pub fn mirror(&self, port: PortId, mirror: Mirror) -> Result<(), ConnectError> {
        let now = self.shared.read().ports.find(port).map(|member| Arc::clone(&member.settings));
        let settings = PortSettings { mirror, ..PortSettings::clone(&*now.ok_or(ConnectError::Gone(port))?) };
        let settings = self.shared.decide(Occasion::Reconfigure, settings)?;
        self.shared.write().mirror(port, settings.mirror)
    }

    /// All stations that are known at present.
    pub fn addresses(&self) -> Vec<Address> {
        let now = self.shared.now();
        let tables = self.shared.read();
        let address = |(station, slot, seen): (Station, usize, Option<u64>)| {
            let member = tables.ports.member(slot)?;
            Some(Address {
                address: MacAddress::from_u64(station.address()),
                vlan: station.vlan(),
                port: member.link.id,
                idle: seen.map(|seen| Duration::from_nanos(now.saturating_sub(seen))),
            })
        };
        tables.addresses.iter(now).filter_map(address).collect()
    }

    /// What all ports did together, those included that are gone.
    pub fn statistics(&self) -> PortStatistics {
        // A port that is dropped meanwhile may be missing or be in it twice; nobody can tell when none is.
        let mut sum = self.shared.departed.read();
        self.ports().iter().for_each(|port| sum += port.statistics);
        sum
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Switch").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// Makes a [`Switch`].
#[derive(Clone)]
#[must_use]
pub struct SwitchBuilder {
    name: String,
    clock: Clock,
    ageing: Duration,
    addresses: usize,
    ports: usize,
    policy: Option<Arc<dyn PortPolicy>>,
}

impl SwitchBuilder {
    /// Who tells it the time.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How long a station is known after it last sent; 5 minutes without this.
    pub fn ageing(mut self, ageing: Duration) -> Self {
        self.ageing = ageing;
        self
    }

    /// How many stations it knows at most; 8,192 without this. Frames to others are flooded.
    pub fn addresses(mut self, most: usize) -> Self {
        self.addresses = most;
        self
    }

    /// How many ports it has at most; 1,024 without this.
    pub fn ports(mut self, most: usize) -> Self {
        self.ports = most;
        self
    }

    /// Who decides about ports; without this all are allowed.
    pub fn policy(mut self, agent: impl PortPolicy) -> Self {
        self.policy = Some(Arc::new(agent));
        self
    }

    /// The switch.
    pub fn build(self) -> Switch {
        let limits = AddressLimits { ageing: nanoseconds(self.ageing), most: self.addresses };
        let shared = Shared {
            name: self.name,
            clock: self.clock,
            policy: self.policy,
            most_ports: self.ports,
            next_id: AtomicU32::new(1),
            tables: RwLock::new(Tables::new(limits)),
            departed: Arc::default(),
        };
        Switch { shared: Arc::new(shared) }
    }
}

impl fmt::Debug for SwitchBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SwitchBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Connection {
    /// Sends what is in the batch, in order, and empties it. When this returns, every receiver has taken its frames or
    /// they were dropped and counted. May be called by several threads at a time, each with a batch of its own.
    pub fn send(&self, batch: &mut Batch) {
        self.send_counting(batch);
    }

    /// The same. Gives how many copies that made, segments of large frames included: how much work it was.
    pub(in crate::network) fn send_counting(&self, batch: &mut Batch) -> u64 {
        forward::send(&self.shared, &self.link, batch)
    }

    /// Disconnects the port, if that has not happened: it is sent to no more, what it sends is dropped, and its place and
    /// addresses are free for others, however long the connection is kept.
    pub fn disconnect(&self) {
        self.link.closed.store(true, Ordering::Release);
        self.shared.write().dismiss(&self.link);
    }

    /// The port's number.
    pub fn id(&self) -> PortId {
        self.link.id
    }

    /// The switch.
    pub fn switch(&self) -> Switch {
        Switch { shared: Arc::clone(&self.shared) }
    }

    /// What the port did since it was connected.
    pub fn statistics(&self) -> PortStatistics {
        self.link.counters.read()
    }

    /// What holds for the port.
    pub fn settings(&self) -> PortSettings {
        let tables = self.shared.read();
        tables
            .member_of(&self.link)
            .map_or_else(PortSettings::default, |member| PortSettings::clone(&member.settings))
    }

    /// Treats the port so from now on, and forgets who is behind it. Batches that are under way are still treated as
    /// before. Refused, nothing has changed.
    pub fn reconfigure(&self, settings: PortSettings) -> Result<(), ConnectError> {
        let settings = self.shared.decide(Occasion::Reconfigure, settings)?;
        let mut tables = self.shared.write();
        if tables.member_of(&self.link).is_none() {
            return Err(ConnectError::Gone(self.link.id));
        }
        tables.admit(&self.link, settings)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.disconnect();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("id", &self.link.id).finish_non_exhaustive()
    }
}

impl Clock {
    /// The system's, which stands still while the machine sleeps.
    pub fn system() -> Self {
        let start = Instant::now();
        Self::new(move || start.elapsed())
    }

    /// Whatever `now` says.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Clock").field(&(self.0)()).finish()
    }
}

/// What the handles of a switch share.
pub(super) struct Shared {
    name: String,
    clock: Clock,
    policy: Option<Arc<dyn PortPolicy>>,
    most_ports: usize,
    next_id: AtomicU32,
    /// Never held while a port is called.
    tables: RwLock<Tables>,
    departed: Arc<Counters>,
}

impl Shared {
    pub(super) fn now(&self) -> u64 {
        nanoseconds((self.clock.0)())
    }

    /// Asks the agent, and looks whether what comes of it makes sense.
    fn decide(&self, occasion: Occasion, settings: PortSettings) -> Result<PortSettings, ConnectError> {
        let settings = match &self.policy {
            Some(agent) => {
                policy::ask(&**agent, &AskedPort { switch: &self.name, occasion, settings: &settings })?
            }
            None => settings,
        };
        settings.fault().map_or(Ok(settings), |fault| Err(fault.into()))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time in nanoseconds, which a `u64` holds for five centuries.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
