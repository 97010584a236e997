//! `vmbus root`: a root that offers disks and networks.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use vmbus_channels::{Root, Spin};
use vmbus_core::Version;
use vmbus_vsp::storage::{Access, Lun, Memory, RawFile, StorageController};

use crate::hvsock::{self, Entrance, Served};
use crate::net::spec::{NetConfig, VALUE};

/// Arguments of `vmbus root`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where process guests attach
    #[arg(long, value_name = "PATH", required_unless_present = "config")]
    socket: Option<PathBuf>,
    /// A disk: an image file or block device, or memory:SIZE; goes to guest NAME, else to the first that asks
    #[arg(long = "disk", value_name = "FILE[,for=NAME][,ro]")]
    disks: Vec<String>,
    /// A socket at which the virtual machine NAME attaches
    #[arg(long = "vm", value_name = "NAME=SOCKET")]
    vms: Vec<String>,
    /// Guests that connect to SERVICE, a vsock port or a GUID, are served by who listens at PATH, or by guest NAME
    #[arg(long, value_name = "SERVICE=unix:PATH|guest:NAME")]
    hvsock: Vec<Served>,
    /// Who connects to the socket PATH is connected to SERVICE of guest GUEST
    #[arg(long, value_name = "GUEST:SERVICE=unix:PATH")]
    hvsock_listen: Vec<Entrance>,
    /// A network, and who is at it; the same name again adds to it. Options are listed below
    #[arg(long = "net", value_name = VALUE)]
    nets: Vec<NetConfig>,
    /// Highest protocol version to allow, such as 5.2
    #[arg(long, value_name = "VERSION")]
    max_version: Option<Version>,
    /// Never spin while waiting: least CPU, more latency
    #[arg(long)]
    no_spin: bool,
    /// Rules that decide what guests may do (see `vmbus policy`); read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Write each policy decision to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    policy_log: Option<PathBuf>,
    /// A TOML file with the same settings; the command line adds to it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tell what happens as JSON lines on standard output
    #[arg(long)]
    json: bool,
    /// End when standard input ends
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

const EXAMPLES: &str = "\
Examples:
  vmbus root --socket /run/user/1000/bus.sock --disk disk.img
  vmbus root --socket bus.sock --disk a.img,for=alice --disk shared.iso,ro
  vmbus root --socket bus.sock --disk memory:256M,for=test --vm debian=debian.sock
  vmbus root --socket bus.sock --hvsock 5000=unix:/run/log.sock --hvsock-listen alice:22=unix:ssh.sock
  vmbus root --socket bus.sock --net lan,host=10.0.0.1/24
  vmbus root --socket bus.sock --net lan,passt=/tmp/passt.socket,limit=100M,capture=lan.pcapng
  vmbus root --socket bus.sock --net lan,tap=tap0 --net lan,vlan=7,for=alice --net lan,vlan=8,for=bob
  vmbus root --socket bus.sock --disk a.img --policy rules.toml --policy-log decisions.jsonl

Options of --net, after its name and a comma:
  for=GUEST[@MAC]      a NIC for this guest; may be repeated. Without any, each guest has one
  vlan=ID              what else is listed here is in this VLAN, untagged; without it, interfaces and links carry
                       all VLANs with tags
  limit=RATE           each guest sends and receives so many bits per second at most (k, M, G)
  private              guests do not reach each other, only what else there is
  trust                guests may send from any MAC address, and be DHCP servers and routers
  host=ADDRESS/LENGTH  a built-in host: ping, DHCP, and DNS for the names of guests
  tap=INTERFACE        an interface of this machine, made if there is none
  passt=SOCKET         passt listens there (passt --socket SOCKET): NAT to the outside without privileges
  link=LOCAL+REMOTE    another switch: two UDP addresses (10.1.0.1:7000+10.1.0.2:7000) or two paths
  capture=FILE         all that is sent, as pcapng

