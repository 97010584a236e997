//! Tells [`trace`](crate::trace) what each call and message does. Without the feature `test-utils` nothing is here.

/// What a call or message is for.
#[cfg_attr(not(feature = "test-utils"), expect(dead_code, reason = "looked at by nobody"))]
pub(super) enum For {
    /// The connection.
    Connection,
    /// The connection and all that belongs to it.
    All,
    /// A channel.
    Channel(u32),
    /// A page list.
    Gpadl(u32),
    /// A page list that is to be created.
    NewGpadl,
}

/// What the client was before the last call or message.
#[derive(Debug, Default)]
pub(super) struct Watch(#[cfg(feature = "test-utils")] Option<seen::Before>);

#[cfg(not(feature = "test-utils"))]
mod unseen {
    use super::super::Client;
    use super::{For, Watch};
    use crate::client::{Answer, AskId};
    use crate::message::Message;

    impl Client {
        pub(in super::super) fn watch(&mut self, _event: &'static str, _what: For) {}

        pub(in super::super) fn watch_answer(&mut self, _id: AskId, _answer: Answer) {}

        pub(in super::super) fn watch_message(&mut self, _message: Option<&Message<'_>>) {}

        pub(in super::super) fn watched(&mut self) {
            let Watch() = self.watch;
        }
    }
}

#[cfg(feature = "test-utils")]
mod seen {
    use alloc::collections::BTreeMap;

    use super::super::connection::State;
    use super::super::pause::Pausing;
    use super::super::policy::Subject;
    use super::super::{Answer, AskId, ChannelState, Client, ClientAction};
    use super::For;
    use crate::message::{Direction, Message};
    use crate::trace::{self, End, Item, Machine};

    type Event = &'static str;

    /// States of everything.
    #[derive(Debug, Default)]
    struct Snapshot {
        connection: &'static str,
        channels: BTreeMap<u32, &'static str>,
        lists: BTreeMap<u32, (/* channel */ u32, &'static str)>,
    }

    #[derive(Debug)]
    pub(super) struct Before {
        event: Event,
        heard: Option<u32>,
        was: Snapshot,
        connection: bool,
        all: bool,
        channel: Option<u32>,
        lists_of: Option<u32>,
        list: Option<u32>,
        new_list: bool,
    }

    impl Client {
        /// Notes what a call is about to change.
        pub(in super::super) fn watch(&mut self, event: Event, what: For) {
            self.watched();
            if trace::is_on() {
                self.watch.0 = Some(self.before(event, &what, None));
            }
        }

        pub(in super::super) fn watch_answer(&mut self, id: AskId, answer: Answer) {
            self.watched();
            let event = match answer {
                Answer::Allow => "policy allows",
                Answer::Deny(_) => "policy denies",
            };
            match self.questions.subject(id) {
                Some(Subject::Version) => self.watch(event, For::Connection),
                Some(Subject::Offer { relid, .. } | Subject::Open { relid }) => {
                    self.watch(event, For::Channel(relid));
                }
                Some(Subject::Share { gpadl }) => self.watch(event, For::Gpadl(gpadl)),
                None => {}
            }
        }

        pub(in super::super) fn watch_message(&mut self, message: Option<&Message<'_>>) {
            self.watched();
            if !trace::is_on() {
                return;
            }
            let Some(message) = message else { return self.watch("nonsense", For::Connection) };
            let what = match message {
                Message::OfferChannel(message) => For::Channel(message.relid.get()),
                Message::RescindChannelOffer(message) => For::Channel(message.relid.get()),
                Message::OpenChannelResult(message) => For::Channel(message.relid.get()),
                Message::CloseReservedResponse(message) => For::Channel(message.relid.get()),
                Message::ModifyChannelResponse(message) => For::Channel(message.relid.get()),
                Message::GpadlCreated(message) => For::Gpadl(message.gpadl.get()),
                Message::GpadlTorndown(message) => For::Gpadl(message.gpadl.get()),
                Message::UnloadResponse(_) => For::All,
                _ => For::Connection,
            };
            let info = message.info();
            self.watch.0 = Some(self.before(info.name, &what, Some(info.number)));
        }

        fn before(&self, event: Event, what: &For, heard: Option<u32>) -> Before {
            let mut before = Before {
                event,
                heard,
                was: self.snapshot(),
                connection: false,
                all: false,
                channel: None,
                lists_of: None,
                list: None,
                new_list: false,
            };
            match what {
                For::Connection => before.connection = true,
                For::All => (before.connection, before.all) = (true, true),
                For::Channel(relid) => {
                    before.channel = Some(*relid);
                    if ["RESCIND_CHANNELOFFER", "CLOSE_RESERVED_RESPONSE"].contains(&event) {
                        before.lists_of = Some(*relid);
                    }
                }
                For::Gpadl(gpadl) => before.list = Some(*gpadl),
                For::NewGpadl => before.new_list = true,
            }
            before
        }

        /// Tells what the last call or message has changed.
        pub(in super::super) fn watched(&mut self) {
            let Some(before) = self.watch.0.take() else { return };
            let (event, was, now) = (before.event, &before.was, self.snapshot());
            let step = |machine, state, next| trace::see(Item::Step { machine, state, event, next });
            let channel =
                |snapshot: &Snapshot, relid| snapshot.channels.get(&relid).copied().unwrap_or("None");
            let list =
                |snapshot: &Snapshot, gpadl| snapshot.lists.get(&gpadl).map_or("None", |(_, state)| *state);
            if let Some(number) = before.heard {
                trace::see(Item::Heard { end: End::Guest, number });
            }
            let for_channel = before.channel.is_some() || before.list.is_some();
            if before.connection {
                step(Machine::ClientConnection, was.connection, now.connection);
            } else if before.heard.is_some() && for_channel {
                trace::see(Item::Step {
                    machine: Machine::ClientConnection,
                    state: was.connection,
                    event: "message for a channel",
                    next: now.connection,
                });
            }
            if let Some(relid) = before.channel {
                step(Machine::ClientChannel, channel(was, relid), channel(&now, relid));
            }
            if let Some(gpadl) = before.list {
                step(Machine::ClientGpadl, list(was, gpadl), list(&now, gpadl));
            }
            if before.new_list {
                let new = now.lists.iter().find(|(gpadl, _)| !was.lists.contains_key(gpadl));
                step(Machine::ClientGpadl, "None", new.map_or("None", |(_, (_, state))| *state));
            }
            for (gpadl, (relid, state)) in &was.lists {
                if before.all || before.lists_of == Some(*relid) {
                    step(Machine::ClientGpadl, state, list(&now, *gpadl));
                }
            }
            for (relid, state) in &was.channels {
                if before.all {
                    step(Machine::ClientChannel, state, channel(&now, *relid));
                }
            }
            for action in &self.actions {
                if let ClientAction::Post { payload, .. } = action
                    && let Ok(message) = Message::parse(payload, Direction::ToHost, None)
                {
                    trace::see(Item::Said { end: End::Guest, number: message.info().number });
                }
            }
            if let Some(connection) = self.connection() {
                trace::see_agreement(End::Guest, connection.version, connection.features);
            }
        }

        fn snapshot(&self) -> Snapshot {
            let connection = match &self.connection {
                State::Disconnected => "Disconnected",
                State::Asking { .. } => "Asking",
                State::Contacting { .. } => "Contacting",
                State::Connected { pause: Pausing::No, .. } => "Connected",
                State::Connected { pause: Pausing::Asked, .. } => "Pausing",
                State::Connected { pause: Pausing::Paused, .. } => "Paused",
                State::Unloading { .. } => "Unloading",
            };
            let channel = |state| match state {
                ChannelState::Proposed => "Proposed",
                ChannelState::Closed => "Closed",
                ChannelState::Opening => "Opening",
                ChannelState::Open => "Open",
                ChannelState::OpenReserved => "OpenReserved",
                ChannelState::ClosingReserved => "ClosingReserved",
                ChannelState::Rescinded => "Rescinded",
            };
            let channels = self.channels().map(|info| (info.offer.relid, channel(info.state))).collect();
            Snapshot { connection, channels, lists: self.gpadls.states() }
        }
    }
}
