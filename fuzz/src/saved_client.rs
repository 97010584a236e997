//! A client saved and restored at any step of a conversation with a host that follows no rule, and one restored from
//! bytes that somebody has changed.

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::client::{Client, ClientAction, ClientConfig, Policy};
use vmbus_core::saved::SavedClient;

use crate::client::{Guest, MAX_STEPS, Step};
use crate::saved_server::change;

/// Plays the conversation that the bytes describe with restarts in between; in the end the state is forged.
pub fn run(bytes: &[u8]) {
    restore_forged(bytes, Policy::AllowAll);
    let mut input = Unstructured::new(bytes);
    let asks = bool::arbitrary(&mut input).unwrap_or_default();
    let policy = if asks { Policy::Ask } else { Policy::AllowAll };
    let mut guest = Guest::new(policy);
    if bool::arbitrary(&mut input).unwrap_or_default() {
        guest.begin();
    }
    for _ in 0..MAX_STEPS {
        let Ok((step, restart, forge)) = Arbitrary::arbitrary(&mut input) else { break };
        let step: Step = step;
        guest.take(step);
        if restart {
            guest.restart(policy);
        }
        if forge {
            let mut saved = guest.client.save().expect("all actions were taken").encode();
            change(&mut saved, &mut input);
            restore_forged(&saved, policy);
        }
        if input.is_empty() {
            break;
        }
    }
    guest.end();
}

fn config(policy: Policy) -> ClientConfig {
    ClientConfig { policy, ..ClientConfig::default() }
}

impl Guest {
    /// Another client goes on, which asks again what nobody has answered and nothing else.
    fn restart(&mut self, policy: Policy) {
        let saved = self.client.save().expect("all actions were taken");
        let decoded = SavedClient::decode(&saved.encode()).expect("our own encoding");
        let mut client = Client::restore(config(policy), decoded).expect("our own state");
        while let Some(action) = client.poll_action() {
            let ClientAction::Ask { id, .. } = action else { panic!("a restored client does {action:?}") };
            assert!(self.asked.contains(&id));
        }
        assert_eq!(client.save().as_ref(), Ok(&saved));
        self.client = client;
    }
}

/// What is restored ends when it is reset.
fn restore_forged(bytes: &[u8], policy: Policy) {
    let Ok(saved) = SavedClient::decode(bytes) else { return };
    let Ok(mut client) = Client::restore(config(policy), saved) else { return };
    assert!(client.channels().count() <= 2047);
    client.reset();
    assert_eq!(client.connection(), None);
    assert_eq!(client.channels().count(), 0);
}