The file for --config:
  socket = \"bus.sock\"
  max_version = \"5.3\"
  hvsock = [\"5000=unix:/run/log.sock\"]
  hvsock_listen = [\"alice:22=unix:ssh.sock\"]

  [[disk]]
  file = \"a.img\"
  for = \"alice\"
  read_only = false

  [[net]]
  name = \"lan\"
  for = [\"alice\"]
  host = \"10.0.0.1/24\"

  [[vm]]
  name = \"debian\"
  socket = \"debian.sock\"";

/// What a configuration file may say.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    socket: Option<PathBuf>,
    max_version: Option<String>,
    #[serde(default)]
    disk: Vec<DiskConfig>,
    #[serde(default)]
    vm: Vec<VmConfig>,
    #[serde(default)]
    net: Vec<NetConfig>,
    #[serde(default)]
    hvsock: Vec<Served>,
    #[serde(default)]
    hvsock_listen: Vec<Entrance>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskConfig {
    file: String,
    #[serde(rename = "for")]
    guest: Option<String>,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmConfig {
    name: String,
    socket: PathBuf,
}

/// How the command itself behaves, which is no setting of the root.
struct Manner {
    json: bool,
    until_stdin_ends: bool,
}

/// Who decides, and where that is written down.
struct Policy {
    file: Option<PathBuf>,
    log: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    crate::limits::raise_descriptors();
    let manner = Manner { json: arguments.json, until_stdin_ends: arguments.until_stdin_ends };
    let spin = if arguments.no_spin { Spin::never() } else { Spin::adaptive() };
    let policy = Policy { file: arguments.policy.clone(), log: arguments.policy_log.clone() };
    let config = config(arguments)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config, spin, policy, manner))
}

fn config(arguments: Arguments) -> Result<Config> {
    let mut config = match &arguments.config {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            toml::from_str(&text).with_context(|| format!("{} is not a configuration", path.display()))?
        }
        None => Config::default(),
    };
    config.socket = arguments.socket.or(config.socket);
    if let Some(version) = arguments.max_version {
        config.max_version = Some(version.to_string());
    }
    for disk in &arguments.disks {
        config.disk.push(parse_disk(disk)?);
    }
    for vm in &arguments.vms {
        let (name, socket) =
            vm.split_once('=').with_context(|| format!("--vm {vm}: expected NAME=SOCKET"))?;
        config.vm.push(VmConfig { name: name.into(), socket: socket.into() });
    }
    config.net.extend(arguments.nets);
    config.hvsock.extend(arguments.hvsock);
    config.hvsock_listen.extend(arguments.hvsock_listen);
    if config.socket.is_none() && config.vm.is_empty() {
        bail!("nobody could attach: give --socket PATH or --vm NAME=SOCKET");
    }
    Ok(config)
}

fn parse_disk(text: &str) -> Result<DiskConfig> {
    let mut parts = text.split(',');
    let file =
        parts.next().filter(|file| !file.is_empty()).with_context(|| format!("--disk {text}: no file"))?;
    let mut disk = DiskConfig { file: file.into(), guest: None, read_only: false };
    for option in parts {
        match option.split_once('=') {
            Some(("for", guest)) if !guest.is_empty() => disk.guest = Some(guest.into()),
            None if option == "ro" => disk.read_only = true,
            Some(_) | None => bail!("--disk {text}: unknown option `{option}`: expected for=NAME or ro"),
        }
    }
    Ok(disk)
}

async fn serve(config: Config, spin: Spin, policy: Policy, manner: Manner) -> Result<()> {
    let mut builder = Root::builder().control_thread()?.spin(spin);
    if let Some(version) = &config.max_version {
        builder = builder.versions(Version::OLDEST..=version.parse()?);
    }
    if let Some(file) = &policy.file {
        builder = builder.policy(crate::policy::load(file)?);
    }
    let root = builder.build();
    if let Some(log) = &policy.log {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let events = root.events();
        // A thread of its own, as a disk may be slow.
        std::thread::spawn(move || crate::events::log_policy(events, file));
    }
    if manner.json {
        let events = root.events();
        // A thread of its own: whoever does not read our output must not keep the bus waiting.
        std::thread::spawn(move || crate::events::print(events));
    }
    for disk in &config.disk {
        root.offer(controller(disk)?)?;
    }
    let _nets = crate::net::root::open(&root, &config.net)?;
    for vm in &config.vm {
        root.listen_for_vm(&vm.name, &vm.socket)?;
    }
    let _doors = hvsock::open_at_root(&root, &config.hvsock, &config.hvsock_listen)?;
    if let Some(socket) = &config.socket {
        root.listen_at(socket)?;
        if manner.json {
            crate::events::say(&json!({ "event": "listening", "socket": socket }))?;
        } else {
            println!("listening at {}", socket.display());
        }
    }
    let (mut interrupted, mut terminated) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let reloading = policy.file.map(|file| reload_on_hangup(root.clone(), file, manner.json)).transpose()?;
    root.run_until(async {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
            () = stdin_ended(), if manner.until_stdin_ends => {}
            () = async { match reloading { Some(reloading) => reloading.await, None => std::future::pending().await } } => {}
        }
    })
    .await;
    Ok(())
}

