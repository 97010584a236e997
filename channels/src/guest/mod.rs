//! A guest of a bus: a process that attaches to a root, sees devices and opens them.

mod hvsock;
mod offers;
mod open_options;
mod policy;
mod resume;
mod task;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use vmbus_core::client::OfferInfo;
use vmbus_core::message::UserDefined;
use vmbus_core::{Guid, Version};
use vmbus_partition::{GuestEnd, GuestOptions, LinkError};

use self::offers::Offers;
pub use self::open_options::OpenOptions;
use self::policy::{GuestPolicy, OwnPolicy};
pub use self::resume::Resume;
use self::resume::{Rejoin, at_path};
use self::task::{Command, Hvsock, Start, Survival, Task};
use crate::buffer::Buffer;
use crate::channel::Channel;
use crate::error::{Error, Refusal};
use crate::hvsock::{HvLimits, Services};
use crate::policy::Question;
use crate::spin::Spin;
use crate::transfer::{Parcel, TransferMode};

/// The sharing domain of memory that only the root sees beside this guest.
pub(crate) const ROOT_DOMAIN: u32 = 0;

/// Which device to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    class: Option<Guid>,
    instance: Option<Guid>,
    subchannel_index: u16,
}

impl Device {
    /// The first device of a class.
    pub const fn class(class: Guid) -> Self {
        Self { class: Some(class), instance: None, subchannel_index: 0 }
    }

    /// One particular device.
    pub const fn instance(instance: Guid) -> Self {
        Self { class: None, instance: Some(instance), subchannel_index: 0 }
    }

    /// A sub-channel of the device instead of its primary channel.
    pub const fn subchannel(mut self, index: u16) -> Self {
        self.subchannel_index = index;
        self
    }

    fn fits(&self, offered: &OfferedDevice) -> bool {
        self.class.is_none_or(|class| class == offered.class)
            && self.instance.is_none_or(|instance| instance == offered.instance)
            && self.subchannel_index == offered.subchannel_index
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.class, self.instance) {
            (_, Some(instance)) => write!(formatter, "{instance}"),
            (Some(class), None) => write!(formatter, "of class {class}"),
            (None, None) => formatter.write_str("at all"),
        }
    }
}

/// A device that the root offers to this guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedDevice {
    /// Channel id.
    pub relid: u32,
    /// Class.
    pub class: Guid,
    /// Instance; the same for the sub-channels of a device.
    pub instance: Guid,
    /// 0 for the primary channel.
    pub subchannel_index: u16,
    /// Meaning by device protocol.
    pub user_defined: UserDefined,
}

impl OfferedDevice {
    fn of(offer: &OfferInfo) -> Self {
        Self {
            relid: offer.relid,
            class: offer.class,
            instance: offer.instance,
            subchannel_index: offer.subchannel_index,
            user_defined: offer.user_defined,
        }
    }
}

/// Settings of a guest.
#[derive(Clone, Debug)]
pub struct GuestBuilder {
    options: GuestOptions,
    resume: Resume,
    versions: RangeInclusive<Version>,
    spin: Spin,
    ring_pages: usize,
    policy: GuestPolicy,
    hvsock: HvLimits,
}

