//! A guest that follows no rule against a storage controller: conversations of any packets, commands of any bytes,
//! buffers anywhere in its memory. Whatever it does, only the memory that it named changes.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::pages::GpaDirect;
use vmbus_core::storage::{
    DataDirection, Operation, Outcome, Packet, Request, ScsiStatus, Srb, SrbStatus, Version,
};
use vmbus_partition::{GpaSpace, GuestPages, Mapping, Region};
use vmbus_vsp::storage::{
    Execution, Limits, Lun, Memory, Reply, ResetScope, State, Step, Target, Units, Vstor,
};

const MAX_STEPS: usize = 200;
const GUEST_BYTES: usize = 16 * 4096;
const GUEST_BASE: u64 = 0x10_0000;
const DISK_BYTES: u64 = 64 << 10;
const UNTOUCHED: u8 = 0xa5;

/// Plays the conversation that the bytes describe.
pub fn run(bytes: &[u8]) {
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut controller = Controller::new(input.int_in_range(0..=4)?);
    if bool::arbitrary(input)? {
        controller.begin(*input.choose(&[0x0402, 0x0501, 0x0602])?);
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        controller.take(&What::arbitrary(input)?);
    }
    Ok(())
}

/// One packet of the guest.
#[derive(Arbitrary, Debug)]
enum What {
    Raw(Vec<u8>),
    Operation {
        operation: u8,
        word: u16,
        long: bool,
    },
    Command {
        cdb: [u8; 16],
        cdb_length: u8,
        path: u8,
        target: u8,
        lun: u8,
        direction: u8,
        transfer: u16,
        buffer: Buffer,
    },
    /// Bytes of a GPA-direct header, and a command for them.
    Ranges {
        header: Vec<u8>,
        opcode: u8,
        blocks: u8,
        transfer: u16,
    },
}

#[derive(Arbitrary, Debug)]
struct Buffer {
    page: u8,
    offset: u16,
    length: u16,
    /// What the guest has there.
    content: Vec<u8>,
}

struct Controller {
    vstor: Vstor,
    target: Target,
    _units: Units,
    disk: Mapping,
    space: Arc<GpaSpace>,
    memory: Mapping,
    runtime: tokio::runtime::Runtime,
}

