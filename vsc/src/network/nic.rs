//! A NIC for tasks.

use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::oneshot;
use vmbus_channels::{Channel, ChannelError, Device, Guest, OpenOptions, Spin};
use vmbus_core::Guid;
use vmbus_core::network::ndis::{Object, PacketFilter, RssFlags, RssHashInfo, RssParameters, header_of};
use vmbus_core::network::rndis::Status;
use vmbus_core::network::{CLASS, Oid};
use zerocopy::IntoBytes;

use super::engine::{CONTROL_SLOT, Engine, NicStatistics};
use super::error::NicError;
use super::known::{Known, Link, lock};
use super::lane::Lane;
use super::options::{NicInfo, NicOptions};
use super::queue::NicQueue;
use super::receive::ReceivedFrame;
use super::transmit::TransmitInfo;

/// Longest value that is asked with or set, in bytes: the message has a head.
const LONGEST_VALUE: usize = CONTROL_SLOT - 64;

/// An open network device. Clones are handles to the same one; it closes with the last.
///
/// Frames are Ethernet frames without FCS. Each method may be called by several tasks at a time; whoever waits deals with
/// whatever comes meanwhile, so that a NIC needs no task of its own. Nothing is done while nobody waits: link changes are
/// seen, and completions taken, by those who send, receive or ask.
#[derive(Clone, Debug)]
pub struct Nic {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    guest: Guest,
    instance: Guid,
    current: Mutex<Current>,
    /// One change of all at a time.
    changing: tokio::sync::Mutex<()>,
}

/// How the device is open at present, or was last.
#[derive(Debug)]
struct Current {
    known: Arc<Known>,
    info: NicInfo,
    session: Option<Arc<Session>>,
    /// Ends when nobody uses the session any more.
    over: oneshot::Receiver<Never>,
}

/// What is never sent.
#[derive(Debug)]
enum Never {}

/// One opening of the device.
#[derive(Debug)]
struct Session {
    known: Arc<Known>,
    info: NicInfo,
    more: OnceLock<Vec<Lane>>,
    lane: Lane,
    /// Dropped last.
    _over: oneshot::Sender<Never>,
}

impl Nic {
    /// Opens the guest's first network device.
    ///
    /// # Errors
    /// As [`open_device`](Self::open_device).
    pub async fn open(guest: &Guest) -> Result<Self, NicError> {
        Self::open_device(guest, Device::class(CLASS), NicOptions::new()).await
    }

