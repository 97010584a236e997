//! Monitor ids: which channel may be signalled through the monitor pages (`docs/src/protocol/control.md`, "Monitor
//! pages").
//!
//! A channel whose offer asks for one gets a monitor id with its channel id, if the guest has monitor pages at that
//! moment and one is free; otherwise the guest signals it directly. Polling the pages is the run time's.

/// Number of monitor ids of a connection.
pub(super) const MONITORS: u8 = 128;

/// A channel's place in the monitor pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Its number, 0 to 127: bit `id % 32` of group `id / 32`.
    pub id: u8,
    /// How long a signal may wait at most, in units of 100 ns, as the offer asked for.
    pub latency: u16,
}

/// The monitor ids of one connection.
#[derive(Debug, Default)]
pub(super) struct Monitors {
    /// One bit for each id in use.
    pub(super) used: u128,
    /// The id that is looked at first, so that one is used again late: a late signal hits no new channel.
    pub(super) next: u8,
}

impl Monitors {
    /// An id, or `None` if all are in use.
    pub(super) fn allocate(&mut self) -> Option<u8> {
        let from_next = (!self.used).rotate_right(self.next.into()).trailing_zeros();
        // All are in use: 128.
        let from_next = u8::try_from(from_next).ok().filter(|skipped| *skipped < MONITORS)?;
        let id = (self.next + from_next) % MONITORS;
        self.used |= 1 << id;
        self.next = (id + 1) % MONITORS;
        Some(id)
    }

    pub(super) fn free(&mut self, id: u8) {
        self.used &= !(1 << (id % MONITORS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_monitor_is_used_again_only_after_all_others() {
        let mut monitors = Monitors::default();
        assert_eq!(monitors.allocate(), Some(0));
        monitors.free(0);
        for id in 1..MONITORS {
            assert_eq!(monitors.allocate(), Some(id));
        }
        assert_eq!(monitors.allocate(), Some(0));
        assert_eq!(monitors.allocate(), None);
        monitors.free(77);
        monitors.free(3);
        assert_eq!(
            (monitors.allocate(), monitors.allocate(), monitors.allocate()),
            (Some(3), Some(77), None)
        );
    }
}
