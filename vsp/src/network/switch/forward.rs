//! A batch on its way: who gets which frame, and which goes to nobody.

use std::cell::Cell;
use std::sync::{Arc, MutexGuard};

use super::addresses::{Known, Station};
use super::batch::{Arena, Batch};
use super::ip::{self, Claim};
use super::limit::{Bucket, Rate};
use super::mac::MacAddress;
use super::offload::{Checksum, HeaderChecksum, Offload};
use super::settings::{Mirror, Permission, PortSettings, Senders};
use super::statistics::{Count, DropReason};
use super::switch::Shared;
use super::tables::{Link, Tables};
use super::work::{Flood, Work};
use super::{checksum, segment};

/// Ports that send when they are delivered to may do so through so many others.
const DEEPEST: u32 = 4;

/// Stations that are learned from one batch at most; the table is locked meanwhile.
const LEARNED_AT_ONCE: usize = 64;

/// Sends a batch from a port. Gives how many copies that made.
pub(super) fn send(shared: &Shared, link: &Arc<Link>, batch: &mut Batch) -> u64 {
    let (arena, work) = batch.parts();
    if arena.heads.is_empty() {
        return 0;
    }
    work.begin(arena.heads.len());
    let sent = Count { frames: arena.heads.len() as u64, bytes: arena.bytes_of_all() as u64 };
    let copies = match Depth::enter() {
        Some(_depth) => {
            let now = shared.now();
            let tables = shared.read();
            sort(&tables, link, arena, work, now);
            let ports = Arc::clone(&tables.ports);
            drop(tables);
            if !work.learn.is_empty() {
                shared.write().learn(link, work.learn.drain(..), now);
            }
            work.deliver(&ports, link, arena, now)
        }
        None => {
            work.drops.add(DropReason::Loop, sent.frames);
            0
        }
    };
    link.counters.add_sent(sent, sent.frames - work.drops.total(), copies, &work.drops);
    arena.clear();
    copies
}

/// Decides for each frame.
fn sort(tables: &Tables, link: &Arc<Link>, arena: &mut Arena, work: &mut Work, now: u64) {
    let Some(member) = tables.member_of(link) else {
        work.drops.add(DropReason::Disconnected, arena.heads.len() as u64);
        return;
    };
    work.make_room(tables.ports.members.len());
    let settings = &*member.settings;
    let mut sender = Sender {
        tables,
        link,
        settings,
        now,
        flood_limit: settings.flood_limit.map(|rate| Limit::new(link.flood_bucket(), rate, now)),
        send_limit: settings.send_limit.map(|rate| Limit::new(link.send_bucket(), rate, now)),
        last: None,
    };
    let guarded = settings.dhcp_server == Permission::Denied || settings.router == Permission::Denied;
    for (index, frame) in (0..).zip(0..arena.heads.len()) {
        let fate = sender.fate(arena, frame, work, guarded);
        match fate {
            Ok(Fate::Port(slot)) => work.enqueue(slot, index),
            Ok(Fate::Flood(unknown)) => {
                work.flood(Flood { index, vlan: sender.vlan(), unknown, reached: false })
            }
            Err(reason) => work.drops.add(reason, 1),
        }
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Port(usize),
    Flood(Unknown),
}

/// Why a frame goes to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// It is for a group.
    Group,
    /// The switch does not know where its receiver is.
    Station,
}

/// What a frame's fate depends on, beside what its sender may do at all: both addresses and the VLAN.
type Key = ([u8; 12], u16);

/// The port that sends, as it is treated during one batch.
struct Sender<'a> {
    tables: &'a Tables,
    link: &'a Link,
    settings: &'a PortSettings,
    now: u64,
    flood_limit: Option<Limit<'a>>,
    send_limit: Option<Limit<'a>>,
    /// Frames of one flow come in a row, and all of them go where the first one goes.
    last: Option<(Key, Result<Fate, DropReason>)>,
}

