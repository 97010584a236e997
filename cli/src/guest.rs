//! `vmbus guest`: a process that joins a bus.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use vmbus_channels::{Device, Guest, Resume};
use vmbus_core::Version;
use vmbus_core::storage::SCSI_CLASS;
use vmbus_proxy_devices::fuse::DiskDoor;
use vmbus_vsc::Disk;

use crate::hvsock::{self, Entrance, Served};

/// Arguments of `vmbus guest`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where the root listens
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Name of this guest
    #[arg(long)]
    name: String,
    /// Memory to share with the root
    #[arg(long, default_value = "64M", value_parser = crate::size::parse)]
    memory: u64,
    /// Show the disk as the file `disk` in this directory, until interrupted
    #[arg(long, value_name = "MOUNTPOINT")]
    fuse: Option<PathBuf>,
    /// Make the guest's NIC an interface of this machine, until interrupted; for several NICs several times
    #[arg(long = "tap", value_name = "INTERFACE")]
    taps: Vec<String>,
    /// Longest packet to send and receive, in bytes; changing the interface's changes the NIC's, too
    #[arg(long, value_name = "BYTES", default_value_t = 1500, requires = "taps",
          value_parser = clap::value_parser!(u32).range(68..=9216))]
    mtu: u32,
    /// The root's connections to SERVICE, a vsock port or a GUID, are served by who listens at PATH
    #[arg(long, value_name = "SERVICE=unix:PATH")]
    hvsock: Vec<Served>,
    /// Who connects to the socket PATH is connected to SERVICE of the root
    #[arg(long, value_name = "SERVICE=unix:PATH")]
    hvsock_listen: Vec<Entrance>,
    /// Highest protocol version to ask for, such as 5.2
    #[arg(long, value_name = "VERSION")]
    max_version: Option<Version>,
    /// How many seconds to wait for another root when this one dies; requests go on there. 0: end with it
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    resume: u64,
}

const EXAMPLES: &str = "\
Examples:
  vmbus guest --socket bus.sock --name alice
  vmbus guest --socket bus.sock --name alice --hvsock 22=unix:sshd.sock --hvsock-listen 5000=unix:log.sock
  vmbus guest --socket bus.sock --name alice --fuse mnt
      then, as root: losetup --find --show mnt/disk
  vmbus guest --socket bus.sock --name alice --tap tap0
      then, as root: dhclient tap0, or ip address add 10.0.0.2/24 dev tap0";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(join(arguments))
}

/// For how long to outlive a root.
pub(crate) fn resume(seconds: u64) -> Resume {
    match seconds {
        0 => Resume::never(),
        seconds => Resume::within(Duration::from_secs(seconds)),
    }
}

/// Tells of roots that come and go.
async fn tell_of_roots(guest: Guest) {
    loop {
        guest.attached(false).await;
        eprintln!("the root is gone: waiting for another");
        guest.attached(true).await;
        if !guest.is_attached() {
            return;
        }
        eprintln!("there is a root again");
    }
}

async fn join(arguments: &Arguments) -> Result<()> {
    let newest = arguments.max_version.unwrap_or(Version::NEWEST);
    let guest = Guest::builder()
        .name(&arguments.name)
        .memory(arguments.memory)
        .versions(Version::OLDEST..=newest)
        .resume(resume(arguments.resume))
        .connect(&arguments.socket)
        .await
        .with_context(|| format!("cannot join the bus at {}", arguments.socket.display()))?;
    let _doors = hvsock::open_at_guest(&guest, &arguments.hvsock, &arguments.hvsock_listen)?;
    println!("joined as {} with version {}", arguments.name, guest.version());
    if guest.outlives_root() {
        tokio::spawn(tell_of_roots(guest.clone()));
    }
    let taps = crate::net::guest::open(&guest, &arguments.taps, arguments.mtu).await?;
    let ended = tokio::select! {
        ended = show(&guest, arguments) => ended,
        error = taps.run() => Err(error),
    };
    taps.close().await;
    ended
}

async fn show(guest: &Guest, arguments: &Arguments) -> Result<()> {
    match &arguments.fuse {
        Some(mountpoint) => show_disk(guest, mountpoint).await,
        None if !arguments.taps.is_empty() => wait_for_end(guest).await,
        None => {
            for device in guest.all_offers().await? {
                println!("device {} of class {}", device.instance, device.class);
            }
            wait_for_end(guest).await
        }
    }
}

async fn show_disk(guest: &Guest, mountpoint: &std::path::Path) -> Result<()> {
    let hint = "no disk is offered to this guest: see --disk of `vmbus root`, and `vmbus ls`";
    tokio::time::timeout(std::time::Duration::from_secs(10), guest.wait_for(Device::class(SCSI_CLASS)))
        .await
        .context(hint)??;
    let disk = Disk::open(guest).await.context("cannot open the disk")?;
    let size = disk.size();
    let door = DiskDoor::mount(disk, mountpoint)
        .with_context(|| format!("cannot mount at {}: is it an empty directory?", mountpoint.display()))?;
    println!("{} is a disk of {}", door.file().display(), crate::size::show(size));
    let ended = wait_for_end(guest).await;
    let unmounted = door.unmount();
    // Without a root there is nothing to flush to either: that is the consequence, not the reason.
    ended?;
    Ok(unmounted?)
}

async fn wait_for_end(guest: &Guest) -> Result<()> {
    let (mut interrupted, mut terminated) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
        () = guest.closed() => anyhow::bail!("the root is gone"),
    }
}
