//! Copies between memory that others may write and memory of our own, or between two such memories.
//!
//! Small copies are Relaxed atomic loads and stores of words, inside Rust's memory model; large ones are one string
//! instruction, outside of it: the compiler sees an opaque effect on the bytes and may assume nothing about a race.

#[cfg(not(plain_copies))]
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Copies up to this many bytes go word by word; above, the string instruction's start-up cost is worth paying.
#[cfg(not(plain_copies))]
const WORDWISE: usize = 256;

/// Copies `into.len()` bytes from `from`.
///
/// # Safety
/// `from..from + into.len()` is mapped memory for the duration of the call.
#[cfg(not(plain_copies))]
#[inline(always)]
pub(super) unsafe fn load(from: *const u8, into: &mut [u8]) {
    if into.len() <= WORDWISE && from.addr().is_multiple_of(8) {
        // SAFETY: as promised by the caller, and aligned.
        unsafe { load_words(from, into) }
    } else {
        // SAFETY: as promised by the caller.
        unsafe { load_other(from, into) }
    }
}

/// What is long or does not begin at a multiple of 8.
///
/// # Safety
/// As [`load`].
#[cfg(not(plain_copies))]
#[inline(never)]
unsafe fn load_other(from: *const u8, into: &mut [u8]) {
    if into.len() > WORDWISE {
        // SAFETY: as promised by the caller; `into` is private and writable.
        unsafe { move_bytes(from, into.as_mut_ptr(), into.len()) }
    } else {
        // SAFETY: as promised by the caller.
        unsafe { load_unaligned(from, into) }
    }
}

/// Copies `from` to `into`.
///
/// # Safety
/// `into..into + from.len()` is mapped writable memory for the duration of the call.
#[cfg(not(plain_copies))]
#[inline(always)]
pub(super) unsafe fn store(into: *mut u8, from: &[u8]) {
    if from.len() <= WORDWISE && into.addr().is_multiple_of(8) {
        // SAFETY: as promised by the caller, and aligned.
        unsafe { store_words(into, from) }
    } else {
        // SAFETY: as promised by the caller.
        unsafe { store_other(into, from) }
    }
}

/// What is long or does not begin at a multiple of 8.
///
/// # Safety
/// As [`store`].
#[cfg(not(plain_copies))]
#[inline(never)]
unsafe fn store_other(into: *mut u8, from: &[u8]) {
    if from.len() > WORDWISE {
        // SAFETY: as promised by the caller; `from` is private.
        unsafe { move_bytes(from.as_ptr(), into, from.len()) }
    } else {
        // SAFETY: as promised by the caller.
        unsafe { store_unaligned(into, from) }
    }
}

/// Copies `len` bytes between two memories that others may write. Where they overlap the result is some mixture.
///
/// # Safety
/// Both ranges are mapped memory for the duration of the call, `into` writable.
#[cfg(not(plain_copies))]
#[inline]
pub(super) unsafe fn transfer(from: *const u8, into: *mut u8, len: usize) {
    if len > WORDWISE || !from.addr().is_multiple_of(8) || !into.addr().is_multiple_of(8) {
        // SAFETY: as promised by the caller.
        unsafe { move_bytes(from, into, len) }
    } else {
        let mut small = [0; WORDWISE];
        let private = &mut small[..len];
        // SAFETY: as promised by the caller, and aligned.
        unsafe { load_words(from, private) };
        // SAFETY: as promised by the caller, and aligned.
        unsafe { store_words(into, private) };
    }
}

/// `from` is a multiple of 8. Whole words first, four in a row, then the rest.
///
/// # Safety
/// As [`load`].
#[cfg(not(plain_copies))]
#[inline(always)]
unsafe fn load_words(from: *const u8, into: &mut [u8]) {
    let (words, rest) = into.as_chunks_mut::<8>();
    // SAFETY: the range is mapped, aligned, and atomics may be written by others at any time.
    let shared = unsafe { std::slice::from_raw_parts(from.cast::<AtomicU64>(), words.len()) };
    let (fours, ones) = words.as_chunks_mut::<4>();
    let (shared_fours, shared_ones) = shared.as_chunks::<4>();
    for (four, shared) in fours.iter_mut().zip(shared_fours) {
        for (word, shared) in four.iter_mut().zip(shared) {
            *word = shared.load(Relaxed).to_ne_bytes();
        }
    }
    for (word, shared) in ones.iter_mut().zip(shared_ones) {
        *word = shared.load(Relaxed).to_ne_bytes();
    }
    if !rest.is_empty() {
        // SAFETY: the rest of the range, at a multiple of 8.
        unsafe { load_tail(from.wrapping_add(shared.len() * 8), rest) }
    }
}

