//! A stock Linux kernel, in a virtual machine, with a disk that our root serves.
//!
//! hv_vmbus and hv_storvsc are the judges here: nobody who wrote this project wrote them.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use vmbus_channels::Root;
use vmbus_vsp::storage::{Access, Lun, RawFile, StorageController};

/// Software emulation on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(180);
const MIB: usize = 1 << 20;

/// Boots the guest at `socket`, runs `command` in it and gives what its console showed.
async fn boot(socket: &Path, command: &str) -> String {
    let mut guest = Command::new(vmbus_tests::linux_guest_folder().join("boot.sh"))
        .arg(socket)
        .arg(format!("hvt_off hvt_cmd=\"{command}\""))
        .env("NICE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the guest's script runs");
    let mut console = Vec::new();
    let mut stdout = guest.stdout.take().expect("piped");
    let read = tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut console)).await;
    let console = String::from_utf8_lossy(&console).into_owned();
    assert!(read.is_ok(), "the guest did not end; its console:\n{console}");
    console
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_linux_reads_and_writes_a_disk_of_ours() {
    vmbus_tests::require!(LinuxGuest);
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    let bytes: Vec<u8> =
        (0..(8 * MIB) as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::File::create(&image).unwrap().write_all(&bytes).unwrap();

    let root = Root::builder().build();
    let lun = Lun::new(RawFile::open(&image, Access::ReadWrite).unwrap());
    root.offer(StorageController::new("disk").lun(0, lun).only_for("debian")).unwrap();
    let socket = directory.path().join("debian.sock");
    root.listen_for_vm("debian", &socket).unwrap();

    let copy = "dd if=/dev/sda of=/dev/sda bs=64k count=64 seek=64 conv=fsync";
    let console = boot(&socket, copy).await;

    let mut expected = bytes;
    expected.copy_within(0..4 * MIB, 4 * MIB);
    let image = std::fs::read(&image).unwrap();
    assert!(image == expected, "what Linux read, wrote and synced is in the image; its console:\n{console}");
    assert!(console.contains("Vmbus version:5.3"), "{console}");
}