    /// Opens one particular network device.
    ///
    /// # Errors
    /// [`NicError::Open`]; [`NicError::NoCommonVersion`], [`NicError::Refused`], [`NicError::Object`] by the provider;
    /// [`NicError::Answer`], [`NicError::Division`] and the like: its fault.
    pub async fn open_device(guest: &Guest, device: Device, options: NicOptions) -> Result<Self, NicError> {
        let instance = guest.offered(device).await?.instance;
        let current = Session::open(guest, instance, options, Vec::new()).await?;
        let (guest, current) = (guest.clone(), Mutex::new(current));
        let inner = Inner { guest, instance, current, changing: tokio::sync::Mutex::new(()) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the NIC is.
    pub fn info(&self) -> NicInfo {
        lock(&self.inner.current).info
    }

    /// What the provider says of the link at present.
    pub fn link(&self) -> Link {
        lock(&self.inner.current).known.link()
    }

    /// Returns when the link is not what it was when it was `seen`.
    ///
    /// # Errors
    /// [`NicError::Channel`].
    pub async fn link_changed(&self, seen: Link) -> Result<Link, NicError> {
        let session = self.session()?;
        let known = &session.known;
        session.lane.until(|_| Ok(Some(known.link()).filter(|now| *now != seen))).await
    }

    /// What has passed since it was opened, or reopened, over all queues; nothing once it is closed.
    pub fn statistics(&self) -> NicStatistics {
        let sum = NicStatistics::default();
        let Ok(session) = self.session() else { return sum };
        session.lanes().fold(sum, |sum, lane| sum.plus(&lane.engine().statistics()))
    }

    /// How long the NIC looks for what comes before it sleeps.
    pub fn set_spin(&self, spin: Spin) {
        if let Ok(session) = self.session() {
            session.lanes().for_each(|lane| lane.channel().set_spin(spin));
        }
    }

    /// Sends a frame. Returns when the provider can see it; waits while as many are on their way as there is memory for.
    ///
    /// # Errors
    /// [`NicError::FrameLength`], [`NicError::NotOffered`]: the caller's fault. [`NicError::Channel`]: the bus is gone.
    pub async fn send(&self, frame: &[u8], info: TransmitInfo) -> Result<(), NicError> {
        self.session()?.lane.send(&[(frame, info)]).await.map(drop)
    }

    /// Sends frames, several to a packet, with one signal where that is enough.
    ///
    /// # Errors
    /// As [`send`](Self::send). Frames before the one that is at fault are sent.
    pub async fn send_batch(&self, frames: &[(&[u8], TransmitInfo)]) -> Result<(), NicError> {
        let session = self.session()?;
        let mut rest = frames;
        while !rest.is_empty() {
            rest = &rest[session.lane.send(rest).await?..];
        }
        Ok(())
    }

    /// Sends a frame if there is room for it now; `false` if not.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_send(&self, frame: &[u8], info: TransmitInfo) -> Result<bool, NicError> {
        self.session()?.lane.try_send(frame, &info)
    }

    /// Adds the frames that have come to `into`, after at least one has; gives how many. Frames that nobody takes for long
    /// are dropped, the newest first, and counted ([`NicStatistics::overrun`]).
    ///
    /// # Errors
    /// [`NicError::Channel`]: the bus is gone.
    pub async fn recv(&self, into: &mut Vec<ReceivedFrame>) -> Result<usize, NicError> {
        self.session()?.lane.recv(into).await
    }

    /// Adds the frames that have come to `into`, without waiting; gives how many.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&self, into: &mut Vec<ReceivedFrame>) -> Result<usize, NicError> {
        let session = self.session()?;
        session.lane.poll()?;
        let mut engine = session.lane.engine();
        let count = engine.inbox().len();
        into.extend(engine.inbox().drain(..));
        Ok(count)
    }

    /// The value of an object. `with` goes along with the question, where the object wants that.
    ///
    /// # Errors
    /// [`NicError::Object`]: the provider does not know it. [`NicError::Interrupted`], [`NicError::Channel`].
    pub async fn query(&self, oid: Oid, with: &[u8]) -> Result<Vec<u8>, NicError> {
        check_value(with)?;
        let ended = self.session()?.lane.request(|conversation| conversation.query(oid, with)).await?;
        match ended.status {
            Status::SUCCESS => Ok(ended.data),
            status => Err(NicError::Object { oid, status }),
        }
    }