impl Controller {
    fn new(max_sub_channels: u16) -> Self {
        let memory = Memory::new(DISK_BYTES).expect("memory for the disk");
        let disk = memory.bytes().clone();
        let units = Units::default();
        assert!(units.add(0, Arc::new(Lun::new(memory))));
        let target = Target::new(&units);
        let memory = Mapping::anonymous(GUEST_BYTES).expect("memory for the guest");
        let region = Region { gpa: GUEST_BASE, domain: 0, mapping: memory.clone() };
        let space = Arc::new(GpaSpace::new(vec![region], 0).expect("one region"));
        let limits = Limits { max_sub_channels, ..Limits::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        Self { vstor: Vstor::new(limits), target, _units: units, disk, space, memory, runtime }
    }

    /// The conversation up to the state for commands.
    fn begin(&mut self, version: u16) {
        for request in [
            Request::BeginInitialization,
            Request::QueryProtocolVersion { version, revision: 0 },
            Request::QueryProperties,
            Request::EndInitialization,
        ] {
            self.packet(&request.to_packet().to_bytes(), None);
        }
        assert!(matches!(self.vstor.state(), State::Ready(_)));
    }

    fn take(&mut self, what: &What) {
        match what {
            What::Raw(payload) => self.packet(payload, None),
            What::Operation { operation, word, long } => {
                let mut payload = [0; Packet::MAX_SIZE];
                payload[0] = operation % 16;
                payload[4] = 1;
                payload[12..14].copy_from_slice(&word.to_le_bytes());
                self.packet(if *long { &payload } else { &payload[..48] }, None);
            }
            What::Command { cdb, cdb_length, path, target, lun, direction, transfer, buffer } => {
                let mut srb = Srb::default();
                srb.length = 0x34.into();
                (srb.path, srb.target, srb.lun) = (path % 3, target % 3, lun % 3);
                srb.cdb_length = cdb_length % 20;
                srb.sense_length = 0x14;
                srb.data_in = direction % 3;
                srb.data_transfer_length = u32::from(*transfer).into();
                srb.cdb_or_sense[..16].copy_from_slice(cdb);
                let pages = self.buffer(buffer);
                self.packet(&Request::ExecuteSrb(srb).to_packet().to_bytes(), pages.as_ref());
            }
            What::Ranges { header, opcode, blocks, transfer } => {
                let Ok(ranges) = GpaDirect::parse(header) else { return };
                let Some(range) = ranges.single() else { return };
                let Ok(pages) = self.space.pages(range) else { return };
                let mut srb = Srb::default();
                srb.length = 0x34.into();
                srb.cdb_length = 10;
                srb.sense_length = 0x14;
                srb.data_in = 2;
                srb.data_transfer_length = u32::from(*transfer).into();
                (srb.cdb_or_sense[0], srb.cdb_or_sense[8]) = (*opcode, *blocks);
                self.packet(&Request::ExecuteSrb(srb).to_packet().to_bytes(), Some(&pages));
            }
        }
    }

    fn buffer(&self, buffer: &Buffer) -> Option<GuestPages> {
        let start = usize::from(buffer.page % 16) * 4096 + usize::from(buffer.offset % 4096);
        let length = usize::from(buffer.length).min(GUEST_BYTES - start);
        let pages = self.space.span(GUEST_BASE + start as u64, length).ok()?;
        let content = &buffer.content[..buffer.content.len().min(length)];
        pages.write(0, content).expect("content fits");
        (length > 0).then_some(pages)
    }

    fn packet(&mut self, payload: &[u8], pages: Option<&GuestPages>) {
        let version = self.vstor.version();
        match self.vstor.handle(payload) {
            Err(fault) => {
                let _ = fault.to_string();
                assert!(payload.len() < Packet::HEADER_SIZE, "only what has no header cannot be answered");
            }
            Ok(Step::Reply(reply) | Step::CreateSubChannels(_, reply)) => check_reply(&reply),
            Ok(Step::Reset(scope, reply)) => {
                match scope {
                    ResetScope::Lun(address) => {
                        let _ = self.target.reset(address);
                    }
                    ResetScope::Controller => self.target.reset_all(),
                }
                check_reply(&reply);
            }
            Ok(Step::Execute(srb)) => {
                let version = version.expect("commands come when the version is known");
                self.execute(version, &srb, pages);
            }
        }
    }

    fn execute(&mut self, version: Version, srb: &Srb, pages: Option<&GuestPages>) {
        let (guest_before, disk_before) = (contents(&self.memory), contents(&self.disk));
        let outcome = match self.target.execute(srb, pages) {
            Execution::Done(outcome) => outcome,
            Execution::Later(rest) => self.runtime.block_on(rest),
        };
        self.check(srb, pages, &outcome, &guest_before, &disk_before);
        let reply = self.vstor.completion(srb, &outcome);
        assert_eq!(reply.as_bytes().len(), version.packet_size());
    }

    fn check(
        &self,
        srb: &Srb,
        pages: Option<&GuestPages>,
        outcome: &Outcome,
        guest_before: &[u8],
        disk_before: &[u8],
    ) {
        let room = srb.data_transfer_length.get();
        assert!(outcome.transferred <= room, "{srb:?}: {outcome:?}");
        let good = outcome.scsi_status == ScsiStatus::GOOD;
        assert_eq!(outcome.srb_status == SrbStatus::SUCCESS, good, "{outcome:?}");
        let guest = contents(&self.memory);
        let mut named = vec![false; GUEST_BYTES];
        if let Some(pages) = pages
            && srb.direction() != DataDirection::ToDevice
        {
            let mut left = room as usize;
            for (gpa, len) in pages.addresses() {
                let (start, len) = ((gpa - GUEST_BASE) as usize, (len as usize).min(left));
                named[start..start + len].fill(true);
                left -= len;
            }
        }
        for (at, named) in named.iter().enumerate() {
            assert!(*named || guest[at] == guest_before[at], "{srb:?} changed guest memory at {at:#x}");
        }
        if !good || srb.direction() == DataDirection::FromDevice {
            let unchanged = contents(&self.disk) == disk_before;
            let may_change = matches!(srb.cdb_or_sense[0], 0x41 | 0x42 | 0x93);
            assert!(unchanged || may_change, "{srb:?} changed the disk and answered {outcome:?}");
        }
    }
}

fn check_reply(reply: &Reply) {
    let answer = Packet::parse(reply.as_bytes()).expect("what we send is a packet");
    assert_eq!(answer.operation, Operation::COMPLETE_IO);
    assert!(matches!(reply.as_bytes().len(), Packet::HEADER_SIZE..=Packet::MAX_SIZE));
}

fn contents(mapping: &Mapping) -> Vec<u8> {
    use vmbus_core::memory::SharedMemory;
    let mut bytes = vec![UNTOUCHED; mapping.size()];
    mapping.read(0, &mut bytes);
    bytes
}
