//! What an agent says.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmbus_core::Status;

use super::question::{Question, WallTime};
use crate::error::Refusal;
use crate::quotas::Quotas;
use crate::transfer::TransferMode;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Yes, within the quotas.
    Allow,
    /// No. Process guests are told the reason, virtual machines the status.
    #[serde(with = "refusal")]
    Deny(Refusal),
    /// Yes, within these limits; what asks for more than they allow is refused.
    Change(Box<Limits>),
}

impl Decision {
    /// No, with [`Status::ACCESS_DENIED`].
    pub fn deny(reason: impl Into<String>) -> Self {
        Self::Deny(Refusal::denied(reason))
    }

    /// Yes, within `limits`.
    pub fn change(limits: Limits) -> Self {
        Self::Change(Box::new(limits))
    }

    /// The limits under which `question` is allowed, or why it is not.
    pub(super) fn verdict(&self, question: &Question) -> Result<Limits, Refusal> {
        match self {
            Self::Allow => Ok(Limits::default()),
            Self::Deny(refusal) => Err(refusal.clone()),
            Self::Change(limits) => limits.admit(question).map(|()| limits.as_ref().clone()),
        }
    }
}

/// What is allowed at most. `None` leaves it to the quotas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of both rings of a channel, control pages included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_bytes: Option<u64>,
    /// Sub-channels of a device beside its primary channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subchannels: Option<u32>,
    /// Bytes that a partition shares over one channel at a time, its rings included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// How memory is transferred: this way or one that hands out less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TransferMode>,
    /// How fast requests are taken from a channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// When requests are taken from a channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver: Option<Deliver>,
    /// How eagerly a channel is served beside others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Quotas of the partition, in the answer to [`Question::Attach`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quotas: Option<QuotaLimits>,
}

/// How fast requests are taken from one channel. What comes faster stays in the guest's ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    /// Requests a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Bytes a second: payloads, and the memory that requests refer to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How much of a second's worth may come at once after a pause, in milliseconds; 100 without this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_ms: Option<u32>,
}

/// When requests are taken from one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deliver {
    /// Requests are collected for so long, in microseconds, from the first of them on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_us: Option<u64>,
    /// Nothing is taken before this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<WallTime>,
}

impl Deliver {
    /// For how long requests are collected.
    pub fn after(&self) -> Option<Duration> {
        self.after_us.map(Duration::from_micros)
    }
}

/// How eagerly a channel is served beside others of the same runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before each request everybody else gets a turn, and nobody looks for work before going to sleep.
    Low,
    /// As the root was told.
    #[default]
    Normal,
    /// Looks for work four times as long before going to sleep, so that its requests more often find somebody awake.
    High,
}

