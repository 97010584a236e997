//! Unix sockets of two processes, joined over the bus.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::LazyLock;
use std::thread;

use common::{Place, Process, complaint, eventually, holdings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: usize = 100 << 20;

/// What is sent, over and over; of a length that no buffer has.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u64;
    (0..1_000_003)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()[7]
        })
        .collect()
});

fn send(to: &UnixStream, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let part = left.min(NOISE.len());
        (&*to).write_all(&NOISE[..part]).unwrap();
        left -= part;
    }
    to.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end and checks each byte; gives how many.
fn receive(from: &UnixStream) -> usize {
    let (mut all, mut buffer) = (0, vec![0; 1 << 18]);
    loop {
        let at = all % NOISE.len();
        let space = buffer.len().min(NOISE.len() - at);
        let read = match (&*from).read(&mut buffer[..space]) {
            Ok(0) | Err(_) => return all,
            Ok(read) => read,
        };
        assert!(buffer[..read] == NOISE[at..at + read], "other bytes than were sent, from {all} on");
        all += read;
    }
}

/// Both ways at once, to the end.
fn exchange(stream: &UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| send(stream, LONG));
        assert_eq!(receive(stream), LONG);
    });
}

/// A root and its guest `alice`. Port 5000 is the root's, served at `served`, reached by the guest's host at `entrance`;
/// port 22 is the guest's, served at `guests`, reached from the root's host at `door`.
struct World {
    place: Place,
    root: Process,
    alice: Process,
}

impl World {
    fn new() -> Self {
        let place = Place::new();
        let root = start_root(&place);
        let alice = start_alice(&place);
        Self { place, root, alice }
    }
}

fn start_root(place: &Place) -> Process {
    let (served, door) =
        (format!("5000=unix:{}", place.text("served")), format!("alice:22=unix:{}", place.text("door")));
    let socket = place.socket();
    let root = Process::start(&[
        "root",
        "--until-stdin-ends",
        "--socket",
        &socket,
        "--hvsock",
        &served,
        "--hvsock-listen",
        &door,
    ]);
    root.says("listening");
    root
}

fn start_alice(place: &Place) -> Process {
    let (guests, entrance) =
        (format!("22=unix:{}", place.text("guests")), format!("5000=unix:{}", place.text("entrance")));
    let socket = place.socket();
    let alice = Process::start(&[
        "guest",
        "--socket",
        &socket,
        "--name",
        "alice",
        "--hvsock",
        &guests,
        "--hvsock-listen",
        &entrance,
    ]);
    alice.says("joined");
    alice
}

/// A connection that enters at one path and comes out at another.
fn joined(listener: &UnixListener, entrance: &Path) -> (UnixStream, UnixStream) {
    let client = UnixStream::connect(entrance).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn a_hundred_megabytes_cross_both_ways_at_once_whoever_connects() {
    let world = World::new();
    for (served, entrance) in [("served", "entrance"), ("guests", "door")] {
        let listener = UnixListener::bind(world.place.path(served)).unwrap();
        let (client, server) = joined(&listener, &world.place.path(entrance));
        thread::scope(|scope| {
            scope.spawn(|| exchange(&client));
            exchange(&server);
        });
    }
    kill(Pid::from_raw(world.alice.pid().cast_signed()), Signal::SIGTERM).unwrap();
    eventually("the guest's socket is removed", || !world.place.path("entrance").exists());
    world.root.end();
    assert_eq!(world.place.names(), ["guests", "served"], "what the test made itself");
}

#[test]
fn each_direction_ends_on_its_own_and_a_reply_follows_the_end() {
    let world = World::new();
    let listener = UnixListener::bind(world.place.path("served")).unwrap();
    let (mut client, mut server) = joined(&listener, &world.place.path("entrance"));
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).unwrap();
    server.write_all(heard.to_uppercase().as_bytes()).unwrap();
    drop(server);
    heard.clear();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "QUESTION");
}

