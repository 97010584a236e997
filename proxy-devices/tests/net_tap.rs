//! Interfaces of the host's kernel at a switch, with the kernel's own programs as judges.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmbus_proxy_devices::net::{HostOptions, HostPort, StreamPort, Tap, TapPort};
use vmbus_tests::netns::Namespace;
use vmbus_vsp::network::switch::{DropReason, PortSettings, Switch};

const STREAM: usize = 16 << 20;

/// A namespace whose interface `tap0` is a port of the switch.
fn namespace_at(switch: &Switch, address: &str) -> (Namespace, TapPort) {
    let namespace = Namespace::new().unwrap();
    let tap = namespace.run(|| Tap::open("tap0").unwrap());
    tap.set_up().unwrap();
    let port = TapPort::connect(switch, tap, PortSettings::new("tap")).unwrap();
    namespace.command(&format!("ip address add {address} dev tap0"));

    (namespace, port)
}

/// Sends `STREAM` bytes each way, and checks them.
fn exchange(left: &Namespace, right: &Namespace, address: &'static str) {
    let byte = |at: usize| u8::try_from(at.wrapping_mul(7) >> 8 & 0xff).unwrap();
    let check = move |mut stream: TcpStream| {
        let sending = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let all: Vec<u8> = (0..STREAM).map(byte).collect();
            (&sending).write_all(&all).unwrap();
            sending.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::with_capacity(STREAM);
        stream.read_to_end(&mut received).unwrap();
        assert!(received.iter().enumerate().all(|(at, &got)| got == byte(at)), "other bytes than were sent");
        assert_eq!(received.len(), STREAM);
        sender.join().unwrap();
    };
    let listener = right.run(move || TcpListener::bind((address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let stream = left.run(move || TcpStream::connect((address, port)).unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let other = std::thread::spawn(move || check(accepted));
    check(stream);
    other.join().unwrap();
}

#[test]
fn two_namespaces_reach_each_other_through_a_switch_with_offloads_at_any_mtu() {
    vmbus_tests::require!(Tun, Root);
    if let Some(reason) = vmbus_tests::missing_program(&["ip", "ping"]) {
        vmbus_tests::skip!("{reason}");
    }
    let switch = Switch::new("lan");
    let (left, _left_port) = namespace_at(&switch, "10.0.0.1/24");
    let (right, _right_port) = namespace_at(&switch, "10.0.0.2/24");
    for (namespace, address) in [(&left, "fd00::1/64"), (&right, "fd00::2/64")] {
        namespace.command(&format!("ip address add {address} dev tap0 nodad"));
    }
    for mtu in [1500, 9000] {
        for namespace in [&left, &right] {
            namespace.command(&format!("ip link set tap0 mtu {mtu}"));
        }
        exchange(&left, &right, "10.0.0.2");
        exchange(&left, &right, "fd00::2");
    }
    let total = switch.statistics();
    let mean = total.delivered.bytes / total.delivered.frames;
    assert!(mean > 10_000, "large sends cross whole, and yet frames have {mean} bytes");
    assert_eq!(total.dropped_received.of(DropReason::Filtered), 0, "the kernel takes each header");
}

#[test]
fn the_kernel_finds_the_built_in_host() {
    vmbus_tests::require!(Tun, Root);
    if let Some(reason) = vmbus_tests::missing_program(&["ip", "ping"]) {
        vmbus_tests::skip!("{reason}");
    }
    let switch = Switch::new("lan");
    let options = HostOptions::new(Ipv4Addr::new(10, 0, 0, 1), 24);
    let _host = HostPort::connect(&switch, &options, PortSettings::new("host")).unwrap();
    let (namespace, _port) = namespace_at(&switch, "10.0.0.2/24");
    namespace.command("ping -c 3 -i 0.2 -W 10 10.0.0.1");
    namespace.command("ping -c 1 -W 10 -s 1400 10.0.0.1");
    namespace.command("ping -c 5 -i 0.5 -W 5 fe80::76:6dff:fe00:1%tap0");
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn passt_behind_a_stream_socket_takes_a_namespace_to_the_outside_without_privileges() {
    vmbus_tests::require!(Tun, Root);
    if let Some(reason) = vmbus_tests::missing_program(&["ip", "ping", "passt"]) {
        vmbus_tests::skip!("{reason}");
    }
    // Outside there is one interface, which passt shows to those inside as theirs; what they send to its router, it
    // takes to the outside's own loopback.
    let outside = Namespace::new().unwrap();
    outside.command("ip tuntap add out0 mode tap");
    outside.command("ip address add 192.0.2.10/24 dev out0");
    outside.command("ip link set out0 up");
    outside.command("ip route add default via 192.0.2.1");
    let listener = outside.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let service = listener.local_addr().unwrap().port();

    let folder = tempfile::tempdir().unwrap();
    // It becomes "nobody" where it is started as root.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("passt.sock");
    let switch = Switch::new("lan");
    let port = StreamPort::connect(&switch, &path, PortSettings::new("passt")).unwrap();
    let mut command = Command::new("passt");
    command.args(["--foreground", "--socket"]).arg(&path).stderr(Stdio::null());
    let _passt = Process(outside.spawn(command));
    let deadline = Instant::now() + Duration::from_secs(30);
    while !port.is_up() {
        assert!(Instant::now() < deadline, "passt does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }

    let (inside, _tap) = namespace_at(&switch, "192.0.2.10/24");
    inside.command("ip route add default via 192.0.2.1");
    let sent: Vec<u8> = (0..STREAM).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let expected = sent.clone();
    let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(&sent).unwrap());
    let mut stream = inside.run(move || TcpStream::connect(("192.0.2.1", service)).unwrap());
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == expected, "{} bytes", received.len());
    server.join().unwrap();
}
