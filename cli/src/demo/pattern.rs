//! What the guests write: bytes that say whose they are, where they belong and when they were written.

use std::ops::RangeInclusive;

/// Bytes of a sector.
pub(super) const SECTOR: usize = 512;

/// The data of one disk: each sector is a function of the seed, of the round in which it was written, and of its
/// number. In round 0 all sectors are zeros, as on a new image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    seed: u64,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Fills whole sectors from number `first` on.
    pub(super) fn fill(self, round: u32, first: u64, into: &mut [u8]) {
        for (sector, bytes) in (first..).zip(into.chunks_mut(SECTOR)) {
            if round == 0 {
                bytes.fill(0);
                continue;
            }
            let key = self.key(round, sector);
            for (index, word) in (0..).zip(bytes.chunks_mut(8)) {
                word.copy_from_slice(&word_of(key, index).to_le_bytes());
            }
        }
    }

    /// Finds out from which of `rounds` each sector is and calls `each` with it.
    ///
    /// # Errors
    /// The first sector that is from none of them.
    pub(super) fn check(
        self,
        rounds: &RangeInclusive<u32>,
        first: u64,
        bytes: &[u8],
        mut each: impl FnMut(u32),
    ) -> Result<(), Mismatch> {
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR)) {
            match rounds.clone().rev().find(|&round| self.is_from(round, sector, bytes)) {
                Some(round) => each(round),
                None => return Err(self.mismatch(rounds, sector, bytes)),
            }
        }
        Ok(())
    }

    fn is_from(self, round: u32, sector: u64, bytes: &[u8]) -> bool {
        if round == 0 {
            return bytes.iter().all(|&byte| byte == 0);
        }
        let key = self.key(round, sector);
        (0..).zip(bytes.chunks(8)).all(|(index, word)| word == word_of(key, index).to_le_bytes())
    }

    #[cold]
    fn mismatch(self, rounds: &RangeInclusive<u32>, sector: u64, bytes: &[u8]) -> Mismatch {
        let holds = (0..=rounds.end() + 1).find(|&round| self.is_from(round, sector, bytes));
        let wanted = self.key(*rounds.end(), sector);
        let equal = (0..)
            .zip(bytes.chunks(8))
            .take_while(|(index, word)| *word == word_of(wanted, *index).to_le_bytes());
        Mismatch {
            sector,
            oldest: *rounds.start(),
            newest: *rounds.end(),
            holds,
            equal_bytes: 8 * equal.count(),
        }
    }

    fn key(self, round: u32, sector: u64) -> u64 {
        mix(self.seed ^ mix(u64::from(round) << 48 ^ sector))
    }
}

/// A sector that holds what it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "sector {sector} (byte {}) should hold data of round {oldest}{}, but holds {}",
    sector * 512,
    if oldest == newest { String::new() } else { format!(" to {newest}") },
    match holds {
        Some(round) => format!("data of round {round}"),
        None => format!("foreign data: the first {equal_bytes} bytes are those of round {newest}"),
    }
)]
pub(super) struct Mismatch {
    sector: u64,
    oldest: u32,
    newest: u32,
    holds: Option<u32>,
    equal_bytes: usize,
}

fn word_of(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index))
}

/// A bijection in which every input bit changes about half of the output bits (splitmix64's finish).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Choices that a seed repeats.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % bound
    }

    /// Cuts `sectors` into extents of 1 to 512 sectors, small ones as often as large ones, in any order.
    pub(super) fn extents(&mut self, sectors: u64) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut first = 0;
        while first < sectors {
            let most = 1 << self.below(10);
            let count = (1 + self.below(most)).min(sectors - first);
            extents.push(Extent { first, count });
            first += count;
        }
        for last in (1..extents.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            extents.swap(last, other);
        }
        extents
    }
}

/// Sectors that one request moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Extent {
    /// The most that [`Dice::extents`] makes.
    pub(super) const LONGEST: usize = 512 * SECTOR;

    pub(super) fn bytes(self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX).saturating_mul(SECTOR)
    }

    pub(super) fn offset(self) -> u64 {
        self.first * SECTOR as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Pattern = Pattern { seed: 7 };

    fn disk(round: u32) -> Vec<u8> {
        let mut bytes = vec![1; 4 * SECTOR];
        OURS.fill(round, 10, &mut bytes);
        bytes
    }

    fn rounds_of(bytes: &[u8], rounds: RangeInclusive<u32>) -> Result<Vec<u32>, Mismatch> {
        let mut found = Vec::new();
        OURS.check(&rounds, 10, bytes, |round| found.push(round)).map(|()| found)
    }

    #[test]
    fn sectors_of_any_allowed_round_are_recognized() {
        let (mut bytes, new) = (disk(3), disk(4));
        assert_eq!(rounds_of(&bytes, 3..=3).unwrap(), [3; 4]);
        bytes[SECTOR..2 * SECTOR].copy_from_slice(&new[SECTOR..2 * SECTOR]);
        assert_eq!(rounds_of(&bytes, 3..=4).unwrap(), [3, 4, 3, 3]);
        assert_eq!(rounds_of(&disk(0), 0..=1).unwrap(), [0; 4]);
    }

    #[test]
    fn a_lost_a_torn_a_misplaced_and_a_foreign_sector_are_told_apart() {
        let lost = rounds_of(&disk(2), 3..=3).unwrap_err();
        assert_eq!((lost.sector, lost.holds), (10, Some(2)));
        assert!(
            lost.to_string()
                .contains("sector 10 (byte 5120) should hold data of round 3, but holds data of round 2")
        );

        let mut torn = disk(3);
        torn[SECTOR + 256..2 * SECTOR].copy_from_slice(&disk(2)[SECTOR + 256..2 * SECTOR]);
        let torn = rounds_of(&torn, 2..=3).unwrap_err();
        assert_eq!((torn.sector, torn.holds, torn.equal_bytes), (11, None, 256));

        let mut misplaced = disk(3);
        misplaced.rotate_left(SECTOR);
        assert_eq!(rounds_of(&misplaced, 3..=3).unwrap_err().holds, None);

        let mut foreign = disk(3);
        Pattern::new(8).fill(3, 10, &mut foreign);
        assert_eq!(rounds_of(&foreign, 0..=9).unwrap_err().holds, None);
    }

    #[test]
    fn extents_cover_a_disk_once_in_mixed_sizes_and_no_order() {
        let mut extents = Dice::new(1).extents(100_000);
        assert!(!extents.is_sorted_by_key(|extent| extent.first));
        assert!(extents.iter().any(|extent| extent.count == 1));
        assert!(extents.iter().any(|extent| extent.bytes() > Extent::LONGEST / 2));
        extents.sort_by_key(|extent| extent.first);
        let mut next = 0;
        for extent in extents {
            assert_eq!(extent.first, next);
            assert!(extent.count >= 1 && extent.bytes() <= Extent::LONGEST);
            next += extent.count;
        }
        assert_eq!(next, 100_000);
    }
}