    /// Sets an object. A device that forgets it, in a reset or with its root, is told again.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn set(&self, oid: Oid, value: &[u8]) -> Result<(), NicError> {
        check_value(value)?;
        self.session()?.set(oid, value).await
    }

    /// Says which frames are wanted from now on; empty for none.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_filter(&self, filter: PacketFilter) -> Result<(), NicError> {
        self.set(Oid::GEN_CURRENT_PACKET_FILTER, &filter.bits().to_le_bytes()).await
    }

    /// Says of which groups frames are wanted with [`PacketFilter::MULTICAST`].
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_groups(&self, groups: &[[u8; 6]]) -> Result<(), NicError> {
        self.set(Oid::ETHERNET_MULTICAST_LIST, groups.as_bytes()).await
    }

    /// Says which queue gets which flows: `table` has a queue for each value of the hash's low bits, a power of 2 up to
    /// [`NicInfo::rss_entries`], and `key` is that of the hash function, 40 bytes.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_rss(&self, hash: RssHashInfo, table: &[u32], key: &[u8; 40]) -> Result<(), NicError> {
        const HEAD: u32 = 40;
        let table_bytes = u16::try_from(4 * table.len()).map_err(|_| too_long(4 * table.len()))?;
        let head = RssParameters {
            header: header_of::<RssParameters>(),
            flags: RssFlags::BASE_CPU_UNCHANGED.bits().into(),
            hash_info: hash.bits().into(),
            table_size: table_bytes.into(),
            table_offset: HEAD.into(),
            key_size: 40.into(),
            key_offset: (HEAD + u32::from(table_bytes)).into(),
            ..RssParameters::default()
        };
        let mut value = head.as_bytes().to_vec();
        table.iter().for_each(|queue| value.extend_from_slice(&queue.to_le_bytes()));
        value.extend_from_slice(key);
        debug_assert_eq!(RssParameters::HEADER.2, 40);
        self.set(Oid::GEN_RECEIVE_SCALE_PARAMETERS, &value).await
    }

    /// Asks whether the provider is there; returns when it has said so.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn keep_alive(&self) -> Result<(), NicError> {
        let ended = self.session()?.lane.request(|conversation| conversation.keep_alive()).await?;
        match ended.status {
            Status::SUCCESS => Ok(()),
            status => Err(NicError::Object { oid: Oid(0), status }),
        }
    }

    /// Resets the device. What was set is set again.
    ///
    /// # Errors
    /// [`NicError::Reset`]; as [`query`](Self::query).
    pub async fn reset(&self) -> Result<(), NicError> {
        let ended = self.session()?.lane.request(|conversation| conversation.reset()).await?;
        match ended.status {
            Status::SUCCESS => Ok(()),
            status => Err(NicError::Reset(status)),
        }
    }

    /// Opens further queues, as far as the provider has them and each finds memory to send from, until there are `queues`
    /// in all; gives how many there are then. Can be done once. Which flows come by which queue is for
    /// [`set_rss`](Self::set_rss) to say; [`into_queues`](Self::into_queues) gives a queue to each of several threads.
    ///
    /// # Errors
    /// [`NicError::Refused`], [`NicError::Open`], [`NicError::Channel`]: the NIC goes on with those it has.
    pub async fn widen(&self, queues: u16) -> Result<usize, NicError> {
        let _changing = self.inner.changing.lock().await;
        let session = self.session()?;
        session.widen(&self.inner.guest, self.inner.instance, queues).await?;
        Ok(session.lanes().count())
    }

    /// Closes the NIC and opens it anew with these options, as for another MTU. Frames on their way may be lost, those
    /// that were received stay readable, and what was set is set again. Who waits on another handle meanwhile is told that
    /// the channel is closed. A device that was withdrawn, or whose root is gone, is waited for.
    ///
    /// # Errors
    /// As [`open_device`](Self::open_device): the NIC is closed then, and may be reopened.
    pub async fn reopen(&self, options: NicOptions) -> Result<(), NicError> {
        let _changing = self.inner.changing.lock().await;
        self.end().await;
        let filter = Oid::GEN_CURRENT_PACKET_FILTER;
        let mut settings = lock(&self.inner.current).known.settings();
        settings.retain(|(oid, _)| *oid != filter && *oid != Oid::GEN_RECEIVE_SCALE_PARAMETERS);
        self.inner.guest.wait_for(Device::instance(self.inner.instance)).await?;
        let current = Session::open(&self.inner.guest, self.inner.instance, options, settings).await?;
        *lock(&self.inner.current) = current;
        Ok(())
    }

    /// Changes the MTU, to 68 to 65521 bytes ([`reopen`](Self::reopen)). Gives the one that the provider takes.
    ///
    /// # Errors
    /// As [`reopen`](Self::reopen).
    pub async fn set_mtu(&self, mtu: u32) -> Result<u32, NicError> {
        let options = {
            let current = lock(&self.inner.current);
            let options = current.known.options.clone().mtu(mtu);
            match current.known.filter() {
                Some(filter) => options.filter(filter),
                None => options,
            }
        };
        self.reopen(options).await?;
        Ok(self.info().mtu)
    }

    /// Closes the NIC in order: the provider is told, and asked for the buffers. Who waits on another handle is told that
    /// the channel is closed.
    pub async fn close(self) {
        let _changing = self.inner.changing.lock().await;
        self.end().await;
    }

    /// Ends the session, and returns when nobody uses it any more.
    async fn end(&self) {
        let Ok(session) = self.session() else { return };
        session.halt().await;
        session.known.end();
        drop(session);
        let never = oneshot::channel().1;
        let over = {
            let mut current = lock(&self.inner.current);
            current.session = None;
            std::mem::replace(&mut current.over, never)
        };
        let Err(_) = over.await;
    }

    /// A queue for a thread without a runtime: of the NIC's channels the first. `None` if there are other handles, or
    /// further queues.
    pub fn into_queue(self) -> Option<NicQueue> {
        let mut queues = self.into_queues();
        let first = queues.pop()?;
        queues.is_empty().then_some(first)
    }

    /// All queues, each for a thread without a runtime; the first one speaks of the device. Empty if there are other
    /// handles.
    pub fn into_queues(self) -> Vec<NicQueue> {
        let Some(inner) = Arc::into_inner(self.inner) else { return Vec::new() };
        let current = inner.current.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(session) = current.session.and_then(Arc::into_inner) else { return Vec::new() };
        let (known, info) = (session.known, session.info);
        let (channel, engine) = session.lane.into_parts();
        let first = NicQueue::new(channel, engine, &known, info, inner.guest);
        let more = session.more.into_inner().unwrap_or_default();
        let more: Vec<NicQueue> = more
            .into_iter()
            .map(|lane| {
                let (channel, engine) = lane.into_parts();
                first.beside(channel, engine)
            })
            .collect();
        std::iter::once(first).chain(more).collect()
    }

    fn session(&self) -> Result<Arc<Session>, NicError> {
        lock(&self.inner.current).session.clone().ok_or(NicError::Channel(ChannelError::Closed))
    }
}

