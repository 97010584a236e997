//! Who may have which name.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use vmbus_channels::{Error, Guest, Root};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_a_virtual_machine_is_for_its_socket_alone_and_its_socket_for_that_name() {
    let directory = tempfile::tempdir().unwrap();
    let (bus, vm) = (directory.path().join("bus.sock"), directory.path().join("vm.sock"));
    let root = Root::listen(&bus).await.unwrap();
    root.listen_for_vm("alice", &vm).unwrap();

    for (name, socket) in [("alice", &bus), ("bob", &vm)] {
        let guest = Guest::builder().name(name).connect(socket).await;
        assert!(matches!(guest, Err(Error::Refused(_))), "{name}: {guest:?}");
    }
    for (name, socket) in [("bob", &bus), ("alice", &vm)] {
        let _guest = Guest::builder().name(name).connect(socket).await.unwrap();
    }
}
