//! A stock Linux kernel and the control plane: with several processors it opens sub-channels of our controller, it
//! signals by monitor bits, and after a panic it comes back to the same disk.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::process::{Command, Stdio};
use std::time::Duration;

use vmbus_channels::{Client, Event, Offer, OpenRequest, Provider, Refusal, Root};
use vmbus_vsp::storage::{Access, Lun, RawFile, StorageController, StorageSession};

/// Software emulation on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(240);
const PROCESSORS: usize = 4;

/// Each processor copies a part of the disk to another part of it, all at the same time.
const SCRIPT: &str = "\
    echo MARK channels $(ls /sys/bus/vmbus/devices/*/channels | wc -l); \
    for p in 0 1 2 3; do (taskset $((1 << p)) dd if=/dev/sda of=/dev/sda bs=64k skip=$((p * 64)) \
        seek=$((256 + p * 64)) count=64 conv=notrunc,fsync 2>/dev/null && echo MARK copied $p) & done; wait; \
    echo 3 > /proc/sys/vm/drop_caches; \
    echo MARK sum $(md5sum < /dev/sda)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_linux_with_four_processors_opens_three_sub_channels_and_its_data_are_right() {
    vmbus_tests::require!(LinuxGuest);
    let directory = tempfile::tempdir().unwrap();
    let [socket, image] = ["root.sock", "disk.img"].map(|name| directory.path().join(name));
    let half: Vec<u8> = (0..16_u32 << 20).map(|at| ((at / 509) ^ (at >> 13)).to_le_bytes()[0]).collect();
    std::fs::write(&image, [half.clone(), vec![0; half.len()]].concat()).unwrap();

    let root = Root::builder().build();
    let lun = Lun::new(RawFile::open(&image, Access::ReadWrite).unwrap());
    root.offer(StorageController::new("disk").lun(0, lun)).unwrap();
    root.listen_for_vm("linux", &socket).unwrap();
    let emulator = tokio::process::Command::new(vmbus_tests::linux_guest_folder().join("boot.sh"))
        .arg(&socket)
        .arg(format!("hvt_quiet hvt_off hvt_cmd=\"{SCRIPT}\""))
        .env("SMP", PROCESSORS.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let most_open = tokio::spawn(async move {
        let mut most = 0;
        while most < PROCESSORS {
            let status = root.status().await;
            let channels = status.partitions.iter().flat_map(|partition| &partition.channels);
            most = most.max(channels.filter(|channel| channel.state == "open").count());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        root
    });
    let output =
        tokio::time::timeout(PATIENCE, emulator.wait_with_output()).await.expect("Linux ends").unwrap();
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let says = |what: &str| {
        assert!(console.lines().any(|line| line == format!("MARK {what}")), "not {what:?}:\n{console}");
    };
    says(&format!("channels {PROCESSORS}"));
    (0..PROCESSORS).for_each(|processor| says(&format!("copied {processor}")));
    let sum = Command::new("md5sum").arg(&image).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    says(&format!("sum {} -", sum.split_whitespace().next().unwrap()));
    assert!(std::fs::read(&image).unwrap() == [half.clone(), half].concat(), "each half is the other");
    drop(tokio::time::timeout(PATIENCE, most_open).await.expect("four channels were open").unwrap());
}

/// A controller that guests signal by their monitor bits.
struct Monitored(StorageController);

impl Provider for Monitored {
    type Session = StorageSession;

    fn offer(&self) -> Offer {
        self.0.offer().monitored(Duration::from_micros(100))
    }

    fn open(&self, client: &Client, open: &OpenRequest) -> Result<StorageSession, Refusal> {
        self.0.open(client, open)
    }
}

/// Writes a mark and panics, unless the mark is there: then it has been here before.
const PANIC: &str = "\
    echo MARK monitors $(cat /sys/bus/vmbus/devices/*/channels/*/monitor_id | sort -u | wc -l); \
    if dd if=/dev/sda bs=512 count=1 2>/dev/null | grep -q been-here; then \
        echo MARK back $(md5sum < /dev/sda); poweroff -f; \
    else \
        echo been-here | dd of=/dev/sda bs=512 conv=sync,fsync,notrunc 2>/dev/null; echo c > /proc/sysrq-trigger; \
    fi";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_linux_signals_by_monitor_bits_and_comes_back_after_a_panic() {
    vmbus_tests::require!(LinuxGuest);
    let directory = tempfile::tempdir().unwrap();
    let [socket, image] = ["root.sock", "disk.img"].map(|name| directory.path().join(name));
    std::fs::write(&image, vec![0x5a; 8 << 20]).unwrap();
    let root = Root::builder().build();
    let lun = Lun::new(RawFile::open(&image, Access::ReadWrite).unwrap());
    root.offer(Monitored(StorageController::new("disk").lun(0, lun))).unwrap();
    root.listen_for_vm("linux", &socket).unwrap();
    let mut events = root.events();
    let emulator = tokio::process::Command::new(vmbus_tests::linux_guest_folder().join("boot.sh"))
        .arg(&socket)
        .arg(format!("hvt_quiet hvt_off hvt_cmd=\"{PANIC}\""))
        .env("SMP", "2")
        .env("REBOOT", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output =
        tokio::time::timeout(PATIENCE, emulator.wait_with_output()).await.expect("Linux ends").unwrap();
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let marks: Vec<&str> = console.lines().filter_map(|line| line.strip_prefix("MARK ")).collect();
    assert_eq!(
        marks.iter().filter(|mark| **mark == "monitors 2").count(),
        2,
        "two channels, twice:\n{console}"
    );
    let sum = Command::new("md5sum").arg(&image).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let back = format!("back {} -", sum.split_whitespace().next().unwrap());
    assert!(marks.contains(&&*back), "it finds what it left:\n{console}");
    let (mut crashes, mut connections) = (0, 0);
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Crashed { message, .. } => {
                assert!(message.contains("sysrq"), "its last words: {message}");
                crashes += 1;
            }
            Event::Connected { .. } => connections += 1,
            _ => {}
        }
    }
    assert_eq!((crashes, connections), (1, 2), "{console}");
}
