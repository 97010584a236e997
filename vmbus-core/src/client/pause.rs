//! Pauses: the host is to be silent, and hears nothing of us but what ends the pause.

use alloc::collections::{BTreeSet, VecDeque};

use super::connection::State;
use super::watch::For;
use super::{Client, ClientAction, ClientError, Fault};
use crate::message::{Direction, Message, Pause, Resume};

/// Whether the host is to be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pausing {
    No,
    Asked,
    Paused,
}

/// What we do not say while the host is to be silent, as it would not hear it.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) posts: VecDeque<ClientAction>,
    /// Channel ids among them that we give back: ours until the host hears of it.
    pub(super) released: BTreeSet<u32>,
}

impl Client {
    /// Posts a message on the present connection; all but what ends a pause waits while there is one.
    pub(super) fn post<'a>(&mut self, message: impl Into<Message<'a>>) {
        let message = message.into();
        let State::Connected { connection, pause, held, .. } = &mut self.connection else { return };
        let action = ClientAction::Post {
            connection_id: connection.message_connection_id,
            payload: message.encode(connection.version, connection.features),
        };
        match (*pause, message) {
            (Pausing::No, _) | (_, Message::Resume(_) | Message::Unload(_)) => self.act(action),
            (Pausing::Asked | Pausing::Paused, message) => {
                if let Message::RelidReleased(released) = message {
                    held.released.insert(released.relid.get());
                }
                held.posts.push_back(action);
            }
        }
    }

    /// Number of messages that wait for the end of a pause.
    pub(super) fn held(&self) -> usize {
        match &self.connection {
            State::Connected { held, .. } => held.posts.len(),
            State::Disconnected
            | State::Asking { .. }
            | State::Contacting { .. }
            | State::Unloading { .. } => 0,
        }
    }

    /// Whether the host cannot know yet that we gave this channel id back.
    pub(super) fn holds_release_of(&self, relid: u32) -> bool {
        matches!(&self.connection, State::Connected { held, .. } if held.released.contains(&relid))
    }

    /// What is not said because of a pause and is worth saying after UNLOAD: reserved channels stay open otherwise.
    pub(super) fn held_closes_of_reserved(&mut self) -> VecDeque<ClientAction> {
        let State::Connected { held, .. } = &mut self.connection else { return VecDeque::new() };
        let mut posts = core::mem::take(&mut held.posts);
        posts.retain(|post| match post {
            ClientAction::Post { payload, .. } => matches!(
                Message::parse(payload, Direction::ToHost, None),
                Ok(Message::CloseReservedChannel(_))
            ),
            _ => false,
        });
        posts
    }

    /// Asks the host to be silent until [`Self::resume`]. Nothing else can be asked of it meanwhile but to unload.
    pub fn pause(&mut self) -> Result<(), ClientError> {
        self.watch("pause()", For::Connection);
        self.negotiated(&Pause {}.into())?;
        self.post(Pause {});
        if let State::Connected { pause, .. } = &mut self.connection {
            *pause = Pausing::Asked;
        }
        Ok(())
    }

    pub(super) fn paused(&mut self) {
        match &mut self.connection {
            State::Connected { pause: pause @ Pausing::Asked, .. } => {
                *pause = Pausing::Paused;
                self.act(ClientAction::Paused);
            }
            State::Connected { .. }
            | State::Disconnected
            | State::Asking { .. }
            | State::Contacting { .. }
            | State::Unloading { .. } => self.fault(Fault::Unexpected { message: "PAUSE_RESPONSE" }),
        }
    }

    /// Lets the host speak again, once it is [`ClientAction::Paused`].
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.watch("resume()", For::Connection);
        let held = match &mut self.connection {
            State::Connected { pause: pause @ Pausing::Paused, held, .. } => {
                *pause = Pausing::No;
                core::mem::take(held)
            }
            State::Connected { .. }
            | State::Disconnected
            | State::Asking { .. }
            | State::Contacting { .. }
            | State::Unloading { .. } => return Err(ClientError::Connection("not paused")),
        };
        self.post(Resume {});
        self.actions.extend(held.posts);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Answer, AskId, ClientConfig, Fault, Policy};
    use crate::message::{
        AllOffersDelivered, OfferChannel, PauseResponse, RescindChannelOffer, VersionResponse,
    };
    use crate::{FeatureFlags, Status, Version};
    use std::vec::Vec;
    use zerocopy::little_endian::U32;

    fn hear<'a>(client: &mut Client, message: impl Into<Message<'a>>) {
        client.handle_message(&message.into().encode(Version::NEWEST, FeatureFlags::PAUSE_RESUME));
    }

    fn offer(relid: u32) -> OfferChannel {
        OfferChannel { relid: U32::new(relid), ..Default::default() }
    }

    fn actions(client: &mut Client) -> Vec<ClientAction> {
        core::iter::from_fn(|| client.poll_action()).collect()
    }

    /// Numbers of the messages that are posted.
    fn posts(client: &mut Client) -> Vec<u32> {
        let number = |action| match action {
            ClientAction::Post { payload, .. } => {
                Message::parse(&payload, Direction::ToHost, None).ok().map(|message| message.info().number)
            }
            _ => None,
        };
        actions(client).into_iter().filter_map(number).collect()
    }

    /// A client whose policy has not decided about channel 1, and that has asked the host to be silent.
    fn pausing() -> (Client, AskId) {
        let config = ClientConfig { policy: Policy::Ask, ..ClientConfig::default() };
        let mut client = Client::new(config);
        client.connect(Version::NEWEST..=Version::NEWEST).unwrap();
        let Some(ClientAction::Ask { id, .. }) = client.poll_action() else { panic!("no question") };
        client.decided(id, Answer::Allow);
        let response = VersionResponse {
            supported: 1,
            version_or_connection_id: U32::new(4),
            features: U32::new(FeatureFlags::PAUSE_RESUME.bits()),
            ..Default::default()
        };
        hear(&mut client, response);
        client.request_offers().unwrap();
        hear(&mut client, offer(1));
        hear(&mut client, AllOffersDelivered {});
        client.pause().unwrap();
        let asked = actions(&mut client).into_iter().find_map(|action| match action {
            ClientAction::Ask { id, .. } => Some(id),
            _ => None,
        });
        (client, asked.unwrap())
    }

    #[test]
    fn what_policy_decides_during_a_pause_is_said_after_it() {
        let (mut client, asked) = pausing();
        client.decided(asked, Answer::Deny(Status::ACCESS_DENIED));
        assert_eq!(posts(&mut client), [], "a host that is paused drops it");
        hear(&mut client, PauseResponse {});
        client.resume().unwrap();
        assert_eq!(posts(&mut client), [29, 13], "RESUME, then RELID_RELEASED");
    }

    #[test]
    fn a_rescind_that_crosses_a_pause_is_answered_after_it() {
        let (mut client, _) = pausing();
        hear(&mut client, RescindChannelOffer { relid: U32::new(1) });
        hear(&mut client, PauseResponse {});
        assert_eq!(posts(&mut client), []);
        client.resume().unwrap();
        assert_eq!(posts(&mut client), [29, 13]);
    }

    #[test]
    fn a_host_cannot_make_held_messages_grow() {
        let (mut client, asked) = pausing();
        client.decided(asked, Answer::Deny(Status::ACCESS_DENIED));
        hear(&mut client, offer(1));
        let last = actions(&mut client).pop();
        assert!(matches!(last, Some(ClientAction::Fault(Fault::BadOffer { relid: 1, .. }))), "{last:?}");
    }

    #[test]
    fn unload_ends_a_pause() {
        let (mut client, asked) = pausing();
        client.decided(asked, Answer::Deny(Status::ACCESS_DENIED));
        client.unload().unwrap();
        assert_eq!(posts(&mut client), [16], "UNLOAD alone");
    }
}
