//! What a disk answers to each command, byte for byte, and what it says of each mistake.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that panics has failed")]

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmbus_core::storage::scsi::{BlockRange, Command};
use vmbus_core::storage::{Address, DataDirection, ScsiStatus, SrbStatus};
use vmbus_vsp::storage::{Lun, Memory};
use world::{DISK, Huge, Troubled, World, finish, runtime, verdict};

const GOOD: (ScsiStatus, SrbStatus) = (ScsiStatus::GOOD, SrbStatus::SUCCESS);

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A vector of the specification, from the file that all crates share.
fn vector(id: &str) -> Vec<u8> {
    let vectors = include_str!("../../vmbus-core/tests/vectors.json");
    let at = vectors.find(&format!("\"{id}\"")).unwrap_or_else(|| panic!("no vector {id}"));
    let value = vectors[at + id.len() + 2..].split('"').nth(1).unwrap();
    hex(value)
}

fn check_condition(srb: SrbStatus, sense: &str) -> (ScsiStatus, SrbStatus, String) {
    (ScsiStatus::CHECK_CONDITION, srb, sense.to_owned())
}

fn illegal(sense: &str) -> (ScsiStatus, SrbStatus, String) {
    check_condition(SrbStatus::INVALID_REQUEST, sense)
}

#[test]
fn inquiry_tells_what_linux_and_windows_look_for() {
    let world = World::memory();
    assert_eq!(world.answer(&[0x12, 0, 0, 0, 36, 0], 36), vector("ST-21"));
    assert_eq!(
        world.answer(&[0x12, 0, 0, 0, 255, 0], 255),
        vector("ST-21"),
        "more room brings no more bytes"
    );
    assert_eq!(world.answer(&[0x12, 0, 0, 0, 5, 0], 5), vector("ST-21")[..5]);
}

#[test]
fn vital_product_data_are_the_pages_of_the_standard() {
    let world = World::memory();
    let page = |code| world.answer(&[0x12, 1, code, 0, 255, 0], 255);
    assert_eq!(page(0x00), vector("ST-22"));
    assert_eq!(page(0x80), [&hex("00800008")[..], b"B-1 4711"].concat(), "only what can be printed");
    assert_eq!(page(0x83), vector("ST-23"));
    let mut limits = vector("ST-24");
    limits[4] = 1; // unlike the vector's disk, ours refuses WRITE SAME of no blocks
    limits[26..28].copy_from_slice(&[0x01, 0x00]); // and takes fewer descriptors at a time
    limits[40..44].copy_from_slice(&[0xff; 4]); // but more of WRITE SAME
    assert_eq!(page(0xb0), limits);
    assert_eq!(page(0xb1), vector("ST-25"));
    let mut provisioning = vector("ST-26");
    provisioning[4..6].copy_from_slice(&[0, 0xe4]); // no thresholds; WRITE SAME unmaps, too; reads as zeroes
    assert_eq!(page(0xb2), provisioning);
}

#[test]
fn a_disk_that_cannot_discard_does_not_claim_to() {
    let world = World::new(Memory::new(1 << 20).unwrap().read_only());
    assert_eq!(world.answer(&[0x12, 1, 0xb2, 0, 255, 0], 255), hex("00b2000400000000"));
    assert_eq!(world.answer(&[0x12, 1, 0xb0, 0, 255, 0], 255)[20..36], [0; 16]);
    let capacity = world.answer(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32);
    assert_eq!(capacity[14], 0, "neither thin nor zeroing");
}

#[test]
fn capacity_is_told_in_both_forms() {
    let world = World::new(Memory::new(1 << 30).unwrap());
    assert_eq!(world.answer(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), vector("ST-27"));
    let mut capacity = vector("ST-28");
    capacity[14] |= 0x40; // unmapped blocks read as zeroes
    let read_capacity_16 = |room| [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, room, 0, 0];
    assert_eq!(world.answer(&read_capacity_16(32), 32), capacity);
    assert_eq!(world.answer(&read_capacity_16(12), 32), capacity[..12]);
    assert_eq!(world.answer(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], 24), vector("ST-34"));
}

