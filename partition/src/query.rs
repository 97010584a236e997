//! Asking a root what it is doing, over the socket at which partitions attach (`docs/src/protocol/attach.md`, "QUERY").
//!
//! A connection whose first frame is QUERY gets the answer in REPORT frames and is closed.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Frame type of the question. Its payload is the topic, a line break and the argument; none for the usual question.
const QUERY: u32 = 0x4000_0010;
/// Frame type of a piece of the answer.
const REPORT: u32 = 0x4000_0090;
/// Size of a frame's header: type, length, and two words that are 0 here.
const HEADER: usize = 16;
/// Longest piece of the answer in one frame, in bytes.
const PIECE: usize = 32 << 10;
/// Longest question that is taken, in bytes.
const LONGEST_QUESTION: usize = 4096;
/// Longest answer that is taken at once, in bytes.
const LONGEST_ANSWER: u64 = 64 << 20;
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

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// About what; nothing for what the root says of itself. No line breaks.
    pub topic: String,
    /// What more there is to say about it.
    pub argument: String,
}

/// Takes the question from a connection for which [`is_query`] is true; `None`, and nothing is taken, while it is not
/// all there. Does not wait: whoever asks slowly keeps nobody.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidData`] if it is too long or no text, [`io::ErrorKind::UnexpectedEof`] if the
/// connection was given up.
pub fn hear(stream: &UnixStream) -> io::Result<Option<Question>> {
    let mut bytes = [0; HEADER + LONGEST_QUESTION];
    let there = match recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(there) => there,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some((header, text)) = bytes[..there].split_first_chunk() else { return Ok(None) };
    let len = length_in(header);
    if len > LONGEST_QUESTION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the question is too long"));
    }
    let Some(text) = text.get(..len) else { return Ok(None) };
    let text =
        std::str::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let (topic, argument) = text.split_once('\n').unwrap_or((text, ""));
    let question = Question { topic: topic.into(), argument: argument.into() };
    recv(stream.as_raw_fd(), &mut bytes[..HEADER + len], MsgFlags::MSG_DONTWAIT)?;
    Ok(Some(question))
}

/// Sends the answer to a question that was [heard](hear). Blocks for a few seconds at most, however slowly it is read.
///
/// # Errors
/// The system's; [`io::ErrorKind::TimedOut`] if it is not read in time.
pub fn answer(stream: UnixStream, report: &[u8]) -> io::Result<()> {
    answer_within(PATIENCE, stream, report)
}

fn answer_within(patience: Duration, stream: UnixStream, report: &[u8]) -> io::Result<()> {
    let end = Instant::now() + patience;
    let mut answer = Answer::new(stream)?;
    for piece in report.chunks(PIECE) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        answer.stream.set_write_timeout(Some(left))?;
        answer.write_all(piece)?;
    }
    answer.finish()
}

/// An answer that is written little by little, each write sent at once. A write fails if the other end does not read for
/// a few seconds.
#[derive(Debug)]
pub struct Answer {
    stream: UnixStream,
}

impl Answer {
    /// The answer to the question that was [heard](hear) on this connection.
    ///
    /// # Errors
    /// The system's.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// Whether the one who asked is still there. Does not wait.
    pub fn is_wanted(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.stream.as_raw_fd(), &mut [0], flags), Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR))
    }

    /// Ends it, so that the other end knows that it is whole.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

