//! What a request of ours was, told by the tag of its reply.

/// One of our requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// An NVSP message whose answer counts.
    Asked,
    /// One whose answer does not.
    Told,
    /// An RNDIS message about the device, in this slot.
    Control(u32),
    /// Frames in this section of the send buffer.
    Section(u32),
    /// A frame in this slot for long ones.
    Large(u32),
}

impl Tag {
    pub(super) fn to_word(self) -> u64 {
        let (kind, slot) = match self {
            Self::Asked => (0, 0),
            Self::Told => (1, 0),
            Self::Control(slot) => (2, slot),
            Self::Section(slot) => (3, slot),
            Self::Large(slot) => (4, slot),
        };
        kind << 32 | u64::from(slot)
    }

    /// Tags are our own: the peer never sees them.
    pub(super) fn of_word(word: u64) -> Option<Self> {
        let slot = u32::try_from(word & u64::from(u32::MAX)).ok()?;
        Some(match word >> 32 {
            0 => Self::Asked,
            1 => Self::Told,
            2 => Self::Control(slot),
            3 => Self::Section(slot),
            4 => Self::Large(slot),
            _ => return None,
        })
    }
}
