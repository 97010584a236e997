//! Receive-side scaling: which of a guest's channels a flow goes to.
//!
//! A frame's addresses and ports are hashed as NDIS says (Toeplitz), and the guest's table names the channel, so that the
//! guest finds a flow where it would compute it to be.

use vmbus_core::network::ndis::{Rss, RssFlags, RssHashInfo};

/// Entries of the largest table.
pub(super) const MOST_ENTRIES: usize = 128;
/// Bytes of a key.
pub(super) const KEY: usize = 40;
/// Bytes that are hashed at most: two IPv6 addresses and two ports.
const LONGEST: usize = 36;

/// How a guest wants its flows spread.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct RssTable {
    /// What is hashed.
    pub(super) hash: RssHashInfo,
    /// Channel by hash, a power of two of them.
    pub(super) table: Vec<u16>,
    pub(super) key: [u8; KEY],
    /// What each value of each half byte that is hashed adds.
    parts: Box<[[u32; 16]; 2 * LONGEST]>,
}

impl RssTable {
    /// What the guest wants from now on: what it leaves out stays as it was. `None`: that makes no sense.
    pub(super) fn new(wanted: &Rss<'_>, flags: RssFlags, before: Option<&Self>, queues: u16) -> Option<Self> {
        let hash = match before {
            Some(before) if flags.contains(RssFlags::HASH_INFO_UNCHANGED) => before.hash,
            Some(_) | None => RssHashInfo::from_bits_retain(wanted.parameters.hash_info.get()),
        };
        let keeps_table = flags.contains(RssFlags::TABLE_UNCHANGED) || wanted.table.is_empty();
        let table = match before {
            Some(before) if keeps_table => before.table.clone(),
            Some(_) | None => {
                let queue = |queue: u32| u16::try_from(queue).ok().filter(|queue| *queue < queues);
                wanted.table.iter().map(|entry| queue(entry.get())).collect::<Option<_>>()?
            }
        };
        let keeps_key = flags.contains(RssFlags::KEY_UNCHANGED) || wanted.key.is_empty();
        let key = match before {
            Some(before) if keeps_key => before.key,
            Some(_) | None => wanted.key.try_into().ok()?,
        };
        Self::from_parts(hash, table, key)
    }

    /// `None` for a table that is none.
    pub(super) fn from_parts(hash: RssHashInfo, table: Vec<u16>, key: [u8; KEY]) -> Option<Self> {
        let possible = table.len().is_power_of_two() && table.len() <= MOST_ENTRIES;
        possible.then(|| Self { hash, table, key, parts: parts(&key) })
    }

    /// The channel for a frame, and its flow's hash; `None` if nothing of it is hashed.
    #[inline]
    pub(super) fn channel(&self, frame: &[u8]) -> Option<(u16, u32)> {
        let hash = self.hash(frame)?;
        // The table has a power of two of entries, at most 128.
        let entry = hash as usize & (self.table.len() - 1);
        Some((self.table[entry], hash))
    }

    fn hash(&self, frame: &[u8]) -> Option<u32> {
        const IPV4: [u8; 2] = [0x08, 0x00];
        const IPV6: [u8; 2] = [0x86, 0xdd];
        const TCP: u8 = 6;
        let kind: [u8; 2] = *frame.get(12..)?.first_chunk()?;
        let packet = frame.get(14..)?;
        let mut bytes = [0; LONGEST];
        match kind {
            IPV4 if self.hash.intersects(RssHashInfo::IPV4 | RssHashInfo::TCP_V4) => {
                let header: &[u8; 20] = packet.first_chunk()?;
                bytes[..8].copy_from_slice(&header[12..]);
                // A fragment has no ports, or others' bytes where they should be.
                let is_fragment = (header[6] & 0x3f) | header[7] != 0;
                let transport = usize::from(header[0] & 0xf) * 4;
                if self.hash.contains(RssHashInfo::TCP_V4) && header[9] == TCP && !is_fragment {
                    let ports: &[u8; 4] = packet.get(transport..)?.first_chunk()?;
                    bytes[8..12].copy_from_slice(ports);
                    return Some(self.sum(&bytes[..12]));
                }
                self.hash.contains(RssHashInfo::IPV4).then(|| self.sum(&bytes[..8]))
            }
            IPV6 if self.hash.intersects(RssHashInfo::IPV6 | RssHashInfo::TCP_V6) => {
                let header: &[u8; 40] = packet.first_chunk()?;
                bytes[..32].copy_from_slice(&header[8..]);
                if self.hash.contains(RssHashInfo::TCP_V6) && header[6] == TCP {
                    let ports: &[u8; 4] = packet.get(40..)?.first_chunk()?;
                    bytes[32..].copy_from_slice(ports);
                    return Some(self.sum(&bytes));
                }
                self.hash.contains(RssHashInfo::IPV6).then(|| self.sum(&bytes[..32]))
            }
            _ => None,
        }
    }

