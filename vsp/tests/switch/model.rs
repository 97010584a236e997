//! The switch beside a plain model of what each port must get, with the same random steps.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use proptest::prelude::*;
use vmbus_vsp::network::switch::{
    Isolation, MacAddress, Mirror, Mirrored, Offload, PortSettings, Senders, Vlan, VlanMode,
};

use crate::world::{Station, World, frame, mac};

const PORTS: usize = 5;
const AGEING: Duration = Duration::from_secs(160);

#[derive(Clone, Debug)]
enum Step {
    Connect(usize, PortSettings),
    Disconnect(usize),
    Reconfigure(usize, PortSettings),
    Send(usize, Vec<Sent>),
    Pass(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    from: u16,
    /// `None` is everybody.
    to: Option<u16>,
    tag: Option<u16>,
}

fn settings() -> impl Strategy<Value = PortSettings> {
    let vlan = prop_oneof![
        4 => Just(VlanMode::Access(0)),
        2 => (1_u16..3).prop_map(VlanMode::Access),
        2 => (prop::option::of(0_u16..3), prop::collection::vec(1_u16..4, 0..3)).prop_map(|(native, tagged)| {
            VlanMode::Trunk { native, tagged: tagged.into_iter().collect() }
        }),
    ];
    let isolation = prop_oneof![
        4 => Just(Isolation::None),
        1 => Just(Isolation::Private),
        1 => (0_u16..2).prop_map(Isolation::Community),
    ];
    let senders = prop_oneof![
        4 => Just(Senders::Any),
        1 => prop::collection::vec((0_u16..6).prop_map(mac), 1..3).prop_map(Senders::Only),
    ];
    let mirror = prop_oneof![
        6 => Just(Mirror::Off),
        1 => Just(Mirror::Source(Mirrored::Sent)),
        1 => Just(Mirror::Source(Mirrored::Received)),
        1 => Just(Mirror::Destination),
    ];
    (vlan, isolation, senders, mirror).prop_map(|(vlan, isolation, senders, mirror)| PortSettings {
        vlan,
        isolation,
        senders,
        mirror,
        ..PortSettings::new("port")
    })
}

fn step() -> impl Strategy<Value = Step> {
    let sent = (0_u16..6, prop::option::weighted(0.8, 0_u16..6), prop::option::weighted(0.3, 0_u16..4))
        .prop_map(|(from, to, tag)| Sent { from, to, tag });
    prop_oneof![
        2 => (0..PORTS, settings()).prop_map(|(port, settings)| Step::Connect(port, settings)),
        1 => (0..PORTS).prop_map(Step::Disconnect),
        1 => (0..PORTS, settings()).prop_map(|(port, settings)| Step::Reconfigure(port, settings)),
        8 => (0..PORTS, prop::collection::vec(sent, 1..6)).prop_map(|(port, frames)| Step::Send(port, frames)),
        1 => (1_u64..200).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
    ]
}

/// What must be.
#[derive(Default)]
struct Model {
    ports: [Option<PortSettings>; PORTS],
    /// Port and time of each station.
    known: HashMap<(u16, u16), (usize, Duration)>,
    now: Duration,
}

impl Model {
    /// Whether a port may be treated so: nobody else has its addresses.
    fn admits(&self, port: usize, settings: &PortSettings) -> bool {
        let Senders::Only(wanted) = &settings.senders else { return true };
        let mut others = self.ports.iter().enumerate().filter(|(other, _)| *other != port);
        others.all(|(_, other)| match other.as_ref().map(|other| &other.senders) {
            Some(Senders::Only(owned)) => owned.iter().all(|address| !wanted.contains(address)),
            Some(Senders::Any) | None => true,
        })
    }

    fn set(&mut self, port: usize, settings: Option<PortSettings>) {
        self.known.retain(|_, (at, _)| *at != port);
        if let Some(PortSettings { senders: Senders::Only(owned), vlan, mirror, .. }) = &settings {
            self.known.retain(|(_, station), _| !owned.contains(&mac(*station)));
            if let (VlanMode::Access(vlan), true) = (vlan, *mirror != Mirror::Destination) {
                for station in (0..6).filter(|station| owned.contains(&mac(*station))) {
                    self.known.insert((*vlan, station), (port, Duration::MAX));
                }
            }
        }
        self.ports[port] = settings;
    }

    fn owner(&self, station: u16) -> Option<usize> {
        self.ports.iter().position(|port| match port.as_ref().map(|port| &port.senders) {
            Some(Senders::Only(owned)) => owned.contains(&mac(station)),
            Some(Senders::Any) | None => false,
        })
    }