#[test]
fn a_disk_of_more_than_two_tebibytes_says_so_in_the_short_form() {
    let world = World::new(Troubled::new());
    let outcome = world.ask(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8);
    assert_eq!(outcome.transferred, 8);
    let huge = Huge(5 << 40);
    let world = World::new(huge);
    assert_eq!(world.answer(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), hex("ffffffff00000200"));
    let capacity = world.answer(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32);
    assert_eq!(capacity[..8], ((5_u64 << 31) - 1).to_be_bytes());
}

#[test]
fn mode_pages_tell_of_the_cache_and_of_write_protection() {
    let world = World::new(Troubled::new());
    let caching = hex("081204000000000000000000000000000000 0000");
    let six = [&hex("17001000")[..], &caching].concat();
    assert_eq!(world.answer(&[0x1a, 0, 0x08, 0, 255, 0], 255), six);
    assert_eq!(world.answer(&[0x1a, 0, 0x3f, 0, 255, 0], 255), six);
    assert_eq!(world.answer(&[0x1a, 0, 0x3f, 0xff, 4, 0], 4), six[..4]);
    let ten = [&hex("001a001000000000")[..], &caching].concat();
    assert_eq!(world.answer(&[0x5a, 0, 0x08, 0, 0, 0, 0, 0, 255, 0], 255), ten);
    let changeable = world.answer(&[0x1a, 0, 0x48, 0, 255, 0], 255);
    assert_eq!(changeable[6], 0, "the cache cannot be switched off");

    let world = World::new(Memory::new(1 << 20).unwrap().read_only());
    let protected = world.answer(&[0x5a, 0, 0x08, 0, 0, 0, 0, 0, 255, 0], 255);
    assert_eq!((protected[3], protected[10]), (0x90, 0), "write protected, and nothing to flush");

    assert_eq!(verdict(&world.ask(&[0x1a, 0, 0xc8, 0, 255, 0], 255)), illegal("5/39/00"));
    for unsupported in [0x0a, 0x1c, 0x00] {
        assert_eq!(verdict(&world.ask(&[0x1a, 0, unsupported, 0, 255, 0], 255)), illegal("5/24/00"));
    }
}

#[test]
fn mode_select_may_set_what_is_so_and_nothing_else() {
    let world = World::new(Troubled::new());
    let select =
        |list: &[u8]| verdict(&world.tell(&[0x15, 0x10, 0, 0, u8::try_from(list.len()).unwrap(), 0], list));
    let caching = |cache| [vec![0, 0, 0, 0, 0x08, 0x12, cache], vec![0; 17]].concat();
    assert_eq!(select(&caching(0x04)).0, ScsiStatus::GOOD);
    assert_eq!(select(&[]).0, ScsiStatus::GOOD);
    assert_eq!(select(&caching(0x00)), illegal("5/26/00"));
    assert_eq!(select(&[0, 0, 0, 0, 0x0a, 0]), illegal("5/26/00"));
    assert_eq!(select(&caching(0x04)[..20]), illegal("5/1A/00"));
    assert_eq!(select(&[0, 0, 0, 200, 0x08, 0]), illegal("5/1A/00"));
    assert_eq!(select(&[0, 0]), illegal("5/1A/00"));
    assert_eq!(verdict(&world.tell(&[0x15, 0x11, 0, 0, 24, 0], &caching(0x04))), illegal("5/24/00"));
    let ten = [vec![0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x12, 4], vec![0; 17]].concat();
    assert_eq!(world.tell(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0], &ten).srb_status, SrbStatus::SUCCESS);
}