/// At most 7 bytes at a multiple of 8, as 4, 2 and 1.
///
/// # Safety
/// As [`load`].
#[cfg(not(plain_copies))]
#[inline(never)]
unsafe fn load_tail(from: *const u8, rest: &mut [u8]) {
    let (halves, rest) = rest.as_chunks_mut::<4>();
    if let Some(half) = halves.first_mut() {
        // SAFETY: inside the range, at a multiple of 8.
        *half = unsafe { &*from.cast::<AtomicU32>() }.load(Relaxed).to_ne_bytes();
    }
    let from = from.wrapping_add(halves.len() * 4);
    let (quarters, rest) = rest.as_chunks_mut::<2>();
    if let Some(quarter) = quarters.first_mut() {
        // SAFETY: inside the range, at a multiple of 4.
        *quarter = unsafe { &*from.cast::<AtomicU16>() }.load(Relaxed).to_ne_bytes();
    }
    if let Some(last) = rest.first_mut() {
        let from = from.wrapping_add(quarters.len() * 2);
        // SAFETY: inside the range.
        *last = unsafe { &*from.cast::<AtomicU8>() }.load(Relaxed);
    }
}

/// `into` is a multiple of 8. The mirror of [`load_words`].
///
/// # Safety
/// As [`store`].
#[cfg(not(plain_copies))]
#[inline(always)]
unsafe fn store_words(into: *mut u8, from: &[u8]) {
    let (words, rest) = from.as_chunks::<8>();
    // SAFETY: the range is mapped, aligned, and atomics may be written by others at any time.
    let shared = unsafe { std::slice::from_raw_parts(into.cast::<AtomicU64>(), words.len()) };
    let (fours, ones) = words.as_chunks::<4>();
    let (shared_fours, shared_ones) = shared.as_chunks::<4>();
    for (four, shared) in fours.iter().zip(shared_fours) {
        for (word, shared) in four.iter().zip(shared) {
            shared.store(u64::from_ne_bytes(*word), Relaxed);
        }
    }
    for (word, shared) in ones.iter().zip(shared_ones) {
        shared.store(u64::from_ne_bytes(*word), Relaxed);
    }
    if !rest.is_empty() {
        // SAFETY: the rest of the range, at a multiple of 8.
        unsafe { store_tail(into.wrapping_add(shared.len() * 8), rest) }
    }
}

/// At most 7 bytes at a multiple of 8, as 4, 2 and 1.
///
/// # Safety
/// As [`store`].
#[cfg(not(plain_copies))]
#[inline(never)]
unsafe fn store_tail(into: *mut u8, rest: &[u8]) {
    let (halves, rest) = rest.as_chunks::<4>();
    if let Some(half) = halves.first() {
        // SAFETY: inside the range, at a multiple of 8.
        unsafe { &*into.cast::<AtomicU32>() }.store(u32::from_ne_bytes(*half), Relaxed);
    }
    let into = into.wrapping_add(halves.len() * 4);
    let (quarters, rest) = rest.as_chunks::<2>();
    if let Some(quarter) = quarters.first() {
        // SAFETY: inside the range, at a multiple of 4.
        unsafe { &*into.cast::<AtomicU16>() }.store(u16::from_ne_bytes(*quarter), Relaxed);
    }
    if let Some(&last) = rest.first() {
        let into = into.wrapping_add(quarters.len() * 2);
        // SAFETY: inside the range.
        unsafe { &*into.cast::<AtomicU8>() }.store(last, Relaxed);
    }
}

