//! A disk on a raw image file or a block device of the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nix::libc;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vmbus_partition::GuestPages;

use super::image::{Image, Medium};
use super::lock::lock;
use super::workers::{Length, Waiting, Workers};
use super::{Access, Backend, Durability, Geometry, Identity, WriteCache};

/// A raw image: byte N of the file is byte N of the disk.
///
/// Bytes move straight between the page cache and the guest's pages; what the cache does not have, and everything
/// that must be stable, runs on a few of tokio's blocking threads. FLUSH is `fdatasync`, and so is the end of a FUA write.
/// The image stays locked while this value lives: one writer, or any number of readers.
#[derive(Debug)]
pub struct RawFile {
    image: Arc<Image<File>>,
    geometry: Geometry,
    identity: Identity,
    workers: Arc<Workers>,
}

/// How to open a [`RawFile`].
#[derive(Clone, Copy, Debug)]
pub struct RawFileOptions {
    /// Whether the guest may write.
    pub access: Access,
    /// Bytes of a logical sector: 512 or 4096. Block devices insist on at least their own.
    pub logical_sector: u32,
}

impl Default for RawFileOptions {
    /// Writable, sectors of 512 bytes.
    fn default() -> Self {
        Self { access: Access::ReadWrite, logical_sector: 512 }
    }
}

/// Why an image cannot be a disk. All are for the operator to mend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened or looked at.
    #[error("cannot open disk image {path}: {source}")]
    Open {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Another disk, in this process or another, has the image open in a way that excludes this one.
    #[error(
        "disk image {path} is in use: another process or disk has it open{}; close it there, or open both read-only",
        match access { Access::ReadWrite => "", Access::ReadOnly => " for writing" }
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        access: Access,
    },
    /// Neither a regular file nor a block device.
    #[error("disk image {path} is neither a regular file nor a block device")]
    NotADisk {
        /// The image.
        path: PathBuf,
    },
    /// Shorter than one sector.
    #[error(
        "disk image {path} is smaller than one sector of {sector} bytes; make it larger, e.g. truncate -s 1G {path}"
    )]
    TooSmall {
        /// The image.
        path: PathBuf,
        /// Bytes of a sector.
        sector: u32,
    },
    /// The sector size is none that a guest knows, or smaller than the device's own.
    #[error("disk image {path} cannot have sectors of {sector} bytes: {reason}")]
    SectorSize {
        /// The image.
        path: PathBuf,
        /// What was asked for, in bytes.
        sector: u32,
        /// Why not.
        reason: String,
    },
}

impl RawFile {
    /// Opens and locks the image at `path`, with sectors of 512 bytes.
    ///
    /// # Errors
    /// As [`RawFile::open_with`].
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self, OpenError> {
        Self::open_with(path, RawFileOptions { access, ..RawFileOptions::default() })
    }

    /// Opens and locks the image at `path`.
    ///
    /// A size that is no multiple of the sector is rounded down: the bytes of the broken last sector stay in the
    /// file and are not part of the disk.
    ///
    /// # Errors
    /// [`OpenError`] says what to do about each.
    pub fn open_with(path: impl AsRef<Path>, options: RawFileOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let cannot = |source| OpenError::Open { path: path.to_owned(), source };
        if !matches!(options.logical_sector, 512 | 4096) {
            let reason = "only 512 and 4096 are known".to_owned();
            return Err(OpenError::SectorSize {
                path: path.to_owned(),
                sector: options.logical_sector,
                reason,
            });
        }
        // O_NONBLOCK so that a FIFO of that name does not hang us; it means nothing to files and disks.
        let file = OpenOptions::new()
            .read(true)
            .write(options.access == Access::ReadWrite)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(OpenError::NotADisk { path: path.to_owned() });
        }
        if !lock(&file, options.access).map_err(cannot)? {
            return Err(OpenError::InUse { path: path.to_owned(), access: options.access });
        }
        let blocks = Blocks::of(&metadata);
        if options.logical_sector < blocks.logical {
            let reason = format!("the device has sectors of {} bytes", blocks.logical);
            return Err(OpenError::SectorSize {
                path: path.to_owned(),
                sector: options.logical_sector,
                reason,
            });
        }
        let sector = u64::from(options.logical_sector);
        let medium = match fstatfs(&file) {
            Ok(filesystem) if metadata.is_file() && filesystem.filesystem_type() == TMPFS_MAGIC => {
                Medium::Memory
            }
            Ok(_) | Err(_) => Medium::Disk,
        };
        let image = Image::new(file, medium);
        let size = image.size().map_err(cannot)?;
        if size < sector {
            return Err(OpenError::TooSmall { path: path.to_owned(), sector: options.logical_sector });
        }
        if !size.is_multiple_of(sector) {
            tracing::warn!(path = %path.display(), size, sector, "the image ends in a broken sector, which is left out");
        }
        let geometry = Geometry {
            sectors: size / sector,
            logical_sector: options.logical_sector,
            physical_sector: blocks.physical.max(options.logical_sector),
            access: options.access,
            write_cache: WriteCache::Volatile,
            discard_unit: match options.access {
                Access::ReadWrite => Some(blocks.physical.max(options.logical_sector)),
                Access::ReadOnly => None,
            },
            rotational: blocks.rotational,
        };
        let identity = Identity::of_file(&metadata);
        Ok(Self { image: Arc::new(image), geometry, identity, workers: Arc::default() })
    }

    fn waiting<T: Send + 'static>(
        &self,
        length: Length,
        call: impl FnOnce(&Image<File>) -> io::Result<T> + Send + 'static,
    ) -> Waiting<T> {
        let image = Arc::clone(&self.image);
        self.workers.run(length, move || call(&image))
    }
}