#[test]
fn report_luns_lists_the_controllers_disks_whoever_is_asked() {
    let mut world = World::memory();
    let fifth = Lun::new(Memory::new(4096).unwrap());
    world.units.add(5, Arc::new(fifth));
    world.target.refresh().unwrap();
    let report = |room| [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, room, 0, 0];
    assert_eq!(world.answer(&report(24), 24), vector("ST-31"));
    assert_eq!(world.answer(&report(16), 24), vector("ST-31")[..16], "cut, with the full length in front");
    assert_eq!(verdict(&world.ask(&report(15), 24)), illegal("5/24/00"));
    for absent_lun in [1, 4, 63, 255] {
        let outcome =
            world.run_at(Address { lun: absent_lun, ..DISK }, &report(24), DataDirection::FromDevice, 24);
        assert_eq!(outcome.transferred, 24);
        assert_eq!(world.seen(24), vector("ST-31"));
    }
}

#[test]
fn where_nothing_is_the_answers_make_no_phantoms_and_remove_no_disk() {
    let world = World::memory();
    for (address, missing) in [
        (Address { path: 0, target: 0, lun: 1 }, SrbStatus::INVALID_LUN),
        (Address { path: 0, target: 1, lun: 0 }, SrbStatus::INVALID_LUN),
        (Address { path: 1, target: 0, lun: 0 }, SrbStatus::NO_DEVICE),
        (Address { path: 7, target: 1, lun: 0 }, SrbStatus::NO_DEVICE),
    ] {
        let at = |cdb: &[u8], length| world.run_at(address, cdb, DataDirection::FromDevice, length);
        let inquiry = at(&[0x12, 0, 0, 0, 36, 0], 36);
        assert_eq!((inquiry.scsi_status, inquiry.srb_status, inquiry.transferred), (GOOD.0, GOOD.1, 36));
        assert_eq!(world.seen(1), [0x7f]);
        assert_eq!(at(&[0x12, 1, 0x83, 0, 255, 0], 255).transferred, 4);
        assert_eq!(world.seen(4), [0x7f, 0x83, 0, 0]);
        if (address.path, address.target) != (0, 0) {
            let luns = at(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], 16);
            assert_eq!((luns.srb_status, luns.transferred), (SrbStatus::SUCCESS, 8));
            assert_eq!(world.seen(8), [0; 8]);
        }
        for cdb in [&[0, 0, 0, 0, 0, 0][..], &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0xff; 16]] {
            let outcome = at(cdb, 512);
            assert_eq!(
                verdict(&outcome),
                (ScsiStatus::CHECK_CONDITION, missing, "-".into()),
                "{address:?} {cdb:02x?}"
            );
        }
    }
}

#[test]
fn each_command_without_data_that_guests_send_succeeds() {
    let world = World::memory();
    for cdb in [
        &[0x00, 0, 0, 0, 0, 0][..],         // TEST UNIT READY
        &[0x04, 0, 0, 0, 0, 0],             // FORMAT UNIT
        &[0x16, 0, 0, 0, 0, 0],             // RESERVE
        &[0x17, 0, 0, 0, 0, 0],             // RELEASE
        &[0x1b, 0, 0, 0, 1, 0],             // START
        &[0x1b, 1, 0, 0, 0, 0],             // STOP, answer at once
        &[0x1d, 4, 0, 0, 0, 0],             // SEND DIAGNOSTIC, default self-test
        &[0x1e, 0, 0, 0, 1, 0],             // PREVENT REMOVAL
        &[0x2f, 0, 0, 0, 0, 1, 0, 0, 8, 0], // VERIFY without comparing
        &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], // SYNCHRONIZE CACHE
        &[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0], // READ of no block
        &[0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 0], // WRITE of no block
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], // UNMAP of an empty list
    ] {
        let outcome = world.run_at(DISK, cdb, DataDirection::Unspecified, 0);
        assert_eq!((outcome.scsi_status, outcome.srb_status), GOOD, "{cdb:02x?}");
        assert_eq!(outcome.transferred, 0, "{cdb:02x?}");
    }
}

