//! Rules for `vmbus root`: reloaded under load, checked, replayed.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::process::{Child, Command, Stdio};

use common::{Place, Process, complaint, eventually, vmbus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that writes, flushes and reads its disk all the time: `vmbus demo-guest`.
struct Worker<'a> {
    process: Child,
    place: &'a Place,
    name: &'static str,
}

impl<'a> Worker<'a> {
    fn start(place: &'a Place, name: &'static str) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_vmbus"))
            .args(["demo-guest", "--socket", &place.socket(), "--name", name, "--seed", "1"])
            .args(["--flushed", "0", "--begun", "0"])
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(place.path(name)).unwrap())
            .spawn()
            .unwrap();
        Self { process, place, name }
    }

    fn flushes(&self) -> usize {
        std::fs::read_to_string(self.place.path(self.name)).unwrap().matches("\"flushed\"").count()
    }

    fn goes_on(&self) {
        let before = self.flushes();
        eventually(&format!("{} goes on", self.name), || self.flushes() > before);
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn hang_up(root: &Process) {
    kill(Pid::from_raw(i32::try_from(root.pid()).unwrap()), Signal::SIGHUP).unwrap();
}

#[test]
fn rules_that_are_reloaded_under_load_end_only_what_they_deny() {
    let place = Place::new();
    let disk = |name: &str| format!("{},for={name}", place.image(&format!("{name}.img"), 1 << 20));
    let (alices, bobs, socket) = (disk("alice"), disk("bob"), place.socket());
    let (rules, log) = (place.path("rules.toml"), place.text("decisions.jsonl"));
    std::fs::write(&rules, "default = \"allow\"\n").unwrap();
    let rules_text = place.text("rules.toml");
    let root = Process::start(&[
        "root",
        "--until-stdin-ends",
        "--json",
        "--socket",
        &socket,
        "--disk",
        &alices,
        "--disk",
        &bobs,
        "--policy",
        &rules_text,
        "--policy-log",
        &log,
    ]);
    root.says("listening");
    let mut alice = Worker::start(&place, "alice");
    let bob = Worker::start(&place, "bob");
    alice.goes_on();
    bob.goes_on();

    let slower = "default = \"allow\"\n[[rule]]\npartition = \"bob\"\nlimits.rate = { requests = 500 }\n";
    std::fs::write(&rules, slower).unwrap();
    hang_up(&root);
    assert!(root.says("policy_loaded").contains("1 rules"));
    alice.goes_on();
    bob.goes_on();

    std::fs::write(&rules, "default = \"allow\"\n[[rule]]\npartitoin = \"bob\"\n").unwrap();
    hang_up(&root);
    let kept = root.says("policy_kept");
    assert!(kept.contains("line 3") && kept.contains("partitoin"), "{kept}");
    alice.goes_on();
    bob.goes_on();

    let denied = "[[rule]]\ndevice = \"alice.img\"\ndecide = \"deny\"\nreason = \"alice has had enough\"\n";
    std::fs::write(&rules, format!("{slower}{denied}")).unwrap();
    hang_up(&root);
    root.says("alice has had enough");
    eventually("the guest whose disk was taken away ends", || alice.process.try_wait().unwrap().is_some());
    bob.goes_on();
    bob.goes_on();
    drop((alice, bob));
    root.end();

    let decisions = std::fs::read_to_string(&log).unwrap();
    assert!(decisions.lines().any(|line| line.contains("alice has had enough")), "{decisions}");
    assert!(decisions.contains("\"requests\":500"), "{decisions}");
}

#[test]
fn rules_are_checked_with_line_numbers_and_a_log_is_replayed() {
    let place = Place::new();
    let (good, bad, log) = (place.text("good.toml"), place.text("bad.toml"), place.text("log.jsonl"));
    std::fs::write(&good, "[[rule]]\nclass = \"scsi\"\n[[rule]]\nasks = [\"attach\", \"version\"]\n")
        .unwrap();
    std::fs::write(&bad, "default = \"deny\"\n\n[[rule]]\nclass = \"floppy\"\n").unwrap();
    let checked = vmbus(&["policy", "check", &good]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("2 rules"));
    let wrong = complaint(&["policy", "check", &bad]);
    assert!(wrong.contains("bad.toml: line 4: `floppy` is no class"), "{wrong}");
    let refused = complaint(&["root", "--socket", &place.socket(), "--policy", &bad]);
    assert!(refused.contains("line 4"), "{refused}");

    let (socket, disk) = (place.socket(), format!("{},for=bob", place.image("bob.img", 1 << 20)));
    let root = Process::start(&[
        "root",
        "--until-stdin-ends",
        "--json",
        "--socket",
        &socket,
        "--disk",
        &disk,
        "--policy",
        &good,
        "--policy-log",
        &log,
    ]);
    root.says("listening");
    let bob = Worker::start(&place, "bob");
    bob.goes_on();
    drop(bob);
    root.says("detached");
    root.end();
    let replayed = vmbus(&["policy", "replay", &log, "--policy", &good]);
    let told = String::from_utf8_lossy(&replayed.stdout);
    assert!(replayed.status.success() && told.contains(" 0 differ"), "{told}");
    std::fs::write(&good, "default = \"deny\"\n").unwrap();
    let replayed = vmbus(&["policy", "replay", &log, "--policy", &good]);
    let told = String::from_utf8_lossy(&replayed.stdout);
    assert!(!replayed.status.success() && told.contains("denied, no rule allows it"), "{told}");
}
