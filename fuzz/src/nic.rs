//! A guest that follows no rule against a NIC: conversations of any packets, messages about the device of any bytes,
//! frames in any ranges of its memory. Whatever it does, answers fit and quotas hold.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::network::nvsp::{Buffer, Message, Sender, Status as NvspStatus};
use vmbus_core::network::rndis::{self, PacketHeader};
use vmbus_core::network::{LargeSend, Oid, PacketInfo, PacketInfoWriter, TransmitChecksum, Version};
use vmbus_partition::{GpaSpace, GuestPages, Mapping, Region};
use vmbus_vsp::network::switch::{Batch, Checksum, MAX_FRAME, MacAddress};
use vmbus_vsp::network::transmit::{Allowed, Source, frames};
use vmbus_vsp::network::{Counts, Device, Identity, Limits, Link, Nvsp, State, Step, World};

const MAX_STEPS: usize = 200;
const GUEST_BYTES: usize = 32 * 4096;
const GUEST_BASE: u64 = 0x10_0000;

/// Plays the conversation that the bytes describe.
pub fn run(bytes: &[u8]) {
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut nic = Nic::new();
    if bool::arbitrary(input)? {
        let version = *input.choose(&Version::ALL)?;
        nic.begin(version);
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() || !nic.take(What::arbitrary(input)?) {
            break;
        }
    }
    Ok(())
}

/// One packet of the guest.
#[derive(Arbitrary, Debug)]
enum What {
    Raw(Vec<u8>),
    OnSubChannel(Vec<u8>),
    Message {
        kind: u8,
        words: [u32; 4],
        list: Option<u32>,
    },
    Control(Vec<u8>),
    Object {
        set: bool,
        oid: u8,
        data: Vec<u8>,
        /// Changes to the message.
        lies: Vec<(u16, u8)>,
    },
    Frames {
        frames: Vec<Frame>,
        lies: Vec<(u16, u8)>,
        /// Lengths of the ranges that the messages are cut into.
        cuts: Vec<u16>,
    },
}

#[derive(Arbitrary, Debug)]
struct Frame {
    len: u16,
    infos: Vec<Info>,
}

#[derive(Arbitrary, Debug)]
enum Info {
    Checksum { tcp: bool, udp: bool, ipv6: bool, offset: u16 },
    Large { size: u32, offset: u16, ipv6: bool },
    Hash(u32),
}

const OIDS: [Oid; 16] = [
    Oid::GEN_SUPPORTED_LIST,
    Oid::GEN_CURRENT_PACKET_FILTER,
    Oid::GEN_FRIENDLY_NAME,
    Oid::GEN_RNDIS_CONFIG_PARAMETER,
    Oid::GEN_RECEIVE_SCALE_CAPABILITIES,
    Oid::GEN_RECEIVE_SCALE_PARAMETERS,
    Oid::ETHERNET_MULTICAST_LIST,
    Oid::TCP_OFFLOAD_PARAMETERS,
    Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
    Oid::TCP_OFFLOAD_CURRENT_CONFIG,
    Oid::GEN_LINK_STATE,
    Oid::OFFLOAD_ENCAPSULATION,
    Oid::GEN_XMIT_OK,
    Oid::GEN_VENDOR_DESCRIPTION,
    Oid::GEN_MAX_LINK_SPEED,
    Oid(0),
];

struct Nic {
    nvsp: Nvsp,
    device: Device,
    limits: Limits,
    batch: Batch,
    memory: GuestPages,
}

impl Nic {
    fn new() -> Self {
        let mapping = Mapping::anonymous(GUEST_BYTES).expect("memory for the guest");
        let region = Region { gpa: GUEST_BASE, domain: 0, mapping };
        let space = Arc::new(GpaSpace::new(vec![region], 0).expect("one region"));
        let identity = Identity { name: "nic".into(), address: MacAddress([2, 0, 0, 0, 0, 1]) };
        let limits = Limits::default();
        Self {
            nvsp: Nvsp::new(limits),
            device: Device::new(identity),
            limits,
            batch: Batch::new(),
            memory: space.span(GUEST_BASE, GUEST_BYTES).expect("the guest's memory"),
        }
    }

