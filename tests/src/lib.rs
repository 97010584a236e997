//! What tests of the whole house have in common: saying what they need of the machine, and the simulator ([`sim`]).
//!
//! The tests themselves, conformance, real processes and real peers, are the integration tests of this package. The
//! library depends on the lowest floors only, so any crate can name it as a dev-dependency.
//!
//! A test that needs more than an ordinary user on an ordinary machine says so in its first line:
//!
//! ```
//! # fn a_disk_behind_fuse_holds_a_file_system() {
//! vmbus_tests::require!(Root, Fuse);
//! # }
//! ```
//!
//! Where a need is not met the test says why on stderr and passes without having run. `VMBUS_REQUIRE=all`, or a list
//! such as `VMBUS_REQUIRE=root,fuse`, turns that into a failure: a build server that lost a device must not go green.

pub mod netns;
pub mod sim;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The environment variable that turns skipped tests into failures.
pub const REQUIRE_VARIABLE: &str = "VMBUS_REQUIRE";
/// The environment variable that names the folder of the Linux guest.
pub const LINUX_GUEST_VARIABLE: &str = "VMBUS_LINUX_GUEST";

/// Leaves the test, with the reason on stderr, unless the machine offers all that is named.
///
/// The names are variants of [`Need`]. Fails the test instead where `VMBUS_REQUIRE` asks for the missing kind.
#[macro_export]
macro_rules! require {
    ($($need:ident),+ $(,)?) => {
        if !$crate::are_met(&[$($crate::Need::$need),+]) {
            return;
        }
    };
}

/// Leaves the test with a reason of its own, for what no [`Need`] names. `VMBUS_REQUIRE=all` makes it a failure.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::skip_because(&format!($($reason)+));
        return;
    }};
}

/// What a test can need of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The rights to mount file systems and to set up loop devices.
    Root,
    /// `/dev/fuse` and a way to mount on it: root, or `fusermount3`.
    Fuse,
    /// `/dev/net/tun` and the right to make interfaces.
    Tun,
    /// The folder with a stock Linux kernel and the emulator that runs it: `VMBUS_LINUX_GUEST`, by default
    /// `../shared/linux-guest` beside the workspace.
    LinuxGuest,
}

impl Need {
    const ALL: [Self; 4] = [Self::Root, Self::Fuse, Self::Tun, Self::LinuxGuest];

    /// The word for it in `VMBUS_REQUIRE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Fuse => "fuse",
            Self::Tun => "tun",
            Self::LinuxGuest => "linux-guest",
        }
    }

    /// What is missing, in a sentence that says how to get it, or `None` if the machine has it.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!has_capability(Capability::SysAdmin))
                .then(|| "mounting needs root (CAP_SYS_ADMIN): run the test with sudo".into()),
            Self::Fuse => cannot_open("/dev/fuse").or_else(|| {
                (!has_capability(Capability::SysAdmin) && !is_on_path("fusermount3"))
                    .then(|| "mounting by FUSE needs root, or fusermount3 from the package fuse3".into())
            }),
            Self::Tun => cannot_open("/dev/net/tun").or_else(|| {
                (!has_capability(Capability::NetAdmin))
                    .then(|| "making an interface needs root (CAP_NET_ADMIN): run the test with sudo".into())
            }),
            Self::LinuxGuest => {
                let folder = linux_guest_folder();
                (!folder.join("boot.sh").is_file()).then(|| {
                    format!(
                        "no Linux guest in {}: set {LINUX_GUEST_VARIABLE} to the folder that has its boot.sh",
                        folder.display()
                    )
                })
            }
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The folder that a test which needs [`Need::LinuxGuest`] finds `boot.sh` in.
pub fn linux_guest_folder() -> PathBuf {
    match std::env::var_os(LINUX_GUEST_VARIABLE) {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/linux-guest"),
    }
}

