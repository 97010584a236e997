//! The demonstration as a user runs it.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::process::{Command, Stdio};

use common::{eventually, names_in, vmbus};

#[test]
fn the_demonstration_finds_all_data_right_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vmbus"))
        .args(["demo", "--json", "--seconds", "2", "--size", "4M"])
        .env("TMPDIR", place.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(report["image_bytes_verified"], 2 * (4 << 20));
    let kill = &report["kill"];
    let sectors = |name: &str| kill[name].as_u64().unwrap();
    assert_eq!(sectors("sectors_of_flushed_round") + sectors("sectors_of_newer_round"), (4 << 20) / 512);
    assert_eq!(report["guests"][1]["lives"], 2);
    assert!(report["guests"][0]["bytes_verified"].as_u64().unwrap() >= 4 << 20);
    let network = &report["network"];
    assert_eq!((&network["from"], &network["to"]), (&"alice".into(), &"bob".into()));
    assert!(network["bytes_verified"].as_u64().unwrap() > 1 << 20, "{network}");
    assert_eq!(network["ping"]["requests"], 200);
    assert!(names_in(place.path()).is_empty(), "left behind: {:?}", names_in(place.path()));
}

#[test]
fn a_killed_demonstration_leaves_no_process_and_no_directory() {
    let place = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_vmbus"))
        .args(["demo", "--seconds", "60", "--size", "4M"])
        .env("TMPDIR", place.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let children = || {
        let pid = demo.id();
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().map(|child| format!("/proc/{child}")).collect::<Vec<_>>()
    };
    eventually("root, guests and janitor run", || children().len() == 4);
    let children = children();
    demo.kill().unwrap();
    demo.wait().unwrap();
    let runs = |child: &String| {
        // One that was taken over by a parent that does not wait has ended all the same.
        std::fs::read_to_string(format!("{child}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    eventually("all of them end", || !children.iter().any(runs));
    eventually("the directory goes", || names_in(place.path()).is_empty());
}

#[test]
fn a_demonstration_that_cannot_be_says_what_to_change() {
    let said = common::complaint(&["demo", "--size", "1000"]);
    assert!(said.contains("--size: at least 1M"), "{said}");
    assert!(!vmbus(&["demo", "--seconds", "0"]).status.success());
}
