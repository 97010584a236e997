//! Storage packets, commands and their data.

use proptest::prelude::*;
use vmbus_core::storage::scsi::*;
use vmbus_core::storage::{Address, DataDirection, Outcome, Packet, ScsiStatus, Srb, SrbStatus, Version};
use zerocopy::IntoBytes;

use crate::bytes;

/// A packet with an operation that exists.
fn likely_packet() -> impl Strategy<Value = Vec<u8>> {
    (0..16_u32, bytes()).prop_map(|(operation, rest)| [operation.to_le_bytes().as_slice(), &rest].concat())
}

proptest! {
    #[test]
    fn any_bytes_are_a_packet_or_an_error(bytes in likely_packet()) {
        let Ok(packet) = Packet::parse(&bytes) else {
            prop_assert!(bytes.len() < Packet::HEADER_SIZE);
            return Ok(());
        };
        let written = packet.to_bytes();
        let same = bytes.len().min(written.len());
        prop_assert_eq!(&written[..same], &bytes[..same]);
        prop_assert!(written[same..].iter().all(|&byte| byte == 0));
        let _ = (packet.notice(), packet.srb(), packet.properties(), packet.names(), packet.version());
        if let Ok(request) = packet.request() {
            let again = Packet::parse(&request.to_packet().to_bytes()).unwrap();
            prop_assert_eq!(again.request(), Ok(request));
        }
        if let Ok(srb) = packet.srb() {
            let _ = (srb.cdb().map(Command::parse), srb.sense(), srb.outcome());
        }
    }

    #[test]
    fn an_answer_tells_the_outcome(
        version in proptest::sample::select(&Version::ALL[..]),
        address in any::<[u8; 3]>(),
        len: u32,
        srb_status in 0..0x40_u8,
        scsi_status: u8,
        transferred: u32,
        sense in proptest::option::of((0..16_u8, any::<u8>(), any::<u8>())),
    ) {
        let [path, target, lun] = address;
        let cdb = Command::TestUnitReady.emit().unwrap();
        let request = Srb::request(version, Address { path, target, lun }, &cdb, DataDirection::FromDevice, len);
        let outcome = Outcome {
            srb_status: SrbStatus(srb_status),
            scsi_status: ScsiStatus(scsi_status),
            transferred,
            sense: sense.map(|(key, code, qualifier)| Sense::new(SenseKey(key), code, qualifier)),
        };
        let sent = Packet::srb_completion(&request.answer(&outcome)).to_bytes();
        let answer = Packet::parse(&sent[..version.packet_size()]).unwrap().srb().unwrap();
        prop_assert_eq!(answer.outcome(), outcome);
        prop_assert_eq!(answer.address(), request.address());
    }

    #[test]
    fn any_bytes_are_a_command_or_an_error(cdb in proptest::collection::vec(any::<u8>(), 0..24)) {
        let Ok(command) = Command::parse(&cdb) else { return Ok(()) };
        let written = command.emit().unwrap();
        prop_assert_eq!(written.as_bytes()[0], cdb[0]);
        prop_assert_eq!(Command::parse(written.as_bytes()), Ok(command));
    }

    #[test]
    fn a_range_of_blocks_is_refused_or_survives_the_journey(
        form in proptest::sample::select(vec![CdbForm::Six, CdbForm::Ten, CdbForm::Twelve, CdbForm::Sixteen]),
        options: u8,
        lba in (any::<u64>(), 0..64_u32).prop_map(|(lba, shift)| lba >> shift),
        blocks in (any::<u32>(), 0..32_u32).prop_map(|(blocks, shift)| blocks >> shift),
    ) {
        let range = BlockRange { form, options, lba, blocks };
        for command in [
            Command::Read(range),
            Command::Write(range),
            Command::Verify(range),
            Command::WriteAndVerify(range),
            Command::SynchronizeCache(range),
            Command::WriteSame(range),
        ] {
            if let Ok(cdb) = command.emit() {
                prop_assert_eq!(Command::parse(cdb.as_bytes()), Ok(command));
            }
        }
        let range = BlockRange::new(lba, blocks);
        prop_assert!(Command::Read(range).emit().is_ok());
    }

    #[test]
    fn any_bytes_are_data_of_a_command_or_an_error(bytes in bytes()) {
        let _ = (Sense::parse(&bytes), FixedSense::parse(&bytes), StandardInquiry::parse(&bytes));
        let _ = (Capacity10::parse(&bytes), ReservationCapabilities::parse(&bytes), CachingPage::parse(&bytes));
        let _ = Capacity16::parse(&bytes).map(|capacity| capacity.blocks());
        let _ = (LbaStatus::parse_list(&bytes), UnmapDescriptor::parse_list(&bytes));
        let _ = (ReservationKeys::parse(&bytes), Reservation::parse(&bytes), FullStatus::parse(&bytes));
        let _ = (ReserveOutParameters::parse(&bytes), parse_luns(&bytes).map(|luns| luns.count()));
        for form in [CdbForm::Six, CdbForm::Ten] {
            if let Some(parameters) = ModeParameters::parse(form, &bytes) {
                let _ = parameters.page(CachingPage::NUMBER).and_then(CachingPage::parse);
            }
        }
    }

    #[test]
    fn any_bytes_are_a_page_of_vital_data_or_none(mut bytes in bytes(), length: u8) {
        for page in [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2] {
            if let [_, number, high, low, ..] = &mut bytes[..] {
                (*number, *high, *low) = (page, 0, length);
            }
            let _ = (SupportedPages::parse(&bytes), SerialNumber::parse(&bytes), BlockLimits::parse(&bytes));
            let _ = (BlockCharacteristics::parse(&bytes), BlockProvisioning::parse(&bytes));
            if let Some(names) = Identification::parse(&bytes) {
                let written = names.emit();
                prop_assert_eq!(Identification::parse(&written), Some(names));
            }
        }
    }

    #[test]
    fn lists_survive_the_journey(
        words in proptest::collection::vec(any::<[u8; 16]>(), 0..40),
        generation: u32,
        luns in proptest::collection::vec(0..16384_u16, 0..20),
        ports in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..5),
    ) {
        let ranges: Vec<UnmapDescriptor> = words.iter().map(|&words| zerocopy::transmute!(words)).collect();
        let list = UnmapDescriptor::emit_list(&ranges).unwrap();
        prop_assert_eq!(UnmapDescriptor::parse_list(&list), Ok(ranges.as_slice()));

        let statuses: Vec<LbaStatus> = words.iter().map(|&words| zerocopy::transmute!(words)).collect();
        let list = LbaStatus::emit_list(&statuses);
        prop_assert_eq!(LbaStatus::parse_list(&list), Some(statuses.as_slice()));

        let keys: Vec<_> = words.iter().map(|words| u64::from(words[0]).into()).collect();
        let keys = ReservationKeys { generation, keys: &keys };
        let list = keys.emit();
        prop_assert_eq!(ReservationKeys::parse(&list), Some(keys));

        let held = words.first().map(|&words| zerocopy::transmute!(words));
        let reservation = Reservation { generation, held };
        prop_assert_eq!(Reservation::parse(&reservation.emit()), Some(reservation));

        let registrants = ports
            .iter()
            .map(|transport_id| Registrant {
                descriptor: RegistrantDescriptor {
                    transport_id_length: u32::try_from(transport_id.len()).unwrap().into(),
                    ..RegistrantDescriptor::default()
                },
                transport_id,
            })
            .collect();
        let status = FullStatus { generation, registrants };
        let list = status.emit();
        prop_assert_eq!(FullStatus::parse(&list), Some(status));

        let list = emit_luns(luns.iter().copied());
        prop_assert_eq!(parse_luns(&list).unwrap().collect::<Vec<_>>(), luns);
    }

    #[test]
    fn pages_of_fixed_layout_survive_the_journey(bytes in any::<[u8; 64]>()) {
        let mut limits: BlockLimits = zerocopy::transmute!(bytes);
        limits.header = BlockLimits::none().header;
        prop_assert_eq!(BlockLimits::parse(limits.as_bytes()), Some(limits));
        let parameters = ModeParameters { medium_type: bytes[0], device_specific: bytes[1], pages: &bytes[2..] };
        for form in [CdbForm::Six, CdbForm::Ten] {
            let written = parameters.emit(form).unwrap();
            prop_assert_eq!(ModeParameters::parse(form, &written), Some(parameters));
        }
    }
}
