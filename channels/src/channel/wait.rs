//! Sleeping until the peer signals.
//!
//! A signal is a hint: whoever wakes looks at both rings again. Each sleeper arms the event area before its last look;
//! one bell wakes all who sleep, and each arms it again before it sleeps again.

use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use vmbus_partition::reactor::{self, Watching};

use super::core::lock;
use super::side::Side;
use crate::areas;

/// How often a sleeper looks whose bell cannot be waited for, since descriptors run out.
const WITHOUT_BELL: Duration = Duration::from_millis(1);

/// How a channel learns of signals. Where it does may change while it is open.
pub(crate) struct Wait {
    place: Mutex<Arc<Place>>,
}

/// Where the signals of a channel arrive.
struct Place {
    /// `None`: there is nobody at the other end at present.
    side: Option<Arc<Side>>,
    area: u32,
    /// The bell of an area of the channel's own, registered with the reactor while async waits are made.
    registered: Mutex<Option<Arc<Watching>>>,
}

/// What ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The bell, which is silent now: whoever else it rang for has to be told.
    ByBell,
    /// A signal that came before the sleep.
    ByFlag,
    /// Something that concerns this sleeper alone, or that all sleepers are told.
    Otherwise,
}

impl Wait {
    /// Waits at event area `area`: for the bell of an area of the channel's own; in the shared one the partition's task
    /// takes the flags and tells the channel ([`Core::signalled`](super::Core::signalled)).
    pub(crate) fn new(side: Arc<Side>, area: u32) -> Self {
        Self { place: Mutex::new(Place::new(Some(side), area)) }
    }

    /// There is nobody who could signal until [`goes_on_at`](Self::goes_on_at). Who sleeps has to be told.
    pub(crate) fn has_nobody(&self) {
        *lock(&self.place) = Place::new(None, areas::SHARED);
    }

    /// Signals arrive from now on where they do for `other`. Who sleeps has to be told.
    pub(crate) fn goes_on_at(&self, other: &Self) {
        let place = Arc::clone(&lock(&other.place));
        *lock(&self.place) = place;
    }

    /// Signals arrive in another area from now on. Who sleeps has to be told.
    pub(crate) fn move_to(&self, area: u32) {
        let mut place = lock(&self.place);
        let side = place.side.clone();
        *place = Place::new(side, area);
    }

    /// Takes the bell from the reactor, which would wake for it as well: threads wait from now on.
    pub(crate) fn leave_reactor(&self) {
        *lock(&lock(&self.place).registered) = None;
    }

    /// Sleeps until the peer signals or `ready` is. Spurious returns are allowed.
    ///
    /// `last_look` runs when nothing can be missed any more; `true` means do not sleep.
    pub(crate) async fn sleep(
        &self,
        last_look: impl FnOnce() -> bool,
        ready: impl Future<Output = ()>,
    ) -> Woken {
        let place = Arc::clone(&lock(&self.place));
        let Some(side) = &place.side else {
            // Whoever ends that tells those who sleep.
            ready.await;
            return Woken::Otherwise;
        };
        side.cancel_request();
        if place.area == areas::SHARED {
            if !last_look() {
                ready.await;
            }
            return Woken::Otherwise;
        }
        side.clear_flags(place.area);
        if side.arm(place.area) {
            return Woken::ByFlag;
        }
        if last_look() {
            return Woken::Otherwise;
        }
        let Some(bell) = place.register(side) else {
            let _ = tokio::time::timeout(WITHOUT_BELL, ready).await;
            return Woken::Otherwise;
        };
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
        side.drain_bell(place.area);
        Woken::ByBell
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
        let place = Arc::clone(&lock(&self.place));
        let (side, area) = (&place.side, place.area);
        if let Some(side) = side {
            side.cancel_request();
        }
        let own_bell = match side {
            Some(side) if area != areas::SHARED => {
                side.clear_flags(area);
                if side.arm(area) {
                    return Ok(Some(Woken::ByFlag));
                }
                let Some(bell) = side.bell(area) else { return Ok(Some(Woken::Otherwise)) };
                Some((side, bell))
            }
            Some(_) | None => None,
        };
        let is_ready = ready.as_mut().poll(&mut context) == Poll::Ready(());
        if is_ready || (side.is_some() && last_look()) {
            return Ok(Some(Woken::Otherwise));
        }
        let alarm = PollFd::new(alarm.event.as_fd(), PollFlags::POLLIN);
        let Some((side, bell)) = own_bell else {
            return Ok(poll_retrying(&mut [alarm], timeout)?.then_some(Woken::Otherwise));
        };
        let mut fds = [PollFd::new(bell, PollFlags::POLLIN), alarm];
        let woken = poll_retrying(&mut fds, timeout)?;
        if fds[0].any() == Some(true) {
            side.drain_bell(area);
            return Ok(Some(Woken::ByBell));
        }
        Ok(woken.then_some(Woken::Otherwise))
    }
}

impl Place {
    fn new(side: Option<Arc<Side>>, area: u32) -> Arc<Self> {
        Arc::new(Self { side, area, registered: Mutex::default() })
    }

    fn register(&self, side: &Side) -> Option<Arc<Watching>> {
        let mut registered = lock(&self.registered);
        if registered.is_none() {
            let bell = reactor::watch_readable(side.watch_bell(self.area)?).ok()?;
            *registered = Some(Arc::new(bell));
        }
        registered.clone()
    }
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
