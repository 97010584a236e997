//! A channel that outlives its root, in any order of events: nobody touches the rings of the old root once it is
//! suspended, nobody sleeps through the resumption or the end, and each request that nobody answered is sent once to
//! the next root, ahead of all others. The twins leave something out and must fail.
//!
//! How the rings are taken, changed and given back is the code of `channels/src/channel/swap.rs`. Modelled beside it
//! are who uses the rings (the loops of `sending.rs`, `receiving.rs`, `routing.rs` and `survival.rs`), the record of
//! what was sent (`in_flight.rs`). There are no bells: the next root signals nothing, so that nudges alone wake.
//!
//! A thread that would sleep ends instead, and is played on when all others are over. It must have been nudged since it
//! looked. That is the same: somebody who wakes in between is somebody who was slow to fall asleep.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p vmbus-partition --test loom_swap`
#![cfg(loom)]

#[path = "../../channels/src/channel/swap.rs"]
mod swap;

use std::collections::VecDeque;
use std::ops::DerefMut;

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;
use swap::{Locked, Phase, State, Stated, Swapped, Untouchable};

/// What a twin leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Nothing,
    /// A sender looks whether the channel is open before it takes the lock, not under it.
    LookUnderSendersLock,
    /// The same for who receives.
    LookUnderReceiversLock,
    /// The nudge at the resumption.
    NudgeOnResume,
    /// The nudge at the end.
    NudgeOnClose,
    /// Nudges are counted after the look, not before.
    CountBeforeLook,
    /// Others wait until what has to be sent again is sent.
    Gate,
    /// The channel whose rings were lent stays shut.
    ShutLender,
}

/// The memory of the rings, for as long as one root has it.
struct Pages(AtomicBool);