#[test]
fn the_death_of_either_end_is_the_end_of_the_stream_and_the_next_root_takes_the_paths_over() {
    let World { place, root, alice } = World::new();
    let listener = UnixListener::bind(place.path("served")).unwrap();
    let (client, server) = joined(&listener, &place.path("entrance"));
    (&client).write_all(&NOISE[..5000]).unwrap();
    let mut start = vec![0; 4000];
    (&server).read_exact(&mut start).unwrap();
    assert!(start == NOISE[..4000]);
    alice.kill();
    let mut rest = Vec::new();
    (&server).read_to_end(&mut rest).unwrap();
    assert!(rest == NOISE[4000..5000], "{} bytes after the guest's death", rest.len());

    // Its socket is left behind, and taken over.
    let alice = start_alice(&place);
    let (client, server) = joined(&listener, &place.path("entrance"));
    (&server).write_all(&NOISE[..5000]).unwrap();
    let mut start = vec![0; 4000];
    (&client).read_exact(&mut start).unwrap();
    root.kill();
    let mut rest = Vec::new();
    (&client).read_to_end(&mut rest).unwrap();
    assert!(rest == NOISE[4000..5000], "{} bytes after the root's death", rest.len());
    drop(alice);

    let (root, alice) = (start_root(&place), start_alice(&place));
    let (client, server) = joined(&listener, &place.path("entrance"));
    (&client).write_all(b"again").unwrap();
    drop(client);
    let mut heard = String::new();
    (&server).read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "again");
    kill(Pid::from_raw(alice.pid().cast_signed()), Signal::SIGTERM).unwrap();
    eventually("the guest's socket is removed", || !place.path("entrance").exists());
    root.end();
    assert_eq!(place.names(), ["served"]);
}

#[test]
fn three_hundred_connections_leave_no_descriptor_and_no_mapping_behind() {
    let world = World::new();
    let listener = UnixListener::bind(world.place.path("served")).unwrap();
    let connect = || {
        let (mut client, mut server) = joined(&listener, &world.place.path("entrance"));
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    };
    (0..20).for_each(|_| connect());
    thread::sleep(std::time::Duration::from_millis(300));
    let before = (holdings(world.root.pid()), holdings(world.alice.pid()));
    (0..300).for_each(|_| connect());
    eventually("both ends hold what they held", || {
        let (root, alice) = (holdings(world.root.pid()), holdings(world.alice.pid()));
        root.0 <= before.0.0 && root.1 <= before.0.1 && alice.0 <= before.1.0 && alice.1 <= before.1.1
    });
}

#[test]
fn one_guest_reaches_another_by_a_route_of_the_root_only() {
    let place = Place::new();
    let socket = place.socket();
    let root =
        Process::start(&["root", "--until-stdin-ends", "--socket", &socket, "--hvsock", "80=guest:bob"]);
    root.says("listening");
    let web = format!("80=unix:{}", place.text("web"));
    let bob = Process::start(&["guest", "--socket", &socket, "--name", "bob", "--hvsock", &web]);
    bob.says("joined");
    let (entrance, elsewhere) =
        (format!("80=unix:{}", place.text("entrance")), format!("81=unix:{}", place.text("elsewhere")));
    let alice = Process::start(&[
        "guest",
        "--socket",
        &socket,
        "--name",
        "alice",
        "--hvsock-listen",
        &entrance,
        "--hvsock-listen",
        &elsewhere,
    ]);
    alice.says("joined");
    let listener = UnixListener::bind(place.path("web")).unwrap();
    let (mut client, mut server) = joined(&listener, &place.path("entrance"));
    server.write_all(b"hello").unwrap();
    drop(server);
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");
    let mut refused = UnixStream::connect(place.path("elsewhere")).unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap_or(0), 0, "nobody listens at port 81");
}

#[test]
fn options_that_make_no_sense_are_explained() {
    let place = Place::new();
    let socket = place.socket();
    let wrong = |option, value| complaint(&["root", "--socket", &socket, option, value]);
    assert!(wrong("--hvsock", "ssh=unix:s").contains("a vsock port number or a GUID"));
    assert!(wrong("--hvsock", "22=tcp:22").contains("expected unix:PATH"));
    assert!(wrong("--hvsock-listen", "22=unix:s").contains("GUEST:SERVICE=unix:PATH"));
    std::fs::write(place.path("file"), "").unwrap();
    let taken = format!("alice:22=unix:{}", place.text("file"));
    assert!(wrong("--hvsock-listen", &taken).contains("is not a socket"));
    let _live = UnixListener::bind(place.path("live")).unwrap();
    let taken = format!("alice:22=unix:{}", place.text("live"));
    assert!(wrong("--hvsock-listen", &taken).contains("somebody is listening"));
}
