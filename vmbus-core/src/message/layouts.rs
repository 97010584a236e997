//! Layouts of the control messages, without the 8-byte header.

use zerocopy::little_endian::{I32, U16, U32, U64};

use super::UserDefined;
use crate::wire::wire_struct;
use crate::{FeatureFlags, Guid, Version};

wire_struct! {
    /// A device appears (188 bytes; 182 for V1, which ends after the monitor byte).
    pub struct OfferChannel {
        /// Class of the device.
        pub interface_type: Guid,
        /// This device; the same for all its sub-channels.
        pub interface_instance: Guid,
        /// Ignored; interrupt latency in old headers.
        pub reserved_latency: U64,
        /// Ignored.
        pub reserved_revision: U32,
        /// Ignored.
        pub reserved_context: U32,
        /// [`OfferFlags`].
        pub flags: U16,
        /// MMIO window needed, in MiB.
        pub mmio_megabytes: U16,
        /// Meaning by device protocol.
        pub user_defined: UserDefined,
        /// 0 for the primary channel.
        pub subchannel_index: U16,
        /// MMIO window wished beyond, in MiB.
        pub mmio_megabytes_optional: U16,
        /// Channel id, 1 to 2047.
        pub relid: U32,
        /// 0 to 127, or 0xff when none is allocated.
        pub monitor_id: u8,
        /// Bit 0: a monitor is allocated.
        pub monitor_allocated: u8,
        /// Bit 0: the channel has an interrupt of its own. Absent in V1.
        pub is_dedicated: U16,
        /// Connection id for signals to the host, 24 bits. Absent in V1.
        pub connection_id: U32,
    }
}

bitflags::bitflags! {
    /// Flags of an offer.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OfferFlags: u16 {
        /// An ordinary device interface.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// The ring holds private memory (confidential channels only).
        const CONFIDENTIAL_RING_BUFFER = 0x0002;
        /// External memory is private (confidential channels only).
        const CONFIDENTIAL_EXTERNAL_MEMORY = 0x0004;
        /// External memory must be pinned.
        const PINNED_EXTERNAL_MEMORY = 0x0008;
        /// Packets carry the pipe header.
        const NAMED_PIPE_MODE = 0x0010;
        /// The device is in the guest itself.
        const LOOPBACK = 0x0100;
        /// The device is in the root.
        const PARENT = 0x0200;
        /// The host wishes signals through a monitor page.
        const REQUEST_MONITOR = 0x0400;
        /// An hvsock channel.
        const TLNPI_PROVIDER = 0x2000;
        const _ = !0;
    }
}

wire_struct! {
    /// A device disappears.
    pub struct RescindChannelOffer {
        /// The channel.
        pub relid: U32,
    }
}
wire_struct! {
    /// The guest wants the offers, once per connection.
    pub struct RequestOffers {}
}
wire_struct! {
    /// All offers that exist at this moment were sent.
    pub struct AllOffersDelivered {}
}
wire_struct! {
    /// Opens a channel (140 bytes; 148 with guest-specified signal parameters or interrupt redirection).
    pub struct OpenChannel {
        /// The channel.
        pub relid: U32,
        /// Echoed in the result.
        pub open_id: U32,
        /// GPADL of the two rings.
        pub ring_gpadl: U32,
        /// VP that gets signals from the host; `u32::MAX` for none.
        pub target_vp: U32,
        /// Where the host-to-guest ring starts in the GPADL, in pages.
        pub downstream_page_offset: U32,
        /// Meaning by device protocol.
        pub user_data: UserDefined,
        /// With guest-specified signal parameters: the connection id on which the guest will signal.
        pub connection_id: U32,
        /// With guest-specified signal parameters: the event flag to set for the guest.
        pub event_flag: U16,
        /// [`OpenFlags`].
        pub flags: U16,
    }
}

bitflags::bitflags! {
    /// Flags of an open.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenFlags: u16 {
        /// The channel's signals to the guest are redirected (with channel interrupt redirection).
        const REDIRECT_INTERRUPT = 0x0001;
        const _ = !0;
    }
}
wire_struct! {
    /// Answer to an open.
    pub struct OpenChannelResult {
        /// The channel.
        pub relid: U32,
        /// As in the request.
        pub open_id: U32,
        /// [`Status`](crate::status::Status); 0 is success.
        pub status: U32,
    }
}
wire_struct! {
    /// Closes a channel; nothing answers.
    pub struct CloseChannel {
        /// The channel.
        pub relid: U32,
    }
}
wire_struct! {
    /// Starts a page list; the ranges follow.
    pub struct GpadlHeader {
        /// The channel that it belongs to.
        pub relid: U32,
        /// Chosen by the guest, not 0.
        pub gpadl: U32,
        /// Bytes of all ranges, truncated to 16 bits.
        pub range_buflen: U16,
        /// Number of ranges.
        pub range_count: U16,
    }
}
wire_struct! {
    /// Continues a page list.
    pub struct GpadlBody {
        /// Counts bodies with some guests, 0 with others; never checked.
        pub message_number: U32,
        /// As in the header.
        pub gpadl: U32,
    }
}
wire_struct! {
    /// Answer to a complete page list.
    pub struct GpadlCreated {
        /// The channel.
        pub relid: U32,
        /// As in the header.
        pub gpadl: U32,
        /// 0 is success.
        pub status: U32,
    }
}
wire_struct! {
    /// Asks for a page list back.
    pub struct GpadlTeardown {
        /// The channel.
        pub relid: U32,
        /// The page list.
        pub gpadl: U32,
    }
}
wire_struct! {
    /// The host has let go of a page list.
    pub struct GpadlTorndown {
        /// The page list.
        pub gpadl: U32,
    }
}
wire_struct! {
    /// The guest has no more use for a rescinded or closed channel's id.
    pub struct RelidReleased {
        /// The channel.
        pub relid: U32,
    }
}
wire_struct! {
    /// Asks for one version (32 bytes; 48 with a client id).
    pub struct InitiateContact {
        /// [`Version::word`].
        pub version: U32,
        /// VP that gets control messages, honoured from 3.0.
        pub target_vp: U32,
        /// Before 5.0 the address of the interrupt page; from 5.0 SINT u8, VTL u8, padding u16, feature flags u32.
        pub interrupt_page_or_target: U64,
        /// Address of the parent-to-child monitor page, 0 for none.
        pub parent_to_child_monitor: U64,
        /// Address of the child-to-parent monitor page, 0 for none.
        pub child_to_parent_monitor: U64,
        /// With the client-id feature.
        pub client_id: Guid,
    }
}

