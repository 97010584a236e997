//! Saved values, each checked by itself. What is wrong is said so that it follows "has".

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::message::{Direction, InitiateContact, Message, OfferFlags, OpenChannel};
use crate::saved::parts::{self, guid, narrow, payload, structure, user_defined};
use crate::saved::{RestoreError, server as saved};
use crate::server::channel::{Channel, OpenRequested, Serving, Shown};
use crate::server::connection::{Connected, Offers, State, Then};
use crate::server::contact::{Contact, SINTS};
use crate::server::gpadl::{Custody, Known, List};
use crate::server::monitor::MONITORS;
use crate::server::relids::{LAST, Relids};
use crate::server::reserved::Address;
use crate::server::{
    AskId, ConnectRequest, Connection, DeviceKey, MonitorPages, OfferParams, Quotas, ServerAction,
    ServerConfig,
};
use crate::{FeatureFlags, Version};

const UNKNOWN_STATE: &str = "a state that is not known here";

pub(super) fn connection(config: &ServerConfig, saved: &saved::Server) -> Result<State, RestoreError> {
    let wrong = RestoreError::Connection;
    let agreed = |saved: &Option<saved::Agreed>| {
        let connection = agreed(saved.as_ref().ok_or("no version")?)?;
        allowed(config, &connection).map(|()| connection)
    };
    let state = match saved.connection.as_ref().ok_or(wrong(UNKNOWN_STATE))? {
        saved::Connection::Disconnected(_) => State::Disconnected,
        saved::Connection::Connecting(saved) => State::Connecting {
            asked: AskId(saved.question),
            connection: agreed(&saved.agreed).map_err(wrong)?,
        },
        saved::Connection::Connected(state) => {
            let connection = agreed(&state.agreed).map_err(wrong)?;
            let offers = match saved::Offers::try_from(state.offers) {
                Ok(saved::Offers::NotRequested) => Offers::NotRequested,
                Ok(saved::Offers::Requested) => Offers::Requested,
                Ok(saved::Offers::Delivered) => Offers::Delivered,
                Err(_) => return Err(wrong(UNKNOWN_STATE)),
            };
            let held = if state.paused { Some(held(config, &connection, &saved.held)?) } else { None };
            State::Connected(Connected { connection, offers, held })
        }
        saved::Connection::Disconnecting(saved) => {
            let then = then(saved.then.as_ref().ok_or(wrong(UNKNOWN_STATE))?).map_err(wrong)?;
            State::Disconnecting { then }
        }
        saved::Connection::Unloaded(_) => State::Unloaded,
    };
    let holds = matches!(&state, State::Connected(Connected { held: Some(_), .. }));
    if holds || saved.held.is_empty() { Ok(state) } else { Err(wrong("messages held back without a pause")) }
}

fn agreed(saved: &saved::Agreed) -> Result<Connection, &'static str> {
    let version = Version::from_word(saved.version).ok_or("a version that nobody knows")?;
    let pages = |pages: &parts::MonitorPages| {
        MonitorPages::new(pages.parent_to_child, pages.child_to_parent)
            .ok()
            .flatten()
            .ok_or("half monitor pages")
    };
    Ok(Connection {
        version,
        features: FeatureFlags::from_bits_retain(saved.features),
        target_vp: saved.target_vp,
        sint: sint(saved.sint)?,
        message_connection_id: saved.message_connection_id,
        interrupt_page: saved.interrupt_page,
        monitor_pages: saved.monitor_pages.as_ref().map(pages).transpose()?,
        client_id: saved.client_id.as_deref().map(guid).transpose()?,
    })
}

/// A connection that this server would agree to.
fn allowed(config: &ServerConfig, connection: &Connection) -> Result<(), &'static str> {
    if !config.versions.contains(&connection.version) {
        return Err("a version that is not spoken here");
    }
    if !config.grantable().contains(connection.features) {
        return Err("features that are not granted here");
    }
    if connection.version < Version::Copper && !connection.features.is_empty() {
        return Err("features that its version does not know");
    }
    if !config.takes_messages_on(connection.message_connection_id) {
        return Err("a connection id that takes no messages here");
    }
    Ok(())
}