/// Reads the rules again whenever SIGHUP says so. A file that is not right leaves the rules as they were.
fn reload_on_hangup(root: Root, file: PathBuf, json: bool) -> Result<impl Future<Output = ()>> {
    let mut hangups = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            match crate::policy::load(&file) {
                Ok(rules) => {
                    let loaded = rules.to_string();
                    root.set_policy(rules);
                    tell_reload(json, "policy_loaded", "rules", &loaded);
                }
                Err(error) => tell_reload(json, "policy_kept", "error", &format!("{error:#}")),
            }
        }
    })
}

fn tell_reload(json: bool, event: &str, key: &str, what: &str) {
    if json {
        let _ = crate::events::say(&json!({ "event": event, key: what }));
    } else if key == "error" {
        eprintln!("vmbus: keeping the old rules: {what}");
    } else {
        println!("rules loaded: {what}");
    }
}

fn controller(disk: &DiskConfig) -> Result<StorageController> {
    let lun = match disk.file.strip_prefix("memory:") {
        Some(size) => {
            let size = crate::size::parse(size).map_err(anyhow::Error::msg)?;
            Lun::new(Memory::new(size).with_context(|| format!("a memory disk of {size} bytes"))?)
        }
        None => {
            let access = if disk.read_only { Access::ReadOnly } else { Access::ReadWrite };
            Lun::new(RawFile::open(&disk.file, access).with_context(|| format!("disk {}", disk.file))?)
        }
    };
    let name =
        std::path::Path::new(&disk.file).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let controller = StorageController::new(name).lun(0, lun);
    Ok(match &disk.guest {
        Some(guest) => controller.only_for(guest.as_str()),
        None if disk.read_only => controller,
        None => controller.for_one_guest(),
    })
}

/// Returns when the one who started us is gone.
async fn stdin_ended() {
    let (ended, wait) = tokio::sync::oneshot::channel();
    // A thread of its own: the runtime does not wait for it when it ends.
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        while std::io::stdin().read(&mut sink).is_ok_and(|read| read > 0) {}
        let _ = ended.send(());
    });
    let _ = wait.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_written_as_file_and_options() {
        let disk = |file: &str, guest: Option<&str>, read_only| DiskConfig {
            file: file.into(),
            guest: guest.map(Into::into),
            read_only,
        };
        assert_eq!(parse_disk("a.img").unwrap(), disk("a.img", None, false));
        assert_eq!(parse_disk("a.img,for=alice,ro").unwrap(), disk("a.img", Some("alice"), true));
        for bad in ["", ",ro", "a.img,rw", "a.img,for=", "a.img,size=1"] {
            assert!(parse_disk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_example_in_the_help_is_a_configuration() {
        let text = EXAMPLES.split_once("--config:\n").unwrap().1;
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!((config.disk.len(), config.vm.len(), config.net.len()), (1, 1, 1));
    }
}
