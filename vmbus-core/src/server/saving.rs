//! A server as saved state: what it holds, told in the encoding of [`saved`](crate::saved).

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use super::channel::{Channel, Channels, OpenRequested, Serving, Shown};
use super::connection::{Connected, Offers, State, Then};
use super::gpadl::{Custody, Known, List};
use super::question::Subject;
use super::reserved::Address;
use super::{Connection, DeviceKey, OfferParams, Server, ServerAction};
use crate::saved::parts::{self, Nothing, Pages, trimmed};
use crate::saved::{SaveError, SavedServer, server as saved};

impl Server {
    /// The state at this moment; the server goes on. All actions must have been taken: those that wait for an answer
    /// come again after [`Self::restore`], what the others said is the caller's to keep.
    pub fn save(&self) -> Result<SavedServer, SaveError> {
        // Whoever adds a field decides here whether it is saved.
        let Self {
            config: _,
            connection,
            channels,
            gpadls,
            connects,
            questions,
            actions,
            attaching: _,
            watch: _,
        } = self;
        if !actions.is_empty() {
            return Err(SaveError::ActionsWaiting(actions.len()));
        }
        let Channels { by_device: _, relids, monitors, subchannels: _, waiting, served: _, kept: _ } =
            channels;
        let channel = |(device, channel): (&DeviceKey, &Channel)| {
            self.save_channel(*device, channel, waiting.contains(device))
        };
        let list = |((relid, gpadl), list): (&(u32, u32), &List)| save_list(*relid, *gpadl, list);
        let connect = |request: &super::ConnectRequest| saved::Connect {
            endpoint: request.endpoint.to_wire().into(),
            service: request.service.to_wire().into(),
            silo: request.silo.to_wire().into(),
        };
        Ok(SavedServer::new(saved::Server {
            connection: Some(save_connection(connection)),
            channels: channels.iter().map(channel).collect(),
            page_lists: gpadls.lists.iter().map(list).collect(),
            connects: connects.waiting.iter().map(connect).collect(),
            held: held(connection),
            last_question: questions.last,
            fresh_relid: u32::try_from(relids.owners.len()).unwrap_or(u32::MAX),
            freed_relids: relids.freed.iter().map(|relid| u32::from(*relid)).collect(),
            next_monitor: monitors.next.into(),
            kind: 0,
        }))
    }

    fn save_channel(&self, device: DeviceKey, channel: &Channel, waiting: bool) -> saved::Channel {
        let Channel { offer, relid, monitor, shown, withdrawn, serving, closing_for, lists_with_device: _ } =
            channel;
        let (shown, question) = match *shown {
            Shown::Hidden => (saved::Shown::Hidden, 0),
            Shown::Proposed(asked) => (saved::Shown::Proposed, asked.0),
            Shown::Offered => (saved::Shown::Offered, 0),
            Shown::Rescinding => (saved::Shown::Rescinding, 0),
            Shown::Revoked => (saved::Shown::Revoked, 0),
            Shown::Returning => (saved::Shown::Returning, 0),
            Shown::Unloaded => (saved::Shown::Unloaded, 0),
        };
        let subject = self.questions.waiting.get(&super::AskId(question));
        saved::Channel {
            device: device.0,
            relid: relid.unwrap_or(0),
            offer: Some(save_offer(offer)),
            shown: shown.into(),
            question,
            initial: matches!(subject, Some(Subject::Offer { initial: true, .. })),
            withdrawn: *withdrawn,
            waiting,
            serving: Some(save_serving(serving)),
            monitor: monitor.map(u32::from),
            closing_for: closing_for.map(save_address),
        }
    }
}

fn save_connection(state: &State) -> saved::Connection {
    match state {
        State::Disconnected => saved::Connection::Disconnected(Nothing {}),
        State::Connecting { asked, connection } => saved::Connection::Connecting(saved::Connecting {
            question: asked.0,
            agreed: Some(save_agreed(connection)),
        }),
        State::Connected(Connected { connection, offers, held }) => {
            let offers = match offers {
                Offers::NotRequested => saved::Offers::NotRequested,
                Offers::Requested => saved::Offers::Requested,
                Offers::Delivered => saved::Offers::Delivered,
            };
            saved::Connection::Connected(saved::Connected {
                agreed: Some(save_agreed(connection)),
                offers: offers.into(),
                paused: held.is_some(),
            })
        }
        State::Disconnecting { then } => {
            let then = match then {
                Then::Quiet => saved::Then::Quiet(Nothing {}),
                Then::Unloaded(connection) => saved::Then::Unloaded(save_agreed(connection)),
                Then::Contact(contact) => saved::Then::Contact(saved::Contact {
                    vp: contact.vp,
                    sint: contact.sint.into(),
                    message: contact.message.as_bytes().into(),
                }),
            };
            saved::Connection::Disconnecting(saved::Disconnecting { then: Some(then) })
        }
        State::Unloaded => saved::Connection::Unloaded(Nothing {}),
    }
}

