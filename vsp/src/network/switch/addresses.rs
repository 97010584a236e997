//! Which address is behind which port: learned from senders, forgotten with age, bounded.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use super::mac::MacAddress;

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
    /// Addresses that ports have for themselves, in whatever VLAN, and their ports.
    owned: HashMap<u64, usize, Seed>,
    /// Learned stations of each port.
    learned: Vec<usize>,
    /// Learned stations of all.
    total: usize,
    limits: AddressLimits,
    next_sweep: u64,
}

/// What bounds the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressLimits {
    /// How long an address is known after its station last sent.
    pub(super) ageing: u64,
    /// Learned stations at most.
    pub(super) most: usize,
}

#[derive(Debug)]
struct Entry {
    slot: usize,
    /// When its station last sent, about: not written anew for each frame, as other processors read this line.
    seen: AtomicU64,
}

/// When a station last sent that is known without sending.
const ALWAYS: u64 = u64::MAX;

/// What the table knows of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is where it was.
    Here,
    /// It is new or has moved.
    New,
    /// It is new, and there is no room to learn it.
    NoRoom,
    /// Another port has this address for itself.
    Owned,
}

impl Addresses {
    pub(super) fn new(limits: AddressLimits) -> Self {
        Self {
            entries: HashMap::with_hasher(Seed::default()),
            owned: HashMap::with_hasher(Seed::default()),
            learned: Vec::new(),
            total: 0,
            limits,
            next_sweep: 0,
        }
    }

    /// The port behind which a station is.
    pub(super) fn find(&self, station: Station, now: u64) -> Option<usize> {
        let entry = self.entries.get(&station)?;
        (!self.limits.aged(entry, now)).then_some(entry.slot)
    }

    /// A station has sent from behind this port, where so many may be learned.
    pub(super) fn saw(&self, station: Station, slot: usize, most: usize, now: u64) -> Known {
        let entry = self.entries.get(&station);
        if let Some(entry) = entry
            && entry.slot == slot
        {
            // A sixteenth late at most.
            if now.saturating_sub(entry.seen.load(Ordering::Relaxed)) > self.limits.ageing / 16 {
                entry.seen.store(now, Ordering::Relaxed);
            }
            return Known::Here;
        }
        match self.owned.get(&station.address()) {
            Some(&owner) if owner != slot => Known::Owned,
            Some(_) | None if entry.is_some() || self.has_room(slot, most) || now >= self.next_sweep => {
                Known::New
            }
            Some(_) | None => Known::NoRoom,
        }
    }

    /// A station is behind this port from now on, if there is room to know it.
    pub(super) fn learn(&mut self, station: Station, slot: usize, most: usize, now: u64) {
        if self.owned.get(&station.address()).is_some_and(|&owner| owner != slot) {
            return;
        }
        // Where it is no more it is forgotten in any case: else frames would go there until its entry has aged.
        if let Some(elsewhere) = self.entries.remove(&station) {
            self.count(&elsewhere, -1);
        }
        if !self.has_room(slot, most) {
            self.sweep(now);
            if !self.has_room(slot, most) {
                return;
            }
        }
        self.put(station, Entry { slot, seen: AtomicU64::new(now) });
    }

    /// The port that has this address for itself, if one has.
    pub(super) fn owner(&self, address: MacAddress) -> Option<usize> {
        self.owned.get(&address.to_u64()).copied()
    }

    /// A port has this address for itself from now on. In this VLAN it is known to be there.
    pub(super) fn own(&mut self, address: MacAddress, vlan: Option<u16>, slot: usize) {
        let address = address.to_u64();
        self.owned.insert(address, slot);
        self.retain(|station, entry| station.address() != address || entry.slot == slot);
        if let Some(vlan) = vlan {
            self.put(Station::new(vlan, address), Entry { slot, seen: AtomicU64::new(ALWAYS) });
        }
    }

    /// Nobody is behind this port any more.
    pub(super) fn forget_port(&mut self, slot: usize) {
        self.owned.retain(|_, owner| *owner != slot);
        self.retain(|_, entry| entry.slot != slot);
    }

