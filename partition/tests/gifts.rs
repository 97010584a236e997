//! Memory given away: out of the giver's reach, into the taker's.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test that fails may panic"
)]

mod common;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use vmbus_partition::{FromGuest, FromRoot, Gift, GiftError, LinkError, SealedGift};

const BYTES: usize = 3 * 4096 + 100;

fn filled() -> Gift {
    let mut gift = Gift::new(BYTES).unwrap();
    gift.write(0, b"from");
    gift.write(BYTES - 4, b"here");
    gift
}

#[test]
fn a_gift_arrives_at_either_end_as_it_was_sent() {
    for (root, guest) in [common::over_socket(), common::in_process()] {
        guest.give(7, filled().seal().unwrap()).unwrap();
        let gift = loop {
            match root.receive().unwrap() {
                Some(FromGuest::Given { id: 7, gift }) => break gift,
                Some(other) => panic!("{other:?}"),
                None => std::thread::yield_now(),
            }
        };
        let given = gift.open().unwrap();
        let mut end = [0; 8];
        given.read(BYTES - 8, &mut end).unwrap();
        assert_eq!((&end, given.len()), (b"\0\0\0\0here", BYTES));
        assert!(given.read(BYTES - 7, &mut end).is_err(), "not beyond what was given");

        root.give(9, filled().seal().unwrap()).unwrap();
        let gift = loop {
            match guest.receive().unwrap() {
                Some(FromRoot::Given { id: 9, gift }) => break gift,
                Some(other) => panic!("{other:?}"),
                None => std::thread::yield_now(),
            }
        };
        let mut start = [0; 4];
        gift.copy().unwrap().read(0, &mut start).unwrap();
        assert_eq!(&start, b"from");
    }
}

#[test]
fn what_was_given_away_is_in_nobodys_address_space() {
    // Of this test's own size, so that gifts of other tests in this process are not taken for it.
    let mut gift = Gift::new(77 * 4096).unwrap();
    gift.write(0, b"mine");
    let place = |when: &str| {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let ours = maps.lines().filter(|line| line.contains("vmbus-gift")).find_map(|line| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let address = |digits| u64::from_str_radix(digits, 16).ok();
            (address(end)? - address(start)? == 77 * 4096).then_some(address(start)?)
        });
        ours.ok_or(format!("{when}: not mapped"))
    };
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut seen = [0; 4];
    let at = place("being filled").unwrap();
    memory.read_exact_at(&mut seen, at).unwrap();
    assert_eq!(&seen, b"mine");

    let sealed = gift.seal().unwrap();
    assert!(place("given away").is_err(), "it is still mapped");
    let given = sealed.open().unwrap();
    given.read(0, &mut seen).unwrap();
    assert_eq!(&seen, b"mine");
}

#[test]
fn a_giver_that_kept_a_descriptor_can_change_nothing() {
    let sealed = filled().seal().unwrap();
    let kept = sealed.as_fd().try_clone_to_owned().unwrap();
    let mut given = sealed.open().unwrap();
    let file = fs::File::from(kept);
    assert!(file.write_at(b"changed", 0).is_err(), "by writing");
    assert!(file.set_len(0).is_err(), "by taking it away");
    assert!(
        vmbus_partition::Memfd::from_peer(file.try_clone().unwrap().into()).unwrap().map_all().is_err(),
        "by mapping"
    );

    given.write(0, b"ours").unwrap();
    let mut theirs = [0; 4];
    file.read_exact_at(&mut theirs, 0).unwrap();
    assert_eq!(&theirs, b"from", "what the taker writes is its own");
}

fn peers_file(seals: SealFlag, size: i64) -> OwnedFd {
    let file = memfd_create("peer", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&file, size).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file
}

#[test]
fn a_gift_that_its_giver_could_still_write_is_refused() {
    let fixed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    for seals in [fixed, fixed | SealFlag::F_SEAL_FUTURE_WRITE] {
        let refused = SealedGift::from_peer(peers_file(seals, 4096), 4096);
        assert!(matches!(refused, Err(GiftError::NotSealed)), "{refused:?}");
    }
    let sealed = fixed | SealFlag::F_SEAL_WRITE;
    assert!(SealedGift::from_peer(peers_file(sealed, 4096), 4096).is_ok());
    for len in [0, 4097, u64::MAX] {
        let refused = SealedGift::from_peer(peers_file(sealed, 4096), len);
        assert!(matches!(refused, Err(GiftError::Length { .. })), "{refused:?}");
    }
    let no_memfd = fs::File::open("/proc/self/exe").unwrap();
    assert!(matches!(SealedGift::from_peer(no_memfd.into(), 1), Err(GiftError::Memory(_))));
}

#[test]
fn a_base_vmm_is_given_nothing() {
    let (root, _guest) = common::base_frames();
    assert!(!root.info().takes_gifts);
    assert!(matches!(root.give(1, filled().seal().unwrap()), Err(LinkError::NoGifts)));
}
