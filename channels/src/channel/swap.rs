//! How a channel's rings are taken from everybody, changed for others, and given back.
//!
//! The *phase* is one word for everybody, and is turned first. What it says of the ring from the peer is true under
//! that ring's lock: whoever looks at it does so with the lock held, so that one who takes the lock after a turn knows
//! that nobody acts on the phase of before. The ring to the peer has a *state* beside it, under its lock, which sends
//! what has to be sent again ahead of all others. Whoever finds that he must wait sleeps until the next nudge after
//! his look, so each change is nudged *after* it can be seen.
//!
//! Written once, over traits, so that a model checker (`partition/tests/loom_swap.rs`) runs the code that is used.

use std::ops::DerefMut;

/// How far a channel is from its end. Goes back from [`Suspended`](Self::Suspended) alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Open,
    /// No request is taken any more; those that were are answered.
    Saving,
    /// The root is gone, and another may come: nobody touches the rings.
    Suspended,
    Closed,
}

/// Whether the ring to the peer may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// There is another root, and requests of before have to be sent again before any others.
    CatchingUp,
    /// The root is gone, and another may come.
    Suspended,
    Shut,
}

/// Why the ring from the peer must not be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untouchable {
    Closed,
    Suspended,
}

/// The ring to the peer.
pub(super) trait Stated {
    /// Its state, which is changed under its lock alone.
    fn state(&mut self) -> &mut State;
}

/// A channel, as far as its rings change hands. Its locks are taken in the order incoming, outgoing.
pub(super) trait Swapped {
    type Incoming;
    type Outgoing: Stated;

    /// From one phase to another, if it is in that one. Sequentially consistent.
    fn turn(&self, from: Phase, to: Phase) -> bool;
    /// Sequentially consistent.
    fn set_closed(&self);
    /// Whether the rings may be touched.
    fn is_open(&self) -> bool;
    fn is_closed(&self) -> bool;
    /// Takes the lock of the ring from the peer.
    fn incoming(&self) -> impl DerefMut<Target = Self::Incoming>;
    /// Takes the lock of the ring to the peer.
    fn outgoing(&self) -> impl DerefMut<Target = Self::Outgoing>;
    /// Nobody signals any more.
    fn has_nobody(&self);
    /// Threads, or others, may wait where this channel did.
    fn leave_reactor(&self);
    /// Makes everybody who sleeps look again.
    fn nudge(&self);
}

/// For whoever has just taken the lock of the ring from the peer: keeps it if the ring may be touched.
#[inline]
pub(super) fn entered<Guard>(channel: &impl Swapped, incoming: Guard) -> Result<Guard, Untouchable> {
    if channel.is_open() {
        Ok(incoming)
    } else if channel.is_closed() {
        Err(Untouchable::Closed)
    } else {
        Err(Untouchable::Suspended)
    }
}

/// For whoever has the lock of the ring to the peer: whether it may be written now. `catch_up` sends again what has to
/// be and tells whether that was all; `ended` says what to tell of a ring that is shut.
#[cold]
pub(super) fn ready<O: Stated, E>(
    outgoing: &mut O,
    catch_up: impl FnOnce(&mut O) -> Result<bool, E>,
    ended: impl FnOnce() -> E,
) -> Result<bool, E> {
    match outgoing.state() {
        State::Open => Ok(true),
        State::CatchingUp => catch_up(outgoing),
        State::Suspended => Ok(false),
        State::Shut => Err(ended()),
    }
}

/// Nobody touches the rings from here on, until [`take_over`] or [`close`]. `false`: it is not open.
pub(super) fn suspend(channel: &impl Swapped) -> bool {
    if !channel.turn(Phase::Open, Phase::Suspended) {
        return false;
    }
    // Whoever has the locks is not looking any more when we get them.
    drop(channel.incoming());
    let mut outgoing = channel.outgoing();
    let state = outgoing.state();
    if *state != State::Shut {
        *state = State::Suspended;
    }
    drop(outgoing);
    channel.has_nobody();
    channel.nudge();
    true
}

/// Nothing is read or written from here on; everybody who waits is told.
pub(super) fn close(channel: &impl Swapped) {
    channel.set_closed();
    *channel.outgoing().state() = State::Shut;
    channel.leave_reactor();
    channel.nudge();
}

/// The rings of two channels, all locked.
pub(super) struct Locked<'a, C: Swapped> {
    pub(super) incoming: &'a mut C::Incoming,
    pub(super) outgoing: &'a mut C::Outgoing,
    pub(super) fresh_incoming: &'a mut C::Incoming,
    pub(super) fresh_outgoing: &'a mut C::Outgoing,
}

/// A suspended channel goes on with the rings of `fresh`, which is closed. `exchange` runs with all locks held, swaps
/// them, and puts in order what is to be sent again. Unless the channel was closed meanwhile, its rings are open then,
/// and `catch_up` of [`ready`] comes first.
///
/// Each sender and receiver is wholly before or wholly after.
pub(super) fn take_over<C: Swapped, T>(
    channel: &C,
    fresh: &C,
    exchange: impl FnOnce(Locked<'_, C>) -> T,
) -> T {
    let (mut incoming, mut outgoing) = (channel.incoming(), channel.outgoing());
    let (mut fresh_incoming, mut fresh_outgoing) = (fresh.incoming(), fresh.outgoing());
    let left = exchange(Locked {
        incoming: &mut incoming,
        outgoing: &mut outgoing,
        fresh_incoming: &mut fresh_incoming,
        fresh_outgoing: &mut fresh_outgoing,
    });
    let goes_on = channel.turn(Phase::Suspended, Phase::Open);
    *outgoing.state() = if goes_on { State::CatchingUp } else { State::Shut };
    // What came with the old ring is "suspended", and nobody will ever resume this one.
    *fresh_outgoing.state() = State::Shut;
    drop((incoming, outgoing, fresh_incoming, fresh_outgoing));
    channel.nudge();
    left
}
