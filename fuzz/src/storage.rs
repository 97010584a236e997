//! Any bytes as storage packets, commands and sense data.

use vmbus_core::storage::scsi::{Command, Sense};
use vmbus_core::storage::{Outcome, Packet, Request, Version};

/// Parses the bytes as each structure. What parses is sent and read the same again.
pub fn run(bytes: &[u8]) {
    packet(bytes);
    command(bytes);
    if let Some(sense) = Sense::parse(bytes) {
        let _ = format!("{sense}");
    }
}

fn packet(bytes: &[u8]) {
    let Ok(packet) = Packet::parse(bytes) else { return };
    let sent = packet.to_bytes();
    let len = bytes.len().min(sent.len());
    assert_eq!(&sent[..len], &bytes[..len]);
    assert!(sent[len..].iter().all(|&byte| byte == 0));
    if let Ok(request) = packet.request() {
        assert_eq!(request.to_packet().request(), Ok(request));
        if let Request::ExecuteSrb(srb) = request {
            if let Ok(cdb) = srb.cdb() {
                command(cdb);
            }
            let answer = srb.answer(&srb.outcome());
            assert_eq!(answer.address(), srb.address());
            assert_eq!(srb.answer(&Outcome::success(7)).outcome(), Outcome::success(7));
            let _ = Packet::srb_completion(&answer).to_bytes();
        }
    }
    let _ = (packet.notice(), packet.properties(), packet.names());
    if let Ok(word) = packet.version()
        && let Some(version) = Version::from_word(word)
    {
        assert!(version.packet_size() <= sent.len());
    }
}

fn command(bytes: &[u8]) {
    match Command::parse(bytes) {
        Ok(command) => {
            let cdb = command
                .emit()
                .unwrap_or_else(|error| panic!("{command:?} was read but not written: {error}"));
            assert_eq!(cdb.as_bytes()[0], bytes[0]);
            assert_eq!(Command::parse(cdb.as_bytes()), Ok(command));
            let _ = command.direction();
        }
        Err(error) => {
            let _ = error.failure();
        }
    }
}
