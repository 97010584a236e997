//! Storage packets.

use vmbus_core::Status;
use vmbus_core::pages::PageRanges;
use vmbus_core::storage::scsi::{BlockRange, Command, Failure};
use vmbus_core::storage::{
    Address, DataDirection, Notice, Operation, Outcome, Packet, PacketFlags, Properties, PropertyFlags,
    Request, Srb, SrbStatus, Version,
};

use crate::{Check, ring};

pub(crate) const CHECKS: &[Check] = &[
    ("ST-1", |bytes| request(bytes, Request::BeginInitialization)),
    ("ST-2", |bytes| {
        request(bytes, Request::QueryProtocolVersion { version: Version::V6_2.word(), revision: 0 })
    }),
    ("ST-3", |bytes| {
        request(bytes, Request::QueryProtocolVersion { version: Version::V4_2.word(), revision: 0 })
    }),
    ("ST-4", |bytes| completion(bytes, Packet::completion(Status::SUCCESS))),
    ("ST-5", |bytes| completion(bytes, Packet::completion(Status::REVISION_MISMATCH))),
    ("ST-6", |bytes| request(bytes, Request::QueryProperties)),
    ("ST-7", |bytes| {
        let properties = Properties {
            max_sub_channels: 4.into(),
            flags: PropertyFlags::MULTI_CHANNEL.bits().into(),
            max_transfer_bytes: 0x40000.into(),
            ..Properties::default()
        };
        assert_eq!(Packet::parse(bytes).unwrap().properties(), Ok(properties));
        completion(bytes, Packet::properties_completion(&properties));
    }),
    ("ST-8", |bytes| request(bytes, Request::EndInitialization)),
    ("ST-9", |bytes| request(bytes, Request::CreateSubChannels(3))),
    ("ST-10", |bytes| {
        let inquiry = Command::Inquiry { options: 0, page: 0, allocation_length: 36 };
        command(bytes, Version::V6_2, inquiry, DataDirection::FromDevice, 36);
    }),
    ("ST-11", |bytes| command(bytes, Version::V6_2, read(), DataDirection::FromDevice, 8192)),
    ("ST-12", |packet| {
        ring::gpa_direct(packet, &PageRanges::single(0, 8192, [0x5555, 0x6666]).unwrap());
        command(ring::payload(packet), Version::V6_2, read(), DataDirection::FromDevice, 8192);
    }),
    ("ST-13", |packet| {
        ring::gpa_direct(packet, &PageRanges::single(0x800, 8192, [0x70, 0x71, 0x72]).unwrap());
        command(ring::payload(packet), Version::V6_2, read(), DataDirection::FromDevice, 8192);
    }),
    ("ST-14", |bytes| answer(bytes, &srb(read(), 8192), &Outcome::success(8192))),
    ("ST-15", |packet| answer(ring::payload(packet), &srb(read(), 8192), &Outcome::success(8192))),
    ("ST-16", |bytes| {
        let request =
            Srb { cdb_length: 10, data_in: 1, length: 0x34.into(), sense_length: 20, ..Srb::default() };
        answer(bytes, &request, &Failure::UnknownOpcode.outcome());
        let srb = Packet::parse(bytes).unwrap().srb().unwrap();
        assert_eq!(srb.srb_status, SrbStatus::INVALID_REQUEST.0 | SrbStatus::AUTOSENSE_VALID);
        assert_eq!(srb.sense().map(<[u8]>::len), Some(18));
    }),
    ("ST-17", |bytes| {
        let address = Address { path: 0, target: 0, lun: 9 };
        let cdb = Command::TestUnitReady.emit().unwrap();
        let request = Srb::request(Version::V6_2, address, &cdb, DataDirection::Unspecified, 0);
        answer(bytes, &request, &Failure::NoSuchLun.outcome());
    }),
    ("ST-18", |packet| notice(ring::payload(packet), Notice::EnumerateBus)),
    ("ST-19", |bytes| notice(bytes, Notice::RemoveDevice)),
    ("ST-20", |bytes| {
        let packet = Packet::parse(bytes).unwrap();
        let Ok(Request::ExecuteSrb(srb)) = packet.request() else { panic!("{packet:?}") };
        assert_eq!(Command::parse(srb.cdb().unwrap()), Ok(Command::TestUnitReady));
        assert_eq!(
            (srb.length.get(), srb.sense_length),
            (Version::V4_2.srb_length(), Version::V4_2.sense_room())
        );
        assert_eq!(srb.direction(), DataDirection::Unspecified);
        request(bytes, Request::ExecuteSrb(srb));
    }),
];

fn request(bytes: &[u8], request: Request) {
    let packet = Packet::parse(bytes).unwrap();
    assert_eq!(packet.flags, PacketFlags::REQUEST_COMPLETION);
    assert_eq!(packet.request(), Ok(request));
    assert_eq!(packet.to_bytes()[..bytes.len()], *bytes);
    assert_eq!(request.to_packet().to_bytes()[..bytes.len()], *bytes);
}

fn notice(bytes: &[u8], notice: Notice) {
    let packet = Packet::parse(bytes).unwrap();
    assert_eq!((packet.flags, packet.notice()), (PacketFlags::empty(), Some(notice)));
    assert_eq!(notice.to_packet().to_bytes(), bytes);
}

fn completion(bytes: &[u8], expected: Packet) {
    let packet = Packet::parse(bytes).unwrap();
    assert_eq!(packet.operation, Operation::COMPLETE_IO);
    assert_eq!(packet, expected);
    assert_eq!(packet.to_bytes(), bytes);
}

/// The command as Linux sends it.
fn command(bytes: &[u8], version: Version, command: Command, direction: DataDirection, len: u32) {
    let packet = Packet::parse(bytes).unwrap();
    let Ok(Request::ExecuteSrb(srb)) = packet.request() else { panic!("{packet:?}") };
    assert_eq!(Command::parse(srb.cdb().unwrap()), Ok(command));
    assert_eq!((srb.direction(), command.direction()), (direction, direction));
    assert_eq!(srb.data_transfer_length.get(), len);
    assert_eq!(srb.address(), Address::default());
    assert_eq!(srb, Srb::request(version, Address::default(), &command.emit().unwrap(), direction, len));
    request(bytes, Request::ExecuteSrb(srb));
}

fn answer(bytes: &[u8], request: &Srb, outcome: &Outcome) {
    let packet = Packet::parse(bytes).unwrap();
    assert_eq!(packet.srb().unwrap().outcome(), *outcome);
    assert_eq!(packet.status, outcome.srb_status.to_status());
    completion(bytes, Packet::srb_completion(&request.answer(outcome)));
}

fn read() -> Command {
    Command::Read(BlockRange::new(0x1000, 16))
}

fn srb(command: Command, len: u32) -> Srb {
    let cdb = command.emit().unwrap();
    Srb::request(Version::V6_2, Address::default(), &cdb, command.direction(), len)
}
