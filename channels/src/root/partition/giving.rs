//! Memory that the partition gives to the root.

use vmbus_partition::{RefusedWhat, SealedGift};

use super::Partition;
use crate::transfer::{GiftLimits, Taking};

/// Gifts that may wait for the request that speaks of them.
const LIMITS: GiftLimits = GiftLimits { count: 64, bytes: 256 << 20 };

impl Partition {
    pub(super) fn given(&mut self, id: u32, gift: SealedGift) {
        // Copied: the pages of a gift stay charged to its giver, who is not trusted to leave us room.
        if let Err(refusal) = self.gifts.came(id, gift, Ok(Taking::Copy), LIMITS) {
            self.refuse(RefusedWhat::Share(id), format!("gift {id}"), &refusal);
        }
    }
}
