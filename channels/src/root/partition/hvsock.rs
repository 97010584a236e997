//! Stream sockets of one partition: connects in both directions, from the wish to the offer's end.
//!
//! A connection is an offer for one open. What a guest connects to is accepted by a listener of the root; what the root
//! connects to, by the guest when it opens the channel. Whichever end closes it, the offer is taken back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use vmbus_core::server::{ConnectRequest, DeviceKey, ServerInput};
use vmbus_core::status::Status;
use vmbus_core::{Guid, Version};
use vmbus_partition::RefusedWhat;

use super::super::devices::Device;
use super::super::lock;
use super::{Command, Partition};
use crate::channel::Channel;
use crate::error::{Error, Refusal};
use crate::hvsock::{self, Accepts, HvLimits, HvPeer, HvStream, Incoming};
use crate::policy::{Direction, Question};
use crate::provider::{AnyProvider, Client, OpenRequest, Start};

/// Keys of connections; those of devices count up from 0 and never get there, those of sub-channels begin beyond.
const FIRST_KEY: u64 = 1 << 40;
const END_OF_KEYS: u64 = 1 << 48;
/// What refusals of connects are told under: nothing that the guest would know.
const REFUSED_CONNECT: RefusedWhat = RefusedWhat::Other(0, 0);

/// What others want of a partition's stream sockets.
pub(in super::super) enum HvCommand {
    Connect {
        service: Guid,
        reply: Reply,
        /// Resolves when nobody wants the connection any more.
        lost: oneshot::Receiver<()>,
    },
    /// A connect took too long, or is not wanted any more.
    GiveUp(DeviceKey),
}

type Reply = oneshot::Sender<Result<HvStream, Error>>;

/// The stream sockets of one partition.
pub(super) struct Hvsock {
    next_key: u64,
    streams: Arc<Semaphore>,
    connecting: HashMap<DeviceKey, Connecting>,
}

/// A connect that was offered and not opened yet.
struct Connecting {
    /// The guest's, if it was the guest who connected.
    request: Option<ConnectRequest>,
    connection: Arc<Connection>,
    expiry: AbortHandle,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.expiry.abort();
    }
}

impl Hvsock {
    pub(super) fn new(limits: &HvLimits) -> Self {
        Self {
            next_key: FIRST_KEY,
            streams: Arc::new(Semaphore::new(limits.streams.min(Semaphore::MAX_PERMITS))),
            connecting: HashMap::new(),
        }
    }
}

/// The "device" behind an offer for one open.
struct Connection {
    peer: HvPeer,
    waiting: Mutex<Option<(Waiting, OwnedSemaphorePermit)>>,
}

/// Who gets the stream.
enum Waiting {
    Listener(mpsc::Sender<Incoming>),
    Caller(Reply),
}

impl Connection {
    /// Who connected from this end, to be told why it failed.
    fn caller(&self) -> Option<Reply> {
        match lock(&self.waiting).take() {
            Some((Waiting::Caller(reply), _)) => Some(reply),
            Some((Waiting::Listener(_), _)) | None => None,
        }
    }
}

impl AnyProvider for Connection {
    fn visible_to(&self, _: &Client) -> bool {
        true
    }

    fn left(&self, _: &Client) {}

    fn restore(&self, _: &Client, _: &OpenRequest, _: &[u8]) -> Result<Start, Refusal> {
        Err(Refusal::new("stream sockets do not outlive their root"))
    }

    fn open(&self, _: &Client, _: &OpenRequest) -> Result<Start, Refusal> {
        let Some((waiting, permit)) = lock(&self.waiting).take() else {
            return Err(Refusal::new("a connection is opened once"));
        };
        let peer = self.peer.clone();
        let deliver: Box<dyn FnOnce(HvStream) + Send> = match waiting {
            Waiting::Listener(listener) => {
                let place = listener.try_reserve_owned().map_err(|_| backlog_full())?;
                Box::new(move |stream| _ = place.send((stream, peer)))
            }
            // Nobody waits any more: the stream closes with its handle.
            Waiting::Caller(reply) => Box::new(move |stream| _ = reply.send(Ok(stream))),
        };
        let peer = self.peer.clone();
        Ok(Box::new(move |channel: Channel| {
            let core = Arc::clone(channel.core());
            deliver(HvStream::new(channel, peer, Some(permit)));
            Box::pin(async move {
                core.closed().await;
                core.stream_result()
            })
        }))
    }
}

