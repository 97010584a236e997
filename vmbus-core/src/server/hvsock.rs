//! hvsock connects of the guest: to be answered by an offer or a refusal.

use alloc::collections::BTreeSet;

use zerocopy::little_endian::I32;

use super::{Quota, Server, ServerAction, refusal};
use crate::message::{Message, TlConnectRequest, TlConnectResult};
use crate::{Guid, Status};

/// A guest's wish to connect to a service of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectRequest {
    /// The guest's end; the offer's instance.
    pub endpoint: Guid,
    /// The service.
    pub service: Guid,
    /// Silo; zero before 5.2 and where the guest gives none.
    pub silo: Guid,
}

/// Connects that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Connects {
    pub(super) waiting: BTreeSet<ConnectRequest>,
}

impl Connects {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

impl Server {
    pub(super) fn connect(&mut self, message: &TlConnectRequest) {
        let request = ConnectRequest {
            endpoint: message.endpoint_id,
            service: message.service_id,
            silo: message.silo_id,
        };
        let limit = self.config.quotas.connects;
        if self.connects.len() >= limit {
            self.over_quota(Quota::Connects, limit);
            return self.refuse_connect(&request, Status::INSUFFICIENT_RESOURCES);
        }
        if self.connects.waiting.insert(request) {
            self.act(ServerAction::Connect(request));
        }
    }

    pub(super) fn connect_result(&mut self, request: ConnectRequest, result: Result<(), Status>) {
        if !self.connects.waiting.remove(&request) {
            // The connection that it belonged to has ended.
            return;
        }
        if let Err(status) = result {
            self.refuse_connect(&request, status);
        }
    }

    fn refuse_connect(&mut self, request: &ConnectRequest, status: Status) {
        let message = Message::from(TlConnectResult {
            endpoint_id: request.endpoint,
            service_id: request.service,
            status: I32::from_bytes(refusal(status).to_le_bytes()),
        });
        // In 4.0 a refusal cannot be told.
        if self.connection().is_some_and(|connection| connection.version >= message.info().first_version) {
            self.send(message);
        }
    }
}