#[test]
fn each_mistake_has_its_sense() {
    let world = World::memory();
    for (cdb, sense) in [
        (&[0xff; 16][..], "5/20/00"),
        (&[0x4d, 0, 0, 0, 0, 0, 0, 0, 64, 0], "5/20/00"), // LOG SENSE
        (&[0x23, 0, 0, 0, 0, 0, 0, 0, 64, 0], "5/20/00"), // READ FORMAT CAPACITIES
        (&[0x5e, 2, 0, 0, 0, 0, 0, 0, 8, 0], "5/20/00"),  // PERSISTENT RESERVE IN
        (&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], "5/20/00"), // PERSISTENT RESERVE OUT
        (&[0xa3, 12, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], "5/20/00"), // MAINTENANCE IN
        (&[0x28, 0, 0, 0, 0x40, 0, 0, 0, 1, 0], "5/21/00"), // READ behind the end
        (&[0x28, 0, 0, 0, 0x3f, 0xff, 0, 0, 2, 0], "5/21/00"), // READ across the end
        (&[0x88, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 1, 0, 0], "5/21/00"), // wraps
        (&[0x28, 0, 0, 0, 0, 0, 0, 0, 3, 0], "5/21/00"),  // more than the buffer
        (&[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], "5/24/00"), // RDPROTECT
        (&[0x35, 0, 0, 0, 0x40, 1, 0, 0, 0, 0], "5/21/00"), // SYNCHRONIZE CACHE
        (&[0x12, 0, 0x80, 0, 255, 0], "5/24/00"),         // a page without EVPD
        (&[0x12, 2, 0, 0, 255, 0], "5/24/00"),            // CMDDT
        (&[0x12, 1, 0x89, 0, 255, 0], "5/24/00"),         // ATA page
        (&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 24, 0, 0], "5/21/00"), // GET LBA STATUS
        (&[0x9e, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], "5/24/00"), // unknown service action
        (&[0x1d, 0x20, 0, 0, 0, 0], "5/24/00"),           // another self-test
        (&[0x28, 0, 0, 0], "5/24/00"),                    // half a command
        (&[], "5/20/00"),
    ] {
        let outcome = world.ask(cdb, 1024);
        assert_eq!(verdict(&outcome), illegal(sense), "{cdb:02x?}");
        assert_eq!(outcome.transferred, 0);
    }
}

#[test]
fn a_failed_command_leaves_the_guests_memory_alone() {
    let world = World::memory();
    world.fill(0x11);
    world.tell(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 4, 0], &[0x77; 2048]);
    world.fill(0xee);
    for (cdb, direction, length) in [
        (&[0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0][..], DataDirection::FromDevice, 2047), // buffer too small
        (&[0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0], DataDirection::ToDevice, 2048),       // not ours to write
        (&[0x12, 0, 0, 0, 36, 0], DataDirection::ToDevice, 36),
        (&[0x12, 0, 0, 0, 36, 0], DataDirection::FromDevice, 35),
        (&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], DataDirection::FromDevice, 7),
    ] {
        assert_ne!(world.run_at(DISK, cdb, direction, length).srb_status, SrbStatus::SUCCESS, "{cdb:02x?}");
        assert!(world.seen(4096).iter().all(|&byte| byte == 0xee), "{cdb:02x?}");
    }
    let overrun = world.run_at(DISK, &[0x12, 0, 0, 0, 36, 0], DataDirection::FromDevice, 35);
    assert_eq!(verdict(&overrun), check_condition(SrbStatus::DATA_OVERRUN, "5/24/00"));
}

#[test]
fn a_buffer_declared_as_the_guests_to_read_is_not_written_to_disk() {
    let world = World::memory();
    world.put(&[0x77; 512]);
    let outcome = world.run_at(DISK, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], DataDirection::FromDevice, 512);
    assert_eq!(verdict(&outcome), illegal("5/24/00"));
    assert_eq!(world.answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512), [0; 512]);
}

