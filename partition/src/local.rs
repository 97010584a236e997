//! A partition in this process: both ends over plain memory, without a socket.

use std::sync::{Arc, Mutex};

use crate::control_area::{ControlArea, End};
use crate::control_link::{ControlLink, LocalWire, WireIn, WireOut, lock};
use crate::doorbell::{Bell, BellKind, BellReceiver};
use crate::gpa::{DEFAULT_RING_MAPS, GpaSpace};
use crate::guest_link::{ControlGuest, GuestMemory, GuestOptions, KeptMemory};
use crate::link::{GuestInfo, LinkError, PartitionInfo};
use crate::root_link::ControlRoot;

/// Both ends of a new partition in this process. `id` is the root's number for it.
///
/// # Errors
/// Out of descriptors or memory, or options that make no sense.
pub fn pair(options: &GuestOptions, id: u32) -> Result<(ControlRoot, ControlGuest), LinkError> {
    let (memory, _file) = GuestMemory::new(options.memory)?;
    join(Arc::new(Mutex::new(memory)), options, options.memory, id)
}

/// As [`pair`], for a guest whose root has gone: it keeps its memory, and all that is allocated of it.
///
/// # Errors
/// As [`pair`].
pub fn pair_again(
    options: &GuestOptions,
    before: &ControlGuest,
    id: u32,
) -> Result<(ControlRoot, ControlGuest), LinkError> {
    join(Arc::clone(before.kept_memory()), options, before.domain_size(), id)
}

fn join(
    memory: KeptMemory,
    options: &GuestOptions,
    domain_size: u64,
    id: u32,
) -> Result<(ControlRoot, ControlGuest), LinkError> {
    let guest_area = ControlArea::create(options.workers, options.vps)?;
    let root_area = guest_area.clone();
    let (root_rings, guest_hears) = bells(BellKind::Event, options.vps)?;
    let (guest_rings, root_hears) = bells(BellKind::Event, options.workers)?;
    let (to_root, to_guest) = (Arc::new(LocalWire::new()), Arc::new(LocalWire::new()));

    // One mapping serves both ends, so that a race detector, which knows addresses only, sees them meet.
    let regions = lock(&memory).regions().0.into_iter().cloned().collect();
    let root_memory = Arc::new(GpaSpace::new(regions, DEFAULT_RING_MAPS)?);

    let (vps, workers) = (u32::from(options.vps), u32::from(options.workers));
    let name = options.name.clone();
    let info = PartitionInfo {
        name: name.clone(),
        id,
        vps,
        workers,
        extended: true,
        takes_gifts: true,
        credentials: None,
    };
    let wires =
        (WireIn::Local(Arc::clone(&to_root)), WireOut::Local { wire: Arc::clone(&to_guest), frames: 0 });
    let link = ControlLink::new(End::Root, root_area, root_rings, root_hears, wires);
    let root = ControlRoot::new(link, info, root_memory, None);

    let wires = (WireIn::Local(to_guest), WireOut::Local { wire: to_root, frames: 0 });
    let link = ControlLink::new(End::Guest, guest_area, guest_rings, guest_hears, wires);
    let info = GuestInfo { name, id, vps, workers, takes_gifts: true };
    let guest = ControlGuest::new(link, info, memory, None, domain_size)?;
    Ok((root, guest))
}

/// As many bells as there are areas.
pub(crate) fn bells(kind: BellKind, count: u16) -> Result<(Vec<Bell>, Vec<BellReceiver>), LinkError> {
    let bells: Result<Vec<_>, _> = (0..count).map(|_| kind.create()).collect();
    Ok(bells.map_err(LinkError::system("making a bell"))?.into_iter().unzip())
}