impl Partition {
    pub(super) fn hvsock_command(&mut self, command: HvCommand) {
        match command {
            HvCommand::Connect { service, reply, lost } => self.connect_guest(service, reply, lost),
            HvCommand::GiveUp(key) => {
                let late = Refusal { status: Status::IO_TIMEOUT, reason: "it was not opened in time".into() };
                self.connect_failed(key, &late, Error::TimedOut("the guest's answer to a connect"));
            }
        }
    }

    /// The guest connects to a service of the root.
    pub(super) fn connect(&mut self, request: ConnectRequest) {
        let service = request.service;
        let to = self.root.services.find(service).and_then(|service| service.to);
        let question = Question::Connect { service, direction: Direction::Outgoing, to };
        self.ask(question, move |partition, verdict| {
            if let Err(refusal) = verdict.and_then(|_| partition.accept(request)) {
                partition.refuse_connect(request, &refusal);
            }
        });
    }

    fn accept(&mut self, request: ConnectRequest) -> Result<(), Refusal> {
        let ConnectRequest { endpoint, service, silo } = request;
        let listener = self.root.services.find(service).ok_or_else(|| refused("nobody listens"))?.listener;
        if listener.capacity() == 0 {
            return Err(backlog_full());
        }
        // Two offers of one name would be two channels of one device.
        if self.offered.values().any(|offered| offered.device.instance == endpoint && !offered.withdrawn) {
            return Err(refused("the endpoint is in use"));
        }
        let peer = HvPeer { partition: Some(self.client.clone()), service, endpoint };
        self.begin_connection(peer, Waiting::Listener(listener), silo, Some(request), None)
            .map_err(|(refusal, _)| refusal)
    }

    /// The root connects to a service of the guest.
    fn connect_guest(&mut self, service: Guid, reply: Reply, lost: oneshot::Receiver<()>) {
        let agreed = self.server.connection().map(|connection| connection.version);
        let error = match agreed {
            None => Error::Disconnected,
            Some(agreed) if agreed < Version::Win10 => {
                Error::TooOld { what: "stream sockets", needs: Version::Win10, agreed }
            }
            Some(_) => {
                let question = Question::Connect { service, direction: Direction::Incoming, to: None };
                return self.ask(question, move |partition, verdict| {
                    let begun = match verdict {
                        Ok(_) => partition.begin_guests(service, reply, lost),
                        Err(refusal) => Err((refusal, reply)),
                    };
                    if let Err((refusal, reply)) = begun {
                        let _ = reply.send(Err(Error::Refused(refusal)));
                    }
                });
            }
        };
        let _ = reply.send(Err(error));
    }

    fn begin_guests(
        &mut self,
        service: Guid,
        reply: Reply,
        lost: oneshot::Receiver<()>,
    ) -> Result<(), (Refusal, Reply)> {
        let peer = HvPeer { partition: Some(self.client.clone()), service, endpoint: hvsock::endpoint() };
        let begun = self.begin_connection(peer, Waiting::Caller(reply), Guid::ZERO, None, Some(lost));
        match begun {
            Err((refusal, Waiting::Caller(reply))) => Err((refusal, reply)),
            Ok(()) | Err((_, Waiting::Listener(_))) => Ok(()),
        }
    }

    /// Offers the channel for a connection; it has to be opened in time.
    fn begin_connection(
        &mut self,
        peer: HvPeer,
        waiting: Waiting,
        silo: Guid,
        request: Option<ConnectRequest>,
        lost: Option<oneshot::Receiver<()>>,
    ) -> Result<(), (Refusal, Waiting)> {
        let too_much = |what: &str| {
            let reason = format!("too many {what} of this partition");
            Refusal { status: Status::INSUFFICIENT_RESOURCES, reason }
        };
        if self.server.usage().channels >= self.quotas.protocol.channels {
            return Err((too_much("channels"), waiting));
        }
        let Ok(permit) = Arc::clone(&self.hvsock.streams).try_acquire_owned() else {
            return Err((too_much("streams"), waiting));
        };
        let key = DeviceKey(self.hvsock.next_key);
        self.hvsock.next_key += 1;
        let accepts = if request.is_some() { Accepts::Host } else { Accepts::Guest };
        let version = self.server.connection().map_or(Version::OLDEST, |connection| connection.version);
        let offer = hvsock::offer(peer.service, peer.endpoint, accepts, silo, version);
        let instance = peer.endpoint;
        let connection = Arc::new(Connection { peer, waiting: Mutex::new(Some((waiting, permit))) });
        let expiry = self.expire(key, lost);
        let provider = Arc::clone(&connection);
        self.hvsock.connecting.insert(key, Connecting { request, connection, expiry });
        self.offer(key, key.0, Device { offer: Arc::new(offer), instance, provider });
        Ok(())
    }

