//! Which address is behind which port: learned from senders, forgotten with age, bounded.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// A station in a VLAN: its address in the low 48 bits, the VLAN above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Station(u64);

impl Station {
    pub(super) const fn new(vlan: u16, address: u64) -> Self {
        Self((vlan as u64) << 48 | address)
    }

    pub(super) const fn vlan(self) -> u16 {
        let [high, low, ..] = self.0.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    pub(super) const fn address(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }
}

/// The table. Times are in nanoseconds of the switch's clock.
#[derive(Debug)]
pub(super) struct Addresses {
    entries: HashMap<Station, Entry, Seed>,
    limits: AddressLimits,
    last_sweep: u64,
}

/// What bounds the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressLimits {
    /// How long an address is known after its station last sent.
    pub(super) ageing: u64,
    /// Addresses at most.
    pub(super) most: usize,
}

#[derive(Debug)]
struct Entry {
    slot: usize,
    /// When its station last sent, about: not written anew for each frame, as other processors read this line.
    seen: AtomicU64,
}

/// What the table knows of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is where it was.
    Here,
    /// It is new or has moved.
    No,
}

impl Addresses {
    pub(super) fn new(limits: AddressLimits) -> Self {
        Self { entries: HashMap::with_hasher(Seed::default()), limits, last_sweep: 0 }
    }

    /// The port behind which a station is.
    pub(super) fn find(&self, station: Station, now: u64) -> Option<usize> {
        let entry = self.entries.get(&station)?;
        (!self.limits.aged(entry, now)).then_some(entry.slot)
    }

    /// A station has sent from behind this port.
    pub(super) fn saw(&self, station: Station, slot: usize, now: u64) -> Known {
        match self.entries.get(&station) {
            Some(entry) if entry.slot == slot => {
                // A sixteenth late at most.
                if now.saturating_sub(entry.seen.load(Ordering::Relaxed)) > self.limits.ageing / 16 {
                    entry.seen.store(now, Ordering::Relaxed);
                }
                Known::Here
            }
            Some(_) | None => Known::No,
        }
    }

    /// A station is behind this port from now on, if there is room to know it.
    pub(super) fn learn(&mut self, station: Station, slot: usize, now: u64) {
        if let Some(entry) = self.entries.get_mut(&station) {
            *entry = Entry { slot, seen: AtomicU64::new(now) };
            return;
        }
        if self.entries.len() >= self.limits.most {
            self.sweep(now);
        }
        if self.entries.len() < self.limits.most {
            self.entries.insert(station, Entry { slot, seen: AtomicU64::new(now) });
        }
    }

    /// Nobody is behind this port any more.
    pub(super) fn forget_port(&mut self, slot: usize) {
        self.entries.retain(|_, entry| entry.slot != slot);
    }

    /// All that are known, with their port and when they last sent.
    pub(super) fn iter(&self, now: u64) -> impl Iterator<Item = (Station, usize, u64)> + '_ {
        self.entries
            .iter()
            .filter(move |(_, entry)| !self.limits.aged(entry, now))
            .map(|(&station, entry)| (station, entry.slot, entry.seen.load(Ordering::Relaxed)))
    }

    /// Forgets the aged ones; not more often than it could find new ones, as it looks at each.
    fn sweep(&mut self, now: u64) {
        if now.saturating_sub(self.last_sweep) < self.limits.ageing / 16 && self.last_sweep != 0 {
            return;
        }
        self.last_sweep = now.max(1);
        let limits = self.limits;
        self.entries.retain(|_, entry| !limits.aged(entry, now));
    }
}

impl AddressLimits {
    fn aged(&self, entry: &Entry, now: u64) -> bool {
        now.saturating_sub(entry.seen.load(Ordering::Relaxed)) > self.ageing
    }
}

/// A hash for stations that is fast, and secret: whoever sends chooses the addresses, so he must not know which of
/// them meet in one bucket.
#[derive(Clone, Debug)]
struct Seed([u64; 2]);

impl Default for Seed {
    fn default() -> Self {
        let random = RandomState::new();
        Self([random.hash_one(1_u8) | 1, random.hash_one(2_u8)])
    }
}

impl BuildHasher for Seed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        let [multiplier, state] = self.0;
        Folded { multiplier, state }
    }
}

#[derive(Debug)]
struct Folded {
    multiplier: u64,
    state: u64,
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    #[expect(clippy::cast_possible_truncation, reason = "both halves of the product are used")]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(word ^ self.state) * u128::from(self.multiplier);
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.state.wrapping_mul(self.multiplier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AddressLimits = AddressLimits { ageing: 1600, most: 4 };

    fn station(number: u64) -> Station {
        Station::new(1, number)
    }

    #[test]
    fn a_station_is_forgotten_when_it_was_silent_for_too_long() {
        let mut addresses = Addresses::new(LIMITS);
        addresses.learn(station(1), 3, 1000);
        assert_eq!(addresses.find(station(1), 2600), Some(3));
        assert_eq!(addresses.find(station(1), 2601), None);
        assert_eq!(addresses.saw(station(1), 3, 2601), Known::Here);
        assert_eq!(addresses.find(station(1), 4000), Some(3));
        assert_eq!(addresses.find(Station::new(2, 1), 4000), None, "it is another VLAN's");
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_with_age() {
        let mut addresses = Addresses::new(LIMITS);
        (0..100).for_each(|number| addresses.learn(station(number), 0, 1));
        assert_eq!(addresses.iter(1).count(), 4);
        assert_eq!(addresses.find(station(99), 1), None);
        addresses.learn(station(99), 0, 2000);
        assert_eq!(addresses.find(station(99), 2000), Some(0));
        assert_eq!(addresses.iter(2000).count(), 1);
    }

    #[test]
    fn a_station_moves_and_goes_with_its_port() {
        let mut addresses = Addresses::new(LIMITS);
        addresses.learn(station(1), 0, 1);
        assert_eq!(addresses.saw(station(1), 1, 2), Known::No);
        addresses.learn(station(1), 1, 2);
        assert_eq!(addresses.find(station(1), 2), Some(1));
        addresses.forget_port(1);
        assert_eq!(addresses.find(station(1), 2), None);
    }
}
