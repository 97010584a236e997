//! The options of `vmbus root` and `vmbus guest` for stream sockets.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::task::JoinSet;
use vmbus_channels::{Guest, Guid, Root, hvsock};
use vmbus_proxy_devices::hvsock::{UnixDoor, serve_by_guest, serve_by_unix};

/// `SERVICE=TARGET`: who serves what comes over the bus.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Served {
    service: Guid,
    by: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Unix(PathBuf),
    Guest(String),
}

/// `[GUEST:]SERVICE=unix:PATH`: where connections of this host enter the bus, and whom they go to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Entrance {
    guest: Option<String>,
    service: Guid,
    path: PathBuf,
}

impl FromStr for Served {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (service, target) = text.split_once('=').context("expected SERVICE=unix:PATH")?;
        let by = match target.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Target::Unix(path.into()),
            Some(("guest", name)) if !name.is_empty() => Target::Guest(name.into()),
            Some(_) | None => bail!("`{target}`: expected unix:PATH or guest:NAME"),
        };
        Ok(Self { service: hvsock::parse(service)?, by })
    }
}

impl FromStr for Entrance {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (whom, target) = text.split_once('=').context("expected SERVICE=unix:PATH")?;
        let path = target.strip_prefix("unix:").filter(|path| !path.is_empty());
        let path = path.with_context(|| format!("`{target}`: expected unix:PATH"))?.into();
        let (guest, service) = match whom.rsplit_once(':') {
            Some(("", _)) => bail!("`{whom}`: no guest before the colon"),
            Some((guest, service)) => (Some(guest.to_owned()), service),
            None => (None, whom),
        };
        Ok(Self { guest, service: hvsock::parse(service)?, path })
    }
}

impl TryFrom<String> for Served {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for Entrance {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// What the options ask for, as long as it is kept.
#[derive(Default)]
pub(crate) struct Doors {
    #[expect(dead_code, reason = "the tasks end with it")]
    tasks: JoinSet<()>,
}

/// Opens what a root was asked for.
pub(crate) fn open_at_root(root: &Root, served: &[Served], entrances: &[Entrance]) -> Result<Doors> {
    let mut tasks = JoinSet::new();
    for Served { service, by } in served {
        match by {
            Target::Unix(path) => {
                tasks.spawn(serve_by_unix(root.hvsock_listen(*service)?, path.clone()));
            }
            Target::Guest(name) => {
                let listener = root.hvsock_route(*service, name)?;
                tasks.spawn(serve_by_guest(root.clone(), listener, name.clone()));
            }
        }
    }
    for Entrance { guest, service, path } in entrances {
        let Some(guest) = guest.clone() else {
            bail!("--hvsock-listen of a root: expected GUEST:SERVICE=unix:PATH");
        };
        let door = UnixDoor::bind(path).context("--hvsock-listen")?;
        let (root, service) = (root.clone(), *service);
        tasks.spawn(async move {
            door.serve(|| {
                let (root, guest) = (root.clone(), guest.clone());
                async move { root.hvsock_connect_to(&guest, service).await }
            })
            .await;
        });
    }
    Ok(Doors { tasks })
}

/// Opens what a guest was asked for.
pub(crate) fn open_at_guest(guest: &Guest, served: &[Served], entrances: &[Entrance]) -> Result<Doors> {
    let mut tasks = JoinSet::new();
    for Served { service, by } in served {
        match by {
            Target::Unix(path) => {
                tasks.spawn(serve_by_unix(guest.hvsock_listen(*service)?, path.clone()));
            }
            Target::Guest(_) => bail!("--hvsock of a guest: expected SERVICE=unix:PATH"),
        }
    }
    for Entrance { guest: other, service, path } in entrances {
        if other.is_some() {
            bail!("--hvsock-listen of a guest: expected SERVICE=unix:PATH, as it reaches the root only");
        }
        let door = UnixDoor::bind(path).context("--hvsock-listen")?;
        let (guest, service) = (guest.clone(), *service);
        tasks.spawn(async move {
            door.serve(|| {
                let guest = guest.clone();
                async move { guest.hvsock_connect(service).await }
            })
            .await;
        });
    }
    Ok(Doors { tasks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_entrances_are_written_with_ports_or_guids() {
        let served: Served = "5000=unix:/run/s.sock".parse().unwrap();
        assert_eq!(served, Served { service: hvsock::port(5000), by: Target::Unix("/run/s.sock".into()) });
        let routed: Served = "00001388-facb-11e6-bd58-64006a7986d3=guest:bob".parse().unwrap();
        assert_eq!(routed, Served { service: hvsock::port(5000), by: Target::Guest("bob".into()) });
        let entrance: Entrance = "alice:22=unix:ssh.sock".parse().unwrap();
        let guest = Some("alice".to_owned());
        assert_eq!(entrance, Entrance { guest, service: hvsock::port(22), path: "ssh.sock".into() });
        assert_eq!("22=unix:s".parse::<Entrance>().unwrap().guest, None);
        for bad in ["", "5000", "5000=tcp:1", "5000=unix:", "ssh=unix:s", ":22=unix:s", "a:b=unix:s"] {
            assert!(bad.parse::<Entrance>().is_err(), "{bad}");
            assert!(bad.parse::<Served>().is_err(), "{bad}");
        }
    }
}