#[test]
fn every_form_of_read_and_write_reaches_the_same_blocks() {
    let world = World::memory();
    let forms: [(&[u8], &[u8]); 4] = [
        (&[0x0a, 0, 0, 0x10, 2, 0], &[0x08, 0, 0, 0x10, 2, 0]),
        (&[0x2a, 0, 0, 0, 0, 0x10, 0, 0, 2, 0], &[0x28, 0, 0, 0, 0, 0x10, 0, 0, 2, 0]),
        (&[0xaa, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0, 0], &[0xa8, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0, 0]),
        (
            &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0, 0],
            &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0, 0],
        ),
    ];
    for (byte, (write, _)) in (1..).zip(forms) {
        let outcome = world.tell(write, &[byte; 1024]);
        assert_eq!((outcome.srb_status, outcome.transferred), (SrbStatus::SUCCESS, 1024), "{write:02x?}");
        for (_, read) in forms {
            assert_eq!(world.answer(read, 4096), [byte; 1024], "{read:02x?}");
        }
    }
    assert_eq!(
        world.answer(&[0x08, 0, 0, 0, 0, 0], 256 * 512).len(),
        256 * 512,
        "0 means 256 in the short form"
    );
}

#[test]
fn a_read_only_disk_refuses_every_command_that_writes_and_no_other() {
    let world = World::new(Memory::new(1 << 20).unwrap().read_only());
    let protected = check_condition(SrbStatus::ERROR, "7/27/00");
    for cdb in [
        &[0x0a, 0, 0, 0, 1, 0][..],
        &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x93, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        &[0x04, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(verdict(&world.tell(cdb, &[0; 512])), protected, "{cdb:02x?}");
    }
    assert_eq!(world.answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512), [0; 512]);
}

#[test]
fn unmap_gives_back_just_what_its_list_says() {
    let world = World::new(Memory::new(64 << 20).unwrap());
    for lba in [0x0fff_u32, 0x1000, 0x10ff, 0x1100, 0x8fff, 0x9000, 0x9007, 0x9008] {
        let mut write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        write[2..6].copy_from_slice(&lba.to_be_bytes());
        world.tell(&write, &[0x55; 512]);
    }
    let list = vector("ST-33");
    let outcome = world.tell(&[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list);
    assert_eq!((outcome.scsi_status, outcome.srb_status), GOOD);
    for (lba, left) in [
        (0x0fff_u32, 0x55),
        (0x1000, 0),
        (0x10ff, 0),
        (0x1100, 0x55),
        (0x8fff, 0x55),
        (0x9000, 0),
        (0x9007, 0),
        (0x9008, 0x55),
    ] {
        let mut read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        read[2..6].copy_from_slice(&lba.to_be_bytes());
        assert_eq!(world.answer(&read, 512), [left; 512], "block {lba:#x}");
    }
}

#[test]
fn an_unmap_list_that_contradicts_itself_changes_nothing() {
    let world = World::memory();
    world.tell(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0x55; 512]);
    let unmap = |list: &[u8], stated: u8| verdict(&world.tell(&[0x42, 0, 0, 0, 0, 0, 0, 0, stated, 0], list));
    let first = hex("0000000000000000 00000001 00000000");
    let beyond = hex("0000000000004000 00000001 00000000");
    let good = [hex("0016 0010 00000000"), first.clone()].concat();
    assert_eq!(unmap(&good, 40), illegal("5/1A/00"), "list longer than the buffer");
    assert_eq!(unmap(&good[..20], 20), illegal("5/1A/00"), "cut");
    assert_eq!(unmap(&good[..7], 7), illegal("5/1A/00"), "no header");
    assert_eq!(unmap(&[hex("0026 0020 00000000"), first.clone(), beyond].concat(), 40), illegal("5/21/00"));
    assert_eq!(
        verdict(&world.tell(&[0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0], &good)),
        illegal("5/24/00"),
        "anchored"
    );
    assert_eq!(world.answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512), [0x55; 512], "still there");
    let endless = [&hex("1008 1002 00000000")[..], &[0; 16 * 257]].concat();
    let outcome = world.tell(&[0x42, 0, 0, 0, 0, 0, 0, 0x10, 0x18, 0], &endless);
    assert_eq!(verdict(&outcome), illegal("5/26/00"), "too many descriptors");
    assert_eq!(unmap(&good, 24).0, ScsiStatus::GOOD);
    assert_eq!(world.answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512), [0; 512]);
}