    fn expire(&self, key: DeviceKey, lost: Option<oneshot::Receiver<()>>) -> AbortHandle {
        let (commands, patience) = (self.commands.clone(), self.root.hvsock.patience);
        let expiry = tokio::spawn(async move {
            let lost = async {
                match lost {
                    Some(lost) => _ = lost.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = lost => {}
                () = tokio::time::sleep(patience) => {}
            }
            let _ = commands.send(Command::Hvsock(HvCommand::GiveUp(key)));
        });
        expiry.abort_handle()
    }

    /// The guest opened a channel, or could not; if it is a connection, the connect has ended.
    pub(super) fn connection_opened(&mut self, key: DeviceKey, result: Result<(), Refusal>) {
        match result {
            Ok(()) => {
                if let Some(request) = self.hvsock.connecting.remove(&key).and_then(|now| now.request) {
                    self.server.handle(ServerInput::ConnectResult { request, result: Ok(()) });
                }
            }
            Err(refusal) => self.connect_failed(key, &refusal, Error::Refused(refusal.clone())),
        }
    }

    /// Policy has decided about the channel of a connection; if it denied it, the connect has failed.
    pub(super) fn connection_denied(&mut self, key: DeviceKey, denied: Option<Refusal>) {
        if let Some(refusal) = denied {
            self.connect_failed(key, &refusal, Error::Refused(refusal.clone()));
        }
    }

    /// The guest does not want a connection that it was offered.
    pub(super) fn declined(&mut self, key: DeviceKey) {
        let refusal = refused("the guest does not accept");
        self.connect_failed(key, &refusal, Error::Refused(refusal.clone()));
    }

    /// The guest has disconnected, and with it what it was connecting.
    pub(super) fn drop_connects(&mut self) {
        let keys: Vec<DeviceKey> = self.hvsock.connecting.keys().copied().collect();
        for key in keys {
            self.connect_failed(key, &refused("the guest has disconnected"), Error::Disconnected);
        }
    }

    fn connect_failed(&mut self, key: DeviceKey, refusal: &Refusal, error: Error) {
        let Some(connecting) = self.hvsock.connecting.remove(&key) else { return };
        if let Some(caller) = connecting.connection.caller() {
            let _ = caller.send(Err(error));
        }
        self.withdraw_connection(key);
        if let Some(request) = connecting.request {
            self.refuse_connect(request, refusal);
        }
    }

    /// Takes a connection's offer back for good.
    pub(super) fn withdraw_connection(&mut self, key: DeviceKey) {
        if let Some(offered) = self.offered.get_mut(&key).filter(|offered| !offered.withdrawn) {
            offered.withdrawn = true;
            self.server.handle(ServerInput::Rescind { device: key });
        }
    }

    fn refuse_connect(&mut self, request: ConnectRequest, refusal: &Refusal) {
        let what = format!("connecting to hvsock {}", hvsock::show(request.service));
        self.refuse(REFUSED_CONNECT, what, refusal);
        self.server.handle(ServerInput::ConnectResult { request, result: Err(refusal.status) });
    }
}

/// Whether this is the key of a connection, which is offered for one open.
pub(super) fn is_connection(key: DeviceKey) -> bool {
    (FIRST_KEY..END_OF_KEYS).contains(&key.0)
}

fn refused(reason: &str) -> Refusal {
    Refusal { status: Status::CONNECTION_REFUSED, reason: reason.into() }
}

fn backlog_full() -> Refusal {
    refused("too many connections wait to be accepted")
}
