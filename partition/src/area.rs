//! The protocols that keep a sleeper of a control area from missing what it sleeps for. They are written once, over
//! traits, so that a model checker (`tests/loom.rs`) runs the very code that is used.
//!
//! # An event area: flags, a summary of them, and the word that says "I am about to sleep"
//!
//! A signaller sets the flag; if it was clear, it sets the bit of the flag's word in the summary, and only if the
//! owner says that it sleeps, takes that word back and rings. So one sleep costs one bell, however many signals come
//! meanwhile, and an owner that is awake costs none. The owner, before it sleeps, says so and then looks once more.
//! Either it sees the summary, or the signaller sees the word: both accesses of both sides are sequentially consistent.

//!
//! # A message ring that is full
//!
//! The sender says that it waits for room and then looks once more; the receiver frees a slot and then looks whether
//! the sender waits. Either the sender sees the slot, or the receiver sees the word and signals.

/// The flags of an area.
pub(crate) const FLAGS: usize = 2048;
/// The flag that says: look at the messages. Channels have numbers from 1.
pub(crate) const MESSAGE_FLAG: u16 = 0;

/// The words of an area. All read-modify-write operations, and the accesses to `waiting` and `summary`, are
/// sequentially consistent.
pub(crate) trait AreaWords {
    /// Sets bits of flag word `index` (0 to 31) and returns what it was.
    fn fetch_or_flags(&self, index: usize, bits: u64) -> u64;
    /// Clears flag word `index` and returns what it was.
    fn take_flags(&self, index: usize) -> u64;
    /// Sets bits of the summary.
    fn fetch_or_summary(&self, bits: u32);
    /// Clears the summary and returns what it was.
    fn take_summary(&self) -> u32;
    /// Looks at the summary.
    fn summary(&self) -> u32;
    /// Stores the waiting word.
    fn set_waiting(&self, value: u32);
    /// Looks at the waiting word.
    fn waiting(&self) -> u32;
    /// Clears the waiting word and returns what it was.
    fn take_waiting(&self) -> u32;
    /// A full fence for memory that models no sequentially consistent accesses; nothing elsewhere.
    fn full_fence(&self) {}
}

/// Sets a flag; `true` means that the caller must ring the owner's bell.
#[inline]
#[must_use]
pub(crate) fn signal(area: &impl AreaWords, flag: u16) -> bool {
    let index = usize::from(flag) / 64 % (FLAGS / 64);
    let bit = 1 << (flag % 64);
    if area.fetch_or_flags(index, bit) & bit != 0 {
        // Whoever set it before us has told the owner or is about to.
        return false;
    }
    area.fetch_or_summary(1 << index);
    area.full_fence();
    area.waiting() != 0 && area.take_waiting() != 0
}

/// Says that the owner is about to sleep; `true` means that flags are set already, so it must not.
#[inline]
#[must_use]
pub(crate) fn arm(area: &impl AreaWords) -> bool {
    area.set_waiting(1);
    area.full_fence();
    area.summary() != 0
}

/// Says that the owner is awake: from now on signals ring no bell.
#[inline]
pub(crate) fn disarm(area: &impl AreaWords) {
    area.set_waiting(0);
}

/// Takes all flags that are set. What a hostile signaller writes makes it report at most each flag once.
#[inline]
pub(crate) fn take(area: &impl AreaWords, mut each: impl FnMut(u16)) {
    if area.summary() == 0 {
        return;
    }
    let mut summary = area.take_summary();
    while summary != 0 {
        let index = summary.trailing_zeros();
        summary &= summary - 1;
        let mut word = area.take_flags(index as usize);
        while word != 0 {
            let bit = word.trailing_zeros();
            word &= word - 1;
            // At most 31 * 64 + 63.
            each(u16::try_from(index * 64 + bit).unwrap_or(MESSAGE_FLAG));
        }
    }
}

/// The words that tell of room in a message ring, sequentially consistent.
pub(crate) trait RoomWords {
    /// Says how far the receiver is.
    fn set_consumed(&self, value: u32);
    /// Stores the word that says whether the sender waits.
    fn set_blocked(&self, value: u32);
    /// Looks at that word.
    fn blocked(&self) -> u32;
    /// Clears it and returns what it was.
    fn take_blocked(&self) -> u32;
    /// As [`AreaWords::full_fence`].
    fn full_fence(&self) {}
}

/// For the sender that found no room: `true` if there is some after all; else the receiver will signal.
#[inline]
pub(crate) fn ask_for_room<E>(
    words: &impl RoomWords,
    has_room: impl Fn() -> Result<bool, E>,
) -> Result<bool, E> {
    words.set_blocked(1);
    words.full_fence();
    if !has_room()? {
        return Ok(false);
    }
    words.set_blocked(0);
    Ok(true)
}

/// For the receiver that took a message, its own count now being `consumed`: `true` means that it must signal the
/// sender.
#[inline]
#[must_use]
pub(crate) fn free_slot(words: &impl RoomWords, consumed: u32) -> bool {
    words.set_consumed(consumed);
    words.full_fence();
    words.blocked() != 0 && words.take_blocked() != 0
}