    /// All that are known, with their port and when they last sent, if they had to.
    pub(super) fn iter(&self, now: u64) -> impl Iterator<Item = (Station, usize, Option<u64>)> + '_ {
        self.entries.iter().filter(move |(_, entry)| !self.limits.aged(entry, now)).map(
            |(&station, entry)| {
                let seen = entry.seen.load(Ordering::Relaxed);
                (station, entry.slot, (seen != ALWAYS).then_some(seen))
            },
        )
    }

    fn has_room(&self, slot: usize, most: usize) -> bool {
        self.total < self.limits.most && self.learned.get(slot).is_none_or(|&learned| learned < most)
    }

    fn put(&mut self, station: Station, entry: Entry) {
        self.count(&entry, 1);
        if let Some(before) = self.entries.insert(station, entry) {
            self.count(&before, -1);
        }
    }

    /// Forgets the aged ones; not for each frame that finds no room, as it looks at all.
    fn sweep(&mut self, now: u64) {
        if now >= self.next_sweep {
            self.next_sweep = now.saturating_add(self.limits.ageing / 16).max(now + 1);
            let limits = self.limits;
            self.retain(|_, entry| !limits.aged(entry, now));
        }
    }

    fn retain(&mut self, keep: impl Fn(Station, &Entry) -> bool) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|&station, entry| {
            let kept = keep(station, entry);
            if !kept {
                self.count(entry, -1);
            }
            kept
        });
        self.entries = entries;
    }

    /// Only what is learned counts: what ports own is bounded by their settings.
    fn count(&mut self, entry: &Entry, change: isize) {
        if entry.seen.load(Ordering::Relaxed) == ALWAYS {
            return;
        }
        if entry.slot >= self.learned.len() {
            self.learned.resize(entry.slot + 1, 0);
        }
        let learned = &mut self.learned[entry.slot];
        *learned = learned.saturating_add_signed(change);
        self.total = self.total.saturating_add_signed(change);
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
    const MANY: usize = usize::MAX;

    fn station(number: u64) -> Station {
        Station::new(1, number)
    }

    #[test]
    fn a_station_is_forgotten_when_it_was_silent_for_too_long() {
        let mut addresses = Addresses::new(LIMITS);
        addresses.learn(station(1), 3, MANY, 1000);
        assert_eq!(addresses.find(station(1), 2600), Some(3));
        assert_eq!(addresses.find(station(1), 2601), None);
        assert_eq!(addresses.saw(station(1), 3, MANY, 2601), Known::Here);
        assert_eq!(addresses.find(station(1), 4000), Some(3));
        assert_eq!(addresses.find(Station::new(2, 1), 4000), None, "it is another VLAN's");
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_with_age() {
        let mut addresses = Addresses::new(LIMITS);
        (0..100).for_each(|number| addresses.learn(station(number), 0, MANY, 1));
        assert_eq!(addresses.iter(1).count(), 4);
        assert_eq!(addresses.saw(station(99), 0, MANY, 1), Known::NoRoom);
        addresses.learn(station(99), 0, MANY, 2000);
        assert_eq!(addresses.find(station(99), 2000), Some(0));
        assert_eq!(addresses.iter(2000).count(), 1);
    }

    #[test]
    fn one_port_does_not_fill_the_table() {
        let mut addresses = Addresses::new(LIMITS);
        (0..100).for_each(|number| addresses.learn(station(number), 0, 2, 1));
        (200..300).for_each(|number| addresses.learn(station(number), 1, 2, 1));
        assert_eq!([0, 1].map(|port| addresses.iter(1).filter(|(_, slot, _)| *slot == port).count()), [2, 2]);
        addresses.forget_port(0);
        addresses.learn(station(1), 0, 2, 1);
        assert_eq!(addresses.find(station(1), 1), Some(0));
    }

    #[test]
    fn a_station_moves_and_goes_with_its_port() {
        let mut addresses = Addresses::new(LIMITS);
        addresses.learn(station(1), 0, MANY, 1);
        assert_eq!(addresses.saw(station(1), 1, MANY, 2), Known::New);
        addresses.learn(station(1), 1, MANY, 2);
        assert_eq!(addresses.find(station(1), 2), Some(1));
        addresses.forget_port(1);
        assert_eq!(addresses.find(station(1), 2), None);
        assert_eq!((addresses.total, addresses.learned), (0, vec![0, 0]));
    }

    #[test]
    fn what_a_port_owns_is_known_there_for_ever_and_nowhere_else() {
        let mut addresses = Addresses::new(LIMITS);
        let address = MacAddress::from_u64(7);
        addresses.learn(station(7), 1, MANY, 1);
        addresses.own(address, Some(1), 0);
        assert_eq!(addresses.find(station(7), u64::MAX), Some(0));
        assert_eq!(addresses.saw(station(7), 1, MANY, 2), Known::Owned);
        assert_eq!(addresses.saw(Station::new(9, 7), 1, MANY, 2), Known::Owned);
        addresses.learn(station(7), 1, MANY, 2);
        assert_eq!(addresses.find(station(7), 2), Some(0));
        assert_eq!((addresses.total, addresses.owner(address)), (0, Some(0)));
        addresses.forget_port(0);
        assert_eq!((addresses.find(station(7), 2), addresses.owner(address)), (None, None));
    }
}