#[async_trait]
impl Backend for RawFile {
    /// As it was when the image was opened, but for its size, which may have changed since.
    fn geometry(&self) -> Geometry {
        let sector = u64::from(self.geometry.logical_sector);
        let sectors = self.image.size().map_or(self.geometry.sectors, |size| size / sector);
        Geometry { sectors, ..self.geometry }
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn try_read(&self, offset: u64, into: &GuestPages) -> Option<io::Result<()>> {
        self.image.try_read(offset, into)
    }

    fn try_write(&self, offset: u64, from: &GuestPages, durability: Durability) -> Option<io::Result<()>> {
        self.image.try_write(offset, from, durability)
    }

    async fn read(&self, offset: u64, into: GuestPages) -> io::Result<()> {
        self.waiting(Length::Long, move |image| image.read(offset, &into)).await
    }

    async fn write(&self, offset: u64, from: GuestPages, durability: Durability) -> io::Result<()> {
        let length = match durability {
            // A copy into the page cache, as a rule.
            Durability::Visible => Length::Short,
            Durability::Stable => Length::Long,
        };
        self.waiting(length, move |image| image.write(offset, &from, durability)).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.waiting(Length::Long, Image::flush).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.waiting(Length::Long, move |image| image.discard(&range)).await
    }

    async fn write_zeroes(&self, range: Range<u64>, durability: Durability) -> io::Result<()> {
        self.waiting(Length::Long, move |image| image.write_zeroes(&range, durability)).await
    }
}

/// Block sizes of what lies beneath an image.
struct Blocks {
    logical: u32,
    physical: u32,
    rotational: bool,
}

impl Blocks {
    /// A file is written in blocks of its file system and behaves like a solid-state disk; a block device says.
    fn of(metadata: &fs::Metadata) -> Self {
        if !metadata.file_type().is_block_device() {
            let physical = u32::try_from(metadata.blksize()).ok().filter(|size| size.is_power_of_two());
            return Self {
                logical: 512,
                physical: physical.unwrap_or(4096).clamp(512, 65536),
                rotational: false,
            };
        }
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        let size = |name| queue_attribute(major, minor, name).filter(|size| size.is_power_of_two());
        Self {
            logical: size("logical_block_size").unwrap_or(512),
            physical: size("physical_block_size").unwrap_or(4096).clamp(512, 65536),
            rotational: queue_attribute(major, minor, "rotational") == Some(1),
        }
    }
}

/// A number that the host publishes about a block device; for a partition, about the disk it is on.
fn queue_attribute(major: u64, minor: u64, name: &str) -> Option<u32> {
    let device = format!("/sys/dev/block/{major}:{minor}");
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| fs::read_to_string(format!("{device}/{queue}/{name}")).ok()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::scratch::Scratch;
    use vmbus_core::memory::SharedMemory;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn the_second_writer_is_refused_and_told_so_until_the_first_has_gone() {
        let file = image(1 << 20);
        let first = RawFile::open(file.path(), Access::ReadWrite).unwrap();
        let refused = RawFile::open(file.path(), Access::ReadWrite).unwrap_err();
        assert!(matches!(refused, OpenError::InUse { .. }));
        assert!(refused.to_string().contains("is in use"), "{refused}");
        assert!(matches!(RawFile::open(file.path(), Access::ReadOnly), Err(OpenError::InUse { .. })));
        drop(first);
        RawFile::open(file.path(), Access::ReadWrite).unwrap();
    }

    #[test]
    fn readers_share_an_image_and_keep_writers_off() {
        let file = image(1 << 20);
        let readers = [(); 2].map(|()| RawFile::open(file.path(), Access::ReadOnly).unwrap());
        assert_eq!(readers[1].geometry().access, Access::ReadOnly);
        assert!(matches!(RawFile::open(file.path(), Access::ReadWrite), Err(OpenError::InUse { .. })));
    }

    #[test]
    fn an_image_is_the_same_disk_after_a_rename_and_a_copy_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let [here, there, copy] = ["here", "there", "copy"].map(|name| directory.path().join(name));
        fs::write(&here, [0; 4096]).unwrap();
        let identity = |path| RawFile::open(path, Access::ReadOnly).unwrap().identity();
        let before = identity(&here);
        fs::copy(&here, &copy).unwrap();
        fs::rename(&here, &there).unwrap();
        assert_eq!(identity(&there), before);
        assert_ne!(identity(&copy), before);
    }

