//! What happens in the demonstration, in its order.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::Arguments;
use super::figures::{Figures, Latencies, Line};
use super::pattern::{Dice, Pattern, SECTOR};
use super::report::{GuestReport, KillReport, NetworkReport, Report};
use super::world::{Message, Process, Said, Who, World};

const NAMES: [&str; 2] = ["alice", "bob"];
/// The network of both, with a host that is built in.
const NETWORK: &str = "lan,host=10.0.0.1/24";
/// Who sees nothing of it all.
const BYSTANDER: usize = 0;
/// Who is killed.
const VICTIM: usize = 1;
/// Bytes of an image that are compared at a time.
const CHUNK: u64 = 1 << 20;

pub(super) struct Stage<'a> {
    arguments: &'a Arguments,
    world: World,
    socket: PathBuf,
    root: Option<Process>,
    root_listens: bool,
    guests: Vec<Actor>,
    narrator: Narrator,
}

/// A guest as its parent sees it.
struct Actor {
    name: &'static str,
    seed: u64,
    image: PathBuf,
    process: Option<Process>,
    lives: u32,
    version: Option<String>,
    /// The last round that was flushed, written from the beginning on, and is complete and checked.
    flushed: u32,
    begun: u32,
    checked: u32,
    /// How much of the round under way has been written.
    percent: u64,
    first_request: Option<Instant>,
    found: Option<Vec<(u32, u64)>>,
    /// When the root had let go of its last life.
    released: Option<Instant>,
    /// Of earlier lives, and of this one so far.
    past: Figures,
    present: Figures,
    done: bool,
    ended: bool,
    net: Net,
}

/// What a guest has said of the network.
#[derive(Default)]
struct Net {
    listens: bool,
    found: Option<String>,
    streamed: Option<(Latencies, u64, Duration)>,
    received: Option<u64>,
}

impl<'a> Stage<'a> {
    /// Images and a root, and nobody there yet.
    pub(super) fn set(arguments: &'a Arguments) -> Result<Self> {
        let world = World::new(arguments.keep.as_deref())?;
        let mut guests = Vec::new();
        for (name, number) in NAMES.into_iter().zip(0..) {
            let image = world.image(&format!("{name}.img"), arguments.size)?;
            guests.push(Actor::new(
                name,
                Dice::new(arguments.seed.wrapping_add(number)).below(u64::MAX),
                image,
            ));
        }
        let socket = world.path("bus.sock");
        let narrator = Narrator::new(arguments);
        Ok(Self { arguments, world, socket, root: None, root_listens: false, guests, narrator })
    }

