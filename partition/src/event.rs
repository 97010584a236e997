//! The rare things that the ends of an extended link say as frames.

use std::os::fd::{AsFd, OwnedFd};

use crate::control_link::Event;
use crate::frame::{GiveFrame, GuestFrame, MemoryRange, RootFrame};
use crate::gift::{GiftError, SealedGift};
use crate::link::{LinkError, Refusal};
use crate::memory::Memfd;
use crate::stream::Claim;

/// From an extended partition.
#[derive(Debug)]
pub(crate) enum GuestEvent {
    MemoryAdd { range: MemoryRange, domain: u32, file: Memfd },
    MemoryRemove { range: MemoryRange },
    Signal { connection_id: u32, flag: u32 },
    Reset,
    Crash { vp: u32, parameters: [u64; 5], control: u64 },
    Give { id: u32, gift: SealedGift },
}

/// From the root.
#[derive(Debug)]
pub(crate) enum RootEvent {
    ConnectionStatus { connection_id: u32, status: u32 },
    Refused(Refusal),
    SystemReset,
    SystemQuit,
    MemoryAdd { range: MemoryRange, domain: u32, file: Memfd },
    Give { id: u32, gift: SealedGift },
}

impl Event for GuestEvent {
    fn emit(&self, out: &mut Vec<u8>) -> Result<Vec<OwnedFd>, LinkError> {
        let mut descriptors = Vec::new();
        match self {
            Self::MemoryAdd { range, domain, file } => {
                descriptors.push(descriptor(file)?);
                GuestFrame::MemoryAdd { range: *range, domain: *domain }.emit(out);
            }
            Self::MemoryRemove { range } => GuestFrame::MemoryRemove { range: *range, domain: 0 }.emit(out),
            Self::Signal { connection_id, flag } => {
                GuestFrame::SignalEvent { vp: 0, connection_id: *connection_id, flag: *flag }.emit(out);
            }
            Self::Reset => GuestFrame::Reset.emit(out),
            Self::Crash { vp, parameters, control } => {
                GuestFrame::Crash { vp: *vp, parameters: *parameters, control: *control }.emit(out);
            }
            Self::Give { id, gift } => {
                descriptors.push(descriptor(gift)?);
                GuestFrame::Give(give_frame(*id, gift)).emit(out);
            }
        }
        Ok(descriptors)
    }

    fn parse(frame: &[u8], claim: Claim<'_>) -> Result<Option<Self>, LinkError> {
        match GuestFrame::parse(frame)? {
            GuestFrame::MemoryAdd { range, domain } => {
                let file = Memfd::from_peer(riding(claim, "added memory without a file")?)?;
                Ok(Some(Self::MemoryAdd { range, domain, file }))
            }
            GuestFrame::MemoryRemove { range, domain: _ } => Ok(Some(Self::MemoryRemove { range })),
            GuestFrame::SignalEvent { vp: _, connection_id, flag } => {
                Ok(Some(Self::Signal { connection_id, flag }))
            }
            GuestFrame::Reset => Ok(Some(Self::Reset)),
            GuestFrame::Crash { vp, parameters, control } => {
                Ok(Some(Self::Crash { vp, parameters, control }))
            }
            GuestFrame::Give(frame) => Ok(Some(Self::Give { id: frame.id, gift: take(frame, claim)? })),
            GuestFrame::Hello(_) | GuestFrame::ExtOffer { .. } => {
                Err(LinkError::Protocol("introduced itself twice"))
            }
            GuestFrame::PostMessage { .. } => {
                Err(LinkError::Protocol("posted a message past its control area"))
            }
            GuestFrame::MsrWrite { .. } | GuestFrame::Pong { .. } | GuestFrame::Ignored => Ok(None),
        }
    }
}

impl Event for RootEvent {
    fn emit(&self, out: &mut Vec<u8>) -> Result<Vec<OwnedFd>, LinkError> {
        match self {
            Self::ConnectionStatus { connection_id, status } => {
                RootFrame::SetConnStatus { connection_id: *connection_id, status: *status }.emit(out);
            }
            Self::Refused(Refusal { what, code, reason }) => {
                RootFrame::Refused { what: *what, code: *code, reason }.emit(out);
            }
            Self::SystemReset => RootFrame::SystemReset.emit(out),
            Self::SystemQuit => RootFrame::SystemQuit.emit(out),
            Self::MemoryAdd { range, domain, file } => {
                RootFrame::MemoryAdd { range: *range, domain: *domain }.emit(out);
                return Ok(vec![descriptor(file)?]);
            }
            Self::Give { id, gift } => {
                RootFrame::Give(give_frame(*id, gift)).emit(out);
                return Ok(vec![descriptor(gift)?]);
            }
        }
        Ok(Vec::new())
    }

    fn parse(frame: &[u8], claim: Claim<'_>) -> Result<Option<Self>, LinkError> {
        match RootFrame::parse(frame)? {
            RootFrame::SetConnStatus { connection_id, status } => {
                Ok(Some(Self::ConnectionStatus { connection_id, status }))
            }
            RootFrame::Refused { what, code, reason } => {
                Ok(Some(Self::Refused(Refusal { what, code, reason: reason.to_owned() })))
            }
            RootFrame::SystemReset => Ok(Some(Self::SystemReset)),
            RootFrame::SystemQuit => Ok(Some(Self::SystemQuit)),
            RootFrame::MemoryAdd { range, domain } => {
                let file = Memfd::from_peer(riding(claim, "added memory without a file")?)?;
                Ok(Some(Self::MemoryAdd { range, domain, file }))
            }
            RootFrame::Give(frame) => Ok(Some(Self::Give { id: frame.id, gift: take(frame, claim)? })),
            RootFrame::ExtAccept { .. } => Err(LinkError::Protocol("accepted twice")),
            RootFrame::DeliverMessage { .. } | RootFrame::SetEventFlag { .. } => {
                Err(LinkError::Protocol("went past the control area it had accepted"))
            }
            RootFrame::MemDirty(_)
            | RootFrame::MemDirtyRaw(_)
            | RootFrame::Ping { .. }
            | RootFrame::Ignored => Ok(None),
        }
    }
}

fn give_frame(id: u32, gift: &SealedGift) -> GiveFrame {
    GiveFrame { id, len: gift.len() as u64 }
}

/// A descriptor of its own for a frame to carry.
fn descriptor(file: &impl AsFd) -> Result<OwnedFd, LinkError> {
    file.as_fd().try_clone_to_owned().map_err(LinkError::system("duplicating a descriptor"))
}

/// The file that rides on a frame; `without` is what a peer did wrong that sent none.
fn riding(claim: Claim<'_>, without: &'static str) -> Result<OwnedFd, LinkError> {
    claim().into_iter().next().ok_or(LinkError::Protocol(without))
}

/// The gift that rides on a frame.
fn take(frame: GiveFrame, claim: Claim<'_>) -> Result<SealedGift, LinkError> {
    SealedGift::from_peer(riding(claim, "gave nothing")?, frame.len).map_err(|error| match error {
        GiftError::NotSealed => LinkError::Protocol("gave memory that it could still write to"),
        GiftError::Length { .. } => LinkError::Protocol("gave more bytes than the file has, or none"),
        GiftError::Memory(error) => LinkError::Memory(error),
    })
}