    /// The conversation up to frames.
    fn begin(&mut self, version: Version) {
        let list = Some(1 << 20);
        let word = version.word();
        let receive = What::Message { kind: 101, words: [1, 2, 0, 0], list };
        for what in [
            What::Message { kind: 1, words: [word, word, 0, 0], list: None },
            What::Message { kind: 125, words: [1514, 0, 0xff, 0], list: None },
            What::Message { kind: 100, words: [6, 30, 0, 0], list: None },
            receive,
            What::Message { kind: 107, words: [1, u32::MAX, 0, 0], list: None },
        ] {
            if matches!(what, What::Message { kind: 125, .. }) && version == Version::V1 {
                continue;
            }
            assert!(self.take(what));
        }
        assert!(matches!(self.nvsp.state(), State::Ready(_)));
        let mut begin = Vec::new();
        rndis::Message::Initialize { request: 1, major: 1, minor: 0, max_transfer: 0x4000 }
            .encode(&mut begin);
        assert!(self.control(&begin));
    }

    /// `false`: the channel has ended.
    fn take(&mut self, what: What) -> bool {
        match what {
            What::Raw(payload) => self.packet(&payload, None),
            What::OnSubChannel(payload) => {
                let step = self.nvsp.handle_on_sub_channel(&payload);
                assert!(matches!(step, Ok(Step::Rndis { .. }) | Err(_)), "frames alone");
                true
            }
            What::Message { kind, words, list } => {
                let mut payload = [0; 40];
                payload[0] = kind;
                for (place, word) in payload[4..].chunks_exact_mut(4).zip(words) {
                    place.copy_from_slice(&word.to_le_bytes());
                }
                self.packet(&payload, list)
            }
            What::Control(bytes) => self.control(&bytes),
            What::Object { set, oid, data, lies } => {
                let oid = OIDS[usize::from(oid) % OIDS.len()];
                let message = match set {
                    true => rndis::Message::Set { request: 7, oid, data: &data },
                    false => rndis::Message::Query { request: 7, oid, data: &data },
                };
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                tell(&mut bytes, &lies);
                self.control(&bytes)
            }
            What::Frames { frames, lies, cuts } => {
                self.frames(&frames, &lies, &cuts);
                true
            }
        }
    }

    fn packet(&mut self, payload: &[u8], list: Option<u32>) -> bool {
        let Ok(step) = self.nvsp.handle(payload) else { return false };
        match step {
            Step::Reply(reply) => self.check_reply(&reply),
            Step::Done | Step::LetGo(_) => {}
            Step::Borrow(buffer, name) => {
                assert_eq!(self.nvsp.buffer(buffer), None, "one at a time");
                let len = list.map(|len| len as usize);
                let reply = self.nvsp.buffer_borrowed(buffer, name, len);
                self.check_reply(&reply);
                if self.nvsp.buffer(buffer).is_some() {
                    let len = list.expect("a buffer that is there");
                    if buffer == Buffer::Receive {
                        let section = self.nvsp.receive_section(len).expect("it was large enough");
                        assert_eq!(section.end.get(), section.piece_size.get() * section.pieces.get());
                        assert!(section.end.get() <= len && section.pieces.get() <= 1 << 16);
                    }
                }
            }
            Step::Rndis { .. } => {
                assert!(matches!(self.nvsp.state(), State::Ready(_)));
                self.check_reply(&self.nvsp.packet_done(NvspStatus::SUCCESS));
            }
            Step::OfferSubChannels(count) => {
                assert!(count > 0 && count < self.limits.max_queues && self.nvsp.sub_channels() == 0);
                let reply = self.nvsp.sub_channels_offered(Some(count));
                self.check_reply(&reply);
            }
        }
        true
    }

    fn check_reply(&self, reply: &[u8]) {
        Message::parse(reply, Sender::Host, self.nvsp.version()).expect("what we send is a message");
        assert!(reply.len() <= 40, "there is room for it");
    }

