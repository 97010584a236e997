//! Looking into the switches of a running root: who is there, what goes through, and the frames themselves.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vmbus_channels::{Asked, Root};
use vmbus_partition::query::Answer;
use vmbus_vsp::network::switch::{MAX_FRAME, Mirror, Mirrored, PortId, PortSettings, PortState, Switch};

use super::PortError;
use super::capture::{CaptureOptions, CapturePort};
use super::status::{self, NetStatus};

/// The topic of the question (`attach.md`, "QUERY").
const TOPIC: &str = "net-capture";
/// What an answer is that is no capture.
const NO_CAPTURE: u8 = b'{';
/// Longest explanation that is taken.
const LONGEST_REASON: u64 = 4096;
/// Bytes that are sent at a time.
const PIECE: usize = 32 << 10;

/// What somebody wants to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// The switch.
    pub switch: String,
    /// All that its ports of this name send and are sent; all that any port sends without.
    pub port: Option<String>,
    /// Bytes of each frame that are wanted; all without.
    pub longest: Option<usize>,
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Nobody answers, or no root.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The root has no switches, or has another user, who may look into them alone.
    #[error("the root has no network, or it belongs to another user")]
    Unknown,
    /// The root says why not.
    #[error("{0}")]
    Refused(String),
}

/// Why a root does not give a capture.
#[derive(Serialize, Deserialize)]
struct Refused {
    error: String,
}

/// Answers questions about these switches that come over the sockets of the root: [`NetStatus::of`] and [`capture`].
pub fn answer_for(root: &Root, switches: Vec<Switch>) {
    let shown = switches.clone();
    root.answer(status::TOPIC, move |asked| {
        if let Ok(report) = serde_json::to_vec(&NetStatus::now(&shown)) {
            // Who asked may have gone.
            let _ = asked.answer(&report);
        }
    });
    let captures = Captures { switches, running: Mutex::default() };
    root.answer(TOPIC, move |asked| {
        // What guests say to each other is not for other guests.
        if !asked.is_from_owner() {
            return;
        }
        if let Err((error, asked)) = captures.start(asked) {
            let _ = asked.answer(&serde_json::to_vec(&Refused { error }).unwrap_or_default());
        }
    });
}

/// What goes through a switch of the root that listens at `path`, as pcapng; it ends with the root, and when the reader
/// is dropped.
///
/// # Errors
/// [`CaptureError`]. Needs the root's user, or the superuser.
pub fn capture(path: &Path, request: &CaptureRequest) -> Result<impl Read + Send + use<>, CaptureError> {
    let request = serde_json::to_string(request).map_err(io::Error::other)?;
    let mut answer = Root::listen_to(path, TOPIC, &request)?;
    let mut first = [0];
    if answer.read(&mut first)? == 0 {
        return Err(CaptureError::Unknown);
    }
    if first == [NO_CAPTURE] {
        let mut text = first.to_vec();
        answer.take(LONGEST_REASON).read_to_end(&mut text)?;
        let Refused { error } = serde_json::from_slice(&text).map_err(io::Error::other)?;
        return Err(CaptureError::Refused(error));
    }
    Ok(io::Cursor::new(first).chain(answer))
}

/// The captures of a root.
struct Captures {
    switches: Vec<Switch>,
    /// One for each switch, as a switch has one mirror.
    running: Mutex<BTreeMap<String, CapturePort>>,
}

impl Captures {
    fn start(&self, asked: Asked) -> Result<(), (String, Asked)> {
        let request: CaptureRequest = match serde_json::from_str(asked.argument()) {
            Ok(request) => request,
            Err(error) => return Err((error.to_string(), asked)),
        };
        let Some(switch) = self.switches.iter().find(|switch| switch.name() == request.switch) else {
            let names: Vec<_> = self.switches.iter().map(Switch::name).collect();
            return Err((format!("no such network: there is {}", names.join(", ")), asked));
        };
        if let Some(port) = &request.port
            && !switch.ports().iter().any(|found| found.settings.name == *port)
        {
            return Err((format!("nobody is called `{port}` there at present"), asked));
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(&request.switch).is_some_and(|capture| !capture.has_ended()) {
            return Err(("somebody captures there already".to_owned(), asked));
        }
        // A switch shows all mirrored ports to all captures.
        let is_shown = |port: &PortState| matches!(port.settings.mirror, Mirror::Source(_));
        if request.port.is_some() && switch.ports().iter().any(is_shown) {
            let why = "all of this network is captured already, and a capture beside that shows all of it, too: \
                       ask without a port";
            return Err((why.to_owned(), asked));
        }
        let name = request.port.clone().unwrap_or_else(|| request.switch.clone());
        let options = CaptureOptions { name, longest: request.longest.unwrap_or(MAX_FRAME) };
        let mut view = View { switch: switch.clone(), port: request.port, shown: Vec::new() };
        view.refresh();
        let is_wanted = move |out: &BufWriter<Answer>| {
            // Ports that have come meanwhile.
            view.refresh();
            out.get_ref().is_wanted()
        };
        let settings = PortSettings { mirror: Mirror::Destination, ..PortSettings::new("capture") };
        let capture = asked.answer_slowly().map_err(PortError::from).and_then(|answer| {
            let out = BufWriter::with_capacity(PIECE, answer);
            CapturePort::connect(switch, out, is_wanted, &options, settings)
        });
        match capture {
            Ok(capture) => drop(running.insert(request.switch, capture)),
            // The answer's end says it to the other side.
            Err(error) => tracing::warn!(%error, "no capture"),
        }
        Ok(())
    }
}

/// Ports that are shown to a capture, for as long as it lives.
struct View {
    switch: Switch,
    /// Those of this name, all without.
    port: Option<String>,
    shown: Vec<PortId>,
}

impl View {
    fn refresh(&mut self) {
        for PortState { id, settings, .. } in self.switch.ports() {
            let mirrored = match &self.port {
                Some(name) if *name == settings.name => Mirrored::Both,
                Some(_) => continue,
                None => Mirrored::Sent,
            };
            // One that is shown to somebody else stays as it is.
            if settings.mirror == Mirror::Off && self.switch.mirror(id, Mirror::Source(mirrored)).is_ok() {
                self.shown.push(id);
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        for &id in &self.shown {
            // It may have gone.
            let _ = self.switch.mirror(id, Mirror::Off);
        }
    }
}
