//! A client without a bus, for tests of what a provider can say and write.

use vmbus_core::memory::SharedMemory;
use vmbus_core::network::nvsp;

use super::conversation::{Action, Buffers, Conversation, Input};
use super::error::NicError;
use super::options::{NicInfo, NicOptions};
use super::receive::{self, Division, Malformed};

/// What a provider says.
#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    /// The completion of an NVSP message.
    Answer(&'a [u8]),
    /// An RNDIS message about the device.
    Control(&'a [u8]),
    /// An NVSP message that answers nothing.
    Notice(&'a [u8]),
}

/// The client's half of a conversation. Its buffers are described to the root as soon as it wants that.
#[derive(Debug)]
pub struct BareNic {
    conversation: Conversation,
    receive_len: usize,
}

impl BareNic {
    /// One whose channel has just been opened, with buffers of so many bytes.
    pub fn new(options: &NicOptions, receive_len: usize, send_len: usize) -> Self {
        let buffers = Buffers { receive_len, receive_name: 0xcafe, send_len };
        Self { conversation: Conversation::begin(options, buffers, None), receive_len }
    }

    /// Takes what the provider says.
    ///
    /// # Errors
    /// As [`Nic::open_device`](super::Nic::open_device), until it is ready.
    pub fn hear(&mut self, said: Said<'_>) -> Result<(), NicError> {
        self.conversation.handle(match said {
            Said::Answer(bytes) => Input::Answer(bytes),
            Said::Control(bytes) => Input::Control(bytes),
            Said::Notice(bytes) => Input::Notice(bytes),
        })
    }

    /// Asks the device whether it is there.
    pub fn ask(&mut self) {
        let ticket = self.conversation.keep_alive();
        self.conversation.forget(ticket);
    }

    /// The messages that the client sends now: NVSP, or RNDIS about the device.
    pub fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Some(action) = self.conversation.poll_action() {
            match action {
                Action::Ask(message) | Action::Tell(message) => messages.push(message.to_vec()),
                Action::Control(message) => messages.push(message),
                Action::Share(buffer) => {
                    let list = match buffer {
                        nvsp::Buffer::Receive => 1,
                        nvsp::Buffer::Send => 2,
                    };
                    // Never refused.
                    let _ = self.conversation.handle(Input::Shared(buffer, list));
                }
                Action::Event(_) => {}
            }
        }
        messages
    }

    /// What the NIC is, once it is ready.
    pub fn info(&self) -> Option<NicInfo> {
        self.conversation.ready().map(|(_, info)| info)
    }

    /// Visits the frames that a packet names by these ranges (offset, length) of the receive buffer, each as parts of the
    /// buffer with its length; gives how many messages were none.
    pub fn frames(
        &self,
        memory: &impl SharedMemory,
        ranges: &[(u32, u32)],
        mut each: impl FnMut(&[(u32, u32)], usize),
    ) -> u64 {
        let Some(agreement) = self.conversation.dividing() else { return 0 };
        let each = |place: receive::Place| each(&place.parts, place.len);
        receive::visit(memory, &Division::new(self.receive_len, &agreement), ranges, each)
    }

    /// Hears the message about the device that a packet names; gives how many were none.
    ///
    /// # Errors
    /// As [`hear`](Self::hear).
    pub fn hear_packet(
        &mut self,
        memory: &impl SharedMemory,
        ranges: &[(u32, u32)],
    ) -> Result<u64, NicError> {
        let Some(agreement) = self.conversation.dividing() else { return Ok(0) };
        match receive::control(memory, &Division::new(self.receive_len, &agreement), ranges) {
            Ok(message) => self.hear(Said::Control(&message)).map(|()| 0),
            Err(Malformed) => Ok(1),
        }
    }
}
