//! Plays scripts with processes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmbus_channels::Status;
use vmbus_core::Version;
use vmbus_tests::sim::{Action, Channel, Executor, GuestSetup, Script, Tick};

use crate::{PATIENCE, ROLE};

/// Real time of one tick.
const TICK: Duration = Duration::from_micros(100);

/// A process that plays a part.
struct Actor {
    name: String,
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Actor {
    fn new(name: String, role: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args(["an_actor_of_the_other_tests", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role.join("\t")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (orders, said) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, answers) = channel();
        // The end of the process ends the thread.
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                // The test harness says things, too, without ending its lines.
                let Some((_, answer)) = line.split_once('@') else { continue };
                if sender.send(answer.to_owned()).is_err() {
                    return;
                }
            }
        });
        Self { name, child, orders, answers }
    }

    /// Says what is to be done. One that is dead does not hear it.
    fn order(&mut self, order: &str) {
        let _ = writeln!(self.orders, "{order}");
    }

    fn hear(&mut self, what: &str) -> Result<Vec<String>, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.answers.recv_timeout(left);
            let answer = answer.map_err(|_| format!("{} does not say that it is {what}", self.name))?;
            let mut words = answer.split(' ').map(str::to_owned);
            if words.next().as_deref() == Some(what) {
                return Ok(words.collect());
            }
        }
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it leave in order.
    fn dismiss(self) -> Result<(), String> {
        let Self { name, mut child, orders, answers } = self;
        drop(orders);
        let deadline = Instant::now() + PATIENCE;
        while answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        if Instant::now() >= deadline {
            let _ = child.kill();
        }
        let status = child.wait().unwrap();
        if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}")) }
    }
}

/// One guest's place.
struct Place {
    setup: GuestSetup,
    life: u64,
    actor: Option<Actor>,
    offered: BTreeSet<u8>,
    unloaded: bool,
}

pub(crate) struct Processes {
    directory: TempDir,
    root: Option<Actor>,
    /// Descriptors and mappings of memory files of a root that nobody has joined.
    baseline: Option<(usize, usize)>,
    places: Vec<Place>,
    now: Tick,
    did: Vec<String>,
}

impl Processes {
    pub(crate) fn new(script: &Script) -> Self {
        let place = |setup: &GuestSetup| Place {
            setup: *setup,
            life: 0,
            actor: None,
            offered: BTreeSet::new(),
            unloaded: false,
        };
        let mut processes = Self {
            directory: tempfile::tempdir().unwrap(),
            root: None,
            baseline: None,
            places: script.guests.iter().map(place).collect(),
            now: 0,
            did: Vec::new(),
        };
        processes.start_root().unwrap();
        (0..processes.places.len()).for_each(|guest| processes.start_guest(guest));
        processes
    }

    /// What was done, and what the root says now.
    pub(crate) fn story(&self) -> String {
        let status = Status::of(self.socket());
        format!("{}\n{status:#?}", self.did.join("\n"))
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("bus.sock")
    }

    fn start_root(&mut self) -> Result<(), String> {
        let socket = self.socket();
        let mut root = Actor::new("the root".into(), &["root", socket.to_str().unwrap()]);
        root.hear("ready")?;
        // Those who waited for a later one may have joined it already.
        self.baseline = self.baseline.or_else(|| Some(held_by(root.child.id())));
        for (guest, place) in self.places.iter().enumerate() {
            place.offered.iter().for_each(|device| root.order(&format!("offer {guest} {device}")));
        }
        self.root = Some(root);
        Ok(())
    }

    fn start_guest(&mut self, guest: usize) {
        let socket = self.socket();
        let place = &mut self.places[guest];
        place.life += 1;
        place.unloaded = false;
        let newest = Version::ALL.iter().position(|version| *version == place.setup.newest).unwrap();
        let role = [
            "guest",
            socket.to_str().unwrap(),
            &guest.to_string(),
            &place.life.to_string(),
            &newest.to_string(),
        ];
        place.actor = Some(Actor::new(format!("guest {guest}"), &role));
    }

    fn tell_guest(&mut self, guest: usize, order: String) {
        if let Some(actor) = &mut self.places[guest].actor {
            actor.order(&order);
        }
    }

    fn tell_root(&mut self, order: String) {
        if let Some(root) = &mut self.root {
            root.order(&order);
        }
    }

