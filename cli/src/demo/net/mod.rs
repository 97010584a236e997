//! `vmbus demo-net`: one guest of the demonstration on the network.
//!
//! It gets an address by DHCP. With `--peer` it then finds that one by DNS, pings it, and streams data to it by TCP;
//! without, it takes a stream and looks at each byte. What it finds it tells on standard output.

mod card;
mod stack;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpEndpoint};
use vmbus_channels::{Device, Guest};
use vmbus_core::network::CLASS;
use vmbus_vsc::{Nic, NicOptions};

use self::card::Card;
use self::stack::Stack;
use super::figures::{Latencies, Line};
use super::guest::tell;
use super::pattern::Dice;

/// Where the stream goes.
const PORT: u16 = 7000;
const MTU: u32 = 9000;
const PINGS: u16 = 200;
/// The stream repeats itself after so many bytes, a length that no buffer has.
const PERIOD: usize = 65_521;
/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(20);

/// Arguments of `vmbus demo-net`.
#[derive(Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    name: String,
    #[arg(long)]
    seed: u64,
    /// Whom to ping and to send to
    #[arg(long)]
    peer: Option<String>,
    /// How long to send
    #[arg(long, default_value_t = 1000)]
    millis: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Without a parent there is nobody to work for.
    std::thread::spawn(|| {
        std::io::stdin().lines().for_each(drop);
        std::process::exit(1);
    });
    if let Err(error) = work(arguments) {
        tell(&Line::Failed { message: format!("{error:#}") });
        std::process::exit(1);
    }
    Ok(())
}

fn work(arguments: &Arguments) -> Result<()> {
    // The guest's task runs beside this thread, which waits for its NIC itself.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let card = runtime.block_on(open(arguments))?;
    let mut stack = Stack::new(card, &arguments.name);
    let address = stack.lease(PATIENCE)?;
    tell(&Line::Addressed { address: address.to_string() });
    let stream = stream(arguments.seed);
    match &arguments.peer {
        Some(peer) => {
            let address = stack.resolve(peer, PATIENCE)?;
            tell(&Line::Resolved { name: peer.clone(), address: address.to_string() });
            let pings = ping(&mut stack, address)?;
            let (sent, took) = send(&mut stack, address, &stream, Duration::from_millis(arguments.millis))?;
            tell(&Line::Streamed { pings, bytes: sent, took });
        }
        None => {
            let bytes = receive(&mut stack, &stream)?;
            tell(&Line::Received { bytes });
        }
    }
    Ok(())
}

async fn open(arguments: &Arguments) -> Result<Card> {
    let guest = Guest::builder()
        .name(&arguments.name)
        .connect(&arguments.socket)
        .await
        .context("cannot join the bus")?;
    tokio::time::timeout(PATIENCE, guest.wait_for(Device::class(CLASS)))
        .await
        .context("no NIC is offered")??;
    let nic = Nic::open_device(&guest, Device::class(CLASS), options()).await;
    let queue = nic.context("cannot open the NIC")?.into_queue().context("the NIC has other handles")?;
    Ok(Card::new(queue))
}

/// Long frames, and room for a window of them.
fn options() -> NicOptions {
    NicOptions::new().mtu(MTU).large_frames(64)
}

/// What is sent, over and over.
fn stream(seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..PERIOD).map(|_| dice.below(256).to_le_bytes()[0]).collect()
}

fn ping(stack: &mut Stack, address: IpAddress) -> Result<Latencies> {
    // The first one finds the way.
    stack.ping(address, 0, PATIENCE)?;
    let mut pings = Latencies::default();
    for number in 1..=PINGS {
        pings.record(stack.ping(address, number, PATIENCE)?);
    }
    Ok(pings)
}

/// Streams for a while; how much, and how long it took until the other end had taken it all.
fn send(stack: &mut Stack, to: IpAddress, stream: &[u8], time: Duration) -> Result<(u64, Duration)> {
    let socket = stack.connect(IpEndpoint::new(to, PORT), PATIENCE)?;
    let (began, mut sent) = (Instant::now(), 0_usize);
    while began.elapsed() < time {
        let socket = stack.tcp(socket);
        while socket.can_send() {
            let part = &stream[sent % PERIOD..];
            match socket.send_slice(part)? {
                0 => break,
                len => sent += len,
            }
        }
        stack.turn(PATIENCE)?;
    }
    stack.tcp(socket).close();
    let deadline = Instant::now() + PATIENCE;
    // The other end closes when it has looked at the last byte.
    while stack.tcp(socket).state() != tcp::State::TimeWait && stack.tcp(socket).is_open() {
        ensure!(Instant::now() < deadline, "the stream does not end");
        stack.turn(PATIENCE)?;
    }
    Ok((u64::try_from(sent)?, began.elapsed()))
}

/// Takes a stream to its end, and compares it; how much it was.
fn receive(stack: &mut Stack, stream: &[u8]) -> Result<u64> {
    let socket = stack.listen(PORT)?;
    tell(&Line::Listening);
    let mut received = 0_usize;
    loop {
        let socket = stack.tcp(socket);
        while socket.can_recv() {
            let at = received % PERIOD;
            let right = socket.recv(|bytes| {
                let len = bytes.len().min(PERIOD - at);
                (len, (len, bytes[..len] == stream[at..at + len]))
            })?;
            ensure!(right.1, "other bytes than were sent, from {received} on");
            received += right.0;
        }
        match socket.state() {
            tcp::State::CloseWait => socket.close(),
            tcp::State::Closed if received > 0 => return Ok(u64::try_from(received)?),
            tcp::State::Closed => bail!("the stream was given up"),
            _ => {}
        }
        stack.turn(PATIENCE)?;
    }
}
