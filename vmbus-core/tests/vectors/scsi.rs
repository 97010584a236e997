//! Data that SCSI commands return or take.

use vmbus_core::storage::scsi::*;
use vmbus_core::{Guid, guid};
use zerocopy::{FromBytes, IntoBytes};

use crate::Check;

const DISK: Guid = guid!("11223344-5566-7788-99aa-bbccddeeff00");
const BLOCKS: u64 = 0x20_0000;

pub(crate) const CHECKS: &[Check] = &[
    ("ST-21", |bytes| {
        let inquiry = StandardInquiry::disk();
        assert_eq!(StandardInquiry::parse(bytes), Some(inquiry));
        assert_eq!(inquiry.as_bytes(), bytes);
    }),
    ("ST-22", |bytes| {
        let supported = SupportedPages { pages: &[0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2] };
        assert_eq!(SupportedPages::parse(bytes), Some(supported));
        assert_eq!(supported.emit(), bytes);
    }),
    ("ST-23", |bytes| {
        let vendor = Designator::vendor_name(DISK);
        let registered = Designator::registered_name(DISK);
        let designator = |association_and_kind, name| Designator {
            protocol_and_code_set: Designator::BINARY,
            association_and_kind,
            name,
        };
        let names = Identification {
            designators: vec![
                designator(Designator::T10_VENDOR, &vendor),
                designator(Designator::NAA, &registered),
            ],
        };
        assert_eq!(Identification::parse(bytes), Some(names.clone()));
        assert_eq!(names.emit(), bytes);
    }),
    ("ST-24", |bytes| {
        let limits = BlockLimits {
            max_unmap_blocks: u32::MAX.into(),
            max_unmap_descriptors: 4096.into(),
            unmap_granularity: 8.into(),
            unmap_alignment: BlockLimits::ALIGNMENT_VALID.into(),
            ..BlockLimits::none()
        };
        assert_eq!(BlockLimits::parse(bytes), Some(limits));
        assert_eq!(limits.as_bytes(), bytes);
    }),
    ("ST-25", |bytes| {
        let characteristics = BlockCharacteristics::solid_state();
        assert_eq!(BlockCharacteristics::parse(bytes), Some(characteristics));
        assert_eq!(characteristics.as_bytes(), bytes);
    }),
    ("ST-26", |bytes| {
        let provisioning = BlockProvisioning {
            threshold_exponent: 1,
            ..BlockProvisioning::new(BlockProvisioning::UNMAP, BlockProvisioning::THIN)
        };
        assert_eq!(BlockProvisioning::parse(bytes), Some(provisioning));
        assert_eq!(provisioning.as_bytes(), bytes);
    }),
    ("ST-27", |bytes| {
        let capacity = Capacity10::new(BLOCKS, 512);
        assert_eq!(Capacity10::parse(bytes), Some(capacity));
        assert_eq!(capacity.as_bytes(), bytes);
    }),
    ("ST-28", |bytes| {
        let capacity = Capacity16::new(BLOCKS, 512, 3, Capacity16::PROVISIONED);
        assert_eq!(Capacity16::parse(bytes), Some(capacity));
        assert_eq!(capacity.blocks(), Some(BLOCKS));
        assert_eq!(capacity.as_bytes(), bytes);
    }),
    ("ST-29", |bytes| {
        caching(
            bytes,
            CdbForm::Six,
            ModeParameters::FUA_HONOURED,
            CachingPage::short(CachingPage::WRITE_CACHE),
        );
    }),
    ("ST-30", |bytes| {
        caching(
            bytes,
            CdbForm::Ten,
            ModeParameters::WRITE_PROTECTED,
            CachingPage::new(CachingPage::WRITE_CACHE),
        );
    }),
    ("ST-31", |bytes| {
        assert_eq!(parse_luns(bytes).unwrap().collect::<Vec<_>>(), [0, 5]);
        assert_eq!(emit_luns([0, 5]), bytes);
    }),
    ("ST-32", |bytes| {
        assert_eq!(Sense::parse(bytes), Some(Sense::CAPACITY_CHANGED));
        assert_eq!(FixedSense::parse(bytes), Some(Sense::CAPACITY_CHANGED.to_fixed()));
        assert_eq!(Sense::CAPACITY_CHANGED.to_fixed().as_bytes(), bytes);
    }),
    ("ST-33", |bytes| {
        let range = |lba: u64, blocks: u32| UnmapDescriptor {
            lba: lba.into(),
            blocks: blocks.into(),
            reserved: 0.into(),
        };
        let list = [range(0x1000, 256), range(0x9000, 8)];
        assert_eq!(UnmapDescriptor::parse_list(bytes), Ok(list.as_slice()));
        assert_eq!(UnmapDescriptor::emit_list(&list).as_deref(), Some(bytes));
    }),
    ("ST-34", |bytes| {
        let mapped = LbaStatus { blocks: u32::try_from(BLOCKS).unwrap().into(), ..LbaStatus::default() };
        assert_eq!(LbaStatus::parse_list(bytes), Some([mapped].as_slice()));
        assert_eq!(LbaStatus::emit_list(&[mapped]), bytes);
    }),
    ("ST-35", |bytes| {
        let keys = [0x1111.into(), 0x2222.into()];
        let keys = ReservationKeys { generation: 2, keys: &keys };
        assert_eq!(ReservationKeys::parse(bytes), Some(keys));
        assert_eq!(keys.emit(), bytes);
    }),
    ("ST-36", |bytes| {
        let held = ReservationDescriptor {
            key: 0x1111.into(),
            scope_and_kind: ReservationKind::WRITE_EXCLUSIVE.0,
            ..ReservationDescriptor::default()
        };
        let reservation = Reservation { generation: 2, held: Some(held) };
        assert_eq!(Reservation::parse(bytes), Some(reservation));
        assert_eq!(reservation.emit(), bytes);
    }),
    ("ST-37", |bytes| {
        let capabilities = ReservationCapabilities {
            length: 8.into(),
            flags: 0x01,
            flags2: 0x81,
            kinds: ReservationCapabilities::ALL_KINDS.into(),
            reserved: 0.into(),
        };
        assert_eq!(ReservationCapabilities::parse(bytes), Some(capabilities));
        assert_eq!(capabilities.as_bytes(), bytes);
    }),
    ("ST-38", |bytes| {
        let parameters = ReserveOutParameters {
            service_action_key: 0x1111.into(),
            flags: ReserveOutParameters::PERSIST,
            ..ReserveOutParameters::default()
        };
        assert_eq!(ReserveOutParameters::parse(bytes), Ok(parameters));
        assert_eq!(parameters.as_bytes(), bytes);
    }),
];

fn caching(bytes: &[u8], form: CdbForm, device_specific: u8, page: CachingPage) {
    let parameters = ModeParameters { medium_type: 0, device_specific, pages: page.bytes() };
    assert_eq!(ModeParameters::parse(form, bytes), Some(parameters));
    let found = parameters.page(CachingPage::NUMBER).unwrap();
    assert_eq!(CachingPage::parse(found), Some(page));
    assert!(CachingPage::read_from_prefix(found).is_ok() || page.length == 10);
    assert_eq!(parameters.emit(form).as_deref(), Some(bytes));
}
