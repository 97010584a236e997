//! As much of Ethernet, IP, UDP and ICMPv6 as the switch looks into. Everything here is a sender's and may lie.

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;

/// Types of Ethernet's.
pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;
const VLAN_TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// Types from here on; below it is a length.
const FIRST_TYPE: u16 = 0x0600;

pub(in crate::network) const TCP: u8 = 6;
pub(in crate::network) const UDP: u8 = 17;
const ICMP_V6: u8 = 58;

/// Two bytes of the network's as a number.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

/// Whether this type says that a tag follows.
pub(super) fn is_tag(ether_type: u16) -> bool {
    VLAN_TAGS.contains(&ether_type)
}

/// Where the IP packet in an untagged frame ends: before its padding. Where the frame ends if that is no IP packet or
/// says that it is longer.
pub(super) fn end(frame: &[u8]) -> usize {
    let len = match word(frame, 12) {
        Some(IPV4) => word(frame, 16).map(|total| ETHERNET + usize::from(total)),
        Some(IPV6) => word(frame, 18).map(|payload| ETHERNET + 40 + usize::from(payload)),
        _ => None,
    };
    len.unwrap_or(frame.len()).min(frame.len())
}

/// The header of an untagged IPv4 frame.
pub(super) fn header_v4(frame: &mut [u8]) -> Option<&mut [u8]> {
    let is_v4 = word(frame, 12)? == IPV4;
    let packet = frame.get_mut(ETHERNET..)?;
    let first = *packet.first()?;
    let len = usize::from(first & 0x0f) * 4;
    packet.get_mut(..len).filter(|_| is_v4 && first >> 4 == 4 && len >= 20)
}

/// The protocol of the IP packet in a frame that has so many bytes of Ethernet header, tags included, and where that
/// protocol's header begins. `None` for fragments, and for what is no IP packet.
pub(in crate::network) fn transport(frame: &[u8], ethernet: usize) -> Option<(u8, usize)> {
    match word(frame, ethernet.checked_sub(2)?)? {
        IPV4 => transport_v4(frame, ethernet),
        IPV6 => transport_v6(frame, ethernet),
        _ => None,
    }
}

fn transport_v4(frame: &[u8], ethernet: usize) -> Option<(u8, usize)> {
    let header = frame.get(ethernet..ethernet + 20)?;
    let len = usize::from(header[0] & 0x0f) * 4;
    let fragment = word(header, 6)? & 0x3fff != 0;
    (header[0] >> 4 == 4 && len >= 20 && !fragment).then_some((header[9], ethernet + len))
}

fn transport_v6(frame: &[u8], ethernet: usize) -> Option<(u8, usize)> {
    let header = frame.get(ethernet..ethernet + 40)?;
    let (mut kind, mut at) = (header[6], ethernet + 40);
    if header[0] >> 4 != 6 {
        return None;
    }
    // Each header has 8 bytes at least. Those of fragments are not looked behind.
    while let 0 | 43 | 60 = kind {
        let head = frame.get(at..at + 8)?;
        (kind, at) = (head[0], at + (usize::from(head[1]) + 1) * 8);
    }
    Some((kind, at))
}

/// What a frame says that only some may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is from a DHCP server: from a server's port, or to a client's. Clients take answers from any port.
    DhcpServer,
    /// It is from a router: an advertisement or a redirect.
    Router,
    /// It hides what it is: it may be either.
    Hidden,
}

/// Looks for a claim in a frame without tag.
pub(super) fn claim(frame: &[u8]) -> Option<Claim> {
    match word(frame, 12)? {
        IPV4 => claim_v4(frame.get(ETHERNET..)?),
        IPV6 => claim_v6(frame.get(ETHERNET..)?),
        length if length < FIRST_TYPE => claim_snap(frame.get(ETHERNET..)?),
        tag if is_tag(tag) => Some(Claim::Hidden),
        _ => None,
    }
}

/// IP in 802.3's older form, which some systems take as well.
fn claim_snap(packet: &[u8]) -> Option<Claim> {
    let (head, inner) = packet.split_first_chunk::<8>()?;
    let [0xaa, 0xaa, 0x03, _, _, _, high, low] = *head else { return None };
    match u16::from_be_bytes([high, low]) {
        IPV4 => claim_v4(inner),
        IPV6 => claim_v6(inner),
        tag if is_tag(tag) => Some(Claim::Hidden),
        _ => None,
    }
}

fn claim_v4(packet: &[u8]) -> Option<Claim> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    // Later fragments have no ports.
    let first = word(packet, 6)? & 0x1fff == 0;
    if !first || *packet.get(9)? != UDP {
        return None;
    }
    let (from, to) = (word(packet, header)?, word(packet, header + 2));
    (from == 67 || to == Some(68)).then_some(Claim::DhcpServer)
}

/// Headers of one packet that are looked through.
const MOST_HEADERS: usize = 16;

fn claim_v6(packet: &[u8]) -> Option<Claim> {
    let mut kind = *packet.get(6)?;
    let mut rest = packet.get(40..)?;
    for _ in 0..MOST_HEADERS {
        let head = rest.first_chunk::<4>();
        let len = match (kind, head) {
            (UDP, Some(&[a, b, c, d])) => {
                let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                return (from == 547 || to == 546).then_some(Claim::DhcpServer);
            }
            (ICMP_V6, Some(&[134 | 137, ..])) => return Some(Claim::Router),
            (ICMP_V6, Some(_)) => return None,
            // Fragment: later ones have none of the headers that are looked for.
            (44, Some(&[_, _, high, low])) if u16::from_be_bytes([high, low]) & 0xfff8 != 0 => return None,
            (44, Some(_)) => 8,
            // Authentication; then hop by hop, routing, destination, mobility, HIP, shim6.
            (51, Some(&[_, len, ..])) => (usize::from(len) + 2) * 4,
            (0 | 43 | 60 | 135 | 139 | 140, Some(&[_, len, ..])) => (usize::from(len) + 1) * 8,
            // RFC 7113: what is not seen in the first fragment comes in a later one.
            (UDP | ICMP_V6 | 44 | 51 | 0 | 43 | 60 | 135 | 139 | 140, None) => return Some(Claim::Hidden),
            _ => return None,
        };
        let Some(next) = rest.get(len..) else { return Some(Claim::Hidden) };
        kind = rest[0];
        rest = next;
    }
    Some(Claim::Hidden)
}
