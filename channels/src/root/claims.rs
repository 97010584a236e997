//! Which partitions have which device open, or are about to: so that policy is asked before two share one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::lock;

/// Claims by device, and by partition within one: its name, and how many channels it has or wants.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashMap<u64, Holders>>);

/// By partition.
type Holders = HashMap<u32, (Arc<str>, usize)>;

/// One channel of a partition at a device. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    device: u64,
    partition: u32,
}

impl Claims {
    /// Claims a device. Of two partitions that do so at the same time one sees the other.
    pub(super) fn claim(self: &Arc<Self>, device: u64, partition: u32, name: &Arc<str>) -> Claim {
        let mut claims = lock(&self.0);
        let holders = claims.entry(device).or_default();
        holders.entry(partition).or_insert_with(|| (Arc::clone(name), 0)).1 += 1;
        Claim { claims: Arc::clone(self), device, partition }
    }
}

impl Claim {
    /// Names of the other partitions that have claims, in the order in which they attached.
    pub(super) fn others(&self) -> Vec<Arc<str>> {
        let claims = lock(&self.claims.0);
        let holders = claims.get(&self.device).into_iter().flatten();
        let mut others: Vec<_> = holders.filter(|(partition, _)| **partition != self.partition).collect();
        others.sort_unstable_by_key(|(partition, _)| **partition);
        others.into_iter().map(|(_, (name, _))| Arc::clone(name)).collect()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = lock(&self.claims.0);
        let Some(holders) = claims.get_mut(&self.device) else { return };
        if let Some((_, count)) = holders.get_mut(&self.partition) {
            *count -= 1;
            if *count == 0 {
                holders.remove(&self.partition);
            }
        }
        if holders.is_empty() {
            claims.remove(&self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_shared_while_two_partitions_claim_it() {
        let claims = Arc::<Claims>::default();
        let (alice, bob) = ("alice".into(), "bob".into());
        let first = claims.claim(7, 1, &alice);
        let second = claims.claim(7, 1, &alice);
        assert!(first.others().is_empty(), "its own channels are no sharing");
        let other = claims.claim(7, 2, &bob);
        assert_eq!((other.others(), first.others()), (vec![alice], vec![bob.clone()]));
        assert!(claims.claim(8, 2, &bob).others().is_empty());
        drop(first);
        assert_eq!(other.others().len(), 1);
        drop(second);
        assert!(other.others().is_empty());
        drop(other);
        assert!(lock(&claims.0).is_empty());
    }
}