    /// The Toeplitz hash.
    #[inline]
    fn sum(&self, bytes: &[u8]) -> u32 {
        let (halves, _) = self.parts.as_chunks::<2>();
        bytes.iter().zip(halves).fold(0, |sum, (byte, [high, low])| {
            sum ^ high[usize::from(byte >> 4)] ^ low[usize::from(byte & 0xf)]
        })
    }
}

/// The hash is linear: what each half byte adds depends on its place and value alone.
fn parts(key: &[u8; KEY]) -> Box<[[u32; 16]; 2 * LONGEST]> {
    let mut parts = Box::new([[0; 16]; 2 * LONGEST]);
    for (place, values) in parts.iter_mut().enumerate() {
        // The key's 32 bits from each of the four bits on.
        let windows: [u32; 4] = std::array::from_fn(|bit| window(key, 4 * place + bit));
        for (value, part) in values.iter_mut().enumerate() {
            let bits = windows.iter().enumerate().filter(|(bit, _)| value & (8 >> bit) != 0);
            *part = bits.fold(0, |sum, (_, window)| sum ^ window);
        }
    }
    parts
}

/// 32 bits of the key from bit `at` on.
fn window(key: &[u8; KEY], at: usize) -> u32 {
    (at..at + 32).fold(0, |word, bit| word << 1 | u32::from(key[bit / 8] >> (7 - bit % 8) & 1))
}

impl std::fmt::Debug for RssTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RssTable")
            .field("hash", &self.hash)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the sums that Microsoft publishes to verify an implementation by.
    const MICROSOFT: [u8; KEY] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn table(hash: RssHashInfo) -> RssTable {
        RssTable::from_parts(hash, (0..8).collect(), MICROSOFT).unwrap()
    }

    /// TCP from 66.9.149.187:2794 to 161.142.100.80:1766.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 20];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[23] = 6;
        frame[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
        frame[34..38].copy_from_slice(&[0x0a, 0xea, 0x06, 0xe6]);
        frame
    }

    #[test]
    fn flows_have_the_published_hashes() {
        let addresses = table(RssHashInfo::IPV4);
        assert_eq!(addresses.hash(&frame()), Some(0x323e_8fc2));
        let ports = table(RssHashInfo::IPV4 | RssHashInfo::TCP_V4);
        assert_eq!(ports.hash(&frame()), Some(0x51cc_c178));
        assert_eq!(ports.channel(&frame()).unwrap().0, 0);
    }

    #[test]
    fn a_fragment_goes_where_the_others_without_ports_go() {
        let ports = table(RssHashInfo::IPV4 | RssHashInfo::TCP_V4);
        let mut fragment = frame();
        fragment[21] = 1;
        assert_eq!(ports.hash(&fragment), Some(0x323e_8fc2));
    }

    #[test]
    fn short_frames_have_no_hash() {
        let all = table(RssHashInfo::all());
        for len in 0..38 {
            let _ = all.channel(&frame()[..len]);
        }
        assert_eq!(all.channel(&frame()[..33]), None);
    }
}
