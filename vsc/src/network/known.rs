//! What a NIC keeps for as long as it is open, whichever root is at its other end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use vmbus_channels::{Buffer, Channel, Guest, Lent};
use vmbus_core::network::ndis::PacketFilter;
use vmbus_core::network::nvsp::{self, INDIRECTION_ENTRIES};
use vmbus_core::network::{Oid, nvsp::MessageType};

use super::conversation::{Agreement, Buffers, Conversation, Event};
use super::engine::{CONTROL_BYTES, Engine};
use super::error::NicError;
use super::options::{NicInfo, NicOptions};
use super::receive::Pieces;
use super::transmit::LARGE_SLOT;

/// A completion of the provider's packets: SEND_RNDIS_PACKET_COMPLETE, success.
pub(super) const COMPLETED: [u8; 8] = {
    let ([a, b, c, d], [e, f, g, h]) =
        (MessageType::SEND_RNDIS_PACKET_COMPLETE.0.to_le_bytes(), nvsp::Status::SUCCESS.0.to_le_bytes());
    [a, b, c, d, e, f, g, h]
};

/// What the provider says of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether there is one.
    pub up: bool,
    /// In bit/s; 0 if nobody said.
    pub speed: u64,
    /// How often the network behind it has become another one: addresses should be asked for anew then.
    pub networks: u64,
    /// Serial number of the virtual function that stands beside the NIC, which nothing here uses.
    pub virtual_function: Option<u32>,
    /// Which queue the provider would like flows to be sent by, by the hash.
    pub table: Option<[u32; INDIRECTION_ENTRIES]>,
}

/// The memory that the provider uses, and what was agreed about it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) options: NicOptions,
    pub(super) pieces: Arc<Pieces>,
    pub(super) send: Buffer,
    pub(super) large: Option<Buffer>,
    pub(super) control: Buffer,
    /// For what is said to another root first, while what was said to the last one waits.
    greeting: Option<Buffer>,
    agreed: OnceLock<(Agreement, NicInfo)>,
    /// What was set, by object: a device that forgets it is told again.
    settings: Mutex<BTreeMap<u32, Vec<u8>>>,
    sub_channels: AtomicU16,
    lists: Mutex<Vec<Lent>>,
    link: Mutex<Link>,
    over: AtomicBool,
    /// The link has changed, or the root.
    pub(super) changed: Notify,
}

impl Known {
    pub(super) fn new(guest: &Guest, options: NicOptions) -> Result<Arc<Self>, NicError> {
        let large = match options.large_frames {
            0 => None,
            count => Some(guest.share(count.saturating_mul(LARGE_SLOT))?),
        };
        let greeting = match guest.outlives_root() {
            true => Some(guest.share(CONTROL_BYTES)?),
            false => None,
        };
        Ok(Arc::new(Self {
            pieces: Arc::new(Pieces::new(guest.share(options.receive_bytes.max(1))?)),
            send: guest.share(options.send_bytes.max(1))?,
            large,
            control: guest.share(CONTROL_BYTES)?,
            greeting,
            options,
            agreed: OnceLock::new(),
            settings: Mutex::default(),
            sub_channels: AtomicU16::new(0),
            lists: Mutex::default(),
            link: Mutex::default(),
            over: AtomicBool::new(false),
            changed: Notify::new(),
        }))
    }

    pub(super) fn agreed(&self) -> Option<(Agreement, NicInfo)> {
        self.agreed.get().copied()
    }

    /// What begins the conversation, the first or another one.
    fn conversation(&self, again: Option<(Agreement, NicInfo)>) -> Conversation {
        let buffers = Buffers {
            receive_len: self.pieces.buffer().len(),
            receive_name: self.pieces.name(),
            send_len: self.send.len(),
        };
        Conversation::begin(&self.options, buffers, again)
    }

    /// The start on a channel that has just been opened; gives what goes on with it.
    pub(super) async fn bring_up(self: &Arc<Self>, channel: &Channel) -> Result<Engine, NicError> {
        let mut engine = Engine::new(self, self.control.clone(), Some(self.conversation(None)));
        self.lend_and_agree(channel, &mut engine).await?;
        let agreed = engine.conversation().and_then(|conversation| conversation.ready());
        let agreed = agreed.ok_or(NicError::Answer("the start"))?;
        let _ = self.agreed.set(agreed);
        Ok(engine)
    }