impl Pages {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(false)))
    }
    /// From here on they are used for something else.
    fn reuse(&self) {
        self.0.store(true, Relaxed);
    }
    fn touch(&self) {
        assert!(!self.0.load(Relaxed), "a ring is touched that is nobody's");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Packet {
    Request(u32),
    Completion(u32),
}

struct Incoming {
    pages: Arc<Pages>,
    unread: VecDeque<Packet>,
}

struct Outgoing {
    pages: Arc<Pages>,
    state: State,
    written: Vec<u32>,
    /// What was sent, in order: its number, and whether it may run again.
    sent: Vec<(u32, bool)>,
    again: VecDeque<u32>,
}

impl Stated for Outgoing {
    fn state(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Outgoing {
    fn push(&mut self, number: u32) {
        self.pages.touch();
        self.written.push(number);
    }

    /// Sends one of those again: there is never room for two. Whether that was all.
    fn catch_up(&mut self) -> bool {
        if let Some(number) = self.again.pop_front() {
            self.push(number);
        }
        let all = self.again.is_empty();
        if all {
            self.state = State::Open;
        }
        all
    }

    /// Prepares to send again what waits for an answer; ends what must not run again.
    fn begin_again(&mut self, replies: &mut Replies) {
        self.again.clear();
        for &(number, may_run_again) in &self.sent {
            match replies.waiting.contains(&number) {
                true if may_run_again => self.again.push_back(number),
                true => replies.end(number, End::Interrupted),
                false => {}
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Answered,
    Interrupted,
}

#[derive(Default)]
struct Replies {
    waiting: Vec<u32>,
    ended: Vec<(u32, End)>,
}

impl Replies {
    fn end(&mut self, number: u32, end: End) {
        self.waiting.retain(|&it| it != number);
        self.ended.push((number, end));
    }
    fn of(&self, number: u32) -> Option<End> {
        self.ended.iter().find(|ended| ended.0 == number).map(|ended| ended.1)
    }
}

/// Why a call gave nothing.
#[derive(Debug, PartialEq)]
enum Stop {
    Closed,
    /// It sleeps until there were more nudges than these.
    Asleep(u64),
}

struct Channel {
    phase: AtomicU8,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    replies: Mutex<Replies>,
    nudges: AtomicU64,
    missing: Missing,
}

impl Swapped for Channel {
    type Incoming = Incoming;
    type Outgoing = Outgoing;

    fn turn(&self, from: Phase, to: Phase) -> bool {
        self.phase.compare_exchange(from as u8, to as u8, SeqCst, Relaxed).is_ok()
    }
    fn set_closed(&self) {
        // The product stores. That comes after the exchange of `turn` in the word's order, or the exchange had seen it;
        // loom does not draw that conclusion, so the model looks at what it replaces.
        self.phase.swap(Phase::Closed as u8, SeqCst);
    }
    fn is_open(&self) -> bool {
        self.phase.load(Acquire) <= Phase::Saving as u8
    }
    fn is_closed(&self) -> bool {
        self.phase.load(Acquire) == Phase::Closed as u8
    }
    fn incoming(&self) -> impl DerefMut<Target = Incoming> {
        self.incoming.lock().unwrap()
    }
    fn outgoing(&self) -> impl DerefMut<Target = Outgoing> {
        self.outgoing.lock().unwrap()
    }
    fn has_nobody(&self) {}
    fn leave_reactor(&self) {}
    fn nudge(&self) {
        match self.missing {
            Missing::NudgeOnResume if self.is_open() => return,
            Missing::NudgeOnClose if self.is_closed() => return,
            _ => {}
        }
        self.nudges.fetch_add(1, AcqRel);
    }
}

impl Channel {
    fn new(pages: &Arc<Pages>, unread: &[Packet], sent: &[(u32, bool)], missing: Missing) -> Arc<Self> {
        let replies = Replies { waiting: sent.iter().map(|sent| sent.0).collect(), ended: Vec::new() };
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Open as u8),
            incoming: Mutex::new(Incoming {
                pages: Arc::clone(pages),
                unread: unread.iter().copied().collect(),
            }),
            outgoing: Mutex::new(Outgoing {
                pages: Arc::clone(pages),
                state: State::Open,
                written: sent.iter().map(|sent| sent.0).collect(),
                sent: sent.to_vec(),
                again: VecDeque::new(),
            }),
            replies: Mutex::new(replies),
            nudges: AtomicU64::new(0),
            missing,
        })
    }

    fn seen(&self) -> u64 {
        self.nudges.load(Acquire)
    }

    /// Until there is a nudge since `seen`.
    fn sleep(&self, seen: u64) -> Result<(), Stop> {
        let seen = if self.missing == Missing::CountBeforeLook { self.seen() } else { seen };
        if self.seen() == seen { Err(Stop::Asleep(seen)) } else { Ok(()) }
    }

    /// Goes on with a call that slept, now that everybody else is done.
    fn play_on<T>(
        &self,
        mut result: Result<T, Stop>,
        mut call: impl FnMut() -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        while let Err(Stop::Asleep(seen)) = result {
            assert_ne!(self.seen(), seen, "somebody sleeps for ever");
            result = call();
        }
        result
    }

    /// A request of the number is to be sent by [`send`](Self::send).
    fn start(&self, number: u32) {
        self.replies.lock().unwrap().waiting.push(number);
    }

    fn send(&self, number: u32) -> Result<(), Stop> {
        loop {
            let seen = self.seen();
            let looked = self.missing == Missing::LookUnderSendersLock && self.is_open();
            let mut outgoing = self.outgoing.lock().unwrap();
            if looked
                || outgoing.state == State::Open
                || swap::ready(&mut *outgoing, |outgoing| Ok(outgoing.catch_up()), || Stop::Closed)?
            {
                outgoing.push(number);
                outgoing.sent.push((number, true));
                return Ok(());
            }
            drop(outgoing);
            self.sleep(seen)?;
        }
    }

    fn enter(&self) -> Result<MutexGuard<'_, Incoming>, Untouchable> {
        if self.missing == Missing::LookUnderReceiversLock {
            return swap::entered(self, ()).map(|()| self.incoming.lock().unwrap());
        }
        swap::entered(self, self.incoming.lock().unwrap())
    }

    fn recv(&self) -> Result<u32, Stop> {
        loop {
            let seen = self.seen();
            match self.enter() {
                Ok(mut incoming) => {
                    incoming.pages.touch();
                    if let Some(Packet::Request(number)) = incoming.unread.pop_front() {
                        return Ok(number);
                    }
                }
                Err(Untouchable::Closed) => return Err(Stop::Closed),
                Err(Untouchable::Suspended) => {}
            }
            self.sleep(seen)?;
        }
    }

    fn reply(&self, number: u32) -> Result<End, Stop> {
        loop {
            let seen = self.seen();
            match self.enter() {
                Ok(mut incoming) => {
                    incoming.pages.touch();
                    self.route(&mut incoming);
                }
                Err(Untouchable::Closed) => return Err(Stop::Closed),
                Err(Untouchable::Suspended) => {}
            }
            if let Some(end) = self.replies.lock().unwrap().of(number) {
                return Ok(end);
            }
            self.sleep(seen)?;
        }
    }

    fn route(&self, incoming: &mut Incoming) {
        while let Some(Packet::Completion(number)) = incoming.unread.front().copied() {
            incoming.unread.pop_front();
            self.replies.lock().unwrap().end(number, End::Answered);
        }
    }

    fn take_last_replies(&self) {
        self.route(&mut self.incoming.lock().unwrap());
        self.nudge();
    }

    fn take_over(&self, fresh: &Self) {
        swap::close(fresh);
        swap::take_over(self, fresh, |rings: Locked<'_, Self>| {
            std::mem::swap(rings.incoming, rings.fresh_incoming);
            std::mem::swap(rings.outgoing, rings.fresh_outgoing);
            rings.outgoing.sent = std::mem::take(&mut rings.fresh_outgoing.sent);
            rings.outgoing.begin_again(&mut self.replies.lock().unwrap());
        });
        match self.missing {
            Missing::Gate => {
                self.outgoing.lock().unwrap().state = State::Open;
                self.nudge();
                let mut outgoing = self.outgoing.lock().unwrap();
                outgoing.begin_again(&mut self.replies.lock().unwrap());
                while !outgoing.catch_up() {}
            }
            Missing::ShutLender => fresh.outgoing.lock().unwrap().state = State::Suspended,
            _ => {}
        }
    }

    fn send_again(&self) {
        loop {
            let mut outgoing = self.outgoing.lock().unwrap();
            let all = match outgoing.state {
                State::CatchingUp => outgoing.catch_up(),
                State::Open | State::Suspended | State::Shut => true,
            };
            if all {
                break;
            }
        }
        self.nudge();
    }

    fn written(&self) -> Vec<u32> {
        self.outgoing.lock().unwrap().written.clone()
    }
}

/// All orders of events with up to so many switches of threads that need not be.
fn model(switches: usize, scenario: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(scenario);
}

/// In the life of a root, and until the next one's rings are there. Nobody may touch `pages` afterwards.
fn suspend(channel: &Channel, pages: &Pages) {
    assert!(swap::suspend(channel));
    pages.reuse();
}

/// A sender who happens to come while the root dies.
fn nobody_writes_once_it_is_suspended(missing: Missing) {
    model(3, move || {
        let pages = Pages::new();
        let channel = Channel::new(&pages, &[], &[], missing);
        let sender = thread::spawn({
            let channel = Arc::clone(&channel);
            move || channel.send(1)
        });
        suspend(&channel, &pages);
        let in_time = sender.join().unwrap() == Ok(());
        assert_eq!(channel.written().len(), usize::from(in_time));
    });
}

/// Two requests are unanswered, one is sent when it happens to be, and `deaths` roots die.
fn all_are_sent_once_and_in_order(deaths: usize, missing: Missing) {
    model(3, move || {
        let mut pages = Pages::new();
        let channel = Channel::new(&pages, &[], &[(1, true), (2, true)], missing);
        channel.start(3);
        let sender = thread::spawn({
            let channel = Arc::clone(&channel);
            move || channel.send(3)
        });
        for death in 1..=deaths {
            suspend(&channel, &pages);
            pages = Pages::new();
            channel.take_over(&Channel::new(&pages, &[], &[], missing));
            if death == deaths {
                channel.send_again();
            }
        }
        let sent = channel.play_on(sender.join().unwrap(), || channel.send(3));
        assert_eq!(sent, Ok(()));
        assert_eq!(channel.written(), [1, 2, 3], "each once and in order");
    });
}

/// A request stands in the next root's ring, and nobody rings for it any more.
fn a_receiver_finds_what_the_next_root_sent(missing: Missing) {
    model(3, move || {
        let (old, new) = (Pages::new(), Pages::new());
        let channel = Channel::new(&old, &[], &[], missing);
        let receiver = thread::spawn({
            let channel = Arc::clone(&channel);
            move || channel.recv()
        });
        suspend(&channel, &old);
        // What has to be sent again may wait long for room, which is no reason for others to wait.
        channel.take_over(&Channel::new(&new, &[Packet::Request(9)], &[], missing));
        assert_eq!(channel.play_on(receiver.join().unwrap(), || channel.recv()), Ok(9));
    });
}

/// Of three requests the first was answered before the root died, and the second must not run again.
fn what_is_over_is_told_and_not_sent_again(missing: Missing) {
    model(2, move || {
        let (old, new) = (Pages::new(), Pages::new());
        let sent = [(1, true), (2, false), (3, true)];
        let channel = Channel::new(&old, &[Packet::Completion(1)], &sent, missing);
        let waiters = [1, 2].map(|number| {
            let channel = Arc::clone(&channel);
            thread::spawn(move || channel.reply(number))
        });
        suspend(&channel, &old);
        channel.take_last_replies();
        channel.take_over(&Channel::new(&new, &[], &[], missing));
        channel.send_again();
        for (waiter, (number, end)) in waiters.into_iter().zip([(1, End::Answered), (2, End::Interrupted)]) {
            assert_eq!(channel.play_on(waiter.join().unwrap(), || channel.reply(number)), Ok(end));
        }
        assert_eq!(channel.written(), [3]);
    });
}

/// Somebody who does `what` until the end comes, which may be at any time.
fn an_end_in_the_pause_wakes(what: fn(&Channel) -> Result<(), Stop>, missing: Missing) {
    model(2, move || {
        let (old, new) = (Pages::new(), Pages::new());
        let channel = Channel::new(&old, &[], &[(1, true)], missing);
        channel.start(2);
        let user = thread::spawn({
            let channel = Arc::clone(&channel);
            move || what(&channel)
        });
        assert!(swap::suspend(&*channel));
        let closer = thread::spawn({
            let (channel, pages) = (Arc::clone(&channel), [Arc::clone(&old), Arc::clone(&new)]);
            move || {
                swap::close(&*channel);
                drop(channel.incoming());
                pages.iter().for_each(|pages| pages.reuse());
            }
        });
        channel.take_over(&Channel::new(&new, &[], &[], missing));
        channel.send_again();
        closer.join().unwrap();
        // Unless it sent in time.
        let ended = channel.play_on(user.join().unwrap(), || what(&channel));
        assert!(matches!(ended, Ok(()) | Err(Stop::Closed)));
        assert_eq!(what(&channel), Err(Stop::Closed));
    });
}

/// The same, and the end comes when the root does die or before; there is no other.
fn an_end_at_the_suspension_wakes(what: fn(&Channel) -> Result<(), Stop>) {
    model(2, move || {
        let pages = Pages::new();
        let channel = Channel::new(&pages, &[], &[], Missing::Nothing);
        channel.start(2);
        let user = thread::spawn({
            let channel = Arc::clone(&channel);
            move || what(&channel)
        });
        let closer = thread::spawn({
            let channel = Arc::clone(&channel);
            move || swap::close(&*channel)
        });
        swap::suspend(&*channel);
        closer.join().unwrap();
        let ended = channel.play_on(user.join().unwrap(), || what(&channel));
        assert!(matches!(ended, Ok(()) | Err(Stop::Closed)));
        assert_eq!(what(&channel), Err(Stop::Closed));
    });
}

fn send_two(channel: &Channel) -> Result<(), Stop> {
    channel.send(2)
}

fn receive(channel: &Channel) -> Result<(), Stop> {
    channel.recv().map(drop)
}

/// Who still sends on the channel whose rings were lent.
fn the_lender_is_closed(missing: Missing) {
    model(3, move || {
        let (old, new) = (Pages::new(), Pages::new());
        let channel = Channel::new(&old, &[], &[(1, true)], missing);
        suspend(&channel, &old);
        let fresh = Channel::new(&new, &[], &[], missing);
        let sender = thread::spawn({
            let fresh = Arc::clone(&fresh);
            move || fresh.send(2)
        });
        channel.take_over(&fresh);
        channel.send_again();
        match fresh.play_on(sender.join().unwrap(), || fresh.send(2)) {
            Ok(()) => assert_eq!(channel.written(), [2, 1], "a part of the greeting"),
            Err(stop) => assert_eq!((stop, channel.written()), (Stop::Closed, vec![1])),
        }
    });
}

#[test]
fn whoever_sends_writes_before_the_suspension_or_waits() {
    nobody_writes_once_it_is_suspended(Missing::Nothing);
}

#[test]
fn each_request_is_sent_once_and_in_order_to_the_next_root() {
    all_are_sent_once_and_in_order(1, Missing::Nothing);
}

#[test]
fn a_root_that_dies_while_requests_are_sent_again_changes_nothing() {
    all_are_sent_once_and_in_order(2, Missing::Nothing);
}

#[test]
#[should_panic(expected = "a ring is touched that is nobody's")]
fn a_sender_that_looks_before_it_locks_writes_to_a_ring_that_is_gone() {
    nobody_writes_once_it_is_suspended(Missing::LookUnderSendersLock);
}

#[test]
#[should_panic(expected = "each once and in order")]
fn a_sender_that_looks_before_it_locks_is_ahead_of_those_before() {
    all_are_sent_once_and_in_order(1, Missing::LookUnderSendersLock);
}

#[test]
#[should_panic(expected = "each once and in order")]
fn a_gate_that_opens_before_all_is_sent_again_sends_twice() {
    all_are_sent_once_and_in_order(1, Missing::Gate);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn without_a_nudge_a_sender_sleeps_through_the_resumption() {
    all_are_sent_once_and_in_order(1, Missing::NudgeOnResume);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn nudges_counted_after_the_look_are_slept_through() {
    all_are_sent_once_and_in_order(1, Missing::CountBeforeLook);
}

#[test]
fn whoever_receives_goes_on_with_the_next_root() {
    a_receiver_finds_what_the_next_root_sent(Missing::Nothing);
}

#[test]
#[should_panic(expected = "a ring is touched that is nobody's")]
fn a_receiver_that_looks_before_it_locks_reads_a_ring_that_is_gone() {
    a_receiver_finds_what_the_next_root_sent(Missing::LookUnderReceiversLock);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn without_a_nudge_a_receiver_sleeps_through_the_resumption() {
    a_receiver_finds_what_the_next_root_sent(Missing::NudgeOnResume);
}

#[test]
fn whoever_waits_for_a_reply_is_told_how_it_ended() {
    what_is_over_is_told_and_not_sent_again(Missing::Nothing);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn without_a_nudge_nobody_is_told_that_his_request_was_interrupted() {
    what_is_over_is_told_and_not_sent_again(Missing::NudgeOnResume);
}

#[test]
fn a_close_wakes_who_sends() {
    an_end_in_the_pause_wakes(send_two, Missing::Nothing);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn without_a_nudge_a_sender_sleeps_through_the_close() {
    an_end_in_the_pause_wakes(send_two, Missing::NudgeOnClose);
}

#[test]
fn a_close_wakes_who_receives() {
    an_end_in_the_pause_wakes(receive, Missing::Nothing);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn without_a_nudge_a_receiver_sleeps_through_the_close() {
    an_end_in_the_pause_wakes(receive, Missing::NudgeOnClose);
}

#[test]
fn a_close_while_the_root_dies_wakes_everybody() {
    an_end_at_the_suspension_wakes(send_two);
    an_end_at_the_suspension_wakes(receive);
}

#[test]
fn a_channel_that_lent_its_rings_is_closed() {
    the_lender_is_closed(Missing::Nothing);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn a_lender_that_is_left_suspended_is_waited_on_for_ever() {
    the_lender_is_closed(Missing::ShutLender);
}
