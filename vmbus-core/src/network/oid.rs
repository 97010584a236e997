//! Names of what can be asked of a network device, or set (`network.md`, "Objects").

use crate::wire::open_values;

open_values! {
    /// An object identifier.
    pub struct Oid(u32) {
        /// List of u32: what is supported.
        GEN_SUPPORTED_LIST = 0x0001_0101,
        /// u32: 0 is ready.
        GEN_HARDWARE_STATUS = 0x0001_0102,
        /// u32: 0 is Ethernet.
        GEN_MEDIA_SUPPORTED = 0x0001_0103,
        /// u32: 0 is Ethernet.
        GEN_MEDIA_IN_USE = 0x0001_0104,
        /// u32: bytes.
        GEN_MAXIMUM_LOOKAHEAD = 0x0001_0105,
        /// u32: bytes of a frame without its header.
        GEN_MAXIMUM_FRAME_SIZE = 0x0001_0106,
        /// u32: speed in 100 bit/s.
        GEN_LINK_SPEED = 0x0001_0107,
        /// u32: bytes.
        GEN_TRANSMIT_BUFFER_SPACE = 0x0001_0108,
        /// u32: bytes.
        GEN_RECEIVE_BUFFER_SPACE = 0x0001_0109,
        /// u32: bytes.
        GEN_TRANSMIT_BLOCK_SIZE = 0x0001_010a,
        /// u32: bytes.
        GEN_RECEIVE_BLOCK_SIZE = 0x0001_010b,
        /// u32.
        GEN_VENDOR_ID = 0x0001_010c,
        /// ASCII.
        GEN_VENDOR_DESCRIPTION = 0x0001_010d,
        /// u32: [`PacketFilter`](super::ndis::PacketFilter). Set and asked.
        GEN_CURRENT_PACKET_FILTER = 0x0001_010e,
        /// u32: bytes.
        GEN_CURRENT_LOOKAHEAD = 0x0001_010f,
        /// u16.
        GEN_DRIVER_VERSION = 0x0001_0110,
        /// u32: bytes of a frame with its header.
        GEN_MAXIMUM_TOTAL_SIZE = 0x0001_0111,
        /// u32.
        GEN_PROTOCOL_OPTIONS = 0x0001_0112,
        /// u32.
        GEN_MAC_OPTIONS = 0x0001_0113,
        /// u32: 0 is connected, 1 is not.
        GEN_MEDIA_CONNECT_STATUS = 0x0001_0114,
        /// u32.
        GEN_MAXIMUM_SEND_PACKETS = 0x0001_0115,
        /// u32.
        GEN_VENDOR_DRIVER_VERSION = 0x0001_0116,
        /// Set; of no consequence.
        GEN_NETWORK_LAYER_ADDRESSES = 0x0001_0118,
        /// [`RssCapabilities`](super::ndis::RssCapabilities).
        GEN_RECEIVE_SCALE_CAPABILITIES = 0x0001_0203,
        /// [`RssParameters`](super::ndis::RssParameters), set.
        GEN_RECEIVE_SCALE_PARAMETERS = 0x0001_0204,
        /// Two u64 in bit/s.
        GEN_MAX_LINK_SPEED = 0x0001_0206,
        /// [`LinkState`](super::ndis::LinkState).
        GEN_LINK_STATE = 0x0001_0207,
        /// Set.
        GEN_LINK_PARAMETERS = 0x0001_0208,
        /// Asked and set.
        GEN_INTERRUPT_MODERATION = 0x0001_0209,
        /// UTF-16.
        GEN_FRIENDLY_NAME = 0x0002_0216,
        /// UTF-16.
        GEN_MACHINE_NAME = 0x0001_021a,
        /// [`ConfigParameter`](super::ndis::ConfigParameter), set.
        GEN_RNDIS_CONFIG_PARAMETER = 0x0001_021b,
        /// u64.
        GEN_XMIT_OK = 0x0002_0101,
        /// u64.
        GEN_RCV_OK = 0x0002_0102,
        /// u64.
        GEN_XMIT_ERROR = 0x0002_0103,
        /// u64.
        GEN_RCV_ERROR = 0x0002_0104,
        /// u64.
        GEN_RCV_NO_BUFFER = 0x0002_0105,
        /// Six bytes: the address it was made with.
        ETHERNET_PERMANENT_ADDRESS = 0x0101_0101,
        /// Six bytes: the address it has.
        ETHERNET_CURRENT_ADDRESS = 0x0101_0102,
        /// List of six bytes each, set.
        ETHERNET_MULTICAST_LIST = 0x0101_0103,
        /// u32: entries.
        ETHERNET_MAXIMUM_LIST_SIZE = 0x0101_0104,
        /// u32.
        ETHERNET_RCV_ERROR_ALIGNMENT = 0x0102_0101,
        /// u32.
        ETHERNET_XMIT_ONE_COLLISION = 0x0102_0102,
        /// u32.
        ETHERNET_XMIT_MORE_COLLISIONS = 0x0102_0103,
        /// Encapsulation for offloads, asked and set.
        OFFLOAD_ENCAPSULATION = 0x0101_010a,
        /// [`Offload`](super::ndis::Offload): what is on.
        TCP_OFFLOAD_CURRENT_CONFIG = 0xfc01_020b,
        /// [`OffloadParameters`](super::ndis::OffloadParameters), set.
        TCP_OFFLOAD_PARAMETERS = 0xfc01_020c,
        /// [`Offload`](super::ndis::Offload): what there is.
        TCP_OFFLOAD_HARDWARE_CAPABILITIES = 0xfc01_020d,
    }
}
