//! Whatever mixture of commands a guest sends, the disk is what a plain array of bytes would be.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that panics has failed")]

mod world;

use proptest::prelude::*;
use vmbus_core::storage::scsi::{BlockRange, CdbForm, Command, UnmapDescriptor};
use vmbus_core::storage::{DataDirection, SrbStatus};
use vmbus_vsp::storage::{Access, Memory, RawFile};
use world::{DISK, Troubled, World, finish};

const SECTOR: usize = 512;
const SECTORS: u64 = 512;

#[derive(Clone, Debug)]
enum Act {
    Read(BlockRange),
    Write(BlockRange, u8),
    Compare(BlockRange, u8),
    WriteSame(BlockRange, u8),
    Unmap(Vec<(u64, u32)>),
    Flush,
}

/// Ranges that mostly lie on the disk and sometimes only in part, or not at all.
fn range() -> impl Strategy<Value = BlockRange> {
    let form = prop_oneof![Just(CdbForm::Ten), Just(CdbForm::Twelve), Just(CdbForm::Sixteen)];
    (form, 0..SECTORS + 8, 0_u32..40, any::<bool>()).prop_map(|(form, lba, blocks, fua)| {
        let options = if fua { BlockRange::FUA } else { 0 };
        BlockRange { form, options, lba, blocks }
    })
}

fn act() -> impl Strategy<Value = Act> {
    let same =
        (any::<bool>(), any::<bool>(), 0..SECTORS, 1_u32..40).prop_map(|(unmap, no_data, lba, blocks)| {
            let unmap = if unmap { BlockRange::UNMAP } else { 0 };
            let no_data = if no_data { BlockRange::NO_DATA_OUT } else { 0 };
            BlockRange { form: CdbForm::Sixteen, options: unmap | no_data, lba, blocks }
        });
    prop_oneof![
        4 => range().prop_map(Act::Read),
        4 => (range(), any::<u8>()).prop_map(|(range, seed)| Act::Write(range, seed)),
        1 => (range(), any::<u8>()).prop_map(|(range, seed)| Act::Compare(range, seed)),
        1 => (same, 0_u8..2).prop_map(|(range, seed)| Act::WriteSame(range, seed)),
        1 => prop::collection::vec((0..SECTORS + 4, 0_u32..20), 0..4).prop_map(Act::Unmap),
        1 => Just(Act::Flush),
    ]
}

/// Bytes that differ from sector to sector; a seed of 0 gives zeroes.
fn bytes(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| seed.wrapping_mul((at / SECTOR) as u8 | 1).wrapping_mul((at % 251) as u8 | 1))
        .collect()
}

struct Model(Vec<u8>);

impl Model {
    fn place(&self, lba: u64, blocks: u32) -> Option<std::ops::Range<usize>> {
        let (start, end) = (lba as usize * SECTOR, (lba as usize + blocks as usize) * SECTOR);
        (end <= self.0.len()).then_some(start..end)
    }
}

fn run(world: &World, command: Command, direction: DataDirection, length: usize) -> bool {
    let cdb = command.emit().unwrap();
    let outcome = finish(world.start(DISK, cdb.as_bytes(), direction, length as u32));
    let success = outcome.srb_status == SrbStatus::SUCCESS;
    assert!(success || outcome.transferred == 0, "{command:?}");
    success
}

