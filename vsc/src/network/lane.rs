//! One channel of a NIC for tasks: several of them may send, receive and ask at a time.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use vmbus_channels::{Arrivals, Channel, ChannelError};

use super::conversation::{Conversation, Ended, Ticket};
use super::engine::Engine;
use super::error::NicError;
use super::known::{Known, lock};
use super::receive::ReceivedFrame;
use super::transmit::{Refused, TransmitInfo};

#[derive(Debug)]
pub(super) struct Lane {
    engine: Mutex<Engine>,
    known: Arc<Known>,
    /// Something came.
    changed: Notify,
    channel: Channel,
}

impl Lane {
    pub(super) fn new(channel: Channel, engine: Engine, known: &Arc<Known>) -> Self {
        Self { engine: Mutex::new(engine), known: Arc::clone(known), changed: Notify::new(), channel }
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(super) fn engine(&self) -> MutexGuard<'_, Engine> {
        lock(&self.engine)
    }

    /// For a thread of its own.
    pub(super) fn into_parts(self) -> (Channel, Engine) {
        (self.channel, self.engine.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Sends what there is room for.
    fn flush(&self, engine: &mut Engine) -> Result<(), NicError> {
        Ok(engine.flush(|requests| self.channel.try_submit(requests))?)
    }

    /// Waits until something comes, or there is room for what waits to be sent, and deals with it.
    async fn progress(&self) -> Result<(), NicError> {
        let (mut arrivals, unsent) = {
            let mut engine = self.engine();
            (engine.spare(), engine.unsent().cloned())
        };
        self.channel.take(&mut arrivals, unsent.as_ref()).await?;
        self.absorb(arrivals)
    }

    fn absorb(&self, arrivals: Arrivals) -> Result<(), NicError> {
        let mut engine = self.engine();
        engine.absorb(arrivals)?;
        engine.unpack();
        let flushed = self.flush(&mut engine);
        drop(engine);
        self.changed.notify_waiters();
        flushed
    }

    /// Goes on until `look` gives something. It is asked whenever something has changed.
    pub(super) async fn until<T>(
        &self,
        mut look: impl FnMut(&mut Engine) -> Result<Option<T>, NicError>,
    ) -> Result<T, NicError> {
        // Most find at once what they want, and need not be told of changes.
        let mut found = self.look(&mut look)?;
        loop {
            if let Some(found) = found {
                return Ok(found);
            }
            let mut changed = pin!(self.changed.notified());
            let mut known = pin!(self.known.changed.notified());
            changed.as_mut().enable();
            known.as_mut().enable();
            found = self.look(&mut look)?;
            if found.is_some() {
                continue;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = known => {}
                result = self.progress() => result?,
            }
            found = self.look(&mut look)?;
        }
    }

    fn look<T>(
        &self,
        look: &mut impl FnMut(&mut Engine) -> Result<Option<T>, NicError>,
    ) -> Result<Option<T>, NicError> {
        if self.known.is_over() {
            return Err(ChannelError::Closed.into());
        }
        look(&mut self.engine())
    }

    /// Sends frames; gives how many of them the NIC has taken, at least one of any, once the provider can see them.
    pub(super) async fn send(&self, frames: &[(&[u8], TransmitInfo)]) -> Result<usize, NicError> {
        let mut taken = 0;
        self.until(|engine| {
            for (frame, info) in &frames[taken..] {
                match engine.push(frame, info) {
                    Ok(()) => taken += 1,
                    Err(Refused::Full) => break,
                    Err(Refused::Error(_)) if taken > 0 => break,
                    Err(Refused::Error(error)) => return Err(error),
                }
            }
            engine.seal();
            self.flush(engine)?;
            let through = engine.unsent().is_none() && (taken > 0 || frames.is_empty());
            Ok(through.then_some(()))
        })
        .await?;
        Ok(taken)
    }

    /// Sends a frame if there is room for it now.
    pub(super) fn try_send(&self, frame: &[u8], info: &TransmitInfo) -> Result<bool, NicError> {
        let push = || {
            let mut engine = self.engine();
            let taken = match engine.push(frame, info) {
                Ok(()) => true,
                Err(Refused::Full) => false,
                Err(Refused::Error(error)) => return Err(error),
            };
            engine.seal();
            self.flush(&mut engine)?;
            Ok(taken)
        };
        if push()? {
            return Ok(true);
        }
        // Nobody may have looked for what the provider has taken since.
        self.poll()?;
        push()
    }

    /// Takes the frames that wait, after at least one has come.
    pub(super) async fn recv(&self, into: &mut Vec<ReceivedFrame>) -> Result<usize, NicError> {
        self.until(|engine| {
            let count = engine.inbox().len();
            into.extend(engine.inbox().drain(..));
            Ok((count > 0).then_some(count))
        })
        .await
    }

    /// Deals with what is there, without waiting.
    pub(super) fn poll(&self) -> Result<(), NicError> {
        let mut arrivals = self.engine().spare();
        self.channel.try_take(&mut arrivals)?;
        self.absorb(arrivals)
    }

    /// Asks the device something and waits for the answer.
    pub(super) async fn request(
        &self,
        begin: impl FnOnce(&mut Conversation) -> Ticket,
    ) -> Result<Ended, NicError> {
        let reign = self.known.pieces.reign();
        let mut asked = {
            let mut engine = self.engine();
            let conversation = engine.conversation().ok_or(NicError::NotOffered("this on a sub-channel"))?;
            let ticket = begin(conversation);
            engine.pump();
            Asked { lane: self, ticket, answered: false }
        };
        let ticket = asked.ticket;
        let ended = self
            .until(|engine| {
                engine.pump();
                self.flush(engine)?;
                if let Some(ended) = engine.conversation().and_then(|it| it.take(ticket)) {
                    return Ok(Some(ended));
                }
                // The answer may have gone with the root that had it.
                if self.known.pieces.reign() == reign { Ok(None) } else { Err(NicError::Interrupted) }
            })
            .await?;
        asked.answered = true;
        Ok(ended)
    }
}

/// A request that is forgotten if nobody waits for it any more.
struct Asked<'a> {
    lane: &'a Lane,
    ticket: Ticket,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.answered
            && let Some(conversation) = self.lane.engine().conversation()
        {
            conversation.forget(self.ticket);
        }
    }
}
