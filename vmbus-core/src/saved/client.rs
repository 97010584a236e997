//! The encoding of a client. What the fields mean, and may be, stands with the state that they encode.

use alloc::vec::Vec;

use super::parts::{Address, MonitorPages, Nothing, Pages};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Client {
    #[prost(oneof = "Connection", tags = "1, 2, 3, 4, 5")]
    pub(crate) connection: Option<Connection>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) channels: Vec<Channel>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) page_lists: Vec<PageList>,
    /// Messages held back during a pause, in order.
    #[prost(message, repeated, tag = "8")]
    pub(crate) held: Vec<Held>,
    #[prost(uint64, tag = "9")]
    pub(crate) last_question: u64,
    #[prost(uint32, tag = "10")]
    pub(crate) last_open_id: u32,
    #[prost(uint32, tag = "11")]
    pub(crate) last_gpadl: u32,
    /// All names of page lists were used once.
    #[prost(bool, tag = "12")]
    pub(crate) gpadls_wrapped: bool,
    /// The connection that was unloaded and has left reserved channels open.
    #[prost(message, optional, tag = "13")]
    pub(crate) left_behind: Option<Agreed>,
    /// The last field: says whose state this is.
    #[prost(fixed32, tag = "1000")]
    pub(crate) kind: u32,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Connection {
    #[prost(message, tag = "1")]
    Disconnected(Nothing),
    #[prost(message, tag = "2")]
    Asking(Trying),
    #[prost(message, tag = "3")]
    Contacting(Trying),
    #[prost(message, tag = "4")]
    Connected(Connected),
    #[prost(message, tag = "5")]
    Unloading(Agreed),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Trying {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) lowest: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) question: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Connected {
    #[prost(message, optional, tag = "1")]
    pub(crate) agreed: Option<Agreed>,
    #[prost(enumeration = "Offers", tag = "4")]
    pub(crate) offers: i32,
    /// Monitor pages that the host was told and has not accepted.
    #[prost(message, optional, tag = "5")]
    pub(crate) modifying: Option<Modifying>,
    #[prost(enumeration = "Pausing", tag = "6")]
    pub(crate) pause: i32,
}

/// What guest and host agreed on.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Agreed {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) features: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) message_connection_id: u32,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) interrupt_page: Option<u64>,
    #[prost(message, optional, tag = "5")]
    pub(crate) monitor_pages: Option<MonitorPages>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Modifying {
    #[prost(message, optional, tag = "1")]
    pub(crate) pages: Option<MonitorPages>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Offers {
    NotRequested = 0,
    Requested = 1,
    Deciding = 2,
    Delivered = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Pausing {
    No = 0,
    Asked = 1,
    Paused = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Channel {
    #[prost(message, optional, tag = "1")]
    pub(crate) offer: Option<Offer>,
    #[prost(bool, tag = "2")]
    pub(crate) modifying: bool,
    #[prost(oneof = "State", tags = "3, 4, 5, 6, 7, 8, 9, 10")]
    pub(crate) state: Option<State>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum State {
    #[prost(message, tag = "3")]
    Proposed(Proposed),
    #[prost(message, tag = "4")]
    Closed(Nothing),
    #[prost(message, tag = "5")]
    Asked(Asked),
    #[prost(message, tag = "6")]
    Opening(Opening),
    /// The page list of its rings.
    #[prost(uint32, tag = "7")]
    Open(u32),
    #[prost(message, tag = "8")]
    Rescinded(Nothing),
    #[prost(message, tag = "9")]
    OpenReserved(OpenReserved),
    /// The page list of its rings.
    #[prost(uint32, tag = "10")]
    ClosingReserved(u32),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Proposed {
    #[prost(uint64, tag = "1")]
    pub(crate) question: u64,
    /// It came before ALLOFFERS_DELIVERED.
    #[prost(bool, tag = "2")]
    pub(crate) initial: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Asked {
    #[prost(uint64, tag = "1")]
    pub(crate) question: u64,
    /// The structure of OPENCHANNEL.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) message: Vec<u8>,
    /// Where the answers go, of a reserved channel.
    #[prost(message, optional, tag = "3")]
    pub(crate) reserved: Option<Address>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OpenReserved {
    #[prost(uint32, tag = "1")]
    pub(crate) ring_gpadl: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) answers: Option<Address>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Opening {
    #[prost(uint32, tag = "1")]
    pub(crate) open_id: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) ring_gpadl: u32,
    #[prost(bool, tag = "3")]
    pub(crate) cancelled: bool,
    /// Where the answers go, of a reserved channel.
    #[prost(message, optional, tag = "4")]
    pub(crate) reserved: Option<Address>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Offer {
    #[prost(uint32, tag = "1")]
    pub(crate) relid: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) class: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) instance: Vec<u8>,
    #[prost(uint32, tag = "4")]
    pub(crate) flags: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) mmio_megabytes: u32,
    #[prost(uint32, tag = "6")]
    pub(crate) mmio_megabytes_optional: u32,
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) user_defined: Vec<u8>,
    #[prost(uint32, tag = "8")]
    pub(crate) subchannel_index: u32,
    #[prost(uint32, optional, tag = "9")]
    pub(crate) monitor: Option<u32>,
    #[prost(bool, tag = "10")]
    pub(crate) is_dedicated: bool,
    #[prost(uint32, optional, tag = "11")]
    pub(crate) connection_id: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PageList {
    #[prost(uint32, tag = "1")]
    pub(crate) relid: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) gpadl: u32,
    #[prost(oneof = "List", tags = "3, 4, 5, 6")]
    pub(crate) list: Option<List>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum List {
    #[prost(message, tag = "3")]
    Asked(AskedList),
    #[prost(message, tag = "4")]
    Creating(Creating),
    #[prost(message, tag = "5")]
    Created(Nothing),
    #[prost(message, tag = "6")]
    TearingDown(Nothing),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AskedList {
    #[prost(uint64, tag = "1")]
    pub(crate) question: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) pages: Option<Pages>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Creating {
    #[prost(bool, tag = "1")]
    pub(crate) cancelled: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Held {
    #[prost(uint32, tag = "1")]
    pub(crate) connection_id: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) payload: Vec<u8>,
}
