//! Two network namespaces that know nothing of the bus, joined by it: TAP, guest process, bus, switch of the root, bus,
//! guest process, TAP. The kernel's own programs are the judges.
//!
//! `VMBUS_LONG=1` makes each measurement last ten seconds instead of one.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;

use common::{Place, Process, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vmbus_tests::netns::Namespace;

const DOWNLOAD: usize = 8 << 20;

/// A root with the network `lan`, and two guests whose NICs are the interface `tap0` of a namespace each.
struct World {
    place: Place,
    root: Process,
    guests: [Running; 2],
    left: Namespace,
    right: Namespace,
}

/// A process in a namespace; it ends with the test.
struct Running(Child);

impl Running {
    fn end(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    fn new(net: &str) -> Self {
        let place = Place::new();
        let socket = place.socket();
        let root = Process::start(&["root", "--until-stdin-ends", "--socket", &socket, "--net", net]);
        root.says("listening");
        let (left, right) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let guests = [(&left, "left", 1), (&right, "right", 2)].map(|(namespace, name, number)| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vmbus"));
            command.args(["guest", "--memory", "128M", "--tap", "tap0", "--socket", &socket, "--name", name]);
            let guest = Running(namespace.spawn({
                command.stdin(Stdio::null()).stdout(Stdio::null());
                command
            }));
            eventually("the interface is up", || {
                let shown = namespace.output("ip -brief link show dev tap0");
                String::from_utf8(shown.stdout).unwrap().contains("LOWER_UP")
            });
            namespace.command(&format!("ip address add 10.0.0.{number}/24 dev tap0"));
            namespace.command(&format!("ip address add fd00::{number}/64 dev tap0 nodad"));
            guest
        });
        Self { place, root, guests, left, right }
    }

    fn stats(&self) -> Value {
        let socket = self.place.socket();
        let output = common::vmbus(&["net", "stats", "--json", "--socket", &socket]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Everybody leaves in order, and takes the interfaces along.
    fn end(self) {
        let Self { place, root, guests, left, right } = self;
        guests.into_iter().for_each(Running::end);
        for namespace in [&left, &right] {
            let interfaces = namespace.command("ip -brief link show");
            assert!(!interfaces.contains("tap0"), "{interfaces}");
        }
        root.end();
        assert_eq!(place.names(), Vec::<String>::new());
    }
}

fn seconds() -> u32 {
    if std::env::var_os("VMBUS_LONG").is_some() { 10 } else { 1 }
}

/// What iperf3 says of one run from left to right.
fn iperf(world: &World, options: &str) -> Value {
    // One run each: it says when it waits.
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--forceflush"]).stdout(Stdio::piped());
    let mut server = Running(world.right.spawn(command));
    let mut said = Vec::new();
    let mut output = server.0.stdout.take().unwrap();
    while !said.ends_with(b"listening on 5201") && !String::from_utf8_lossy(&said).contains("listening on") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "iperf3 says: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    let drain = thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let result = world.left.output(&format!("iperf3 --json --time {} {options}", seconds()));
    let result: Value = serde_json::from_slice(&result.stdout).unwrap();
    assert!(result.get("error").is_none(), "{options}: {}", result["error"]);
    server.0.wait().unwrap();
    drain.join().unwrap().unwrap();
    let rate = result["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .or(result["end"]["sum"]["bits_per_second"].as_f64());
    println!("iperf3 {options}: {:.2} Gbit/s", rate.unwrap_or(0.0) / 1e9);
    result
}

/// Gets a file by HTTP, and compares it.
fn download(world: &World) {
    let file: Vec<u8> =
        (0..DOWNLOAD).map(|at| u8::try_from(at.wrapping_mul(31) >> 5 & 0xff).unwrap()).collect();
    let listener = world.right.run(|| TcpListener::bind("10.0.0.2:80").unwrap());
    let served = file.clone();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", served.len()).unwrap();
        stream.write_all(&served).unwrap();
    });
    let got = world.left.output("curl --silent --show-error --max-time 60 http://10.0.0.2/file");
    assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    server.join().unwrap();
    assert!(got.stdout == file, "{} bytes of {}", got.stdout.len(), file.len());
}

#[test]
fn two_namespaces_ping_stream_and_download_through_the_bus() {
    vmbus_tests::require!(Root, Tun);
    if let Some(reason) = vmbus_tests::missing_program(&["ip", "ping", "iperf3", "curl"]) {
        vmbus_tests::skip!("{reason}");
    }
    let world = World::new("lan");
    world.left.command("ping -c 20 -i 0.02 -W 20 10.0.0.2");
    world.right.command("ping -c 5 -i 0.02 -W 20 fd00::1");
    download(&world);
    for options in ["-c 10.0.0.2", "-c 10.0.0.2 --parallel 8", "-c 10.0.0.2 --reverse", "-c fd00::2"] {
        let result = iperf(&world, options);
        assert!(result["end"]["sum_received"]["bytes"].as_u64().unwrap() > 1 << 20, "{options}");
    }
    // At a rate that this machine can keep when it is busy, nothing is lost and nothing overtakes.
    let result = iperf(&world, "-c 10.0.0.2 --udp --bitrate 10M");
    assert_eq!(result["end"]["sum"]["lost_packets"], 0, "{}", result["end"]["sum"]);

    // Large sends cross the switch whole.
    let stats = world.stats();
    let total = &stats["switches"][0]["total"];
    let mean = total["sent_bytes"].as_u64().unwrap() / total["sent_frames"].as_u64().unwrap();
    assert!(mean > 2000, "frames have {mean} bytes on average");

    // The NIC's MTU follows the interface's.
    for namespace in [&world.left, &world.right] {
        namespace.command("ip link set tap0 mtu 9000");
    }
    eventually("9000 bytes cross", || {
        world.left.output("ping -c 1 -W 1 -M do -s 8972 10.0.0.2").status.success()
    });
    let result = iperf(&world, "-c 10.0.0.2");
    assert!(result["end"]["sum_received"]["bytes"].as_u64().unwrap() > 1 << 20);
    world.end();
}

#[test]
fn a_capture_of_a_running_network_is_a_file_that_tcpdump_reads_and_finds_right() {
    vmbus_tests::require!(Root, Tun);
    if let Some(reason) = vmbus_tests::missing_program(&["ip", "ping", "tcpdump", "curl"]) {
        vmbus_tests::skip!("{reason}");
    }
    let world = World::new("lan,host=10.0.0.9/24");
    let (socket, file) = (world.place.socket(), world.place.text("lan.pcapng"));
    let capture = Process::start(&[
        "net", "capture", "--socket", &socket, "--net", "lan", "--port", "left", "-w", &file,
    ]);
    eventually("the capture has begun", || {
        world.stats()["switches"][0]["ports"].as_array().unwrap().iter().any(|port| port["name"] == "capture")
    });
    world.left.command("ping -c 3 -i 0.02 -W 20 10.0.0.9");
    world.left.command("ping -c 3 -i 0.02 -W 20 10.0.0.2");
    download(&world);
    let read = |what: &str| {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-vv", "-r", &file]).args(what.split_whitespace());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eventually("all is written", || read("icmp").matches("echo reply").count() == 6);
    eventually("the download is written", || read("tcp").matches("cksum").count() > 20);
    capture.kill();
    let all = read("tcp or icmp");
    assert!(all.contains("(correct)"), "{all}");
    let wrong: Vec<_> =
        all.lines().filter(|line| line.contains("incorrect") || line.contains(" bad ")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    std::fs::remove_file(&file).unwrap();
    world.end();
}
