//! The drivers of a stock Linux kernel find our disks, read and write them, and hear the truth about each.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use vmbus_channels::Root;
use vmbus_core::guid;
use vmbus_core::memory::SharedMemory;
use vmbus_vsp::storage::{Access, Identity, Lun, Memory, RawFile, StorageController, Units};

/// Software emulation on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the guest runs. It tells the disks apart by their size in sectors.
const SCRIPT: &str = "\
    for p in /sys/block/sd*; do d=${p##*/}; s=$(cat $p/size); \
        echo MARK disk $s ro=$(cat $p/ro) cache=$(cat $p/queue/write_cache) id=$(cat $p/device/wwid); \
        case $s in 65536) D=/dev/$d;; 32768) R=/dev/$d;; esac; done; \
    echo MARK before $(md5sum < $D); \
    dd if=/dev/urandom of=$D bs=64k seek=16 count=64 conv=fsync,notrunc 2>/dev/null && echo MARK written; \
    echo 3 > /proc/sys/vm/drop_caches; \
    echo MARK after $(md5sum < $D); \
    dd if=/dev/zero of=$R bs=4k count=1 2>/dev/null || echo MARK refused; \
    until [ -e /sys/block/sdd ]; do sleep 1; done; echo MARK added; \
    dd if=/dev/urandom of=/dev/sdd bs=4k count=1 conv=fsync 2>/dev/null; \
    while [ -e /sys/block/sdd ]; do sleep 1; done; echo MARK removed";

fn md5(path: &Path) -> String {
    let sum = Command::new("md5sum").arg(path).output().unwrap();
    String::from_utf8(sum.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Adds a disk once the guest has written to `image`, and removes it once the guest has written to it.
async fn come_and_go(units: Arc<Units>, disk: Memory, image: PathBuf, before: String) {
    let moment = Duration::from_millis(200);
    while md5(&image) == before {
        tokio::time::sleep(moment).await;
    }
    assert!(units.add(7, Arc::new(Lun::new(disk.clone()))));
    while disk.bytes().read_u64(0) == 0 {
        tokio::time::sleep(moment).await;
    }
    units.remove(7).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_linux_finds_reads_and_writes_our_disks() {
    vmbus_tests::require!(LinuxGuest);
    let directory = tempfile::tempdir().unwrap();
    let [socket, image, protected] =
        ["root.sock", "disk.img", "protected.img"].map(|name| directory.path().join(name));
    let pattern: Vec<u8> = (0..32_u32 << 20).map(|at| ((at / 509) ^ (at >> 13)).to_le_bytes()[0]).collect();
    std::fs::write(&image, pattern).unwrap();
    std::fs::write(&protected, vec![0x5a; 16 << 20]).unwrap();
    let before = md5(&image);

    let disk = guid!("11223344-5566-7788-99aa-bbccddeeff00");
    let controller = StorageController::new("disks")
        .lun(0, Lun::new(RawFile::open(&image, Access::ReadWrite).unwrap()).with_identity(Identity::of(disk)))
        .lun(1, Lun::new(Memory::new(24 << 20).unwrap()))
        .lun(5, Lun::new(RawFile::open(&protected, Access::ReadOnly).unwrap()));
    let units = controller.units();
    let root = Root::builder().build();
    root.offer(controller).unwrap();
    root.listen_for_vm("linux", &socket).unwrap();

    let emulator = tokio::process::Command::new(vmbus_tests::linux_guest_folder().join("boot.sh"))
        .arg(&socket)
        .arg(format!("hvt_quiet hvt_off hvt_cmd=\"{SCRIPT}\""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let late = Memory::new(8 << 20).unwrap();
    let visit = tokio::spawn(come_and_go(units, late, image.clone(), before.clone()));
    let output =
        tokio::time::timeout(PATIENCE, emulator.wait_with_output()).await.expect("Linux ends").unwrap();
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let marks: Vec<&str> = console.lines().filter_map(|line| line.strip_prefix("MARK ")).collect();

    let says = |start: &str| {
        let found = marks.iter().find_map(|mark| mark.strip_prefix(start));
        found.unwrap_or_else(|| panic!("Linux does not say {start:?}:\n{console}"))
    };
    assert_eq!(
        marks.iter().filter(|mark| mark.starts_with("disk ")).count(),
        3,
        "no more, no less:\n{console}"
    );
    let registered = "id=naa.60022480443322116655bbccddeeff00";
    assert_eq!(says("disk 65536 "), format!("ro=0 cache=write back {registered}"));
    assert!(says("disk 49152 ").starts_with("ro=0 cache=write through"), "a disk in memory needs no flush");
    assert!(says("disk 32768 ").starts_with("ro=1 "));
    assert!(says("before ").starts_with(&before));
    says("written");
    let after = md5(&image);
    assert_ne!(after, before);
    assert!(says("after ").starts_with(&after), "what Linux reads is what is in the file");
    says("refused");
    says("added");
    says("removed");
    visit.await.unwrap();
    assert!(std::fs::read(&protected).unwrap().iter().all(|&byte| byte == 0x5a));
}
