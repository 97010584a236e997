//! Ways for bytes to reach the other end: copied, shared for a while, or given for good.
//!
//! A [`Parcel`] is filled here and sent with a request; a [`Delivery`] is what arrives. How it travels is the sender's
//! choice and seen by the taker: see [`TransferMode`]. `docs/src/protocol/attach.md`, "Gifts", has the bytes.

mod gifts;

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use vmbus_core::PAGE_SIZE;
use vmbus_partition::{Gift, Given, GuestPages};
use vmbus_ringbuf::TransferRange;

use crate::buffer::{self, Buffer};
use crate::channel::{Channel, Pending, Replay, Request};
use crate::error::ChannelError;

pub(crate) use gifts::{Gifts, MOST_GIFTS, Taking};

/// Set number of transfer-page packets whose range is a gift: its offset is the gift's id.
const GIVEN_SET: u16 = 0xfffe;
/// Set number of transfer-page packets whose range is within their own payload.
const COPIED_SET: u16 = 0xfffd;

/// How bytes get from one partition to another. Ordered: each trusts the other end with more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferMode {
    /// In the packet: both ends have their own bytes from then on. Cheapest up to some pages.
    Copy,
    /// In memory that both ends see until the request completes, without a copy. The owner can still write to it
    /// meanwhile, and so can the taker. Guests only: a root has no memory that a guest sees.
    Share,
    /// In memory that leaves the sender's address space and arrives in the taker's. Nobody can write to what is on
    /// its way, whatever descriptors it has kept. Costs some system calls at each end, so it is for much at once.
    Give,
}

impl TransferMode {
    /// What costs least for so many bytes.
    pub(crate) fn for_size(bytes: usize) -> Self {
        if bytes <= PAGE_SIZE { Self::Copy } else { Self::Share }
    }
}

impl fmt::Display for TransferMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Copy => "copy",
            Self::Share => "share",
            Self::Give => "give",
        })
    }
}

/// Bytes to send with a request.
#[derive(Debug)]
pub struct Parcel(Content);

#[derive(Debug)]
enum Content {
    Copied(Vec<u8>),
    Shared(Buffer),
    Given(Gift),
}

impl Parcel {
    /// How it will travel.
    pub fn mode(&self) -> TransferMode {
        match &self.0 {
            Content::Copied(_) => TransferMode::Copy,
            Content::Shared(_) => TransferMode::Share,
            Content::Given(_) => TransferMode::Give,
        }
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Copied(bytes) => bytes.len(),
            Content::Shared(buffer) => buffer.len(),
            Content::Given(gift) => gift.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`ChannelError::OutOfBuffer`]: the caller's fault.
    pub fn write(&mut self, at: usize, from: &[u8]) -> Result<(), ChannelError> {
        buffer::check(at, from.len(), self.len())?;
        match &mut self.0 {
            Content::Copied(bytes) => bytes[at..at + from.len()].copy_from_slice(from),
            Content::Shared(buffer) => buffer.write(at, from)?,
            Content::Given(gift) => gift.write(at, from),
        }
        Ok(())
    }
}

impl Channel {
    /// Room for `len` bytes, at least 1, that will travel as `mode` says; all zeros.
    ///
    /// # Errors
    /// [`ChannelError::Unsupported`] if this link or end cannot do that; [`ChannelError::Io`]: out of memory or
    /// descriptors.
    pub fn parcel(&self, mode: TransferMode, len: usize) -> Result<Parcel, ChannelError> {
        let len = len.max(1);
        let side = self.core().side();
        Ok(Parcel(match mode {
            TransferMode::Copy => Content::Copied(vec![0; len]),
            TransferMode::Share => Content::Shared(side.share(len)?),
            TransferMode::Give if !side.takes_gifts() => {
                return Err(ChannelError::Unsupported("the other end takes no gifts of memory"));
            }
            TransferMode::Give => Content::Given(Gift::new(len).map_err(system)?),
        }))
    }

