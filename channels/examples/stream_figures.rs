//! What a stream socket over the bus carries from one process to another, beside a Unix socket in the same run.
//!
//! `cargo run --release -p vmbus-channels --example stream_figures`
#![allow(clippy::unwrap_used, reason = "an example that meets an error is over")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use vmbus_channels::{Guest, Root, hvsock};

const PORT: u32 = 5000;
const BYTES: usize = 2 << 30;
const PIECE: usize = 64 << 10;
const ROUNDS: u32 = 20_000;
const RUNS: usize = 5;

fn main() {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(place) => threads.block_on(guest(Path::new(&place))),
        None => threads.block_on(root()),
    }
}

/// What both kinds of streams have to do.
trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Both for S {}

/// Sends, then plays ball; the other end of [`measure`].
async fn guest(place: &Path) {
    let guest =
        Guest::builder().name("figures").ring_pages(64).connect(place.join("bus.sock")).await.unwrap();
    for _ in 0..RUNS {
        serve(guest.hvsock_connect(hvsock::port(PORT)).await.unwrap()).await;
        serve(UnixStream::connect(place.join("plain.sock")).await.unwrap()).await;
    }
    guest.closed().await;
}

async fn serve(mut stream: impl Both) {
    let piece = vec![7; PIECE];
    for _ in 0..BYTES / PIECE {
        stream.write_all(&piece).await.unwrap();
    }
    let mut ball = [0; 64];
    for _ in 0..ROUNDS {
        stream.read_exact(&mut ball).await.unwrap();
        stream.write_all(&ball).await.unwrap();
    }
    let _ = stream.read(&mut ball).await;
}

async fn root() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::listen(place.path().join("bus.sock")).await.unwrap();
    let mut services = root.hvsock_listen(hvsock::port(PORT)).unwrap();
    let plain = UnixListener::bind(place.path().join("plain.sock")).unwrap();
    let _guest = Process::start(place.path().to_owned());
    for run in 1..=RUNS {
        let (bytes, trip) = measure(services.accept().await.unwrap().0).await;
        let (plain_bytes, plain_trip) = measure(plain.accept().await.unwrap().0).await;
        println!(
            "run {run}: {bytes:.2} GB/s, round trip {trip:.1?}; Unix socket {plain_bytes:.2} GB/s, {plain_trip:.1?}"
        );
    }
}

/// GB/s of one way in large pieces, and the time of a round trip of 64 bytes.
async fn measure(mut stream: impl Both) -> (f64, Duration) {
    let mut buffer = vec![0; PIECE];
    let (start, mut left) = (Instant::now(), BYTES);
    while left > 0 {
        left -= stream.read(&mut buffer[..PIECE.min(left)]).await.unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut ball = [0; 64];
    let start = Instant::now();
    for _ in 0..ROUNDS {
        stream.write_all(&ball).await.unwrap();
        stream.read_exact(&mut ball).await.unwrap();
    }
    (BYTES as f64 / seconds / 1e9, start.elapsed() / ROUNDS)
}

/// The other process; it ends with this value.
struct Process(Child);

impl Process {
    fn start(place: PathBuf) -> Self {
        Self(Command::new(std::env::current_exe().unwrap()).arg(place).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