#[test]
fn write_same_repeats_its_block_or_clears() {
    let world = World::memory();
    let same_16 =
        |options, lba: u8, blocks: u8| [0x93, options, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, blocks, 0, 0];
    let block: Vec<u8> = (0..=255).cycle().take(512).collect();
    assert_eq!(world.tell(&[0x41, 0, 0, 0, 0, 8, 0, 0, 4, 0], &block).transferred, 512);
    assert_eq!(
        world.answer(&[0x28, 0, 0, 0, 0, 7, 0, 0, 6, 0], 4096),
        [vec![0; 512], block.repeat(4), vec![0; 512]].concat()
    );
    assert_eq!(world.tell(&same_16(0, 9, 1), &[0; 512]).srb_status, SrbStatus::SUCCESS);
    assert_eq!(world.tell(&same_16(8, 10, 1), &[0; 512]).srb_status, SrbStatus::SUCCESS);
    assert_eq!(
        world.run_at(DISK, &same_16(9, 11, 1), DataDirection::Unspecified, 0).srb_status,
        SrbStatus::SUCCESS
    );
    assert_eq!(world.answer(&[0x28, 0, 0, 0, 0, 8, 0, 0, 4, 0], 4096), [block, vec![0; 1536]].concat());
    assert_eq!(verdict(&world.tell(&same_16(0, 9, 0), &[0; 512])), illegal("5/24/00"));
    assert_eq!(verdict(&world.tell(&same_16(0x10, 9, 1), &[0; 512])), illegal("5/24/00"));
    assert_eq!(verdict(&world.tell(&same_16(0, 9, 1), &[0; 511])), illegal("5/21/00"));
}

#[test]
fn verify_compares_when_asked_to() {
    let world = World::memory();
    let bytes: Vec<u8> = (0..=254).cycle().take(700 << 9).collect();
    let long = |opcode, options| [opcode, options, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 2, 188, 0, 0];
    world.tell(&long(0x8a, 0), &bytes);
    assert_eq!(world.tell(&long(0x8f, 2), &bytes).srb_status, SrbStatus::SUCCESS);
    assert_eq!(verdict(&world.tell(&long(0x8f, 6), &bytes)), illegal("5/24/00"), "one block many times");
    let mut wrong = bytes;
    wrong[690 << 9] ^= 1;
    assert_eq!(verdict(&world.tell(&long(0x8f, 2), &wrong)), check_condition(SrbStatus::ERROR, "E/1D/00"));
}

#[test]
fn a_broken_medium_is_not_the_guests_mistake() {
    let world = World::new(Troubled { reads_fail: true, ..Troubled::new() });
    let read = Command::Read(BlockRange::new(0, 1));
    assert_eq!(verdict(&world.run(read, 512)), check_condition(SrbStatus::ERROR, "3/11/00"));

    use std::io::ErrorKind;
    for (kind, sense) in [(ErrorKind::Other, "3/0C/00"), (ErrorKind::StorageFull, "7/27/07")] {
        let world = World::new(Troubled { writes_fail: Some(kind), ..Troubled::new() });
        let blocks = BlockRange::new(0, 1);
        for command in [Command::Write(blocks), Command::SynchronizeCache(blocks), Command::WriteSame(blocks)]
        {
            let outcome = world.run(command, 512);
            assert_eq!(verdict(&outcome), check_condition(SrbStatus::ERROR, sense), "{command:?}");
            assert_eq!(outcome.transferred, 0);
        }
    }
}

#[test]
fn forced_unit_access_and_flush_reach_the_medium() {
    let disk = Troubled::new();
    let state = Arc::clone(&disk.state);
    let world = World::new(disk);
    let blocks = BlockRange::new(0, 1);
    world.run(Command::Write(blocks), 512);
    assert_eq!(state.stable_writes.load(Ordering::Relaxed), 0);
    world.run(Command::Write(blocks.with(BlockRange::FUA)), 512);
    assert_eq!(state.stable_writes.load(Ordering::Relaxed), 1);
    world.run(Command::WriteAndVerify(blocks), 512);
    assert_eq!(state.stable_writes.load(Ordering::Relaxed), 2);
    world.run(Command::SynchronizeCache(BlockRange::new(0, 0)), 0);
    world.run(
        Command::StartStopUnit { immediate: false, start: false, load_eject: false, power_condition: 0 },
        0,
    );
    assert_eq!(state.flushes.load(Ordering::Relaxed), 2);
}