impl GuestBuilder {
    /// The partition's name, up to 64 bytes; "guest-" and the process id without this.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// Memory to share with the root for rings and buffers, in bytes; 64 MiB without this.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.options.memory = bytes;
        self
    }

    /// Protocol versions to try, highest first; all without this.
    pub fn versions(mut self, versions: RangeInclusive<Version>) -> Self {
        self.versions = versions;
        self
    }

    /// How long channels look for work before they sleep.
    pub fn spin(mut self, spin: Spin) -> Self {
        self.spin = spin;
        self
    }

    /// Data pages of each ring of a channel; 16 (64 KiB) without this.
    pub fn ring_pages(mut self, pages: usize) -> Self {
        self.ring_pages = pages.max(1);
        self
    }

    /// Bounds of stream sockets.
    pub fn hvsock(mut self, limits: HvLimits) -> Self {
        self.hvsock = limits;
        self
    }

    /// Whether the guest outlives its root; it ends with it without this.
    pub fn resume(mut self, resume: Resume) -> Self {
        self.resume = resume;
        self
    }

    /// Attaches to the root that listens at `path` and agrees on a version.
    ///
    /// # Errors
    /// [`Error::Link`] if nobody listens there or the root breaks the attach protocol, [`Error::Refused`],
    /// [`Error::NoCommonVersion`].
    pub async fn connect(self, path: impl AsRef<Path>) -> Result<Guest, Error> {
        let (path, options) = (path.as_ref().to_owned(), self.options.clone());
        let link = tokio::task::spawn_blocking({
            let (path, options) = (path.clone(), options.clone());
            move || vmbus_partition::attach::connect(path, &options)
        });
        let link = link.await.map_err(|_| Error::Disconnected)?.map_err(|error| match error {
            LinkError::Refused { reason } => Error::Refused(Refusal::new(reason)),
            error => error.into(),
        })?;
        let link = Arc::new(link);
        let rejoin = at_path(path, options, Arc::clone(&link));
        self.join(link, Some(rejoin)).await
    }

    /// Joins by a link that the caller has made: a partition of this process. Such a guest ends with its root.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn attach(self, end: Arc<dyn GuestEnd>) -> Result<Guest, Error> {
        self.join(end, None).await
    }

    /// As [`attach`](Self::attach), for a guest that outlives its root: `again` makes a link to another one, with the
    /// same memory, or tells that there is none yet ([`vmbus_partition::local::pair_again`]).
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn attach_again_by(
        self,
        end: Arc<dyn GuestEnd>,
        mut again: impl FnMut() -> Result<Arc<dyn GuestEnd>, LinkError> + Send + 'static,
    ) -> Result<Guest, Error> {
        let rejoin: Rejoin = Box::new(move |_| Box::pin(std::future::ready(again())));
        self.join(end, Some(rejoin)).await
    }

    async fn join(self, end: Arc<dyn GuestEnd>, rejoin: Option<Rejoin>) -> Result<Guest, Error> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (joined, result) = oneshot::channel();
        let (offers_sender, offers) = watch::channel(Offers::default());
        let services = Services::new();
        let link = Arc::new(Link(Mutex::new((Arc::clone(&end), Version::OLDEST))));
        let survival = self.resume.within.zip(rejoin).map(|(within, rejoin)| Survival { within, rejoin });
        let outlives_root = survival.is_some();
        let policy = self.policy.start(&*end).map(Arc::new);
        let start = Start {
            end,
            spin: self.spin,
            policy: policy.clone(),
            offers: offers_sender,
            hvsock: Hvsock::new(Arc::clone(&services), &self.hvsock, self.ring_pages),
            link: Arc::clone(&link),
            survival,
        };
        let task = Task::new(start, (commands.clone(), inbox));
        tokio::spawn(task.run(self.versions, joined));
        result.await.map_err(|_| Error::Disconnected)??;
        Ok(Guest {
            inner: Arc::new(Inner {
                link,
                policy,
                outlives_root,
                commands,
                offers,
                ring_pages: self.ring_pages,
                services,
                hvsock: self.hvsock,
                connects: Semaphore::new(hvsock::CONNECTS),
            }),
        })
    }
}

/// The link of a guest, which may have another root than before.
struct Link(Mutex<(Arc<dyn GuestEnd>, Version)>);

impl Link {
    fn end(&self) -> Arc<dyn GuestEnd> {
        Arc::clone(&lock(&self.0).0)
    }

    fn version(&self) -> Version {
        lock(&self.0).1
    }

    fn set_end(&self, end: Arc<dyn GuestEnd>) {
        lock(&self.0).0 = end;
    }

