//! A switch under a virtual clock, with ports that write down what they get.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmbus_vsp::network::switch::{
    Batch, Capabilities, Clock, Connection, Delivered, Frames, MacAddress, Offload, Port, PortSettings,
    Switch, SwitchBuilder,
};

/// A switch and its time.
pub(crate) struct World {
    pub(crate) switch: Switch,
    now: Arc<AtomicU64>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(build: impl FnOnce(SwitchBuilder) -> SwitchBuilder) -> Self {
        let now = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now);
        let clock = Clock::new(move || Duration::from_micros(clock.load(Ordering::Relaxed)));
        Self { switch: build(Switch::builder("test").clock(clock)).build(), now }
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.now.fetch_add(u64::try_from(time.as_micros()).expect("a short time"), Ordering::Relaxed);
    }

    /// A plain port.
    pub(crate) fn port(&self, name: &str) -> Station {
        self.port_with(PortSettings::new(name))
    }

    pub(crate) fn port_with(&self, settings: PortSettings) -> Station {
        self.port_that_takes(Capabilities::all(), settings)
    }

    pub(crate) fn port_that_takes(&self, capabilities: Capabilities, settings: PortSettings) -> Station {
        let inbox = Arc::new(Inbox { capabilities, room: AtomicUsize::new(usize::MAX), ..Inbox::default() });
        let connection = self.switch.connect(Arc::clone(&inbox), settings).expect("a port");
        Station { connection, inbox }
    }

    /// What was sent was forwarded or dropped, and each copy was delivered or dropped.
    pub(crate) fn assert_balance(&self) {
        for port in self.switch.ports() {
            let statistics = port.statistics;
            assert_eq!(
                statistics.sent.frames,
                statistics.forwarded + statistics.dropped_sent.total(),
                "{port:?}"
            );
        }
        let all = self.switch.statistics();
        assert_eq!(all.sent.frames, all.forwarded + all.dropped_sent.total(), "{all:?}");
        assert_eq!(all.copies, all.delivered.frames + all.dropped_received.total(), "{all:?}");
    }
}

/// Somebody at a port.
pub(crate) struct Station {
    pub(crate) connection: Connection,
    pub(crate) inbox: Arc<Inbox>,
}

impl Station {
    pub(crate) fn send(&self, frame: &[u8]) {
        self.send_with(frame, Offload::NONE);
    }

    pub(crate) fn send_with(&self, frame: &[u8], offload: Offload) {
        let mut batch = Batch::new();
        batch.push(frame, offload).expect("room for a frame");
        self.connection.send(&mut batch);
        assert!(batch.is_empty());
    }

    pub(crate) fn send_all<'a>(&self, frames: impl IntoIterator<Item = &'a [u8]>) {
        let mut batch = Batch::new();
        frames.into_iter().for_each(|frame| batch.push(frame, Offload::NONE).expect("room for a frame"));
        self.connection.send(&mut batch);
    }

    /// What came since one last looked.
    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        self.inbox.take().into_iter().map(|(bytes, _)| bytes).collect()
    }

    pub(crate) fn received_with_offloads(&self) -> Vec<(Vec<u8>, Offload)> {
        self.inbox.take()
    }
}

/// What a port got.
#[derive(Default)]
pub(crate) struct Inbox {
    frames: Mutex<Vec<(Vec<u8>, Offload)>>,
    capabilities: Capabilities,
    /// Frames that still fit.
    pub(crate) room: AtomicUsize,
    /// Calls of `deliver`.
    pub(crate) deliveries: AtomicUsize,
}

impl Inbox {
    fn take(&self) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut *self.frames.lock().expect("no panic"))
    }
}

impl Port for Inbox {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        let mut delivered = Delivered::default();
        let mut inbox = self.frames.lock().expect("no panic");
        for frame in frames.iter().take(self.room.load(Ordering::Relaxed)) {
            inbox.push((frame.bytes.to_vec(), frame.offload));
            delivered.frames += 1;
            delivered.bytes += frame.bytes.len();
        }
        if self.room.load(Ordering::Relaxed) != usize::MAX {
            self.room.fetch_sub(delivered.frames, Ordering::Relaxed);
        }
        delivered
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

/// The address of a station.
pub(crate) fn mac(number: u16) -> MacAddress {
    let [high, low] = number.to_be_bytes();
    MacAddress([2, 0, 0, 0, high, low])
}

/// A frame of an experimental type from one station to another.
pub(crate) fn frame(to: MacAddress, from: MacAddress, text: &str) -> Vec<u8> {
    [&to.0[..], &from.0, &[0x88, 0xb5], text.as_bytes()].concat()
}

/// What came until now is of no interest.
pub(crate) fn forget<const N: usize>(stations: [&Station; N]) {
    stations.iter().for_each(|station| drop(station.received()));
}
