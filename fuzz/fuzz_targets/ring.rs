//! A peer that owns the whole control page and data area while a reader and a writer run: between their calls and in
//! the middle of them. The same body as the property test in `ringbuf/tests/hostile.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../ringbuf/tests/hostile/story.rs"]
mod story;

fuzz_target!(|data: &[u8]| story::play(data));
