//! Questions over a root's socket that are not the root's own to answer.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

use tokio::task::spawn_blocking;
use vmbus_channels::{Root, Status};

async fn ask(socket: &Path, topic: &'static str, argument: &'static str) -> std::io::Result<Vec<u8>> {
    let socket = socket.to_owned();
    spawn_blocking(move || Root::ask(socket, topic, argument)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_a_topic_answers_it_and_nobody_answers_others() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let root = Root::listen(&socket).await.unwrap();
    root.answer("echo", |asked| {
        assert!(asked.is_from_owner());
        let argument = asked.argument().to_owned();
        asked.answer(argument.as_bytes()).unwrap();
    });
    root.answer("silence", drop);
    assert_eq!(ask(&socket, "echo", "one\ntwo").await.unwrap(), b"one\ntwo");
    for topic in ["silence", "nonsense"] {
        assert_eq!(ask(&socket, topic, "").await.unwrap_err().kind(), ErrorKind::Unsupported, "{topic}");
    }
    let asked = socket.clone();
    let status = spawn_blocking(move || Status::of(asked)).await.unwrap().unwrap();
    assert_eq!(status, root.status().await, "the root itself still answers without a topic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_go_on_until_the_one_who_asked_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let root = Root::listen(&socket).await.unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    root.answer("news", move |asked| {
        let (mut answer, ended) = (asked.answer_slowly().unwrap(), ended.clone());
        std::thread::spawn(move || {
            answer.write_all(b"first").unwrap();
            while answer.is_wanted() {
                std::thread::yield_now();
            }
            ended.send(answer.write_all(b"more").is_err()).unwrap();
        });
    });
    spawn_blocking(move || {
        let mut news = Root::listen_to(&socket, "news", "").unwrap();
        news.read_exact(&mut [0; 5]).unwrap();
        drop(news);
        assert!(end.recv().unwrap(), "nobody reads what is written later");
    })
    .await
    .unwrap();
}