impl InitiateContact {
    /// The word of a 5.0-or-later contact: target SINT and VTL, and, for 6.0, the features wanted.
    pub fn target(sint: u8, vtl: u8, features: FeatureFlags) -> U64 {
        U64::new(u64::from(sint) | u64::from(vtl) << 8 | u64::from(features.bits()) << 32)
    }

    /// Whether this contact says that a client id follows (6.0 and later).
    pub fn has_client_id(&self) -> bool {
        self.version.get() >= Version::Copper.word() && self.features().contains(FeatureFlags::CLIENT_ID)
    }

    /// The target SINT (5.0 and later).
    pub fn target_sint(&self) -> u8 {
        self.interrupt_page_or_target.to_bytes()[0]
    }

    /// The target VTL (5.1 and later).
    pub fn target_vtl(&self) -> u8 {
        self.interrupt_page_or_target.to_bytes()[1]
    }

    /// The features wanted (6.0 and later).
    pub fn features(&self) -> FeatureFlags {
        let [_, _, _, _, a, b, c, d] = self.interrupt_page_or_target.to_bytes();
        FeatureFlags::from_bits_retain(u32::from_le_bytes([a, b, c, d]))
    }
}

wire_struct! {
    /// Answer to a contact (8 bytes; 12 for 6.0; 32 with server-given monitor pages).
    pub struct VersionResponse {
        /// 1 if the version is supported.
        pub supported: u8,
        /// 0 ok, 1 low resources, 2 other failure; only meaningful with `supported` and from Win8 on.
        pub connection_state: u8,
        /// 0.
        pub padding: U16,
        /// Before 5.0 the selected version; from 5.0 the connection id for all further messages.
        pub version_or_connection_id: U32,
        /// Features granted (6.0).
        pub features: U32,
        /// 0.
        pub padding2: U32,
        /// Address of the server's parent-to-child monitor page.
        pub parent_to_child_monitor: U64,
        /// Address of the server's child-to-parent monitor page.
        pub child_to_parent_monitor: U64,
    }
}
wire_struct! {
    /// The guest leaves the bus.
    pub struct Unload {}
}
wire_struct! {
    /// The host has let go of everything.
    pub struct UnloadResponse {}
}
wire_struct! {
    /// Opens a channel for a crash dump.
    pub struct OpenReservedChannel {
        /// The channel.
        pub relid: U32,
        /// VP for the answer.
        pub target_vp: U32,
        /// SINT for the answer.
        pub target_sint: U32,
        /// GPADL of the two rings.
        pub ring_gpadl: U32,
        /// Where the host-to-guest ring starts in the GPADL, in pages.
        pub downstream_page_offset: U32,
    }
}
wire_struct! {
    /// Closes a channel opened for a crash dump.
    pub struct CloseReservedChannel {
        /// The channel.
        pub relid: U32,
        /// VP for the answer.
        pub target_vp: U32,
        /// SINT for the answer.
        pub target_sint: U32,
    }
}
wire_struct! {
    /// Answer to [`CloseReservedChannel`].
    pub struct CloseReservedResponse {
        /// The channel.
        pub relid: U32,
    }
}
wire_struct! {
    /// hvsock: the guest connects to a service of the host (32 bytes; 48 from 5.2).
    pub struct TlConnectRequest {
        /// The guest's own end.
        pub endpoint_id: Guid,
        /// The service.
        pub service_id: Guid,
        /// Silo, from 5.2.
        pub silo_id: Guid,
    }
}
wire_struct! {
    /// Moves a channel's interrupt to another VP.
    pub struct ModifyChannel {
        /// The channel.
        pub relid: U32,
        /// The new VP.
        pub target_vp: U32,
    }
}
wire_struct! {
    /// hvsock: the connection was refused.
    pub struct TlConnectResult {
        /// As in the request.
        pub endpoint_id: Guid,
        /// As in the request.
        pub service_id: Guid,
        /// NTSTATUS.
        pub status: I32,
    }
}
wire_struct! {
    /// Answer to [`ModifyChannel`].
    pub struct ModifyChannelResponse {
        /// The channel.
        pub relid: U32,
        /// 0 is success.
        pub status: U32,
    }
}
wire_struct! {
    /// Changes the monitor pages of a connection.
    pub struct ModifyConnection {
        /// Address of the parent-to-child page, 0 for none.
        pub parent_to_child_monitor: U64,
        /// Address of the child-to-parent page, 0 for none.
        pub child_to_parent_monitor: U64,
    }
}
wire_struct! {
    /// Answer to [`ModifyConnection`].
    pub struct ModifyConnectionResponse {
        /// As in [`VersionResponse`].
        pub connection_state: u8,
    }
}
wire_struct! {
    /// The host is to queue what it would send.
    pub struct Pause {}
}
wire_struct! {
    /// Answer to [`Pause`].
    pub struct PauseResponse {}
}
wire_struct! {
    /// The host may send again.
    pub struct Resume {}
}
