//! Status codes: NTSTATUS in control messages and device protocols, and the hypervisor's own 16-bit codes.

use crate::wire::open_values;

open_values! {
    /// An NTSTATUS. On this bus 0 is success and every other value is a failure, whatever its severity bits say.
    pub struct Status(u32) {
        /// Done.
        SUCCESS = 0,
        /// The answer did not fit into the buffer (storage: data overrun).
        BUFFER_OVERFLOW = 0x8000_0005,
        /// The device is busy.
        DEVICE_BUSY = 0x8000_0011,
        /// Failure without further reason: what a refused open, page list or modification is answered with.
        FAILURE = 0x8000_ffff,
        /// Failure without further reason.
        UNSUCCESSFUL = 0xc000_0001,
        /// A field has a value that is not allowed.
        INVALID_PARAMETER = 0xc000_000d,
        /// The device does not know this request.
        INVALID_DEVICE_REQUEST = 0xc000_0010,
        /// Policy forbids it.
        ACCESS_DENIED = 0xc000_0022,
        /// A quota is used up.
        QUOTA_EXCEEDED = 0xc000_0044,
        /// This version of a device protocol is not spoken.
        REVISION_MISMATCH = 0xc000_0059,
        /// Memory or another resource is used up.
        INSUFFICIENT_RESOURCES = 0xc000_009a,
        /// Nothing is attached there.
        DEVICE_NOT_CONNECTED = 0xc000_009d,
        /// The device did not answer in time.
        IO_TIMEOUT = 0xc000_00b5,
        /// No such device.
        DEVICE_DOES_NOT_EXIST = 0xc000_00c0,
        /// Given up before it was done.
        CANCELLED = 0xc000_0120,
        /// The device is in a state that does not allow the request.
        INVALID_DEVICE_STATE = 0xc000_0184,
        /// The device failed.
        IO_DEVICE_ERROR = 0xc000_0185,
        /// Nobody listens for the hvsock connection.
        CONNECTION_REFUSED = 0xc000_0236,
    }
}

impl Status {
    /// Whether this is 0.
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }
}

open_values! {
    /// Result of a hypercall, the low 16 bits of its result value.
    pub struct HvStatus(u16) {
        /// Done.
        SUCCESS = 0x0000,
        /// No such call, or not in this form.
        INVALID_HYPERCALL_CODE = 0x0002,
        /// Reserved bits or counts of the input value are wrong.
        INVALID_HYPERCALL_INPUT = 0x0003,
        /// A parameter block is not aligned or crosses a page.
        INVALID_ALIGNMENT = 0x0004,
        /// A parameter has a value that is not allowed.
        INVALID_PARAMETER = 0x0005,
        /// The caller lacks the privilege.
        ACCESS_DENIED = 0x0006,
        /// The partition's state does not allow it.
        INVALID_PARTITION_STATE = 0x0007,
        /// The operation is not allowed.
        OPERATION_DENIED = 0x0008,
        /// No such property.
        UNKNOWN_PROPERTY = 0x0009,
        /// A property's value is out of range.
        PROPERTY_VALUE_OUT_OF_RANGE = 0x000a,
        /// The hypervisor needs more memory; try again later.
        INSUFFICIENT_MEMORY = 0x000b,
        /// Partitions are nested too deep.
        PARTITION_TOO_DEEP = 0x000c,
        /// No such partition.
        INVALID_PARTITION_ID = 0x000d,
        /// No such virtual processor.
        INVALID_VP_INDEX = 0x000e,
        /// Not found.
        NOT_FOUND = 0x0010,
        /// No such port, or not one of this kind.
        INVALID_PORT_ID = 0x0011,
        /// No such connection.
        INVALID_CONNECTION_ID = 0x0012,
        /// The port's message buffers are full; try again later.
        INSUFFICIENT_BUFFERS = 0x0013,
        /// An interrupt was not acknowledged.
        NOT_ACKNOWLEDGED = 0x0014,
        /// The virtual processor's state does not allow it.
        INVALID_VP_STATE = 0x0015,
        /// An interrupt was acknowledged.
        ACKNOWLEDGED = 0x0016,
        /// Saving or restoring is not in the right state.
        INVALID_SAVE_RESTORE_STATE = 0x0017,
        /// The target's SynIC, or its page, is disabled.
        INVALID_SYNIC_STATE = 0x0018,
        /// In use.
        OBJECT_IN_USE = 0x0019,
        /// Proximity information is wrong.
        INVALID_PROXIMITY_DOMAIN_INFO = 0x001a,
        /// There is no data.
        NO_DATA = 0x001b,
        /// Not active.
        INACTIVE = 0x001c,
        /// Resources are used up.
        NO_RESOURCES = 0x001d,
        /// The feature is not available.
        FEATURE_UNAVAILABLE = 0x001e,
        /// Only a part of a packet was transferred.
        PARTIAL_PACKET = 0x001f,
        /// The processor lacks a feature.
        PROCESSOR_FEATURE_NOT_SUPPORTED = 0x0020,
        /// The buffer is too small.
        INSUFFICIENT_BUFFER = 0x0033,
        /// The processor does not fit.
        INCOMPATIBLE_PROCESSOR = 0x0037,
        /// Device domains are used up.
        INSUFFICIENT_DEVICE_DOMAINS = 0x0038,
        /// No such logical processor.
        INVALID_LP_INDEX = 0x0041,
        /// A register cannot have this value.
        INVALID_REGISTER_VALUE = 0x0050,
        /// The virtual trust level's state does not allow it.
        INVALID_VTL_STATE = 0x0051,
        /// No such device.
        INVALID_DEVICE_ID = 0x0057,
        /// The device's state does not allow it.
        INVALID_DEVICE_STATE = 0x0058,
        /// Failed.
        OPERATION_FAILED = 0x0071,
        /// Not allowed while nested virtualisation is active.
        NOT_ALLOWED_WITH_NESTED_VIRT_ACTIVE = 0x0072,
        /// The root partition lacks memory.
        INSUFFICIENT_ROOT_MEMORY = 0x0073,
        /// It took too long.
        TIME_OUT = 0x0078,
        /// The virtual trust level is enabled already.
        VTL_ALREADY_ENABLED = 0x0086,
        /// No such register.
        UNKNOWN_REGISTER_NAME = 0x0087,
    }
}

impl HvStatus {
    /// Whether this is 0.
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// Whether a poster of messages should try again after a pause.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Self::INSUFFICIENT_MEMORY | Self::INSUFFICIENT_BUFFERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_status_prints_its_name_and_number_and_an_unknown_one_its_number() {
        assert_eq!(Status::REVISION_MISMATCH.to_string(), "REVISION_MISMATCH (0xc0000059)");
        assert_eq!(Status(0xdead_beef).to_string(), "0xdeadbeef");
        assert_eq!(HvStatus::INVALID_CONNECTION_ID.to_string(), "INVALID_CONNECTION_ID (0x0012)");
        assert_eq!(HvStatus(0x0fff).to_string(), "0x0fff");
    }

    #[test]
    fn every_value_has_one_name() {
        assert!(Status::NAMED.is_sorted_by(|a, b| a.0 < b.0));
        assert!(HvStatus::NAMED.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn only_zero_is_success() {
        assert!(Status::SUCCESS.is_success());
        assert!(!Status(0x4000_0000).is_success(), "an NTSTATUS of severity information is a failure here");
    }
}