#[test]
fn a_flush_waits_for_the_writes_that_were_taken_before_it() {
    let disk = Troubled { slow: true, ..Troubled::new() };
    let state = Arc::clone(&disk.state);
    state.stuck.store(true, Ordering::Relaxed);
    let world = World::new(disk);
    let blocks = BlockRange::new(0, 1);
    let write = world.run_later(Command::Write(blocks), 512);
    let flush = world.run_later(Command::SynchronizeCache(blocks), 0);
    let (vmbus_vsp::storage::Execution::Later(write), vmbus_vsp::storage::Execution::Later(flush)) =
        (write, flush)
    else {
        panic!("a slow disk answered at once")
    };
    runtime().block_on(async {
        let write = tokio::spawn(write);
        let flush = tokio::spawn(flush);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert_eq!(state.flushes.load(Ordering::Relaxed), 0, "the flush overtook a write");
        state.stuck.store(false, Ordering::Relaxed);
        assert_eq!(flush.await.unwrap().srb_status, SrbStatus::SUCCESS);
        assert_eq!(state.writes.load(Ordering::Relaxed), 1);
        write.await.unwrap();
    });
}

#[test]
fn a_changed_size_is_told_once_and_then_true() {
    let disk = Troubled::new();
    let state = Arc::clone(&disk.state);
    let world = World::new(disk);
    state.sectors.store(100, Ordering::Relaxed);
    world.lun.resize().unwrap();
    world.answer(&[0x12, 0, 0, 0, 36, 0], 36);
    let read = Command::Read(BlockRange::new(100, 1));
    assert_eq!(verdict(&world.run(read, 512)), check_condition(SrbStatus::ERROR, "6/2A/09"));
    assert_eq!(verdict(&world.run(read, 512)), illegal("5/21/00"));
    assert_eq!(world.answer(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), hex("0000006300000200"));
}

#[test]
fn a_reset_is_told_once_or_when_sense_is_asked_for() {
    let world = World::memory();
    assert!(world.target.reset(DISK));
    assert!(!world.target.reset(Address { lun: 9, ..DISK }));
    assert_eq!(verdict(&world.run(Command::TestUnitReady, 0)), check_condition(SrbStatus::ERROR, "6/29/00"));
    assert_eq!(world.run(Command::TestUnitReady, 0).srb_status, SrbStatus::SUCCESS);
    world.target.reset_all();
    assert_eq!(world.answer(&[0x03, 0, 0, 0, 18, 0], 18), hex("700006000000000a000000002900 00000000"));
    assert_eq!(world.answer(&[0x03, 0, 0, 0, 18, 0], 18), hex("700000000000000a000000000000 00000000"));
    assert_eq!(world.answer(&[0x03, 1, 0, 0, 18, 0], 18), hex("7200000000000000"));
}

#[test]
fn disks_come_and_go_and_the_guest_learns_which() {
    let mut world = World::memory();
    assert_eq!(world.target.refresh(), None);
    let other = || Arc::new(Lun::new(Memory::new(4096).unwrap()));
    assert!(!world.units.add(0, other()), "the place is taken");
    assert!(world.units.add(200, other()));
    let changes = world.target.refresh().unwrap();
    assert!(changes.added && !changes.removed);
    world.units.remove(200).unwrap();
    let changes = world.target.refresh().unwrap();
    assert!(changes.removed && !changes.added);
    world.units.remove(0).unwrap();
    world.units.add(0, other());
    let changes = world.target.refresh().unwrap();
    assert!(changes.removed && changes.added, "another disk in the same place is another disk");
    assert_eq!(finish(world.run_later(Command::TestUnitReady, 0)).srb_status, SrbStatus::SUCCESS);
}