macro_rules! quota_limits {
    ($($(#[$doc:meta])* $name:ident: $type:ty => $($place:ident).+,)+) => {
        /// Quotas of one partition in place of the root's ([`Quotas`]).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct QuotaLimits {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$type>,)+
        }

        impl QuotaLimits {
            /// Puts these in the place of what `quotas` says.
            pub(crate) fn apply(&self, quotas: &mut Quotas) {
                $(if let Some(limit) = self.$name {
                    quotas.$($place).+ = limit;
                })+
            }

            /// For each limit the lower of both.
            fn stricter(self, other: Self) -> Self {
                Self { $($name: lower(self.$name, other.$name),)+ }
            }
        }
    };
}

quota_limits! {
    /// Channel ids in use.
    channels: usize => protocol.channels,
    /// Complete page lists.
    gpadls: usize => protocol.gpadls,
    /// Pages in complete page lists.
    pages: usize => protocol.pages,
    /// Page lists of which messages are missing.
    half_built_gpadls: usize => protocol.half_built_gpadls,
    /// Questions to policy that wait for an answer.
    questions: usize => protocol.questions,
    /// hvsock connects that wait for an answer.
    connects: usize => protocol.connects,
    /// Channels that are open at the same time.
    open_channels: usize => open_channels,
    /// Sub-channels of all devices.
    subchannels: usize => subchannels,
    /// Bytes of the rings of all open channels.
    ring_bytes: u64 => ring_bytes,
    /// Requests in flight over all open channels; those that are open keep their part.
    requests: usize => requests,
    /// Units of work that it may cause each second in the long run.
    work_per_second: u32 => work_per_second,
    /// Units of work that it may cause at once, after a time of rest.
    work_at_once: u32 => work_at_once,
}

impl Limits {
    /// Whether `question` stays within these limits.
    ///
    /// # Errors
    /// A refusal that says what is exceeded.
    pub fn admit(&self, question: &Question) -> Result<(), Refusal> {
        let within = |what: &str, wanted: u64, limit: Option<u64>| match limit {
            Some(limit) if wanted > limit => Err(Refusal {
                status: Status::QUOTA_EXCEEDED,
                reason: format!("{wanted} {what} where {limit} are allowed"),
            }),
            Some(_) | None => Ok(()),
        };
        match question {
            Question::Open { ring_bytes, .. } => within("bytes of rings", *ring_bytes, self.ring_bytes),
            Question::Subchannels { count, .. } => {
                within("sub-channels", (*count).into(), self.subchannels.map(Into::into))
            }
            Question::Share { bytes, held, mode, before_open, .. } => {
                within("shared bytes", held.saturating_add(*bytes), self.shared_bytes)?;
                match self.mode {
                    // Whoever may copy or share is told which, and does; a page list has been made already.
                    Some(allowed) if *mode > allowed && *mode == TransferMode::Share && !before_open => {
                        Err(Refusal::denied(format!("{mode} where {allowed} is allowed")))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Question::Attach { .. }
            | Question::Version { .. }
            | Question::Offer { .. }
            | Question::Join { .. }
            | Question::Connect { .. } => Ok(()),
        }
    }

    /// For each limit the lower of both.
    pub fn stricter(self, other: Self) -> Self {
        Self {
            ring_bytes: lower(self.ring_bytes, other.ring_bytes),
            subchannels: lower(self.subchannels, other.subchannels),
            shared_bytes: lower(self.shared_bytes, other.shared_bytes),
            mode: lower(self.mode, other.mode),
            rate: both(self.rate, other.rate, |one, two| Rate {
                requests: lower(one.requests, two.requests),
                bytes: lower(one.bytes, two.bytes),
                burst_ms: lower(one.burst_ms, two.burst_ms),
            }),
            deliver: both(self.deliver, other.deliver, |one, two| Deliver {
                after_us: one.after_us.max(two.after_us),
                not_before: one.not_before.max(two.not_before),
            }),
            priority: lower(self.priority, other.priority),
            quotas: both(self.quotas, other.quotas, QuotaLimits::stricter),
        }
    }
}

fn lower<T: Ord>(one: Option<T>, two: Option<T>) -> Option<T> {
    both(one, two, Ord::min)
}

fn both<T>(one: Option<T>, two: Option<T>, merge: impl FnOnce(T, T) -> T) -> Option<T> {
    match (one, two) {
        (Some(one), Some(two)) => Some(merge(one, two)),
        (one, two) => one.or(two),
    }
}

/// A refusal in logs.
mod refusal {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use vmbus_core::Status;

    use crate::error::Refusal;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Logged<'a> {
        status: u32,
        reason: std::borrow::Cow<'a, str>,
    }

    pub(super) fn serialize<S: Serializer>(refusal: &Refusal, serializer: S) -> Result<S::Ok, S::Error> {
        Logged { status: refusal.status.0, reason: refusal.reason.as_str().into() }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Refusal, D::Error> {
        let logged = Logged::deserialize(deserializer)?;
        Ok(Refusal { status: Status(logged.status), reason: logged.reason.into_owned() })
    }
}
