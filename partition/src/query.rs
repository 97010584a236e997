//! Asking a root what it is doing, over the socket at which partitions attach (`docs/src/protocol/attach.md`, "QUERY").
//!
//! A connection whose first frame is QUERY gets the answer in REPORT frames and is closed.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Frame type of the question. No payload.
const QUERY: u32 = 0x4000_0010;
/// Frame type of a piece of the answer.
const REPORT: u32 = 0x4000_0090;
/// Size of a frame's header: type, length, and two words that are 0 here.
const HEADER: usize = 16;
/// Longest piece of the answer in one frame, in bytes.
const PIECE: usize = 32 << 10;
/// Longest answer that is taken, in bytes.
const LONGEST_ANSWER: usize = 64 << 20;
/// How long either end waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the first frame of a connection is a question; `None` while too little of it has come. Takes nothing from
/// the connection, which must be readable or not block.
///
/// # Errors
/// The system's; [`io::ErrorKind::UnexpectedEof`] if the connection was given up.
pub fn is_query(stream: &UnixStream) -> io::Result<Option<bool>> {
    let mut kind = [0; 4];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut kind, flags) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(4) => Ok(Some(u32::from_le_bytes(kind) == QUERY)),
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends the answer to a question. Blocks for a few seconds at most.
///
/// # Errors
/// The system's.
pub fn answer(mut stream: &UnixStream, report: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // A socket that is closed with something unread resets the connection, and the answer with it.
    stream.read_exact(&mut [0; HEADER])?;
    for piece in report.chunks(PIECE) {
        stream.write_all(&header(REPORT, piece.len()))?;
        stream.write_all(piece)?;
    }
    stream.shutdown(Shutdown::Write)
}

/// Asks the root that listens at `path`. Blocks for a few seconds at most.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidData`] if it answers something else.
pub fn ask(path: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&header(QUERY, 0))?;
    let mut report = Vec::new();
    while let Some(len) = next_piece(&mut stream)? {
        let start = report.len();
        if start + len > LONGEST_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
        report.resize(start + len, 0);
        stream.read_exact(&mut report[start..])?;
    }
    Ok(report)
}

/// Length of the next piece of the answer; `None` at its end.
fn next_piece(stream: &mut UnixStream) -> io::Result<Option<usize>> {
    let mut header = [0; HEADER];
    if stream.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..])?;
    let [a, b, c, d, e, f, g, h, ..] = header;
    let len = u32::from_le_bytes([e, f, g, h]) as usize;
    if u32::from_le_bytes([a, b, c, d]) != REPORT || len > PIECE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the other end is no root that answers questions",
        ));
    }
    Ok(Some(len))
}

fn header(kind: u32, len: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[4..8].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_told_from_an_attachment_and_answered_in_pieces() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(is_query(&ours).unwrap(), None);
        theirs.write_all(&header(QUERY, 0)).unwrap();
        assert_eq!(is_query(&ours).unwrap(), Some(true));

        let report: Vec<u8> = (0..100_000_u32).map(|index| index.to_le_bytes()[0]).collect();
        let sent = report.clone();
        let answering = std::thread::spawn(move || answer(&ours, &sent));
        let mut received = Vec::new();
        while let Some(len) = next_piece(&mut theirs).unwrap() {
            let start = received.len();
            received.resize(start + len, 0);
            theirs.read_exact(&mut received[start..]).unwrap();
        }
        answering.join().unwrap().unwrap();
        assert_eq!(received, report);

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&header(1, 0)).unwrap();
        assert_eq!(is_query(&ours).unwrap(), Some(false));
        drop(theirs);
    }
}
