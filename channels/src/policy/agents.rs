//! Agents that need not think.

use async_trait::async_trait;

use super::{Asked, Decision, PolicyAgent};
use crate::error::Refusal;

/// Allows everything within the quotas.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

#[async_trait]
impl PolicyAgent for AllowAll {
    async fn decide(&self, _asked: &Asked) -> Decision {
        Decision::Allow
    }

    fn name(&self) -> &str {
        "allow all"
    }
}

/// Denies everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenyAll;

#[async_trait]
impl PolicyAgent for DenyAll {
    async fn decide(&self, _asked: &Asked) -> Decision {
        Decision::Deny(Refusal::denied("everything is denied"))
    }

    fn name(&self) -> &str {
        "deny all"
    }
}
