//! Serves one guest's open channel to a controller.
//!
//! Requests are taken in batches. What ends at once is completed with its batch, without allocation or lock of ours;
//! what waits for a medium becomes a task of its own, which completes its request whenever it is done. How many there
//! are at a time is bounded by what the offer lets the channel have in flight.
//!
//! A guest that asks for sub-channels gets a session for each, which runs commands alone and shares with the first
//! whatever concerns the guest as a whole.

use std::sync::{Arc, OnceLock};

use prost::Message as _;
use tokio::task::coop::consume_budget;
use vmbus_channels::{Channel, ChannelError, Completions, OpenRequest, Request, Session};
use vmbus_core::storage::scsi::Failure;
use vmbus_core::storage::{DataDirection, Notice, Outcome, Srb};

use super::in_flight::InFlight;
use super::lun::Execution;
use super::target::Target;
use super::vstor::{Reply, ResetScope, State, Step, Vstor, VstorFault};

/// Requests taken at a time: few enough to stay in the first-level cache until they are completed.
const TAKEN_AT_ONCE: usize = 16;
/// How many requests ahead a backend is told of a read.
const FORESIGHT: usize = 2;
/// Completions that share one signal at most.
const COMPLETED_AT_ONCE: usize = 64;

/// The conversation with one guest and its view of the disks.
#[derive(Debug)]
pub struct StorageSession {
    vstor: Vstor,
    target: Target,
    /// Commands of all the guest's channels that wait for a medium.
    commands: Arc<InFlight>,
    /// The conversation once commands may come, for sub-channels.
    ready: Arc<OnceLock<Vstor>>,
    role: Role,
}

/// What all sessions of one guest share.
#[derive(Clone, Debug, Default)]
pub(super) struct Family {
    commands: Arc<InFlight>,
    ready: Arc<OnceLock<Vstor>>,
}

/// Which channel a session serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    SubChannel,
}

impl Session for StorageSession {
    async fn serve(mut self, channel: Channel) -> Result<(), ChannelError> {
        if matches!(self.vstor.state(), State::Ready(_)) {
            channel.answer_abandoned_with(self.vstor.abandoned().as_bytes().to_vec());
        }
        let mut completions = channel.completions();
        let mut requests = Vec::with_capacity(TAKEN_AT_ONCE);
        let mut steps = Vec::with_capacity(TAKEN_AT_ONCE);
        loop {
            if channel.try_recv(TAKEN_AT_ONCE, &mut requests)? == 0 {
                if !completions.is_empty() {
                    completions.send().await?;
                    continue;
                }
                tokio::select! {
                    biased;
                    request = channel.recv() => match request? {
                        Some(request) => requests.push(request),
                        None => {
                            if channel.is_saving() {
                                channel.save_state(self.vstor.save().encode_to_vec());
                            }
                            return Ok(());
                        }
                    },
                    () = self.target.changed() => {}
                }
            }
            for request in &requests {
                let step = match self.role {
                    Role::Primary => self.vstor.handle(request.payload()),
                    Role::SubChannel => self.handle_on_sub_channel(request.payload()),
                };
                steps.push(step.map_err(|fault| ChannelError::Protocol(fault.to_string()))?);
            }
            for (at, (request, step)) in requests.drain(..).zip(&steps).enumerate() {
                if let Some(Step::Execute(srb)) = steps.get(at + FORESIGHT) {
                    self.target.expect(srb);
                }
                match *step {
                    Step::CreateSubChannels(count, reply) => {
                        self.create_sub_channels(count, reply, request, &channel, &mut completions).await?;
                    }
                    Step::Execute(_) | Step::Reset(..) | Step::Reply(_) => {
                        self.start(request, step, &channel, &mut completions)?;
                    }
                }
                if completions.are_awaited() || completions.len() >= COMPLETED_AT_ONCE {
                    completions.send().await?;
                }
                // A guest that never pauses must not keep its thread from the other guests.
                consume_budget().await;
            }
            steps.clear();
            self.tell_changes(&channel).await?;
        }
    }
}

impl StorageSession {
    pub(super) fn new(vstor: Vstor, target: Target) -> Self {
        Self { vstor, target, commands: Arc::default(), ready: Arc::default(), role: Role::Primary }
    }

    /// Where another session of the same guest has left. `family` is what the guest's channels have in common.
    pub(super) fn restored(vstor: Vstor, target: Target, family: &Family, role: Role) -> Self {
        let Family { commands, ready } = family.clone();
        if matches!(vstor.state(), State::Ready(_)) {
            ready.get_or_init(|| vstor.clone());
        }
        Self { vstor, target, commands, ready, role }
    }

