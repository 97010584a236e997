//! Tells [`trace`](crate::trace) what each input does. Without the feature `test-utils` nothing is here.

/// What the server was before its last input.
#[derive(Debug, Default)]
pub(super) struct Watch(#[cfg(feature = "test-utils")] Option<seen::Before>);

#[cfg(not(feature = "test-utils"))]
mod unseen {
    use super::super::{Server, ServerInput};
    use super::Watch;

    impl Server {
        pub(in super::super) fn watch(&mut self, _input: &ServerInput<'_>) {}

        pub(in super::super) fn watched(&mut self) {
            let Watch() = self.watch;
        }
    }
}

#[cfg(feature = "test-utils")]
mod seen {
    use alloc::vec::Vec;

    use super::super::connection::{Connected, State, Then};
    use super::super::question::Subject;
    use super::super::{Answer, ChannelState, DeviceKey, Server, ServerAction, ServerInput};
    use crate::message::{Direction, Message, to_guest};
    use crate::trace::{self, End, Item, Machine};

    type Event = &'static str;

    #[derive(Debug)]
    pub(super) struct Before {
        heard: Option<u32>,
        connection: Option<(&'static str, Event)>,
        channels: Vec<(DeviceKey, &'static str, Event)>,
        lists: Vec<((u32, u32), &'static str, Event)>,
    }

    impl Server {
        /// Notes what an input is about to change.
        pub(in super::super) fn watch(&mut self, input: &ServerInput<'_>) {
            self.watched();
            if !trace::is_on() {
                return;
            }
            let mut before =
                Before { heard: None, connection: None, channels: Vec::new(), lists: Vec::new() };
            self.expect(input, &mut before);
            self.watch.0 = Some(before);
        }

        /// Tells what the last input has changed.
        pub(in super::super) fn watched(&mut self) {
            let Some(before) = self.watch.0.take() else { return };
            let step = |machine, state, event, next| trace::see(Item::Step { machine, state, event, next });
            if let Some(number) = before.heard {
                trace::see(Item::Heard { end: End::Host, number });
            }
            if let Some((state, event)) = before.connection {
                step(Machine::ServerConnection, state, event, self.connection_state());
            }
            for (device, state, event) in before.channels {
                step(Machine::ServerChannel, state, event, self.channel_state(device));
            }
            for (name, state, event) in before.lists {
                step(Machine::ServerGpadl, state, event, self.gpadls.state(name));
            }
            for action in &self.actions {
                if let ServerAction::Send { payload, .. } = action
                    && let Ok(message) = Message::parse(payload, Direction::ToGuest, None)
                {
                    trace::see(Item::Said { end: End::Host, number: message.info().number });
                }
            }
            if let Some(connection) = self.connection() {
                trace::see_agreement(End::Host, connection.version, connection.features);
            }
        }

        fn expect(&self, input: &ServerInput<'_>, before: &mut Before) {
            let mut event = |event| before.connection = Some((self.connection_state(), event));
            match input {
                ServerInput::Message { connection_id, payload } => {
                    if self.config.takes_messages_on(*connection_id)
                        && let Ok(message) = self.connection.parse(payload)
                    {
                        self.expect_message(&message, before);
                    } else {
                        event("nonsense");
                    }
                }
                ServerInput::Offer { device, .. } => {
                    event("device offered");
                    before.channels.push((*device, self.channel_state(*device), "device offered"));
                }
                ServerInput::Rescind { device } => {
                    event("device withdrawn");
                    self.expect_for(*device, "device withdrawn", before);
                    self.expect_for_lists(self.relid(*device), "device withdrawn", before);
                    self.expect_for_subchannels(*device, before);
                }
                ServerInput::Opened { relid, result } => {
                    event("device answers");
                    let opened = if result.is_ok() { "device opened" } else { "device refused" };
                    self.expect_for_relid(*relid, opened, before);
                }
                ServerInput::Closed { relid } => {
                    event("device answers");
                    self.expect_for_relid(*relid, "device closed", before);
                    let device = self.channels.owner(*relid);
                    let channel = device.and_then(|device| self.channels.get(device));
                    if let Some(gpadl) = channel.and_then(|channel| channel.ring_gpadl()) {
                        self.expect_for_list((*relid, gpadl), "channel closed", before);
                    }
                }
                ServerInput::GpadlReleased { relid, gpadl } => {
                    event("device answers");
                    self.expect_for_relid(*relid, "pages returned", before);
                    self.expect_for_list((*relid, *gpadl), "pages returned", before);
                }
                ServerInput::Decided { id, answer } => {
                    let answer = match answer {
                        Answer::Allow => "policy allows",
                        Answer::Deny(_) => "policy denies",
                    };
                    match self.questions.subject(*id) {
                        Some(Subject::Version) => event(answer),
                        Some(Subject::Offer { device, .. } | Subject::Open { device }) => {
                            self.expect_for(device, answer, before);
                        }
                        Some(Subject::Share { relid, gpadl }) => {
                            self.expect_for_list((relid, gpadl), answer, before);
                        }
                        None => {}
                    }
                }
                ServerInput::ConnectResult { .. } => event("connect answered"),
                // Goes on with what was saved; the states are those from before.
                ServerInput::Restored { .. } => {}
                ServerInput::Reset => {
                    event("reset");
                    self.expect_for_all("reset", before);
                }
            }
        }

        fn expect_message(&self, message: &Message<'_>, before: &mut Before) {
            before.heard = Some(message.info().number);
            let reaches = self.connection.forbids(message).is_none();
            let name = message.info().name;
            let mut event = |event| before.connection = Some((self.connection_state(), event));
            match message {
                Message::InitiateContact(_) | Message::Unload(_) | Message::RequestOffers(_) => {
                    event(name);
                    // A contact that is dropped ends nothing; the states after it show that.
                    if reaches {
                        self.expect_for_all(name, before);
                    }
                }
                Message::ModifyConnection(_)
                | Message::TlConnectRequest(_)
                | Message::Pause(_)
                | Message::Resume(_) => event(name),
                Message::OpenChannel(_)
                | Message::CloseChannel(_)
                | Message::ModifyChannel(_)
                | Message::RelidReleased(_)
                | Message::OpenReservedChannel(_)
                | Message::CloseReservedChannel(_) => {
                    let relid = match message {
                        Message::OpenChannel(message) => message.relid,
                        Message::CloseChannel(message) => message.relid,
                        Message::ModifyChannel(message) => message.relid,
                        Message::RelidReleased(message) => message.relid,
                        Message::OpenReservedChannel(message) => message.relid,
                        Message::CloseReservedChannel(message) => message.relid,
                        _ => return,
                    };
                    let for_connection = matches!(message, Message::CloseReservedChannel(_));
                    event(if for_connection { name } else { "message for a channel" });
                    if reaches {
                        self.expect_for_relid(relid.get(), name, before);
                        let device = self.channels.owner(relid.get());
                        match message {
                            Message::RelidReleased(_) => {
                                self.expect_for_lists(Some(relid.get()), name, before);
                            }
                            Message::CloseChannel(_) | Message::CloseReservedChannel(_) => {
                                device
                                    .into_iter()
                                    .for_each(|device| self.expect_for_subchannels(device, before));
                            }
                            _ => {}
                        }
                    }
                }
                Message::GpadlHeader(header, _) => {
                    event("message for a channel");
                    if reaches {
                        self.expect_for_list((header.relid.get(), header.gpadl.get()), name, before);
                    }
                }
                Message::GpadlBody(body, _) => {
                    event("message for a channel");
                    if reaches {
                        let relid = self.gpadls.half_built_on(body.gpadl.get()).unwrap_or(0);
                        self.expect_for_list((relid, body.gpadl.get()), name, before);
                    }
                }
                Message::GpadlTeardown(teardown) => {
                    event("message for a channel");
                    if reaches {
                        self.expect_for_list((teardown.relid.get(), teardown.gpadl.get()), name, before);
                    }
                }
                to_guest!() => event("nonsense"),
            }
        }

        fn expect_for_all(&self, event: Event, before: &mut Before) {
            for (device, _) in self.channels.iter() {
                self.expect_for(*device, event, before);
                if event != "REQUESTOFFERS" {
                    self.expect_for_lists(self.relid(*device), event, before);
                }
            }
        }

        fn expect_for_subchannels(&self, primary: DeviceKey, before: &mut Before) {
            for device in self.channels.subchannels(primary) {
                self.expect_for(device, "primary withdrawn or closed", before);
            }
        }

        fn expect_for_relid(&self, relid: u32, event: Event, before: &mut Before) {
            match self.channels.owner(relid) {
                Some(device) => self.expect_for(device, event, before),
                None => trace::see(Item::Step {
                    machine: Machine::ServerChannel,
                    state: "None",
                    event,
                    next: "None",
                }),
            }
        }

        fn expect_for(&self, device: DeviceKey, event: Event, before: &mut Before) {
            before.channels.push((device, self.channel_state(device), event));
        }

        fn expect_for_lists(&self, relid: Option<u32>, event: Event, before: &mut Before) {
            let Some(relid) = relid else { return };
            for gpadl in self.gpadls.of_channel(relid) {
                self.expect_for_list((relid, gpadl), event, before);
            }
        }

        fn expect_for_list(&self, name: (u32, u32), event: Event, before: &mut Before) {
            before.lists.push((name, self.gpadls.state(name), event));
        }

        fn relid(&self, device: DeviceKey) -> Option<u32> {
            self.channels.get(device)?.relid
        }

        fn channel_state(&self, device: DeviceKey) -> &'static str {
            match self.channels.get(device).map(|channel| channel.state()) {
                None => "None",
                Some(ChannelState::ClientReleased) => "ClientReleased",
                Some(ChannelState::Closed) => "Closed",
                Some(ChannelState::Opening) => "Opening",
                Some(ChannelState::Open) => "Open",
                Some(ChannelState::OpenReserved) => "OpenReserved",
                Some(ChannelState::Closing) => "Closing",
                Some(ChannelState::ClosingReopen) => "ClosingReopen",
                Some(ChannelState::OpeningClientRelease) => "OpeningClientRelease",
                Some(ChannelState::ClosingClientRelease) => "ClosingClientRelease",
                Some(ChannelState::Revoked) => "Revoked",
                Some(ChannelState::Reoffered) => "Reoffered",
            }
        }

        fn connection_state(&self) -> &'static str {
            match &self.connection {
                State::Disconnected => "Disconnected",
                State::Connecting { .. } => "Connecting",
                State::Connected(Connected { held: None, .. }) => "Connected",
                State::Connected(Connected { held: Some(_), .. }) => "Paused",
                State::Disconnecting { then: Then::Unloaded(_) } => "Unloading",
                State::Disconnecting { then: Then::Contact(_) } => "Replacing",
                State::Disconnecting { then: Then::Quiet } => "Resetting",
                State::Unloaded => "Unloaded",
            }
        }
    }
}
