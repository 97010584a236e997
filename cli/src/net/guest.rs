//! `--tap` of `vmbus guest`: its NICs as interfaces of this machine.

use std::time::Duration;

use anyhow::{Context as _, Result};
use vmbus_channels::{Device, Guest};
use vmbus_core::network::CLASS;
use vmbus_proxy_devices::net::NicDoor;
use vmbus_vsc::Nic;

use super::root::open_tap;

/// How long NICs may take to be offered.
const PATIENCE: Duration = Duration::from_secs(10);

/// The interfaces, for as long as they are kept.
pub(crate) struct Taps(Vec<NicDoor>);

/// Opens the guest's NICs in the order in which they are offered, one for each interface.
pub(crate) async fn open(guest: &Guest, names: &[String], mtu: u32) -> Result<Taps> {
    let mut doors = Vec::new();
    if names.is_empty() {
        return Ok(Taps(doors));
    }
    let hint = "no NIC is offered to this guest: see --net of `vmbus root`, and `vmbus ls`";
    tokio::time::timeout(PATIENCE, guest.wait_for(Device::class(CLASS))).await.context(hint)??;
    let offered = guest.all_offers().await?;
    let mut nics = offered.iter().filter(|device| device.class == CLASS);
    for name in names {
        let device = nics.next().with_context(|| format!("there is no NIC left for {name}"))?;
        let options = NicDoor::nic_options().mtu(mtu);
        let nic = Nic::open_device(guest, Device::instance(device.instance), options).await;
        let nic = nic.context("cannot open the NIC")?;
        let door = NicDoor::new(nic, open_tap(name)?)?;
        let info = door.nic().info();
        println!(
            "{} is a NIC of address {} with an MTU of {}",
            door.interface(),
            mac(info.address),
            info.mtu
        );
        doors.push(door);
    }
    Ok(Taps(doors))
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

impl Taps {
    /// Carries frames until one of the interfaces or NICs is gone; says which. Without any it never returns.
    pub(crate) async fn run(&self) -> anyhow::Error {
        let mut running: Vec<_> = self.0.iter().map(|door| Box::pin(door.run())).collect();
        let first = std::future::poll_fn(|context| {
            running
                .iter_mut()
                .map(|door| door.as_mut().poll(context))
                .find(std::task::Poll::is_ready)
                .unwrap_or(std::task::Poll::Pending)
        });
        first.await.into()
    }

    /// Closes the NICs in order.
    pub(crate) async fn close(self) {
        for door in self.0 {
            door.nic().clone().close().await;
        }
    }
}