impl Write for Answer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        if !piece.is_empty() {
            self.stream.write_all(&header(REPORT, piece.len()))?;
            self.stream.write_all(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Asks the root that listens at `path` and waits for the whole answer. Blocks for a few seconds at most.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidData`] if it answers something else.
pub fn ask(path: &Path, question: &Question) -> io::Result<Vec<u8>> {
    let mut report = Vec::new();
    let answer = Report::to(path, question, Some(PATIENCE))?;
    answer.take(LONGEST_ANSWER + 1).read_to_end(&mut report)?;
    if report.len() as u64 > LONGEST_ANSWER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
    }
    Ok(report)
}

/// An answer as it comes.
#[derive(Debug)]
pub struct Report {
    stream: UnixStream,
    /// Bytes of the piece under way.
    left: usize,
}

impl Report {
    /// Asks the root that listens at `path`. `patience` is how long a read waits; without one it waits for ever.
    ///
    /// # Errors
    /// The system's.
    pub fn to(path: &Path, question: &Question, patience: Option<Duration>) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut text = question.topic.clone();
        if !question.argument.is_empty() {
            text.push('\n');
            text.push_str(&question.argument);
        }
        stream.write_all(&header(QUERY, text.len()))?;
        stream.write_all(text.as_bytes())?;
        Ok(Self { stream, left: 0 })
    }
}

impl Read for Report {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            match next_piece(&mut self.stream)? {
                Some(len) => self.left = len,
                None => return Ok(0),
            }
        }
        let len = into.len().min(self.left);
        let read = self.stream.read(&mut into[..len])?;
        if read == 0 && len > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}

/// Length of the next piece of the answer; `None` at its end.
fn next_piece(stream: &mut UnixStream) -> io::Result<Option<usize>> {
    let mut header = [0; HEADER];
    if stream.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..])?;
    let [a, b, c, d, ..] = header;
    let len = length_in(&header);
    if u32::from_le_bytes([a, b, c, d]) != REPORT || len > PIECE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the other end is no root that answers questions",
        ));
    }
    Ok(Some(len))
}

fn length_in(header: &[u8; HEADER]) -> usize {
    let [_, _, _, _, a, b, c, d, ..] = *header;
    usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX)
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

        assert_eq!(hear(&ours).unwrap(), Some(Question::default()));

        let report: Vec<u8> = (0..100_000_u32).map(|index| index.to_le_bytes()[0]).collect();
        let sent = report.clone();
        let answering = std::thread::spawn(move || answer(ours, &sent));
        let mut received = Vec::new();
        Report { stream: theirs, left: 0 }.read_to_end(&mut received).unwrap();
        answering.join().unwrap().unwrap();
        assert_eq!(received, report);

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&header(1, 0)).unwrap();
        assert_eq!(is_query(&ours).unwrap(), Some(false));
        drop(theirs);
    }

    #[test]
    fn a_question_has_a_topic_and_an_argument_and_ends_with_who_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let question = Question { topic: "net".into(), argument: "stats\nlan".into() };
        let mut report = Report::to(&path, &question, None).unwrap();
        let (ours, _) = listener.accept().unwrap();
        assert_eq!(hear(&ours).unwrap(), Some(question));
        let mut answer = Answer::new(ours).unwrap();
        answer.write_all(b"one").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(report.read(&mut bytes).unwrap(), 3, "it is not kept back");
        assert!(answer.is_wanted());
        drop(report);
        assert!(!answer.is_wanted());
        assert!(answer.write_all(b"two").is_err());
    }

    #[test]
    fn a_question_that_comes_byte_by_byte_keeps_nobody() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut question = header(QUERY, 3).to_vec();
        question.extend_from_slice(b"net");
        let (last, all_others) = question.split_last().unwrap();
        for byte in all_others {
            assert_eq!(hear(&ours).unwrap(), None);
            theirs.write_all(&[*byte]).unwrap();
        }
        assert_eq!(hear(&ours).unwrap(), None);
        theirs.write_all(&[*last, b'x']).unwrap();
        assert_eq!(hear(&ours).unwrap().unwrap().topic, "net");
    }

    #[test]
    fn an_answer_that_is_read_drop_by_drop_is_given_up() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reading = std::thread::spawn(move || {
            let mut few = [0; 4096];
            while matches!(theirs.read(&mut few), Ok(1..)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let start = Instant::now();
        assert!(answer_within(Duration::from_millis(200), ours, &vec![0; 16 << 20]).is_err());
        assert!(start.elapsed() < PATIENCE, "after {:?}", start.elapsed());
        reading.join().unwrap();
    }

    #[test]
    fn a_question_that_is_too_long_or_no_text_is_not_heard() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&header(QUERY, LONGEST_QUESTION + 1)).unwrap();
        assert_eq!(hear(&ours).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&header(QUERY, 1)).unwrap();
        theirs.write_all(&[0xff]).unwrap();
        assert_eq!(hear(&ours).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
