//! RNDIS requests under way, by their number.

use std::collections::BTreeMap;

use vmbus_core::network::rndis::{Message, MessageType, Status};

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Ticket(u32);

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Ended {
    pub(in super::super) status: Status,
    pub(in super::super) data: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Waiting(MessageType),
    Ended(Ended),
}

/// Those that wait for their answer, and those whose answer waits for who asked.
#[derive(Debug, Default)]
pub(super) struct Requests {
    last: u32,
    states: BTreeMap<u32, State>,
}

impl Requests {
    /// Begins a request; gives its bytes.
    pub(super) fn begin<'a>(&mut self, message: impl FnOnce(u32) -> Message<'a>) -> (Ticket, Vec<u8>) {
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.states.contains_key(&self.last) {
                break;
            }
        }
        let message = message(self.last);
        let kind = match &message {
            Message::Query { .. } => Some(MessageType::QUERY),
            Message::Set { .. } => Some(MessageType::SET),
            Message::KeepAlive { .. } => Some(MessageType::KEEPALIVE),
            Message::Reset => Some(MessageType::RESET),
            Message::Initialize { .. } => Some(MessageType::INITIALIZE),
            // Nobody answers it; the others are answers.
            Message::Halt { .. }
            | Message::InitializeComplete(_)
            | Message::QueryComplete { .. }
            | Message::SetComplete { .. }
            | Message::ResetComplete { .. }
            | Message::IndicateStatus { .. }
            | Message::KeepAliveComplete { .. } => None,
        };
        if let Some(kind) = kind {
            self.states.insert(self.last, State::Waiting(kind));
        }
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        (Ticket(self.last), bytes)
    }

    /// The answer to a request of this kind. `None`: nobody waits for it.
    pub(super) fn ended(
        &mut self,
        request: u32,
        kind: MessageType,
        status: Status,
        data: &[u8],
    ) -> Option<Ticket> {
        let state = self.states.get_mut(&request)?;
        match state {
            State::Waiting(waits) if *waits == kind => {
                *state = State::Ended(Ended { status, data: data.to_vec() });
                Some(Ticket(request))
            }
            State::Waiting(_) | State::Ended(_) => None,
        }
    }

    /// RESET's answer has no number: it is the oldest one's. `false`: nobody waits for one.
    pub(super) fn reset_ended(&mut self, status: Status) -> bool {
        let waits = |state: &State| matches!(state, State::Waiting(MessageType::RESET));
        let Some(state) = self.states.values_mut().find(|state| waits(state)) else { return false };
        *state = State::Ended(Ended { status, data: Vec::new() });
        true
    }

    /// How a request ended, once. One that is not known any more was interrupted by its root's end.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Ended> {
        match self.states.get(&ticket.0)? {
            State::Waiting(_) => None,
            State::Ended(_) => match self.states.remove(&ticket.0)? {
                State::Ended(ended) => Some(ended),
                State::Waiting(_) => None,
            },
        }
    }

    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.states.remove(&ticket.0);
    }

    pub(super) fn clear(&mut self) {
        self.states.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_ends_once_by_an_answer_of_its_kind() {
        let mut requests = Requests::default();
        let (one, _) = requests.begin(|request| Message::KeepAlive { request });
        let (two, _) = requests.begin(|_| Message::Reset);
        assert_eq!(requests.ended(one.0, MessageType::SET, Status::SUCCESS, &[]), None, "another kind");
        assert_eq!(requests.ended(9, MessageType::SET, Status::SUCCESS, &[]), None, "never asked");
        assert_eq!(requests.take(one), None);
        assert_eq!(requests.ended(one.0, MessageType::KEEPALIVE, Status::SUCCESS, &[]), Some(one));
        assert_eq!(requests.ended(one.0, MessageType::KEEPALIVE, Status::FAILURE, &[]), None, "again");
        assert_eq!(requests.take(one).map(|ended| ended.status), Some(Status::SUCCESS));
        assert_eq!(requests.take(one), None);

        assert!(requests.reset_ended(Status::FAILURE));
        assert!(!requests.reset_ended(Status::SUCCESS), "again");
        assert_eq!(requests.take(two).map(|ended| ended.status), Some(Status::FAILURE));
        assert!(requests.states.is_empty());
    }
}
