//! `vmbus net capture`: what goes through a network of a running root, as pcapng.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal as _, Read as _, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use vmbus_proxy_devices::net::{CaptureRequest, capture};

/// Bytes that are written at a time.
const PIECE: usize = 64 << 10;

/// Arguments of `vmbus net capture`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where the root listens
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The network
    #[arg(long, value_name = "NAME")]
    net: String,
    /// Only what the port of this name sends and gets; a guest's NIC has the guest's name
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// The file; standard output without
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only the first bytes of each frame
    #[arg(long, value_name = "BYTES")]
    longest: Option<usize>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut out: Box<dyn Write> = match &arguments.write {
        Some(path) => {
            Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        None if std::io::stdout().is_terminal() => {
            bail!("this is not for a terminal: give -w FILE, or pipe it into `tcpdump -n -r -`")
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let request = CaptureRequest {
        switch: arguments.net.clone(),
        port: arguments.port.clone(),
        longest: arguments.longest,
    };
    let mut captured = capture(&arguments.socket, &request).with_context(|| {
        format!("cannot capture in `{}` of the root at {}", arguments.net, arguments.socket.display())
    })?;
    // Whole blocks as they come, so that whoever reads along sees them, and an interrupt leaves a whole file.
    let (mut piece, mut waiting) = (vec![0; PIECE], Vec::new());
    loop {
        let len = captured.read(&mut piece)?;
        if len == 0 {
            return Ok(());
        }
        waiting.extend_from_slice(&piece[..len]);
        let whole = whole_blocks(&waiting);
        match out.write_all(&waiting[..whole]).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        waiting.drain(..whole);
    }
}

/// How many bytes of these are whole pcapng blocks: each has a type and its whole length before it.
fn whole_blocks(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(&[_, _, _, _, a, b, c, d]) = bytes[whole..].first_chunk() {
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if len < 12 || bytes.len() - whole < len {
            break;
        }
        whole += len;
    }
    whole
}