fn save_agreed(connection: &Connection) -> saved::Agreed {
    let Connection {
        version,
        features,
        target_vp,
        sint,
        message_connection_id,
        interrupt_page,
        monitor_pages,
        client_id,
    } = connection;
    saved::Agreed {
        version: version.word(),
        features: features.bits(),
        target_vp: *target_vp,
        sint: (*sint).into(),
        message_connection_id: *message_connection_id,
        interrupt_page: *interrupt_page,
        monitor_pages: monitor_pages.map(Into::into),
        client_id: client_id.map(|id| id.to_wire().into()),
    }
}

fn held(state: &State) -> Vec<saved::Held> {
    let State::Connected(Connected { held: Some(held), .. }) = state else { return Vec::new() };
    // Nothing but messages is held back.
    let message = |action: &ServerAction| match action {
        ServerAction::Send { vp, sint, payload } => {
            Some(saved::Held { vp: *vp, sint: (*sint).into(), payload: payload.to_vec() })
        }
        _ => None,
    };
    held.iter().filter_map(message).collect()
}

fn save_offer(offer: &OfferParams) -> saved::Offer {
    let OfferParams {
        class,
        instance,
        flags,
        mmio_megabytes,
        mmio_megabytes_optional,
        user_defined,
        subchannel_index,
        primary,
        monitor_latency,
        connection_id,
        worker,
    } = offer;
    saved::Offer {
        class: class.to_wire().into(),
        instance: instance.to_wire().into(),
        flags: flags.bits().into(),
        mmio_megabytes: (*mmio_megabytes).into(),
        mmio_megabytes_optional: (*mmio_megabytes_optional).into(),
        user_defined: trimmed(user_defined),
        subchannel_index: (*subchannel_index).into(),
        primary: primary.map(|device| device.0),
        monitor_latency: monitor_latency.map(u32::from),
        connection_id: *connection_id,
        worker: (*worker).into(),
    }
}

fn save_serving(serving: &Serving) -> saved::Serving {
    match serving {
        Serving::Idle => saved::Serving::Idle(Nothing {}),
        Serving::Asked { asked, request } => {
            saved::Serving::Asked(saved::Asked { question: asked.0, request: Some(save_request(request)) })
        }
        Serving::Opening(request) => saved::Serving::Opening(save_request(request)),
        Serving::Open(request) => saved::Serving::Open(save_request(request)),
        Serving::Closing { ring_gpadl, reopen } => saved::Serving::Closing(saved::Closing {
            ring_gpadl: *ring_gpadl,
            reopen: reopen.as_deref().map(save_request),
        }),
    }
}

fn save_request(request: &OpenRequested) -> saved::Request {
    let OpenRequested { message, reserved } = request;
    saved::Request { message: message.as_bytes().into(), reserved: reserved.map(save_address) }
}

fn save_address(address: Address) -> parts::Address {
    let Address { vp, sint } = address;
    parts::Address { vp, sint: sint.into() }
}

fn save_list(relid: u32, gpadl: u32, list: &List) -> saved::PageList {
    let (pages, list) = match list {
        List::HalfBuilt(builder) => (Pages::half_built(builder), saved::List::HalfBuilt(Nothing {})),
        List::Asked { asked, pages } => (Pages::complete(pages), saved::List::Asked(asked.0)),
        List::Built { pages, known, custody } => {
            let known = match known {
                Known::Accepted => saved::Known::Accepted,
                Known::TearingDown => saved::Known::TearingDown,
                Known::Dropped => saved::Known::Dropped,
            };
            let custody = match custody {
                Custody::Device => saved::Custody::Device,
                Custody::Releasing => saved::Custody::Releasing,
                Custody::Nobody => saved::Custody::Nobody,
            };
            let built = saved::Built { known: known.into(), custody: custody.into() };
            (Pages::complete(pages), saved::List::Built(built))
        }
    };
    saved::PageList { relid, gpadl, pages: Some(pages), list: Some(list) }
}
