//! The storage conversation, packet by packet, for every version and against every disorder.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that panics has failed")]

use proptest::prelude::*;
use vmbus_core::Status;
use vmbus_core::storage::scsi::{Failure, Sense};
use vmbus_core::storage::{
    Address, Notice, Operation, Outcome, Packet, PropertyFlags, Request, Srb, SrbStatus, Version,
};
use vmbus_vsp::storage::{Limits, Reply, ResetScope, State, Step, Vstor, VstorFault};

fn packet(request: Request, version: Version) -> Vec<u8> {
    request.to_packet().to_bytes()[..version.packet_size()].to_vec()
}

/// The guest's end: asks, and expects to be answered at once.
fn ask(vstor: &mut Vstor, bytes: &[u8]) -> Packet {
    match vstor.handle(bytes).unwrap() {
        Step::Reply(reply) | Step::Reset(_, reply) | Step::CreateSubChannels(_, reply) => {
            answer(&reply, bytes.len())
        }
        Step::Execute(srb) => panic!("no answer but {srb:?}"),
    }
}

fn answer(reply: &Reply, length: usize) -> Packet {
    assert_eq!(reply.as_bytes().len(), length);
    let packet = Packet::parse(reply.as_bytes()).unwrap();
    assert_eq!(packet.operation, Operation::COMPLETE_IO);
    packet
}

fn status(vstor: &mut Vstor, request: Request) -> Status {
    ask(vstor, &packet(request, Version::V6_2)).status
}

fn query(version: Version) -> Request {
    Request::QueryProtocolVersion { version: version.word(), revision: version.word() }
}

fn ready(limits: Limits, version: Version) -> Vstor {
    let mut vstor = Vstor::new(limits);
    for request in
        [Request::BeginInitialization, query(version), Request::QueryProperties, Request::EndInitialization]
    {
        assert_eq!(ask(&mut vstor, &packet(request, version)).status, Status::SUCCESS, "{request:?}");
    }
    assert_eq!(vstor.state(), State::Ready(version));
    vstor
}

fn inquiry() -> Srb {
    let Ok(Request::ExecuteSrb(srb)) = Packet::parse(&vector("ST-10")).unwrap().request() else {
        panic!("ST-10 is an INQUIRY")
    };
    srb
}

