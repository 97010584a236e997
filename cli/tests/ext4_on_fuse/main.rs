//! A real file system on a disk that crosses the bus: `vmbus root` and `vmbus guest --fuse` as processes, a loop
//! device on the file, ext4 on the loop device. And what is left of it all when one of them is killed.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod tree;
mod world;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use tree::Tree;
use world::{Folder, LoopDevice, Mounted, program, run, until};

#[test]
fn a_tree_survives_ext4_on_a_loop_device_on_the_file() {
    vmbus_tests::require!(Root, Fuse);
    a_tree_survives(256 << 20, &Tree::of_this_machine(120 << 20, 10_000), &[]);
}

/// Then the loop device has many requests in flight, past the page cache.
#[test]
fn a_tree_survives_direct_io() {
    vmbus_tests::require!(Root, Fuse);
    a_tree_survives(64 << 20, &Tree::of_this_machine(20 << 20, 1000), &["--direct-io=on"]);
}

fn a_tree_survives(size: u64, tree: &Tree, loop_options: &[&str]) {
    let folder = Folder::new(size);
    let mountpoint = folder.path().join("fs");
    fs::create_dir(&mountpoint).unwrap();

    let (root, guest) = (folder.root(), folder.guest());
    let device = LoopDevice::new(&folder.disk(), loop_options);
    run(program("mkfs.ext4").arg("-q").arg(device.path()));
    let mounted = Mounted::new(&device, &mountpoint, "discard");
    let target = mountpoint.join("tree");
    fs::create_dir(&target).unwrap();
    tree.copy_to(&target);
    // A file that comes and goes: its blocks are discarded.
    fs::write(mountpoint.join("gone"), vec![7; 8 << 20]).unwrap();
    run(program("sync").arg("-f").arg(&mountpoint));
    fs::remove_file(mountpoint.join("gone")).unwrap();
    tree.assert_is_at(&target);
    mounted.unmount();
    drop(device);
    guest.end();
    root.end();

    run(program("e2fsck").arg("-fn").arg(folder.image()));
    let device = LoopDevice::new(&folder.image(), &["--read-only"]);
    let mounted = Mounted::new(&device, &mountpoint, "ro");
    tree.assert_is_at(&target);
    mounted.unmount();
    drop(device);
    folder.assert_nothing_is_left();
    assert!(tree.bytes > 1 << 20);
}

#[test]
fn a_killed_guest_leaves_no_mount_and_the_next_one_works() {
    vmbus_tests::require!(Fuse);
    let folder = Folder::new(16 << 20);
    let root = folder.root();
    for round in 0..4 {
        let mut guest = folder.guest();
        let load = load(&folder.disk());
        thread::sleep(Duration::from_millis(moment(round)));
        guest.signal(Signal::SIGKILL);
        guest.ended();
        joined(load);
        until("the mount is gone", || (!folder.is_mentioned_in(&mounts())).then_some(()));
    }
    let guest = folder.guest();
    write_and_read(&folder.disk());
    guest.end();
    root.end();
    folder.assert_nothing_is_left();
    assert_only_known_files(&folder);
}

#[test]
fn a_killed_root_ends_the_guest_and_its_mount_and_the_next_root_works() {
    vmbus_tests::require!(Fuse);
    let folder = Folder::new(16 << 20);
    for round in 0..4 {
        let (mut root, mut guest) = (folder.root(), folder.guest());
        let load = load(&folder.disk());
        thread::sleep(Duration::from_millis(moment(round)));
        root.signal(Signal::SIGKILL);
        root.ended();
        joined(load);
        assert!(!guest.ended().success(), "a guest says that its root is gone");
        folder.assert_nothing_is_left();
    }
    let (root, guest) = (folder.root(), folder.guest());
    write_and_read(&folder.disk());
    guest.end();
    root.end();
    folder.assert_nothing_is_left();
    assert_only_known_files(&folder);
}

/// The file's user does not notice when its guest is killed while a file system is mounted on it, but gets errors.
#[test]
fn a_killed_guest_with_a_file_system_on_its_disk_leaves_no_mount() {
    vmbus_tests::require!(Root, Fuse);
    let folder = Folder::new(32 << 20);
    let (root, mut guest) = (folder.root(), folder.guest());
    let device = LoopDevice::new(&folder.disk(), &[]);
    run(program("mkfs.ext4").arg("-q").arg(device.path()));
    let mounted = Mounted::new(&device, &folder.path().join("fs"), "errors=continue");
    fs::write(folder.path().join("fs/file"), vec![1; 1 << 20]).unwrap();
    guest.signal(Signal::SIGKILL);
    guest.ended();
    until("the mount is gone", || {
        (!mounts().contains(folder.path().join("mnt").to_str().unwrap())).then_some(())
    });
    drop(mounted);
    drop(device);
    root.end();
    folder.assert_nothing_is_left();
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").unwrap()
}

/// Milliseconds before a kill: different in each round and in each run.
fn moment(round: u64) -> u64 {
    let entropy = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let milliseconds = round * 40 + u64::from(entropy % 97);
    println!("round {round}: killed after {milliseconds} ms");
    milliseconds
}

#[test]
fn programs_on_a_mount_see_a_pause_only_when_their_root_is_killed_and_restarted() {
    vmbus_tests::require!(Fuse);
    let folder = Folder::new(16 << 20);
    let (mut root, guest) = (folder.root(), folder.guest_that_resumes());
    // In a process of its own: one that has the file open cannot start a root while there is none, since what it
    // starts closes the file, and that waits for the root.
    let load = "for i in $(seq 100); do \
                dd if=/dev/zero of=$0 bs=64k count=32 seek=64 conv=notrunc,fdatasync status=none || exit; done";
    let mut load = Command::new("sh").args(["-c", load]).arg(folder.disk()).spawn().unwrap();
    for round in 0..4 {
        thread::sleep(Duration::from_millis(moment(round)));
        root.signal(Signal::SIGKILL);
        root.ended();
        root = folder.root();
        write_and_read(&folder.disk());
    }
    let ended = load.wait().unwrap();
    assert!(ended.success(), "a request has failed: {ended}");
    guest.end();
    root.end();
    folder.assert_nothing_is_left();
}

/// Writes and reads until that fails, as it must when the disk is gone.
fn load(disk: &Path) -> thread::JoinHandle<()> {
    let file = OpenOptions::new().read(true).write(true).open(disk).unwrap();
    thread::spawn(move || {
        let mut bytes = vec![1; 300_001];
        for at in (0..).map(|step: u64| step * 12_345 % (15 << 20)) {
            let done = file.write_all_at(&bytes, at).and_then(|()| file.read_exact_at(&mut bytes, at));
            if done.and_then(|()| if at % 7 == 0 { file.sync_data() } else { Ok(()) }).is_err() {
                break;
            }
        }
    })
}

/// The load has ended: nobody hangs.
fn joined(load: thread::JoinHandle<()>) {
    until("I/O on the dead disk has failed", || load.is_finished().then_some(()));
    load.join().unwrap();
}

fn write_and_read(disk: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(disk).unwrap();
    file.write_all_at(b"still works", 4099).unwrap();
    file.sync_all().unwrap();
    let mut back = [0; 11];
    file.read_exact_at(&mut back, 4099).unwrap();
    assert_eq!(&back, b"still works");
}

/// The socket is what the next root takes over.
fn assert_only_known_files(folder: &Folder) {
    let known = ["bus.sock", "fs", "image", "mnt"];
    let unknown: Vec<_> = folder.files().into_iter().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "left behind: {unknown:?}");
}
