//! What all channels of one guest's open NIC share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use vmbus_channels::{Channel, Refusal};

use super::device::{Device, Identity, Link, Stage};
use super::memory::SharedBuffer;
use super::nvsp::{Limits, Nvsp};
use super::objects::{Counts, World};
use super::receive::Receiver;
use super::switch::{Connection, PortSettings, Switch};

/// A NIC that a guest has opened, at its switch for as long as its primary channel is open.
#[derive(Debug)]
pub(super) struct Nic {
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    pub(super) link: watch::Receiver<Link>,
    pub(super) receiver: Arc<Receiver>,
    pub(super) connection: Connection,
    /// Frames that the guest sends go on.
    pub(super) sends: AtomicBool,
    pub(super) send_errors: AtomicU64,
    /// Channels that frames can go to.
    pub(super) channels: AtomicUsize,
    /// The primary channel has taken up what there was.
    pub(super) set_up: watch::Sender<bool>,
    send_buffer: Mutex<Option<Arc<SharedBuffer>>>,
}

impl Nic {
    /// Connects a NIC to its switch, or refuses the guest with the switch's reason.
    pub(super) fn connect(
        identity: Identity,
        limits: Limits,
        link: watch::Receiver<Link>,
        (switch, port): (&Switch, PortSettings),
    ) -> Result<Arc<Self>, Refusal> {
        let receiver = Arc::new(Receiver::default());
        let connection = switch.connect(Arc::clone(&receiver), port);
        let connection = connection.map_err(|error| Refusal::new(error.to_string()))?;
        Ok(Arc::new(Self {
            identity,
            limits,
            link,
            receiver,
            connection,
            sends: AtomicBool::new(false),
            send_errors: AtomicU64::new(0),
            channels: AtomicUsize::new(0),
            set_up: watch::Sender::new(false),
            send_buffer: Mutex::default(),
        }))
    }

    /// The guest has set the device up so.
    pub(super) fn apply(&self, device: &Device, nvsp: &Nvsp, link: Link) {
        self.receiver.set(device, nvsp, link.connected);
        self.sends.store(device.stage == Stage::Initialized && link.connected, Ordering::Relaxed);
    }

    pub(super) fn send_buffer(&self) -> Option<Arc<SharedBuffer>> {
        self.lock().clone()
    }

    pub(super) fn set_send_buffer(&self, memory: Option<SharedBuffer>) {
        let before = std::mem::replace(&mut *self.lock(), memory.map(Arc::new));
        // Not under the lock: whoever lent it is told.
        drop(before);
    }

    /// Lets go of a send buffer that the guest wants back without having said so in its protocol. `true`: there was one.
    pub(super) fn drop_recalled(&self) -> bool {
        let recalled = self.lock().take_if(|memory| memory.is_wanted_back());
        recalled.is_some()
    }

    /// Frames may go to this channel from now on.
    pub(super) fn attach(&self, index: u16, channel: &Arc<Channel>, nvsp: &Nvsp, outgoing_bytes: u32) {
        self.receiver.attach(index, channel, nvsp, outgoing_bytes);
        self.changed();
    }

    /// A session is over. What its guest has of the receive buffer by this channel stays with it if it is saved.
    pub(super) fn detach(&self, index: u16, channel: &Channel) {
        self.receiver.detach(index);
        if !channel.is_saving() {
            self.receiver.keep_only(index, &[]);
        }
        if index == 0 {
            self.sends.store(false, Ordering::Relaxed);
            self.receiver.stop();
            // The guest gets its memory back, however long others keep the NIC.
            self.receiver.drop_buffer();
            self.set_send_buffer(None);
            // And may open it again at once.
            self.connection.disconnect();
        }
        self.changed();
    }

    fn changed(&self) {
        self.channels.store(self.receiver.attached().len(), Ordering::Release);
        self.receiver.stir_primary();
    }

    pub(super) fn world(&self, nvsp: &Nvsp, link: Link) -> World {
        let (received, no_buffer) = self.receiver.counts();
        World {
            max_frame: nvsp.max_frame(),
            ndis: nvsp.ndis(),
            guest: nvsp.capabilities(),
            max_packets: self.limits.max_packets,
            max_queues: self.limits.max_queues,
            link,
            counts: Counts {
                sent: self.connection.statistics().sent.frames,
                send_errors: self.send_errors.load(Ordering::Relaxed),
                received,
                no_buffer,
            },
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<SharedBuffer>>> {
        self.send_buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