fn vector(id: &str) -> Vec<u8> {
    let vectors = include_str!("../../vmbus-core/tests/vectors.json");
    let at = vectors.find(&format!("\"{id}\"")).unwrap();
    let digits = vectors[at + id.len() + 2..].split('"').nth(1).unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn linux_comes_up_with_the_vectors_of_the_specification() {
    let mut vstor = Vstor::new(Limits { max_sub_channels: 4, max_transfer: 0x4_0000, ..Limits::default() });
    let mut exchange = |request: &str, expected: &str| match vstor.handle(&vector(request)).unwrap() {
        Step::Reply(reply) | Step::CreateSubChannels(_, reply) => {
            let mut bytes = reply.as_bytes().to_vec();
            if request == "ST-2" {
                bytes[12..14].fill(0); // ours echoes the version
            }
            assert_eq!(bytes, vector(expected), "{request}");
        }
        other => panic!("{request}: {other:?}"),
    };
    exchange("ST-1", "ST-4");
    exchange("ST-2", "ST-4");
    exchange("ST-6", "ST-7");
    exchange("ST-8", "ST-4");
    exchange("ST-9", "ST-4");
    let Step::Execute(srb) = vstor.handle(&vector("ST-11")).unwrap() else { panic!("ST-11 is a READ") };
    let done = vstor.completion(&srb, &Outcome::success(8192));
    let moved = Packet::parse(done.as_bytes()).unwrap().srb().unwrap().outcome();
    assert_eq!(moved, Packet::parse(&vector("ST-14")).unwrap().srb().unwrap().outcome());
}

#[test]
fn every_version_is_spoken_with_packets_of_its_size() {
    for version in Version::ALL {
        let vstor = ready(Limits::default(), version);
        let srb = inquiry();
        let reply = vstor.completion(&srb, &Outcome::success(36));
        assert_eq!(reply.as_bytes().len(), version.packet_size(), "{version}");
        let refused = vstor.completion(&srb, &Failure::UnknownOpcode.outcome());
        let answer = Packet::parse(refused.as_bytes()).unwrap();
        assert_eq!(answer.status, Status::IO_DEVICE_ERROR);
        assert_eq!(answer.srb().unwrap().sense().map(<[u8]>::len), Some(18), "{version}");
        assert_eq!(vstor.notice(Notice::EnumerateBus).is_some(), version >= Version::V4_2, "{version}");
    }
}

#[test]
fn the_size_of_packets_is_the_versions_whatever_the_first_ones_were() {
    let mut vstor = Vstor::new(Limits::default());
    for request in [
        Request::BeginInitialization,
        query(Version::V4_2),
        Request::QueryProperties,
        Request::EndInitialization,
    ] {
        vstor.handle(&packet(request, Version::V6_2)).unwrap();
    }
    let Step::Execute(srb) = vstor.handle(&vector("ST-20")).unwrap() else { panic!("ST-20 is a command") };
    assert_eq!(vstor.completion(&srb, &Outcome::success(0)).as_bytes().len(), 48);
    assert_eq!(ask_sized(&mut vstor, Request::ResetBus, 64), 48);
}

fn ask_sized(vstor: &mut Vstor, request: Request, size: usize) -> usize {
    match vstor.handle(&request.to_packet().to_bytes()[..size]).unwrap() {
        Step::Reply(reply) | Step::Reset(_, reply) | Step::CreateSubChannels(_, reply) => {
            reply.as_bytes().len()
        }
        Step::Execute(srb) => panic!("no answer but {srb:?}"),
    }
}

#[test]
fn the_answer_to_a_failed_command_is_the_specifications() {
    let vstor = ready(Limits::default(), Version::V6_2);
    for (failure, id) in [(Failure::UnknownOpcode, "ST-16"), (Failure::NoSuchLun, "ST-17")] {
        let expected = Packet::parse(&vector(id)).unwrap();
        let srb = Srb { sense_length: 20, ..inquiry() };
        let reply = Packet::parse(vstor.completion(&srb, &failure.outcome()).as_bytes()).unwrap();
        assert_eq!(reply.status, expected.status, "{id}");
        let (ours, theirs) = (reply.srb().unwrap(), expected.srb().unwrap());
        assert_eq!((ours.srb_status, ours.scsi_status), (theirs.srb_status, theirs.scsi_status), "{id}");
        assert_eq!(ours.sense(), theirs.sense(), "{id}");
    }
}

#[test]
fn a_guest_that_knows_newer_versions_comes_down_to_ours() {
    let limits = Limits { newest: Version::V5_1, oldest: Version::V4_2, ..Limits::default() };
    let mut vstor = Vstor::new(limits);
    assert_eq!(status(&mut vstor, Request::BeginInitialization), Status::SUCCESS);
    for version in [Version::V6_2, Version::V6_0, Version::V2_0] {
        assert_eq!(status(&mut vstor, query(version)), Status::REVISION_MISMATCH, "{version}");
        assert_eq!(vstor.state(), State::QueryVersion);
    }
    let unknown = Request::QueryProtocolVersion { version: 0x0700, revision: 0 };
    assert_eq!(status(&mut vstor, unknown), Status::REVISION_MISMATCH);
    assert_eq!(status(&mut vstor, query(Version::V5_1)), Status::SUCCESS);
    assert_eq!(vstor.version(), Some(Version::V5_1));
}

#[test]
fn a_request_in_the_wrong_state_is_refused_and_changes_nothing() {
    let srb = Request::ExecuteSrb(inquiry());
    let lun = Request::ResetLun(Address::default());
    let all = [
        Request::BeginInitialization,
        query(Version::V6_2),
        Request::QueryProperties,
        Request::EndInitialization,
        Request::CreateSubChannels(0),
        srb,
        lun,
        Request::ResetBus,
        Request::ResetAdapter,
    ];
    let path = &all[..4];
    for (step, _) in path.iter().enumerate() {
        let mut vstor = Vstor::new(Limits::default());
        for &request in &path[..step] {
            status(&mut vstor, request);
        }
        let before = vstor.state();
        for request in all {
            let welcome =
                request == path[step] || (step == 3 && matches!(request, Request::CreateSubChannels(_)));
            if welcome {
                continue;
            }
            assert_eq!(
                status(&mut vstor, request),
                Status::INVALID_DEVICE_STATE,
                "{request:?} in {before:?}"
            );
            assert_eq!(vstor.state(), before);
        }
    }
    let mut vstor = ready(Limits::default(), Version::V6_2);
    for &request in path {
        assert_eq!(status(&mut vstor, request), Status::INVALID_DEVICE_STATE, "{request:?} when ready");
    }
}

#[test]
fn what_nobody_knows_is_answered_and_the_conversation_goes_on() {
    let mut vstor = ready(Limits::default(), Version::V6_2);
    for operation in [0, 1, 2, 11, 12, 14, 15, 0xffff_ffff] {
        let mut bytes = packet(Request::ResetBus, Version::V6_2);
        bytes[..4].copy_from_slice(&u32::to_le_bytes(operation));
        assert_eq!(ask(&mut vstor, &bytes).status, Status::INVALID_DEVICE_REQUEST, "operation {operation}");
    }
    assert!(matches!(vstor.handle(&vector("ST-10")), Ok(Step::Execute(_))));
}

#[test]
fn a_packet_without_its_payload_is_refused_and_one_without_a_header_ends_the_channel() {
    let mut vstor = ready(Limits::default(), Version::V6_2);
    let bytes = vector("ST-10");
    let Ok(Step::Reply(reply)) = vstor.handle(&bytes[..47]) else { panic!("a cut command was run") };
    assert_eq!(answer(&reply, 64).status, Status::INVALID_PARAMETER);
    assert_eq!(vstor.handle(&bytes[..11]), Err(VstorFault::TooShort { len: 11 }));
    assert_eq!(vstor.handle(&[]), Err(VstorFault::TooShort { len: 0 }));
}

#[test]
fn sub_channels_are_made_once_and_never_more_than_offered() {
    let limits = Limits { max_sub_channels: 3, ..Limits::default() };
    let mut vstor = ready(limits, Version::V5_1);
    assert_eq!(status(&mut vstor, Request::CreateSubChannels(4)), Status::INVALID_PARAMETER);
    assert!(matches!(
        vstor.handle(&packet(Request::CreateSubChannels(2), Version::V5_1)),
        Ok(Step::CreateSubChannels(2, _))
    ));
    assert_eq!(status(&mut vstor, Request::CreateSubChannels(1)), Status::INVALID_PARAMETER);

    let mut old = Vstor::new(limits);
    old.handle(&packet(Request::BeginInitialization, Version::V4_2)).unwrap();
    old.handle(&packet(query(Version::V4_2), Version::V4_2)).unwrap();
    let properties = ask(&mut old, &packet(Request::QueryProperties, Version::V4_2)).properties().unwrap();
    assert_eq!(properties.max_sub_channels.get(), 0, "too old for them");
    assert_eq!(properties.flags.get() & PropertyFlags::MULTI_CHANNEL.bits(), 0);
    let refused = ask(&mut old, &packet(Request::CreateSubChannels(1), Version::V4_2));
    assert_eq!(refused.status, Status::INVALID_PARAMETER);
}

#[test]
fn a_sub_channel_carries_commands_and_nothing_else() {
    let mut vstor = Vstor::new(Limits { max_sub_channels: 1, ..Limits::default() });
    let early = vstor.handle_on_sub_channel(&vector("ST-10")).unwrap();
    assert!(matches!(early, Step::Reply(reply) if answer(&reply, 64).status == Status::INVALID_DEVICE_STATE));
    vstor.clone_from(&ready(Limits::default(), Version::V6_2));
    assert!(matches!(vstor.handle_on_sub_channel(&vector("ST-10")), Ok(Step::Execute(_))));
    let reset = vstor.handle_on_sub_channel(&packet(Request::ResetBus, Version::V6_2)).unwrap();
    assert!(matches!(reset, Step::Reply(reply) if answer(&reply, 64).status == Status::INVALID_DEVICE_STATE));
}

#[test]
fn resets_name_their_scope() {
    let mut vstor = ready(Limits::default(), Version::V6_2);
    let address = Address { path: 0, target: 0, lun: 3 };
    let scope = |vstor: &mut Vstor, request| match vstor.handle(&packet(request, Version::V6_2)) {
        Ok(Step::Reset(scope, reply)) if answer(&reply, 64).status == Status::SUCCESS => scope,
        other => panic!("{other:?}"),
    };
    assert_eq!(scope(&mut vstor, Request::ResetLun(address)), ResetScope::Lun(address));
    assert_eq!(scope(&mut vstor, Request::ResetBus), ResetScope::Controller);
    assert_eq!(scope(&mut vstor, Request::ResetAdapter), ResetScope::Controller);
}

#[test]
fn notices_are_the_vectors_of_the_specification_and_wait_until_the_guest_is_ready() {
    let vstor = ready(Limits::default(), Version::V6_2);
    assert_eq!(vstor.notice(Notice::RemoveDevice).unwrap().as_bytes(), vector("ST-19"));
    assert_eq!(vstor.notice(Notice::EnumerateBus).unwrap().as_bytes(), &vector("ST-18")[16..80]);
    assert_eq!(Vstor::new(Limits::default()).notice(Notice::EnumerateBus), None);
}

#[test]
fn an_abandoned_request_ends_without_being_taken_for_done() {
    let reply = ready(Limits::default(), Version::V6_2).abandoned();
    let packet = answer(&reply, 64);
    assert_eq!(packet.status, Status::CANCELLED);
    let outcome = packet.srb().unwrap().outcome();
    assert_eq!((outcome.srb_status, outcome.transferred), (SrbStatus::ABORTED, 0));
    assert_eq!(outcome.sense, Some(Sense::ABORTED), "guests guess where there is no sense");
}

proptest! {
    /// Whatever a guest sends, it gets an answer it can read, and only commands in the right state are run.
    #[test]
    fn no_bytes_confuse_the_conversation(
        packets in prop::collection::vec(
            (0_u32..17, prop::collection::vec(any::<u8>(), 0..80), any::<bool>()), 1..40)
    ) {
        let mut vstor = Vstor::new(Limits { max_sub_channels: 2, ..Limits::default() });
        for (operation, mut bytes, sensible) in packets {
            if sensible && bytes.len() >= 14 {
                bytes[..4].copy_from_slice(&operation.to_le_bytes());
                bytes[12..14].copy_from_slice(&Version::V6_2.word().to_le_bytes());
            }
            let before = vstor.state();
            match vstor.handle(&bytes) {
                Ok(Step::Execute(_)) => prop_assert!(matches!(before, State::Ready(_))),
                Ok(Step::Reply(reply) | Step::Reset(_, reply) | Step::CreateSubChannels(_, reply)) => {
                    let reply = reply.as_bytes();
                    prop_assert!((12..=64).contains(&reply.len()));
                    prop_assert_eq!(Packet::parse(reply).unwrap().operation, Operation::COMPLETE_IO);
                }
                Err(VstorFault::TooShort { len }) => prop_assert!(len < 12 && len == bytes.len()),
            }
        }
    }
}
