//! Frames on their way from senders' threads to a thread of a port's own, bounded as a batch is.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmbus_vsp::network::switch::{Batch, Delivered, Frame, Frames, Full};

/// Frames that wait, each with a mark of the port's.
#[derive(Debug)]
pub(super) struct Mailbox<M> {
    state: Mutex<State<M>>,
    called: Condvar,
}

#[derive(Debug)]
struct State<M> {
    mail: Mail<M>,
    dropped: u64,
    closed: bool,
    /// Something was put in, or it was closed, that nobody has looked at since.
    news: bool,
}

/// What was taken out.
#[derive(Debug)]
pub(super) struct Mail<M> {
    pub(super) batch: Batch,
    /// One for each frame.
    pub(super) marks: Vec<M>,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// There may be mail.
    Open,
    /// No more will come.
    Closed,
}

impl<M> Default for Mail<M> {
    fn default() -> Self {
        Self { batch: Batch::new(), marks: Vec::new() }
    }
}

impl<M> Default for Mailbox<M> {
    fn default() -> Self {
        let state = State { mail: Mail::default(), dropped: 0, closed: false, news: false };
        Self { state: Mutex::new(state), called: Condvar::new() }
    }
}

impl<M> Mailbox<M> {
    /// Puts the first `longest` bytes of each frame in.
    pub(super) fn put(
        &self,
        frames: Frames<'_>,
        longest: usize,
        mut mark: impl FnMut(&Frame<'_>) -> M,
    ) -> Delivered {
        let mut delivered = Delivered::default();
        let mut state = self.lock();
        for frame in frames {
            let kept = frame.bytes.get(..longest).unwrap_or(frame.bytes);
            match state.mail.batch.push(kept, frame.offload) {
                Ok(()) => {
                    state.mail.marks.push(mark(&frame));
                    delivered.frames += 1;
                    delivered.bytes += frame.bytes.len();
                }
                Err(Full::Frame(_)) => delivered.too_long += 1,
                Err(Full::Frames | Full::Bytes(_)) => {}
            }
        }
        state.dropped += u64::try_from(frames.len() - delivered.frames).unwrap_or(u64::MAX);
        let wake = delivered.frames > 0 && !std::mem::replace(&mut state.news, true);
        drop(state);
        if wake {
            self.called.notify_one();
        }
        delivered
    }

    /// Takes all out, in exchange for what `mail` holds, which is emptied first. Waits for `patience` at most if there
    /// is nothing.
    pub(super) fn take(&self, mail: &mut Mail<M>, patience: Option<Duration>) -> Waited {
        mail.batch.clear();
        mail.marks.clear();
        let state = self.lock();
        let mut state = match patience {
            Some(patience) => {
                self.called
                    .wait_timeout_while(state, patience, |state| !state.news)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => {
                self.called.wait_while(state, |state| !state.news).unwrap_or_else(PoisonError::into_inner)
            }
        };
        state.news = false;
        std::mem::swap(&mut state.mail, mail);
        if state.closed { Waited::Closed } else { Waited::Open }
    }

    /// Says that no more will come; what there is may still be taken.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.news = true;
        drop(state);
        self.called.notify_one();
    }

    /// How many frames found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
