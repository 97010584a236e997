//! A provider that follows no rule against a network client: conversations of any messages, packets anywhere in the
//! receive buffer, whose bytes change meanwhile. Whatever it does, the client believes only what can be, reads only its
//! buffer, and does a bounded amount for each thing that it hears.

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::memory::SharedMemory;
use vmbus_core::network::Version;
use vmbus_core::network::nvsp::{self, ReceiveSection};
use vmbus_core::network::rndis::{self, InitializeComplete, Status};
use vmbus_partition::Mapping;
use vmbus_vsc::NicOptions;
use vmbus_vsc::bare::{BareNic, Said};

const MAX_STEPS: usize = 200;
const RECEIVE: usize = 16 * 4096;
const SEND: usize = 8 * 4096;
/// What the client says at most because of one thing that it hears: the version, configuration and buffers after INIT.
const MESSAGES_FOR_ONE: usize = 4;

/// Plays the conversation that the bytes describe.
pub fn run(bytes: &[u8]) {
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let options = NicOptions::new();
    let memory = Mapping::anonymous(RECEIVE).expect("memory for the buffer");
    memory.fill_zero(0, RECEIVE);
    let mut client = Client { nic: BareNic::new(&options, RECEIVE, SEND), memory };
    let first = client.nic.messages();
    client.answers(&first);
    if bool::arbitrary(input)? {
        client.begin(*input.choose(&Version::ALL)?);
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() || !client.take(&What::arbitrary(input)?) {
            break;
        }
    }
    Ok(())
}

/// One thing that the provider does.
#[derive(Arbitrary, Debug)]
enum What {
    Answer(Vec<u8>),
    Control(Vec<u8>),
    Notice(Vec<u8>),
    /// An answer of the right kind with any numbers.
    Buffers {
        status: u8,
        sections: u8,
        offset: u16,
        size: u32,
        pieces: u32,
        section: u32,
    },
    Value {
        request: u8,
        status: u8,
        data: Vec<u8>,
    },
    Initialized {
        request: u8,
        packets: u32,
        transfer: u32,
        alignment: u8,
    },
    /// A packet with ranges, where these bytes stand.
    Packet {
        at: u16,
        bytes: Vec<u8>,
        ranges: Vec<(u32, u16)>,
        control: bool,
    },
    /// The same with a header of the right kind.
    Frame {
        at: u16,
        header: [u16; 6],
        info: Vec<u8>,
        len: u16,
        before: u16,
    },
    Ask,
}

struct Client {
    nic: BareNic,
    memory: Mapping,
}

impl Client {
    /// What is asked of the client's answers: no more of them than there was reason for.
    fn answers(&self, said: &[Vec<u8>]) {
        assert!(said.len() <= MESSAGES_FOR_ONE, "{} messages", said.len());
        assert!(said.iter().all(|message| message.len() <= 4096));
        if let Some(info) = self.nic.info() {
            assert!((68..=1500).contains(&info.mtu) && info.pieces > 0 && info.queues > 0);
            assert!(info.section_size as usize <= SEND && info.pieces as usize <= RECEIVE / 192);
        }
    }

    /// Says this; `false`: the client gives up.
    fn say(&mut self, said: Said<'_>) -> bool {
        let was_ready = self.nic.info().is_some();
        let heard = self.nic.hear(said);
        assert!(!was_ready || heard.is_ok(), "nothing ends a NIC that is ready: {heard:?}");
        let messages = self.nic.messages();
        self.answers(&messages);
        heard.is_ok()
    }

    /// The start as it should be.
    fn begin(&mut self, version: Version) {
        let complete = |status| nvsp::Message::InitComplete { version: 0, max_mdl_chain: 34, status };
        for _ in Version::ALL.into_iter().filter(|newer| *newer > version) {
            assert!(self.say(Said::Answer(&complete(nvsp::Status::NONE).encode(version))));
        }
        assert!(self.say(Said::Answer(&complete(nvsp::Status::SUCCESS).encode(version))));
        let first = ReceiveSection {
            offset: 0.into(),
            piece_size: 2048.into(),
            pieces: 32.into(),
            end: 65536.into(),
        };
        let status = nvsp::Status::SUCCESS;
        let receive = nvsp::Message::ReceiveBufferComplete { status, sections: 1, first };
        assert!(self.say(Said::Answer(&receive.encode(version))));
        let send = nvsp::Message::SendBufferComplete { status, section_size: 4096 };
        assert!(self.say(Said::Answer(&send.encode(version))));
        let status = Status::SUCCESS;
        assert!(self.control(rndis::Message::InitializeComplete(InitializeComplete {
            request: 1,
            status,
            max_packets: 8,
            max_transfer: 65536,
            alignment_exponent: 3,
        })));
        for request in 2..20 {
            let data = &[0xdc, 5, 0, 0, 0, 1][..];
            assert!(self.control(rndis::Message::QueryComplete { request, status, data }));
            assert!(self.control(rndis::Message::SetComplete { request, status }));
        }
        assert!(self.nic.info().is_some(), "version {version}");
    }

