//! A block device of the host is a disk like an image.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::Path;
use std::process::Command;

use vmbus_vsp::storage::{Access, Backend, Durability, OpenError, RawFile, RawFileOptions};

/// A loop device, detached again whatever becomes of the test.
struct LoopDevice(String);

impl LoopDevice {
    fn over(image: &Path) -> Option<Self> {
        let losetup = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        let device = String::from_utf8(losetup.stdout).ok()?.trim().to_owned();
        losetup.status.success().then_some(Self(device))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[tokio::test]
async fn a_block_device_is_opened_locked_cleared_and_measured() {
    vmbus_tests::require!(Root);
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vec![0xff; 5 << 20]).unwrap();
    let Some(device) = LoopDevice::over(image.path()) else {
        vmbus_tests::skip!("losetup makes no loop device")
    };

    let disk = RawFile::open(&device.0, Access::ReadWrite).unwrap();
    assert_eq!(disk.geometry().bytes(), 5 << 20);
    assert!(matches!(RawFile::open(&device.0, Access::ReadWrite), Err(OpenError::InUse { .. })));
    disk.discard(0..8192).await.unwrap();
    disk.write_zeroes(8192..12288, Durability::Stable).await.unwrap();
    drop(disk);
    let bytes = std::fs::read(image.path()).unwrap();
    assert!(bytes[..12288].iter().all(|&byte| byte == 0), "cleared, also beneath the device");
    assert!(bytes[12288..].iter().all(|&byte| byte == 0xff));

    let options = RawFileOptions { logical_sector: 4096, ..RawFileOptions::default() };
    assert_eq!(RawFile::open_with(&device.0, options).unwrap().geometry().sectors, 1280);
}
