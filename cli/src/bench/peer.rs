//! The other process of a measurement: this program again, with a processor of its own.

use std::fs::File;
use std::io::{BufRead as _, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum as _};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use vmbus_channels::{
    Channel, ChannelError, Client, Guid, Offer, OpenRequest, Provider, Refusal, Root, Session, Spin, guid,
};
use vmbus_partition::{Mapping, Memfd};
use vmbus_vsp::storage::{Lun, Memory, StorageController};

use super::doorbell::{self, Lines};
use super::noise::{self, Noise};
use super::{crowd, frames, place};

/// The class of the device that gives every request's payload back.
pub(super) const ECHO: Guid = guid!("5a0e9c1d-7a54-4d0f-8f0b-2c1f6f0f3b11");

/// Arguments of `vmbus bench peer`.
#[derive(Args)]
pub(super) struct Arguments {
    /// The processor to run on, by the system's number
    processor: usize,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// A root with a memory disk and a device that echoes
    Bus {
        socket: PathBuf,
        disk: u64,
        #[arg(long)]
        never_spin: bool,
    },
    /// A root with so many devices that echo
    Many { socket: PathBuf, devices: usize },
    /// A guest that opens so many channels, has one request answered on each, says so and stays until its input ends
    Guest { socket: PathBuf, name: String, channels: usize },
    /// A guest that follows no rule
    Noise { socket: PathBuf, how: Noise },
    /// A root with a switch and a NIC for each of two guests
    Switch { socket: PathBuf },
    /// A guest that counts the frames it gets
    Counting { socket: PathBuf },
    /// Passes packets on from its standard input to its standard output
    Relay,
    /// Counts packets
    Sink,
    /// Answers on bare lines of shared memory
    Lines { memory: PathBuf },
    /// Waits for the eventfd that is its standard input, answers on the one that is its standard output
    Eventfd,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    // No peer outlives its measurement, however that ends.
    set_pdeathsig(Signal::SIGKILL)?;
    place::pin_to(arguments.processor)?;
    match &arguments.role {
        Role::Bus { socket, disk, never_spin } => serve(socket, *disk, spin(*never_spin)),
        Role::Many { socket, devices } => crowd::serve(socket, *devices),
        Role::Guest { socket, name, channels } => crowd::join(socket, name, *channels),
        Role::Noise { socket, how } => noise::make(socket, *how),
        Role::Switch { socket } => frames::switch(socket),
        Role::Counting { socket } => frames::count(socket),
        Role::Relay => frames::relay(),
        Role::Sink => frames::sink(),
        Role::Lines { memory } => {
            let file = File::options().read(true).write(true).open(memory)?;
            doorbell::answer_on_lines(&Lines::over(Memfd::from_peer(OwnedFd::from(file))?.map_all()?));
            Ok(())
        }
        Role::Eventfd => {
            let mut hears = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
            let mut answers = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
            let mut count = [0; 8];
            loop {
                hears.read_exact(&mut count)?;
                answers.write_all(&1_u64.to_ne_bytes())?;
            }
        }
    }
}

pub(super) fn spin(never: bool) -> Spin {
    if never { Spin::never() } else { Spin::adaptive() }
}

fn serve(socket: &Path, disk: u64, spin: Spin) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let root = Root::builder().spin(spin).build();
        root.offer(Echo)?;
        root.offer(StorageController::new("memory").lun(0, Lun::new(Memory::new(disk)?)))?;
        root.listen_at(socket)?;
        std::future::pending().await
    })
}

struct Echo;

impl Provider for Echo {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(ECHO, "echo")
    }

    fn open(&self, _: &Client, _: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

impl Session for Echo {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        let channel = channel.into_blocking();
        let answering = tokio::task::spawn_blocking(move || {
            while let Some(request) = channel.recv()? {
                let payload = <[u8; 64]>::try_from(request.payload()).unwrap_or([0; 64]);
                request.complete_blocking(&payload)?;
            }
            Ok(())
        });
        answering.await.map_err(|error| ChannelError::Device(error.to_string()))?
    }
}

/// A peer at work; ends when dropped.
pub(super) struct Peer(Child);

impl Peer {
    /// A root that spins or never does, and where to reach it.
    pub(super) fn bus(socket: &Path, processor: usize, disk: u64, never_spin: bool) -> Result<Self> {
        let mut command = command(processor)?;
        command.arg("bus").arg(socket).arg(disk.to_string());
        if never_spin {
            command.arg("--never-spin");
        }
        Self::serving(command, socket)
    }

    /// A root with so many devices that echo.
    pub(super) fn many(socket: &Path, processor: usize, devices: usize) -> Result<Self> {
        let mut command = command(processor)?;
        command.arg("many").arg(socket).arg(devices.to_string());
        Self::serving(command, socket)
    }

    /// A root with a switch.
    pub(super) fn switch(socket: &Path, processor: usize) -> Result<Self> {
        let mut command = command(processor)?;
        command.arg("switch").arg(socket);
        Self::serving(command, socket)
    }

    /// A guest that counts frames; returns when it does.
    pub(super) fn counting(socket: &Path, processor: usize) -> Result<Self> {
        let mut command = command(processor)?;
        command.arg("counting").arg(socket).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut peer = Self::start(&mut command)?;
        let output = peer.0.stdout.take().context("its output")?;
        let mut said = String::new();
        std::io::BufReader::new(output).read_line(&mut said)?;
        if said.is_empty() {
            bail!("the other guest did not join");
        }
        Ok(peer)
    }

    /// What passes packets on.
    pub(super) fn relay(input: OwnedFd, output: OwnedFd, processor: usize) -> Result<Self> {
        Self::start(command(processor)?.arg("relay").stdin(input).stdout(output))
    }

    /// What counts packets and answers.
    pub(super) fn sink(input: OwnedFd, output: OwnedFd, processor: usize) -> Result<Self> {
        Self::start(command(processor)?.arg("sink").stdin(input).stdout(output))
    }

    /// A guest that makes noise of one kind.
    pub(super) fn noise(socket: &Path, processor: usize, how: Noise) -> Result<Self> {
        let how = how.to_possible_value().context("a noise without a name")?;
        Self::start(command(processor)?.arg("noise").arg(socket).arg(how.get_name()).stdin(Stdio::null()))
    }

    fn serving(mut command: Command, socket: &Path) -> Result<Self> {
        let mut peer = Self::start(command.stdin(Stdio::null()))?;
        let patience = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            if peer.0.try_wait()?.is_some() || Instant::now() > patience {
                bail!("the other process did not start to serve");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(peer)
    }

    pub(super) fn lines(memory: &Mapping, processor: usize) -> Result<Self> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), memory.file().as_fd().as_raw_fd());
        Self::start(command(processor)?.arg("lines").arg(path).stdin(Stdio::null()))
    }

    pub(super) fn eventfd(hears: OwnedFd, answers: OwnedFd, processor: usize) -> Result<Self> {
        Self::start(command(processor)?.arg("eventfd").stdin(hears).stdout(answers))
    }

    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().context("cannot start the other process")?))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program as a peer on the `nth` processor.
fn command(nth: usize) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["bench", "peer"]).arg(place::processor(nth)?.to_string());
    Ok(command)
}