    /// Who gets each frame of a batch, with which tag. The whole batch is looked at before anybody new is known.
    fn send(&mut self, port: usize, frames: &[Sent]) -> Vec<Vec<Option<u16>>> {
        let Some(sender) = self.ports[port].clone() else { return vec![] };
        let mut learned = Vec::new();
        let mut got = vec![Vec::new(); PORTS];
        let nobody = BTreeSet::new();
        let mut fates = Vec::new();
        for sent in frames {
            let vlan = match (&sender.vlan, sent.tag.unwrap_or(0)) {
                _ if sender.mirror == Mirror::Destination => None,
                (VlanMode::Access(vlan), 0) => Some(*vlan),
                (VlanMode::Trunk { native, .. }, 0) => *native,
                (VlanMode::Trunk { tagged, .. }, tag) => tagged.contains(tag).then_some(tag),
                (VlanMode::Access(_), _) => None,
            };
            let Some(vlan) = vlan else {
                fates.push((0, nobody.clone(), false));
                continue;
            };
            let shown = sender.mirror == Mirror::Source(Mirrored::Sent);
            let own = match &sender.senders {
                Senders::Any => self.owner(sent.from).is_none(),
                Senders::Only(own) => own.contains(&mac(sent.from)),
            };
            if !own {
                fates.push((vlan, nobody.clone(), shown));
                continue;
            }
            let now = self.now;
            match self.known.get_mut(&(vlan, sent.from)) {
                // Not written anew each time.
                Some((at, seen)) if *at == port => {
                    if now.saturating_sub(*seen) > AGEING / 16 {
                        *seen = now;
                    }
                }
                Some(_) | None => learned.push((vlan, sent.from)),
            }
            let at = sent
                .to
                .and_then(|to| self.known.get(&(vlan, to)))
                .filter(|(_, seen)| now.saturating_sub(*seen) <= AGEING);
            let carries = |to: usize| {
                self.ports[to].as_ref().is_some_and(|receiver| match &receiver.vlan {
                    VlanMode::Access(own) => *own == vlan,
                    VlanMode::Trunk { native, tagged } => *native == Some(vlan) || tagged.contains(vlan),
                })
            };
            let is_mirror =
                |to: usize| self.ports[to].as_ref().is_some_and(|port| port.mirror == Mirror::Destination);
            let may = |to: usize| {
                let receiver = self.ports[to].as_ref();
                let isolated = receiver.is_none_or(|receiver| !sender.isolation.permits(receiver.isolation));
                to != port && carries(to) && !isolated
            };
            let owner = sent.to.and_then(|to| self.owner(to)).filter(|to| carries(*to) && !is_mirror(*to));
            let receivers = match (at.map(|(to, _)| *to).or(owner), sent.to) {
                (Some(to), _) => [to].into_iter().filter(|to| may(*to)).collect(),
                (None, to) => (0..PORTS)
                    .filter(|to| may(*to))
                    .filter(|port| {
                        let receiver = self.ports[*port].as_ref().expect("a port");
                        let strangers = to.is_none() || receiver.senders == Senders::Any;
                        strangers && receiver.mirror != Mirror::Destination
                    })
                    .collect(),
            };
            fates.push((vlan, receivers, shown));
        }
        for (vlan, receivers, shown) in fates {
            let is =
                |port: usize, mirror| self.ports[port].as_ref().is_some_and(|port| port.mirror == mirror);
            let mirrored = shown || receivers.iter().any(|to| is(*to, Mirror::Source(Mirrored::Received)));
            for (to, got) in got.iter_mut().enumerate() {
                let receiver = self.ports[to].as_ref();
                let untagged = receiver.is_some_and(|receiver| match &receiver.vlan {
                    VlanMode::Access(own) => *own == vlan,
                    VlanMode::Trunk { native, .. } => *native == Some(vlan),
                });
                let tag = (vlan != 0).then_some(vlan);
                if receivers.contains(&to) {
                    got.push(tag.filter(|_| !untagged));
                } else if mirrored && is(to, Mirror::Destination) {
                    got.push(tag);
                }
            }
        }
        let now = self.now;
        self.known.extend(learned.into_iter().map(|station| (station, (port, now))));
        got
    }
}

fn run(steps: Vec<Step>) {
    let world = World::with(|builder| builder.ageing(AGEING));
    let mut stations: [Option<Station>; PORTS] = Default::default();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Connect(port, settings) => {
                let may = model.admits(port, &settings);
                if stations[port].is_none() && may {
                    stations[port] = Some(world.port_with(settings.clone()));
                    model.set(port, Some(settings));
                }
            }
            Step::Disconnect(port) => {
                stations[port] = None;
                model.set(port, None);
            }
            Step::Reconfigure(port, settings) => {
                if let Some(station) = &stations[port] {
                    let done = station.connection.reconfigure(settings.clone());
                    assert_eq!(done.is_ok(), model.admits(port, &settings), "{done:?}");
                    if done.is_ok() {
                        model.set(port, Some(settings));
                    }
                }
            }
            Step::Send(port, frames) => {
                let Some(sender) = &stations[port] else { continue };
                let mut batch = vmbus_vsp::network::switch::Batch::new();
                for sent in &frames {
                    let to = sent.to.map_or(MacAddress::BROADCAST, mac);
                    let vlan = sent.tag.map(|id| Vlan { id, priority: 0, drop_eligible: false });
                    let offload = Offload { vlan, ..Offload::NONE };
                    batch.push(&frame(to, mac(sent.from), "frame"), offload).expect("room");
                }
                sender.connection.send(&mut batch);
                let expected = model.send(port, &frames);
                for (port, (station, expected)) in stations.iter().zip(expected).enumerate() {
                    let got = station.as_ref().map_or(vec![], Station::received_with_offloads);
                    let tags =
                        got.iter().map(|(_, offload)| offload.vlan.map(|vlan| vlan.id).filter(|id| *id != 0));
                    assert_eq!(tags.collect::<Vec<_>>(), expected, "at port {port}");
                }
            }
            Step::Pass(time) => {
                world.pass(time);
                model.now += time;
            }
        }
        world.assert_balance();
    }
}

proptest! {
    #[test]
    fn each_port_gets_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        run(steps);
    }
}