    fn set_version(&self, version: Version) {
        lock(&self.0).1 = version;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest that is attached. Clones are handles to the same one; it leaves the bus with the last.
#[derive(Clone)]
pub struct Guest {
    inner: Arc<Inner>,
}

struct Inner {
    link: Arc<Link>,
    policy: Option<Arc<OwnPolicy>>,
    commands: mpsc::UnboundedSender<Command>,
    offers: watch::Receiver<Offers>,
    ring_pages: usize,
    services: Arc<Services>,
    hvsock: HvLimits,
    /// Turns for connects.
    connects: Semaphore,
    outlives_root: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Leave);
    }
}

impl Guest {
    /// Settings for a guest.
    pub fn builder() -> GuestBuilder {
        GuestBuilder {
            options: GuestOptions::named(format!("guest-{}", std::process::id())),
            resume: Resume::never(),
            versions: Version::OLDEST..=Version::NEWEST,
            spin: Spin::default(),
            ring_pages: 16,
            policy: GuestPolicy::default(),
            hvsock: HvLimits::default(),
        }
    }

    /// Attaches with default settings.
    ///
    /// # Errors
    /// As [`GuestBuilder::connect`].
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder().connect(path).await
    }

    /// The protocol version that was agreed; with another root it may be another.
    pub fn version(&self) -> Version {
        self.inner.link.version()
    }

    /// What the root offers at this moment.
    pub fn offers(&self) -> Vec<OfferedDevice> {
        self.inner.offers.borrow().list()
    }

    /// What the root offers, once all that it offered when this guest joined has arrived.
    ///
    /// # Errors
    /// [`Error::Disconnected`].
    pub async fn all_offers(&self) -> Result<Vec<OfferedDevice>, Error> {
        let mut offers = self.inner.offers.clone();
        let now = offers.wait_for(|now| now.complete || now.ended).await.map_err(|_| Error::Disconnected)?;
        if now.ended { Err(Error::Disconnected) } else { Ok(now.list()) }
    }

    /// Waits until `device` is offered.
    ///
    /// # Errors
    /// [`Error::Disconnected`].
    pub async fn wait_for(&self, device: Device) -> Result<OfferedDevice, Error> {
        self.find(device, false).await
    }

    /// The offer of `device`, once all that was offered when this guest joined has arrived.
    ///
    /// # Errors
    /// [`Error::NotOffered`], [`Error::Disconnected`].
    pub async fn offered(&self, device: Device) -> Result<OfferedDevice, Error> {
        self.find(device, true).await
    }

    /// Waits for what was offered before this guest joined; then `device` is there, or it is not.
    async fn find(&self, device: Device, give_up: bool) -> Result<OfferedDevice, Error> {
        let mut offers = self.inner.offers.clone();
        let fitting = |offers: &Offers| offers.find(device).cloned();
        let settled =
            |offers: &Offers| offers.find(device).is_some() || offers.ended || (give_up && offers.complete);
        let now = offers.wait_for(|now| settled(now)).await.map_err(|_| Error::Disconnected)?;
        match fitting(&now) {
            Some(offered) => Ok(offered),
            None if now.ended => Err(Error::Disconnected),
            None => Err(Error::NotOffered(device.to_string())),
        }
    }

    /// Opens a device that is offered.
    ///
    /// # Errors
    /// [`Error::NotOffered`]; [`Error::Refused`] with the root's or the device's reason; [`Error::Rescinded`];
    /// [`Error::OutOfSharedMemory`]; [`Error::Disconnected`].
    pub async fn open(&self, device: Device) -> Result<Channel, Error> {
        self.open_with(device, OpenOptions::new()).await
    }

    /// [`open`](Self::open) in another way than the usual.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(&self, device: Device, mut options: OpenOptions) -> Result<Channel, Error> {
        options.ring_pages.get_or_insert(self.inner.ring_pages);
        loop {
            let device = self.find(device, true).await?;
            let (reply, answer) = oneshot::channel();
            let command = Command::Open { device, options: Box::new(options.clone()), reply };
            self.inner.commands.send(command).map_err(|_| Error::Disconnected)?;
            // Without an answer the root has gone meanwhile: if there is another, it is asked as well.
            if let Ok(opened) = answer.await {
                return opened;
            }
        }
    }

    /// Leaves the bus in order: returns when the root has let go of all memory and every channel. All handles to this
    /// guest are of no use then, as if the root had gone. Without this a guest leaves when its last handle is dropped,
    /// and the root lets go when it notices.
    ///
    /// # Errors
    /// [`Error::NoAnswer`]: the root did not answer in half a minute; [`Error::Disconnected`].
    pub async fn leave(self) -> Result<(), Error> {
        let (reply, left) = oneshot::channel();
        self.inner.commands.send(Command::Unload(reply)).map_err(|_| Error::Disconnected)?;
        left.await.map_err(|_| Error::Disconnected)?
    }

    /// Has the root look for signals in other pages, as a guest does that moves in its memory; returns when it does. No
    /// signal is lost meanwhile. Guests of 6.0 alone can.
    ///
    /// # Errors
    /// [`Error::NotPossible`], [`Error::OutOfSharedMemory`], [`Error::Refused`], [`Error::Disconnected`].
    pub async fn move_monitor_pages(&self) -> Result<(), Error> {
        let (reply, moved) = oneshot::channel();
        self.inner.commands.send(Command::MoveMonitorPages(reply)).map_err(|_| Error::Disconnected)?;
        moved.await.map_err(|_| Error::Disconnected)?
    }

    /// Memory that requests can give the root access to.
    ///
    /// # Errors
    /// [`Error::OutOfSharedMemory`]: attach with more.
    pub fn share(&self, bytes: usize) -> Result<Buffer, Error> {
        let pages = self
            .inner
            .link
            .end()
            .allocate(ROOT_DOMAIN, bytes)
            .map_err(|_| Error::OutOfSharedMemory { wanted: bytes })?;
        Ok(Buffer::new(pages, bytes))
    }

    /// Room for `bytes` bytes to send over `channel`, which will travel as this guest's own policy says for so many;
    /// without an agent, or if it leaves that open, up to a page is copied and more is shared.
    ///
    /// # Errors
    /// [`Error::Refused`]: our policy's; [`Error::Channel`] as [`Channel::parcel`].
    pub async fn parcel(&self, channel: &Channel, bytes: usize) -> Result<Parcel, Error> {
        let by_size = TransferMode::for_size(bytes);
        let mode = match &self.inner.policy {
            None => by_size,
            Some(policy) => {
                let question = Question::Share {
                    device: None,
                    bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
                    held: 0,
                    mode: by_size,
                    before_open: false,
                };
                let limits = policy.asker.ask(&policy.who, question).await.map_err(Error::Refused)?;
                limits.mode.unwrap_or(by_size)
            }
        };
        Ok(channel.parcel(mode, bytes)?)
    }

    /// Why the root let this guest go, once it has and if it said so.
    pub fn closed_because(&self) -> Option<Refusal> {
        self.inner.offers.borrow().why.clone()
    }

    /// Whether this guest outlives its root ([`GuestBuilder::resume`]).
    pub fn outlives_root(&self) -> bool {
        self.inner.outlives_root
    }

    /// Whether there is a root at this moment.
    pub fn is_attached(&self) -> bool {
        let offers = self.inner.offers.borrow();
        offers.attached && !offers.ended
    }

    /// Returns when there is a root (`true`) or none (`false`), or the bus has ended.
    pub async fn attached(&self, attached: bool) {
        let mut offers = self.inner.offers.clone();
        let _ = offers.wait_for(|offers| offers.attached == attached || offers.ended).await;
    }

    /// Returns when the root is gone and no other has come in time.
    pub async fn closed(&self) {
        let mut offers = self.inner.offers.clone();
        let _ = offers.wait_for(|offers| offers.ended).await;
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Guest").field("version", &self.version()).finish_non_exhaustive()
    }
}
