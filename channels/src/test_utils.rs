//! Busses within one process, and a guest whose every byte a test controls. Public, so that device authors test with
//! what we test with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmbus_core::Version;
use vmbus_core::message::{Direction, Message};
use vmbus_core::pages::PageRanges;
use vmbus_partition::{
    ControlGuest, FromRoot, GuestEnd, GuestOptions, LinkError, RingMapping, SharedPages, local,
};
use vmbus_ringbuf::{Consumer, Producer};

use crate::channel::Channel;
use crate::error::{ChannelError, Error, Refusal};
use crate::guest::{Guest, GuestBuilder, ROOT_DOMAIN};
use crate::offer::Offer;
use crate::provider::{Client, OpenRequest, Provider, Session};
use crate::root::Root;

/// Joins `root` as guest `name` of the same process.
///
/// # Errors
/// As [`GuestBuilder::attach`].
pub async fn join(root: &Root, name: &str) -> Result<Guest, Error> {
    join_with(root, name, Guest::builder()).await
}

/// [`join`] with settings.
///
/// # Errors
/// As [`GuestBuilder::attach`].
pub async fn join_with(root: &Root, name: &str, builder: GuestBuilder) -> Result<Guest, Error> {
    let (end, guest) = local::pair(&GuestOptions::named(name), root.next_partition())?;
    root.attach(Arc::new(end));
    builder.attach(Arc::new(guest)).await
}

/// Roots of one process, one after the other. Guests that outlive theirs find the next one here.
#[derive(Clone, Default)]
pub struct Succession {
    reign: Arc<Mutex<Reign>>,
}

#[derive(Default)]
struct Reign {
    root: Option<Root>,
    /// Guests of this root.
    partitions: Vec<u32>,
}

impl Succession {
    /// Lets `root` be the one that guests find.
    pub fn crown(&self, root: Root) {
        *self.reign() = Reign { root: Some(root), partitions: Vec::new() };
    }

    /// Ends the root: its guests see their link end.
    pub fn kill(&self) {
        let reign = std::mem::take(&mut *self.reign());
        if let Some(root) = reign.root {
            for partition in reign.partitions {
                root.detach(partition);
            }
        }
    }

    /// Joins as guest `name`, to outlive its root if `builder` says so.
    ///
    /// # Errors
    /// As [`GuestBuilder::attach`].
    pub async fn join(&self, name: &str, builder: GuestBuilder) -> Result<Guest, Error> {
        let options = GuestOptions::named(name);
        let first = self.attach(&options, None)?;
        let (succession, mut latest) = (self.clone(), Arc::clone(&first));
        let again = move || {
            latest = succession.attach(&options, Some(&latest))?;
            Ok(Arc::clone(&latest) as Arc<dyn GuestEnd>)
        };
        builder.attach_again_by(first, again).await
    }

    fn attach(
        &self,
        options: &GuestOptions,
        before: Option<&ControlGuest>,
    ) -> Result<Arc<ControlGuest>, LinkError> {
        let mut reign = self.reign();
        let root = reign.root.clone().ok_or(LinkError::Gone)?;
        let id = root.next_partition();
        let (end, guest) = match before {
            None => local::pair(options, id)?,
            Some(before) => local::pair_again(options, before, id)?,
        };
        reign.partitions.push(root.attach(Arc::new(end)));
        Ok(Arc::new(guest))
    }

    fn reign(&self) -> MutexGuard<'_, Reign> {
        self.reign.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device that answers each request with its payload, as far as `offer` has room for it in a completion.
pub fn echo(offer: Offer) -> impl Provider {
    Echo(offer)
}

struct Echo(Offer);

impl Provider for Echo {
    type Session = Echoes;

    fn offer(&self) -> Offer {
        self.0.clone()
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Echoes, Refusal> {
        Ok(Echoes { room: self.0.completion_room })
    }
}

struct Echoes {
    room: usize,
}

impl Session for Echoes {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        while let Some(request) = channel.recv().await? {
            let payload = request.payload().to_vec();
            request.complete(&payload[..payload.len().min(self.room)]).await?;
        }
        Ok(())
    }
}

/// A guest without rules: posts any message, fills any ring.
pub struct MockGuest {
    end: ControlGuest,
}

/// Both rings of a channel as the guest has them, for any packets in any order.
pub struct MockRings {
    /// The page list's memory: both rings, control pages included.
    pub pages: SharedPages,
    /// The ring to the host.
    pub to_host: Producer<RingMapping>,
    /// The ring from the host.
    pub from_host: Consumer<RingMapping>,
}

/// How long [`MockGuest`] waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

impl MockGuest {
    /// Attaches to `root` and says nothing yet.
    ///
    /// # Errors
    /// [`Error::Link`]: the system's.
    pub fn attach(root: &Root, name: &str) -> Result<Self, Error> {
        let (end, guest) = local::pair(&GuestOptions::named(name), root.next_partition())?;
        root.attach(Arc::new(end));
        Ok(Self { end: guest })
    }

    /// Attaches to a root of another process, at `path`, and says nothing yet.
    ///
    /// # Errors
    /// [`Error::Link`].
    pub fn connect(path: impl AsRef<std::path::Path>, name: &str) -> Result<Self, Error> {
        Ok(Self { end: vmbus_partition::attach::connect(path, &GuestOptions::named(name))? })
    }

    /// The partition's end of the link, for memory and signals.
    pub fn end(&self) -> &ControlGuest {
        &self.end
    }

    /// Posts any bytes as a message.
    pub fn post(&self, payload: &[u8]) {
        // A root that is gone takes nothing.
        let _ = self.end.post(4, payload);
        let _ = self.end.flush();
    }

    /// Posts a message in the form of the newest version.
    pub fn say<'a>(&self, message: impl Into<Message<'a>>) {
        self.post(&message.into().encode(Version::NEWEST, vmbus_core::FeatureFlags::empty()));
    }

    /// The next message of the root. Waits for it; panics when none comes.
    pub async fn hear<T>(&self, mut take: impl FnMut(Message<'_>) -> Option<T>) -> T {
        let heard = tokio::time::timeout(PATIENCE, async {
            loop {
                match self.end.receive() {
                    Ok(Some(FromRoot::Message { payload, .. })) => {
                        let message = Message::parse(&payload, Direction::ToGuest, None);
                        if let Some(taken) = message.ok().and_then(&mut take) {
                            return taken;
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(error) => panic!("the link ended: {error}"),
                }
            }
        });
        heard.await.expect("the root said nothing that was expected")
    }

    /// Memory for two rings of `pages` data pages each, and the page list that describes it.
    pub fn rings(&self, pages: usize) -> (MockRings, PageRanges) {
        let memory = self
            .end
            .allocate(ROOT_DOMAIN, 2 * (pages + 1) * vmbus_core::PAGE_SIZE)
            .expect("memory for rings");
        memory.mapping().fill_zero(0, memory.len());
        let space = self.end.memory();
        let ring = |skip| space.ring(memory.pfns().skip(skip).take(pages + 1)).expect("our own pages");
        let (to_host, from_host) = (ring(0), ring(pages + 1));
        let list = memory.ranges().expect("whole pages");
        let rings = MockRings {
            to_host: Producer::new(to_host).expect("a fresh ring"),
            from_host: Consumer::new(from_host).expect("a fresh ring"),
            pages: memory,
        };
        (rings, list)
    }
}