/// Bytes up to the next multiple of 8, then [`load_words`].
///
/// # Safety
/// As [`load`].
#[cfg(not(plain_copies))]
unsafe fn load_unaligned(from: *const u8, into: &mut [u8]) {
    let head = from.align_offset(8).min(into.len());
    let (first, rest) = into.split_at_mut(head);
    // SAFETY: inside the range; atomics may be written by others at any time.
    let shared = unsafe { std::slice::from_raw_parts(from.cast::<AtomicU8>(), head) };
    for (byte, shared) in first.iter_mut().zip(shared) {
        *byte = shared.load(Relaxed);
    }
    if !rest.is_empty() {
        // SAFETY: inside the range, and aligned since the head ended at a multiple of 8.
        unsafe { load_words(from.wrapping_add(head), rest) }
    }
}

/// Bytes up to the next multiple of 8, then [`store_words`].
///
/// # Safety
/// As [`store`].
#[cfg(not(plain_copies))]
unsafe fn store_unaligned(into: *mut u8, from: &[u8]) {
    let head = into.align_offset(8).min(from.len());
    let (first, rest) = from.split_at(head);
    // SAFETY: inside the range; atomics may be written by others at any time.
    let shared = unsafe { std::slice::from_raw_parts(into.cast::<AtomicU8>(), head) };
    for (byte, shared) in first.iter().zip(shared) {
        shared.store(*byte, Relaxed);
    }
    if !rest.is_empty() {
        // SAFETY: inside the range, and aligned since the head ended at a multiple of 8.
        unsafe { store_words(into.wrapping_add(head), rest) }
    }
}

/// Fetches the cache line of an address for writing; any address will do.
#[inline(always)]
pub(super) fn prefetch_write(address: *const u8) {
    // Not the compiler's intrinsic, which fetches for reading where the target may lack this instruction; those
    // processors ignore it.
    // SAFETY: a prefetch accesses nothing that a program could see and never faults.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Fetches the cache lines of a range ahead of time; any address will do.
#[inline]
pub(super) fn prefetch_read(address: *const u8, len: usize) {
    for offset in (0..len).step_by(64) {
        let _line = address.wrapping_add(offset);
        // SAFETY: a prefetch accesses nothing that a program could see and never faults.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("prefetcht0 [{}]", in(reg) _line, options(nostack, preserves_flags, readonly));
        }
    }
}

/// The one copy outside Rust's memory model.
///
/// # Safety
/// Both ranges are mapped memory for the duration of the call, `into` writable.
#[cfg(all(not(plain_copies), target_arch = "x86_64"))]
#[inline]
unsafe fn move_bytes(from: *const u8, into: *mut u8, len: usize) {
    // SAFETY: reads and writes just the two ranges; the direction flag is clear at every asm block by its contract.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") into => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Where there is no string instruction: words, 256 bytes at a time.
///
/// # Safety
/// Both ranges are mapped memory for the duration of the call, `into` writable.
#[cfg(all(not(plain_copies), not(target_arch = "x86_64")))]
unsafe fn move_bytes(from: *const u8, into: *mut u8, len: usize) {
    let mut small = [0; WORDWISE];
    let mut done = 0;
    while done < len {
        let part = &mut small[..WORDWISE.min(len - done)];
        // SAFETY: inside the range.
        unsafe { load_unaligned(from.wrapping_add(done), part) };
        // SAFETY: inside the range.
        unsafe { store_unaligned(into.wrapping_add(done), part) };
        done += part.len();
    }
}

/// Under ThreadSanitizer, which cannot see into assembly, copies are plain so that it reports a race on them.
///
/// # Safety
/// `from..from + into.len()` is mapped memory for the duration of the call.
#[cfg(plain_copies)]
pub(super) unsafe fn load(from: *const u8, into: &mut [u8]) {
    // SAFETY: as promised by the caller.
    unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
}

/// As [`load`], the other way.
///
/// # Safety
/// `into..into + from.len()` is mapped writable memory for the duration of the call.
#[cfg(plain_copies)]
pub(super) unsafe fn store(into: *mut u8, from: &[u8]) {
    // SAFETY: as promised by the caller.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) }
}

/// As [`load`], between two shared memories.
///
/// # Safety
/// Both ranges are mapped memory for the duration of the call, `into` writable.
#[cfg(plain_copies)]
pub(super) unsafe fn transfer(from: *const u8, into: *mut u8, len: usize) {
    // SAFETY: as promised by the caller.
    unsafe { std::ptr::copy(from, into, len) }
}
