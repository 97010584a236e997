//! Memory that the partition gives to the root.

use vmbus_partition::{RefusedWhat, SealedGift};

use super::Partition;
use crate::error::Refusal;
use crate::policy::Question;
use crate::transfer::{MOST_GIFTS, Taking, TransferMode};

impl Partition {
    pub(super) fn given(&mut self, id: u32, gift: SealedGift) {
        let bytes = u64::try_from(gift.len()).unwrap_or(u64::MAX);
        let question = Question::Share {
            device: None,
            bytes,
            held: self.gifts_asked.1,
            mode: TransferMode::Give,
            before_open: false,
        };
        if self.gifts_asked.0 >= MOST_GIFTS {
            let refusal = Refusal::new("too many gifts at once");
            return self.take_gift(id, gift, Err(refusal));
        }
        self.gifts_asked = (self.gifts_asked.0 + 1, self.gifts_asked.1.saturating_add(bytes));
        self.ask(question, move |partition, verdict| {
            let (count, held) = partition.gifts_asked;
            partition.gifts_asked = (count - 1, held.saturating_sub(bytes));
            let taking = verdict.map(|limits| match limits.mode {
                Some(TransferMode::Give) => Taking::Map,
                // The pages of a gift stay charged to its giver, who is trusted to leave us room only if policy says so.
                Some(TransferMode::Copy | TransferMode::Share) | None => Taking::Copy,
            });
            partition.take_gift(id, gift, taking);
        });
    }

    fn take_gift(&mut self, id: u32, gift: SealedGift, taking: Result<Taking, Refusal>) {
        if let Err(refusal) = self.gifts.came(id, gift, taking) {
            self.refuse(RefusedWhat::Share(id), format!("gift {id}"), &refusal);
        }
    }
}