    async fn lend_and_agree(&self, channel: &Channel, engine: &mut Engine) -> Result<(), NicError> {
        channel.answer_abandoned_with(COMPLETED.to_vec());
        lock(&self.lists).clear();
        engine.pump();
        loop {
            while let Some(buffer) = engine.next_to_share() {
                let memory = match buffer {
                    nvsp::Buffer::Receive => self.pieces.buffer(),
                    nvsp::Buffer::Send => &self.send,
                };
                let list = channel.lend(memory).await?;
                engine.shared(buffer, list.id())?;
                lock(&self.lists).push(list);
            }
            engine.flush(|requests| channel.try_submit(requests))?;
            if engine.is_ready() {
                return Ok(());
            }
            let mut arrivals = engine.spare();
            let unsent = engine.unsent().cloned();
            channel.take(&mut arrivals, unsent.as_ref()).await?;
            engine.absorb(arrivals)?;
            // There are no frames yet that anybody wants.
            engine.drop_packets();
        }
    }

    /// Says to another root what was said to the last one.
    ///
    /// # Errors
    /// The device is not what it was.
    pub(super) async fn greet(self: &Arc<Self>, channel: &Channel) -> Result<(), NicError> {
        // Frames of the last root are over before this one may write over them.
        self.pieces.change_hands();
        self.changed.notify_waiters();
        // A root that dies in the first greeting of all leaves nothing to agree on.
        let (Some(agreed), Some(buffer)) = (self.agreed(), &self.greeting) else {
            return Err(NicError::Changed("its conversation had not begun".into()));
        };
        let mut engine = Engine::new(self, buffer.clone(), Some(self.conversation(Some(agreed))));
        self.lend_and_agree(channel, &mut engine).await?;
        let wanted = self.sub_channels.load(Ordering::Relaxed);
        if wanted > 0 {
            engine.ask_for_sub_channels(wanted.into());
        }
        engine.settle_all();
        // Who is greeted is owed an answer to all that it sent, and owes us one to all that we did.
        while !engine.is_settled() {
            engine.flush(|requests| channel.try_submit(requests))?;
            let mut arrivals = engine.spare();
            let unsent = engine.unsent().cloned();
            channel.take(&mut arrivals, unsent.as_ref()).await?;
            engine.absorb(arrivals)?;
            engine.drop_packets();
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// There are to be so many sub-channels at any root.
    pub(super) fn widened(&self, count: u16) {
        self.sub_channels.store(count, Ordering::Relaxed);
    }

    /// What was set and is to be set again.
    pub(super) fn settings(&self) -> Vec<(Oid, Vec<u8>)> {
        lock(&self.settings).iter().map(|(&oid, value)| (Oid(oid), value.clone())).collect()
    }

    /// Which frames are wanted at present, if anybody said so.
    pub(super) fn filter(&self) -> Option<PacketFilter> {
        let settings = lock(&self.settings);
        let bits = settings.get(&Oid::GEN_CURRENT_PACKET_FILTER.0)?.first_chunk::<4>()?;
        Some(PacketFilter::from_bits_retain(u32::from_le_bytes(*bits)))
    }

    /// This was set.
    pub(super) fn keep(&self, oid: Oid, value: &[u8]) {
        lock(&self.settings).insert(oid.0, value.to_vec());
    }

    pub(super) fn link(&self) -> Link {
        *lock(&self.link)
    }

    /// The provider has told this.
    pub(super) fn happened(&self, event: Event) {
        let mut link = lock(&self.link);
        match event {
            Event::Link(up) => link.up = up,
            Event::LinkSpeed(speed) => link.speed = speed,
            Event::NetworkChanged => link.networks += 1,
            Event::Table(table) => link.table = Some(table),
            Event::VirtualFunction(serial) => link.virtual_function = serial,
            Event::AddressesForgotten => return,
        }
        drop(link);
        self.changed.notify_waiters();
    }

    /// It is closed: nobody waits any more, and the buffers are wanted back.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.changed.notify_waiters();
        lock(&self.lists).clear();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
