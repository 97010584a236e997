//! What a run has seen: states, messages, actions. A campaign says nothing about what never happened in it.

use std::collections::BTreeMap;
use std::fmt;

use vmbus_core::message::MESSAGES;
use vmbus_core::{client, server};

/// Numbers the states of an enum, with their names; one more stands for "not there".
macro_rules! states {
    ($names:ident $index:ident $type:ty { $($number:literal $variant:ident,)* } $absent:literal) => {
        const $names: [&str; $absent + 1] = [$(stringify!($variant),)* "Absent"];

        fn $index(state: Option<$type>) -> usize {
            match state {
                $(Some(<$type>::$variant) => $number,)*
                None => $absent,
            }
        }
    };
}

states! { SERVER_STATES server_index server::ChannelState {
    0 ClientReleased,
    1 Closed,
    2 Opening,
    3 Open,
    4 OpenReserved,
    5 Closing,
    6 ClosingReopen,
    7 OpeningClientRelease,
    8 ClosingClientRelease,
    9 Revoked,
    10 Reoffered,
} 11 }

states! { CLIENT_STATES client_index client::ChannelState {
    0 Proposed,
    1 Closed,
    2 Opening,
    3 Open,
    4 OpenReserved,
    5 ClosingReserved,
    6 Rescinded,
} 7 }

/// Counts of what happened.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    server: [[u64; SERVER_STATES.len()]; SERVER_STATES.len()],
    client: [[u64; CLIENT_STATES.len()]; CLIENT_STATES.len()],
    /// By number.
    messages: [u64; 32],
    others: BTreeMap<&'static str, u64>,
    actions: BTreeMap<&'static str, u64>,
    /// Steps of the simulation: messages, answers, doorbells and all else that takes a lane.
    pub steps: u64,
    /// Requests that guests sent.
    pub requests: u64,
    /// Those of them that were completed; the others ended with their channel.
    pub completed: u64,
}

impl Coverage {
    pub(super) fn server_state(
        &mut self,
        from: Option<server::ChannelState>,
        to: Option<server::ChannelState>,
    ) {
        self.server[server_index(from)][server_index(to)] += 1;
    }

    pub(super) fn client_state(
        &mut self,
        from: Option<client::ChannelState>,
        to: Option<client::ChannelState>,
    ) {
        self.client[client_index(from)][client_index(to)] += 1;
    }

    /// A message was delivered.
    pub(super) fn message(&mut self, payload: &[u8]) {
        if let Some(count) = payload.first().and_then(|number| self.messages.get_mut(usize::from(*number))) {
            *count += 1;
        }
    }

    /// An action had an effect.
    pub(super) fn action(&mut self, word: &'static str) {
        *self.actions.entry(word).or_default() += 1;
    }

    /// Something else that is worth knowing.
    pub(super) fn saw(&mut self, what: &'static str) {
        *self.others.entry(what).or_default() += 1;
    }

    /// How often an action had an effect.
    pub fn actions(&self, word: &str) -> u64 {
        self.actions.get(word).copied().unwrap_or(0)
    }

    /// How often a message was delivered, by its name in the specification.
    pub fn messages(&self, name: &str) -> u64 {
        let number = MESSAGES.iter().position(|info| info.name == name).map_or(0, |index| index + 1);
        self.messages.get(number).copied().unwrap_or(0)
    }

    /// How often a channel of a root came into a state, by the state's name.
    pub fn server_states(&self, name: &str) -> u64 {
        let index = SERVER_STATES.iter().position(|known| *known == name);
        index.map_or(0, |to| self.server.iter().map(|row| row[to]).sum())
    }

    /// Number of different transitions of channels that were seen, at the root and at the guest.
    pub fn transitions(&self) -> (usize, usize) {
        let seen = |rows: &[u64]| rows.iter().filter(|count| **count > 0).count();
        (seen(self.server.as_flattened()), seen(self.client.as_flattened()))
    }

    /// Adds what another run has seen.
    pub fn add(&mut self, other: &Self) {
        let pairs = self.server.as_flattened_mut().iter_mut().zip(other.server.as_flattened());
        let pairs = pairs.chain(self.client.as_flattened_mut().iter_mut().zip(other.client.as_flattened()));
        let pairs = pairs.chain(self.messages.iter_mut().zip(&other.messages));
        for (mine, theirs) in pairs {
            *mine += theirs;
        }
        for (word, count) in &other.others {
            *self.others.entry(word).or_default() += count;
        }
        for (word, count) in &other.actions {
            *self.actions.entry(word).or_default() += count;
        }
        self.steps += other.steps;
        self.requests += other.requests;
        self.completed += other.completed;
    }

    /// Every count with its name, for machines.
    pub fn entries(&self) -> Vec<(String, u64)> {
        let mut entries = vec![
            ("steps".to_owned(), self.steps),
            ("requests".to_owned(), self.requests),
            ("completed".to_owned(), self.completed),
        ];
        for (from, row) in SERVER_STATES.iter().zip(&self.server) {
            let seen = SERVER_STATES.iter().zip(row).filter(|(_, count)| **count > 0);
            entries.extend(seen.map(|(to, count)| (format!("server {from} -> {to}"), *count)));
        }
        for (from, row) in CLIENT_STATES.iter().zip(&self.client) {
            let seen = CLIENT_STATES.iter().zip(row).filter(|(_, count)| **count > 0);
            entries.extend(seen.map(|(to, count)| (format!("client {from} -> {to}"), *count)));
        }
        for info in MESSAGES {
            entries.push((format!("message {}", info.name), self.messages(info.name)));
        }
        entries.extend(self.actions.iter().map(|(word, count)| (format!("action {word}"), *count)));
        entries.extend(self.others.iter().map(|(word, count)| (format!("saw {word}"), *count)));
        entries
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (server, client) = self.transitions();
        writeln!(
            formatter,
            "{} steps, {} requests ({} completed, the others ended with their channel), {server} transitions of \
             channels at roots and {client} at guests",
            self.steps, self.requests, self.completed
        )?;
        for (name, count) in self.entries().iter().skip(3) {
            writeln!(formatter, "{count:>14}  {name}")?;
        }
        Ok(())
    }
}