    /// Sends a request with `payload` and a parcel, and gives what will have its reply.
    ///
    /// A shared parcel's memory is free again when the peer has completed the request; a given one is gone.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`ChannelError::Io`]: the kernel would not seal a gift, or the link is gone.
    pub async fn send_parcel(&self, payload: &[u8], parcel: Parcel) -> Result<Pending, ChannelError> {
        let whole = |len: usize| u32::try_from(len).map_err(|_| ChannelError::TooLarge { len, ring: 0 });
        match parcel.0 {
            Content::Shared(buffer) => self.send(payload, [buffer.range(..)]).await,
            Content::Copied(bytes) => {
                let mut packet = Vec::with_capacity(payload.len() + bytes.len());
                packet.extend_from_slice(payload);
                packet.extend_from_slice(&bytes);
                let range =
                    TransferRange { byte_count: whole(bytes.len())?, byte_offset: whole(payload.len())? };
                self.send_transfer_pages(COPIED_SET, &[range], &packet).await
            }
            Content::Given(gift) => {
                let byte_count = whole(gift.len())?;
                let gift = gift.seal().map_err(system)?;
                let id = self.core().side().give(gift)?;
                let range = TransferRange { byte_count, byte_offset: id };
                // What was given to a root that died went with it, and cannot be given again.
                self.send_transfer_pages_with(GIVEN_SET, &[range], payload, Replay::Never).await
            }
        }
    }
}

/// Bytes that came with a request.
#[derive(Debug)]
pub struct Delivery(Arrived);

#[derive(Debug)]
enum Arrived {
    Copied(Bytes),
    Shared(GuestPages),
    Given(Given),
}

impl Delivery {
    /// How it came. A gift that policy wants copied counts as a gift.
    pub fn mode(&self) -> TransferMode {
        match &self.0 {
            Arrived::Copied(_) => TransferMode::Copy,
            Arrived::Shared(_) => TransferMode::Share,
            Arrived::Given(_) => TransferMode::Give,
        }
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Arrived::Copied(bytes) => bytes.len(),
            Arrived::Shared(pages) => pages.len(),
            Arrived::Given(given) => given.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out. Of a shared delivery they are what stands there at this moment.
    ///
    /// # Errors
    /// [`ChannelError::OutOfBuffer`]: the caller's fault.
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), ChannelError> {
        buffer::check(at, into.len(), self.len())?;
        match &self.0 {
            Arrived::Copied(bytes) => into.copy_from_slice(&bytes[at..at + into.len()]),
            Arrived::Shared(pages) => pages.read(at, into)?,
            Arrived::Given(given) => given.read(at, into)?,
        }
        Ok(())
    }
}

impl Request {
    /// What the peer sent along with [`Channel::send_parcel`]. A gift can be taken once, and outlives the request.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`]: the request has no parcel, or speaks of a gift that is not given: the peer's fault.
    /// [`ChannelError::Refused`]: our policy or a quota did not let it in.
    pub async fn delivery(&self) -> Result<Delivery, ChannelError> {
        let wrong = |why: &str| ChannelError::Protocol(why.to_owned());
        let Some((set_id, ranges)) = self.transfer_pages() else {
            return Ok(Delivery(Arrived::Shared(self.readable_pages()?.clone())));
        };
        let &[(offset, count)] = ranges else { return Err(wrong("a parcel in several pieces")) };
        match set_id {
            COPIED_SET => {
                let start = offset as usize;
                let bytes = self.payload().get(start..).and_then(|rest| rest.get(..count as usize));
                let bytes = bytes.ok_or_else(|| wrong("a parcel beyond its packet"))?;
                Ok(Delivery(Arrived::Copied(Bytes::copy_from_slice(bytes))))
            }
            GIVEN_SET => Ok(Delivery(Arrived::Given(self.gifts().take(offset, count as usize).await?))),
            _ => Err(wrong("transfer pages where a parcel is expected")),
        }
    }
}

fn system(error: vmbus_partition::MemoryError) -> ChannelError {
    ChannelError::Io(std::io::Error::other(error))
}