impl Session {
    async fn open(
        guest: &Guest,
        instance: Guid,
        options: NicOptions,
        settings: Vec<(Oid, Vec<u8>)>,
    ) -> Result<Current, NicError> {
        loop {
            match Self::begin(guest, instance, options.clone(), &settings).await {
                // The root died in the middle of it. Without another one in time it cannot be opened either.
                Err(error) if error.is_interruption() && guest.outlives_root() => {}
                begun => return begun,
            }
        }
    }

    async fn begin(
        guest: &Guest,
        instance: Guid,
        options: NicOptions,
        settings: &[(Oid, Vec<u8>)],
    ) -> Result<Current, NicError> {
        let known = Known::new(guest, options)?;
        let opening = open_options(&known, guest);
        let channel = guest.open_with(Device::instance(instance), opening).await?;
        let mut engine = known.bring_up(&channel).await?;
        engine.transmit(0, 1);
        let (_, info) = known.agreed().ok_or(NicError::Answer("the start"))?;
        let lane = Lane::new(channel, engine, &known);
        let (sender, over) = oneshot::channel();
        let session = Self { known: Arc::clone(&known), info, more: OnceLock::new(), lane, _over: sender };
        for (oid, value) in settings {
            session.set(*oid, value).await?;
        }
        let filter = session.known.options.filter.bits().to_le_bytes();
        session.set(Oid::GEN_CURRENT_PACKET_FILTER, &filter).await?;
        Ok(Current { known, info, session: Some(Arc::new(session)), over })
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.lane).chain(self.more.get().into_iter().flatten())
    }

    async fn set(&self, oid: Oid, value: &[u8]) -> Result<(), NicError> {
        let ended = loop {
            match self.lane.request(|conversation| conversation.set(oid, value)).await {
                // Another root is told as well.
                Err(NicError::Interrupted) => {}
                ended => break ended?,
            }
        };
        match ended.status {
            Status::SUCCESS => {
                self.known.keep(oid, value);
                Ok(())
            }
            status => Err(NicError::Object { oid, status }),
        }
    }

    async fn widen(&self, guest: &Guest, instance: Guid, queues: u16) -> Result<(), NicError> {
        let most = u16::try_from(self.info.queues).unwrap_or(u16::MAX);
        let room = u16::try_from(self.lane.engine().most_lanes()).unwrap_or(u16::MAX);
        let wanted = queues.min(most).min(room).saturating_sub(1);
        if wanted == 0 || self.more.get().is_some() {
            return Ok(());
        }
        let count = self.ask_for_sub_channels(wanted).await?;
        self.known.widened(count);
        let parts = usize::from(count) + 1;
        // Those that others are to have must not be on their way.
        self.lane.until(|engine| Ok(engine.share_sections(0, parts).then_some(()))).await?;
        let mut more = Vec::with_capacity(parts);
        for index in 1..=count {
            let device = Device::instance(instance).subchannel(index);
            tokio::select! {
                offered = guest.wait_for(device) => offered?,
                // With the primary channel they all go.
                () = self.lane.channel().closed() => return Err(ChannelError::Closed.into()),
            };
            // At another root the primary channel's client asks for them, and they have nothing to say themselves.
            let options = OpenOptions::new()
                .ring_pages(self.known.options.ring_pages)
                .on_resume(async |_: Channel| Ok::<_, NicError>(()));
            let channel = guest.open_with(device, options).await?;
            channel.answer_abandoned_with(super::known::COMPLETED.to_vec());
            let mut engine = Engine::new(&self.known, guest.share(1)?, None);
            engine.transmit(usize::from(index), parts);
            more.push(Lane::new(channel, engine, &self.known));
        }
        let _ = self.more.set(more);
        Ok(())
    }

    async fn ask_for_sub_channels(&self, wanted: u16) -> Result<u16, NicError> {
        loop {
            let reign = self.known.pieces.reign();
            let mut asked = false;
            let answer = self
                .lane
                .until(|engine| {
                    if !asked {
                        asked = engine.ask_for_sub_channels(wanted.into());
                        if !asked {
                            return Err(NicError::NotOffered("further queues"));
                        }
                    }
                    engine.flush(|requests| self.lane.channel().try_submit(requests))?;
                    let interrupted = self.known.pieces.reign() != reign;
                    let answer = engine.conversation().and_then(|it| it.take_sub_channels());
                    Ok(answer.map(Some).or(interrupted.then_some(None)))
                })
                .await?;
            match answer {
                Some(Ok(count)) => return Ok(u16::try_from(count).unwrap_or(u16::MAX).min(wanted)),
                Some(Err(status)) => return Err(NicError::Refused { step: "further queues", status }),
                // Another root is asked as well.
                None => {
                    if let Some(conversation) = self.lane.engine().conversation() {
                        conversation.interrupt_sub_channels();
                    }
                }
            }
        }
    }

    /// Tells the provider that it is over, if it still listens.
    async fn halt(&self) {
        let told = self.lane.until(|engine| {
            if let Some(conversation) = engine.conversation() {
                conversation.halt();
            }
            engine.pump();
            engine.flush(|requests| self.lane.channel().try_submit(requests))?;
            Ok(engine.is_settled().then_some(()))
        });
        // A provider that does not answer is not waited for: the channel closes all the same.
        let _ = tokio::time::timeout(HALT, told).await;
    }
}

/// How long a provider has to answer that it is over.
const HALT: std::time::Duration = std::time::Duration::from_secs(1);

/// How the primary channel is opened.
fn open_options(known: &Arc<Known>, guest: &Guest) -> OpenOptions {
    let options = OpenOptions::new().ring_pages(known.options.ring_pages);
    if !guest.outlives_root() {
        return options;
    }
    let known = Arc::clone(known);
    options.on_resume(move |channel| {
        let known = Arc::clone(&known);
        async move { known.greet(&channel).await }
    })
}

pub(super) fn check_value(value: &[u8]) -> Result<(), NicError> {
    if value.len() > LONGEST_VALUE { Err(too_long(value.len())) } else { Ok(()) }
}

fn too_long(len: usize) -> NicError {
    NicError::Channel(ChannelError::TooLarge { len, ring: LONGEST_VALUE })
}