    /// Waits until what the root holds is what it held when nobody had joined.
    fn assert_root_holds_nothing(&mut self) -> Result<(), String> {
        let Some(root) = &self.root else { return Err("there is no root".into()) };
        let process = root.child.id();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status =
                Status::of(self.socket()).map_err(|error| format!("the root does not answer: {error}"))?;
            let held = held_by(process);
            if status.partitions.is_empty() && Some(held) == self.baseline {
                return Ok(());
            }
            if Instant::now() > deadline {
                let partitions = status.partitions;
                return Err(format!("left at the root: {held:?} of {:?}, {partitions:?}", self.baseline));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn act(&mut self, guest: usize, action: &Action) -> Result<(), String> {
        // Sub-channels are asked for in a device's own protocol, calls in that of sockets: this device has neither.
        let device = |channel: Channel| {
            (channel.sub == 0 && channel.device < Channel::FIRST_CALL).then_some(channel.device)
        };
        match *action {
            Action::Offer { channel, .. } => {
                if let Some(device) = device(channel)
                    && self.places[guest].offered.insert(device)
                {
                    self.tell_root(format!("offer {guest} {device}"));
                }
            }
            Action::Rescind { channel, .. } => {
                if let Some(device) = device(channel)
                    && self.places[guest].offered.remove(&device)
                {
                    self.tell_root(format!("rescind {guest} {device}"));
                }
            }
            Action::Open { channel, .. } => self.tell_guest(guest, format!("open {}", channel.device)),
            Action::Close { channel, .. } => self.tell_guest(guest, format!("close {}", channel.device)),
            Action::Reopen { channel, .. } => {
                self.tell_guest(guest, format!("close {}", channel.device));
                self.tell_guest(guest, format!("open {}", channel.device));
            }
            Action::Request { channel, count, bytes, .. } => {
                self.tell_guest(guest, format!("request {} {count} {bytes}", channel.device));
            }
            Action::Unload { .. } => {
                self.places[guest].unloaded = true;
                self.tell_guest(guest, "unload".into());
            }
            Action::Connect { .. } => {
                self.places[guest].unloaded = false;
                self.tell_guest(guest, "connect".into());
            }
            Action::Kill { .. } => {
                if let Some(actor) = self.places[guest].actor.take() {
                    actor.kill();
                }
            }
            Action::Restart { .. } => {
                if self.places[guest].actor.is_none() {
                    self.start_guest(guest);
                }
            }
            Action::KillRoot {} => {
                if let Some(root) = self.root.take() {
                    root.kill();
                }
            }
            Action::RestartRoot {} => {
                if self.root.is_none() {
                    self.start_root()?;
                }
            }
            // A process cannot, or a driver has no say in it.
            Action::Share { .. }
            | Action::Unshare { .. }
            | Action::Modify { .. }
            | Action::GiveBack { .. }
            | Action::Call { .. }
            | Action::Pause { .. }
            | Action::Resume { .. }
            | Action::Monitor { .. }
            | Action::Reboot { .. }
            | Action::Reset { .. }
            | Action::SaveRoot { .. }
            | Action::SaveGuest { .. } => return Ok(()),
        }
        self.did.push(format!("{} {action}", self.now));
        Ok(())
    }

    /// Every device that is offered answers, and every request that was sent has ended.
    fn assert_all_is_well(&mut self) -> Result<(), String> {
        for place in &mut self.places {
            let Some(actor) = &mut place.actor else { continue };
            if place.unloaded {
                actor.order("connect");
            }
            for device in &place.offered {
                actor.order(&format!("probe {device}"));
                actor.hear("probed").map_err(|error| format!("device {device}: {error}"))?;
            }
            actor.order("settle");
            let counts = actor.hear("settled")?;
            let counts: Vec<usize> = counts.iter().map(|count| count.parse().unwrap()).collect();
            let [sent, completed, ended, wrong] = counts[..] else { panic!("{counts:?}") };
            if wrong > 0 || sent != completed + ended {
                return Err(format!(
                    "{}: {sent} sent, {completed} completed, {ended} ended, {wrong} wrong",
                    actor.name
                ));
            }
        }
        self.tell_root("report".into());
        let counts = self.root.as_mut().unwrap().hear("report")?;
        if counts[1] == "0" { Ok(()) } else { Err(format!("{} requests were served twice", counts[1])) }
    }
}

/// Descriptors and memory files of a process.
fn held_by(process: u32) -> (usize, usize) {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    (descriptors, maps.lines().filter(|line| line.contains("memfd:")).count())
}

impl Executor for Processes {
    type Failure = String;

    fn perform(&mut self, at: Tick, action: &Action) -> Result<(), String> {
        std::thread::sleep(TICK * u32::try_from(at - self.now).unwrap());
        self.now = at;
        let guest = usize::from(action.guest().unwrap_or(0));
        if guest < self.places.len() { self.act(guest, action) } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), String> {
        self.act(0, &Action::RestartRoot {})?;
        self.assert_all_is_well()?;
        for guest in 0..self.places.len() {
            // Some say good-bye, some die.
            match self.places[guest].actor.take() {
                Some(actor) if guest % 2 == 0 => actor.dismiss()?,
                Some(actor) => actor.kill(),
                None => {}
            }
        }
        self.assert_root_holds_nothing()?;
        self.root.take().unwrap().dismiss()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let actors = self.places.iter_mut().filter_map(|place| place.actor.take());
        actors.chain(self.root.take()).for_each(Actor::kill);
    }
}
