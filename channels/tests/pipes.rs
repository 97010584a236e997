//! Channels as pipes.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmbus_channels::test_utils::join;
use vmbus_channels::{
    BytePipe, Channel, ChannelError, Client, Device, Framing, Guid, MAX_MESSAGE, MessagePipe, Offer,
    OpenRequest, Provider, Refusal, Root, Session, guid,
};

const CLASS: Guid = guid!("5f0e6b1d-1a2e-4c6f-9d7f-3f2b8b1f9a02");

/// Gives back what comes, as bytes or as messages.
struct Mirror(Framing);

impl Provider for Mirror {
    type Session = Self;

    fn offer(&self) -> Offer {
        Offer::new(CLASS, "mirror").framing(self.0)
    }

    fn open(&self, _client: &Client, _open: &OpenRequest) -> Result<Self, Refusal> {
        Ok(Self(self.0))
    }
}

impl Session for Mirror {
    async fn serve(self, channel: Channel) -> Result<(), ChannelError> {
        if self.0 == Framing::Messages {
            let pipe = MessagePipe::new(channel);
            while let Some(message) = pipe.recv().await? {
                pipe.send(&message).await?;
            }
        } else {
            let (mut read, mut write) = tokio::io::split(BytePipe::new(channel));
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await?;
            // The far end closes when it has read everything.
            let _ = read.read(&mut [0; 1]).await;
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_byte_pipe_carries_more_than_its_ring_holds_both_ways_at_once() {
    let root = Root::builder().build();
    root.offer(Mirror(Framing::ByteStream)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let pipe = BytePipe::new(guest.open(Device::class(CLASS)).await.unwrap());
    let sent: Vec<u8> = (0..3_000_000_u32).map(|index| (index / 7).to_le_bytes()[0]).collect();
    let (mut read, mut write) = tokio::io::split(pipe);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    assert!(received == expected, "{} of {} bytes came back", received.len(), expected.len());
    writer.await.unwrap();
}

#[tokio::test]
async fn a_message_pipe_keeps_messages_whole() {
    let root = Root::builder().build();
    root.offer(Mirror(Framing::Messages)).unwrap();
    let guest = join(&root, "guest").await.unwrap();
    let pipe = MessagePipe::new(guest.open(Device::class(CLASS)).await.unwrap());
    for len in [0, 1, 7, 8, 9, 4096, MAX_MESSAGE] {
        let message = vec![len.to_le_bytes()[0]; len];
        pipe.send(&message).await.unwrap();
        assert_eq!(pipe.recv().await.unwrap().unwrap(), message);
    }
    assert!(matches!(pipe.send(&vec![0; MAX_MESSAGE + 1]).await, Err(ChannelError::TooLarge { .. })));
}
