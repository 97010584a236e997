//! What happens on a bus, as JSON lines for programs.

use std::io::Write as _;

use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use vmbus_channels::Event;
use vmbus_channels::policy::Logged;

/// Prints events until the root ends or nobody reads them. Blocks.
pub(crate) fn print(mut events: Receiver<Event>) {
    loop {
        let line = match events.blocking_recv() {
            Ok(event) => match describe(&event) {
                Some(line) => line,
                None => continue,
            },
            Err(RecvError::Lagged(missed)) => json!({ "event": "missed", "events": missed }),
            Err(RecvError::Closed) => return,
        };
        if say(&line).is_err() {
            return;
        }
    }
}

/// Writes policy decisions until the root ends or the file cannot be written. Blocks.
pub(crate) fn log_policy(mut events: Receiver<Event>, mut file: std::fs::File) {
    loop {
        let line = match events.blocking_recv() {
            Ok(Event::Decided(decided)) => serde_json::to_string(&*decided),
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => serde_json::to_string(&Logged::Missed { missed }),
            Err(RecvError::Closed) => return,
        };
        let written = line.map_err(std::io::Error::from).and_then(|line| writeln!(file, "{line}"));
        if let Err(error) = written {
            tracing::error!(%error, "the policy log ends");
            return;
        }
    }
}

/// One line.
pub(crate) fn say(line: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn describe(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Attached { client, extended } => {
            json!({ "event": "attached", "guest": &*client.name, "id": client.id, "extended": extended })
        }
        Event::Detached { client, why } => {
            json!({ "event": "detached", "guest": &*client.name, "id": client.id, "why": why })
        }
        Event::Connected { client, version } => {
            json!({ "event": "connected", "guest": &*client.name, "id": client.id, "version": version.to_string() })
        }
        Event::Disconnected { client } => {
            json!({ "event": "disconnected", "guest": &*client.name, "id": client.id })
        }
        Event::Opened { client, device, relid } => {
            json!({ "event": "opened", "guest": &*client.name, "id": client.id, "device": device, "channel": relid })
        }
        Event::Closed { client, device, relid, error } => json!({
            "event": "closed", "guest": &*client.name, "id": client.id, "device": device, "channel": relid,
            "error": error,
        }),
        Event::Refused { client, what, reason } => {
            json!({ "event": "refused", "guest": &*client.name, "id": client.id, "what": what, "reason": reason })
        }
        Event::Fault { client, fault } => {
            json!({ "event": "fault", "guest": &*client.name, "id": client.id, "fault": fault.to_string() })
        }
        Event::Overdue { client, device, relid } => json!({
            "event": "overdue", "guest": &*client.name, "id": client.id, "device": device, "channel": relid,
        }),
        Event::Throttled { client } => {
            json!({ "event": "throttled", "guest": &*client.name, "id": client.id })
        }
        Event::Crashed { client, message } => {
            json!({ "event": "crashed", "guest": &*client.name, "id": client.id, "message": message })
        }
        Event::AttachFailed { why } => json!({ "event": "attach_failed", "why": why }),
        Event::ListenerFailed { path, why } => {
            json!({ "event": "listener_failed", "path": path, "why": why })
        }
        // Events may be added; those that this command does not know it does not tell.
        _ => return None,
    })
}