    #[test]
    fn a_broken_last_sector_is_left_out_and_less_than_a_sector_is_no_disk() {
        for (size, sector, sectors) in [(1024, 512, 2), (1535, 512, 2), (1536, 512, 3), (8191, 4096, 1)] {
            let file = image(size);
            let options = RawFileOptions { logical_sector: sector, ..RawFileOptions::default() };
            assert_eq!(
                RawFile::open_with(file.path(), options).unwrap().geometry().sectors,
                sectors,
                "{size}"
            );
        }
        let tiny = image(511);
        assert!(matches!(
            RawFile::open(tiny.path(), Access::ReadWrite),
            Err(OpenError::TooSmall { sector: 512, .. })
        ));
        let odd = RawFileOptions { logical_sector: 520, ..RawFileOptions::default() };
        assert!(matches!(RawFile::open_with(tiny.path(), odd), Err(OpenError::SectorSize { .. })));
    }

    #[test]
    fn an_image_may_grow_while_it_is_open() {
        let file = image(4096);
        let disk = RawFile::open(file.path(), Access::ReadWrite).unwrap();
        file.as_file().set_len(8192).unwrap();
        assert_eq!(disk.geometry().sectors, 16);
    }

    #[test]
    fn what_is_no_disk_is_refused_without_hanging() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(RawFile::open(directory.path(), Access::ReadOnly), Err(OpenError::NotADisk { .. })));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(RawFile::open(&fifo, Access::ReadOnly), Err(OpenError::NotADisk { .. })));
        let missing = RawFile::open(directory.path().join("missing"), Access::ReadWrite).unwrap_err();
        assert!(missing.to_string().contains("missing"), "{missing}");
    }

    #[tokio::test]
    async fn bytes_go_to_the_same_place_of_the_file_and_holes_read_as_zeroes() {
        let file = image(1 << 20);
        let disk = RawFile::open(file.path(), Access::ReadWrite).unwrap();
        let scratch = Scratch::new(8192).unwrap();
        scratch.mapping().write(0, &[0xa5; 8192]);
        disk.write(4096, scratch.pages(8192).unwrap(), Durability::Stable).await.unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert!(bytes[4096..12288].iter().all(|&byte| byte == 0xa5));
        assert!(bytes[..4096].iter().chain(&bytes[12288..]).all(|&byte| byte == 0));
        disk.discard(4096..8192).await.unwrap();
        disk.read(4096, scratch.pages(8192).unwrap()).await.unwrap();
        let mut seen = vec![0; 8192];
        scratch.mapping().read(0, &mut seen);
        assert!(seen[..4096].iter().all(|&byte| byte == 0) && seen[4096..].iter().all(|&byte| byte == 0xa5));
        disk.flush().await.unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);
    }
}