fn then(saved: &saved::Then) -> Result<Then, &'static str> {
    Ok(match saved {
        saved::Then::Quiet(_) => Then::Quiet,
        saved::Then::Unloaded(saved) => Then::Unloaded(agreed(saved)?),
        saved::Then::Contact(saved) => {
            let message: InitiateContact = structure(&saved.message);
            let version = Version::from_word(message.version.get());
            Then::Contact(Contact { version, vp: saved.vp, sint: sint(saved.sint)?, message })
        }
    })
}

fn sint(saved: u32) -> Result<u8, &'static str> {
    match u8::try_from(saved) {
        Ok(sint) if sint < SINTS => Ok(sint),
        Ok(_) | Err(_) => Err("an interrupt source that does not exist"),
    }
}

fn address(saved: &parts::Address) -> Result<Address, &'static str> {
    Ok(Address { vp: saved.vp, sint: sint(saved.sint)? })
}

fn held(
    config: &ServerConfig,
    connection: &Connection,
    saved: &[saved::Held],
) -> Result<VecDeque<ServerAction>, RestoreError> {
    // Each belongs to a channel id, page list, connect or question: an answer, an offer, a rescind.
    let Quotas { channels, gpadls, half_built_gpadls, connects, questions, .. } = config.quotas;
    let channels = channels.min(LAST.into());
    let limit = [channels, channels, channels, gpadls, gpadls, half_built_gpadls, connects, questions, 1];
    if saved.len() > limit.into_iter().fold(0, usize::saturating_add) {
        return Err(RestoreError::Message("too many others beside it"));
    }
    let message = |saved: &saved::Held| {
        let payload = payload(&saved.payload)?;
        let negotiated = Some((connection.version, connection.features));
        Message::parse(&payload, Direction::ToGuest, negotiated).map_err(|_| "bytes that are none")?;
        Ok(ServerAction::Send { vp: saved.vp, sint: sint(saved.sint)?, payload })
    };
    saved.iter().map(message).collect::<Result<_, _>>().map_err(RestoreError::Message)
}

/// The table of owners, empty, up to the first id that was never used.
pub(super) fn relid_table(fresh: u32) -> Result<Vec<Option<DeviceKey>>, RestoreError> {
    match u16::try_from(fresh) {
        Ok(fresh) if fresh <= LAST + 1 => Ok(vec![None; fresh.into()]),
        Ok(_) | Err(_) => Err(RestoreError::Relids("more ids than there are")),
    }
}

pub(super) fn freed_relids(saved: &[u32], relids: &Relids) -> Result<VecDeque<u16>, RestoreError> {
    let mut seen = BTreeSet::new();
    for &relid in saved {
        let unused = usize::try_from(relid).is_ok_and(|relid| relids.owners.get(relid) == Some(&None));
        if relid == 0 || !unused || !seen.insert(relid) {
            return Err(RestoreError::Relids("an id that is not free"));
        }
    }
    // All that were used once are used or free; 0 is neither.
    if seen.len() + relids.in_use != relids.owners.len().saturating_sub(1) {
        return Err(RestoreError::Relids("an id that is lost"));
    }
    saved.iter().map(|relid| narrow(*relid)).collect::<Result<_, _>>().map_err(RestoreError::Relids)
}

pub(super) fn next_monitor(saved: u32) -> Result<u8, RestoreError> {
    monitor(saved).map_err(RestoreError::Relids)
}

fn monitor(saved: u32) -> Result<u8, &'static str> {
    match u8::try_from(saved) {
        Ok(id) if id < MONITORS => Ok(id),
        Ok(_) | Err(_) => Err("a monitor id that does not exist"),
    }
}

