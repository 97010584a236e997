//! Questions at the root's sockets about what the root's devices do, answered by whoever knows.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::unistd::geteuid;
use vmbus_partition::query::{self, Answer, Question};

use super::{Root, lock};

/// A question that somebody asked over a socket of the root. Dropping it answers nothing.
#[derive(Debug)]
pub struct Asked {
    argument: String,
    user: u32,
    stream: UnixStream,
}

impl Asked {
    /// What was asked, in the words that the topic has.
    pub fn argument(&self) -> &str {
        &self.argument
    }

    /// Whether it was the user of this process, or the superuser, who asked, and not another who may attach guests.
    pub fn is_from_owner(&self) -> bool {
        self.user == 0 || self.user == geteuid().as_raw()
    }

    /// Answers. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// The system's: the one who asked has gone, say.
    pub fn answer(self, report: &[u8]) -> io::Result<()> {
        query::answer(self.stream, report)
    }

    /// Answers little by little. That may take as long as it wants, on a thread of its own.
    ///
    /// # Errors
    /// The system's.
    pub fn answer_slowly(self) -> io::Result<Answer> {
        Answer::new(self.stream)
    }
}

type Answerer = Arc<dyn Fn(Asked) + Send + Sync>;

/// Who answers what.
#[derive(Default)]
pub(super) struct Answerers(Mutex<BTreeMap<String, Answerer>>);

impl Answerers {
    /// Has a question that `user` asked answered by whom it concerns.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(super) fn answer(&self, question: Question, stream: UnixStream, user: u32) -> Result<(), String> {
        let answerer = lock(&self.0).get(&question.topic).cloned();
        // Not the topic itself: it is a stranger's text.
        let answerer = answerer.ok_or_else(|| "asked about what nobody knows".to_owned())?;
        answerer(Asked { argument: question.argument, user, stream });
        Ok(())
    }
}

impl Root {
    /// Answers questions about `topic` that come over the root's sockets (`attach.md`, "QUERY"). `answerer` is called on
    /// a thread that may wait a little; who answers slowly does that elsewhere. An answerer replaces the one before.
    pub fn answer(&self, topic: &str, answerer: impl Fn(Asked) + Send + Sync + 'static) {
        lock(&self.inner.answerers.0).insert(topic.to_owned(), Arc::new(answerer));
    }

    /// Asks the root that listens at `path` about `topic`. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// The system's: nobody listens, or not a root. [`io::ErrorKind::Unsupported`] if it knows nothing of the topic, or
    /// does not want to tell.
    pub fn ask(path: impl AsRef<Path>, topic: &str, argument: &str) -> io::Result<Vec<u8>> {
        let answer = query::ask(path.as_ref(), &question(topic, argument))?;
        if answer.is_empty() { Err(io::ErrorKind::Unsupported.into()) } else { Ok(answer) }
    }

    /// Asks, and gives the answer as it comes; reading waits for as long as the root goes on.
    ///
    /// # Errors
    /// The system's: nobody listens.
    pub fn listen_to(path: &Path, topic: &str, argument: &str) -> io::Result<impl Read + Send + use<>> {
        query::Report::to(path, &question(topic, argument), None)
    }
}

fn question(topic: &str, argument: &str) -> Question {
    Question { topic: topic.to_owned(), argument: argument.to_owned() }
}
