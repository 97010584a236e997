//! What a server is told once: versions, features, and the bounds of everything a guest can make it hold.

use core::ops::RangeInclusive;

use super::MonitorPages;
use crate::{FeatureFlags, Version};

/// Connection id of messages up to version 4.1.
pub(super) const LEGACY_CONNECTION: u32 = 1;
/// Connection id of contacts for 5.0 and later.
pub(super) const MULTI_CLIENT_CONNECTION: u32 = 4;
/// Features that need nothing of whoever drives the server.
const DEFAULT: FeatureFlags = FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS
    .union(FeatureFlags::MODIFY_CONNECTION)
    .union(FeatureFlags::CLIENT_ID)
    .union(FeatureFlags::PAUSE_RESUME)
    .union(FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES);

/// Settings of one server. The default speaks every version, bounds everything, and grants every feature that needs
/// nothing of its surroundings: not interrupt redirection, confidential channels and pinned pages.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Versions that are accepted. Others are answered "not supported", so that the guest tries a lower one.
    pub versions: RangeInclusive<Version>,
    /// Features that may be granted, as far as the protocol names them. Grant what goes beyond the default only where
    /// [`Open::flags`](super::Open::flags) are honoured, rings and memory really private, or pages really pinned.
    pub features: FeatureFlags,
    /// Bounds of what a guest can make us hold.
    pub quotas: Quotas,
    /// Connection id for all messages after a contact for 5.0 or later. Messages are taken on ids 1, 4 and this one.
    pub message_connection_id: u32,
    /// Monitor pages that we give to guests who ask for them; `None` refuses that feature.
    pub monitor_pages: Option<MonitorPages>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            versions: Version::OLDEST..=Version::NEWEST,
            features: DEFAULT,
            quotas: Quotas::default(),
            message_connection_id: MULTI_CLIENT_CONNECTION,
            monitor_pages: None,
        }
    }
}

impl ServerConfig {
    /// Features that may be granted.
    pub(super) fn grantable(&self) -> FeatureFlags {
        let mut features = self.features & FeatureFlags::NAMED;
        if self.monitor_pages.is_none() {
            features -= FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES;
        }
        features
    }

    pub(super) fn takes_messages_on(&self, connection_id: u32) -> bool {
        [LEGACY_CONNECTION, MULTI_CLIENT_CONNECTION, self.message_connection_id].contains(&connection_id)
    }
}

/// Upper bounds of [`Usage`]. What would exceed one is answered with a failure, or waits, and is reported as
/// [`Fault::OverQuota`](super::Fault::OverQuota).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Channel ids in use, rescinded ones that the guest has not released included. Never more than 2047.
    /// A device beyond waits for an id.
    pub channels: usize,
    /// Page lists of which messages are missing.
    pub half_built_gpadls: usize,
    /// Words of 8 bytes received for all of those together.
    pub half_built_words: usize,
    /// Complete page lists.
    pub gpadls: usize,
    /// Pages in complete page lists; one that is in two lists counts twice.
    pub pages: usize,
    /// Questions to policy that wait for an answer and that the guest caused (version, share, open).
    pub questions: usize,
    /// hvsock connects that wait for an answer.
    pub connects: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            channels: 2047,
            half_built_gpadls: 256,
            // 2 MiB of our memory, for 1 GiB of the guest's.
            half_built_words: 256 << 10,
            gpadls: 8192,
            // 4 MiB of our memory, for 2 GiB of the guest's.
            pages: 512 << 10,
            questions: 1024,
            connects: 16,
        }
    }
}

/// What a guest makes the server hold, counted as [`Quotas`] bounds it. All zero once a connection has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Channel ids in use.
    pub channels: usize,
    /// Page lists of which messages are missing.
    pub half_built_gpadls: usize,
    /// Words of 8 bytes received for those.
    pub half_built_words: usize,
    /// Complete page lists.
    pub gpadls: usize,
    /// Pages in complete page lists.
    pub pages: usize,
    /// Questions to policy that the guest caused.
    pub questions: usize,
    /// hvsock connects that wait for an answer.
    pub connects: usize,
}

/// Name of one bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// [`Quotas::channels`].
    Channels,
    /// [`Quotas::half_built_gpadls`].
    HalfBuiltGpadls,
    /// [`Quotas::half_built_words`].
    HalfBuiltWords,
    /// [`Quotas::gpadls`].
    Gpadls,
    /// [`Quotas::pages`].
    Pages,
    /// [`Quotas::questions`].
    Questions,
    /// [`Quotas::connects`].
    Connects,
}

impl core::fmt::Display for Quota {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(match self {
            Self::Channels => "channels",
            Self::HalfBuiltGpadls => "half-built page lists",
            Self::HalfBuiltWords => "words of half-built page lists",
            Self::Gpadls => "page lists",
            Self::Pages => "shared pages",
            Self::Questions => "open questions",
            Self::Connects => "pending connects",
        })
    }
}
