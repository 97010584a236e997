//! A client as saved state: what it holds, told in the encoding of [`saved`](crate::saved).

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use super::channel::{Channel, Channels, State as ChannelState};
use super::connection::{Offers, State};
use super::gpadl::State as ListState;
use super::pause::{Held, Pausing};
use super::policy::Subject;
use super::{AnswerSlot, AskId, Client, ClientAction, Connection, OfferInfo};
use crate::saved::parts::{self, Nothing, Pages, trimmed};
use crate::saved::{SaveError, SavedClient, client as saved};

impl Client {
    /// The state at this moment; the client goes on. All actions must have been taken: questions that wait for an
    /// answer come again after [`Self::restore`], what the others said is the caller's to keep.
    pub fn save(&self) -> Result<SavedClient, SaveError> {
        // Whoever adds a field decides here whether it is saved.
        let Self { config: _, connection, channels, gpadls, questions, actions, watch: _ } = self;
        if !actions.is_empty() {
            return Err(SaveError::ActionsWaiting(actions.len()));
        }
        let Channels { by_relid: _, last_open_id, left_behind } = channels;
        let list = |(gpadl, (relid, state)): (&u32, &(u32, ListState))| save_list(*relid, *gpadl, state);
        Ok(SavedClient::new(saved::Client {
            connection: Some(save_connection(connection)),
            channels: channels.iter().map(|channel| self.save_channel(channel)).collect(),
            page_lists: gpadls.by_name.iter().map(list).collect(),
            held: held(connection),
            last_question: questions.last,
            last_open_id: *last_open_id,
            last_gpadl: gpadls.last_name,
            gpadls_wrapped: gpadls.wrapped,
            left_behind: left_behind.as_ref().map(save_agreed),
            kind: 0,
        }))
    }

    fn save_channel(&self, channel: &Channel) -> saved::Channel {
        let Channel { offer, state, modifying } = channel;
        let initial = |asked: &AskId| {
            matches!(self.questions.waiting.get(asked), Some(Subject::Offer { initial: true, .. }))
        };
        let state = match state {
            ChannelState::Proposed(asked) => {
                saved::State::Proposed(saved::Proposed { question: asked.0, initial: initial(asked) })
            }
            ChannelState::Closed => saved::State::Closed(Nothing {}),
            ChannelState::Asked { asked, message, reserved } => saved::State::Asked(saved::Asked {
                question: asked.0,
                message: message.as_bytes().into(),
                reserved: reserved.map(save_slot),
            }),
            ChannelState::Opening { open_id, ring_gpadl, cancelled, reserved } => {
                saved::State::Opening(saved::Opening {
                    open_id: *open_id,
                    ring_gpadl: *ring_gpadl,
                    cancelled: *cancelled,
                    reserved: reserved.map(save_slot),
                })
            }
            ChannelState::Open { ring_gpadl } => saved::State::Open(*ring_gpadl),
            ChannelState::OpenReserved { ring_gpadl, answers } => {
                let answers = Some(save_slot(*answers));
                saved::State::OpenReserved(saved::OpenReserved { ring_gpadl: *ring_gpadl, answers })
            }
            ChannelState::ClosingReserved { ring_gpadl } => saved::State::ClosingReserved(*ring_gpadl),
            ChannelState::Rescinded => saved::State::Rescinded(Nothing {}),
        };
        saved::Channel { offer: Some(save_offer(offer)), modifying: *modifying, state: Some(state) }
    }
}

fn save_connection(state: &State) -> saved::Connection {
    match state {
        State::Disconnected => saved::Connection::Disconnected(Nothing {}),
        State::Asking { asked, version, lowest } => saved::Connection::Asking(saved::Trying {
            version: version.word(),
            lowest: lowest.word(),
            question: asked.map_or(0, |asked| asked.0),
        }),
        State::Contacting { version, lowest } => saved::Connection::Contacting(saved::Trying {
            version: version.word(),
            lowest: lowest.word(),
            question: 0,
        }),
        State::Connected { connection, offers, modifying, pause, held: _ } => {
            let offers = match offers {
                Offers::NotRequested => saved::Offers::NotRequested,
                Offers::Requested => saved::Offers::Requested,
                Offers::Deciding => saved::Offers::Deciding,
                Offers::Delivered => saved::Offers::Delivered,
            };
            let pause = match pause {
                Pausing::No => saved::Pausing::No,
                Pausing::Asked => saved::Pausing::Asked,
                Pausing::Paused => saved::Pausing::Paused,
            };
            saved::Connection::Connected(saved::Connected {
                agreed: Some(save_agreed(connection)),
                offers: offers.into(),
                modifying: modifying.map(|pages| saved::Modifying { pages: pages.map(Into::into) }),
                pause: pause.into(),
            })
        }
        State::Unloading { connection } => saved::Connection::Unloading(save_agreed(connection)),
    }
}

fn save_agreed(connection: &Connection) -> saved::Agreed {
    let Connection { version, features, message_connection_id, interrupt_page, monitor_pages } = connection;
    saved::Agreed {
        version: version.word(),
        features: features.bits(),
        message_connection_id: *message_connection_id,
        interrupt_page: *interrupt_page,
        monitor_pages: monitor_pages.map(Into::into),
    }
}

fn save_slot(slot: AnswerSlot) -> parts::Address {
    let AnswerSlot { vp, sint } = slot;
    parts::Address { vp, sint: sint.into() }
}

fn held(state: &State) -> Vec<saved::Held> {
    let State::Connected { held: Held { posts, released: _ }, .. } = state else { return Vec::new() };
    // Nothing but messages is held back.
    let message = |action: &ClientAction| match action {
        ClientAction::Post { connection_id, payload } => {
            Some(saved::Held { connection_id: *connection_id, payload: payload.to_vec() })
        }
        _ => None,
    };
    posts.iter().filter_map(message).collect()
}

fn save_offer(offer: &OfferInfo) -> saved::Offer {
    let OfferInfo {
        relid,
        class,
        instance,
        flags,
        mmio_megabytes,
        mmio_megabytes_optional,
        user_defined,
        subchannel_index,
        monitor,
        is_dedicated,
        connection_id,
    } = offer;
    saved::Offer {
        relid: *relid,
        class: class.to_wire().into(),
        instance: instance.to_wire().into(),
        flags: flags.bits().into(),
        mmio_megabytes: (*mmio_megabytes).into(),
        mmio_megabytes_optional: (*mmio_megabytes_optional).into(),
        user_defined: trimmed(user_defined),
        subchannel_index: (*subchannel_index).into(),
        monitor: monitor.map(u32::from),
        is_dedicated: *is_dedicated,
        connection_id: *connection_id,
    }
}

fn save_list(relid: u32, gpadl: u32, state: &ListState) -> saved::PageList {
    let list = match state {
        ListState::Asked { asked, pages } => {
            saved::List::Asked(saved::AskedList { question: asked.0, pages: Some(Pages::complete(pages)) })
        }
        ListState::Creating { cancelled } => saved::List::Creating(saved::Creating { cancelled: *cancelled }),
        ListState::Created => saved::List::Created(Nothing {}),
        ListState::TearingDown => saved::List::TearingDown(Nothing {}),
    };
    saved::PageList { relid, gpadl, list: Some(list) }
}
