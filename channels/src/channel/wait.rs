//! Sleeping until the peer signals.
//!
//! A signal is a hint: whoever wakes looks at both rings again. Each sleeper arms the event area before its last look;
//! one bell wakes all who sleep, and each arms it again before it sleeps again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::core::lock;
use super::side::Side;

/// How a channel learns of signals.
pub(crate) enum Wait {
    /// It has an event area of its own and waits for its bell, which is registered with the reactor while async waits
    /// are made.
    Own(Arc<Side>, Mutex<Option<Arc<AsyncFd<OwnedFd>>>>),
    /// It shares an event area; the partition's task passes signals on.
    Shared(Arc<Notify>),
}

/// What ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The bell, which is silent now: whoever else it rang for has to be told.
    ByBell,
    /// Something that concerns this sleeper alone, or that all sleepers are told.
    Otherwise,
}

impl Wait {
    pub(crate) fn own(side: &Arc<Side>) -> Self {
        Self::Own(Arc::clone(side), Mutex::default())
    }

    /// Takes the bell from the reactor, which would wake for it as well: threads wait from now on.
    pub(crate) fn leave_reactor(&self) {
        match self {
            Self::Own(_, registered) => *lock(registered) = None,
            Self::Shared(_) => {}
        }
    }

    /// Sleeps until the peer signals or `ready` is. Spurious returns are allowed.
    ///
    /// `last_look` runs when nothing can be missed any more; `true` means do not sleep.
    pub(crate) async fn sleep(
        &self,
        last_look: impl FnOnce() -> bool,
        ready: impl Future<Output = ()>,
    ) -> Woken {
        match self {
            Self::Own(side, registered) => {
                side.clear_flags();
                if side.arm() || last_look() {
                    return Woken::Otherwise;
                }
                let Some(bell) = register(side, registered) else { return Woken::Otherwise };
                let mut ready = pin!(ready);
                let mut guard = tokio::select! {
                    biased;
                    () = &mut ready => return Woken::Otherwise,
                    guard = bell.readable() => match guard {
                        Ok(guard) => guard,
                        Err(_) => return Woken::Otherwise,
                    },
                };
                if guard.ready().is_read_closed() {
                    // Nobody can ring any more, and such a bell is readable for ever. The peer has gone: who finds
                    // that out at the link closes the channel, and must get to do so.
                    ready.await;
                    return Woken::Otherwise;
                }
                guard.clear_ready();
                side.drain_bell();
                Woken::ByBell
            }
            Self::Shared(notify) => {
                let mut signalled = pin!(notify.notified());
                signalled.as_mut().enable();
                if last_look() {
                    return Woken::Otherwise;
                }
                tokio::select! {
                    biased;
                    () = ready => {}
                    () = signalled => {}
                }
                Woken::Otherwise
            }
        }
    }

    /// [`sleep`](Self::sleep) for a thread. `Ok(None)` if `timeout` has passed.
    pub(crate) fn sleep_blocking(
        &self,
        last_look: impl FnOnce() -> bool,
        ready: impl Future<Output = ()>,
        timeout: Option<Duration>,
    ) -> io::Result<Option<Woken>> {
        let alarm = Alarm::of_this_thread()?;
        let waker = Waker::from(Arc::clone(&alarm));
        let mut context = Context::from_waker(&waker);
        let mut ready = pin!(ready);
        let timeout = timeout
            .map_or(PollTimeout::NONE, |timeout| PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        match self {
            Self::Own(side, _) => {
                side.clear_flags();
                if side.arm() || ready.as_mut().poll(&mut context) == Poll::Ready(()) || last_look() {
                    return Ok(Some(Woken::Otherwise));
                }
                let Some(bell) = side.bell() else { return Ok(Some(Woken::Otherwise)) };
                let mut fds = [
                    PollFd::new(bell, PollFlags::POLLIN),
                    PollFd::new(alarm.event.as_fd(), PollFlags::POLLIN),
                ];
                let woken = poll_retrying(&mut fds, timeout)?;
                if fds[0].any() == Some(true) {
                    side.drain_bell();
                    return Ok(Some(Woken::ByBell));
                }
                Ok(woken.then_some(Woken::Otherwise))
            }
            Self::Shared(notify) => {
                let mut signalled = pin!(notify.notified());
                signalled.as_mut().enable();
                if ready.as_mut().poll(&mut context) == Poll::Ready(())
                    || signalled.as_mut().poll(&mut context) == Poll::Ready(())
                    || last_look()
                {
                    return Ok(Some(Woken::Otherwise));
                }
                let woken =
                    poll_retrying(&mut [PollFd::new(alarm.event.as_fd(), PollFlags::POLLIN)], timeout)?;
                Ok(woken.then_some(Woken::Otherwise))
            }
        }
    }
}

fn register(side: &Side, registered: &Mutex<Option<Arc<AsyncFd<OwnedFd>>>>) -> Option<Arc<AsyncFd<OwnedFd>>> {
    let mut registered = lock(registered);
    if registered.is_none() {
        *registered = Some(Arc::new(vmbus_partition::reactor::readable(side.bell()?).ok()?));
    }
    registered.clone()
}

fn poll_retrying(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<bool> {
    loop {
        match poll(fds, timeout) {
            Ok(count) => return Ok(count > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Wakes a thread that sleeps in `poll`.
struct Alarm {
    event: EventFd,
    /// Whether it may have been set off since it was last silenced, which costs a system call.
    rang: AtomicBool,
}

impl Alarm {
    fn of_this_thread() -> io::Result<Arc<Self>> {
        thread_local!(static ALARM: OnceLock<Arc<Alarm>> = const { OnceLock::new() });
        ALARM.with(|alarm| {
            if alarm.get().is_none() {
                let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                let event = EventFd::from_flags(flags)?;
                let _ = alarm.set(Arc::new(Self { event, rang: AtomicBool::new(false) }));
            }
            let alarm = Arc::clone(alarm.get().expect("just set"));
            if alarm.rang.swap(false, Ordering::AcqRel) {
                let _ = alarm.event.read();
            }
            Ok(alarm)
        })
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // The flag last: a count that is missed for lack of it wakes once too often, and is cleared the next time.
        let _ = self.event.write(1);
        self.rang.store(true, Ordering::Release);
    }
}