fn apply(world: &World, model: &mut Model, act: &Act) {
    match act {
        Act::Read(range) => {
            let length = range.blocks as usize * SECTOR;
            let range_without_fua = BlockRange { options: 0, ..*range };
            let done = run(world, Command::Read(range_without_fua), DataDirection::FromDevice, length);
            match model.place(range.lba, range.blocks) {
                Some(place) => {
                    assert!(done, "{act:?}");
                    assert_eq!(world.seen(length), model.0[place], "{act:?}");
                }
                None => assert!(!done, "{act:?}"),
            }
        }
        Act::Write(range, seed) => {
            let from = bytes(*seed, range.blocks as usize * SECTOR);
            world.put(&from);
            let done = run(world, Command::Write(*range), DataDirection::ToDevice, from.len());
            let place = model.place(range.lba, range.blocks);
            assert_eq!(done, place.is_some(), "{act:?}");
            if let Some(place) = place {
                model.0[place].copy_from_slice(&from);
            }
        }
        Act::Compare(range, seed) => {
            let from = bytes(*seed, range.blocks as usize * SECTOR);
            world.put(&from);
            let range = BlockRange { options: BlockRange::BYTE_CHECK, ..*range };
            let done = run(world, Command::Verify(range), DataDirection::ToDevice, from.len());
            let same = model.place(range.lba, range.blocks).is_some_and(|place| model.0[place] == from);
            assert_eq!(done, same, "{act:?}");
        }
        Act::WriteSame(range, seed) => {
            let no_data = range.has(BlockRange::NO_DATA_OUT);
            let block = bytes(*seed, if no_data { 0 } else { SECTOR });
            world.put(&block);
            let done = run(world, Command::WriteSame(*range), DataDirection::ToDevice, block.len());
            let place = model.place(range.lba, range.blocks);
            assert_eq!(done, place.is_some(), "{act:?}");
            for sector in place.map_or(&mut [][..], |place| &mut model.0[place]).chunks_mut(SECTOR) {
                if no_data { sector.fill(0) } else { sector.copy_from_slice(&block) }
            }
        }
        Act::Unmap(ranges) => {
            let descriptors: Vec<UnmapDescriptor> = ranges
                .iter()
                .map(|&(lba, blocks)| UnmapDescriptor {
                    lba: lba.into(),
                    blocks: blocks.into(),
                    ..Default::default()
                })
                .collect();
            let list = UnmapDescriptor::emit_list(&descriptors).unwrap();
            world.put(&list);
            let command = Command::Unmap { anchor: false, list_length: list.len() as u16 };
            let done = run(world, command, DataDirection::ToDevice, list.len());
            let places: Option<Vec<_>> =
                ranges.iter().map(|&(lba, blocks)| model.place(lba, blocks)).collect();
            assert_eq!(done, places.is_some(), "{act:?}");
            for place in places.unwrap_or_default() {
                model.0[place].fill(0);
            }
        }
        Act::Flush => {
            assert!(run(
                world,
                Command::SynchronizeCache(BlockRange::new(0, 0)),
                DataDirection::Unspecified,
                0
            ));
        }
    }
}

fn is_like_an_array(world: &World, acts: &[Act]) {
    let mut model = Model(vec![0; SECTORS as usize * SECTOR]);
    for act in acts {
        apply(world, &mut model, act);
    }
    let all = BlockRange::new(0, SECTORS as u32);
    apply(world, &mut model, &Act::Read(all));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_in_memory(acts in prop::collection::vec(act(), 1..60)) {
        is_like_an_array(&World::new(Memory::new(SECTORS * 512).unwrap()), &acts);
    }

    #[test]
    fn a_disk_that_never_answers_at_once(acts in prop::collection::vec(act(), 1..30)) {
        let memory = Memory::new(SECTORS * 512).unwrap();
        is_like_an_array(&World::new(Troubled { memory, slow: true, ..Troubled::new() }), &acts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_in_a_file(acts in prop::collection::vec(act(), 1..40)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SECTORS * 512).unwrap();
        is_like_an_array(&World::new(RawFile::open(file.path(), Access::ReadWrite).unwrap()), &acts);
    }

    /// Neither a panic nor a byte outside of the buffer, whatever the command and the guest's claims about it.
    #[test]
    fn no_command_reaches_beyond_its_buffer(
        cdb in prop::collection::vec(any::<u8>(), 0..17),
        length in 0_u32..5000,
        direction in 0_usize..3,
        room in 0_u32..300_000,
    ) {
        let world = World::new(Memory::new(SECTORS * 512).unwrap());
        let direction = [DataDirection::ToDevice, DataDirection::FromDevice, DataDirection::Unspecified][direction];
        let length = if room % 2 == 0 { length } else { room };
        world.fill(0xee);
        let outcome = world.run_at(DISK, &cdb, direction, length);
        prop_assert!(outcome.transferred <= length.max(512));
        let untouched = if direction == DataDirection::ToDevice { 0 } else { length as usize };
        prop_assert!(world.seen(world::BUFFER - 0x600)[untouched..].iter().all(|&byte| byte == 0xee));
    }
}
