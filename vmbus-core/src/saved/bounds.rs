//! How many parts saved state may have, looked at before any is made: a part of two bytes takes some hundred decoded.

use prost::encoding::{DecodeContext, decode_key, skip_field};

use super::DecodeError;

/// Far above what quotas allow by default. A part is a channel, a page list, a connect or a message.
const PARTS: usize = 1 << 18;

/// Whether protobuf bytes have no more fields at the top than saved state can have: to be asked before they are decoded
/// into structures, which take many times the memory of a field.
pub fn check(mut bytes: &[u8]) -> Result<(), DecodeError> {
    for _ in 0..=PARTS {
        if bytes.is_empty() {
            return Ok(());
        }
        let field = decode_key(&mut bytes);
        field
            .and_then(|(tag, wire_type)| skip_field(wire_type, tag, &mut bytes, DecodeContext::default()))
            .map_err(|_| DecodeError::Encoding)?;
    }
    Err(DecodeError::TooManyParts { limit: PARTS })
}