    pub(super) fn play(&mut self) -> Result<Report> {
        let started = Instant::now();
        self.start_root()?;
        for guest in 0..self.guests.len() {
            self.start_guest(guest)?;
        }
        self.until(|stage| stage.guests.iter().all(|guest| guest.version.is_some()))?;
        let version = self.guests[BYSTANDER].version.clone().unwrap_or_default();
        self.narrator.say(&format!(
            "both guests have joined with version {version} and write, flush, read and compare"
        ));

        let work = Duration::from_secs(self.arguments.seconds);
        self.until(|stage| {
            started.elapsed() > work / 3 && stage.guests.iter().all(|guest| guest.checked > 0)
        })?;
        let kill = self.kill_and_restart()?;

        self.until(|stage| started.elapsed() > work && stage.guests.iter().all(|guest| guest.checked > 0))?;
        for guest in &mut self.guests {
            guest.process()?.order("finish")?;
        }
        self.until(|stage| stage.guests.iter().all(|guest| guest.done && guest.ended))?;
        self.narrator.say("both guests have finished a last round, and read it back whole");
        let network = self.network()?;
        self.end_root()?;
        let image_bytes_verified = self.verify_images()?;

        let guests = self.guests.iter().map(Actor::report).collect();
        Ok(Report {
            ok: true,
            seed: self.arguments.seed,
            disk_bytes: self.arguments.size,
            version,
            guests,
            kill: kill.with_bystander(&self.guests[BYSTANDER].figures()),
            network,
            image_bytes_verified,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Ends what still runs, and removes what is not to be kept.
    pub(super) fn clear(mut self) {
        self.narrator.end();
        self.guests.clear();
        self.root = None;
        if let Err(error) = self.world.end() {
            eprintln!("vmbus: {error:#}");
        }
    }

    fn start_root(&mut self) -> Result<()> {
        let socket = self.socket.to_string_lossy().into_owned();
        let disks: Vec<String> =
            self.guests.iter().map(|guest| format!("{},for={}", guest.image.display(), guest.name)).collect();
        let mut arguments = vec!["--json", "--until-stdin-ends", "--socket", &socket];
        for disk in &disks {
            arguments.extend(["--disk", disk]);
        }
        arguments.extend(["--net", NETWORK]);
        self.root = Some(self.world.start(Who::Root, "root", arguments)?);
        self.until(|stage| stage.root_listens)?;
        let size = crate::size::show(self.arguments.size);
        self.narrator.say(&format!("a root offers two disks of {size}, image files, at {socket}"));
        Ok(())
    }

    fn start_guest(&mut self, number: usize) -> Result<()> {
        let socket = self.socket.to_string_lossy().into_owned();
        let guest = &mut self.guests[number];
        let (seed, flushed, begun) =
            (guest.seed.to_string(), guest.flushed.to_string(), guest.begun.to_string());
        let arguments = [
            ["--socket", &socket],
            ["--name", guest.name],
            ["--seed", &seed],
            ["--flushed", &flushed],
            ["--begun", &begun],
        ];
        let process = self.world.start(Who::Guest(number), "demo-guest", arguments.into_iter().flatten())?;
        guest.begin_life(process);
        Ok(())
    }

    /// Kills one guest in the middle of a round and starts it again.
    fn kill_and_restart(&mut self) -> Result<KillReport> {
        let percent = 10 + Dice::new(self.arguments.seed).below(50);
        let round = self.guests[VICTIM].begun;
        self.until(|stage| {
            let victim = &stage.guests[VICTIM];
            (victim.begun > round || victim.percent <= percent)
                && victim.percent >= percent
                && victim.is_writing()
        })?;
        self.guests[BYSTANDER].process()?.order("during")?;
        let victim = &mut self.guests[VICTIM];
        let name = victim.name;
        let process = victim.process.take().context("nobody to kill")?;
        let killed = Instant::now();
        process.kill()?;
        self.until(|stage| stage.guests[VICTIM].ended)?;
        let victim = &self.guests[VICTIM];
        let (flushed, round, percent) = (victim.flushed, victim.begun, victim.percent);
        let mut report = KillReport::new(name, round);
        self.narrator.say(&format!("SIGKILL hits {name} when {percent} % of its round {round} are written"));

        self.start_guest(VICTIM)?;
        let victim = |stage: &Self| -> (Option<Instant>, Option<Instant>) {
            (stage.guests[VICTIM].released, stage.guests[VICTIM].first_request)
        };
        self.until(|stage| matches!(victim(stage), (Some(_), Some(_))))?;
        if let (Some(released), Some(first_request)) = victim(self) {
            report.released_ms = millis(released - killed);
            report.first_request_ms = millis(first_request - killed);
        }
        self.guests[BYSTANDER].process()?.order("after")?;
        self.narrator.say(&format!(
            "{name} is back: first request complete {:.1} ms after the kill; it looks at what it finds",
            report.first_request_ms
        ));

        self.until(|stage| stage.guests[VICTIM].found.is_some())?;
        for &(round, sectors) in self.guests[VICTIM].found.iter().flatten() {
            if round == flushed {
                report.sectors_of_flushed_round += sectors;
            } else {
                report.sectors_of_newer_round += sectors;
            }
        }
        self.narrator.say(&format!(
            "all {} sectors are whole: {} of the flushed round {flushed}, {} of round {round}; {name} goes on",
            report.sectors_of_flushed_round + report.sectors_of_newer_round,
            report.sectors_of_flushed_round,
            report.sectors_of_newer_round
        ));
        Ok(report)
    }

    /// Both join once more, find each other on the network and send data.
    fn network(&mut self) -> Result<NetworkReport> {
        let [from, to] = [BYSTANDER, VICTIM];
        let socket = self.socket.to_string_lossy().into_owned();
        let seed = self.arguments.seed.to_string();
        let millis = (self.arguments.seconds * 1000 / 4).clamp(500, 5000).to_string();
        let common = ["--socket", &socket, "--seed", &seed, "--name"];
        for guest in &mut self.guests {
            (guest.net, guest.ended) = (Net::default(), false);
        }
        let receiver = common.into_iter().chain([NAMES[to]]);
        self.guests[to].process = Some(self.world.start(Who::Guest(to), "demo-net", receiver)?);
        self.until(|stage| stage.guests[to].net.listens)?;
        let sender = common.into_iter().chain([NAMES[from], "--peer", NAMES[to], "--millis", &millis]);
        self.guests[from].process = Some(self.world.start(Who::Guest(from), "demo-net", sender)?);
        self.until(|stage| stage.guests.iter().all(|guest| guest.ended))?;

        let found = self.guests[from].net.found.clone().unwrap_or_default();
        let (pings, bytes, took) = self.guests[from].net.streamed.clone().context("no stream was sent")?;
        let received = self.guests[to].net.received;
        ensure!(received == Some(bytes), "{bytes} bytes were streamed, and {received:?} came");
        let report = NetworkReport::new((NAMES[from], NAMES[to]), &found, &pings, bytes, took);
        self.narrator.say(&format!("on the network `lan`: {}", report.sentence()));
        Ok(report)
    }

    fn end_root(&mut self) -> Result<()> {
        let root = self.root.take().context("no root to end")?;
        let status = root.end()?;
        ensure!(status.success(), "the root ended with {status}");
        ensure!(!self.socket.exists(), "the root left its socket behind");
        Ok(())
    }

    /// Compares the image files with what the guests have written.
    fn verify_images(&self) -> Result<u64> {
        let mut verified = 0;
        for guest in &self.guests {
            let mut image = File::open(&guest.image)?;
            let pattern = Pattern::new(guest.seed);
            let mut bytes = Vec::new();
            let mut sector = 0;
            loop {
                bytes.clear();
                let read = (&mut image).take(CHUNK).read_to_end(&mut bytes)?;
                if read == 0 {
                    break;
                }
                pattern
                    .check(&(guest.checked..=guest.checked), sector, &bytes, |_| {})
                    .with_context(|| format!("the image of {} is wrong", guest.name))?;
                sector += (read / SECTOR) as u64;
            }
            ensure!(
                sector * SECTOR as u64 == self.arguments.size,
                "the image of {} has changed its size",
                guest.name
            );
            verified += self.arguments.size;
        }
        self.narrator.say(&format!(
            "root and guests are gone; the image files, {}, hold the right data",
            crate::size::show(verified)
        ));
        Ok(verified)
    }

    /// Listens until `condition` holds.
    fn until(&mut self, condition: impl Fn(&Self) -> bool) -> Result<()> {
        while !condition(self) {
            let message = self.world.listen()?;
            self.hear(message)?;
            self.narrator.show_progress(&self.guests);
        }
        Ok(())
    }

    fn hear(&mut self, message: Message) -> Result<()> {
        let Message { who, at, said } = message;
        match (who, said) {
            (Who::Root, Said::Bus(event)) => match event["event"].as_str() {
                Some("listening") => self.root_listens = true,
                Some("detached") => {
                    if let Some(guest) = self.guests.iter_mut().find(|guest| event["guest"] == guest.name) {
                        guest.released = Some(at);
                    }
                }
                Some("fault" | "crashed" | "attach_failed" | "listener_failed") => {
                    bail!("the root says: {event}")
                }
                Some(_) | None => {}
            },
            (Who::Root, Said::Ended) => bail!("the root has ended too early"),
            (Who::Guest(number), Said::Work(line)) => self.guests[number].hear(line, at)?,
            (Who::Guest(number), Said::Ended) => {
                let guest = &mut self.guests[number];
                guest.ended = true;
                ensure!(guest.done || guest.process.is_none(), "{} has ended too early", guest.name);
            }
            (_, Said::Work(line)) => bail!("the root says: {line:?}"),
            (Who::Guest(number), Said::Bus(event)) => bail!("{} says: {event}", self.guests[number].name),
        }
        Ok(())
    }
}

impl Actor {
    fn new(name: &'static str, seed: u64, image: PathBuf) -> Self {
        Self {
            name,
            seed,
            image,
            process: None,
            lives: 0,
            version: None,
            flushed: 0,
            begun: 0,
            checked: 0,
            percent: 0,
            first_request: None,
            found: None,
            released: None,
            past: Figures::default(),
            present: Figures::default(),
            done: false,
            ended: false,
            net: Net::default(),
        }
    }

    fn begin_life(&mut self, process: Process) {
        self.process = Some(process);
        self.lives += 1;
        self.past.add(&std::mem::take(&mut self.present));
        self.checked = 0;
        self.percent = 0;
        self.first_request = None;
        self.found = None;
        self.ended = false;
    }

    fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} is not there", self.name))
    }

    fn is_writing(&self) -> bool {
        self.begun > self.flushed
    }

    fn hear(&mut self, line: Line, at: Instant) -> Result<()> {
        match line {
            Line::Joined { version } => self.version = Some(version),
            Line::FirstRequest => self.first_request = Some(at),
            Line::Found { sectors, figures } => {
                self.found = Some(sectors.into_iter().collect());
                self.present = figures;
            }
            Line::Writing { round, percent } => (self.begun, self.percent) = (round, percent),
            Line::Flushed { round, figures } => (self.flushed, self.present) = (round, figures),
            Line::Checked { round, figures } => (self.checked, self.present) = (round, figures),
            Line::Done { round } => {
                ensure!(round == self.checked, "{} has not read back its last round", self.name);
                self.done = true;
            }
            Line::Addressed { .. } => {}
            Line::Listening => self.net.listens = true,
            Line::Resolved { address, .. } => self.net.found = Some(address),
            Line::Streamed { pings, bytes, took } => self.net.streamed = Some((pings, bytes, took)),
            Line::Received { bytes } => self.net.received = Some(bytes),
            Line::Failed { message } => bail!("{}: {message}", self.name),
        }
        Ok(())
    }

    fn figures(&self) -> Figures {
        let mut all = self.past.clone();
        all.add(&self.present);
        all
    }

    fn report(&self) -> GuestReport {
        GuestReport::new(self.name, self.lives, self.checked, &self.figures())
    }
}

/// Says what happens as it happens.
struct Narrator {
    quiet: bool,
    bar: ProgressBar,
    started: Instant,
}

impl Narrator {
    fn new(arguments: &Arguments) -> Self {
        // Draws on standard error if that is a terminal, and nothing otherwise.
        let bar = if arguments.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        Self { quiet: arguments.json, bar, started: Instant::now() }
    }

    fn say(&self, what: &str) {
        if !self.quiet {
            let after = self.started.elapsed().as_secs_f64();
            self.bar.suspend(|| println!("{after:5.2} s  {what}"));
        }
    }

    fn show_progress(&self, guests: &[Actor]) {
        if self.bar.is_hidden() {
            return;
        }
        let each = guests.iter().map(|guest| {
            let figures = guest.figures();
            let bytes = crate::size::show(figures.bytes_written + figures.bytes_read);
            let doing = if guest.is_writing() { "writing" } else { "reading" };
            format!("{}: {doing} round {}, {bytes} moved", guest.name, guest.begun)
        });
        self.bar.set_message(each.collect::<Vec<_>>().join("   "));
        self.bar.tick();
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
