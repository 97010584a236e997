//! What a partition makes the root hold at present, and the most it ever did.

use vmbus_core::server::{Quota, Usage};

use super::Partition;
use crate::error::Refusal;
use crate::quotas::{Gauge, Quotas, Used, count};

/// High-water marks. What is held by the protocol's state machine, by the link and by open channels is counted there.
#[derive(Default)]
pub(super) struct Gauges {
    protocol: [Gauge; 7],
    open_channels: Gauge,
    pub(super) subchannels: Gauge,
    ring_bytes: Gauge,
    requests: Gauge,
    messages: Gauge,
}

/// The protocol's bounds by name, with what is used and what may be.
fn protocol(usage: Usage, quotas: Quotas) -> [(Quota, usize, usize); 7] {
    let bounds = quotas.protocol;
    [
        (Quota::Channels, usage.channels, bounds.channels),
        (Quota::HalfBuiltGpadls, usage.half_built_gpadls, bounds.half_built_gpadls),
        (Quota::HalfBuiltWords, usage.half_built_words, bounds.half_built_words),
        (Quota::Gpadls, usage.gpadls, bounds.gpadls),
        (Quota::Pages, usage.pages, bounds.pages),
        (Quota::Questions, usage.questions, bounds.questions),
        (Quota::Connects, usage.connects, bounds.connects),
    ]
}

impl Partition {
    /// To be called after whatever changes what is held, so that high-water marks are true.
    pub(super) fn note_usage(&mut self) {
        for (gauge, (_, now, _)) in
            self.gauges.protocol.iter_mut().zip(protocol(self.server.usage(), self.quotas))
        {
            gauge.set(count(now));
        }
        self.gauges.messages.set(count(self.end.queued()));
    }

    /// A bound from now on; what exceeds it already stays.
    pub(super) fn limit(&mut self, quotas: Quotas) {
        self.quotas = quotas;
        self.server.set_quotas(quotas.protocol);
        self.pacing.change(&quotas);
    }

    /// Whether one more channel with rings of so many bytes may be open.
    pub(super) fn admit_rings(&self, bytes: u64) -> Result<(), Refusal> {
        let Quotas { open_channels, ring_bytes, .. } = self.quotas;
        let over = |what: &str| Refusal {
            status: vmbus_core::status::Status::INSUFFICIENT_RESOURCES,
            reason: what.into(),
        };
        if self.gauges.open_channels.now >= count(open_channels) {
            return Err(over(&format!("{open_channels} channels are open, and no more may be")));
        }
        if self.gauges.ring_bytes.now.saturating_add(bytes) > ring_bytes {
            return Err(over(&format!("the rings of all channels may have {ring_bytes} bytes, and no more")));
        }
        Ok(())
    }

    /// How many requests may be in flight of one more channel, whose device allows `wanted`.
    pub(super) fn admit_requests(&self, wanted: usize) -> Result<usize, Refusal> {
        let open = size(self.gauges.open_channels.now);
        self.quotas.requests_of(wanted, open, size(self.gauges.requests.now)).ok_or_else(|| Refusal {
            status: vmbus_core::status::Status::INSUFFICIENT_RESOURCES,
            reason: format!(
                "{} requests may be in flight, and other channels have them",
                self.quotas.requests
            ),
        })
    }

    /// A channel is open that has so many bytes of rings, and so many requests at most.
    pub(super) fn rings_opened(&mut self, bytes: u64, requests: usize) {
        self.gauges.open_channels.add(1);
        self.gauges.ring_bytes.add(bytes);
        self.gauges.requests.add(count(requests));
    }

    pub(super) fn rings_closed(&mut self, bytes: u64, requests: usize) {
        self.gauges.open_channels.sub(1);
        self.gauges.ring_bytes.sub(bytes);
        self.gauges.requests.sub(count(requests));
    }

    /// All bounds of this partition, with what is used of them.
    pub(super) fn used(&mut self) -> Vec<Used> {
        self.note_usage();
        let quotas = self.quotas;
        let protocol = protocol(self.server.usage(), quotas);
        let mut used: Vec<Used> = self
            .gauges
            .protocol
            .iter()
            .zip(protocol)
            .map(|(gauge, (quota, _, limit))| gauge.used(quota, count(limit)))
            .collect();
        used.push(self.gauges.open_channels.used("open channels", count(quotas.open_channels)));
        used.push(self.gauges.subchannels.used("sub-channels", count(quotas.subchannels)));
        used.push(self.gauges.ring_bytes.used("bytes of rings", quotas.ring_bytes));
        used.push(self.gauges.requests.used("requests that may be in flight", count(quotas.requests)));
        used.push(self.gauges.messages.used("queued messages", count(quotas.messages)));
        used
    }
}

/// A count of things in memory, as a gauge has it.
fn size(of: u64) -> usize {
    usize::try_from(of).unwrap_or(usize::MAX)
}