    fn control(&mut self, bytes: &[u8]) -> bool {
        let world = World {
            max_frame: self.nvsp.max_frame(),
            ndis: self.nvsp.ndis(),
            guest: self.nvsp.capabilities(),
            max_packets: self.limits.max_packets,
            max_queues: self.limits.max_queues,
            link: Link::default(),
            counts: Counts::default(),
        };
        let mut answer = Vec::new();
        if self.device.handle(bytes, &world, &mut answer).is_err() {
            assert!(answer.is_empty());
            return false;
        }
        let section = self.nvsp.receive_section(1 << 20).expect("room for sections").piece_size.get();
        assert!(answer.len() <= section as usize, "an answer of {} bytes", answer.len());
        if !answer.is_empty() {
            let answer = rndis::Message::parse(&answer).expect("what we send is a message");
            assert!(!matches!(answer, rndis::Message::Query { .. } | rndis::Message::Set { .. }));
        }
        true
    }

    fn frames(&mut self, wanted: &[Frame], lies: &[(u16, u8)], cuts: &[u16]) {
        let mut bytes = Vec::new();
        for frame in wanted.iter().take(40) {
            let mut infos = PacketInfoWriter::default();
            for info in frame.infos.iter().take(20) {
                infos.push(match *info {
                    Info::Checksum { tcp, udp, ipv6, offset } => {
                        PacketInfo::TransmitChecksum(TransmitChecksum {
                            ipv4: !ipv6,
                            ipv6,
                            tcp,
                            udp,
                            ip_header: !ipv6,
                            transport_offset: offset % 1024,
                        })
                    }
                    Info::Large { size, offset, ipv6 } => PacketInfo::LargeSend(LargeSend {
                        segment_size: size % (1 << 20),
                        tcp_offset: offset % 1024,
                        version_2: true,
                        ipv6,
                    }),
                    Info::Hash(hash) => PacketInfo::Hash(hash),
                });
            }
            let info_len = u32::try_from(infos.bytes().len()).expect("a few pieces");
            bytes.extend_from_slice(&PacketHeader::encode(info_len, u32::from(frame.len % 4096)));
            bytes.extend_from_slice(infos.bytes());
            bytes.resize(bytes.len() + usize::from(frame.len % 4096), 0x5a);
        }
        bytes.truncate(GUEST_BYTES);
        tell(&mut bytes, lies);
        self.memory.write(0, &bytes).expect("it fits");
        let (mut ranges, mut at) = (Vec::new(), 0);
        for cut in cuts {
            let len = usize::from(*cut).min(bytes.len() - at);
            ranges.push(self.memory.slice(at, len).expect("within"));
            at += len;
        }
        ranges.push(self.memory.slice(at, bytes.len() - at).expect("within"));

        let allowed =
            Allowed { max_frame: self.nvsp.max_frame() as usize, max_packets: self.limits.max_packets };
        let mut sent = 0;
        let (count, result) = frames(&Source::of_ranges(&ranges), allowed, &mut self.batch, |batch| {
            sent += batch.len();
            batch.clear();
        });
        assert!(count <= allowed.max_packets && sent + self.batch.len() == count as usize);
        if lies.is_empty() && result.is_ok() {
            assert_eq!(count as usize, wanted.len().min(40), "each frame is there once");
        }
        for frame in self.batch.frames() {
            let len = frame.bytes.len();
            let is_large = frame.offload.segmentation.is_some();
            assert!(len >= 14 && len <= if is_large { MAX_FRAME } else { allowed.max_frame + 4 });
            if let Checksum::Missing { start, field } = frame.offload.checksum {
                assert!(
                    usize::from(start) + usize::from(field) + 2 <= len,
                    "a checksum outside of the frame"
                );
            }
            if let Some(segmentation) = frame.offload.segmentation {
                assert!(usize::from(segmentation.tcp_offset) + 20 <= len && segmentation.segment_size > 0);
            }
        }
        self.batch.clear();
    }
}

/// Changes bytes here and there.
fn tell(bytes: &mut [u8], lies: &[(u16, u8)]) {
    for (at, byte) in lies {
        let len = bytes.len().max(1);
        if let Some(place) = bytes.get_mut(usize::from(*at) % len) {
            *place = *byte;
        }
    }
}
