//! A server saved and restored at any step of a conversation with a guest that follows no rule, and one restored from
//! bytes that somebody has changed.

use arbitrary::{Arbitrary, Unstructured};
use vmbus_core::saved::SavedServer;
use vmbus_core::server::{Answer, Presence, Server, ServerAction, ServerConfig, ServerInput, Usage, Whose};

use crate::server::{Host, MAX_STEPS, Opened, QUOTAS, Step};

/// Plays the conversation that the bytes describe with restarts in between; in the end the state is forged.
pub fn run(bytes: &[u8]) {
    // As they are, too.
    restore_forged(bytes, &mut Unstructured::new(bytes));
    let mut input = Unstructured::new(bytes);
    let mut host = Host::new(config());
    if bool::arbitrary(&mut input).unwrap_or_default() {
        host.begin();
    }
    for _ in 0..MAX_STEPS {
        let Ok((step, restart, forge)) = Arbitrary::arbitrary(&mut input) else { break };
        let step: Step = step;
        host.take(step);
        if restart {
            host.restart();
        }
        if forge {
            let mut saved = host.server.save().expect("all actions were taken").encode();
            change(&mut saved, &mut input);
            restore_forged(&saved, &mut input);
        }
        if input.is_empty() {
            break;
        }
    }
    host.end();
}

fn config() -> ServerConfig {
    ServerConfig { quotas: QUOTAS, ..ServerConfig::default() }
}

impl Host {
    /// Another server goes on, which asks again for what is owed and nothing else.
    fn restart(&mut self) {
        let opening = self.opens.values().any(|open| open.1 == Opened::Opening);
        if self.server.connection().is_none() && opening {
            // An open for nobody ends with the restore; here each is answered by the script.
            return;
        }
        let saved = self.server.save().expect("all actions were taken");
        let decoded = SavedServer::decode(&saved.encode()).expect("our own encoding");
        let mut server = Server::restore(config(), decoded).expect("our own state");
        for device in server.unattached().map(|channel| channel.device).collect::<Vec<_>>() {
            server.handle(ServerInput::Restored { device, presence: Presence::Back });
        }
        let (mut lists, mut served, mut releasing) = (0, 0, 0);
        while let Some(action) = server.poll_action() {
            match action {
                ServerAction::Ask { id, .. } => assert!(self.asked.contains(&id)),
                ServerAction::Connect(request) => assert!(self.connects.contains(&request)),
                ServerAction::Gpadl { relid, gpadl, .. } => {
                    assert!(self.lists.contains_key(&(relid, gpadl)));
                    lists += 1;
                }
                ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                    assert_eq!(self.lists.get(&(relid, gpadl)), Some(&true));
                    releasing += 1;
                }
                ServerAction::Open { relid, .. } => {
                    assert_eq!(self.opens[&relid].1, Opened::Opening);
                    served += 1;
                }
                ServerAction::Reattach { relid, .. } => {
                    assert_eq!(self.opens[&relid].1, Opened::Open);
                    served += 1;
                }
                ServerAction::Close { relid, .. } => {
                    assert_eq!(self.opens[&relid].1, Opened::Closing);
                    served += 1;
                }
                other => panic!("a restored server does {other:?}"),
            }
        }
        assert_eq!((lists, served), (self.lists.len(), self.opens.len()));
        assert_eq!(releasing, self.lists.values().filter(|asked_back| **asked_back).count());
        assert_eq!(server.save().as_ref(), Ok(&saved));
        self.server = server;
    }
}

/// Changes some bytes, as the input says.
pub(crate) fn change(bytes: &mut [u8], input: &mut Unstructured<'_>) {
    let changes: Option<[(u16, u8); 3]> = Arbitrary::arbitrary(input).ok();
    for (at, value) in changes.unwrap_or_default() {
        let len = bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(usize::from(at) % len) {
            *byte = value;
        }
    }
}

/// What is restored keeps its quotas and ends when its guest is reset.
fn restore_forged(bytes: &[u8], input: &mut Unstructured<'_>) {
    let Ok(saved) = SavedServer::decode(bytes) else { return };
    let Ok(mut server) = Server::restore(config(), saved) else { return };
    assert_within(&server.usage());
    for device in server.unattached().map(|channel| channel.device).collect::<Vec<_>>() {
        let gone = bool::arbitrary(input).unwrap_or_default();
        let presence = if gone { Presence::Gone } else { Presence::Back };
        server.handle(ServerInput::Restored { device, presence });
    }
    answer(&mut server);
    assert_within(&server.usage());
    server.handle(ServerInput::Reset);
    assert!(answer(&mut server), "a reset ends");
    assert_eq!(server.usage(), Usage::default());
}

/// Does what the server wants. Whether it was disconnected.
fn answer(server: &mut Server) -> bool {
    let mut ended = false;
    while let Some(action) = server.poll_action() {
        match action {
            ServerAction::Ask { id, .. } => {
                server.handle(ServerInput::Decided { id, answer: Answer::Allow });
            }
            ServerAction::Open { relid, .. } => server.handle(ServerInput::Opened { relid, result: Ok(()) }),
            ServerAction::Close { relid, .. } => server.handle(ServerInput::Closed { relid }),
            ServerAction::ReleaseGpadl { relid, gpadl, .. } => {
                server.handle(ServerInput::GpadlReleased { relid, gpadl });
            }
            ServerAction::Connect(request) => {
                server.handle(ServerInput::ConnectResult { request, result: Ok(()) });
            }
            ServerAction::Fault(fault) => assert_eq!(fault.whose(), Whose::Peer, "{fault}"),
            ServerAction::Disconnected => ended = true,
            _ => {}
        }
    }
    ended
}

fn assert_within(usage: &Usage) {
    assert!(usage.channels <= QUOTAS.channels, "{usage:?}");
    assert!(usage.half_built_gpadls <= QUOTAS.half_built_gpadls, "{usage:?}");
    assert!(usage.half_built_words <= QUOTAS.half_built_words, "{usage:?}");
    assert!(usage.gpadls <= QUOTAS.gpadls, "{usage:?}");
    assert!(usage.pages <= QUOTAS.pages, "{usage:?}");
    assert!(usage.questions <= QUOTAS.questions, "{usage:?}");
    assert!(usage.connects <= QUOTAS.connects, "{usage:?}");
}
