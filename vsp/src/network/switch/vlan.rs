//! VLANs: which a port is in, and tags in and out of frames.

use std::fmt;
use std::str::FromStr;

use vmbus_core::network::Vlan;

use super::batch::Arena;
use super::ip;
use super::statistics::DropReason;

/// Which VLANs a port is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanMode {
    /// This one; frames have no tags here. 0 is where ports are that are in no VLAN.
    Access(u16),
    /// These; frames have tags.
    Trunk {
        /// The one whose frames have no tag here.
        native: Option<u16>,
        /// Those whose frames have tags here.
        tagged: VlanSet,
    },
}

impl Default for VlanMode {
    fn default() -> Self {
        Self::Access(0)
    }
}

/// The highest VLAN; 4095 is reserved.
const LAST: u16 = 4094;

impl VlanMode {
    /// Whether frames of this VLAN belong here.
    pub(super) fn carries(&self, id: u16) -> bool {
        match self {
            Self::Access(own) => *own == id,
            Self::Trunk { native, tagged } => *native == Some(id) || tagged.contains(id),
        }
    }

    /// The VLAN whose frames have no tag here.
    pub(super) fn untagged(&self) -> Option<u16> {
        match self {
            Self::Access(own) => Some(*own),
            Self::Trunk { native, tagged: _ } => *native,
        }
    }

    pub(super) fn impossible_vlan(&self) -> Option<u16> {
        self.untagged().filter(|&id| id > LAST)
    }

    /// Finds out which VLAN a frame is in, and takes its tag out of the bytes.
    ///
    /// A frame with two tags is none that anybody may send here: its second tag would be the first one on the other
    /// side of an untagged port, and so lead into a VLAN that the sender is not in.
    pub(super) fn admit(&self, arena: &mut Arena, frame: usize) -> Result<u16, DropReason> {
        let beside = arena.heads[frame].offload.vlan;
        let (bytes, _) = arena.frame_mut(frame);
        let ether_type = ip::word(bytes, 12).ok_or(DropReason::Malformed)?;
        let tag = if ip::is_tag(ether_type) {
            let inner = ip::word(bytes, 16).ok_or(DropReason::Malformed)?;
            if ether_type != TAG || beside.is_some() || ip::is_tag(inner) {
                return Err(DropReason::Vlan);
            }
            let tag = parse(ip::word(bytes, 14).unwrap_or(0));
            bytes.copy_within(0..12, TAG_SIZE);
            arena.cut_front(frame, TAG_SIZE);
            arena.heads[frame].offload.shift(-4);
            Some(tag)
        } else {
            beside
        };
        let stated = tag.map_or(0, |tag| tag.id);
        let id = match (self, stated) {
            (Self::Access(own), 0) => *own,
            (Self::Trunk { native, tagged: _ }, 0) => native.ok_or(DropReason::Vlan)?,
            (Self::Trunk { native: _, tagged }, id) if tagged.contains(id) => id,
            (Self::Access(_) | Self::Trunk { .. }, _) => return Err(DropReason::Vlan),
        };
        arena.heads[frame].offload.vlan = match tag {
            Some(tag) => Some(Vlan { id, ..tag }),
            None if id != 0 => Some(Vlan { id, priority: 0, drop_eligible: false }),
            None => None,
        };
        Ok(id)
    }
}

/// The type that says that a tag follows.
const TAG: u16 = 0x8100;

/// Bytes of a tag with its type.
pub(super) const TAG_SIZE: usize = 4;

/// Puts a tag into a frame whose first [`TAG_SIZE`] bytes are still free.
pub(super) fn insert(bytes: &mut [u8], vlan: Vlan) {
    let word = u16::from(vlan.priority & 7) << 13 | u16::from(vlan.drop_eligible) << 12 | vlan.id & 0xfff;
    let [a, b] = TAG.to_be_bytes();
    let [c, d] = word.to_be_bytes();
    bytes.copy_within(TAG_SIZE..TAG_SIZE + 12, 0);
    bytes[12..16].copy_from_slice(&[a, b, c, d]);
}

fn parse(word: u16) -> Vlan {
    let [high, _] = word.to_be_bytes();
    Vlan { priority: high >> 5, drop_eligible: word & 0x1000 != 0, id: word & 0xfff }
}

/// A set of VLANs. Written and read as `1-10,20`, read as `all` too.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// None.
    pub fn none() -> Self {
        Self(Box::new([0; 64]))
    }

    /// 1 to 4094.
    pub fn all() -> Self {
        (1..=LAST).collect()
    }

    /// Whether it is in the set. 0 and 4095 never are.
    pub fn contains(&self, id: u16) -> bool {
        self.0.get(usize::from(id / 64)).is_some_and(|word| word >> (id % 64) & 1 != 0)
    }

    /// Those in the set.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (1..=LAST).filter(|&id| self.contains(id))
    }
}

impl FromIterator<u16> for VlanSet {
    /// Numbers that are no VLANs are left out.
    fn from_iter<I: IntoIterator<Item = u16>>(ids: I) -> Self {
        let mut set = Self::none();
        for id in ids.into_iter().filter(|id| (1..=LAST).contains(id)) {
            set.0[usize::from(id / 64)] |= 1 << (id % 64);
        }
        set
    }
}

impl fmt::Display for VlanSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        let mut next = 1;
        while let Some(first) = (next..=LAST).find(|&id| self.contains(id)) {
            let last = (first..=LAST).take_while(|&id| self.contains(id)).last().unwrap_or(first);
            write!(formatter, "{comma}{first}")?;
            if last > first {
                write!(formatter, "-{last}")?;
            }
            (comma, next) = (",", last + 1);
        }
        Ok(())
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VlanSet({self})")
    }
}

/// Text that is no set of VLANs. The writer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no set of VLANs: numbers from 1 to {LAST} and ranges like 1-10,20, or `all`")]
pub struct VlanSetError(String);

impl FromStr for VlanSet {
    type Err = VlanSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self::all());
        }
        let number = |text: &str| {
            let digits = text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse().ok().filter(|id| digits && (1..=LAST).contains(id))
        };
        let mut ids = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => ids.extend(first..=last),
                _ => return Err(VlanSetError(text.to_owned())),
            }
        }
        Ok(ids.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_as_it_is_written() {
        for text in ["1", "1-10,20", "4094", "1,3,5-6", "1-4094"] {
            assert_eq!(text.parse::<VlanSet>().unwrap().to_string(), text);
        }
        assert_eq!("all".parse::<VlanSet>().unwrap(), VlanSet::all());
        assert_eq!(VlanSet::none().to_string(), "");
        for wrong in ["", "0", "4095", "5-3", "1,", "-1", "1-2-3", "some", "+5"] {
            assert!(wrong.parse::<VlanSet>().is_err(), "{wrong}");
        }
        let some: VlanSet = [0, 1, 4094, 4095, u16::MAX].into_iter().collect();
        assert_eq!(some.iter().collect::<Vec<_>>(), [1, 4094]);
        assert!(!some.contains(u16::MAX) && !some.contains(4095));
    }

    #[test]
    fn a_tag_goes_in_before_the_type() {
        let vlan = Vlan { priority: 5, drop_eligible: true, id: 0xabc };
        assert_eq!(parse(0xbabc), vlan);
        let mut bytes = *b"....ddddddssssssTTpayload";
        insert(&mut bytes, vlan);
        assert_eq!(&bytes, b"ddddddssssss\x81\x00\xba\xbcTTpayload");
    }
}
