//! The encoding of a server. What the fields mean, and may be, stands with the state that they encode.

use alloc::vec::Vec;

use super::parts::{Address, MonitorPages, Nothing, Pages};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Server {
    #[prost(oneof = "Connection", tags = "1, 2, 3, 4, 13")]
    pub(crate) connection: Option<Connection>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) channels: Vec<Channel>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) page_lists: Vec<PageList>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) connects: Vec<Connect>,
    /// Messages held back during a pause.
    #[prost(message, repeated, tag = "8")]
    pub(crate) held: Vec<Held>,
    #[prost(uint64, tag = "9")]
    pub(crate) last_question: u64,
    /// Channel ids from this one on were never used in this connection; 0 before the first.
    #[prost(uint32, tag = "10")]
    pub(crate) fresh_relid: u32,
    /// In the order in which they became free.
    #[prost(uint32, repeated, tag = "11")]
    pub(crate) freed_relids: Vec<u32>,
    #[prost(uint32, tag = "12")]
    pub(crate) next_monitor: u32,
    /// The last field: says whose state this is.
    #[prost(fixed32, tag = "1000")]
    pub(crate) kind: u32,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Connection {
    #[prost(message, tag = "1")]
    Disconnected(Nothing),
    #[prost(message, tag = "2")]
    Connecting(Connecting),
    #[prost(message, tag = "3")]
    Connected(Connected),
    #[prost(message, tag = "4")]
    Disconnecting(Disconnecting),
    #[prost(message, tag = "13")]
    Unloaded(Nothing),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Connecting {
    #[prost(uint64, tag = "1")]
    pub(crate) question: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) agreed: Option<Agreed>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Connected {
    #[prost(message, optional, tag = "1")]
    pub(crate) agreed: Option<Agreed>,
    #[prost(enumeration = "Offers", tag = "2")]
    pub(crate) offers: i32,
    #[prost(bool, tag = "3")]
    pub(crate) paused: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Disconnecting {
    #[prost(oneof = "Then", tags = "1, 2, 3")]
    pub(crate) then: Option<Then>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Then {
    #[prost(message, tag = "1")]
    Quiet(Nothing),
    #[prost(message, tag = "2")]
    Unloaded(Agreed),
    #[prost(message, tag = "3")]
    Contact(Contact),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Contact {
    #[prost(uint32, tag = "1")]
    pub(crate) vp: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) sint: u32,
    /// The structure of INITIATE_CONTACT.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) message: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Offers {
    NotRequested = 0,
    Requested = 1,
    Delivered = 2,
}

/// What guest and host agreed on.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Agreed {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) features: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) target_vp: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) sint: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) message_connection_id: u32,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) interrupt_page: Option<u64>,
    #[prost(message, optional, tag = "7")]
    pub(crate) monitor_pages: Option<MonitorPages>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub(crate) client_id: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Channel {
    #[prost(uint64, tag = "1")]
    pub(crate) device: u64,
    /// 0 for none.
    #[prost(uint32, tag = "2")]
    pub(crate) relid: u32,
    #[prost(message, optional, tag = "3")]
    pub(crate) offer: Option<Offer>,
    #[prost(enumeration = "Shown", tag = "4")]
    pub(crate) shown: i32,
    /// The question about the offer, while it is proposed.
    #[prost(uint64, tag = "5")]
    pub(crate) question: u64,
    /// ALLOFFERS_DELIVERED waits for that.
    #[prost(bool, tag = "6")]
    pub(crate) initial: bool,
    #[prost(bool, tag = "7")]
    pub(crate) withdrawn: bool,
    /// It waits for a channel id.
    #[prost(bool, tag = "8")]
    pub(crate) waiting: bool,
    #[prost(oneof = "Serving", tags = "9, 10, 11, 12, 13")]
    pub(crate) serving: Option<Serving>,
    #[prost(uint32, optional, tag = "14")]
    pub(crate) monitor: Option<u32>,
    /// Who is told when a reserved channel has closed.
    #[prost(message, optional, tag = "15")]
    pub(crate) closing_for: Option<Address>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Shown {
    Hidden = 0,
    Proposed = 1,
    Offered = 2,
    Rescinding = 3,
    Revoked = 4,
    Returning = 5,
    Unloaded = 6,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Serving {
    #[prost(message, tag = "9")]
    Idle(Nothing),
    #[prost(message, tag = "10")]
    Asked(Asked),
    #[prost(message, tag = "11")]
    Opening(Request),
    #[prost(message, tag = "12")]
    Open(Request),
    #[prost(message, tag = "13")]
    Closing(Closing),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Asked {
    #[prost(uint64, tag = "1")]
    pub(crate) question: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) request: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Closing {
    #[prost(uint32, tag = "1")]
    pub(crate) ring_gpadl: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) reopen: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    /// The structure of OPENCHANNEL.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) message: Vec<u8>,
    /// Where the answer goes, of OPEN_RESERVED_CHANNEL.
    #[prost(message, optional, tag = "2")]
    pub(crate) reserved: Option<Address>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Offer {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) class: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) instance: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub(crate) flags: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) mmio_megabytes: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) mmio_megabytes_optional: u32,
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) user_defined: Vec<u8>,
    #[prost(uint32, tag = "7")]
    pub(crate) subchannel_index: u32,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) primary: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    pub(crate) monitor_latency: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    pub(crate) connection_id: Option<u32>,
    #[prost(uint32, tag = "11")]
    pub(crate) worker: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PageList {
    #[prost(uint32, tag = "1")]
    pub(crate) relid: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) gpadl: u32,
    #[prost(message, optional, tag = "3")]
    pub(crate) pages: Option<Pages>,
    #[prost(oneof = "List", tags = "4, 5, 6")]
    pub(crate) list: Option<List>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum List {
    #[prost(message, tag = "4")]
    HalfBuilt(Nothing),
    /// The question whether it may be shared.
    #[prost(uint64, tag = "5")]
    Asked(u64),
    #[prost(message, tag = "6")]
    Built(Built),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Built {
    #[prost(enumeration = "Known", tag = "1")]
    pub(crate) known: i32,
    #[prost(enumeration = "Custody", tag = "2")]
    pub(crate) custody: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Known {
    Accepted = 0,
    TearingDown = 1,
    Dropped = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Custody {
    Device = 0,
    Releasing = 1,
    Nobody = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Connect {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) endpoint: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) service: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) silo: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Held {
    #[prost(uint32, tag = "1")]
    pub(crate) vp: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) sint: u32,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) payload: Vec<u8>,
}
