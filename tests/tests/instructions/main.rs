//! How many instructions an operation takes. Unlike times they are the same in each run, so a change that makes the hot
//! paths longer is seen, however busy the machine.
//!
//! `cargo test --release -p vmbus-tests --test instructions -- --nocapture` counts them (`docs/src/testing.md`,
//! "Instructions").
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod work;

use crate::work::{WORKS, Work};

/// Asks the test below to do one kind of work, so often: "disk read 100".
const VARIABLE: &str = "VMBUS_WORK";

#[test]
fn work() {
    match std::env::var(VARIABLE) {
        Ok(asked) => {
            let (name, count) = asked.rsplit_once(' ').unwrap();
            let work = WORKS.iter().find(|work| work.name == name).unwrap();
            (work.run)(count.parse().unwrap());
        }
        Err(_) => WORKS.iter().for_each(|work| (work.run)(work.often / 100)),
    }
}

/// Of optimised code alone: what a debug build takes interests nobody.
#[cfg(not(debug_assertions))]
mod counted {
    use std::process::Command;

    use super::{VARIABLE, WORKS, Work, judged};

    #[test]
    fn each_operation_takes_as_many_instructions_as_it_did() {
        if Command::new("valgrind").arg("--version").output().is_err() {
            vmbus_tests::skip!("counting instructions needs valgrind, from the package of that name");
        }
        let mut wrong = Vec::new();
        for work in WORKS {
            // What comes before the first operation and after the last is in both.
            let (few, many) = (count(work, work.often), count(work, 2 * work.often));
            let each = (many - few) / work.often;
            println!("{each:8} {}", work.name);
            wrong.extend(judged(work, each).err());
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Instructions of a process that works so often.
    fn count(work: &Work, often: u64) -> u64 {
        let output = Command::new("valgrind")
            .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "work", "--test-threads=1"])
            .env(VARIABLE, format!("{} {often}", work.name))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", work.name);
        let line = said.lines().find(|line| line.contains("refs:")).unwrap();
        let (_, number) = line.rsplit_once(' ').unwrap();
        number.replace(',', "").parse().unwrap()
    }
}

/// Parts in a hundred by which a count may differ from the one that is written down.
const TOLERANCE: u64 = 3;

/// What is wrong with an operation that takes `each` instructions.
#[cfg_attr(debug_assertions, allow(dead_code, reason = "nothing is counted in a debug build"))]
fn judged(work: &Work, each: u64) -> Result<(), String> {
    let Work { name, instructions, .. } = *work;
    if each.abs_diff(instructions) * 100 <= instructions * TOLERANCE {
        return Ok(());
    }
    Err(if each > instructions {
        format!("{name}: {each} instructions, more than the {instructions} that it took")
    } else {
        format!("{name}: {each} instructions, fewer than the {instructions} that it took: write it down")
    })
}

#[test]
fn what_takes_more_is_found_and_what_takes_less_is_to_be_written_down() {
    let work = Work { name: "work", often: 1, instructions: 1000, run: |_| {} };
    assert_eq!(judged(&work, 1030), Ok(()));
    assert_eq!(judged(&work, 970), Ok(()));
    assert!(judged(&work, 1031).unwrap_err().contains("more than the 1000"));
    assert!(judged(&work, 969).unwrap_err().contains("write it down"));
}
