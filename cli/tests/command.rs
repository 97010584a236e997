//! The command as a user meets it: listings, configuration, and what it says when something is wrong.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::{Place, Process, complaint, context_switches, eventually, vmbus};

/// A guest that has joined.
fn guest(place: &Place, name: &str) -> Process {
    let guest = Process::start(&["guest", "--socket", &place.socket(), "--name", name]);
    guest.says("joined as");
    guest
}

#[test]
fn a_listing_shows_devices_and_guests_to_people_and_to_programs() {
    let place = Place::new();
    let _root = place.root(&[&format!("{},for=alice", place.image("a.img", 1 << 20))]);
    let alice = guest(&place, "alice");
    alice.says("device ");

    let text = String::from_utf8(vmbus(&["ls", "--socket", &place.socket()]).stdout).unwrap();
    for words in
        ["DEVICE", "a.img", "GUEST", "alice", "process", &alice.pid().to_string(), "64.00 MiB", "0 of 1"]
    {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
    let json = vmbus(&["ls", "--json", "--socket", &place.socket()]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["devices"][0]["name"], "a.img");
    assert_eq!(json["partitions"][0]["name"], "alice");
    assert_eq!(json["partitions"][0]["pid"], alice.pid());
    assert_eq!(json["partitions"][0]["channels"][0]["device"], "a.img");
}

#[test]
fn a_configuration_file_does_what_options_do() {
    let place = Place::new();
    let (image, socket) = (place.image("a.img", 1 << 20), place.socket());
    let config =
        format!("socket = {socket:?}\n[[disk]]\nfile = {image:?}\nfor = \"alice\"\nread_only = true\n");
    std::fs::write(place.path("root.toml"), config).unwrap();
    let root = Process::start(&["root", "--until-stdin-ends", "--config", &place.text("root.toml")]);
    root.says("listening at");
    guest(&place, "alice").says("device ");
    root.end();
    assert_eq!(place.names(), ["a.img", "root.toml"], "a root that ends in order takes its socket away");

    std::fs::write(place.path("root.toml"), "sockett = \"x\"").unwrap();
    let said = complaint(&["root", "--config", &place.text("root.toml")]);
    assert!(said.contains("root.toml is not a configuration") && said.contains("sockett"), "{said}");
}

#[test]
fn who_finds_no_root_is_told_where_it_was_looked_for() {
    let place = Place::new();
    for arguments in [vec!["ls", "--socket"], vec!["guest", "--name", "alice", "--socket"]] {
        let socket = place.socket();
        let said = complaint(&[&arguments[..], &[&*socket]].concat());
        assert!(said.contains(&socket), "{said}");
    }
    assert!(complaint(&["ls", "--socket", &place.socket()]).contains("is it running?"));
}

#[test]
fn a_second_root_is_told_that_the_path_is_taken() {
    let place = Place::new();
    let _root = place.root(&[]);
    let said = complaint(&["root", "--socket", &place.socket()]);
    assert!(
        said.contains("another root is listening at") && said.contains("choose another socket path"),
        "{said}"
    );

    std::fs::write(place.path("file"), "").unwrap();
    let said = complaint(&["root", "--socket", &place.text("file")]);
    assert!(said.contains("is not a socket"), "{said}");
}

#[test]
fn a_disk_that_cannot_be_offered_is_named() {
    let place = Place::new();
    let (socket, missing, image) = (place.socket(), place.text("missing.img"), place.image("a.img", 1 << 20));
    let with = |disk: &str| complaint(&["root", "--socket", &socket, "--disk", disk]);
    let said = with(&missing);
    assert!(said.contains("missing.img") && said.contains("No such file"), "{said}");
    let said = with(&format!("{image},rw"));
    assert!(said.contains("unknown option `rw`: expected for=NAME or ro"), "{said}");

    let _root = place.root(&[&image]);
    let said = complaint(&["root", "--socket", &place.text("other.sock"), "--disk", &image]);
    assert!(said.contains("a.img") && said.contains("in use"), "{said}");
    assert!(complaint(&["root"]).contains("--socket"));
}

#[test]
fn a_guest_without_a_disk_is_told_how_to_get_one() {
    let place = Place::new();
    let _root = place.root(&[&format!("{},for=alice", place.image("a.img", 1 << 20))]);
    std::fs::create_dir(place.path("mnt")).unwrap();
    let said =
        complaint(&["guest", "--socket", &place.socket(), "--name", "bob", "--fuse", &place.text("mnt")]);
    assert!(said.contains("no disk is offered to this guest") && said.contains("--disk"), "{said}");
}

#[test]
fn nobody_wakes_while_nothing_happens() {
    let place = Place::new();
    let root = place.root(&[]);
    let guests: Vec<Process> = (0..16).map(|number| guest(&place, &format!("guest{number}"))).collect();
    let switches =
        || -> u64 { guests.iter().chain([&root]).map(|process| context_switches(process.pid())).sum() };
    // Two seconds without one, as soon as the start is over.
    eventually("root and guests come to rest for two seconds", || {
        let before = switches();
        std::thread::sleep(std::time::Duration::from_secs(2));
        switches() == before
    });
}
