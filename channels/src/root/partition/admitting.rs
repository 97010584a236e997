//! Whether a partition may be one at all, which policy is asked before anything is offered to it.

use std::pin::pin;
use std::sync::Arc;

use vmbus_partition::{RefusedWhat, RootEnd};

use super::{Command, Partition, Sources};
use crate::event::Event;
use crate::policy::{Limits, PartitionKind, Question, Who};
use crate::provider::Client;
use crate::sources;

impl Partition {
    /// Asks whether this partition may attach, and sets its quotas. `Err`: it may not, or is gone already.
    pub(super) async fn admit(&mut self, sources: &Sources) -> Result<(), String> {
        let question = Question::Attach { memory: self.end.memory().size() };
        let described = question.to_string();
        let (asker, who) = (Arc::clone(&self.root.policy), self.who.clone());
        let mut asking = pin!(asker.ask(&who, question));
        let verdict = loop {
            tokio::select! {
                biased;
                verdict = &mut asking => break verdict,
                command = self.inbox.recv() => match command {
                    Some(command @ (Command::Status(_) | Command::Limit(_) | Command::Hvsock(_))) => {
                        _ = self.command(command);
                    }
                    Some(Command::Detach | Command::Save(_)) | None => return Err("detached".into()),
                    // Nothing is offered yet: what there is then it will see.
                    Some(
                        Command::Offer(_)
                        | Command::Withdraw(_)
                        | Command::AskAgain
                        | Command::Answered(_)
                        | Command::Review(_)
                        | Command::EndChannel { .. }
                        | Command::OfferSubchannels { .. }
                        | Command::Overdue { .. }
                        | Command::ListReleased { .. }
                        | Command::Ended { .. },
                    ) => {}
                },
                result = sources::readable(&sources.process) => {
                    result.map_err(|error| error.to_string())?;
                    return Err("gone before it was decided whether it may attach".into());
                }
            }
        };
        match verdict {
            Ok(limits) => {
                self.limit_quotas(&limits);
                let (client, extended) = (self.client.clone(), self.end.info().extended);
                self.root.tell(Event::Attached { client, extended });
                Ok(())
            }
            Err(refusal) => {
                self.refuse(RefusedWhat::Attach, described, &refusal);
                let _ = self.end.flush();
                Err(refusal.reason)
            }
        }
    }

    /// Sets the quotas that policy gives this partition.
    pub(super) fn limit_quotas(&mut self, limits: &Limits) {
        if self.policy_quotas != limits.quotas {
            self.policy_quotas = limits.quotas;
            let mut quotas = self.root.quotas;
            limits.quotas.unwrap_or_default().apply(&mut quotas);
            self.limit(quotas);
        }
    }
}

/// How policy is told of a partition.
pub(super) fn who(end: &dyn RootEnd, client: &Client) -> Who {
    let kind = match (end.info().extended, client.credentials) {
        (false, _) => PartitionKind::Vm,
        (true, Some(_)) => PartitionKind::Process,
        (true, None) => PartitionKind::Local,
    };
    let process = client.credentials.map(Into::into);
    Who { id: client.id, name: Arc::clone(&client.name), kind, process }
}