/// Whether all needs are met; says why on stderr if not. [`require!`] is the usual way to ask.
///
/// # Panics
/// Where `VMBUS_REQUIRE` names the missing kind, or is not a list of kinds.
pub fn are_met(needs: &[Need]) -> bool {
    let missing = needs.iter().find_map(|&need| need.missing().map(|reason| (need, reason)));
    let Some((need, reason)) = missing else { return true };
    report(Some(need), &reason);
    false
}

/// Says on stderr why a test does not run. [`skip!`] is the usual way to call it.
///
/// # Panics
/// Under `VMBUS_REQUIRE=all`.
pub fn skip_because(reason: &str) {
    report(None, reason);
}

fn report(need: Option<Need>, reason: &str) {
    let required = std::env::var(REQUIRE_VARIABLE).unwrap_or_default();
    match is_required(&required, need) {
        Ok(true) => panic!("{REQUIRE_VARIABLE}={required} forbids to skip this test: {reason}"),
        Ok(false) => {}
        Err(word) => panic!("{REQUIRE_VARIABLE}={required}: {word:?} is none of all, {}", names().join(", ")),
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not `eprintln!`: the test harness would swallow the line of a test that passes.
    let _ = writeln!(io::stderr(), "skipped {test}: {reason}");
}

fn names() -> [&'static str; 4] {
    Need::ALL.map(Need::name)
}

/// Whether the list `required` forbids to go without `need`; a word of the list that means nothing is the error.
fn is_required(required: &str, need: Option<Need>) -> Result<bool, &str> {
    let mut found = false;
    for word in required.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if word != "all" && !names().contains(&word) {
            return Err(word);
        }
        found |= word == "all" || need.is_some_and(|need| need.name() == word);
    }
    Ok(found)
}

/// Bit numbers in the kernel's capability sets.
#[derive(Clone, Copy)]
enum Capability {
    NetAdmin = 12,
    SysAdmin = 21,
}

/// Whether this process has the capability in effect: a container's root may lack it.
fn has_capability(capability: Capability) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or("0");
    u64::from_str_radix(line.trim(), 16).is_ok_and(|set| set >> capability as u32 & 1 == 1)
}

fn cannot_open(device: &str) -> Option<String> {
    let opened = OpenOptions::new().read(true).write(true).open(device);
    opened.err().map(|error| format!("{device} cannot be opened: {error}"))
}

/// The first of these programs that is not installed, in a sentence for [`skip!`].
pub fn missing_program(programs: &[&str]) -> Option<String> {
    let missing = programs.iter().find(|program| !is_on_path(program))?;
    Some(format!("the program {missing} is not installed: see what .ci/run installs"))
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_required_unless_somebody_asks() {
        assert_eq!(is_required("", Some(Need::Root)), Ok(false));
        assert_eq!(is_required("", None), Ok(false));
    }

    #[test]
    fn all_requires_every_kind_and_nameless_ones() {
        for need in Need::ALL {
            assert_eq!(is_required("all", Some(need)), Ok(true), "{need}");
        }
        assert_eq!(is_required("all", None), Ok(true));
    }

    #[test]
    fn a_list_requires_what_it_names() {
        assert_eq!(is_required("root, fuse", Some(Need::Fuse)), Ok(true));
        assert_eq!(is_required("root, fuse", Some(Need::Tun)), Ok(false));
        assert_eq!(is_required("root, fuse", None), Ok(false));
    }

    #[test]
    fn a_misspelt_requirement_is_not_ignored() {
        assert_eq!(is_required("root,fuze", Some(Need::Root)), Err("fuze"));
    }

    #[test]
    fn a_need_that_is_met_lets_the_test_run() {
        // Whatever user runs this: either root's rights are there, or the reason says how to get them.
        match Need::Root.missing() {
            None => assert!(are_met(&[Need::Root])),
            Some(reason) => assert!(reason.contains("sudo")),
        }
        assert!(are_met(&[]));
    }
}