    /// Until the primary channel is ready for commands there are none here.
    fn handle_on_sub_channel(&mut self, payload: &[u8]) -> Result<Step, VstorFault> {
        if !matches!(self.vstor.state(), State::Ready(_))
            && let Some(vstor) = self.ready.get()
        {
            self.vstor = vstor.clone();
        }
        self.vstor.handle_on_sub_channel(payload)
    }

    /// Offers what the guest asks for, and says so when the offers are on their way.
    #[cold]
    async fn create_sub_channels(
        &mut self,
        count: u16,
        reply: Reply,
        request: Request,
        channel: &Channel,
        completions: &mut Completions,
    ) -> Result<(), ChannelError> {
        let (target, vstor) = (self.target.another(), self.vstor.clone());
        let (commands, ready) = (Arc::clone(&self.commands), Arc::clone(&self.ready));
        let offered = channel.offer_subchannels(count, move |_: &OpenRequest| {
            Ok(Self {
                vstor: ready.get().unwrap_or(&vstor).clone(),
                target: target.another(),
                commands: Arc::clone(&commands),
                ready: Arc::clone(&ready),
                role: Role::SubChannel,
            })
        });
        let reply = match offered.await {
            Ok(()) => reply,
            Err(refusal) => self.vstor.sub_channels_refused(&reply, refusal.status),
        };
        completions.push(request, reply.as_bytes())
    }

    #[inline]
    fn start(
        &mut self,
        request: Request,
        step: &Step,
        channel: &Channel,
        completions: &mut Completions,
    ) -> Result<(), ChannelError> {
        if !request.wants_completion() {
            return Err(ChannelError::Protocol("a storage request that wants no answer".to_owned()));
        }
        match *step {
            Step::Execute(srb) => match self.execute(&request, &srb) {
                Execution::Done(outcome) => {
                    completions.push(request, self.vstor.completion(&srb, &outcome).as_bytes())
                }
                Execution::Later(rest) => {
                    self.finish_later(request, srb, rest);
                    Ok(())
                }
            },
            Step::Reset(scope, reply) => {
                self.reset(scope, request, reply);
                Ok(())
            }
            Step::CreateSubChannels(_, reply) | Step::Reply(reply) => {
                if matches!(self.vstor.state(), State::Ready(_)) {
                    self.ready.get_or_init(|| self.vstor.clone());
                    channel.answer_abandoned_with(self.vstor.abandoned().as_bytes().to_vec());
                }
                completions.push(request, reply.as_bytes())
            }
        }
    }

    #[inline]
    fn execute(&self, request: &Request, srb: &Srb) -> Execution {
        // A longer one would keep this thread from everybody else for as long as its copy takes.
        if srb.data_transfer_length.get() > self.vstor.max_transfer() {
            return Execution::Done(Failure::InvalidField.outcome());
        }
        let data = match request.ranges() {
            [] => None,
            [pages] => Some(pages),
            [_, _, ..] => return Execution::Done(Failure::InvalidField.outcome()),
        };
        if srb.direction() != DataDirection::ToDevice {
            request.mark_written();
        }
        self.target.execute(srb, data)
    }

    #[cold]
    fn finish_later(&self, request: Request, srb: Srb, rest: impl Future<Output = Outcome> + Send + 'static) {
        let (vstor, ticket) = (self.vstor.clone(), self.commands.take_off());
        // A task of its own: the medium must finish what it has begun, even if the guest is gone meanwhile.
        tokio::spawn(async move {
            let outcome = rest.await;
            // The channel may have ended; then nobody waits for this.
            let _ = request.complete(vstor.completion(&srb, &outcome).as_bytes()).await;
            drop(ticket);
        });
    }

    /// Commands under way end first: nothing of before the reset is left when it has been answered.
    #[cold]
    fn reset(&self, scope: ResetScope, request: Request, reply: Reply) {
        match scope {
            ResetScope::Lun(address) => {
                self.target.reset(address);
            }
            ResetScope::Controller => self.target.reset_all(),
        }
        let earlier = self.commands.earlier();
        tokio::spawn(async move {
            earlier.await;
            let _ = request.complete(reply.as_bytes()).await;
        });
    }

    /// Tells the guest of disks that have come and gone.
    #[inline]
    async fn tell_changes(&mut self, channel: &Channel) -> Result<(), ChannelError> {
        let Some(changes) = self.target.refresh() else { return Ok(()) };
        if self.role == Role::SubChannel {
            return Ok(());
        }
        let removed = changes.removed.then_some(Notice::RemoveDevice);
        let added = changes.added.then_some(Notice::EnumerateBus);
        for notice in removed.into_iter().chain(added) {
            if let Some(packet) = self.vstor.notice(notice) {
                channel.notify(packet.as_bytes()).await?;
            }
        }
        Ok(())
    }
}