pub(super) fn channel(saved: &saved::Channel) -> Result<Channel, &'static str> {
    let relid = (saved.relid != 0).then_some(saved.relid);
    let mut channel = Channel::new(offer(saved.offer.as_ref().ok_or("no offer")?)?);
    channel.relid = relid;
    channel.monitor = saved.monitor.map(monitor).transpose()?;
    channel.withdrawn = saved.withdrawn;
    channel.shown = match saved::Shown::try_from(saved.shown).map_err(|_| UNKNOWN_STATE)? {
        saved::Shown::Hidden => Shown::Hidden,
        saved::Shown::Proposed => Shown::Proposed(AskId(saved.question)),
        saved::Shown::Offered => Shown::Offered,
        saved::Shown::Rescinding => Shown::Rescinding,
        saved::Shown::Revoked => Shown::Revoked,
        saved::Shown::Returning => Shown::Returning,
        saved::Shown::Unloaded => Shown::Unloaded,
    };
    channel.closing_for = saved.closing_for.as_ref().map(address).transpose()?;
    let request = |saved: &saved::Request| {
        let message: OpenChannel = structure(&saved.message);
        if Some(message.relid.get()) != relid {
            return Err("an open of another channel");
        }
        let reserved = saved.reserved.as_ref().map(address).transpose()?;
        Ok(Box::new(OpenRequested { message, reserved }))
    };
    channel.serving = match saved.serving.as_ref().ok_or(UNKNOWN_STATE)? {
        saved::Serving::Idle(_) => Serving::Idle,
        saved::Serving::Asked(saved) => {
            let message = saved.request.as_ref().ok_or("no open")?;
            Serving::Asked { asked: AskId(saved.question), request: request(message)? }
        }
        saved::Serving::Opening(saved) => Serving::Opening(request(saved)?),
        saved::Serving::Open(saved) => Serving::Open(request(saved)?),
        saved::Serving::Closing(saved) => Serving::Closing {
            ring_gpadl: saved.ring_gpadl,
            reopen: saved.reopen.as_ref().map(request).transpose()?,
        },
    };
    Ok(channel)
}

fn offer(saved: &saved::Offer) -> Result<OfferParams, &'static str> {
    Ok(OfferParams {
        class: guid(&saved.class)?,
        instance: guid(&saved.instance)?,
        flags: OfferFlags::from_bits_retain(narrow(saved.flags)?),
        mmio_megabytes: narrow(saved.mmio_megabytes)?,
        mmio_megabytes_optional: narrow(saved.mmio_megabytes_optional)?,
        user_defined: user_defined(&saved.user_defined)?,
        subchannel_index: narrow(saved.subchannel_index)?,
        primary: saved.primary.map(DeviceKey),
        monitor_latency: saved.monitor_latency.map(narrow).transpose()?,
        connection_id: saved.connection_id,
        worker: narrow(saved.worker)?,
    })
}

pub(super) fn list(saved: &saved::PageList, half_built_words: usize) -> Result<List, &'static str> {
    let pages = saved.pages.as_ref().ok_or("no pages")?;
    Ok(match saved.list.as_ref().ok_or(UNKNOWN_STATE)? {
        saved::List::HalfBuilt(_) => List::HalfBuilt(pages.restore_half_built(half_built_words)?),
        saved::List::Asked(asked) => List::Asked { asked: AskId(*asked), pages: Arc::new(pages.restore()?) },
        saved::List::Built(saved) => List::Built {
            pages: Arc::new(pages.restore()?),
            known: match saved::Known::try_from(saved.known).map_err(|_| UNKNOWN_STATE)? {
                saved::Known::Accepted => Known::Accepted,
                saved::Known::TearingDown => Known::TearingDown,
                saved::Known::Dropped => Known::Dropped,
            },
            custody: match saved::Custody::try_from(saved.custody).map_err(|_| UNKNOWN_STATE)? {
                saved::Custody::Device => Custody::Device,
                saved::Custody::Releasing => Custody::Releasing,
                saved::Custody::Nobody => Custody::Nobody,
            },
        },
    })
}

pub(super) fn connect(saved: &saved::Connect) -> Result<ConnectRequest, &'static str> {
    Ok(ConnectRequest {
        endpoint: guid(&saved.endpoint)?,
        service: guid(&saved.service)?,
        silo: guid(&saved.silo)?,
    })
}