impl Sender<'_> {
    /// The VLAN of the frame that was looked at last.
    fn vlan(&self) -> u16 {
        self.last.map_or(0, |((_, vlan), _)| vlan)
    }

    fn fate(
        &mut self,
        arena: &mut Arena,
        frame: usize,
        work: &mut Work,
        guarded: bool,
    ) -> Result<Fate, DropReason> {
        match self.settings.mirror {
            Mirror::Destination => return Err(DropReason::MirrorPort),
            Mirror::Off | Mirror::Source(_) => {}
        }
        let vlan = self.settings.vlan.admit(arena, frame)?;
        let (bytes, offload) = arena.frame_mut(frame);
        let addresses = *bytes.first_chunk().ok_or(DropReason::Malformed)?;
        prepare(bytes, offload)?;
        work.needs.note(offload);
        if self.settings.mirror.shows_sent() {
            work.mirrored.push(u32::try_from(frame).unwrap_or(u32::MAX));
        }
        if guarded {
            self.guard(bytes, offload.checksum)?;
        }
        let key = (addresses, vlan);
        let fate = match self.last {
            Some((same, fate)) if same == key => fate,
            Some(_) | None => {
                let fate = self.look_up(key, work);
                self.last = Some((key, fate));
                fate
            }
        }?;
        if self.flood_limit.is_none() && self.send_limit.is_none() {
            return Ok(fate);
        }
        // A large frame is paid for as what it becomes on a wire.
        let whole = || (1, bytes.len());
        let (frames, len) = offload.segmentation.map_or_else(whole, |size| segment::cut(bytes, size));
        let floods = matches!(fate, Fate::Flood(_));
        if floods && self.flood_limit.as_mut().is_some_and(|limit| !limit.0.take(frames)) {
            return Err(DropReason::FloodLimit);
        }
        if self.send_limit.as_mut().is_some_and(|limit| !limit.0.take(len)) {
            return Err(DropReason::RateLimit);
        }
        Ok(fate)
    }

    fn guard(&self, bytes: &[u8], checksum: Checksum) -> Result<(), DropReason> {
        // A sum is written after this, and must not make something else of what was looked at.
        if !checksum.is_where_it_belongs(bytes, ip::ETHERNET) {
            return Err(DropReason::Offload);
        }
        let Some(claim) = ip::claim(bytes) else { return Ok(()) };
        match (claim, self.settings.dhcp_server, self.settings.router) {
            (Claim::DhcpServer | Claim::Hidden, Permission::Denied, _) => Err(DropReason::DhcpGuard),
            (Claim::Router | Claim::Hidden, _, Permission::Denied) => Err(DropReason::RouterGuard),
            (Claim::DhcpServer, Permission::Allowed, _)
            | (Claim::Router, _, Permission::Allowed)
            | (Claim::Hidden, Permission::Allowed, Permission::Allowed) => Ok(()),
        }
    }

    fn look_up(&self, (addresses, vlan): Key, work: &mut Work) -> Result<Fate, DropReason> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = addresses;
        let (to, from) = (MacAddress([a, b, c, d, e, f]), MacAddress([g, h, i, j, k, l]));
        if !from.is_station() {
            return Err(DropReason::Malformed);
        }
        match &self.settings.senders {
            Senders::Any => {}
            Senders::Only(own) if own.contains(&from) => {}
            Senders::Only(_) => return Err(DropReason::Spoofed),
        }
        let known = &self.tables.addresses;
        let sender = Station::new(vlan, from.to_u64());
        match known.saw(sender, self.link.slot, self.settings.addresses, self.now) {
            Known::Here | Known::NoRoom => {}
            Known::New if work.learn.len() < LEARNED_AT_ONCE => work.learn.push(sender),
            Known::New => {}
            Known::Owned => return Err(DropReason::Spoofed),
        }
        if to.is_link_local() {
            return Err(DropReason::LinkLocal);
        }
        if to.is_group() {
            return Ok(Fate::Flood(Unknown::Group));
        }
        let slot = known.find(Station::new(vlan, to.to_u64()), self.now);
        let Some(slot) = slot.or_else(|| self.owner_in(to, vlan)) else {
            return Ok(Fate::Flood(Unknown::Station));
        };
        match self.tables.ports.member(slot) {
            _ if slot == self.link.slot => Err(DropReason::SamePort),
            Some(receiver) if !receiver.settings.vlan.carries(vlan) => Err(DropReason::Vlan),
            Some(receiver) if !self.settings.isolation.permits(receiver.settings.isolation) => {
                Err(DropReason::Isolated)
            }
            Some(_) => Ok(Fate::Port(slot)),
            None => Err(DropReason::NoReceiver),
        }
    }
}

impl Sender<'_> {
    /// The port that has an address for itself, where it carries this VLAN: a trunk's stations are there before they send.
    fn owner_in(&self, address: MacAddress, vlan: u16) -> Option<usize> {
        let slot = self.tables.addresses.owner(address)?;
        let owner = self.tables.ports.member(slot)?;
        (owner.settings.vlan.carries(vlan) && !owner.is_mirror()).then_some(slot)
    }
}

/// Puts right what every receiver needs, and checks what a sender says about a frame.
fn prepare(bytes: &mut [u8], offload: &mut Offload) -> Result<(), DropReason> {
    if offload.header == HeaderChecksum::Missing {
        let header = ip::header_v4(bytes).ok_or(DropReason::Offload)?;
        checksum::complete_header(header);
        offload.header = HeaderChecksum::Valid;
    }
    if let Some(segmentation) = offload.segmentation {
        // TCP has two ends, and cutting for everybody would be much work for one frame.
        let is_for_group = bytes.first().is_none_or(|first| first & 1 != 0);
        if is_for_group {
            return Err(DropReason::Offload);
        }
        segment::prepare(bytes, segmentation).ok_or(DropReason::Offload)?;
        offload.checksum = Checksum::tcp(segmentation.tcp_offset);
        return Ok(());
    }
    match offload.checksum {
        Checksum::Unknown | Checksum::Valid => Ok(()),
        Checksum::Missing { start, field } => {
            let (start, end) = (usize::from(start), ip::end(bytes));
            let fits = start >= ip::ETHERNET && start + usize::from(field) + 2 <= end;
            if fits { Ok(()) } else { Err(DropReason::Offload) }
        }
    }
}

/// A bucket that was filled for this batch.
struct Limit<'a>(MutexGuard<'a, Bucket>);

impl<'a> Limit<'a> {
    fn new(mut bucket: MutexGuard<'a, Bucket>, rate: Rate, now: u64) -> Self {
        bucket.fill(rate, now);
        Self(bucket)
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// How deep this thread is in sends that come out of deliveries.
struct Depth;

impl Depth {
    fn enter() -> Option<Self> {
        let depth = DEPTH.get();
        (depth < DEEPEST).then(|| {
            DEPTH.set(depth + 1);
            Self
        })
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}