    fn control(&mut self, message: rndis::Message<'_>) -> bool {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.say(Said::Control(&bytes))
    }

    fn take(&mut self, what: &What) -> bool {
        match what {
            What::Answer(bytes) => self.say(Said::Answer(bytes)),
            What::Control(bytes) => self.say(Said::Control(bytes)),
            What::Notice(bytes) => self.say(Said::Notice(bytes)),
            What::Buffers { status, sections, offset, size, pieces, section } => {
                let status = nvsp::Status(u32::from(*status % 4));
                let first = ReceiveSection {
                    offset: u32::from(*offset).into(),
                    piece_size: (*size).into(),
                    pieces: (*pieces).into(),
                    end: size.wrapping_mul(*pieces).into(),
                };
                let sections = u32::from(*sections % 3);
                let receive = nvsp::Message::ReceiveBufferComplete { status, sections, first };
                let send = nvsp::Message::SendBufferComplete { status, section_size: *section };
                self.say(Said::Answer(&receive.encode(Version::V6_1)))
                    && self.say(Said::Answer(&send.encode(Version::V6_1)))
            }
            What::Value { request, status, data } => {
                let (request, status) = (u32::from(*request), Status(u32::from(*status % 2)));
                self.control(rndis::Message::QueryComplete { request, status, data })
                    && self.control(rndis::Message::SetComplete { request, status })
                    && self.control(rndis::Message::ResetComplete { status, addressing_reset: true })
                    && self.control(rndis::Message::IndicateStatus { status: Status::MEDIA_CONNECT, data })
                    && self.control(rndis::Message::KeepAlive { request })
            }
            What::Initialized { request, packets, transfer, alignment } => {
                self.control(rndis::Message::InitializeComplete(InitializeComplete {
                    request: u32::from(*request % 4),
                    status: Status::SUCCESS,
                    max_packets: *packets,
                    max_transfer: *transfer,
                    alignment_exponent: u32::from(*alignment),
                }))
            }
            What::Packet { at, bytes, ranges, control } => {
                self.write(*at, bytes);
                let ranges: Vec<_> = ranges.iter().map(|(offset, len)| (*offset, u32::from(*len))).collect();
                if *control {
                    let was_ready = self.nic.info().is_some();
                    let heard = self.nic.hear_packet(&self.memory, &ranges);
                    assert!(!was_ready || heard.is_ok());
                    let said = self.nic.messages();
                    assert!(said.len() <= MESSAGES_FOR_ONE * ranges.len().max(1));
                    return heard.is_ok();
                }
                self.frames(&ranges);
                true
            }
            What::Frame { at, header, info, len, before } => {
                let mut bytes = vec![0; 44];
                let [data, data_len, info_at, info_len, message, kind] = header.map(u32::from);
                for (place, word) in
                    [(0, kind % 3), (4, message), (8, data), (12, data_len), (28, info_at), (32, info_len)]
                {
                    bytes[place..place + 4].copy_from_slice(&word.to_le_bytes());
                }
                bytes.extend_from_slice(info);
                self.write(*at, &bytes);
                let range = (u32::from(*at), u32::from(*len));
                self.frames(&[range, (range.0.wrapping_sub(u32::from(*before)), range.1), range]);
                true
            }
            What::Ask => {
                self.nic.ask();
                let messages = self.nic.messages();
                self.answers(&messages);
                true
            }
        }
    }

    fn write(&self, at: u16, bytes: &[u8]) {
        let at = usize::from(at);
        let len = bytes.len().min(RECEIVE - at);
        self.memory.write(at, &bytes[..len]);
    }

    fn frames(&self, ranges: &[(u32, u32)]) {
        let mut frames = 0;
        let malformed = self.nic.frames(&self.memory, ranges, |parts, len| {
            frames += 1;
            let sum: usize = parts.iter().map(|(_, len)| *len as usize).sum();
            assert_eq!(sum, len);
            assert!(!parts.is_empty() && len > 0);
            for (start, len) in parts {
                let end = *start as usize + *len as usize;
                assert!(end <= RECEIVE, "a frame within the buffer");
                let within = |(offset, piece): &(u32, u32)| {
                    *offset <= *start && end <= *offset as usize + *piece as usize
                };
                assert!(ranges.iter().any(within), "and within what was named");
            }
        });
        assert!(frames + malformed <= ranges.len() as u64 + 1);
    }
}
