//! The network driver of a stock Linux kernel finds our NICs: two guests ping and stream to one another through a
//! switch, change their MTU, and hear of a cable that is pulled.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use vmbus_channels::Root;
use vmbus_vsp::network::switch::{
    Capabilities, Delivered, DropReason, Frames, MacAddress, Port, PortSettings, Switch,
};
use vmbus_vsp::network::{AdapterHandle, Link, NetworkAdapter};

/// Software emulation on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

const ADDRESSES: [MacAddress; 2] = [MacAddress([2, 0, 0, 0, 0, 0xa]), MacAddress([2, 0, 0, 0, 0, 0xb])];

/// What guest `$N` runs; the other is `$O`. Each asks for an address that nobody has when its cable may be pulled.
const SCRIPT: &str = "\
    cd /sys/class/net/eth0; echo MARK mac $(cat address) mtu $(cat mtu) queues $(ls -d queues/rx-* | wc -l); \
    ip link set eth0 up; ip addr add 10.9.0.$N/24 dev eth0; ip -6 addr add fd00::$N/64 dev eth0; sleep 3; \
    mkdir /w; dd if=/dev/urandom of=/w/f bs=64k count=64 2>/dev/null; httpd -p 80 -h /w; \
    echo MARK mine $(md5sum < /w/f); \
    until ping -c1 -W1 10.9.0.$O >/dev/null; do :; done; \
    ping -c5 -i0.2 10.9.0.$O | grep -q ' 0% packet loss' && echo MARK ping; \
    ping6 -c3 fd00::$O | grep -q ' 0% packet loss' && echo MARK ping6; \
    wget -q -O /g http://10.9.0.$O/f; echo MARK theirs $(md5sum < /g); \
    wget -q -O /g http://[fd00::$O]/f; echo MARK again $(md5sum < /g); \
    touch /w/d; until wget -q -O /dev/null http://10.9.0.$O/d; do sleep 1; done; sleep 3; \
    ip link set eth0 mtu 9000 && echo MARK jumbo $(cat mtu); \
    until ping -c1 -W1 -s8900 10.9.0.$O >/dev/null; do :; done; echo MARK large; \
    touch /w/e; until wget -q -O /dev/null http://10.9.0.$O/e; do sleep 1; done; sleep 3; \
    until [ $(cat carrier) = 0 ]; do ping -c1 -W1 10.9.0.7$N >/dev/null; done; echo MARK pulled; \
    until [ $(cat carrier) = 1 ]; do sleep 1; done; echo MARK plugged; \
    until ping -c1 -W1 10.9.0.$O >/dev/null; do :; done; echo MARK end; touch /w/z; \
    until wget -q -O /dev/null http://10.9.0.$O/z; do sleep 1; done; sleep 3";

/// Sees who asks for the addresses that nobody has.
#[derive(Default)]
struct Watch([Notify; 2]);

impl Port for Watch {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        for frame in frames {
            match frame.bytes.get(38..42) {
                Some([10, 9, 0, 71]) => self.0[0].notify_one(),
                Some([10, 9, 0, 72]) => self.0[1].notify_one(),
                Some(_) | None => {}
            }
        }
        Delivered::all(frames)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }
}

/// Pulls a guest's cable when it asks for the address that nobody has, for long enough that Linux notices.
async fn pull(watch: Arc<Watch>, guest: usize, adapter: AdapterHandle) {
    watch.0[guest].notified().await;
    adapter.set_link(Link { connected: false, ..Link::default() });
    tokio::time::sleep(Duration::from_secs(8)).await;
    adapter.set_link(Link::default());
}

async fn boot(socket: &Path, [own, other]: [u32; 2]) -> String {
    let emulator = tokio::process::Command::new(vmbus_tests::linux_guest_folder().join("boot.sh"))
        .arg(socket)
        .arg(format!("hvt_quiet hvt_off hvt_cmd=\"N={own};O={other};{SCRIPT}\""))
        .env("SMP", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output = tokio::time::timeout(PATIENCE, emulator.wait_with_output()).await;
    let output = output.expect("Linux ends").unwrap();
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stock_linux_guests_talk_through_our_switch() {
    vmbus_tests::require!(LinuxGuest);
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::new("switch");
    let watch = Arc::new(Watch::default());
    let _watching = switch.connect(Arc::clone(&watch), PortSettings::new("watch")).unwrap();
    let root = Root::builder().build();
    let mut sockets = Vec::new();
    let mut cables = Vec::new();
    for (guest, name) in ["left", "right"].into_iter().enumerate() {
        let adapter = NetworkAdapter::new(name, &switch, ADDRESSES[guest]).only_for(name);
        cables.push(tokio::spawn(pull(Arc::clone(&watch), guest, adapter.handle())));
        root.offer(adapter).unwrap();
        let socket = directory.path().join(name);
        root.listen_for_vm(name, &socket).unwrap();
        sockets.push(socket);
    }
    let consoles = tokio::join!(boot(&sockets[0], [1, 2]), boot(&sockets[1], [2, 1]));
    let mut files = Vec::new();
    for (guest, console) in [&consoles.0, &consoles.1].into_iter().enumerate() {
        let says = |start: &str| {
            let mut marks = console.lines().filter_map(|line| line.strip_prefix("MARK "));
            let found = marks.find_map(|mark| mark.strip_prefix(start));
            found
                .unwrap_or_else(|| panic!("guest {guest} does not say {start:?}:\n{console}"))
                .trim()
                .to_owned()
        };
        assert_eq!(says("mac "), format!("{} mtu 1500 queues 2", ADDRESSES[guest]));
        for mark in ["ping", "ping6", "jumbo 9000", "large", "pulled", "plugged", "end"] {
            says(mark);
        }
        files.push([says("mine "), says("theirs "), says("again ")]);
    }
    let [left, right] = &files[..] else { panic!("two guests") };
    assert_eq!([&left[1], &left[2]], [&right[0]; 2], "what left got is what right has");
    assert_eq!([&right[1], &right[2]], [&left[0]; 2], "what right got is what left has");
    let all = switch.statistics();
    assert_eq!(all.dropped_sent.of(DropReason::Malformed), 0, "{all:?}");
    assert_eq!(
        all.copies,
        all.delivered.frames + all.dropped_received.total(),
        "every frame is accounted for"
    );
    for cable in cables {
        cable.await.unwrap();
    }
}
