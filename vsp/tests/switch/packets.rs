//! TCP and UDP packets, made and looked at without the switch's own code.

use vmbus_vsp::network::switch::IpVersion;

use crate::world::mac;

/// A TCP segment to be sent from station 1 to station 2.
#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) ip: IpVersion,
    /// Bytes of options in IPv4's header, or of one extension header of IPv6's: a multiple of 8.
    pub(crate) ip_options: usize,
    /// Bytes of options: a multiple of 4.
    pub(crate) options: usize,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Tcp {
    pub(crate) fn new(ip: IpVersion, payload: Vec<u8>) -> Self {
        Self { ip, ip_options: 0, options: 0, sequence: 1, flags: ACK, payload }
    }

    /// Where its TCP header begins.
    pub(crate) fn offset(&self) -> u16 {
        let ip = match self.ip {
            IpVersion::V4 => 20,
            IpVersion::V6 => 40,
        };
        u16::try_from(14 + ip + self.ip_options).expect("short headers")
    }

    /// The frame, with lengths but without any checksum: its field holds the pseudo header's sum.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let Self { ip, ip_options, options, sequence, flags, payload } = self;
        let mut tcp = vec![0, 80, 0, 81];
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([
            0,
            0,
            0,
            0,
            u8::try_from(((20 + options) / 4) << 4).expect("short options"),
            *flags,
            1,
            0,
        ]);
        tcp.extend([0; 4]);
        tcp.resize(20 + options, 1);
        tcp.extend(payload);
        wrap(*ip, *ip_options, 6, 16, tcp)
    }
}

pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

/// A UDP frame whose checksum is that of the pseudo header.
pub(crate) fn udp(ip: IpVersion, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("a short payload").to_be_bytes();
    let datagram = [&[0, 53, 0, 54][..], &len, &[0, 0], payload].concat();
    wrap(ip, 0, 17, 6, datagram)
}

fn wrap(ip: IpVersion, ip_options: usize, protocol: u8, field: usize, mut transport: Vec<u8>) -> Vec<u8> {
    let len = u16::try_from(transport.len()).unwrap_or(0);
    let mut frame = [&mac(2).0[..], &mac(1).0].concat();
    match ip {
        IpVersion::V4 => {
            let words = u8::try_from((20 + ip_options) / 4).expect("short options");
            let total = len.wrapping_add(20 + u16::try_from(ip_options).expect("short")).to_be_bytes();
            frame.extend([
                8,
                0,
                0x40 | words,
                0,
                total[0],
                total[1],
                0xff,
                0xfe,
                0x40,
                0,
                64,
                protocol,
                0,
                0,
            ]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            frame.resize(frame.len() + ip_options, 1);
        }
        IpVersion::V6 => {
            let payload = len.wrapping_add(u16::try_from(ip_options).expect("short")).to_be_bytes();
            let next = if ip_options > 0 { 60 } else { protocol };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, payload[0], payload[1], next, 64]);
            frame.extend([0xfd; 16]);
            frame.extend([0xfc; 16]);
            if ip_options > 0 {
                frame.extend([protocol, u8::try_from(ip_options / 8 - 1).expect("short"), 1, 0]);
                frame.resize(frame.len() + ip_options - 4, 0);
            }
        }
    }
    let pseudo = add(0, &pseudo(&frame, protocol, transport.len()));
    transport[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend(transport);
    frame
}

/// What a wire's receiver sees.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) id: u16,
    pub(crate) payload: Vec<u8>,
}

/// Takes a TCP frame apart; what does not fit or sum up is a panic.
pub(crate) fn take_apart(frame: &[u8]) -> Seen {
    let (transport, protocol) = verify(frame);
    assert_eq!(protocol, 6);
    let header = usize::from(transport[12] >> 4) * 4;
    let id = if frame[12..14] == [8, 0] { u16::from_be_bytes([frame[18], frame[19]]) } else { 0 };
    Seen {
        sequence: u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]),
        flags: transport[13],
        id,
        payload: transport[header..].to_vec(),
    }
}

/// Asserts that lengths and checksums are right, and gives what is in the packet.
pub(crate) fn verify(frame: &[u8]) -> (&[u8], u8) {
    let (transport, protocol) = match frame[12..14] {
        [8, 0] => {
            let header = usize::from(frame[14] & 0xf) * 4;
            assert_eq!(
                usize::from(u16::from_be_bytes([frame[16], frame[17]])),
                frame.len() - 14,
                "total length"
            );
            assert_eq!(add(0, &frame[14..14 + header]), 0xffff, "header checksum");
            (&frame[14 + header..], frame[23])
        }
        [0x86, 0xdd] => {
            assert_eq!(
                usize::from(u16::from_be_bytes([frame[18], frame[19]])),
                frame.len() - 54,
                "payload length"
            );
            match frame[20] {
                60 => (&frame[54 + (usize::from(frame[55]) + 1) * 8..], frame[54]),
                protocol => (&frame[54..], protocol),
            }
        }
        _ => panic!("no IP: {frame:02x?}"),
    };
    assert_eq!(add(add(0, &pseudo(frame, protocol, transport.len())), transport), 0xffff, "checksum");
    (transport, protocol)
}

fn pseudo(frame: &[u8], protocol: u8, len: usize) -> Vec<u8> {
    let addresses = if frame[12..14] == [8, 0] { &frame[26..34] } else { &frame[22..54] };
    let len = u32::try_from(len).expect("a packet's length").to_be_bytes();
    [addresses, &len, &[0, 0, 0, protocol]].concat()
}

/// Ones' complement addition, word by word.
fn add(sum: u16, bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        let (sum, carry) =
            sum.overflowing_add(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum + u16::from(carry)
    })
}
